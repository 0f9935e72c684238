"""An experiment as a whole: checked, changed by overrides, and recorded as JSON."""

import ast
import copy
import dataclasses
import importlib
import importlib.metadata
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from jaxrec import config as config_lib
from jaxrec.config import Experiment
from jaxrec.errors import UserError
from jaxrec.evaluation import protocols, rank_metrics
from jaxrec.training import sparse

_AT_LEAST = {
    'data.min_user': 0,
    'data.min_item': 0,
    'data.unseen_negatives': 0,
    'data.cuts': 1,
    'data.windows_per_user': 0,
    'optim.weight_decay': 0,
    'optim.clip_norm': 0,
    'optim.warmup_steps': 0,
    'train.batch_rows': 1,
    'train.microbatches': 1,
    'train.epochs': 1,
    'train.steps': 0,
    'train.seed': 0,
    'train.patience': 0,
    'train.eval_users': 0,
    'train.save_every': 0,
    'train.log_every': 1,
    'eval.batch_users': 1,
    'mesh.data': 0,
    'mesh.model': 1,
}
_ABOVE_ZERO = ('optim.learning_rate', 'optim.eps', 'train.eval_every')
_DECAYS = ('optim.b1', 'optim.b2', 'optim.ema')  # in [0, 1)


def check(experiment: Experiment) -> None:
    """Raises UserError, naming the field, for a value of a wrong type or out of range."""
    if not isinstance(experiment, Experiment):
        raise UserError(
            'get_config() of the --config file must return a jaxrec.config.Experiment, '
            f'not a {type(experiment).__name__}'
        )
    if not hasattr(experiment.model, 'make'):
        raise UserError('the experiment has no model: set model=, e.g. sasrec.Config()')
    for section in ('data', 'optim', 'train', 'eval', 'mesh', 'model'):
        check_types(getattr(experiment, section), section)

    def value(name):
        section, field = name.split('.')
        return getattr(getattr(experiment, section), field)

    for name, least in _AT_LEAST.items():
        if not value(name) >= least:
            raise UserError(f'{name}={value(name)} must be at least {least}')
    for name in _ABOVE_ZERO:
        if not 0 < value(name) < math.inf:
            raise UserError(f'{name}={value(name)} must be above 0')
    for name in _DECAYS:
        if not 0 <= value(name) < 1:
            raise UserError(f'{name}={value(name)} must be in [0, 1)')
    optim = experiment.optim
    if optim.table not in ('dense', *sparse.KINDS):
        raise UserError(f'optim.table={optim.table!r} is not dense, {", ".join(sparse.KINDS)}')
    if optim.table != 'dense' and (optim.ema or optim.weight_decay):
        raise UserError(f'optim.table={optim.table} leaves no room for ema and weight_decay')
    if optim.table != 'dense' and experiment.train.microbatches > 1:
        raise UserError(f'optim.table={optim.table} does not go with train.microbatches')
    whole = {
        "data.windows='cuts'": experiment.data.windows == 'cuts',
        'model.contrast.weight > 0': contrasting(experiment.model),
    }
    for setting, given in whole.items():
        if given and experiment.train.microbatches > 1:
            raise UserError(
                f'{setting} does not go with train.microbatches: the whole batch is negatives'
            )
    if hasattr(experiment.model, 'check_data'):
        experiment.model.check_data(experiment.data)
    protocol = protocols.protocol_of(experiment.eval)
    known = rank_metrics.names(protocol.cutoffs)
    if experiment.train.metric not in known:
        raise UserError(
            f'train.metric={experiment.train.metric!r} is not measured: with eval.cutoffs='
            f'{protocol.cutoffs} there is {", ".join(known)}'
        )


def contrasting(model: typing.Any) -> bool:
    """Whether a model's Config has a contrastive term (`contrast.Contrast`) of any weight."""
    return hasattr(model, 'contrast') and model.contrast.weight > 0


def check_types(settings: typing.Any, section: str) -> None:
    """Raises UserError for a field of a dataclass, or inside one, not of its declared type."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        hint, value = hints[field.name], getattr(settings, field.name)
        if not _fits(value, hint):
            raise UserError(
                f'{section}.{field.name}={value!r} is not {getattr(hint, "__name__", hint)}'
            )
        for inner in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(inner):
                check_types(inner, f'{section}.{field.name}')


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
    """A copy with these fields set: {'model.in_batch.logq': 'none'}.

    Raises:
      UserError: no such field.
    """
    experiment = copy.deepcopy(experiment)
    for name, value in overrides.items():
        *sections, field = name.split('.')
        part = experiment
        for section in sections:
            part = getattr(part, section) if _has(part, section) else None
        if not _has(part, field):
            raise UserError(f'the experiment has no field {name}')
        setattr(part, field, value)
    return experiment


def _has(part, name):
    return dataclasses.is_dataclass(part) and name in {f.name for f in dataclasses.fields(part)}


def to_record(experiment: config_lib.Experiment) -> dict:
    """JSON-able form of an experiment; the model's Config is named by module and class."""
    record = dataclasses.asdict(experiment)
    kind = type(experiment.model)
    record['model'] = {'type': f'{kind.__module__}:{kind.__qualname__}', **record['model']}
    return json.loads(json.dumps(record))


def from_record(record: dict) -> config_lib.Experiment:
    """Inverse of `to_record`."""
    record = dict(record)
    model = dict(record.pop('model'))
    module, _, name = model.pop('type').partition(':')
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise UserError(f'the run needs model {module}.{name}, which cannot be imported') from e
    return _rebuild(config_lib.Experiment, {**record, 'model': _rebuild(kind, model)})


def _rebuild(kind, values):
    hints = typing.get_type_hints(kind)
    unknown = values.keys() - {f.name for f in dataclasses.fields(kind)}
    if unknown:
        raise UserError(f'the run was made by another version of jaxrec: no field {min(unknown)}')
    made = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            value = _rebuild(hint, value)
        if isinstance(value, list):
            of = (typing.get_args(hint) or (None,))[0]
            value = tuple(_rebuild(of, v) if dataclasses.is_dataclass(of) else v for v in value)
        made[name] = value
    return kind(**made)


def flat(tree: dict, prefix: str = '') -> dict:
    """A nested record with one level: 'optim.learning_rate' -> value."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f'{prefix}{name}.')
        else:
            found[prefix + name] = value
    return found
