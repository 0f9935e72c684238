"""Dry runs for machines that are not here, as far as they go without their compilers."""

import importlib.util

import jax
import numpy as np
import pytest
from runs import inside, small

from jaxrec import config
from jaxrec.devices import hlo, programs, target
from jaxrec.devices.mesh import BATCH, abstract, platform
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment
from jaxrec.models import gcn
from jaxrec.serving import recommender
from jaxrec.tasks import nodes
from jaxrec.training import plan, plan_text, state

MACHINE = target.Machine('made up', {'default': 1e12, 'highest': 1e11}, 1 << 20, 1e9, 1e8, 1e6)


def here(machine=MACHINE):
    """This computer's eight devices as if they were a target."""
    return target.Target('here:8', machine, tuple(jax.devices()), None)


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
    experiment = small(tmp_path_factory.mktemp('planned'), **{'optim.ema': 0.0})
    return plan.plan(experiment, config.Mesh(4, 2), 0, here(), recommender.planned)


def test_all_that_a_run_does_is_planned(planned):
    assert planned['programs'].keys() == {'first state', 'evaluation', 'lists'}
    parameters = planned['memory']['parameters']
    for name, program in planned['programs'].items():
        memory = program['memory']
        assert program['fits'] and memory['parameters'] == parameters, name
        assert memory['total'] == sum(v for part, v in memory.items() if part != 'total')
    assert planned['programs']['evaluation']['memory']['train state'] == pytest.approx(
        planned['memory']['optimiser state'], abs=64
    )
    shown = plan_text.text(planned, 8)
    assert all(word in shown for word in ('made up', 'at best', 'evaluation of 64 rows', 'lists'))
    line = plan_text.table([planned]).splitlines()[1]
    assert line.startswith('here:8') and '!' not in line


def test_programs_that_must_be_deterministic_are_planned(tmp_path, monkeypatch):
    """As on a GPU, whose training and evaluation have options of their own."""
    monkeypatch.setattr(programs, 'platform_of_mesh', lambda: 'gpu')
    experiment = small(tmp_path, **{'model.blocks': 0, 'optim.ema': 0.0})
    found = plan.plan(experiment, config.Mesh(8, 1), 0, here(), recommender.planned)
    assert found['programs'].keys() == {'first state', 'evaluation', 'lists'}


def test_a_step_is_lowered_with_constants_that_are_placed_nowhere(tmp_path, mesh, monkeypatch):
    mesh(2, 1)
    data = config.Data(dataset='block-model:nodes=200', data_dir=str(tmp_path))
    experiment = Experiment(task=nodes.Config(), model=gcn.Config(), data=data)
    problem = experiment.task.open(experiment, lambda line: None)
    assert problem.constants
    monkeypatch.setattr(state, 'put_whole', None)  # a device that is not here takes nothing
    program = state.Program(experiment, problem, 1)
    (batch,) = (abstract(batch, BATCH) for batch in problem.periods[0]().batches.shapes())
    given = program.lowered(batch).in_avals[0][2]
    assert jax.tree.map(np.shape, given) == jax.tree.map(np.shape, problem.constants)


def test_times_are_those_of_the_machine(planned):
    took, moved = planned['seconds'], planned['collectives']
    network = sum(one['bytes'] * (2 if kind == 'all-reduce' else 1) for kind, one in moved.items())
    assert took['network'] == pytest.approx(network / 1e8)
    assert took['products alone'] == pytest.approx(planned['flops'] / 1e12)
    assert took['computing'] >= max(took['products alone'], took['memory alone'])
    assert took['total'] == took['computing'] + took['network']
    slowest = [one['seconds'] for one in planned['costliest']]
    assert slowest == sorted(slowest, reverse=True) and sum(slowest) <= took['computing']


def test_one_instruction_takes_the_longest_of_what_it_does():
    cost = lambda flops, size, cycles: hlo.Cost('x', '', 1, flops, size, cycles)  # noqa: E731
    for one, seconds in (
        (cost({'default': 10**12, 'highest': 10**11}, 1, 1), 2),
        (cost({'default': 10**12}, 3 * 10**9, 1), 3),
        (cost({}, 1, 4 * 10**6), 4),
    ):
        assert target.seconds(MACHINE, one) == pytest.approx(seconds)


def test_what_does_not_fit_says_so_and_tables_are_split_until_it_does(tmp_path):
    experiment = small(tmp_path, **{'model.dim': 64, 'model.blocks': 0, 'optim.ema': 0.0})
    tables = 3 * 64 * 64 * 4  # of 64 rows, with the two moments of Adam
    for memory, model in ((8 * tables, 1), (1.9 * tables, 2), (10, 8)):
        machine = target.Machine('small', MACHINE.flops, int(memory), 1e9, 1e8)
        mesh = plan._smallest(experiment, 0, here(machine))
        assert mesh == config.Mesh(8 // model, model)
    found = plan.plan(experiment, mesh, 0, here(machine))
    assert not found['fits'] and 'does not fit' in plan_text.text(found, 8)
    assert '!' in plan_text.table([found])


@pytest.mark.parametrize(
    ('message', 'gigabytes'),
    [
        (
            'RESOURCE_EXHAUSTED: .. the total memory required for HLO temporaries (23.94G) exc',
            23.94,
        ),
        ('RESOURCE_EXHAUSTED: .. Ran out of memory in memory space hbm. Used 30.0G of 15.7G', 30),
    ],
)
def test_a_compiler_that_finds_no_room(message, gigabytes):
    found = plan._too_large(message, {'parameters': 5, 'train state': 7})
    assert found['memory']['total'] == int(gigabytes * 2**30) + 7 and not found['fits']
    with pytest.raises(UserError, match='the compiler fails: INTERNAL'):
        plan._too_large('INTERNAL: a bug (3G)\nmore', {})


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('--target=v9:2x2',), 'is none of v4, v5e, v5p, v6e'),
        (('--target=v5e:four',), 'is none of'),
        (('--target=h100:0',), 'is none of'),
        (('--target=all', '--mesh=2,2'), 'leave --mesh out'),
        (('--target=', '--items=5'), '--mesh=64,8'),
    ],
)
def test_mistakes_end_in_one_line(flags, words):
    error = inside('train', '--dry_run', '--config=experiments/quickstart.py', *flags).error
    assert words in error


def test_a_target_goes_with_a_dry_run():
    flags = ('--config=experiments/quickstart.py', '--workdir=x', '--target=v5e:4x4')
    assert 'go with --dry_run' in inside('train', *flags).error


@pytest.mark.parametrize(('name', 'extra'), [('v5e:4x4', 'jax[tpu]'), ('h100:8', 'jax[cuda13]')])
def test_a_compiler_that_is_missing(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda package: None)
    with pytest.raises(UserError, match='needs its compiler') as caught:
        target.target_of(name)
    assert f"pip install '{extra}'" in str(caught.value)


def test_a_mesh_of_another_size(tmp_path):
    with pytest.raises(UserError, match='leave --mesh out'):
        plan.plan(small(tmp_path), config.Mesh(3, 2), 0, here())


def test_the_platform_is_that_of_the_mesh(mesh):
    assert platform() == 'cpu'
    mesh(4, 2)
    assert platform() == 'cpu'
    assert jax.jit(lambda: len(platform()))() == 3
