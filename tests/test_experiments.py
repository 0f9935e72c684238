"""Every experiment file loads, says how to run it, and trains two steps of its own model."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from jaxrec import sharding, workdir
from jaxrec.batches import TrainBatches
from jaxrec.config import Experiment
from jaxrec.datasets import KNOWN
from jaxrec.histories import Histories
from jaxrec.optim import make_optimizer
from jaxrec.protocols import protocol_of
from jaxrec.splits import leave_one_out
from jaxrec.state import init_state, split_model, train_step

FILES = sorted((pathlib.Path(__file__).parent.parent / 'experiments').glob('*.py'))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_histories():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 12, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(
        items=rng.integers(1, 31, offsets[-1]).astype(np.int32),
        offsets=offsets,
        user_ids=np.arange(60),
        item_ids=np.arange(1, 31),
    )


def test_there_are_experiments():
    assert {'quickstart', 'own_log', 'sasrec_beauty', 'sasrec_games_2018'} <= {
        f.stem for f in FILES
    }


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_loads_and_trains(path, mesh):
    module = load(path)
    assert f'--config=experiments/{path.name}' in module.__doc__
    assert 'python -m jaxrec.train' in module.__doc__
    experiment = module.get_config()
    assert isinstance(experiment, Experiment)
    assert experiment.data.dataset in ('', *KNOWN)
    assert workdir.from_record(workdir.to_record(experiment)) == experiment
    protocol_of(experiment.eval)

    mesh(1, 1)
    histories = tiny_histories()
    batches = TrainBatches(
        histories,
        leave_one_out(histories).train_ends,
        max_len=experiment.model.max_len,
        rows=2,
        seed=0,
        unseen_negatives=experiment.data.unseen_negatives,
    )
    optimizer = make_optimizer(experiment.optim, 10)
    graphdef, _ = split_model(experiment.model, histories.num_items)
    state = init_state(experiment.model, histories.num_items, optimizer, 0)
    step = train_step(graphdef, optimizer, seed=0)
    for i in range(2):
        state, metrics = step(state, sharding.put_batch(batches(i)))
        assert np.isfinite(metrics['loss']) and metrics['grad_norm'] > 0
    assert int(jax.device_get(state['step'])) == 2
