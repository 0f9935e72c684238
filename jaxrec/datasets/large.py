"""A Parquet log of more events than are wanted in memory, to Histories whose columns are files.

The log is read twice, a piece at a time. The first time gives all ids with their counts, and what
the numbers of each column are like. The second time each event, its ids as numbers, goes to one of
several files by its user; the k-core is found by counting over these files until nothing changes;
then each is sorted by itself and added to the columns. In memory are ids, a few numbers per user
and item, and the events of one piece or file. The result is that of `events.to_histories`.
"""

import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from jaxrec.data.histories import Histories
from jaxrec.data.ragged import EVENTS_AT_ONCE, Tally, blocks
from jaxrec.datasets import events, raw_ids, tabular
from jaxrec.errors import UserError

_FILES = 256  # at most; of a very large log they are larger

Batches = Callable[[], Iterator[tuple[str, int, pa.RecordBatch]]]


def to_histories(
    batches: Batches,
    name: str,
    scratch: pathlib.Path,
    *,
    user_col: str,
    item_col: str,
    time_col: str = '',
    features: tuple[str, ...] = (),
    min_user: int = 0,
    min_item: int = 0,
) -> Histories:
    """Filters, numbers and sorts the events of a table.

    Args:
      batches: gives the table from its start, each time it is called: file, row, piece.
      name: data set name, for messages.
      scratch: empty folder for the result's columns and for as many bytes again; the histories
        are good as long as it is there.
      user_col, item_col, time_col, features: see `tabular.Pieces`.
      min_user, min_item: see `events.to_histories`.

    Raises:
      UserError: as `tabular.Pieces` and `events.to_histories`.
    """
    columns = {f'feature.{c}': _Numbers(c, name, dates=False) for c in features}
    if time_col:
        columns['time'] = _Numbers(time_col, name, dates=True)
    users, items, of_ids = Tally(), Tally(), {}
    for file, row, batch in batches():
        for tally, column in ((users, user_col), (items, item_col)):
            codes, values = _ids(batch, column, file, row)
            if values.dtype.kind != of_ids.setdefault(column, values.dtype.kind):
                with raw_ids.naming(column, name):
                    raise raw_ids.two_kinds()
            counts = np.bincount(codes, minlength=len(values))
            tally.add(values[counts > 0], counts[counts > 0])
        for numbers in columns.values():
            numbers.look(batch, file, row)
    (user_ids, per_user), (item_ids, _) = users.result(), items.result()
    if not len(user_ids):
        raise UserError(f'no events in {name}')

    offsets = np.concatenate([[0], np.cumsum(per_user)])
    size = max(EVENTS_AT_ONCE, int(offsets[-1]) // _FILES)
    ranges = list(blocks(offsets, size))
    fields = {'user': np.int32, 'item': np.int32} | {c: n.dtype for c, n in columns.items()}
    kinds = np.dtype(list(fields.items()))
    _check_space(scratch, 2 * int(offsets[-1]) * kinds.itemsize)  # these files and the columns
    paths = [scratch / f'events.{n}' for n in range(len(ranges))]
    for file, row, batch in batches():
        rows = np.empty(len(batch), kinds)
        for field, column, ids in (('user', user_col, user_ids), ('item', item_col, item_ids)):
            codes, values = _ids(batch, column, file, row)
            rows[field] = np.searchsorted(ids, values).astype(np.int32)[codes]
        for column, numbers in columns.items():
            rows[column] = numbers.read(batch, file, row)
        _append(rows, [r.stop for r in ranges], paths)

    keep_user, keep_item, per_user = _k_core(
        paths, kinds, ranges, per_user, len(item_ids), min_user, min_item
    )
    if not keep_user.any():
        raise events.nothing_left(name, min_user, min_item)
    out, at = _columns(scratch, kinds, int(per_user[keep_user].sum())), 0
    number = np.cumsum(keep_item, dtype=np.int32)  # items are numbered from 1
    for path in paths:
        rows = np.fromfile(path, kinds)
        rows = rows[keep_user[rows['user']] & keep_item[rows['item']]]
        order = events.time_order(rows['user'], rows['time'] if time_col else None)
        rows = rows if order is None else rows[order]
        place = slice(at, at + len(rows))
        out['item'][place], at = number[rows['item']], place.stop
        for column in columns:
            timed = column == 'time' and len(rows)
            out[column][place] = events.integer_times(rows[column], name) if timed else rows[column]
        path.unlink()
    return Histories(
        items=out['item'],
        offsets=np.concatenate([[0], np.cumsum(per_user[keep_user])]),
        user_ids=user_ids[keep_user],
        item_ids=item_ids[keep_item],
        times=out['time'] if time_col else None,
        features={feature: out[f'feature.{feature}'] for feature in features},
        name=name,
    )


def _check_space(folder: pathlib.Path, need: int) -> None:
    """Raises OSError if so many bytes do not fit: a mapped file could not say so."""
    free = shutil.disk_usage(folder).free
    if need > free:
        reason = f'{os.strerror(errno.ENOSPC)} ({need >> 20} MiB needed, {free >> 20} MiB free)'
        raise OSError(errno.ENOSPC, reason)


class _Numbers:
    """A numeric column of which only pieces are seen: one dtype for all, as in `tabular`."""

    def __init__(self, column: str, name: str, dates: bool):
        self._where, self._dates = (column, name), dates
        self._kinds, self._whole, self._fine = set(), True, False
        self._most = {'i': 0.0, 'f': 0.0}  # by kind of a piece

    def look(self, batch: pa.RecordBatch, file: str, row: int) -> None:
        """Takes in a piece, of which nothing but its kind is kept."""
        values = self._values(batch, file, row)
        self._kinds.add(values.dtype.kind)
        if values.dtype.kind == 'M':
            self._fine |= bool((values.astype('datetime64[us]') != values).any())
            return
        most = float(np.nanmax(np.abs(values.astype(np.float64)), initial=0))
        self._most[values.dtype.kind] = max(self._most[values.dtype.kind], most)
        if values.dtype.kind == 'f':
            self._whole &= bool((values % 1 == 0).all())

    @property
    def dtype(self) -> type:
        """int64 if every value is whole, else float64."""
        if {'M'} < self._kinds:
            raise tabular.mixed(*self._where)
        if {'i', 'f'} <= self._kinds:
            tabular.check_mixable(self._most['i'], *self._where)
        return np.int64 if 'f' not in self._kinds or self._all_whole else np.float64

    def read(self, batch: pa.RecordBatch, file: str, row: int) -> np.ndarray:
        """A piece in that dtype; dates count micro- or, if one needs them, nanoseconds."""
        values = self._values(batch, file, row)
        if values.dtype.kind == 'M':
            values = values.astype(f'datetime64[{"ns" if self._fine else "us"}]')
        return values.astype(self.dtype)

    @property
    def _all_whole(self):
        return self._whole and max(self._most.values()) < 2**53

    def _values(self, batch, file, row):
        column = self._where[0]
        return tabular.numbers(batch.column(column), column, file, row, dates=self._dates)


def _ids(batch, column, name, row) -> tuple[np.ndarray, np.ndarray]:
    """Codes [n] of an id column and the values that they stand for."""
    ids = tabular.checked_ids(batch, column, name, row)
    return ids.indices.to_numpy(zero_copy_only=False), raw_ids.plain(ids.dictionary, text=False)


def _append(rows: np.ndarray, ends: list[int], paths: list[pathlib.Path]) -> None:
    """Adds rows to the files of their users, in their order; file n ends before user ends[n]."""
    which = np.searchsorted(ends, rows['user'], side='right')
    rows = rows[np.argsort(which, kind='stable')]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(which, minlength=len(paths)))])
    for path, start, end in zip(paths, bounds[:-1], bounds[1:], strict=True):
        with open(path, 'ab') as file:
            rows[start:end].tofile(file)


def _k_core(paths, kinds, ranges, per_user, items, min_user, min_item):
    """bool [users], bool [items] that stay, and int64 [users] events of each that do."""
    keep_user, keep_item = np.ones(len(per_user), bool), np.ones(items, bool)
    while max(min_user, min_item) > 1:
        per_user, per_item = np.zeros_like(per_user), np.zeros(items, np.int64)
        for path, some in zip(paths, ranges, strict=True):
            rows = np.fromfile(path, kinds)
            user, item = rows['user'] - some.start, rows['item']
            stay = keep_user[some][user] & keep_item[item]
            per_user[some] += np.bincount(user[stay], minlength=some.stop - some.start)
            per_item += np.bincount(item[stay], minlength=items)
        before = int(keep_user.sum() + keep_item.sum())
        keep_user &= (per_user >= min_user) & (per_user > 0)
        keep_item &= (per_item >= min_item) & (per_item > 0)
        if keep_user.sum() + keep_item.sum() == before:
            break
    return keep_user, keep_item, per_user


def _columns(scratch, kinds, count) -> dict[str, np.ndarray]:
    """Files for the columns of `count` events."""
    wanted = {name: kinds[name] for name in kinds.names if name != 'user'}
    if 'time' in wanted:
        wanted['time'] = np.int64
    return {
        name: np.memmap(scratch / f'column.{n}', kind, 'w+', shape=(count,))
        for n, (name, kind) in enumerate(wanted.items())
    }
