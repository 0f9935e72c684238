"""What the loop promises holds for every task: resume, signals, kills, NaN, meshes, and a table."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runs

from jaxrec import evaluate
from jaxrec.config import Data, Mesh, Optim, Train
from jaxrec.data.fields import Field
from jaxrec.data.rows import Rows
from jaxrec.errors import UserError
from jaxrec.evaluation.run import Beginning
from jaxrec.experiment import Experiment, applied, flat, to_record
from jaxrec.models import gcn, lightgcn, mmoe, sasrec
from jaxrec.tasks import click, next_item, nodes
from jaxrec.training import restore
from jaxrec.training.checkpoint import Checkpoints, by_name
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained
from jaxrec.training.workdir import read_run

TASKS = ('click', 'next_item', 'nodes', 'pairs')


def save_rows(folder):
    """200 impressions of ten days whose clicks depend on user and item."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 9, 200), rng.integers(1, 8, 200)
    Rows(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        times=np.arange(200),
        user_ids=np.arange(9),
        item_ids=np.arange(7),
        features={'date': (1 + np.arange(200) // 20).astype(np.int32)},
        labels={'click': ((users + items + rng.integers(0, 3, 200)) % 2).astype(np.float32)},
        name='made',
    ).save(folder / 'columns')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """{task: experiment}, small, six steps in three epochs or so."""
    folder = tmp_path_factory.mktemp('data')
    save_rows(folder / 'rows')
    return {
        'click': Experiment(
            task=click.Config(
                fields=(Field('user'), Field('item')), valid_from=7, test_from=9, batch_rows=64
            ),
            model=mmoe.Config(
                dim=4,
                experts=2,
                expert_widths=(8,),
                expert='bn_swish',  # remembers means and variances
                tower_widths=(),
                dropout=0.1,
            ),
            data=Data(log=str(folder / 'rows')),
            train=Train(batch_rows=64, epochs=3),
        ),
        'next_item': Experiment(
            model=sasrec.Config(dim=8, blocks=1, max_len=8),
            data=Data(dataset='synthetic:users=60,items=30,length=8', data_dir=str(folder)),
            train=Train(batch_rows=32, epochs=3),
        ),
        'nodes': Experiment(
            task=nodes.Config(),
            model=gcn.Config(hidden=8),
            data=Data(dataset='block-model:nodes=200,valid=40,test=60', data_dir=str(folder)),
            optim=Optim(learning_rate=0.01),
            train=Train(batch_rows=8, epochs=3),
        ),
        'pairs': Experiment(
            task=next_item.Config(
                split='temporal', targets='all', windows='pairs', unseen_negatives=1
            ),
            model=lightgcn.Config(dim=8, layers=2, views=lightgcn.Views('edge_drop')),
            data=Data(dataset='synthetic:users=60,items=30,length=8', data_dir=str(folder)),
            train=Train(batch_rows=256, epochs=3),
        ),
    }


def parameters(folder):
    return jax.tree.leaves(load_trained(folder, 'last').params)


def same(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope='module')
def whole(made, tmp_path_factory):
    """{task: (folder, summary)} of runs that nobody disturbed."""
    folder, found = tmp_path_factory.mktemp('whole'), {}
    for task in TASKS:
        with runs.compiled() as names:
            found[task] = folder / task, fit(made[task], folder / task)
        assert names['step'] == 1 and names['predict'] + names['computed'] <= 3
    return found


@pytest.mark.parametrize('task', TASKS)
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(made, whole, tmp_path, task):
    asked = iter([False, True])
    stopped = fit(made[task], tmp_path, stop=lambda: next(asked))
    assert (stopped['stopped'], stopped['step']) == ('signal', 2)
    after = fit(made[task], tmp_path)
    assert {**after, 'workdir': ''} == {**whole[task][1], 'workdir': ''}
    same(parameters(tmp_path), parameters(whole[task][0]))


@pytest.mark.parametrize('task', TASKS)
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_before(made, tmp_path, task):
    broken = applied(made[task], {'optim.learning_rate': 1e38, 'train.log_every': 1})
    with pytest.raises(UserError) as e:
        fit(broken, tmp_path)
    assert 'not finite' in str(e.value) and 'step' in str(e.value) and '\n' not in str(e.value)
    assert 'is kept' in str(e.value)


@pytest.mark.parametrize('task', TASKS)
def test_evaluation_gives_the_number_that_training_saw(made, whole, task):
    folder, summary = whole[task]
    measured = evaluate(folder, 'valid')
    assert measured.metrics[summary['metric']] == summary['best']
    for name, values in measured.values.items():
        expected = np.average(values, weights=measured.weights.get(name))
        assert measured.metrics[name] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('task', TASKS)
def test_the_same_on_another_mesh(made, whole, tmp_path, task):
    other = dataclasses.replace(made[task], mesh=Mesh(data=2, model=2))
    found = fit(other, tmp_path)
    assert found['step'] == whole[task][1]['step']
    one, two = (by_name(load_trained(at, 'last').params) for at in (tmp_path, whole[task][0]))
    for name in one.keys() | two.keys():
        # softmax does not see the keys' bias: its gradient is rounding, blown up by Adam
        if not name.endswith('attention.k.bias'):
            np.testing.assert_allclose(one[name], two[name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize('vanished', [True, False])
def test_a_checkpoint_that_is_replaced_while_it_is_read(
    whole, tmp_path, monkeypatch, capsys, vanished
):
    """The new one is opened without a word; one that is damaged and not replaced is told once."""
    shutil.copytree(whole['next_item'][0], tmp_path / 'run')
    before, read = load_trained(tmp_path / 'run'), restore.restored
    folder = tmp_path / 'run' / 'checkpoints' / 'best' / str(before.step)

    def replaced(*args):
        if folder.exists():
            if vanished:
                checkpoints = Checkpoints(tmp_path / 'run')
                owner = {'run': read_run(tmp_path / 'run')['id']}
                with jax.set_mesh(before.mesh):
                    new = jax.tree.map(lambda x: x + 1, before.params)
                    checkpoints.save_best(before.step + 1, new, owner)
                checkpoints.close()
                assert not folder.exists()
            else:
                shutil.rmtree(folder / 'tree')
        return read(*args)

    monkeypatch.setattr(restore, 'restored', replaced)
    if not vanished:
        with pytest.raises(Exception, match='tree'):
            load_trained(tmp_path / 'run')
        return
    capsys.readouterr()
    after = load_trained(tmp_path / 'run')
    assert after.step == before.step + 1 and 'damaged' not in str(capsys.readouterr())
    for one, two in zip(*(jax.tree.leaves(x.params) for x in (before, after)), strict=True):
        np.testing.assert_array_equal(np.asarray(one) + 1, two)


def test_a_pass_hands_an_item_table_on_without_a_copy(whole):
    trained = load_trained(whole['next_item'][0])
    with jax.set_mesh(trained.mesh):
        begin = Beginning(trained.graphdef, trained.problem)
        items = begin(trained.params, trained.constants)['items']
    assert items is trained.params['table']


CHILD = """
import pathlib, sys
from jaxrec.devices import cluster
from jaxrec.experiment import from_record
from jaxrec.files import read_json
from jaxrec.training import restore
from jaxrec.training.checkpoint import Checkpoints, by_name
from jaxrec.training.loop import fit
experiment = from_record(read_json(pathlib.Path(sys.argv[1])))
fit(experiment, pathlib.Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_killed_anywhere_it_goes_on_bit_for_bit(made, tmp_path, task):
    """SIGKILL at ten moments of the run; whatever was on disk is enough."""
    from jaxrec.files import write_json

    longer = applied(made[task], {'train.epochs': 30, 'train.save_every': 1e-3})
    write_json(tmp_path / 'config.json', to_record(longer))
    assert flat(to_record(longer))['train.epochs'] == 30
    fit(longer, tmp_path / 'whole')
    words = [sys.executable, '-c', CHILD, str(tmp_path / 'config.json'), str(tmp_path / 'run')]
    devices = str(jax.device_count())  # as here: bits are those of one mesh
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': devices}
    moments = np.linspace(1, 12, 10)
    for seconds in moments:
        child = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert subprocess.run(words, env=environment, capture_output=True).returncode == 0
    assert pathlib.Path(tmp_path / 'run' / 'run.json').exists()
    same(parameters(tmp_path / 'run'), parameters(tmp_path / 'whole'))
