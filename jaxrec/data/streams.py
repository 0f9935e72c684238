"""Streams: the rows of every user in order of time, in windows that models of a past learn from.

A window is some rows to predict, its targets, after earlier rows of the same user, its context. Of
a row the window says how many rows of it are its past. Frozen, that is what was there when the part
of the data began: nothing that happens within the part is known to any of its rows. Streaming, it
is every earlier row with its labels. In training it is always the latter.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxrec.data.ragged import ranges, scatter
from jaxrec.data.rows import RowBatches, Rows, row_batch
from jaxrec.errors import UserError

HISTORIES = ('frozen', 'streaming')
_TARGETS = 128  # of a window at most
_STRAY = 1e-3  # share of the rows that may be later than one of their user on a later day


@dataclasses.dataclass
class Windows:
    """W windows; rows are places in `Streams.order`.

    Attributes:
      first, told: int64 [W]; the context is first..told.
      start, end: int64 [W]; the targets are start..end.
      frozen: whether targets see the context alone, not each other.
    """

    first: np.ndarray
    told: np.ndarray
    start: np.ndarray
    end: np.ndarray
    frozen: bool

    def __len__(self) -> int:
        return len(self.start)

    @property
    def longest(self) -> int:
        """Rows of the longest window."""
        return int((self.told - self.first + self.end - self.start).max())


class Streams:
    """The rows of every user, oldest first.

    Args:
      rows: all of them.
      encode: their features, see `fields.Encoder`.
      labels: T names.
      day: [N], the column by which rows are split.

    Attributes:
      order: int64 [N], numbers of the rows, user by user, day by day.
      stray: how many rows come after one of their user on a later day, as around midnight in logs
        whose day and time are not of one clock; their day counts.

    Raises:
      UserError: more than one in a thousand does.
    """

    def __init__(
        self,
        rows: Rows,
        encode: Callable[[np.ndarray], dict[str, np.ndarray]],
        labels: tuple[str, ...],
        day: np.ndarray,
    ):
        self.rows, self.encode, self.labels = rows, encode, labels
        by_time = np.argsort(rows.users, kind='stable')
        self.order = np.lexsort((day, rows.users))
        users = rows.users[by_time]
        back = (users[1:] == users[:-1]) & (day[by_time][1:] < day[by_time][:-1])
        self.stray = int(back.sum())
        if self.stray > _STRAY * len(rows):
            row = int(by_time[1:][back][0])
            raise UserError(
                f'row {row + 1} is later than one of its user on a later day: task.day must not '
                'decrease with time where a model sees the past'
            )
        self._day = day
        counts = np.bincount(rows.users, minlength=rows.num_users)
        self._begins = np.cumsum(counts) - counts  # of a user's rows

    def windows(self, begin: int | None, end: int | None, *, context: int, frozen: bool) -> Windows:
        """Windows whose targets are the rows of days begin <= day < end, each once; None = open.

        Args:
          begin, end: days.
          context: most rows of the past that a window has.
          frozen: see the module.
        """
        part, last = self._until(begin, 0), self._until(end, len(self.order))
        pieces = -(-(last - part) // _TARGETS)
        user = np.repeat(np.arange(len(pieces)), pieces)
        start = part[user] + _TARGETS * ranges(np.zeros_like(pieces), pieces)
        told = part[user] if frozen else start
        first = np.maximum(told - context, self._begins[user])
        return Windows(first, told, start, np.minimum(start + _TARGETS, last[user]), frozen)

    def batch(self, windows: Windows, chosen: np.ndarray, size: int, length: int) -> dict:
        """The windows with the numbers `chosen` as a batch of `size` by `length` rows.

        A window's rows come first in its line, what is beyond them is 0 everywhere.

        Returns:
          features, labels, mask: of `row_batch`, each [size, length, ..]; weights: float32 [size,
          length], 1 on targets; sees: int32 [size, length], the past of a row is that many rows
          from the window's first; rows: int64 [size, length], numbers of the targets, else -1.
        """
        first, told = windows.first[chosen], windows.told[chosen]
        start, count = windows.start[chosen], windows.end[chosen] - windows.start[chosen]
        before = told - first
        line = length * np.arange(len(chosen))
        place = np.concatenate([ranges(line, before), ranges(line + before, count)])
        target = np.repeat([False, True], [before.sum(), count.sum()])
        index = self.order[np.concatenate([ranges(first, before), ranges(start, count)])]
        sees = place % length
        if windows.frozen:
            sees = np.where(target, before[place // length], sees)
        flat = row_batch(self.rows, self.encode, self.labels, index, len(index))
        fill = lambda x: scatter((size, length), place, x, x.dtype)  # noqa: E731
        return {
            'features': {name: fill(column) for name, column in flat['features'].items()},
            'labels': fill(flat['labels']),
            'mask': fill(flat['mask']),
            'weights': fill(target.astype(np.float32)),
            'sees': fill(sees.astype(np.int32)),
            'rows': fill(np.where(target, index, -1) + 1) - 1,
        }

    def _until(self, day, everything):
        """int64 [U], the place in `order` after each user's rows of earlier days."""
        if day is None:
            return self._begins + (np.diff([*self._begins, len(self.order)]) if everything else 0)
        earlier = self.rows.users[self._day < day]
        return self._begins + np.bincount(earlier, minlength=len(self._begins))


class StreamBatches(RowBatches):
    """Training batches of windows, otherwise as `RowBatches`; a row's past are all earlier ones.

    Args:
      streams: of all rows.
      until: the first day that is not learnt.
      context: most rows of the past that a window has.
      batch_rows, seed, process: see `RowBatches`; a row of the batch is a window.
    """

    def __init__(
        self,
        streams: Streams,
        until: int,
        *,
        context: int,
        batch_rows: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
    ):
        self._streams = streams
        self._windows = streams.windows(None, until, context=context, frozen=False)
        learnt = streams.order[ranges(self._windows.start, self._windows.end - self._windows.start)]
        super().__init__(
            streams.rows,
            streams.encode,
            streams.labels,
            np.arange(len(self._windows)),
            batch_rows=batch_rows,
            seed=seed,
            process=process,
            learnt=learnt,
        )
        self._length = self._windows.longest
        self.fill = len(learnt) / (self.steps_per_epoch * batch_rows * self._length)

    def _made(self, chosen, size):
        batch = self._streams.batch(self._windows, chosen, size, self._length)
        del batch['rows']
        return batch
