"""Suite catalogue: step time and memory of a sampled loss against the size of the catalogue."""

import dataclasses
import statistics

import jax

from jaxrec.benchmarks import measure
from jaxrec.benchmarks.training import Loop
from jaxrec.devices.mesh import make_mesh
from jaxrec.experiment import Experiment


def trained(experiment: Experiment) -> Experiment:
    """The experiment that is measured: model and optimiser of the config.

    Only the exact softmax, whose cost is the catalogue, gives way to the sampled one with 256
    negatives shared by a batch. How the table is stored and optimised is the config's choice.
    """
    if getattr(experiment.model, 'loss', '') != 'softmax':
        return experiment
    model = dataclasses.replace(
        experiment.model, loss='sampled_softmax', negatives=256, negatives_per='batch'
    )
    return dataclasses.replace(experiment, model=model)


def measure_catalogue(
    experiment: Experiment, items: int, *, repeats: int, steps: int, matmul_size: int
) -> dict:
    """Step time and peak memory with `items` items.

    Args:
      experiment: see `trained`; its data are replaced by generated ones.
      items: size of the catalogue.
      repeats, steps, matmul_size: see `training.measure_training`; `steps` = 0 takes three.
    """
    experiment = trained(experiment)
    jax.set_mesh(make_mesh(experiment.mesh))
    problem = experiment.task.generated(experiment, items)
    start = measure.peak_memory()
    loop = Loop(experiment, problem)
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
