"""What a finished cell depends on, as hashes: its config, the code that made it, its data."""

import ast
import hashlib
import json
import pathlib

from jaxrec.experiment import Experiment, flat, rules, to_record

PACKAGE = pathlib.Path(__file__).parent.parent
# Fields with these effects (`config.field`) say where, how often and in which portions, not what.
# The seed is the cell's own axis.
_NO_MATTER = ('seed', 'place', 'pace')
# Files that training and evaluation import but that cannot change a number.
EXEMPT = (
    'cli',
    'errors',
    'experiment',
    'files',
    'problem',
    'devices/cluster',
    'devices/hlo',
    'evaluation/baselines',
    'evaluation/item_lists',
    'evaluation/plots',
    'evaluation/report',
    'training/checkpoint',
    'training/logs',
    'training/places',
    'training/summary',
    'training/warm_start',
    'training/workdir',
)
# Nor can benchmarks; of the readers of raw data the content hash stands for what they make.
_EXEMPT_BELOW = ('benchmarks/', 'datasets/')


def config_record(experiment: Experiment) -> dict:
    """The fields that matter, by name: 'model.dim' -> value."""
    effects = {name: rule.get('effect', 'result') for name, rule in rules(experiment)}
    fields = sorted(flat(to_record(experiment)).items())
    return {name: value for name, value in fields if effects.get(name) not in _NO_MATTER}


def matters(name: str, experiment: Experiment) -> bool:
    """Whether a field of the experiment, 'model.dim', changes the result of a seed."""
    return dict(rules(experiment)).get(name, {}).get('effect', 'result') not in _NO_MATTER


def config_hash(experiment: Experiment) -> str:
    return of_text(json.dumps(config_record(experiment), sort_keys=True))


def data_hash(experiment: Experiment, say) -> str:
    """Content hash of the data set; it is prepared first if it is not there yet."""
    return experiment.task.open(experiment, say).data_hash


def code_hash(experiment: Experiment) -> str:
    """Hash of the package's files that a result of this task and model depends on, as of now.

    Docstrings, comments and empty lines do not count.
    """
    digest = hashlib.sha256()
    for name in code_files(type(experiment.task).__module__, type(experiment.model).__module__):
        digest.update(f'{name}\n'.encode())
        digest.update(_code(PACKAGE / name).encode())
    return digest.hexdigest()


def code_files(*modules: str) -> list[str]:
    """Names below the package of the files that a result depends on.

    Args:
      modules: of the task's and the model's Config, e.g. 'jaxrec.models.sasrec'.
    """
    waiting, found = ['jaxrec.training.loop', 'jaxrec.evaluation.run', *modules], set()
    while waiting:
        file = _file(waiting.pop())
        if file is None or file in found:
            continue
        name = str(file.relative_to(PACKAGE))
        if name.removesuffix('.py') in EXEMPT or name.startswith(_EXEMPT_BELOW):
            continue
        found.add(file)
        waiting += _imports(file)
    return sorted(str(file.relative_to(PACKAGE)) for file in found)


def of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _code(file: pathlib.Path) -> str:
    """A file's text without docstrings, comments of whole lines, and empty lines."""
    text = file.read_text(encoding='utf-8')
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, 'body', None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            lines[first.lineno - 1 : first.end_lineno] = [''] * (
                first.end_lineno - first.lineno + 1
            )
    kept = (line.rstrip() for line in lines)
    return '\n'.join(line for line in kept if line and not line.lstrip().startswith('#'))


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
