"""Every experiment compiled for machines that are not here, by their own compilers.

pytest -m accelerators; skipped where they are not installed ('jax[tpu]', 'jax[cuda13]'). Models
and batches are those of the experiments, on made-up data (made_up.py); nothing runs. `-k v5e:4x4`
and `-k sasrec_beauty` choose. What several experiments have in common is compiled once.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import math
import os

import jax
import made_up
import pytest
from hlo_programs import PROGRAMS, compiled
from test_experiments import FILES, load
from test_hlo import check as check_text

from jaxrec import config, datasets
from jaxrec.data import item_texts
from jaxrec.devices.mesh import batch_part, make_mesh, table_rows
from jaxrec.devices.target import target_of
from jaxrec.evaluation import cold_start
from jaxrec.models import c2dsr, lightgcn
from jaxrec.serving import recommender
from jaxrec.tasks import warm_ratings
from jaxrec.training import plan

os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
pytestmark = pytest.mark.accelerators
TARGETS = ('v5e:4x4', 'v5e:16x16', 'v6e:16x16', 'h100:8')
SPLITS = {'data parallel': 1, 'pairs': 2, 'tables split': 4}  # devices on the model axis

GRAPHS = lightgcn.Config, c2dsr.Config  # a layer reads every node's neighbours: one table whole


def target(name):
    package = 'jax_cuda13_plugin' if name.startswith('h100') else 'libtpu'
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    return target_of(name)


def opened(experiment, monkeypatch):
    """The experiment's problem on made-up data."""
    made, meta = made_up.data_of(experiment), {'data_hash': '', 'path': ''}
    monkeypatch.setattr(datasets, 'load', lambda *args, **kwargs: (made, meta))
    monkeypatch.setattr(item_texts, 'of_items', made_up.text_vectors)
    monkeypatch.setattr(cold_start, 'factorise', made_up.factors)
    monkeypatch.setattr(warm_ratings, 'texts_of', made_up.texts_of)
    return experiment.task.open(experiment, lambda line: None)


def table_of(model, sizes):
    """(rows, their numbers) of the table that nothing carries: of items, or of all fields.

    (0, 0) of graphs, which have none.
    """
    rows = sizes.get('item', sizes.get('table', 0))
    if not rows:
        return 0, 0
    return rows, getattr(model, 'dim', None) or sizes.get('factor') or model.widths[-1]


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


def with_shapes(crossing):
    def call(moved):
        found = crossing(moved)
        for one in moved:
            found[one.kind].setdefault('shapes', set()).update(shape for _, shape in one.arrays)
        return found

    return call


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('name', TARGETS)
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_experiment_fits_and_moves_no_table(path, name, split, monkeypatch):
    """On the first target also what makes the state, and lists; a TPU's compiler in less time."""
    there, experiment = target(name), load(path).get_config()
    whole = name == TARGETS[0]
    if not whole:
        monkeypatch.setattr(plan._Planned, 'first_state', lambda planned: None)
    if not there.options:
        there = dataclasses.replace(there, options={'exec_time_optimization_effort': -1.0})
    mesh = config.Mesh(len(there.devices) // SPLITS[split], SPLITS[split])
    sizes = {}

    def problem(given, items):
        made = opened(given, monkeypatch)
        sizes.update(made.sizes)
        return made

    monkeypatch.setattr(plan, '_problem', problem)
    monkeypatch.setattr(plan._Planned, '_compiled', once(plan._Planned._compiled))
    monkeypatch.setattr(plan, '_crossing', with_shapes(plan._crossing))
    lists = recommender.planned if whole else None
    found = plan.plan(experiment, mesh, target=there, lists=lists)
    programs = {'step': found, **found['programs']}
    assert {'step', 'evaluation', *['first state'] * whole} <= programs.keys()
    state = sum(found['memory'].get(part, 0) for part in plan.PARTS.values())
    rows, width = table_of(experiment.model, sizes)
    shard, held = rows // mesh.model, {rows, table_rows(rows), table_rows(rows) // mesh.model}
    for what, program in programs.items():
        assert program['fits'], (what, program['memory'])
        # beside what it is given: activations of these models, never another copy per device
        assert program['memory']['temporaries'] < 4 * state + (2 << 30), (what, program['memory'])
        if not rows:
            continue
        most, tables = shard * width, {n * width for n in held}
        if isinstance(experiment.model, GRAPHS) and what in ('step', 'vectors'):
            count = len(there.devices)  # which the nodes are split over
            most, tables = -(-table_rows(rows) // count) * count * width + 1, set()
        # a batch may look up more rows than the table has
        looked_up = program['memory'].get('batch', 0) // 4
        users = program.get('rows', 0) // mesh.data  # of a device
        for kind, moved in program['collectives'].items():
            if what == 'step' and kind == 'all-reduce':
                continue  # the sum of a dense table's gradient
            if 'item' in sizes:
                assert moved['largest'] < max(most, looked_up * width), (what, kind, moved)
                if users:  # users x items
                    at_most = max(users * shard, looked_up * width)
                    assert moved['largest'] < at_most, (what, kind, moved)
            wrong = tables | ({n * users for n in held} - {0})
            for shape in moved['shapes']:
                assert math.prod(shape) not in wrong, (what, kind, shape)
                assert 'item' in sizes or not held & {*shape}, (what, kind, shape)


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
