"""The shape of the package: imports point one way, and a bare install is enough."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'jaxrec'
COMMANDS = {'train', 'stream', 'evaluate', 'recommend', 'prepare', 'benchmark', 'table'}
OPTIONAL = ('matplotlib', 'tensorboardX', 'torch', 'pandas', 'apache_beam')
ONLY_JAX = {'losses', 'layers', 'augment'}  # and the mesh


def imports_of(path):
    """Names of jaxrec modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'jaxrec':
            parts = node.module.split('.')[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split('.')[1] for a in node.names if a.name.startswith('jaxrec.')}
    return found


def modules():
    return sorted(PACKAGE.rglob('*.py'))


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    name = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
    used = imports_of(path) - {name}
    assert not used & COMMANDS, 'nothing imports a command'
    if name in ONLY_JAX:
        assert used <= {'sharding', 'layers'}
    if name == 'config':
        assert not used
    if name == 'datasets':
        assert used <= {'config', 'cli', 'files', 'histories', 'tally', 'datasets'}
    if name == 'models':
        parts = {'layers', 'losses', 'embeddings', 'in_batch', 'contrast'}
        assert used <= parts | {'config', 'features', 'sharding', 'cli'}
    if name == 'features':
        assert used <= {'cli'}


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
import jaxrec.benchmark, jaxrec.evaluate, jaxrec.prepare, jaxrec.recommend, jaxrec.table
import jaxrec.train
from jaxrec.config import Data, Experiment, Train
from jaxrec.models import sasrec
experiment = Experiment(
    model=sasrec.Config(dim=8, blocks=1, max_len=8),
    data=Data(dataset='synthetic:users=50,items=40,length=6', data_dir=sys.argv[1]),
    train=Train(batch_rows=8, steps=2),
)
print(jaxrec.train.train(experiment, pathlib.Path(sys.argv[2])))
assert 'tensorflow' not in sys.modules
"""
    words = [sys.executable, '-c', code, str(tmp_path / 'data'), str(tmp_path / 'run')]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'step': 2" in done.stdout and 'matplotlib' in done.stdout


@pytest.mark.parametrize('command', sorted(COMMANDS))
def test_help_explains_itself(command):
    done = subprocess.run(
        [sys.executable, '-m', f'jaxrec.{command}', '--help'], capture_output=True, text=True
    )
    assert 'python -m jaxrec.' + command in done.stdout
    assert '--' in done.stdout


def test_lint_and_format():
    ruff = [sys.executable, '-m', 'ruff']
    for check in (['check'], ['format', '--check']):
        done = subprocess.run([*ruff, *check, str(ROOT)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
