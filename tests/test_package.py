"""The shape of the package: imports point one way, and a bare install is enough."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'jaxrec'
COMMANDS = {'train', 'evaluate', 'recommend', 'serve', 'export', 'report', 'prepare'}
COMMANDS |= {'benchmark', 'table'}
OPTIONAL = ('matplotlib', 'tensorboardX', 'torch', 'pandas', 'apache_beam', 'flatbuffers', 'faiss')
OPTIONAL += ('uvicorn', 'starlette', 'pydantic')
# What the files of a room may import besides their own room; everything else is above it.
BASE = {'config', 'errors', 'files', 'problem', 'rng'}
ROOMS = {
    'config': set(),
    'errors': set(),
    'rng': set(),
    'files': {'errors'},
    'problem': {'config', 'errors'},
    'malloc': set(),
    'cli': {'config', 'errors', 'malloc'},
    'data': BASE,
    'devices': BASE | {'cli'},
    'datasets': BASE | {'data'},
    'nn': BASE | {'devices'},
    'losses': {'devices'},
    'objectives': BASE | {'devices', 'losses', 'nn'},
    'models': BASE | {'data', 'devices', 'losses', 'nn', 'objectives'},
    'evaluation': BASE | {'cli', 'data', 'devices'},
    'tasks': BASE | {'data', 'datasets', 'devices', 'evaluation', 'nn'},
    'experiment': BASE | {'tasks'},
    'training': BASE | {'cli', 'devices', 'evaluation', 'experiment', 'nn'},
    'serving': BASE | {'cli', 'data', 'devices', 'evaluation', 'experiment', 'pages', 'training'},
    'pages': set(),
    'paper': BASE | {'cli', 'experiment', 'pages', 'training'},
    'reports': BASE | {'experiment', 'pages', 'paper', 'serving', 'training'},
}


def module_of(path):
    """'jaxrec.data.cuts' of a file."""
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def modules():
    return sorted(PACKAGE.rglob('*.py'))


NAMES = {module_of(path) for path in modules()}


def imports_of(path):
    """Modules of jaxrec that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'jaxrec':
            for alias in node.names:
                inner = f'{node.module}.{alias.name}'
                found.add(inner if inner in NAMES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in NAMES}
    return found


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = (*module_of(path).split('.'), '')[1]
    used = {(*name.split('.'), '')[1] for name in imports_of(path)} - {room, ''}
    assert not used & COMMANDS, 'nothing imports a command'
    if room in ROOMS:
        assert used <= ROOMS[room]


def test_only_a_task_knows_what_it_measures():
    """The loop, the pass, tables and commands name no task and no metric of one."""
    rooms = ('tasks/', 'models/', 'objectives/', 'serving/', 'benchmarks/rectools_peer')
    own = ('evaluation/ranking', 'evaluation/rank_metrics', 'paper/plausible')
    for path in [*modules(), *PACKAGE.rglob('*.js')]:
        name = str(path.relative_to(PACKAGE))
        if not name.startswith((*rooms, *own)):
            found = re.findall(r'(?i)next[ _]item|\bhr\b|ndcg', path.read_text())
            assert not found, f'{name}: {found}'


def test_a_traced_function_raises_no_error_of_the_user():
    """UserError comes from checks, readers and commands: in these rooms from `check` alone."""
    for room in ('nn', 'losses', 'objectives', 'models'):
        for path in (PACKAGE / room).glob('*.py'):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef) and node.name not in ('check', '_check'):
                    raised = [n for n in ast.walk(node) if isinstance(n, ast.Raise)]
                    assert 'UserError' not in ''.join(map(ast.dump, raised)), path.name


def test_no_circle_of_imports():
    """Nor one that only closes when a function runs."""
    left = {module_of(path): imports_of(path) - {module_of(path)} for path in modules()}
    while free := [name for name, used in left.items() if not used & left.keys()]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_pickle(path):
    text = path.read_text()
    assert 'import pickle' not in text and 'allow_pickle=True' not in text


def test_a_bare_install_trains(tmp_path):
    """With every optional package blocked, all commands import and a model trains."""
    code = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None  # importing it now raises ImportError
import pathlib
import jaxrec
import jaxrec.benchmark, jaxrec.evaluate, jaxrec.export, jaxrec.prepare, jaxrec.recommend
import jaxrec.report, jaxrec.serve, jaxrec.table
import jaxrec.train
from jaxrec import Data, Experiment, Train
from jaxrec.models import sasrec
experiment = Experiment(
    model=sasrec.Config(dim=8, blocks=1, max_len=8),
    data=Data(dataset='synthetic:users=50,items=40,length=6', data_dir=sys.argv[1]),
    train=Train(batch_rows=8, steps=2),
)
print(jaxrec.fit(experiment, sys.argv[2]))
assert 'tensorflow' not in sys.modules
"""
    words = [sys.executable, '-c', code, str(tmp_path / 'data'), str(tmp_path / 'run')]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'step': 2" in done.stdout and 'matplotlib' in done.stdout


def test_help_explains_itself():
    """`python -m jaxrec.COMMAND --help`: children of a process with nothing of ours imported."""
    code = """
import os, runpy, sys
import absl.app, flax.nnx, jax, numpy, optax, pyarrow
for command in sys.argv[1:]:
    print(f'<{command}>', flush=True)
    if not os.fork():
        sys.argv = [command, '--help']
        runpy.run_module(f'jaxrec.{command}', run_name='__main__', alter_sys=True)
    assert os.WIFEXITED(os.wait()[1])
"""
    commands = sorted(COMMANDS)
    done = subprocess.run([sys.executable, '-c', code, *commands], capture_output=True, text=True)
    helps = re.split('<([a-z]+)>\n', done.stdout)[1:]
    assert helps[::2] == commands and 'Traceback' not in done.stderr, done.stderr
    for command, text in zip(commands, helps[1::2], strict=True):
        assert f'python -m jaxrec.{command}' in text
        assert re.search('^ +--', text, re.MULTILINE)


def test_lint_and_format():
    ruff = [sys.executable, '-m', 'ruff']
    for check in (['check'], ['format', '--check']):
        done = subprocess.run([*ruff, *check, str(ROOT)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
