"""What a finished cell depends on, as hashes: its config, the code that made it, its data."""

import ast
import hashlib
import json
import pathlib

from jaxrec import datasets
from jaxrec.config import Data, Experiment
from jaxrec.experiment import flat, to_record

PACKAGE = pathlib.Path(__file__).parent.parent
# These fields say where and how often, not what. The seed is the cell's own axis.
_NO_MATTER = (
    'train.seed',
    'train.log_every',
    'train.save_every',
    'eval.batch_users',
    'mesh.',
    'data.source',
    'data.data_dir',
)
# Modules that training and evaluation import but that cannot change a number.
_NO_RESULT = (
    'cli',
    'errors',
    'experiment',
    'devices/hlo',
    'evaluation/baselines',
    'evaluation/plots',
    'evaluation/report',
    'training/logs',
    'training/plan',
)
# Nor can benchmarks; of the readers of raw data the content hash stands for what they make.
_NO_RESULT_BELOW = ('benchmarks/', 'datasets/')


def config_record(experiment: Experiment) -> dict:
    """The fields that matter, by name: 'model.dim' -> value."""
    return of_record(to_record(experiment))


def of_record(record: dict) -> dict:
    """The same of an experiment's record, as a run's config.json holds it."""
    return {name: value for name, value in sorted(flat(record).items()) if matters(name)}


def matters(name: str) -> bool:
    """Whether a field of the experiment, 'model.dim', changes the result of a seed."""
    return not name.startswith(_NO_MATTER)


def config_hash(experiment: Experiment) -> str:
    return of_text(json.dumps(config_record(experiment), sort_keys=True))


def data_hash(data: Data, say) -> str:
    """Content hash of the data set; it is prepared first if it is not there yet."""
    return datasets.load(data, say=say)[1]['data_hash']


def code_hash(experiment: Experiment) -> str:
    """Hash of the package's files that training and evaluation of this model import, as of now."""
    digest = hashlib.sha256()
    for name in code_files(type(experiment.model).__module__):
        digest.update(f'{name}\n'.encode())
        digest.update((PACKAGE / name).read_bytes())
    return digest.hexdigest()


def code_files(model: str) -> list[str]:
    """Names below the package of the files that a result of `model` depends on.

    Args:
      model: module of the model's Config, e.g. 'jaxrec.models.sasrec'.
    """
    waiting, found = ['jaxrec.train', 'jaxrec.evaluate', model], set()
    while waiting:
        file = _file(waiting.pop())
        if file is None or file in found:
            continue
        found.add(file)
        waiting += _imports(file)
    names = (str(file.relative_to(PACKAGE)) for file in found)
    kept = (n for n in names if n.removesuffix('.py') not in _NO_RESULT)
    return sorted(n for n in kept if not n.startswith(_NO_RESULT_BELOW))


def of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file(module: str) -> pathlib.Path | None:
    first, *rest = module.split('.')
    if first != 'jaxrec':
        return None
    path = PACKAGE.joinpath(*rest)
    for file in (path / '__init__.py', path.with_suffix('.py')):
        if file.is_file():
            return file
    return None


def _imports(file: pathlib.Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
    return names
