"""Parameters of generated data sets, as `--dataset=NAME:users=1000,seed=3` gives them."""

import dataclasses
from typing import Any

from jaxrec.config import LARGEST_SEED
from jaxrec.errors import UserError


def parse(kind: type, name: str, argument: str) -> Any:
    """A dataclass of numbers from 'users=1000,seed=3'; what is not named keeps its default.

    Args:
      kind: the dataclass, which has a seed.
      name: of the data set, for messages.
      argument: what follows its colon.

    Raises:
      UserError: unknown parameter, or not a number, or a seed out of range.
    """
    values = {}
    kinds = {f.name: f.type for f in dataclasses.fields(kind)}
    for part in filter(None, argument.split(',')):
        field, _, value = part.partition('=')
        if field not in kinds:
            raise UserError(f'{name} has no parameter {field!r}; it has {", ".join(kinds)}')
        try:
            values[field] = kinds[field](value)
        except ValueError as e:
            raise UserError(f'{name}:{part} is not {kinds[field].__name__}') from e
    made = kind(**values)
    if not 0 <= made.seed <= LARGEST_SEED:
        raise UserError(f'{name}:seed={made.seed} is not in [0, {LARGEST_SEED}]')
    return made
