"""Going on from another run: old rows bit for bit under their new numbers, new ones drawn."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import inside

from jaxrec.config import Data, Mesh, Optim, Train
from jaxrec.devices.mesh import table_rows
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, check
from jaxrec.models import sasrec
from jaxrec.objectives.in_batch import InBatch
from jaxrec.tasks import next_item
from jaxrec.training import warm_start, workdir
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained
from jaxrec.training.state import Program
from jaxrec.training.warm_start import new_numbers, state_from

OLD = [*range(10, 75, 2)]  # 33 items; 42 more make the padded table longer
NEW = [3, *OLD, *range(11, 91, 2), 900]
BCE = {'loss': 'bce', 'negatives': 2}
IN_BATCH = {'loss': 'in_batch', 'in_batch': InBatch(logq='streaming')}
SETTINGS = {  # optimiser, model, mesh
    'dense with average': (Optim(ema=0.9, clip_norm=1.0), {}, (2, 4)),
    'rowwise_adagrad': (Optim(table='rowwise_adagrad'), BCE, (4, 2)),
    'sparse_adam': (Optim(table='sparse_adam'), BCE, (1, 1)),
    'streaming logQ': (Optim(), IN_BATCH, (2, 4)),
}
SLOTS = {'dense with average': 3, 'rowwise_adagrad': 1, 'sparse_adam': 3, 'streaming logQ': 4}


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


def experiment_of(tmp_path, log, optim=None, mesh=None, start_from='', grow=True, **model):
    windows = 'cuts' if model.get('loss') == 'in_batch' else 'last'
    grown = {'start_from': str(start_from), 'grow': grow} if start_from else {}
    return Experiment(
        model=sasrec.Config(**({'dim': 8, 'blocks': 0, 'max_len': 6} | model)),
        task=next_item.Config(windows=windows, cutoffs=(5, 10)),
        data=Data(log=str(log), data_dir=str(tmp_path / 'd')),
        optim=optim or Optim(),
        train=Train(batch_rows=8, epochs=2, seed=3, **grown),
        mesh=mesh or Mesh(1, 1),
    )


def opened(experiment):
    return experiment.task.open(experiment, lambda line: None)


def saved(folder, experiment):
    """A run of `experiment` in `folder`, stopped at step 7 with other values in every place."""
    problem = opened(experiment)
    leaves, tree = jax.tree.flatten(Program(experiment, problem, 10).init())
    count = iter(range(1, 10**6))
    leaves = [x + jnp.arange(1, x.size + 1).reshape(x.shape).astype(x.dtype) for x in leaves]
    leaves = [x * next(count) for x in leaves]
    state = jax.device_get({**jax.tree.unflatten(tree, leaves), 'step': np.int32(7)})
    checkpoints = Checkpoints(folder)
    checkpoints.save_last(7, state, {})
    checkpoints.close()
    workdir.record(folder, experiment, problem, 0)
    return problem, state


@pytest.mark.parametrize('name', SETTINGS)
def test_old_rows_and_slots_are_carried_over_and_new_ones_drawn(tmp_path, name, monkeypatch):
    monkeypatch.setattr(warm_start, '_ROWS_AT_ONCE', 20)  # two pieces
    optim, model, shape = SETTINGS[name]
    devices = jax.devices()[: shape[0] * shape[1]]
    jax.set_mesh(jax.make_mesh(shape, ('data', 'model'), devices=devices))
    log = write_log(tmp_path / 'events.csv', OLD)
    old, before = saved(tmp_path / 'old', experiment_of(tmp_path, log, optim, **model))

    write_log(log, NEW)  # the same file, longer
    experiment = experiment_of(tmp_path, log, optim, start_from=tmp_path / 'old', **model)
    new = opened(experiment)
    assert (old.sizes['item'], new.sizes['item']) == (33, 75)
    program = Program(experiment, new, 10)
    fresh = jax.device_get(program.init())
    state, _ = state_from(experiment, new, program)
    placed = jax.tree.map(lambda x: x.sharding.spec, state)
    assert placed['params']['table'] == jax.P('model', None)

    state, by_item = jax.device_get(state), 0
    number = {raw: n + 1 for n, raw in enumerate(sorted(NEW))}
    for path, value in jax.tree.leaves_with_path(state):
        was, drawn = (leaf_at(tree, path) for tree in (before, fresh))
        if was.shape == value.shape:
            np.testing.assert_array_equal(value, was)
            continue
        by_item += 1
        for n, raw in enumerate(sorted(OLD)):
            np.testing.assert_array_equal(value[number[raw]], was[n + 1])
        np.testing.assert_array_equal(value[0], was[0])  # padding
        for raw in set(NEW) - set(OLD):
            np.testing.assert_array_equal(value[number[raw]], drawn[number[raw]])
    assert by_item == 1 + SLOTS[name]
    assert state['step'] == 7


@pytest.mark.parametrize('name', ['dense with average', 'rowwise_adagrad', 'streaming logQ'])
@pytest.mark.parametrize('text', ['', 'x'])
def test_a_window_of_time_goes_on_from_a_run_alone(tmp_path, name, text, capsys):
    """Items come and go, ids turn from text to integers: rows by raw id, from the run's folder."""
    optim, model, shape = SETTINGS[name]
    devices = jax.devices()[: shape[0] * shape[1]]
    jax.set_mesh(jax.make_mesh(shape, ('data', 'model'), devices=devices))
    was = [*OLD, *filter(None, [text])]
    log = write_log(tmp_path / 'events.csv', was)
    _, before = saved(tmp_path / 'old', experiment_of(tmp_path, log, optim, **model))
    assert json.loads((tmp_path / 'old/run.json').read_text())['data_path']
    shutil.rmtree(tmp_path / 'd')  # the old log's events are nowhere
    (tmp_path / 'old').rename(tmp_path / 'moved')

    now = [3, *OLD[5:20], *OLD[25:], 100, 101]
    write_log(log, now)
    experiment = experiment_of(tmp_path, log, optim, start_from=tmp_path / 'moved', **model)
    new = opened(experiment)
    program = Program(experiment, new, 10)
    fresh = jax.device_get(program.init())
    state = jax.device_get(state_from(experiment, new, program)[0])
    gone = [*filter(None, [text]), *OLD[:5], *OLD[20:25]]
    told = f'{len(was) - len(gone)} items carried over, 3 new, {len(gone)} are gone'
    assert told in capsys.readouterr().out

    ids = sorted(map(str, was)) if text else was  # how the old catalogue was numbered
    old_row = {str(raw): n for n, raw in enumerate(ids, 1)}
    by_item = 0
    for path, value in jax.tree.leaves_with_path(state):
        old, drawn = (leaf_at(tree, path) for tree in (before, fresh))
        if value.shape[:1] not in ((table_rows(len(now)),), (len(now) + 1,)):
            continue
        by_item += 1
        for row, raw in enumerate(sorted(now), 1):
            kept = str(raw) in old_row
            np.testing.assert_array_equal(
                value[row], old[old_row[str(raw)]] if kept else drawn[row]
            )
    assert by_item == 1 + SLOTS[name]


def leaf_at(tree, path):
    return dict(jax.tree.leaves_with_path(tree))[path]


def test_a_run_goes_on_from_another_and_resumes_bit_by_bit(tmp_path):
    log = write_log(tmp_path / 'events.csv', OLD)
    optim = Optim(table='sparse_adam', schedule='linear', learning_rate=1e-2)
    first = experiment_of(tmp_path, log, optim, loss='bce', negatives=2)
    steps = fit(first, tmp_path / 'old')['step']
    write_log(log, NEW, seed=1)
    longer = applied(first, {'train.start_from': str(tmp_path / 'old'), 'train.grow': True})
    whole = fit(longer, tmp_path / 'whole')
    assert whole['stopped'] == 'finished' and whole['step'] == steps  # its own two epochs

    assert fit(applied(longer, {'train.steps': 2}), tmp_path / 'parts')['step'] == 2
    assert fit(longer, tmp_path / 'parts')['step'] == steps
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
    old = opened(experiment_of(tmp_path, log))
    write_log(log, [*OLD, 'x1'])
    new = opened(experiment_of(tmp_path, log))
    moves = new_numbers(old.ids['item'], new.ids['item'])
    assert [new.source.raw_item(int(n)) for n in moves[1:]] == [
        str(old.source.raw_item(n)) for n in range(1, 34)
    ]


def test_what_cannot_be_gone_on_from_is_refused_in_one_line(tmp_path):
    log = write_log(tmp_path / 'events.csv', OLD)
    jax.set_mesh(jax.make_mesh((1, 1), ('data', 'model'), devices=jax.devices()[:1]))
    _, before = saved(tmp_path / 'old', experiment_of(tmp_path, log))

    def goes_on(**options):
        options = {'start_from': tmp_path / 'old', **options}
        experiment = experiment_of(tmp_path, log, **options)
        problem = opened(experiment)
        return state_from(experiment, problem, Program(experiment, problem, 1))[0]

    def fails(phrase, **options):
        with pytest.raises(UserError, match=phrase) as error:
            goes_on(**options)
        assert '\n' not in str(error.value)

    used = lambda x: x[:34] if x.shape[:1] == (64,) else x  # noqa: E731
    jax.tree.map(
        lambda new, old: np.testing.assert_array_equal(used(new), used(old)),
        jax.device_get(goes_on()),
        before,
    )
    fails('model.dim=8, this command has 16', dim=16)
    fails('optim.table=.dense., this command', optim=Optim(table='sparse_adam'))
    fails('optim.ema=0.0, this command has 0.9', optim=Optim(ema=0.9))
    fails('nowhere holds no run', start_from=tmp_path / 'nowhere')
    write_log(log, NEW)
    fails('ids that .*old has not learnt: train.grow adds them', grow=False)
    write_log(log, [*NEW[:5], *NEW[6:]])
    fails(r'item 18 of \S+old is not in the new data: train.grow leaves', grow=False)
    write_log(log, NEW[:20])
    fails(r'item 48 and 13 others of', grow=False)
    write_log(log, [1, 2, 4])
    fails('no item of .* is in the new data')
    with pytest.raises(UserError, match=r'train\.grow goes with train\.start_from'):
        check(applied(experiment_of(tmp_path, log), {'train.grow': True}))


def test_flag_and_message_of_the_command(tmp_path):
    log = write_log(tmp_path / 'events.csv', OLD)
    words = [f'--config.data.log={log}', f'--config.data.data_dir={tmp_path}/d']
    words += [f'--workdir={tmp_path}/new', f'--config.train.start_from={tmp_path}/gone']
    done = inside('train', '--config=experiments/own_log.py', *words, '--config.train.grow')
    assert 'gone holds no run' in done.error
