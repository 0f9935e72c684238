"""The table command: each cell once, whoever runs it; killed workers; bytes; the page."""

import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import runs
from test_tables import first_format, record

from jaxrec import table
from jaxrec.errors import UserError
from jaxrec.experiment import parsed
from jaxrec.paper import cells as cells_lib
from jaxrec.paper import hashes, spec
from jaxrec.paper.runner import Runner

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = ROOT / 'experiments' / 'tables' / 'smoke.py'
TABLE = """
from jaxrec.paper.spec import Column, Ordering, Published, Row, Table

SETTINGS = {{'data.data_dir': {data_dir!r}, 'data.dataset': 'synthetic:users=80,items=40,length=8'}}
PUBLISHED = {{'HR@5': 0.1, 'NDCG@5': 0.06, 'HR@10': 0.12, 'NDCG@10': 0.09}}
TABLE = Table(
    title='Small </script> table',
    caption='Nothing & all.',
    columns=(
        Column('One', ('HR@10', 'NDCG@10'), SETTINGS),
        Column('Two', ('HR@10',), {{**SETTINGS, 'model.dropout': 0.1}}),
    )[:{columns}],
    rows=(Row('wide', 'e.py:16'), Row('narrow', 'e.py'))[:{rows}],
    baseline='wide',
    published=(Published('theirs', 'a paper', '[paper]', {{'One': PUBLISHED}}, beside='wide'),),
    orderings=(Ordering('wide', 'narrow', 'wide is better', 'a paper'),)[: {rows} - 1],
)
"""
EXPERIMENT = """
from jaxrec.config import Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec
from jaxrec.tasks import next_item

def get_config(arg=''):
    return Experiment(
        model=sasrec.Config(dim=int(arg or 8), blocks=1, max_len=6),
        task=next_item.Config(cutoffs=(5, 10), batch_users=64),
        optim=Optim(learning_rate=1e-2),
        train=Train(batch_rows=4, epochs=2, eval_every=0.5, log_every=2),
    )
"""


def table_file(folder, rows=2, columns=1):
    path = folder / 't.py'
    data_dir = str(folder / 'data')
    path.write_text(TABLE.format(data_dir=data_dir, rows=rows, columns=columns))
    (folder / 'e.py').write_text(EXPERIMENT)
    return path


def words(file, workdir, *flags):
    return [f'--table={file}', f'--workdir={workdir}', *flags]


def start(file, workdir, *flags, cwd=None):
    """The command as a process."""
    return subprocess.Popen(
        runs.line('table', *words(file, workdir, *flags)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )


def run(file, workdir, *flags):
    """The command in this process: (exit code, all it said)."""
    done = runs.inside('table', *words(file, workdir, *flags))
    return done.returncode, done.stdout + done.stderr


def sessions(workdir):
    """How often each run was begun, by cell."""
    found = {}
    for path in pathlib.Path(workdir).glob('runs/*/*/*/run.json'):
        cell = path.relative_to(workdir).parts[1]
        found[cell] = max(found.get(cell, 0), len(json.loads(path.read_text())['sessions']))
    return found


def without_times(text):
    """JSON or page without all that may differ between two runs of the same table."""
    return re.sub(r'"times": \{[^}]*\}', '"times": {}', text)


# ---- who runs what, with commands that only pretend


class Pretend(Runner):
    """Writes what the commands would, and counts them."""

    calls: list
    delay = 0.02

    def _wanted(self, cell):
        return cells_lib.Wanted(cell.key, 'c', 'd' * 64)

    def _run(self, cell, seeds, lock):
        self.calls.append((cell.key, tuple(seeds)))
        time.sleep(self.delay)
        if cell.row == 'row 3':
            raise UserError('it broke')
        (run,) = record(np.zeros((1, 4), int))['seeds'].values()
        hashed = {'config': cell.key, 'data': 'd' * 64}
        made = {**record([]), 'hashes': hashed, 'seeds': {str(seed): run for seed in seeds}}
        cells_lib.write(self.folder, cell, made)


def pretend_cells(count):
    config = str(ROOT / 'experiments' / 'quickstart.py')
    experiment = spec._experiment(config, '', {}, 'test')
    rows = range(count)
    return [spec.Cell(f'row {n}', 'c', f'row-{n}__c', config, config, {}, experiment) for n in rows]


def test_two_hosts_never_run_a_cell_twice(tmp_path):
    """Six workers of three runners on ten cells: each is run once."""
    cells, calls = pretend_cells(10), []
    runners = [Pretend(tmp_path, [0, 1]) for _ in range(3)]
    threads = []
    failures = []
    for runner in runners:
        runner.calls = calls
        work = lambda r=runner: failures.append(r.run(cells, processes=2))  # noqa: E731
        threads.append(threading.Thread(target=work))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    good = [call for call in calls if call[0] != 'row-3__c']
    assert sorted(good) == sorted((c.key, (0, 1)) for c in cells if c.row != 'row 3')
    assert all(failed == {'row 3 / c': 'it broke'} for failed in failures)
    assert not list((tmp_path / 'locks').iterdir())
    again = Pretend(tmp_path, [0, 1, 2])
    again.calls = []
    again.run(cells[:1])
    assert again.calls == [('row-0__c', (2,))]  # only the seed that is missing


# ---- the command itself


def test_a_killed_worker_is_taken_over_and_nothing_runs_twice(tmp_path):
    """Two hosts, in different folders; one dies in the middle of its cell, the other goes on."""
    workdir, only = tmp_path / 'table', ['--seeds=1', '--only=SASRec softmax']
    only.append(f'--override=data.data_dir={tmp_path / "data"}')  # where, not what
    first = start(SMOKE, workdir, *only, cwd=tmp_path)
    for line in first.stdout:
        if 'jaxrec.train' in line:
            break

    def kill():
        """Once its training has begun, long after the other has found the cell taken."""
        deadline = time.monotonic() + 60
        while not sessions(workdir) and time.monotonic() < deadline:
            time.sleep(0.02)
        first.kill()
        first.stdout.close()
        first.wait()

    killer = threading.Thread(target=kill)
    killer.start()
    code, said = run(SMOKE, workdir, *only)
    killer.join()
    assert code == 0, said
    name, key = 'SASRec softmax / Generated', 'sasrec-softmax__generated'
    before, _, rest = said.partition(f'{name}: not run yet')
    assert f'{name}: being run by' in before and rest  # taken over
    assert sessions(workdir) == {key: 2}
    for file in ('table.md', 'table.tex', 'table.csv', 'table.html'):
        assert (workdir / file).stat().st_size > 500
    assert not list((workdir / 'locks').iterdir())

    cell = workdir / 'cells' / f'{key}.json'
    before = cell.read_bytes()
    assert list(cell.parent.iterdir()) == [cell]
    code, said = run(SMOKE, workdir, *only, '--format=md', f'--results={tmp_path / "r"}')
    assert code == 0 and 'jaxrec.train' not in said  # finished cells are not run again
    assert cell.read_bytes() == before

    stored = json.loads(before)
    assert str(tmp_path) not in json.dumps(stored)  # nothing of this machine's places
    seed = stored['seeds']['0']
    greater = cells_lib.unpack(seed['kept']['greater'])
    assert len(greater) == stored['examples'] == 600 and stored['unit'] == 'user'
    (made,) = (c for c in spec.cells(spec.load(SMOKE), SMOKE) if c.key == key)
    for metric in ('HR@10', 'NDCG@10'):
        values, *_ = cells_lib.per_example(stored, made, metric, ['0'])
        assert values.mean() == pytest.approx(seed['metrics'][metric], abs=1e-7)
    assert seed['times']['seconds'] > 0 and seed['times']['tokens_per_second'] > 0
    assert len(seed['curve']['points']) == 8 and seed['versions']['jax']
    assert set(seed['groups']['popularity']) == {'head', 'mid', 'tail'}
    assert seed['details']['unreachable'] == 0 and stored['references']['markov']
    # It is the cell that is stored with the package, of the same data and settings.
    there = json.loads((ROOT / 'results' / 'smoke' / 'cells' / cell.name).read_text())
    for what in ('command', 'config', 'hashes', 'protocol', 'unit', 'examples'):
        assert stored[what] == there[what], what
    assert seed['metrics']['HR@10'] == pytest.approx(
        there['seeds']['0']['metrics']['HR@10'], abs=0.05
    )

    results = tmp_path / 'r' / 'smoke'
    kept = stored['seeds']['0']['kept']  # groups of which no claim of the table is are left out
    stored['seeds']['0']['kept'] = {n: x for n, x in kept.items() if not n.startswith('members/')}
    assert len(kept) == len(stored['seeds']['0']['kept']) + 3
    assert json.loads((results / 'cells' / cell.name).read_bytes()) == stored
    assert (results / 'table.md').read_bytes() == (workdir / 'table.md').read_bytes()
    (results / 'table.md').unlink()
    code, said = run(SMOKE, results, '--render', '--override=model.dim=4')  # whatever changed
    assert code == 0 and 'jaxrec.train' not in said
    assert (results / 'table.md').read_bytes() == (workdir / 'table.md').read_bytes()


def test_the_same_cell_is_run_again_only_if_something_changed(tmp_path):
    """Config, code, data: each is told, and kept by --accept; nothing is trained to find out."""
    file, workdir = table_file(tmp_path, rows=1), tmp_path / 'w'
    (cell,) = spec.cells(spec.load(file), file)
    now = cells_lib.wanted(cell, print)
    made = record(np.zeros((1, 80), int), data=now.data, code=now.code)
    made['hashes']['config'], made['config'] = now.config, hashes.config_record(cell.experiment)
    runner = Runner(workdir, [0])
    for changes, told in (
        ({}, ''),
        ({'code': 'b' * 64}, f'changed: code ({"b" * 12}, now {now.code[:12]})'),
        ({'data': 'e' * 64}, f'changed: data ({"e" * 12}, now {now.data[:12]})'),
    ):
        stored = json.loads(json.dumps(made))
        stored['hashes']['data'] = changes.get('data', now.data)
        stored['seeds']['0']['code'] = changes.get('code', now.code)
        cells_lib.write(workdir, cell, stored)
        assert runner._why(cell) == ([0] if told else [], told)
        accepting = Runner(workdir, [0], accept=tuple(changes))
        assert accepting._why(cell) == ([], '')


def test_the_same_run_of_another_row_or_table_is_taken_over(tmp_path, monkeypatch):
    """Config, data and code alike: its seeds, from a table that is named or from this one."""
    file, workdir, other = table_file(tmp_path, rows=1), tmp_path / 'w', tmp_path / 'other'
    (cell,) = spec.cells(spec.load(file), file)
    twin = dataclasses.replace(cell, row='twin', key='twin__one')
    now, ran = cells_lib.wanted(cell, print), []
    made = record(np.arange(160).reshape(2, 80), data=now.data, code=now.code)
    made['hashes']['config'], made['config'] = now.config, hashes.config_record(cell.experiment)
    cells_lib.write(other, dataclasses.replace(cell, key='its-name'), made)

    def run(self, cell, seeds, lock):
        ran.append((cell.row, list(seeds)))
        seeds = {str(s): made['seeds']['0'] for s in seeds}
        theirs = {**made, 'row': cell.row, 'column': cell.column, 'seeds': seeds}
        cells_lib.write(workdir, cell, cells_lib.merged(cells_lib.read(workdir, cell), theirs))

    monkeypatch.setattr(Runner, '_run', run)
    (other / 'cells' / 'damaged.json').write_text('{')
    assert Runner(workdir, [0, 1, 2], others=[other]).run([cell, twin]) == {}
    assert ran == [('wide', [2])]
    for one in (cell, twin):
        stored = cells_lib.read(workdir, one)
        assert (stored['row'], list(stored['seeds'])) == (one.row, ['0', '1', '2'])
        assert stored['seeds']['1'] == json.loads(cells_lib.to_text(made))['seeds']['1']
    for name, change in (('config', 'a' * 64), ('data', 'e' * 64)):
        stored = json.loads(json.dumps(made))
        stored['hashes'][name] = change
        cells_lib.write(other, dataclasses.replace(cell, key='its-name'), stored)
        assert not list(cells_lib.same_runs([other], now, ('code',), cell))
    made['seeds']['0']['code'] = 'b' * 64
    cells_lib.write(other, dataclasses.replace(cell, key='its-name'), made)
    for accept, seeds in (((), ['1']), (('code',), ['0', '1'])):
        ((_, taken),) = cells_lib.same_runs([other], now, accept, cell)
        assert list(taken['seeds']) == seeds


def test_mistakes_end_in_one_line(tmp_path):
    file = table_file(tmp_path)
    code, output = run(file, tmp_path / 'w', '--override=data.dataset=nonesuch', '--only=wide')
    assert code == 2
    assert "wide / One: failed: unknown data set 'nonesuch'" in output
    assert output.splitlines()[-1] == 'error: 1 cells failed: wide / One; the others are there'
    code, output = run(file, tmp_path / 'w', '--take_over=nowhere')
    said = 'error: --take_over=nowhere is no folder of a table: it has no cells/'
    assert (code, output.splitlines()[-1]) == (2, said)


def test_only_and_overrides(tmp_path):
    file = table_file(tmp_path, columns=2)
    cells = spec.cells(spec.load(file), file, {'train.epochs': 2})
    assert {cell.experiment.train.epochs for cell in cells} == {2}

    def chosen(*only):
        return [(cell.row, cell.column) for cell in table._chosen(cells, only)]

    assert len(chosen()) == 4
    assert chosen('narrow', 'Two') == [('narrow', 'Two')]
    assert chosen('n*') == [('narrow', 'One'), ('narrow', 'Two')]
    assert chosen('One') == [('wide', 'One'), ('narrow', 'One')]
    with pytest.raises(UserError, match=r'no row \(wide, narrow\) and no column \(One, Two\)'):
        chosen('wide', 'none')
    given = ['a.b=2', 'a.c=x/y', 'a.d=(1, 2)', 'a.e=True', 'a.f=']
    values = parsed(given, '--override')
    assert values == {'a.b': 2, 'a.c': 'x/y', 'a.d': (1, 2), 'a.e': True, 'a.f': ''}
    with pytest.raises(UserError, match='is not FIELD=VALUE'):
        parsed(['dim=3'], '--override')
    for name in ('model.depth', 'model.dim.real', 'model.make', 'modle.dim'):
        with pytest.raises(UserError, match=f'no field {name}'):
            spec.cells(spec.load(file), file, {name: 3})
    code, output = run(file, tmp_path / 'w', '--override=model.dim=4', '--results=r')
    assert code == 2 and '--override=model.dim' in output.splitlines()[-1]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder as that of the package: a table file, and stored cells of the first format."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'experiments' / 'tables').mkdir(parents=True)
    file = table_file(tmp_path / 'experiments' / 'tables')
    ranks = np.random.default_rng(0).integers(0, 40, (2, 80))
    for cell in spec.cells(spec.load(file), file):
        cells_lib.write(tmp_path / 'results' / 't', cell, first_format(cell, ranks))
    return file


def test_adopt(results, tmp_path):
    """Old cells are refused with the way to keep them, which keeps them and says why."""
    folder = tmp_path / 'results' / 't'
    before = {path.name: path.read_bytes() for path in (folder / 'cells').iterdir()}
    render = ['--render', '--results=results']
    error = runs.inside('table', *render).error
    assert 'has format 1, this version reads 2; python -m jaxrec.table --adopt --why=' in error
    for missing in (['--results=results'], ['--why=x']):
        error = runs.inside('table', '--adopt', *missing).error
        assert error == 'error: --adopt needs --results=DIR and --why=TEXT'
    assert {path.name: path.read_bytes() for path in (folder / 'cells').iterdir()} == before

    done = runs.inside('table', '--adopt', '--results=results', '--why=only names, 1 = 1')
    assert done.returncode == 0 and done.stdout == 'adopted: 2 cells\n', done.stderr
    for path in (folder / 'cells').iterdir():
        (note,) = json.loads(path.read_text())['adopted']
        assert note['why'] == 'only names, 1 = 1'
    assert runs.inside('table', *render).returncode == 0
    assert 'mean over 2 seeds' in (folder / 'table.md').read_text()

    changed = (results.parent / 'e.py').read_text().replace('epochs=2', 'epochs=3')
    (results.parent / 'e.py').write_text(changed)
    error = runs.inside('table', '--adopt', '--results=results', '--why=x').error
    assert 'train.epochs=2, the table now has 3: that is another cell' in error
    error = runs.inside('table', '--adopt', '--results=none', '--why=x').error
    assert 'none holds no results of a table' in error


@pytest.mark.slow
def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path):
    file = table_file(tmp_path)
    code, output = run(file, tmp_path / 'whole', '--seeds=2')
    assert code == 0, output
    rng = random.Random(os.environ.get('JAXREC_TEST_SEED', '0'))
    for attempt in range(8):
        process = start(file, tmp_path / 'killed', '--seeds=2')
        try:
            output, _ = process.communicate(timeout=rng.uniform(3, 15))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL if attempt % 2 else signal.SIGTERM)
            process.communicate()
    else:
        code, output = run(file, tmp_path / 'killed', '--seeds=2')
        assert code == 0, output
    for path in sorted((tmp_path / 'whole').glob('**/*.*')):
        name = path.relative_to(tmp_path / 'whole')
        if name.parts[0] in ('runs', 'locks') or path.is_dir():
            continue
        found = (tmp_path / 'killed' / name).read_text()
        if path.suffix in ('.json', '.html'):
            expected = without_times(_lines_joined(path.read_text()))
            assert without_times(_lines_joined(found)) == expected, name
        else:
            assert found == path.read_text(), name


def _lines_joined(text):
    return re.sub(r'\n\s*', ' ', text)


@pytest.mark.slow
def test_seeds_in_parallel_give_the_same_table(tmp_path):
    file = table_file(tmp_path, rows=1)
    code, output = run(file, tmp_path / 'single', '--seeds=2')
    assert code == 0, output
    code, output = run(file, tmp_path / 'parallel', '--seeds=2', '--seeds_in_parallel')
    assert code == 0, output
    assert output.count('jaxrec.train') == 1
    a, b = (
        json.loads((tmp_path / name / 'cells' / 'wide__one.json').read_text())
        for name in ('single', 'parallel')
    )
    for seed in ('0', '1'):
        for name, value in a['seeds'][seed]['metrics'].items():
            assert b['seeds'][seed]['metrics'][name] == pytest.approx(value, abs=0.02), name
        points = [np.array(x['seeds'][seed]['curve']['points']) for x in (a, b)]
        np.testing.assert_allclose(points[0], points[1], atol=0.03)


# ---- the page in a browser


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """A page of cells that were made up."""
    folder = tmp_path_factory.mktemp('page')
    file = table_file(folder)
    rng = np.random.default_rng(0)
    base = rng.integers(0, 40, (3, 300))
    for cell in spec.cells(spec.load(file), file):
        made = record(base if cell.row == 'wide' else np.maximum(base - 6, 0))
        best = made['seeds']['0']['metrics']['NDCG@10']
        bucket = {'examples': 100, **made['seeds']['0']['metrics']}
        for run_ in made['seeds'].values():
            run_ |= {
                'best_step': 40,
                'groups': {'popularity': dict.fromkeys(('head', 'mid', 'tail'), bucket)},
                'details': {'unreachable': 0.0, 'cold': 0.0},
                'curve': {'metric': 'NDCG@10', 'points': [[10, 0.1], [20, 0.2], [40, best]]},
                'git': {'commit': 'f' * 40, 'dirty': False},
                'versions': {'jax': '0.10.2'},
                'platform': 'cpu',
                'devices': ['cpu'],
                'times': {
                    'seconds': 61.5,
                    'tokens_per_second': 12345.6,
                    'started': '2026-01-02',
                },
            }
        made |= {
            'row': cell.row,
            'column': cell.column,
            'command': 'python -m jaxrec.train --config=e.py',
            'config': {'model.dim': 8},
            'examples': 300,
            'references': {'popularity': made['seeds']['0']['metrics']},
        }
        cells_lib.write(folder / 'w', cell, made)
    code, output = run(file, folder / 'w', '--render')
    assert code == 0, output
    return folder / 'w' / 'table.html'


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    assert not re.findall(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', text)
    assert not re.findall(r'@import|url\(|fetch\(|XMLHttpRequest|import\s*\(', text)
    assert set(re.findall(r'https?://[^\s"\'<)]+', text)) <= {'http://www.w3.org/2000/svg'}
    assert text.count('</script>') == 2  # the title's own does not end anything
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))
    assert data['title'] == 'Small </script> table'
    assert 'kept' not in next(iter(data['cells'].values()))['seeds']['0']


@pytest.fixture
def chromium(tmp_path):
    program = shutil.which('chromium')
    if program is None:
        pytest.skip('no chromium on PATH (apt-get install chromium)')
    quiet = ['--disable-background-networking', '--disable-component-update', '--disable-sync']
    command = [program, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', *quiet]
    command += [f'--user-data-dir={tmp_path / "profile"}', '--virtual-time-budget=3000']

    def start_with(*flags):
        done = subprocess.run([*command, *flags], capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    return start_with


def test_a_browser_draws_the_page(page, chromium, tmp_path):
    dom = chromium('--dump-dom', f'{page.as_uri()}#cell=narrow__one')
    body = dom[dom.index('<main') : dom.index('<script type="application/json"')]
    assert '<h1>Small &lt;/script&gt; table</h1>' in body
    drawn = re.search(r'<table id="table">.*?</table>', body, re.S).group(0)
    assert drawn.count('<button') == 4 and 'class="best"' in drawn and '▲' in drawn
    assert 'class="published"' in drawn and 'one run allows 0.0058 to 0.0071' in drawn
    figures = re.findall(r'<figure id="([\w-]+)">(.*?)</figure>', body, re.S)
    assert [name for name, _ in figures] == [
        'curves',
        'groups',
        'at-k-hr',
        'at-k-ndcg',
        'significance',
    ]
    for name, drawn in figures:
        assert '<svg' in drawn and ('<path' in drawn or '<rect' in drawn or '<circle' in drawn), (
            name
        )
        assert 'NaN' not in drawn and 'undefined' not in drawn, name
    panel = body[body.index('<aside') :]  # opened by the address
    assert 'hidden' not in panel[: panel.index('>')]
    for shown in ('ffffffffffff', 'd' * 64, 'jax 0.10.2', '12,346', 'model.dim', 'name'):
        assert shown in panel, shown


def test_a_screenshot_has_a_table_and_lines_in_both_themes(page, chromium, tmp_path):
    image = pytest.importorskip('matplotlib.image')
    pictures = {}
    for theme, flag in (('light', 1), ('dark', 0)):
        file = tmp_path / f'{theme}.png'
        chromium(
            f'--screenshot={file}',
            '--window-size=1200,2400',  # higher than the page: its last part stays empty
            '--hide-scrollbars',
            f'--blink-settings=preferredColorScheme={flag}',
            page.as_uri(),
        )
        pictures[theme] = image.imread(file)[..., :3]
    for theme, first in (('light', '#2a6fdb'), ('dark', '#6ea8ff')):
        picture = pictures[theme]
        assert picture.shape[:2] == (2400, 1200)
        paper = picture[3, 3]
        assert (paper.mean() > 0.9) == (theme == 'light')
        ink = np.abs(picture - paper).max(-1) > 0.3
        assert 0.005 < ink[:1500].mean() < 0.3  # neither empty nor a blot
        wanted = np.array([int(first[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(picture - wanted).max(-1) < 0.02).sum() > 200  # the first row's curves
