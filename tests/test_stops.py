"""How commands end: the exit code of every kind of end, and what --json prints then."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from runs import inside, small, write
from test_table import table_file

from jaxrec import benchmark, evaluate, prepare, recommend, table
from jaxrec.training.loop import fit

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SEVERAL = ('--seeds_in_parallel=0,1',)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """An experiment's file, and a run of it."""
    folder = tmp_path_factory.mktemp('stops')
    experiment = small(folder, **{'train.epochs': 1, 'model.blocks': 0})
    fit(experiment, folder / 'run')
    return write(folder / 'x.py', experiment), folder / 'run'


def words_of(command, run, tmp_path):
    config, workdir = run
    return {
        'train': [f'--config={config}', f'--workdir={tmp_path / "new"}'],
        'evaluate': [f'--workdir={workdir}'],
        'recommend': [f'--workdir={workdir}', '--users=all', f'--output={tmp_path / "x.parquet"}'],
        'prepare': ['--dataset=synthetic', f'--data_dir={tmp_path}'],
        'benchmark': ['--suite=train', f'--config={config}'],
        'table': [f'--table={table_file(tmp_path)}', f'--workdir={tmp_path / "table"}'],
    }[command]


def at_work(monkeypatch, command, happens):
    """Has something happen in the midst of what a command does."""
    module, name = {
        'evaluate': (evaluate, 'load_trained'),
        'recommend': (recommend, 'write_lists'),
        'prepare': (prepare.datasets, 'load'),
        'benchmark': (benchmark, '_run'),
        'table': (table, 'Runner'),
    }[command]
    monkeypatch.setattr(module, name, happens)


def last(done):
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('number', SIGNALS, ids=lambda n: n.name)
@pytest.mark.parametrize('command', ['evaluate', 'recommend', 'prepare', 'benchmark'])
def test_a_stopped_command_is_not_a_finished_one(run, tmp_path, monkeypatch, command, number):
    def happens(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(10)
        raise AssertionError('not stopped')

    at_work(monkeypatch, command, happens)
    done = inside(command, *words_of(command, run, tmp_path), '--json')
    again = command == 'recommend'  # whose finished parts are kept
    assert done.returncode == (75 if again else 128 + number)
    assert last(done)['exit'] == done.returncode and 'error' not in last(done)
    assert f'by {number.name}' in last(done)['stopped']
    assert ('same command goes on' in last(done)['stopped']) == again
    told = done.stderr.splitlines()[-1]
    assert told == f'stopped: {last(done)["stopped"]}' and 'Traceback' not in done.stderr
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ('number', 'seeds'),
    [
        pytest.param(signal.SIGINT, (), id='SIGINT-one'),
        pytest.param(signal.SIGTERM, SEVERAL, id='SIGTERM-several'),
        pytest.param(signal.SIGTERM, (), id='SIGTERM-one', marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, SEVERAL, id='SIGINT-several', marks=pytest.mark.slow),
    ],
)
def test_a_stopped_training_asks_for_the_same_command(run, tmp_path, monkeypatch, number, seeds):
    """Also where nothing is known to start it again; then it finishes with 0."""
    from jaxrec.training import loop

    def steps(*given):
        for made in whole(*given):
            os.kill(os.getpid(), number)
            yield made

    whole = loop.steps
    monkeypatch.setattr(loop, 'steps', steps)
    words = [*words_of('train', run, tmp_path), *seeds, '--json']
    done = inside('train', *words)
    assert done.returncode == 75, done.stderr
    assert (last(done)['stopped'], last(done)['exit']) == ('signal', 75)
    monkeypatch.undo()
    done = inside('train', *words)
    assert 'going on from step' in done.stderr and 'exit' not in done.result


@pytest.mark.parametrize('number', SIGNALS, ids=lambda n: n.name)
def test_a_stopped_table_asks_for_the_same_command(run, tmp_path, monkeypatch, number):
    class Stops(table.Runner):
        def _work(self, *_):
            os.kill(os.getpid(), number)
            assert self.stopping.wait(10)

    at_work(monkeypatch, 'table', Stops)
    done = inside('table', *words_of('table', run, tmp_path), '--json')
    assert done.returncode == 75 and last(done)['exit'] == 75
    assert 'same command goes on' in last(done)['stopped']


def test_a_table_whose_training_alone_is_stopped_does_not_count_it_as_failed(run, tmp_path):
    """As where a scheduler tells all processes of a job, in whatever order."""
    folder = tmp_path / 'table'

    class Pretends(table.Runner):
        def _run(self, cell, seeds, lock):
            folder.mkdir(exist_ok=True)
            self._command(['jaxrec_stops_at_once'], folder / 'x', lock)

    code = 'import os, signal; os.kill(os.getpid(), signal.SIGTERM)'
    (tmp_path / 'jaxrec_stops_at_once.py').write_text(
        f'import signal, sys\nsignal.signal(15, lambda *_: sys.exit(75))\n{code}\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', f'{tmp_path}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
        at_work(patch, 'table', Pretends)
        done = inside('table', *words_of('table', run, tmp_path), '--json')
    assert done.returncode == 75, done.stderr
    assert 'failed' not in done.stderr and last(done)['exit'] == 75


MISTAKES = {
    'train': ['--config.model.dim=0', 'model.dim=0'],
    'evaluate': ['--split=none', "unknown split 'none'"],
    'recommend': ['--k=0', '--k'],
    'prepare': ['--log=/nowhere.csv', '/nowhere.csv'],
    'benchmark': ['--suite=nothing', '--suite=nothing'],
    'table': ['--only=nothing', '--only=nothing'],
}


@pytest.mark.parametrize('command', MISTAKES)
@pytest.mark.parametrize('kind', ['a wrong value', 'an unknown flag', 'a word'])
def test_a_mistake_is_a_line_and_an_object(run, tmp_path, command, kind):
    flag, told = MISTAKES[command]
    if command == 'prepare':
        words = [f'--data_dir={tmp_path}']
    else:
        words = words_of(command, run, tmp_path)
    if kind != 'a wrong value':
        flag = told = '--no_such_flag' if kind == 'an unknown flag' else 'word'
        told = told.strip('-')
    done = inside(command, *words, flag, '--json')
    assert told in done.error and len(done.stderr.splitlines()) <= 2
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == {'error': done.error.removeprefix('error: '), 'exit': 2}


@pytest.mark.parametrize('command', ['evaluate', 'recommend', 'prepare', 'benchmark'])
def test_a_bug_has_its_traceback_and_an_object(run, tmp_path, monkeypatch, command):
    def happens(*_, **__):
        raise ZeroDivisionError('a bug')

    at_work(monkeypatch, command, happens)
    told = []
    monkeypatch.setattr('jaxrec.cli.emit', told.append)
    with pytest.raises(ZeroDivisionError):  # which Python prints, and exits with 1
        inside(command, *words_of(command, run, tmp_path), '--json')
    assert told == [{'error': 'ZeroDivisionError: a bug', 'exit': 1}]


def test_an_error_of_the_system_names_its_file(run, tmp_path, monkeypatch):
    def happens(*_, **__):
        raise PermissionError(13, 'Permission denied', 'some/file')

    at_work(monkeypatch, 'evaluate', happens)
    done = inside('evaluate', *words_of('evaluate', run, tmp_path), '--json')
    assert re.fullmatch(r'error: Permission denied \(some/file\)', done.error)
    assert last(done)['exit'] == 2


def test_a_reader_that_has_seen_enough(tmp_path):
    """`command | head` ends the command without a word, with a shell's code."""
    script = tmp_path / 'command.py'
    script.write_text(
        'from jaxrec import cli\n'
        'cli.run(lambda argv: [cli.say("a line") for _ in range(100_000)])\n'
    )
    reader = 'import sys; sys.stdin.readline()'
    words = f'"{sys.executable}" "{script}" | "{sys.executable}" -c "{reader}"'
    done = subprocess.run(
        ['bash', '-c', f'{words}; echo ${{PIPESTATUS[0]}}'],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stdout.strip(), done.stderr) == ('141', '')
