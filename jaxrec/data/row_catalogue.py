"""A catalogue of rows: what a run keeps of them so that new ones are scored without the data."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxrec.data import stored
from jaxrec.data.catalogue import find, opened
from jaxrec.data.fields import Coding, Encoder
from jaxrec.errors import UserError

_KNOWN, _CODED = 'known.', 'coded.'
_ABOUT = ('sizes', 'units')  # in meta.json as they are


@dataclasses.dataclass
class RowCatalogue:
    """Codes of the fields of rows that are not in the data, by raw values.

    Attributes:
      user_ids, item_ids: raw ids, see `Rows`.
      data_hash: of the data.
      sizes: of the problem, which the model is made for.
      codes, units, coded: see `fields.Encoder`.
      name: of the data set, for messages.
    """

    KIND: ClassVar[str] = 'row-catalogue'

    user_ids: np.ndarray
    item_ids: np.ndarray
    data_hash: str
    sizes: dict[str, int]
    codes: dict[str, Coding]
    units: dict[str, str]
    coded: dict[str, np.ndarray]
    name: str = ''

    @classmethod
    def of(cls, encode: Encoder, rows: Any, data_hash: str, sizes: dict) -> 'RowCatalogue':
        """Of what `encode` has learnt of `rows`."""
        ids = rows.user_ids, rows.item_ids
        return cls(*ids, data_hash, sizes, encode.codes, encode.units, encode.coded, rows.name)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """By field, int32 [n], [n, T] or float32 [n], as `fields.Encoder` gives it.

        Args:
          rows: values by column, see `Scorer.score`.

        Raises:
          UserError: a value is missing or does not fit, or a user or item is not in the data.
        """
        owners = {unit: self._owners(rows, unit) for unit in ('user', 'item')}
        return {name: self._column(rows, name, owners) for name in self.codes}

    def content_hash(self) -> str:
        """sha256 over every column; independent of file format and platform."""
        return stored.content_hash(self.KIND, self.columns())

    def statistics(self) -> dict:
        """How many users and items the data have."""
        return {'users': len(self.user_ids), 'items': len(self.item_ids)}

    def save(self, folder: pathlib.Path) -> None:
        """Writes the columns and meta.json, see `stored.save`."""
        codes = {name: one.about for name, one in self.codes.items()}
        about = {name: getattr(self, name) for name in _ABOUT}
        stored.save(self, folder, {'of': self.data_hash, 'codes': codes, **about})

    @classmethod
    def load(cls, folder: pathlib.Path) -> 'RowCatalogue':
        """Opens a folder written by `save`; columns are memory-mapped, read-only.

        Raises:
          UserError: a file of it is missing, damaged or of another kind.
        """

        def made(columns, name, meta):
            known, coded = stored.named(columns, _KNOWN), stored.named(columns, _CODED)
            codes = {field: Coding(known=known[field], **c) for field, c in meta['codes'].items()}
            about = {one: meta[one] for one in _ABOUT}
            return cls(
                **columns, **about, data_hash=meta['of'], codes=codes, coded=coded, name=name
            )

        return opened(folder, cls.KIND, made)

    def columns(self) -> dict[str, np.ndarray]:
        """Everything that is stored, by the name of its file."""
        columns = {'user_ids': self.user_ids, 'item_ids': self.item_ids}
        columns |= {_KNOWN + name: codes.known for name, codes in sorted(self.codes.items())}
        columns |= {_CODED + name: column for name, column in sorted(self.coded.items())}
        return {name: np.ascontiguousarray(column) for name, column in columns.items()}

    def _owners(self, rows, unit):
        """int64 [n], of the users or items of the rows, -1 where it is None."""
        given = _given(rows, unit)
        return np.array([-1 if raw is None else self._find(unit, raw) for raw in given], np.int64)

    def _find(self, unit, raw):
        """0-based number of a user or an item."""
        found = find(self.user_ids if unit == 'user' else self.item_ids, raw)
        if found is None:
            raise UserError(
                f'{unit} {raw!r} is not in the data; give {unit}=None for one that is new'
            )
        return found

    def _column(self, rows, name, owners):
        codes, unit = self.codes[name], self.units[name]
        column = np.repeat(codes.missing[None], len(rows), 0)
        if unit != 'row':
            known = owners[unit] >= 0
            column[known] = self.coded[name][owners[unit][known]]
        if name in owners:
            return column
        given = _given(rows, name) if unit == 'row' else [row.get(name) for row in rows]
        there = np.array([value is not None for value in given], bool)
        if there.any():  # a field of a user or an item is as in the data, unless the row has it
            values = [value for value in given if value is not None]
            if codes.of == 'item' and all(isinstance(value, list | tuple) for value in values):
                values = [[self._find('item', raw) + 1 for raw in value] for value in values]
            column[there] = codes(_values(codes, name, values))
        return column


def _given(rows, name):
    """The values of a column that every row must have."""
    for n, row in enumerate(rows):
        if name not in row:
            raise UserError(f'row {n + 1} has no {name!r}; give None where it is not known')
    return [row[name] for row in rows]


def _values(codes, name, given):
    """[n] or [n, T] of a field's values as rows give them."""
    if codes.kind == 'set':
        wanted = f'a list of up to {codes.width} {"items" if codes.of == "item" else "numbers"}'
        if not all(isinstance(one, list | tuple) and len(one) <= codes.width for one in given):
            raise UserError(f'{name!r} must be {wanted}, or None')
        given = [[*one, *[0] * (codes.width - len(one))] for one in given]
    whole = codes.kind in ('category', 'set')
    flat = [member for one in given for member in one] if codes.kind == 'set' else given
    values = np.array(given) if all(map(_is_number, flat)) else np.array('')
    if values.dtype.kind not in ('iu' if whole else 'iuf'):
        raise UserError(f'{name!r} must be {"whole numbers" if whole else "a number"}, or None')
    return values


def _is_number(value):
    number = isinstance(value, int | float | np.integer | np.floating)
    return number and not isinstance(value, bool)
