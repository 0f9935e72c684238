"""Every experiment compiled for machines that are not here, by their own compilers.

pytest -m accelerators; skipped where they are not installed ('jax[tpu]', 'jax[cuda13]'). Models
and batches are those of the experiments, on made-up data of 400,000 items; nothing runs. One core
takes two hours for all: `-k v5e:4x4`, `-k sasrec_beauty`. What several experiments have in common
is compiled once.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import os

import jax
import numpy as np
import pytest
from hlo_programs import PROGRAMS, compiled
from test_experiments import FILES, load
from test_hlo import check as check_text

from jaxrec import config
from jaxrec.data.histories import Histories
from jaxrec.data.rows import Rows
from jaxrec.datasets import block_model
from jaxrec.devices.mesh import batch_part, make_mesh, table_rows
from jaxrec.devices.target import target_of
from jaxrec.models import c2dsr, lightgcn
from jaxrec.serving import recommender
from jaxrec.tasks import click, next_item, nodes
from jaxrec.training import plan

os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
pytestmark = pytest.mark.accelerators
ITEMS, USERS = 400_000, 300
TARGETS = ('v5e:4x4', 'v5e:16x16', 'v6e:16x16', 'h100:8')
SPLITS = {'data parallel': 1, 'pairs': 2, 'tables split': 4}  # devices on the model axis

GRAPHS = lightgcn.Config, c2dsr.Config  # a layer reads every node's neighbours: one table whole


def target(name):
    package = 'jax_cuda13_plugin' if name.startswith('h100') else 'libtpu'
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    return target_of(name)


def histories(experiment):
    """300 users with histories longer than the window, and the features that the model reads."""
    inputs, task = experiment.model.inputs(), experiment.task
    length, rng = inputs.max_len + 5, np.random.default_rng(0)
    events = USERS * length
    made = Histories(
        items=(np.arange(events) * 7919 % ITEMS + 1).astype(np.int32),  # a user's all distinct
        offsets=np.arange(USERS + 1) * length,
        user_ids=np.arange(USERS),
        item_ids=np.arange(1, ITEMS + 1),
        times=np.tile(np.arange(length), USERS),
    )
    if task.in_domain:
        made.item_features['domain'] = np.array([b'food', b'kitchen'])[np.arange(ITEMS) % 2]
    if task.split == 'given':
        made.features['part'] = np.tile(np.maximum(np.arange(length) % 5 - 2, 0.0), USERS)
    for signal in inputs.rewards.signals if inputs.rewards else ():
        for column in {signal.column, signal.within} - {''}:
            made.features[column] = rng.integers(1, 9, events).astype(np.float64)
    for feature in inputs.features:
        if feature.kind == 'set':
            sets = rng.integers(0, feature.size + 1, (ITEMS, 3))
            made.item_features[feature.column] = sets.astype(np.int32)
        elif feature.column != 'gap':
            made.features[feature.column] = rng.uniform(0, 9, events)
    return made


def impressions(task):
    """50,000 rows with the fields and labels of the task; a tenth validates, a tenth tests."""
    rng, count = np.random.default_rng(0), 50_000
    days = np.where(np.arange(count) % 10 == 8, task.valid_from, 0)
    days = np.where(np.arange(count) % 10 == 9, task.test_from, days)
    columns = {task.day: np.sort(days)}
    of_items = {field.of for field in task.fields} - {'', 'item'}
    for field in task.fields:
        if '.' in field.column or field.column in of_items:
            continue
        if field.kind == 'set':
            columns[field.column] = rng.integers(0, 50, (count, 5)).astype(np.int32)
        elif field.kind == 'category' and field.column not in ('user', 'item'):
            columns[field.column] = rng.integers(0, 50, count)
        elif field.column not in ('user', 'item'):
            columns[field.column] = rng.normal(size=count).astype(np.float32)
    sets = {field.column for field in task.fields if field.kind == 'set' and field.of == 'item'}
    sets &= columns.keys()
    return Rows(
        users=rng.integers(0, USERS, count).astype(np.int32),
        items=rng.integers(1, ITEMS + 1, count).astype(np.int32),
        times=np.arange(count),
        user_ids=np.arange(USERS),
        item_ids=np.arange(ITEMS),
        features={name: c for name, c in columns.items() if name not in sets},
        user_features={name: columns[name][:USERS] for name in sets},
        item_features={name: rng.integers(0, 50, ITEMS) for name in of_items},
        labels={name: rng.integers(0, 2, count).astype(np.float32) for name in task.labels},
    )


def opened(experiment, monkeypatch):
    """The experiment's problem on made-up data."""
    task, meta = experiment.task, {'data_hash': '', 'path': ''}
    texts = isinstance(task, next_item.Config) and task.texts.encoder
    if texts or not isinstance(task, (next_item.Config, click.Config, nodes.Config)):
        pytest.skip('there are no made-up data of texts, ratings, graphs and live rooms yet')
    if isinstance(task, next_item.Config):
        return next_item.NextItem(experiment, histories(experiment), meta)
    made = (
        impressions(task)
        if isinstance(task, click.Config)
        else block_model.generate(block_model.Parameters(nodes=3_000))
    )
    monkeypatch.setattr(click.datasets, 'load', lambda *args, **kwargs: (made, meta))
    return task.open(experiment, lambda line: None)


@functools.cache
def kept():
    """What programs were found to be, by their text, their machine and the bytes beside them."""
    return {}


def once(compiled):
    def call(planned, lowered, parts):
        about = planned._target, str(jax.sharding.get_mesh().devices), str(parts)
        key = hashlib.sha256(f'{about} {lowered.as_text()}'.encode()).digest()
        if key not in kept():
            kept()[key] = compiled(planned, lowered, parts)
        return kept()[key]

    return call


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('name', TARGETS)
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_experiment_fits_and_moves_no_table(path, name, split, monkeypatch):
    """On the first target also what makes the state, and lists; at the others in less time."""
    there, experiment = target(name), load(path).get_config()
    whole = name == TARGETS[0]
    if not whole:
        monkeypatch.setattr(plan._Planned, 'first_state', lambda planned: None)
        if not there.options:
            there = dataclasses.replace(there, options={'exec_time_optimization_effort': -1.0})
    mesh = config.Mesh(len(there.devices) // SPLITS[split], SPLITS[split])
    monkeypatch.setattr(plan, '_problem', lambda given, items: opened(given, monkeypatch))
    monkeypatch.setattr(plan._Planned, '_compiled', once(plan._Planned._compiled))
    lists = recommender.planned if whole else None
    found = plan.plan(experiment, mesh, target=there, lists=lists)
    programs = {'step': found, **found['programs']}
    assert {'step', 'evaluation', *['first state'] * whole} <= programs.keys()
    state = sum(found['memory'].get(part, 0) for part in plan.PARTS.values())
    dim = getattr(experiment.model, 'dim', None)
    for what, program in programs.items():
        assert program['fits'], (what, program['memory'])
        # beside what it is given: activations of these models, never another copy per device
        assert program['memory']['temporaries'] < 4 * state + (2 << 30), (what, program['memory'])
        if found['items'] is None or dim is None:
            continue
        shard = ITEMS // mesh.model
        most = shard * dim
        if isinstance(experiment.model, GRAPHS) and what in ('step', 'vectors'):
            most = table_rows(ITEMS) * dim + 1
        for kind, moved in program['collectives'].items():
            if what == 'step' and kind == 'all-reduce':
                continue  # the sum of a dense table's gradient
            assert moved['largest'] < most, (what, kind, moved)
            if 'rows' in program:  # users x items
                assert moved['largest'] < program['rows'] // mesh.data * shard, (what, kind, moved)


@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('name', ['v5e:2x2', 'h100:4'])
def test_texts_of_today_say_what_is_in_them(name, program):
    check_text(program, 'gpu' if 'h100' in name else 'tpu', compiled(program, target(name)))


@pytest.mark.parametrize(
    'name', ['v5e:2x4', 'v5e:4x4', 'v5e:16x16', 'v6e:4x8', 'v6e:16x16', 'v5p:4x4x4', 'v4:4x4x4']
)
def test_every_host_has_its_rows(name, monkeypatch):
    """Any mesh shape on the topologies that JAX lists, in whatever order."""
    devices = target(name).devices
    hosts = {device.process_index for device in devices}
    monkeypatch.setattr(jax, 'process_count', lambda: len(hosts))
    for model in (n for n in range(1, len(devices) + 1) if len(devices) % n == 0):
        mesh, made = make_mesh(config.Mesh(model=model), devices), set()
        monkeypatch.setattr(jax.sharding, 'get_mesh', lambda mesh=mesh: mesh)
        for host in hosts:
            monkeypatch.setattr(jax, 'process_index', lambda host=host: host)
            index, count = batch_part()
            size = len(mesh.devices) // count
            mine = [
                n for n, row in enumerate(mesh.devices) if host in {d.process_index for d in row}
            ]
            assert mine == list(range(index * size, (index + 1) * size))
            made |= set(mine)
        assert made == set(range(len(mesh.devices)))


@pytest.mark.parametrize('name', ['v5e:4x4'])
def test_a_catalogue_of_a_hundred_million(name):
    """First state, evaluation and lists take little more than the table's 5.96 GiB a device."""
    there, experiment = target(name), load(FILES[0].with_stem('own_log')).get_config()
    model = dataclasses.replace(
        experiment.model, loss='sampled_softmax', negatives_per='batch', negatives=4096
    )
    optim = dataclasses.replace(experiment.optim, table='rowwise_adagrad', ema=0.0)
    experiment = dataclasses.replace(experiment, model=model, optim=optim)
    found = plan.plan(experiment, config.Mesh(2, 8), 100_000_000, there, recommender.planned)
    for program in (found, *found['programs'].values()):
        assert program['fits'] and program['memory']['total'] < 8 << 30, program['memory']
