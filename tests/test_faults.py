"""Damage, failing disks and kills: the right numbers or one line, never other numbers.

A few tens of cases here; as many as anyone likes by hand (see docs/reliability.md):

    JAXREC_FUZZ=2000 JAXREC_TEST_SEED=1 python -m pytest -n 0 tests/test_faults.py -k damage
    JAXREC_FUZZ=9999 python -m pytest -n 0 tests/test_faults.py -k fails
    JAXREC_KILLS=300 python -m pytest -n 0 -m slow tests/test_faults.py -k kills
"""

import builtins
import contextlib
import errno
import io
import json
import os
import random
import resource
import shutil

import jax
import numpy as np
import pytest
from pyarrow import parquet
from runs import (
    check_same_run,
    inside,
    killed_after,
    line,
    metrics_of,
    params_of,
    same,
    small,
    started,
    write,
)
from test_table import Pretend, table_file
from test_tables import make_stored

import jaxrec
from jaxrec import files, table
from jaxrec.errors import UserError
from jaxrec.evaluation import plots
from jaxrec.experiment import applied
from jaxrec.paper import cells as cells_lib
from jaxrec.paper import grid
from jaxrec.serving import bulk
from jaxrec.training import loop
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

CASES = int(os.environ.get('JAXREC_FUZZ', '0'))
RNG = random.Random(os.environ.get('JAXREC_TEST_SEED', '0'))
HISTORIES = [[1, 2, 3], [5], [9, 40, 9, 17, 3, 3, 60]]
TINY = {'train.epochs': 2, 'train.eval_every': 0.4, 'model.blocks': 0, 'task.batch_users': 256}


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Pictures are drawn where their writing is to fail, and by hand alone."""
    if not CASES or 'fails' not in request.node.name:
        monkeypatch.setattr(plots, '_pyplot', lambda: None)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """(experiment, folder of a run that was stopped, the whole run, its lists before and after)."""
    folder = tmp_path_factory.mktemp('faults')
    experiment = small(folder, **TINY)
    fit(applied(experiment, {'train.steps': 20}), folder / 'part')
    assert {p.name for p in (folder / 'part/checkpoints/last').iterdir()} == {'18', '20'}
    fit(experiment, folder / 'whole')
    return experiment, folder


def lists(workdir):
    found = jaxrec.load(workdir, k=5).recommend(HISTORIES)
    return [[(row['item'], float(row['score'])) for row in one] for one in found]


@pytest.fixture(scope='module')
def right(runs):
    """The lists of the run that was stopped."""
    return lists(runs[1] / 'part')


def one_line(error):
    text = str(error)
    assert text and '\n' not in text and 'Traceback' not in text
    return text


# ---- damage


def flip(path):
    data = bytearray(path.read_bytes())
    for _ in range(RNG.choice((1, 1, 3))):
        data[RNG.randrange(len(data))] ^= 1 << RNG.randrange(8)
    path.write_bytes(data)


def cut(path):
    os.truncate(path, RNG.randrange(path.stat().st_size))


def blank(path):
    """Zeros at the end, as after a power cut."""
    data, at = path.read_bytes(), RNG.randrange(path.stat().st_size)
    path.write_bytes(data[:at] + bytes(len(data) - at))


def remove(path):
    path.unlink()


def empty_folder(path):
    for other in path.parent.iterdir():
        if other.is_file():
            other.unlink()


def other_json(path):
    """JSON of another shape: an entry gone, or of another type, somewhere."""
    if path.suffix != '.json' and path.parent.name != 'host':
        return flip(path)
    try:
        value = json.loads(path.read_text())
    except ValueError:
        return flip(path)
    inner, parts = value, [value]
    while isinstance(inner, dict) and inner and RNG.random() < 0.6:
        inner = RNG.choice(list(inner.values()))
        parts += [inner] if isinstance(inner, dict) and inner else []
    chosen = parts[-1]
    if RNG.random() < 0.1 or not chosen:
        value = RNG.choice(([], {}, None, 3, 'x'))
    elif RNG.random() < 0.5:
        del chosen[RNG.choice(list(chosen))]
    else:
        chosen[RNG.choice(list(chosen))] = RNG.choice(([], {}, None, 3, -1.5, 'x', [[]], True))
    path.write_text(json.dumps(value))


DAMAGES = (flip, flip, cut, blank, remove, empty_folder, other_json, other_json)
# Without numbers that anybody reads; and the seal, without which nothing can be found.
NOT_TAKEN = ('.png', '.lock')


def damaged(copy):
    """Something happens to a file of a run; says what."""
    names = [p for p in copy.rglob('*') if p.is_file() and p.stat().st_size]
    names = [p for p in names if p.suffix not in NOT_TAKEN and 'tensorboard' not in p.parts]
    records = [p for p in names if p.parent == copy]
    path = RNG.choice(records if RNG.random() < 0.3 else names)
    how = RNG.choice(DAMAGES)
    how(path)
    return f'{how.__name__} {path.relative_to(copy)}'


def test_damage_is_mended_or_told(runs, right, tmp_path):
    """Of a checkpoint or a record: the lists of the run are the right ones, and it goes on.

    Lists follow from the parameters and the experiment; every tenth time they are made.
    """
    experiment, folder = runs
    stopped = applied(experiment, {'train.steps': 20})
    _, params = params_of(folder / 'part', 'best')
    figures = dict.fromkeys(('served', 'not served', 'goes on', 'does not go on'), 0)
    for case in range(CASES or 12):
        copy = tmp_path / str(case)
        shutil.copytree(folder / 'part', copy)
        what = damaged(copy)
        try:
            try:
                trained = load_trained(copy)
                assert trained.experiment.model == experiment.model, what
                assert same(jax.device_get(trained.params), params), what
                assert case % 10 or lists(copy) == right, what
                figures['served'] += 1
            except UserError as e:
                one_line(e)
                figures['not served'] += 1
            try:
                fit(stopped, copy)
                check_same_params(copy, folder / 'part', what)
                figures['goes on'] += 1
            except UserError as e:
                one_line(e)
                figures['does not go on'] += 1
        except Exception as e:
            raise AssertionError(f'case {case}: {what}') from e
        shutil.rmtree(copy)
        if case % 100 == 99:
            print(case + 1, figures, flush=True)
    assert figures['served'] and figures['goes on']
    if CASES:  # of a dozen, whose files have other names every time, so many may be anything
        assert figures['served'] > figures['not served'] / 2
        assert figures['goes on'] > figures['does not go on'] / 2


def check_same_params(workdir, expected, what):
    for which in ('last', 'best'):
        (step, params), (there, wanted) = (params_of(w, which) for w in (workdir, expected))
        assert step == there and same(params, wanted), what


# ---- each kind of damage, and what is said


def copy_of(runs, tmp_path, name='part'):
    experiment, folder = runs
    shutil.copytree(folder / name, tmp_path / 'run')
    return experiment, folder, tmp_path / 'run'


def data_file(step):
    """The largest file of a checkpoint."""
    return max((p for p in step.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize('how', [flip, cut], ids=lambda f: f.__name__)
def test_of_two_last_checkpoints_the_good_one_is_used_and_the_bad_one_named(
    runs, tmp_path, how, capsys
):
    experiment, folder, run = copy_of(runs, tmp_path)
    bad = run / 'checkpoints' / 'last' / '20'
    how(data_file(bad))
    assert params_of(run, 'last')[0] == 18
    told = capsys.readouterr().out
    assert f'the checkpoint {bad} is damaged: ' in told
    fit(experiment, run)
    told = capsys.readouterr().out
    assert f'the checkpoint {bad} is damaged: ' in told and 'going on from step 18' in told
    assert f'moved to {run / "checkpoints" / "damaged"}' in told
    assert (run / 'checkpoints' / 'damaged' / 'last-20').is_dir()
    check_same_params(run, folder / 'whole', how)
    assert metrics_of(run) == metrics_of(folder / 'whole')


def test_with_all_last_checkpoints_damaged_the_line_says_what_is_left(runs, tmp_path, right):
    experiment, folder, run = copy_of(runs, tmp_path)
    for step in (run / 'checkpoints' / 'last').iterdir():
        cut(data_file(step))
    with pytest.raises(
        UserError,
        match=r'last/20 is damaged \(.* bytes of .*\): copy it again, or '
        r'delete .*/checkpoints to train anew; the best one can be served',
    ):
        fit(experiment, run)
    assert lists(run) == right
    shutil.rmtree(run / 'checkpoints' / 'last')
    with pytest.raises(UserError, match='a best checkpoint and no last one to go on from: copy'):
        fit(experiment, run)
    assert lists(run) == right
    shutil.rmtree(run / 'checkpoints')
    fit(experiment, run)
    check_same_params(run, folder / 'whole', 'anew')


def test_a_damaged_best_is_not_served_and_is_mended_by_the_next_training(runs, tmp_path, capsys):
    experiment, folder, run = copy_of(runs, tmp_path)
    (best,) = (run / 'checkpoints' / 'best').iterdir()
    flip(data_file(best))
    with pytest.raises(
        UserError,
        match=rf'best/{best.name} is damaged .*: copy it again, or '
        r'--checkpoint=last takes the one of step 20',
    ):
        lists(run)
    assert load_trained(run, 'last').step == 20
    fit(experiment, run)
    check_same_params(run, folder / 'whole', 'best')


def test_a_best_that_is_gone_is_made_again_or_said(runs, tmp_path, capsys):
    experiment, folder, run = copy_of(runs, tmp_path, 'whole')
    at = int(next((run / 'checkpoints' / 'best').iterdir()).name)
    last = max(int(p.name) for p in (run / 'checkpoints' / 'last').iterdir())
    shutil.rmtree(run / 'checkpoints' / 'best')
    with pytest.raises(UserError, match='has no best checkpoint .*: --checkpoint=last'):
        lists(run)
    fit(experiment, run)
    told = capsys.readouterr().out
    assert f'the best checkpoint of {run}, of step {at}, is gone' in told
    if at == last:
        assert 'made again' in told and lists(run) == lists(folder / 'whole')
    shutil.rmtree(tmp_path / 'run')
    shutil.copytree(folder / 'part', run)  # whose best is older than its last
    shutil.rmtree(run / 'checkpoints' / 'best')
    fit(applied(experiment, {'train.steps': 20}), run)
    told = capsys.readouterr().out
    assert 'is gone' in told and ('made again' in told or '--checkpoint=last' in told)


def test_a_checkpoint_of_another_run_is_refused(runs, tmp_path):
    """Of the same shapes: another seed's."""
    experiment, _, run = copy_of(runs, tmp_path)
    other = applied(experiment, {'train.seed': 1, 'train.steps': 4})
    fit(other, tmp_path / 'other')
    for series in ('last', 'best'):
        shutil.rmtree(run / 'checkpoints' / series)
        shutil.copytree(tmp_path / 'other' / 'checkpoints' / series, run / 'checkpoints' / series)
    for use in (lists, lambda run: fit(experiment, run), lambda run: params_of(run, 'last')):
        with pytest.raises(UserError, match='were made by another run: put those of this one back'):
            use(run)


def test_a_checkpoint_of_before_seals_is_read_and_its_damage_is_told(runs, tmp_path, capsys):
    experiment, folder, run = copy_of(runs, tmp_path)
    record = json.loads((run / 'run.json').read_text())
    for name in ('id', 'config'):
        del record[name]
    files.write_json(run / 'run.json', record)
    for seal in run.rglob(files.SEAL):
        seal.unlink()
    path = data_file(run / 'checkpoints' / 'last' / '20')
    os.truncate(path, path.stat().st_size // 2)  # what the store below notices
    fit(experiment, run)
    assert 'last/20 is damaged' in capsys.readouterr().out
    check_same_params(run, folder / 'whole', 'old')


def test_what_killed_saves_left_is_cleared(runs, tmp_path):
    experiment, _, run = copy_of(runs, tmp_path)
    for series in ('last', 'best'):
        (run / 'checkpoints' / series / '5.orbax-checkpoint-tmp' / 'tree').mkdir(parents=True)
    (run / 'run.json.partial123').write_text('{')
    lists(run)  # reads, and clears nothing that another process may be writing
    assert len(list(run.rglob('*tmp'))) == 2
    fit(experiment, run)
    assert not list(run.rglob('*tmp*')) and not list(run.rglob('*.partial*'))


@pytest.mark.parametrize('name', ['run.json', 'config.json'])
@pytest.mark.parametrize(
    'text', ['', '{', '[]', '{}', '3', '{"model": 3, "task": []}', '[' * 10**5, '{"sessions": 1}']
)
def test_records_of_another_shape_are_one_line_with_the_path(runs, tmp_path, name, text):
    _, _, run = copy_of(runs, tmp_path)
    (run / name).write_text(text)
    for use in (lists, lambda run: fit(runs[0], run)):
        with pytest.raises(UserError) as error:
            use(run)
        assert str(run / name) in one_line(error.value)


@pytest.mark.parametrize('value', [None, [], 3, 'gone'])
@pytest.mark.parametrize('entry', ['id', 'config', 'data_hash', 'data_path', 'sessions'])
def test_entries_of_another_type_are_one_line_with_the_path(runs, tmp_path, entry, value):
    _, _, run = copy_of(runs, tmp_path)
    record = json.loads((run / 'run.json').read_text())
    record[entry] = value
    if value == 'gone':
        del record[entry]
    files.write_json(run / 'run.json', record)
    for use in (lists, lambda run: fit(runs[0], run)):
        with pytest.raises(UserError) as error:
            use(run)
        assert str(run / 'run.json') in one_line(error.value)


def test_a_changed_number_of_the_config_is_not_believed(runs, tmp_path):
    _, _, run = copy_of(runs, tmp_path)
    text = (run / 'config.json').read_text()
    assert text.count('"max_len": 10') == 1
    (run / 'config.json').write_text(text.replace('"max_len": 10', '"max_len": 20'))
    with pytest.raises(UserError, match=r'config\.json has other values than the run was trained'):
        lists(run)


def test_a_torn_line_stops_no_run_and_a_damaged_one_is_told(runs, tmp_path):
    experiment, folder, run = copy_of(runs, tmp_path)
    path = run / 'metrics.jsonl'
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join([whole[0], b'\xff{"st\n', b'[]\n', *whole[1:], whole[-1][:9]]))
    with pytest.raises(UserError, match=r'metrics\.jsonl, line 2 is damaged'):
        loop.read_series(path)
    fit(experiment, run)
    assert metrics_of(run).items() >= metrics_of(folder / 'whole').items()  # and one at the stop


def test_damaged_cells_of_a_table_are_the_same_numbers_or_a_line(tmp_path):
    table_, cells, records, _ = make_stored()

    def numbers():
        found = {cell.key: cells_lib.read(tmp_path, cell) for cell in cells}
        lines = grid.build(table_, cells, found).lines
        return {(one.name, *head): v.mean for one in lines for head, v in one.values.items()}

    for cell in cells:
        cells_lib.write(tmp_path, cell, records[cell.key])
    expected, right, refused = numbers(), 0, 0
    for case in range(CASES or 100):
        path = cells_lib.path_of(tmp_path, RNG.choice(cells))
        before = path.read_bytes()
        how = RNG.choice((flip, flip, flip, cut, blank, other_json))
        how(path)
        try:
            found = numbers()  # of other JSON perhaps with a seed less, which the table says
            assert how is other_json or found == pytest.approx(expected, abs=2e-6), case
            right += 1
        except UserError as e:
            one_line(e)
            refused += 1
        path.write_bytes(before)
    print(f'cells: {right} right, {refused} refused')


def test_damaged_parts_of_lists_are_the_same_lists_or_a_line(runs, tmp_path):
    _, folder = runs
    recommender = jaxrec.load(folder / 'whole', k=3)
    users, output = np.arange(recommender.histories.num_users), tmp_path / 'x.parquet'
    bulk.write_lists(recommender, users, output, 70)
    expected = parquet.read_table(output)
    output.unlink()
    with pytest.MonkeyPatch.context() as patch:  # a kill comes when all parts are there
        patch.setattr(bulk, '_row_groups', lambda parts: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bulk.write_lists(recommender, users, output, 70)
    parts = tmp_path / 'x.parquet.parts'
    shutil.copytree(parts, tmp_path / 'parts')
    for case in range(CASES // 10 or 12):
        shutil.rmtree(parts, ignore_errors=True)
        shutil.copytree(tmp_path / 'parts', parts)
        path = RNG.choice(sorted(parts.iterdir()))
        RNG.choice((flip, cut, blank, remove))(path)
        try:
            bulk.write_lists(recommender, users, output, 70)
            assert parquet.read_table(output).equals(expected), f'case {case}: {path.name}'
        except UserError as e:
            assert str(tmp_path) in one_line(e)


# ---- writes that fail


class Failing:
    """The n-th operation of Python that writes below a folder fails, and all after it."""

    def __init__(self, folder, number, code):
        self._folder, self._number, self._code, self.count = str(folder), number, code, 0

    def _hit(self, path, name):
        if not str(path).startswith(self._folder):
            return
        self.count += 1
        if self.count >= self._number:
            raise OSError(self._code, os.strerror(self._code), *([str(path)] if name else []))

    def __enter__(self):
        real, failing, self._stack = builtins.open, self, contextlib.ExitStack()
        renames = {name: getattr(os, name) for name in ('replace', 'rename', 'mkdir', 'link')}

        def opened(path, mode='r', *rest, **named):
            if not set(mode) & set('wax+'):
                return real(path, mode, *rest, **named)
            failing._hit(path, name=True)
            return Written(real(path, mode, *rest, **named), failing, path)

        def renamed(name):
            def call(path, *rest, **named):
                failing._hit(path, name=True)
                return renames[name](path, *rest, **named)

            return call

        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(builtins, 'open', opened)
        patch.setattr(io, 'open', opened)
        for name in renames:
            patch.setattr(os, name, renamed(name))
        return self

    def __exit__(self, *_):
        self._stack.close()


class Written:
    """A file of which a write may fail, without a name, as writes do."""

    def __init__(self, file, failing, path):
        self._file, self._failing, self._path = file, failing, path

    def write(self, data):
        self._failing._hit(self._path, name=False)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __iter__(self):
        return iter(self._file)


CODES = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO)


def numbers(count):
    """All of 1 .. count by hand, from JAXREC_FROM on, else a few."""
    first = int(os.environ.get('JAXREC_FROM', '1'))
    return range(first, count + 1) if CASES else sorted(RNG.sample(range(1, count + 1), 2))


def words_of(command, folder, config, place):
    if command == 'train':
        return [f'--config={config}', f'--workdir={place}']
    if command == 'evaluate':
        return [f'--workdir={place}']
    if command == 'table':
        return [f'--table={folder / "t.py"}', f'--workdir={place}', '--seeds=1']
    output = place / 'lists.parquet'
    return [f'--workdir={place}', '--users=all', f'--output={output}', '--part_users=80']


def failed(done, place):
    """One line that names a file or folder of the run, and nothing above it."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert str(place) in done.error
    assert 'Traceback' not in done.stdout and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize('command', ['train', 'evaluate', 'recommend', 'table'])
def test_a_write_that_fails_is_one_line_and_costs_nothing(
    runs, tmp_path, command, capfd, monkeypatch
):
    """Whichever of them it is: the same command goes on to the same results."""
    experiment, folder = runs
    config = write(tmp_path / 'x.py', experiment)
    start = folder / ('part' if command == 'train' else 'whole')
    if command == 'table':
        table_file(folder)
        (tmp_path / 'nothing').mkdir()
        start = tmp_path / 'nothing'
        monkeypatch.setattr(Pretend, 'calls', [], raising=False)
        monkeypatch.setattr(table, 'Runner', Pretend)

    def run(place):
        return inside(command, *words_of(command, folder, config, place))

    def result(place):
        if command == 'train':
            return jax.tree.leaves((params_of(place, 'last'), params_of(place, 'best')))
        if command == 'evaluate':
            return json.loads((place / 'evaluation_test.json').read_text())['metrics']
        if command == 'table':
            return {p.name: p.read_bytes() for p in [*place.glob('cells/*'), place / 'table.csv']}
        return parquet.read_table(place / 'lists.parquet').to_pydict()

    shutil.copytree(start, tmp_path / 'counted')
    with Failing(tmp_path / 'counted', 10**9, 0) as count:
        assert run(tmp_path / 'counted').returncode == 0
    expected = result(tmp_path / 'counted')
    assert count.count >= 3
    for number in numbers(count.count):
        place = tmp_path / f'place{number}'
        shutil.copytree(start, place)
        with Failing(place, number, RNG.choice(CODES)) as failing:
            done = run(place)
        if failing.count >= number:  # how many there are may depend on the machine's pace
            failed(done, place)
        assert run(place).returncode == 0
        np.testing.assert_equal(result(place), expected, err_msg=f'write {number}')
        assert not list(place.rglob('*tmp*')) and not list(place.rglob('*.partial*'))
        shutil.rmtree(place)
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('limit', [100, 2000, 4000] if CASES else [2000])
def test_a_disk_that_is_full_for_the_writers_of_checkpoints_is_one_line(
    runs, tmp_path, limit, capfd
):
    """In their own threads, below Python: files may not be longer than so many bytes."""
    experiment, folder, run = copy_of(runs, tmp_path)
    config = write(tmp_path / 'x.py', experiment)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        done = inside('train', *words_of('train', folder, config, run))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    failed(done, run)
    assert 'Traceback' not in capfd.readouterr().err
    fit(experiment, run)
    check_same_params(run, folder / 'whole', limit)


# ---- kills


@pytest.mark.slow
def test_kills_lose_nothing(tmp_path):
    """SIGKILL at random moments of one training, again and again, in saves too."""
    kills, count = 0, int(os.environ.get('JAXREC_KILLS', '20'))
    experiment = small(tmp_path, **{**TINY, 'train.epochs': 2000, 'train.eval_every': 0.2})
    config = write(tmp_path / 'x.py', experiment)
    at, rounds = 0, 0
    while kills < count:
        rounds += 1
        run = tmp_path / f'run{rounds}'
        while kills < count and at < 2000:
            process = started(line('train', f'--config={config}', f'--workdir={run}'))
            killed, output = killed_after(process, RNG.uniform(0, 3))
            kills += killed
            assert 'error' not in output and 'damaged' not in output, output
            if 'going on from step' in output:
                begun = int(output.split('going on from step ')[1].split()[0])
                assert begun >= at, output  # a checkpoint is never lost
                at = begun
        last = params_of(run, 'last')[0] + 2
        summary = fit(applied(experiment, {'train.steps': last}), run)
        fit(applied(experiment, {'train.steps': last}), tmp_path / 'whole')
        assert summary['step'] == last
        check_same_run(run, tmp_path / 'whole')
        shutil.rmtree(tmp_path / 'whole')
        print(f'{kills} kills, {last} steps')
        at = 0
