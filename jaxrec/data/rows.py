"""Rows: one impression each, with what was known before it and what came of it, as flat columns."""

import dataclasses
import os
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from jaxrec import problem, rng
from jaxrec.data import stored
from jaxrec.errors import UserError

_GROUPS = {'features': 'row', 'user_features': 'user', 'item_features': 'item', 'labels': 'label'}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a file make rows of it, besides user, item and time.

    Attributes:
      labels: outcomes, 0 or 1; missing = not known.
      numbers: quantities; missing = NaN.
      categories: a word or a number each; missing = a category of its own.
      sets: any number of words each.
      sets_of_items: the same of raw item ids.
      quantities: whether labels are any numbers, not 0 and 1.
      domain: whether items have the domain of the column data.domain_col, see `data.domains`.
    """

    labels: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    sets_of_items: tuple[str, ...] = ()
    quantities: bool = False
    domain: bool = False


@dataclasses.dataclass
class Rows:
    """Impressions of all users, oldest first.

    A feature is of the row, or of its user or item; its name is of one of them only. Whole numbers
    are categories, float32 are quantities (NaN = missing), int32 [.., T] are sets of up to T
    numbers from 1, padded with 0; utf-8 bytes are the names of domains.

    Attributes:
      users: int32 [N], 0-based numbers.
      items: int32 [N], numbers 1..num_items.
      times: int64 [N] ascending, in the source's unit.
      user_ids: [U]; raw id of user u, int64 or utf-8 bytes, ascending.
      item_ids: [num_items]; raw id of item i at i - 1, likewise.
      features: columns [N] or [N, T].
      user_features: columns [U] or [U, T].
      item_features: columns [num_items] or [num_items, T]; item i's value is at i - 1.
      labels: float32 [N]; NaN where the outcome is not known.
      name: data set name, for messages.
    """

    KIND: ClassVar[str] = 'rows'

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    user_features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    item_features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    labels: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    name: str = ''

    def __len__(self) -> int:
        return len(self.users)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def column(self, name: str) -> tuple[np.ndarray, str]:
        """A feature's column, and what it is of: 'row', 'user' or 'item'.

        'user' and 'item' are the numbers of users and items themselves.

        Raises:
          UserError: there is none of this name.
        """
        if name == 'user':
            return np.arange(self.num_users), 'user'
        if name == 'item':
            return np.arange(1, self.num_items + 1), 'item'
        groups = (self.features, 'row'), (self.user_features, 'user'), (self.item_features, 'item')
        for columns, unit in groups:
            if name in columns:
                return columns[name], unit
        there = ', '.join(['user', 'item', *(n for columns, _ in groups for n in sorted(columns))])
        raise UserError(f'{self.name or "the data"} has no column {name!r}; it has {there}')

    def outcomes(self, labels: tuple[str, ...], index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels float32 [n, T] of the rows `index`, 0 where unknown, and the mask of the known.

        Raises:
          UserError: there is no label of this name.
        """
        for name in labels:
            if name not in self.labels:
                there = ', '.join(sorted(self.labels))
                raise UserError(f'{self.name or "the data"} has no label {name!r}; it has {there}')
        values = np.stack([self.labels[name][index] for name in labels], axis=1)
        known = ~np.isnan(values)
        return np.where(known, values, np.float32(0)), known.astype(np.float32)

    def content_hash(self) -> str:
        """sha256 over every column; independent of file format and platform."""
        return stored.content_hash(self.KIND, self.columns())

    def statistics(self) -> dict:
        """Rows, users and items that have any, mean length, and every label's mean where known."""
        users = int(np.count_nonzero(np.bincount(self.users, minlength=1)))
        means = {}
        for name, column in sorted(self.labels.items()):
            known = ~np.isnan(column)
            mean = np.mean(column, where=known, dtype=np.float64) if known.any() else None
            means[name] = None if mean is None else float(mean)
        return {
            'rows': len(self),
            'users': users,
            'items': int(np.count_nonzero(np.bincount(self.items, minlength=1))),
            'mean_length': len(self) / max(users, 1),
            'labels': means,
        }

    def save(self, folder: str | os.PathLike, about: dict | None = None) -> dict:
        """Writes the columns and meta.json, see `stored.save`; returns what meta.json holds."""
        return stored.save(self, folder, about)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> 'Rows':
        """Opens a folder written by `save`; columns are memory-mapped, read-only.

        Raises:
          ValueError: the folder holds another kind of data.
        """
        stored_columns, title = stored.load(folder, cls.KIND)
        columns, named = {}, {group: {} for group in _GROUPS}
        for name, column in stored_columns.items():
            unit, dot, own = name.partition('.')
            if dot:
                group = next(g for g, prefix in _GROUPS.items() if prefix == unit)
                named[group][own] = column
            else:
                columns[name] = column
        return cls(**columns, **named, name=title)

    def columns(self) -> dict[str, np.ndarray]:
        """Everything that is stored, by the name of its file."""
        names = ('users', 'items', 'times', 'user_ids', 'item_ids')
        columns = {name: getattr(self, name) for name in names}
        for group, prefix in _GROUPS.items():
            columns |= {f'{prefix}.{name}': c for name, c in sorted(getattr(self, group).items())}
        return {name: np.ascontiguousarray(column) for name, column in columns.items()}


def row_batch(
    rows: Rows,
    encode: Callable[[np.ndarray], dict[str, np.ndarray]],
    labels: tuple[str, ...],
    index: np.ndarray,
    size: int,
) -> dict:
    """The rows `index` as a batch of `size`; what is beyond them is 0 everywhere.

    Returns:
      features: {name: int32 or float32 [size, ..]} of `encode(index)`; labels: float32 [size, T];
      mask: float32 [size, T], 1 where a label is known; weights: float32 [size], 1 on real rows.
    """
    values, mask = rows.outcomes(labels, index)

    def filled(x):
        missing = size - len(x)
        return np.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)]) if missing else x

    return {
        'features': {name: filled(column) for name, column in encode(index).items()},
        'labels': filled(values),
        'mask': filled(mask),
        'weights': filled(np.ones(len(index), np.float32)),
    }


class RowBatches(problem.Batches):
    """Training batches of rows: each once an epoch, in an order drawn from (seed, epoch).

    The rows are spread evenly over the epoch's steps, so no batch is a tiny rest.

    Args:
      rows: all of them.
      encode: features of the rows with the numbers given, see `fields.Encoder`.
      labels: T names.
      index: int64 [n], numbers of the training rows.
      batch_rows: B, over all processes.
      seed: of the order.
      process: (index, count) of this process; it gets its slice of the batch.
      learnt: int64 [m], numbers of the rows that are learnt, where `index` is of something else.

    Raises:
      UserError: nothing to train on, or a batch that does not divide over the processes.
    """

    def __init__(
        self,
        rows: Rows,
        encode: Callable[[np.ndarray], dict[str, np.ndarray]],
        labels: tuple[str, ...],
        index: np.ndarray,
        *,
        batch_rows: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
        learnt: np.ndarray | None = None,
    ):
        if batch_rows < 1 or batch_rows % process[1]:
            raise UserError(
                f'train.batch_rows={batch_rows} must be at least 1 and divide over {process[1]} '
                'processes'
            )
        if not len(index):
            raise UserError('there is no training row: check the days of the split')
        self._rows, self._encode, self._labels = rows, encode, labels
        self._index, self._seed, self._process = index, seed, process
        self.rows = batch_rows
        self.examples_per_epoch = len(index)
        self.targets_per_epoch = int(
            rows.outcomes(labels, index if learnt is None else learnt)[1].sum(dtype=np.float64)
        )
        self.steps_per_epoch = -(-len(index) // batch_rows)
        self.fill = len(index) / (self.steps_per_epoch * batch_rows)

    def __call__(self, step: int) -> problem.Batch:
        """Batch number `step`, this process's rows of it; see `row_batch`."""
        epoch, part_of_epoch = self.place(step, len(self._index))
        number, count = self._process
        own = self.rows // count
        chosen = self.of_epoch(epoch, self._order)[part_of_epoch][number * own : (number + 1) * own]
        return self._made(chosen, own)

    def _made(self, chosen, size):
        return row_batch(self._rows, self._encode, self._labels, chosen, size)

    def _order(self, epoch):
        return rng.host(self._seed, rng.ORDER, epoch).permutation(self._index)
