"""Every experiment file loads, says how to run it, and trains two steps of its own model."""

import dataclasses
import functools
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from jaxrec.config import Experiment
from jaxrec.data.histories import Histories
from jaxrec.data.splits import leave_one_out
from jaxrec.datasets import KNOWN
from jaxrec.devices.mesh import put_batch
from jaxrec.evaluation.protocols import protocol_of
from jaxrec.experiment import check, from_record, to_record
from jaxrec.tasks.next_item import train_batches
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import init_state, split_model, train_step

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


def with_columns(histories, features):
    """The histories with random values of the features, events and items alike."""
    rng = np.random.default_rng(0)
    for feature in features:
        if feature.kind == 'set':
            sets = rng.integers(0, feature.size + 1, (histories.num_items, 3))
            histories.item_features[feature.column] = sets.astype(np.int32)
        elif feature.column != 'gap':
            histories.features[feature.column] = rng.uniform(0, 9, len(histories.items))
    return dataclasses.replace(histories, times=np.arange(len(histories.items)))


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
    assert from_record(to_record(experiment)) == experiment
    protocol_of(experiment.eval)

    mesh(1, 1)
    histories = with_columns(tiny_histories(), getattr(experiment.model, 'features', ()))
    experiment.train.batch_rows = 8
    batches = train_batches(experiment, histories, leave_one_out(histories))
    optimizer = make_optimizer(experiment.optim, 10)
    graphdef, _ = split_model(experiment.model, histories.num_items)
    state = init_state(experiment.model, histories.num_items, optimizer, 0)
    step = train_step(graphdef, optimizer, seed=0)
    for i in range(2):
        state, metrics = step(state, put_batch(batches(i)))
        assert np.isfinite(metrics['loss']) and metrics['grad_norm'] > 0
    assert int(jax.device_get(state['step'])) == 2


SWEEPS = [path for path in FILES if 'def sweep(' in path.read_text()]


@pytest.mark.parametrize('path', SWEEPS, ids=lambda p: p.stem)
def test_every_row_of_a_sweep_is_an_experiment(path, mesh):
    """Its overrides name fields, with values of the right type, and the model can be built."""
    mesh(1, 1)
    module = load(path)
    assert 'launch/sweep.py' in module.__doc__
    seen = []
    for arg, overrides in module.sweep().values():
        experiment = module.get_config(arg)
        for name, value in overrides.items():
            *sections, field = name.split('.')
            section = functools.reduce(getattr, sections, experiment)
            assert hasattr(section, field), name
            setattr(section, field, value)
        check(experiment)
        split_model(experiment.model, 30)
        seen.append(to_record(experiment))
    assert len(seen) > 3
