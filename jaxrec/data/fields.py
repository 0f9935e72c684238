"""Fields of rows: which columns a ranking model sees, and their codes in one embedding table."""

import dataclasses

import numpy as np

from jaxrec.data.rows import Rows
from jaxrec.errors import UserError

KINDS = ('category', 'set', 'quantile', 'number')
TABLE = 'table'  # in `Encoder.sizes`
PREFIX = 'feature.'


@dataclasses.dataclass
class Field:
    """One column of `Rows` as a model sees it.

    kind        column                                    in a batch
    category    whole numbers                             int32 [B], codes
    set         T whole numbers from 1, padded with 0     int32 [B, T], codes, 0 = padding
    quantile    numbers; buckets of equally many          int32 [B], codes
                training rows
    number      numbers, standardised by mean and         float32 [B]; 0 where it is missing
                deviation of the training rows

    A code is a row of one table that all fields share. Row 0 is padding, then every vocabulary has
    its own rows: a value of the training rows each, and at last one for all other values (of a
    quantile: for missing ones). Values of fewer than `least` training rows count as others, which
    teaches that last row what a rare value is; with least = 1 no training row has it, unless it is
    looked up by a set with `of`.
    """

    # of the rows, their users or their items; or 'user', 'item' themselves; 'SET.CATEGORY', a set
    # with of='CATEGORY', is this category of the items that are members of a set of the user's
    column: str
    kind: str = 'category'
    least: int = 1  # category and set: training rows of a value that gets its own code
    size: int = 20  # quantile: buckets
    of: str = ''  # set: the category whose vocabulary it shares; '' = its own


def check_fields(fields: tuple[Field, ...]) -> None:
    """Raises UserError for a field that cannot be."""
    if not fields:
        raise UserError('task.fields is empty: name the columns that the model sees')
    kinds = {field.column: field.kind for field in fields}
    if len(kinds) < len(fields):
        raise UserError('task.fields names a column twice')
    for field in fields:
        name = f'field {field.column!r}'
        if field.kind not in KINDS:
            raise UserError(f'{name}: kind={field.kind!r} is not one of {", ".join(KINDS)}')
        if field.least < 1 or field.size < 1:
            raise UserError(f'{name}: least and size must be at least 1')
        if field.of and (field.kind != 'set' or kinds.get(field.of) != 'category'):
            raise UserError(
                f"{name}: of={field.of!r} is for a kind='set' and names a field of kind='category'"
            )


class Encoder:
    """Codes of the fields of any rows; vocabularies come from the training rows alone.

    Args:
      rows: all of them.
      fields: which columns.
      train: int64 [n], numbers of the training rows.

    Attributes:
      sizes: 'table': rows of the table; 'feature.NAME': how many codes the field has in a row, 0
        for a number.
      codes: of every field, its `Coding`.
      units: what every field is of, 'row', 'user' or 'item'.
      coded: of the fields of users and items, once and for all: by user, or by item from number 1.

    Raises:
      UserError: there is no such column, or it does not fit the field's kind.
    """

    def __init__(self, rows: Rows, fields: tuple[Field, ...], train: np.ndarray):
        check_fields(fields)
        if not len(train):
            raise UserError('there is no training row: check the days of the split')
        self._rows, self._fields = rows, fields
        self._counts = {
            'user': np.bincount(rows.users[train], minlength=rows.num_users),
            'item': np.bincount(rows.items[train] - 1, minlength=rows.num_items),
        }
        self._train = train
        self.codes, self.coded, self.units = {}, {}, {}
        next_row = 1
        for field in sorted(fields, key=lambda field: bool(field.of)):
            if field.of:
                width = _width(self._column(field)[0])
                self.codes[field.column] = dataclasses.replace(
                    self.codes[field.of], kind='set', width=width, of=field.of
                )
                continue
            self.codes[field.column], taken = self._fit(field, next_row)
            next_row += taken
        self.sizes = {TABLE: next_row}
        for field in sorted(fields, key=lambda field: bool(_parts(field))):
            column, self.units[field.column] = self._column(field)
            if _parts(field):
                self.coded[field.column] = self._members(field, column)
            elif self.units[field.column] != 'row':
                self.coded[field.column] = self.codes[field.column](column)
            self.sizes[PREFIX + field.column] = 0 if field.kind == 'number' else _width(column)

    def __call__(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """By field, int32 [n], [n, T] or float32 [n]: of the rows with these numbers."""
        owners = {'user': self._rows.users[index], 'item': self._rows.items[index] - 1}
        out = {}
        for field in self._fields:
            column, unit = self._column(field)
            if unit == 'row':
                out[field.column] = self.codes[field.column](column[index])
            else:
                out[field.column] = self.coded[field.column][owners[unit]]
        return out

    def _members(self, field, items):
        """Codes int32 [U, T] of a category of the items [U, T], 0 where there is none."""
        of, unit = field.of, self.units.get(field.of)
        if unit != 'item' or self.units[field.column] != 'user':
            raise UserError(
                f'field {field.column!r} is of={of!r}: that must be a field of items, and the set '
                'one of users'
            )
        own, missing = self.coded[of], self.codes[of].missing
        known = own[np.clip(items - 1, 0, len(own) - 1)]
        return np.where(items > len(own), missing, np.where(items > 0, known, 0)).astype(np.int32)

    def _column(self, field):
        name = (_parts(field) or (field.column,))[0]
        column, unit = self._rows.column(name)
        if (column.ndim == 2) != (field.kind == 'set'):
            holds = 'sets' if column.ndim == 2 else 'single values'
            raise UserError(
                f'column {field.column!r} holds {holds}: kind={field.kind!r} does not go with it'
            )
        if field.kind in ('category', 'set') and column.dtype.kind not in 'iu':
            raise UserError(
                f"column {field.column!r} holds numbers with fractions: use kind='quantile' or "
                "'number'"
            )
        return column, unit

    def _fit(self, field, first):
        """What makes codes of the column's values, and how many rows of the table it takes."""
        column, unit = self._column(field)
        width = _width(column)
        if unit == 'row':
            values, counts = column[self._train], np.ones(len(self._train), np.int64)
        else:
            there = self._counts[unit] > 0
            values, counts = column[there], self._counts[unit][there]
        if field.kind in ('category', 'set'):
            known = _vocabulary(values, counts, field)
            return Coding(field.kind, known, first, width), len(known) + 1
        values = values.astype(np.float64)
        real = ~np.isnan(values)
        values, counts = values[real], counts[real]
        if not len(values):
            raise UserError(f'column {field.column!r} has no value in the training rows')
        if field.kind == 'quantile':
            order = np.argsort(values, kind='stable')
            before = np.cumsum(counts[order])
            wanted = np.arange(1, field.size) / field.size * before[-1]
            edges = values[order][np.searchsorted(before, wanted)]
            return Coding(field.kind, edges, first, width), field.size + 1
        mean = np.average(values, weights=counts)
        deviation = np.sqrt(np.average((values - mean) ** 2, weights=counts))
        return Coding(field.kind, np.array([mean, deviation or 1.0]), first, width), 0


def _parts(field):
    """(set, category) of a field that is the category of a set's members, else ()."""
    name, dot, category = field.column.rpartition('.')
    return (name, category) if dot and category == field.of else ()


def _width(column):
    return 1 if column.ndim == 1 else column.shape[1]


def _vocabulary(values, counts, field):
    if field.kind == 'set':
        counts = np.broadcast_to(counts[:, None], values.shape)[values > 0]
        values = values[values > 0]
    known, place = np.unique(values, return_inverse=True)
    return known[np.bincount(place, weights=counts, minlength=len(known)) >= field.least]


@dataclasses.dataclass
class Coding:
    """How the values of a field become what is in a batch.

    Attributes:
      kind: of the field.
      known: category and set: its vocabulary, ascending; quantile: float64 edges; number: its mean
        and deviation, float64 [2].
      first: row of the table, of its first code.
      width: T of a set, else 1.
      of: of a set, the category whose vocabulary it shares; 'item': its members are item numbers.
    """

    kind: str
    known: np.ndarray
    first: int
    width: int
    of: str = ''

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """int32 [n], [n, T] or float32 [n], of values [n] or [n, T]."""
        if self.kind in ('category', 'set'):
            if not len(self.known):
                codes = np.full(values.shape, self.first, np.int32)
            else:
                at = np.minimum(np.searchsorted(self.known, values), len(self.known) - 1)
                at = np.where(self.known[at] == values, at, len(self.known))
                codes = (self.first + at).astype(np.int32)
            return np.where(values > 0, codes, 0) if self.kind == 'set' else codes
        values = values.astype(np.float64)
        if self.kind == 'quantile':
            bucket = np.searchsorted(self.known, values, side='right')
            bucket = np.where(np.isnan(values), len(self.known) + 1, bucket)
            return (self.first + bucket).astype(np.int32)
        mean, deviation = self.known
        return np.nan_to_num((values - mean) / deviation, nan=0.0).astype(np.float32)

    @property
    def about(self) -> dict:
        """All but `known`, JSON-ready."""
        return {'kind': self.kind, 'first': self.first, 'width': self.width, 'of': self.of}

    @property
    def missing(self) -> np.ndarray:
        """What a value that is not known becomes: [] or [T]."""
        if self.kind == 'category':
            return np.int32(self.first + len(self.known))
        values = np.zeros((1, self.width)) if self.kind == 'set' else np.array([np.nan])
        return self(values)[0]
