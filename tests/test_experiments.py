"""Every experiment file loads, says how to run it, and can be recorded; models take two steps."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from jaxrec.data.histories import Histories
from jaxrec.datasets import NAMES
from jaxrec.experiment import Experiment, applied, check, from_record, to_record
from jaxrec.tasks import next_item
from jaxrec.training.state import Program

FILES = sorted((pathlib.Path(__file__).parent.parent / 'experiments').glob('*.py'))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_histories(features, rewards=None):
    """Sixty users with random values of features and signals, of events and items alike."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 12, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    histories = Histories(
        items=rng.integers(1, 31, offsets[-1]).astype(np.int32),
        offsets=offsets,
        user_ids=np.arange(60),
        item_ids=np.arange(1, 31),
        times=np.arange(offsets[-1]),
    )
    for feature in features:
        if feature.kind == 'set':
            sets = rng.integers(0, feature.size + 1, (histories.num_items, 3))
            histories.item_features[feature.column] = sets.astype(np.int32)
        elif feature.column != 'gap':
            histories.features[feature.column] = rng.uniform(0, 9, len(histories.items))
    for signal in rewards.signals if rewards else ():
        for column in filter(None, (signal.column, signal.within)):
            histories.features[column] = rng.uniform(0, 9, len(histories.items))
    return histories


def test_there_are_experiments():
    assert {'quickstart', 'own_log', 'sasrec_beauty', 'sasrec_games_2018'} <= {
        f.stem for f in FILES
    }


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_loads_and_says_how_to_run_it(path):
    module = load(path)
    assert f'--config=experiments/{path.name}' in module.__doc__
    assert 'python -m jaxrec.train' in module.__doc__
    experiment = module.get_config()
    assert isinstance(experiment, Experiment)
    assert experiment.data.dataset.partition(':')[0] in ('', *NAMES)
    assert from_record(to_record(experiment)) == experiment
    check(experiment)


def is_next_item(path):
    return isinstance(load(path).get_config().task, next_item.Config)


NEXT_ITEM = [path for path in FILES if is_next_item(path)]


def begun(path):
    """(program, its batches): its own model, on histories that have what it reads."""
    experiment = applied(load(path).get_config(), {'train.batch_rows': 40})
    inputs = experiment.model.inputs()
    if experiment.task.split == 'given':  # these histories come without one
        experiment = applied(experiment, {'task.split': 'temporal'})
    histories = tiny_histories(inputs.features, inputs.rewards)
    if inputs.domains or experiment.task.in_domain:
        names = np.where(np.arange(histories.num_items) % 2, b'food', b'kitchen')
        histories.item_features['domain'] = names
    if experiment.task.texts.encoder:
        histories.titles = np.array([f'item number {n % 9}'.encode() for n in range(30)])
    meta = {'data_hash': '', 'path': ''}
    problem = next_item.NextItem(experiment, histories, meta)
    program = Program(experiment, problem, 10)
    program.start(0)
    return program, problem.periods[0]().batches


@pytest.mark.parametrize('path', NEXT_ITEM, ids=lambda p: p.stem)
def test_its_model_takes_a_step(path, mesh):
    """By shapes and types alone: nothing is compiled. Small, they train in test_golden."""
    mesh(1, 1)
    program, batches = begun(path)
    before = program.abstract()
    after, metrics = jax.eval_shape(program.step, before, program.put([batches(0)]))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert {'loss', 'grad_norm'} < metrics.keys()
    assert all(value.shape == () for value in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize('path', NEXT_ITEM, ids=lambda p: p.stem)
def test_its_model_trains_two_steps(path, mesh):
    mesh(1, 1)
    program, batches = begun(path)
    state = program.init()
    for i in range(2):
        state, metrics = program.step(state, program.put([batches(i)]))
        assert np.isfinite(metrics['loss']) and metrics['grad_norm'] > 0
    assert int(jax.device_get(state['step'])) == 2
