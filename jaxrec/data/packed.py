"""Batches as pure functions of (seed, step): packed training rows, bucketed evaluation batches.

A training row holds the windows of several users side by side, so hardly anything is computed on
padding; `segments` keeps them apart in attention and `positions` counts from each user's end.
"""

import numpy as np

from jaxrec import rng
from jaxrec.data.features import Codes
from jaxrec.data.histories import Histories
from jaxrec.data.negatives import UnseenNegatives
from jaxrec.data.positives import Users
from jaxrec.data.ragged import part, ranges, scatter
from jaxrec.data.rewards import Rewarder
from jaxrec.errors import UserError
from jaxrec.problem import Batches


class TrainBatches(Batches):
    """Packed batches: every training window exactly once an epoch, in a new order each epoch.

    Which lengths share a row is fixed once (first-fit decreasing over the histogram of window
    lengths, so rows are nearly full and their number does not change from epoch to epoch); which
    users take those places, and the order of the rows, is drawn anew from (seed, epoch).

    Args:
      histories: the events.
      train_ends: int64 [U], absolute end of each user's training events.
      max_len: L, tokens per row and longest window.
      rows: B, rows per global batch.
      seed: of the order and of the negatives.
      windows: 'last' trains on each user's newest L targets, 'all' on every target, in
        consecutive windows of L counted from the user's end, 'prefixes' on every prefix of the
        user's newest L events, without targets.
      unseen_negatives: k > 0 adds negatives drawn uniformly from the items outside the user's
        whole training history (the SASRec authors' sampler).
      codes: of features, `codes.Encoder.events`.
      similar: int32 [num_items + 1], the item most like each (`positives.similar_items`).
      rewards: of events.
      extras: what else a batch has of its users.
      numbered: whether batches say whose the events are; there are no extras then.
      process: (index, count) of this process; it gets its slice of the rows.
    """

    def __init__(
        self,
        histories: Histories,
        train_ends: np.ndarray,
        *,
        max_len: int,
        rows: int,
        seed: int,
        windows: str = 'last',
        unseen_negatives: int = 0,
        codes: Codes | None = None,
        similar: np.ndarray | None = None,
        rewards: Rewarder | None = None,
        extras: Users | None = None,
        numbered: bool = False,
        process: tuple[int, int] = (0, 1),
    ):
        if rows % process[1]:
            raise UserError(f'train.batch_rows={rows} does not divide over {process[1]} processes')
        self._histories, self._max_len, self._seed = histories, max_len, seed
        self._codes, self._similar, self._rewards = codes, similar, rewards
        self._extras, self._numbered, self._process = extras, numbered, process
        self._ahead = windows != 'prefixes'  # whether there are targets
        self._starts, self._lengths, self._users = _windows(
            histories.offsets, train_ends, max_len, windows
        )
        if not len(self._starts):
            raise UserError('no user has two training events: there is nothing to train on')
        slot_lengths, self._row_slots = pack_lengths(self._lengths, max_len)
        self._slot_order = np.argsort(slot_lengths, kind='stable')
        self.rows = rows
        self.examples_per_epoch = len(self._lengths)
        self.targets_per_epoch = int(self._lengths.sum())
        self.rows_per_epoch = len(self._row_slots) - 1
        self.steps_per_epoch = -(-self.rows_per_epoch // rows)
        if extras is not None:
            segments, together = (
                np.diff(self._row_slots),
                -(-self.rows_per_epoch // self.steps_per_epoch),
            )
            extras.expect(segments, together, self._starts + self._lengths)
        self._negatives = None
        if unseen_negatives:
            self._negatives = UnseenNegatives(histories, train_ends, unseen_negatives)

    @property
    def fill(self) -> float:
        """Share of the tokens of all rows that are real."""
        return self.targets_per_epoch / (self.rows_per_epoch * self._max_len)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, this process's rows of it.

        Returns:
          items, targets, segments, positions: int32 [B / processes, L] (item 0 and segment 0 =
          padding, positions 0..L-1 with L-1 the newest event; prefixes have no targets), weights:
          float32 [.., L], 1 on real targets. If asked for: negatives int32 [.., L, k]; features
          {column: codes int32 [.., L] or [.., L, T]}; similar int32 [.., L]; rewards float32
          [.., L] of the targets and feedback int32 [.., L] on the items (`rewards.Rewarder`).
          Where `numbered`, users: int32 [.., L] from 0.
        """
        epoch, part_of_epoch = self.place(step, self.rows_per_epoch)
        row_order, window_of_slot = self.of_epoch(epoch, self._order)
        chosen = row_order[part_of_epoch]
        (index, count), rows = self._process, self.rows
        if self._negatives is None and self._extras is None:  # else they are of the whole batch
            rows //= count
            chosen = chosen[index * rows : (index + 1) * rows]
            index, count = 0, 1
        slots_per_row = self._row_slots[chosen + 1] - self._row_slots[chosen]
        slots = ranges(self._row_slots[chosen], slots_per_row)
        windows = window_of_slot[slots]
        row = np.repeat(np.arange(len(chosen)), slots_per_row)
        index_in_row = ranges(np.zeros_like(slots_per_row), slots_per_row)
        lengths = self._lengths[windows]
        before = np.cumsum(lengths) - lengths  # tokens before each window, over the batch
        row_first = np.cumsum(slots_per_row) - slots_per_row
        column = before - np.repeat(before[row_first], slots_per_row)

        shape = (rows, self._max_len)
        source = ranges(self._starts[windows], lengths)
        place = ranges(row * self._max_len + column, lengths)
        batch = {
            'items': scatter(shape, place, self._histories.items[source]),
            'segments': scatter(shape, place, np.repeat(index_in_row + 1, lengths)),
            'positions': scatter(shape, place, ranges(self._max_len - lengths, lengths)),
        }
        if self._ahead:
            batch['targets'] = scatter(shape, place, self._histories.items[source + 1])
        batch['weights'] = (batch['segments'] > 0).astype(np.float32)
        if self._codes is not None:
            coded = self._codes(source).items()
            batch['features'] = {name: scatter(shape, place, codes) for name, codes in coded}
        if self._similar is not None:
            batch['similar'] = self._similar[batch['items']]
        if self._rewards is not None:
            batch['rewards'] = scatter(shape, place, self._rewards(source + 1), np.float32)
            batch['feedback'] = scatter(shape, place, self._rewards.feedback(source))
        if self._numbered:
            batch['users'] = scatter(shape, place, np.repeat(self._users[windows], lengths))
        if self._negatives is not None:
            generator = rng.host(self._seed, rng.NEGATIVES, step)
            drawn = self._negatives(generator, np.repeat(self._users[windows], lengths))
            batch['negatives'] = scatter(shape, place, drawn)
        if self._extras is not None:
            batch |= self._extras(step, self._users[windows], self._starts[windows] + lengths)
        return part(batch, index, count)

    def shapes(self) -> list[dict]:
        """A batch of every shape."""
        return with_extras(self(0), self._extras, self._process)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the rows in `epoch`, and the window that each slot holds."""
        generator = rng.host(self._seed, rng.ORDER, epoch)
        shuffled = generator.permutation(len(self._lengths))
        by_length = shuffled[np.argsort(self._lengths[shuffled], kind='stable')]
        window_of_slot = np.empty(len(by_length), np.int64)
        window_of_slot[self._slot_order] = by_length
        return generator.permutation(self.rows_per_epoch), window_of_slot


def with_extras(batch: dict, extras: Users | None, process: tuple[int, int]) -> list[dict]:
    """The batch with its extras in every size that they come in."""
    if extras is None:
        return [batch]
    return [batch | part(sized, *process) for sized in extras.shapes()]


def pack_lengths(lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First-fit decreasing over a histogram: how windows of these lengths fill rows of `size`.

    Args:
      lengths: int [W], each in 1..size.
      size: tokens per row.

    Returns:
      slot_lengths: int64 [W], the length each slot holds, row after row; row_slots: int64
      [rows + 1], row r's slots are slot_lengths[row_slots[r]:row_slots[r + 1]].
    """
    left = np.bincount(lengths, minlength=size + 1)
    slot_lengths, per_row = [], []
    while left.any():
        pattern = np.zeros_like(left)
        room = size
        while room and (fits := np.flatnonzero((left - pattern)[: room + 1])).size:
            longest = int(fits[-1])
            pattern[longest] += 1
            room -= longest
        used = pattern > 0
        times = int((left[used] // pattern[used]).min())  # this pattern as often as it lasts
        row = np.repeat(np.arange(size, -1, -1), pattern[::-1])
        slot_lengths.append(np.tile(row, times))
        per_row.append(np.full(times, len(row)))
        left = left - pattern * times
    row_slots = np.concatenate([[0], np.cumsum(np.concatenate(per_row))])
    return np.concatenate(slot_lengths), row_slots


def _windows(offsets, train_ends, max_len, windows):
    """Start (absolute), length and user of every training window of (input, next) pairs.

    Prefixes are windows of events.
    """
    if windows == 'prefixes':
        count = np.minimum(np.maximum(train_ends - offsets[:-1], 0), max_len)
        users = np.repeat(np.arange(len(count)), count)
        lengths = 1 + ranges(np.zeros_like(count), count)
        return np.repeat(train_ends - count, count), lengths, users
    pairs = np.maximum(train_ends - offsets[:-1] - 1, 0)
    if windows == 'last':
        count = (pairs > 0).astype(np.int64)
    elif windows == 'all':
        count = -(-pairs // max_len)
    else:
        raise UserError(
            f"unknown task.windows {windows!r}: use 'last', 'all', 'cuts' or 'prefixes'"
        )
    users = np.repeat(np.arange(len(pairs)), count)
    nth_from_end = ranges(np.zeros_like(count), count)
    ends = train_ends[users] - 1 - nth_from_end * max_len  # one past the window's last input
    starts = np.maximum(ends - max_len, offsets[users])
    return starts, ends - starts, users
