"""Suite catalogue: step time and memory of a sampled loss against the size of the catalogue."""

import dataclasses
import statistics

import jax
import numpy as np

from jaxrec import config, sharding
from jaxrec.benchmarks import measure
from jaxrec.benchmarks.training import Loop
from jaxrec.histories import Histories
from jaxrec.splits import Split, Targets

_BATCHES = 4  # of generated users; then they come round again


def trained(experiment: config.Experiment) -> config.Experiment:
    """The experiment that is measured: model and optimiser of the config.

    Only the exact softmax, whose cost is the catalogue, gives way to the sampled one with 256
    negatives shared by a batch. How the table is stored and optimised is the config's choice.
    """
    if experiment.model.loss != 'softmax':
        return experiment
    model = dataclasses.replace(
        experiment.model, loss='sampled_softmax', negatives=256, negatives_per='batch'
    )
    return dataclasses.replace(experiment, model=model)


def generated(experiment: config.Experiment, items: int) -> tuple[Histories, Split]:
    """Uniform random histories that fill every row, and a split that trains on all of them."""
    length = experiment.model.max_len + 1
    users = _BATCHES * experiment.train.batch_rows
    rng = np.random.default_rng(0)
    histories = Histories(
        items=rng.integers(1, items + 1, users * length).astype(np.int32),
        offsets=np.arange(users + 1) * length,
        user_ids=np.arange(users),
        item_ids=np.broadcast_to(np.int64(0), items),  # takes no memory; nobody asks for them
    )
    nobody = Targets(np.zeros(0, np.int64), np.zeros(0, np.int64))
    return histories, Split(histories.offsets[1:], nobody, nobody)


def measure_catalogue(
    experiment: config.Experiment, items: int, *, repeats: int, steps: int, matmul_size: int
) -> dict:
    """Step time and peak memory with `items` items.

    Args:
      experiment: see `trained`; its data are replaced by `generated`.
      items: size of the catalogue.
      repeats, steps, matmul_size: see `training.measure_training`; `steps` = 0 takes three.
    """
    experiment = trained(experiment)
    jax.set_mesh(sharding.make_mesh(experiment.mesh))
    histories, split = generated(experiment, items)
    start = measure.peak_memory()
    loop = Loop(experiment, histories, split)
    peak = measure.peak_memory()
    matmul = measure.Matmul(matmul_size)
    turns = []
    for _ in range(repeats):
        matmul.sample()
        turns.append(loop.run(steps or 3))
    loop.close()
    return {
        'milliseconds': statistics.median(1e3 * turn['seconds'] / turn['steps'] for turn in turns),
        'targets_per_second': statistics.median(t['targets'] / t['seconds'] for t in turns),
        'matmul_gflops': matmul.gflops,
        'peak_memory_mib': peak,
        'above_start_mib': peak - start,
        'memory_limit_mib': measure.memory_limit(),
        'state_mib': sum(x.nbytes for x in jax.tree.leaves(loop.state)) / measure.MIB,
        'compile_seconds': loop.compile_seconds,
    }
