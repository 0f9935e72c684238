"""Changed fields of an experiment: 'model.dim=128' as text, as a mapping, and set."""

import ast
import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from jaxrec.cli import UserError
from jaxrec.config import Experiment


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
