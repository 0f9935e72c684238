"""An experiment as a whole: checked, changed by overrides, and recorded as JSON."""

import ast
import copy
import dataclasses
import importlib
import json
import math
import pathlib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxrec import files, tasks
from jaxrec.config import RENAMED, Data, Mesh, Optim, Train
from jaxrec.errors import UserError
from jaxrec.problem import ModelConfig, Task

SECTIONS = ('task', 'model', 'data', 'optim', 'train', 'mesh')


@dataclasses.dataclass
class Experiment:
    """One experiment: everything that changes its result."""

    model: Any = None  # a model's Config, e.g. jaxrec.models.sasrec.Config()
    task: Any = dataclasses.field(default_factory=tasks.Default)
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)


def check(experiment: Experiment) -> None:
    """Refuses an experiment that cannot mean what it says, before anything is read or written.

    Raises:
      UserError: naming the field, for a value of a wrong type or out of range, and for values that
        do not go together.
    """
    if not isinstance(experiment, Experiment):
        raise UserError(
            'get_config() of the --config file must return a jaxrec.experiment.Experiment, '
            f'not a {type(experiment).__name__}'
        )
    for section, kind, example in (
        ('model', ModelConfig, 'sasrec.Config()'),
        ('task', Task, 'tasks.Default()'),
    ):
        if not isinstance(getattr(experiment, section), kind):
            raise UserError(f'the experiment has no {section}: set {section}=, e.g. {example}')
    for section in SECTIONS:
        check_fields(getattr(experiment, section), section)
    model, optim, train = experiment.model, experiment.optim, experiment.train
    model.check()
    if optim.table != 'dense':
        if optim.ema or optim.weight_decay:
            raise UserError(f'optim.table={optim.table} leaves no room for ema and weight_decay')
        if train.microbatches > 1:
            raise UserError(f'optim.table={optim.table} does not go with train.microbatches')
        if not model.tables():
            raise UserError(
                f'optim.table={optim.table}: touched rows only need a sampled loss, and a step of '
                'this model looks at its whole tables'
            )
    if train.microbatches > 1 and model.whole_batch():
        raise UserError(
            f'{model.whole_batch()} does not go with train.microbatches: it needs the whole batch '
            'at once'
        )
    if train.grow and not train.start_from:
        raise UserError('train.grow goes with train.start_from, the run to go on from')
    if train.start_with != 'best' and (train.grow or not train.start_from):
        raise UserError(
            'train.start_with goes with train.start_from, and without train.grow, which goes on '
            'from the last checkpoint'
        )
    experiment.task.check(experiment)
    if metric(experiment) not in (known := experiment.task.metrics()):
        raise UserError(
            f'train.metric={train.metric!r} is not measured by this task; there is '
            f'{", ".join(known)}'
        )


def metric(experiment: Experiment) -> str:
    """Of the best checkpoint and early stopping: train.metric, or the task's main one."""
    return experiment.train.metric or experiment.task.main_metric()


def check_fields(settings: Any, section: str) -> None:
    """Raises UserError for a field of a dataclass, or inside one, that breaks its type or rules."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        hint, value, name = hints[field.name], getattr(settings, field.name), field.name
        if not _fits(value, hint):
            raise UserError(f'{section}.{name}={value!r} is not {getattr(hint, "__name__", hint)}')
        if broken := _broken(value, field.metadata):
            raise UserError(f'{section}.{name}={value!r} {broken}')
        inside = (
            {f'.{n}': x for n, x in enumerate(value)} if isinstance(value, tuple) else {'': value}
        )
        for place, inner in inside.items():
            if dataclasses.is_dataclass(inner):
                check_fields(inner, f'{section}.{name}{place}')


def _broken(value, rules) -> str:
    """Which of a field's rules (`config.field`) a value breaks, '' if none."""
    if rules.get('choices') and value not in rules['choices']:
        return f'is not one of {", ".join(filter(None, rules["choices"]))}'
    least, above, most, below = (rules.get(n) for n in ('least', 'above', 'most', 'below'))
    if isinstance(value, float) and not math.isfinite(value):
        return 'is not a finite number'
    inside = (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if inside:
        return ''
    if most is None and below is None:
        return f'must be above {above}' if least is None else f'must be at least {least}'
    left = f'({above}' if least is None else f'[{least}'
    return f'is not in {left}, ' + (f'{most}]' if below is None else f'{below})')


def _fits(value, hint) -> bool:
    if hint is typing.Any:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def parsed(given: Iterable[str], flag: str) -> dict[str, Any]:
    """{'train.epochs': 2} of ['train.epochs=2']; text where it is no literal of Python.

    Args:
      given: values of a flag that can be given several times.
      flag: its name, for the error.

    Raises:
      UserError: not FIELD=VALUE.
    """
    values = {}
    for word in given:
        name, found, value = word.partition('=')
        if not found or '.' not in name:
            raise UserError(f'{flag}={word} is not FIELD=VALUE, e.g. train.epochs=2')
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values


def applied(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """A copy with these fields set: {'optim.eps': 1e-7, 'model.contrast.0.weight': 0.1}.

    Raises:
      UserError: no such field.
    """
    experiment = copy.deepcopy(experiment)
    for name, value in overrides.items():
        *sections, field = name.split('.')
        part = experiment
        for section in sections:
            part = _inside(part, section)
        known = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
        if field not in {one.name for one in known}:
            if name in RENAMED:
                raise UserError(f'{name} is now {RENAMED[name]}')
            raise UserError(f'the experiment has no field {name}')
        if value == '' and typing.get_origin(typing.get_type_hints(type(part))[field]) is tuple:
            value = ()  # --task.cutoffs= as --config.task.cutoffs=
        setattr(part, field, value)
    return experiment


def _inside(part: Any, name: str) -> Any:
    """A field of a dataclass, or an element of a tuple of them; None if there is none."""
    if isinstance(part, tuple):
        return part[int(name)] if name.isdecimal() and int(name) < len(part) else None
    return getattr(part, name, None) if dataclasses.is_dataclass(part) else None


def to_record(experiment: Experiment) -> dict:
    """JSON-able form of an experiment; model and task are named by module and class."""
    record = dataclasses.asdict(experiment)
    for section in ('model', 'task'):
        kind = type(getattr(experiment, section))
        record[section] = {'type': f'{kind.__module__}:{kind.__qualname__}', **record[section]}
    return json.loads(json.dumps(record))


def read(path: pathlib.Path) -> Experiment:
    """The experiment in a run's config.json.

    Raises:
      UserError: with the path, if there is none, or one of another version of jaxrec.
    """
    record = files.read_json(path, dict)
    try:
        return from_record(record)
    except UserError as e:
        raise UserError(f'{path}: {e}') from e


def from_record(record: dict) -> Experiment:
    """Inverse of `to_record`; UserError for what is none of this version's."""
    if 'task' not in record:
        raise UserError('the run was made by a version of jaxrec before tasks: train it again')
    named = {'type': str}
    if wrong := files.misfit(record, {'model': named, 'task': named}, 'the record'):
        raise UserError(f'{wrong}: it is no experiment')
    record = dict(record)
    for section in ('model', 'task'):
        values = dict(record[section])
        module, _, name = values.pop('type').partition(':')
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError, TypeError) as e:
            raise UserError(
                f'the run needs the {section} {module}.{name}, which cannot be imported'
            ) from e
        record[section] = _rebuild(kind, values, section)
    made = _rebuild(Experiment, record)
    for section in SECTIONS:
        check_fields(getattr(made, section), section)
    return made


def _rebuild(kind, values, name=''):
    if not (dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(values, dict)):
        raise UserError(f'{name}={values!r} is not made of fields that this version knows')
    hints = typing.get_type_hints(kind)
    unknown = values.keys() - {f.name for f in dataclasses.fields(kind)}
    if unknown:
        raise UserError(f'the run was made by another version of jaxrec: no field {min(unknown)}')
    made = {}
    for field, value in values.items():
        hint, inner = hints[field], f'{name}.{field}'.lstrip('.')
        if dataclasses.is_dataclass(hint):
            value = _rebuild(hint, value, inner)
        if isinstance(value, list):
            of = (typing.get_args(hint) or (None,))[0]
            parts = dataclasses.is_dataclass(of)
            value = tuple(_rebuild(of, v, inner) if parts else v for v in value)
        made[field] = value
    try:
        return kind(**made)
    except TypeError as e:  # a field without a default is missing
        raise UserError(f'{name} lacks a field: {e}') from e


def flat(tree: dict, prefix: str = '') -> dict:
    """A nested record with one level: 'optim.learning_rate' -> value."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(nth): one for nth, one in enumerate(value)}
        if isinstance(value, dict):
            found |= flat(value, f'{prefix}{name}.')
        else:
            found[prefix + name] = value
    return found


def rules(experiment: Experiment) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """('optim.learning_rate', what `config.field` was told of it) of every field."""
    for name, field in _fields(experiment):
        yield name, field.metadata


def defaults(experiment: Experiment) -> dict[str, Any]:
    """{'optim.learning_rate': its default} of every field that has one."""
    return {
        name: field.default
        for name, field in _fields(experiment)
        if field.default is not dataclasses.MISSING
    }


def _fields(experiment: Experiment) -> Iterator[tuple[str, dataclasses.Field]]:
    """('optim.learning_rate', the field) of every setting, also inside tuples of settings."""

    def walk(settings, name):
        for field in dataclasses.fields(settings):
            value, inner = getattr(settings, field.name), f'{name}.{field.name}'
            if dataclasses.is_dataclass(value):
                yield from walk(value, inner)
            elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
                for nth, one in enumerate(value):
                    yield from walk(one, f'{inner}.{nth}')
            else:
                yield inner, field

    for section in SECTIONS:
        yield from walk(getattr(experiment, section), section)


def effect(name: str, experiment: Experiment) -> str:
    """What a field changes (`config.field`); 'result' for a name that the experiment lacks."""
    return dict(rules(experiment)).get(name, {}).get('effect', 'result')
