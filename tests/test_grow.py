"""A catalogue that has grown: old rows bit by bit under their new numbers, new ones drawn."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import datasets, train
from jaxrec.config import Data, Eval, Experiment, Mesh, Optim, Train
from jaxrec.errors import UserError
from jaxrec.models import sasrec
from jaxrec.objectives.in_batch import InBatch
from jaxrec.training import warm_start, workdir
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.optim import make_optimizer
from jaxrec.training.restore import load_trained
from jaxrec.training.state import init_state
from jaxrec.training.warm_start import grown_state, new_numbers

OLD = [*range(10, 75, 2)]  # 33 items; 12 more make the padded table longer
NEW = [3, *OLD, *range(11, 31, 2), 900]
BCE = {'loss': 'bce', 'negatives': 2}
IN_BATCH = {'loss': 'in_batch', 'in_batch': InBatch(logq='streaming')}
SETTINGS = {  # optimiser, model, mesh
    'dense with average': (Optim(ema=0.9, clip_norm=1.0), {}, (2, 4)),
    'rowwise_adagrad': (Optim(table='rowwise_adagrad'), BCE, (4, 2)),
    'sparse_adam': (Optim(table='sparse_adam'), BCE, (1, 1)),
    'streaming logQ': (Optim(), IN_BATCH, (2, 4)),
}


@pytest.fixture(autouse=True)
def meshes():
    before = jax.sharding.get_mesh()
    yield
    jax.set_mesh(before)


def write_log(path, items, prefix='', seed=0):
    """60 users of 6 random events each, all `items` among them."""
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(np.resize(items, 360))
    lines = [f'{n // 6},{prefix}{item},{n}' for n, item in enumerate(drawn)]
    path.write_text('user,item,timestamp\n' + '\n'.join(lines) + '\n')
    return path


def experiment_of(tmp_path, log, optim=None, mesh=None, data=None, **model):
    windows = 'cuts' if model.get('loss') == 'in_batch' else 'last'
    return Experiment(
        model=sasrec.Config(**({'dim': 8, 'blocks': 0, 'max_len': 6} | model)),
        data=Data(log=str(log), data_dir=str(tmp_path / 'd'), windows=windows, **(data or {})),
        optim=optim or Optim(),
        train=Train(batch_rows=8, epochs=2, seed=3),
        eval=Eval(cutoffs=(5, 10)),
        mesh=mesh or Mesh(1, 1),
    )


def saved(folder, experiment):
    """A run of `experiment` in `folder`, stopped at step 7 with other values in every place."""
    histories, meta = datasets.load(experiment.data, say=lambda line: None)
    optimizer = make_optimizer(experiment.optim, 10)
    state = init_state(experiment.model, histories.num_items, optimizer, 0)
    leaves, tree = jax.tree.flatten(state)
    count = iter(range(1, 10**6))
    leaves = [x + jnp.arange(1, x.size + 1).reshape(x.shape).astype(x.dtype) for x in leaves]
    leaves = [x * next(count) for x in leaves]
    state = jax.device_get({**jax.tree.unflatten(tree, leaves), 'step': np.int32(7)})
    checkpoints = Checkpoints(folder)
    checkpoints.save_last(7, state, {})
    checkpoints.close()
    workdir.record(folder, experiment, meta, 0)
    return histories, state


@pytest.mark.parametrize('name', SETTINGS)
def test_old_rows_and_slots_are_carried_over_and_new_ones_drawn(tmp_path, name, monkeypatch):
    monkeypatch.setattr(warm_start, '_ROWS_AT_ONCE', 20)  # two pieces
    optim, model, shape = SETTINGS[name]
    devices = jax.devices()[: shape[0] * shape[1]]
    jax.set_mesh(jax.make_mesh(shape, ('data', 'model'), devices=devices))
    log = write_log(tmp_path / 'events.csv', OLD)
    old_experiment = experiment_of(tmp_path, log, optim, **model)
    old, before = saved(tmp_path / 'old', old_experiment)

    write_log(log, NEW)  # the same file, longer
    experiment = experiment_of(
        tmp_path, log, optim, data={'grow_vocabulary': str(tmp_path / 'old')}, **model
    )
    new, _ = datasets.load(experiment.data, say=lambda line: None)
    assert (old.num_items, new.num_items) == (33, 45)
    optimizer = make_optimizer(optim, 10)
    fresh = jax.device_get(init_state(experiment.model, new.num_items, optimizer, 3))
    state = grown_state(experiment, new, optimizer)
    placed = jax.tree.map(lambda x: x.sharding.spec, state)
    assert placed['params']['table'] == jax.P('model', None)

    state, by_item = jax.device_get(state), 0
    number = {raw: n + 1 for n, raw in enumerate(sorted(NEW))}
    for path, value in jax.tree.leaves_with_path(state):
        was, drawn = (leaf_at(tree, path) for tree in (before, fresh))
        if was.shape == value.shape and was.shape[:1] != (64,):
            np.testing.assert_array_equal(value, was)
            continue
        by_item += 1
        for n, raw in enumerate(sorted(OLD)):
            np.testing.assert_array_equal(value[number[raw]], was[n + 1])
        np.testing.assert_array_equal(value[0], was[0])  # padding
        for raw in set(NEW) - set(OLD):
            np.testing.assert_array_equal(value[number[raw]], drawn[number[raw]])
    slots = {'dense with average': 3, 'rowwise_adagrad': 1, 'sparse_adam': 3, 'streaming logQ': 4}
    assert by_item == 1 + slots[name]
    assert state['step'] == 7


def leaf_at(tree, path):
    return dict(jax.tree.leaves_with_path(tree))[path]


def test_the_command_goes_on_from_another_run_and_resumes_bit_by_bit(tmp_path):
    log = write_log(tmp_path / 'events.csv', OLD)
    optim = Optim(table='sparse_adam', schedule='linear', learning_rate=1e-2)
    first = experiment_of(tmp_path, log, optim, loss='bce', negatives=2)
    train.train(first, tmp_path / 'old')
    steps = load_trained(tmp_path / 'old', 'last').step
    write_log(log, NEW, seed=1)
    longer = dataclasses.replace(
        first, data=dataclasses.replace(first.data, grow_vocabulary=str(tmp_path / 'old'))
    )
    whole = train.train(longer, tmp_path / 'whole')
    assert whole['stopped'] == 'finished' and whole['step'] == steps  # its own two epochs

    short = dataclasses.replace(longer, train=dataclasses.replace(longer.train, steps=2))
    assert train.train(short, tmp_path / 'parts')['step'] == 2
    assert train.train(longer, tmp_path / 'parts')['step'] == steps
    tables = [
        np.asarray(load_trained(tmp_path / name, 'last').params['table'])
        for name in ('old', 'whole', 'parts')
    ]
    np.testing.assert_array_equal(tables[1], tables[2])
    # the learning rate began anew: with the decayed one, nothing would have moved
    at = [sorted(NEW).index(raw) + 1 for raw in sorted(OLD)]
    assert np.abs(tables[1][at] - tables[0][1 : len(OLD) + 1]).max() > 1e-3


def test_integers_become_text_once_another_id_comes(tmp_path):
    log = write_log(tmp_path / 'events.csv', OLD)
    old, _ = datasets.load(experiment_of(tmp_path, log).data, say=lambda line: None)
    write_log(log, [*OLD, 'x1'])
    new, _ = datasets.load(experiment_of(tmp_path, log).data, say=lambda line: None)
    moves = new_numbers(old, new, tmp_path)
    assert [new.raw_item(int(n)) for n in moves[1:]] == [str(old.raw_item(n)) for n in range(1, 34)]


def test_what_cannot_grow_is_refused_in_one_line(tmp_path):
    log = write_log(tmp_path / 'events.csv', OLD)
    jax.set_mesh(jax.make_mesh((1, 1), ('data', 'model'), devices=jax.devices()[:1]))
    saved(tmp_path / 'old', experiment_of(tmp_path, log))
    grown = {'grow_vocabulary': str(tmp_path / 'old')}

    def fails(phrase, **options):
        experiment = experiment_of(tmp_path, log, **{'data': grown, **options})
        histories, _ = datasets.load(experiment.data, say=lambda line: None)
        with pytest.raises(UserError, match=phrase) as error:
            grown_state(experiment, histories, make_optimizer(experiment.optim, 1))
        assert '\n' not in str(error.value)

    fails('model.dim=8, this command has 16', dim=16)
    fails('optim.table=.dense., this command', optim=Optim(table='sparse_adam'))
    fails('optim.ema=0.0, this command has 0.9', optim=Optim(ema=0.9))
    fails('nowhere holds no run', data={'grow_vocabulary': str(tmp_path / 'nowhere')})
    write_log(log, [*NEW[:5], *NEW[6:]])
    fails(r'item 18 of \S+old is not in the new log')
    write_log(log, NEW[:20])
    fails(r'item 48 and 13 others of')
    run = json.loads((tmp_path / 'old/run.json').read_text())
    (tmp_path / 'old/run.json').write_text(json.dumps({**run, 'data_path': str(tmp_path / 'x')}))
    fails('is gone: its item ids are needed')


def test_flag_and_message_of_the_command(tmp_path):
    log = write_log(tmp_path / 'events.csv', OLD)
    words = [sys.executable, '-m', 'jaxrec.train', '--config=experiments/own_log.py']
    words += [f'--config.data.log={log}', f'--config.data.data_dir={tmp_path}/d']
    words += [f'--workdir={tmp_path}/new', f'--config.data.grow_vocabulary={tmp_path}/gone']
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and 'gone holds no run' in done.stderr.splitlines()[-1]
