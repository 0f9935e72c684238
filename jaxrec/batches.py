"""Batches as pure functions of (seed, step): packed training rows, bucketed evaluation batches.

A training row holds the windows of several users side by side, so hardly anything is computed on
padding; `segments` keeps them apart in attention and `positions` counts from each user's end.
"""

import concurrent.futures
import math
from collections.abc import Callable, Iterator

import numpy as np

from jaxrec.cli import UserError
from jaxrec.histories import Histories, ranges
from jaxrec.splits import Targets
from jaxrec.tally import distinct

Codes = Callable[[np.ndarray], dict[str, np.ndarray]]  # of the features of events, by index
Extras = Callable[[int, np.ndarray, np.ndarray], dict[str, np.ndarray]]  # see `positives.Users`
SEEN_ENTRIES = 1 << 24  # of `seen` in one batch of histories, unless a single user needs more


class TrainBatches:
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
        consecutive windows of L counted from the user's end.
      unseen_negatives: k > 0 adds negatives drawn uniformly from the items outside the user's
        whole training history (the SASRec authors' sampler).
      codes: of features, `codes.Encoder.events`.
      extras: what else a batch has of its users, of (step, users, index of the event after each).
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
        extras: Extras | None = None,
        process: tuple[int, int] = (0, 1),
    ):
        if rows % process[1]:
            raise UserError(f'train.batch_rows={rows} does not divide over {process[1]} processes')
        self._histories, self._max_len, self._seed = histories, max_len, seed
        self._codes, self._extras, self._process = codes, extras, process
        self._starts, self._lengths, self._users = _windows(
            histories.offsets, train_ends, max_len, windows
        )
        if not len(self._starts):
            raise UserError('no user has two training events: there is nothing to train on')
        slot_lengths, self._row_slots = pack_lengths(self._lengths, max_len)
        self._slot_order = np.argsort(slot_lengths, kind='stable')
        self.rows = rows
        self.windows_per_epoch = len(self._lengths)
        self.targets_per_epoch = int(self._lengths.sum())
        self.rows_per_epoch = len(self._row_slots) - 1
        self.steps_per_epoch = -(-self.rows_per_epoch // rows)
        self._epoch = (-1, None, None)
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
          padding, positions 0..L-1 with L-1 the newest event), weights: float32 [.., L], 1 on
          real targets; negatives: int32 [.., L, k] if asked for; feature.*: codes of features,
          int32 [.., L] or [.., L, T].
        """
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        row_order, window_of_slot = self._order(epoch)
        # Rows are spread evenly over the epoch's steps: no tiny last batch.
        first = step_of_epoch * self.rows_per_epoch // self.steps_per_epoch
        last = (step_of_epoch + 1) * self.rows_per_epoch // self.steps_per_epoch
        chosen = row_order[first:last]
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
            'targets': scatter(shape, place, self._histories.items[source + 1]),
            'segments': scatter(shape, place, np.repeat(index_in_row + 1, lengths)),
            'positions': scatter(shape, place, ranges(self._max_len - lengths, lengths)),
        }
        batch['weights'] = (batch['segments'] > 0).astype(np.float32)
        for name, codes in self._codes(source).items() if self._codes else ():
            batch[name] = scatter(shape, place, codes)
        if self._negatives is not None:
            rng = np.random.default_rng([self._seed, 2, step])
            drawn = self._negatives(rng, np.repeat(self._users[windows], lengths))
            batch['negatives'] = scatter(shape, place, drawn)
        if self._extras is not None:
            batch |= self._extras(step, self._users[windows], self._starts[windows] + lengths)
        return {name: part(value, index, count) for name, value in batch.items()}

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the rows in `epoch`, and the window that each slot holds."""
        if self._epoch[0] != epoch:
            rng = np.random.default_rng([self._seed, 1, epoch])
            shuffled = rng.permutation(len(self._lengths))
            by_length = shuffled[np.argsort(self._lengths[shuffled], kind='stable')]
            window_of_slot = np.empty(len(by_length), np.int64)
            window_of_slot[self._slot_order] = by_length
            self._epoch = (epoch, rng.permutation(self.rows_per_epoch), window_of_slot)
        return self._epoch[1:]


class UnseenNegatives:
    """Uniform negatives outside each user's training items (WarpSampler of the SASRec code)."""

    def __init__(self, histories: Histories, train_ends: np.ndarray, count: int):
        self._num_items, self._count = histories.num_items, count
        self._items, self._starts = histories.items, histories.offsets[:-1]
        self._lengths = train_ends - self._starts
        for user in np.flatnonzero(self._lengths >= self._num_items):
            if len(self._keys(np.array([user]))) >= self._num_items:
                raise UserError('a user has seen every item: data.unseen_negatives must be 0')

    def _keys(self, users: np.ndarray) -> np.ndarray:
        """Sorted n * (num_items + 1) + item of the items that users[n] has seen in training."""
        lengths = self._lengths[users]
        owner = np.repeat(np.arange(len(users)), lengths)
        items = self._items[ranges(self._starts[users], lengths)]
        return distinct(owner * (self._num_items + 1) + items)

    def __call__(self, rng: np.random.Generator, users: np.ndarray) -> np.ndarray:
        """int32 [len(users), count]."""
        drawn = rng.integers(1, self._num_items + 1, (len(users), self._count))
        who, number = np.unique(users, return_inverse=True)
        all_seen = self._keys(who)
        while True:
            keys = number[:, None] * (self._num_items + 1) + drawn
            at = np.minimum(np.searchsorted(all_seen, keys), len(all_seen) - 1)
            seen = all_seen[at] == keys
            if not seen.any():
                return drawn.astype(np.int32)
            drawn[seen] = rng.integers(1, self._num_items + 1, int(seen.sum()))


def part(values: np.ndarray, index: int, count: int) -> np.ndarray:
    """Part number `index` of `count` equal ones of the leading axis."""
    size = len(values) // count
    return values[index * size : (index + 1) * size]


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


def prefetch(make: Callable[[int], dict], start: int, ahead: int = 2) -> Iterator[dict]:
    """Yields make(start), make(start + 1), ... made by a background thread `ahead` of time."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting = [thread.submit(make, start + i) for i in range(ahead)]
        step = start + ahead
        while True:
            batch = waiting.pop(0).result()
            waiting.append(thread.submit(make, step))
            step += 1
            yield batch


def history_batch(
    items: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    width: int,
    max_len: int,
    codes: Codes | None = None,
) -> dict[str, np.ndarray]:
    """Newest `width` events of items[starts[i]:ends[i]], one user per row, right-aligned.

    Args:
      items: int32 [N] flat events.
      starts, ends: int64 [B]; an empty range gives a row of padding.
      width: W <= max_len, columns of the batch.
      max_len: window of the model, which fixes the position numbers.
      codes: of the features of events, by their index in `items`.

    Returns:
      items, segments (1 on events, 0 on padding), positions: int32 [B, W]; feature.*: int32 [B, W]
      or [B, W, T].
    """
    lengths = np.minimum(ends - starts, width)
    shape = (len(starts), width)
    place = ranges(np.arange(len(starts)) * width + width - lengths, lengths)
    source = ranges(ends - lengths, lengths)
    events = scatter(shape, place, items[source])
    coded = codes(source) if codes else {}
    positions = np.broadcast_to(np.arange(max_len - width, max_len, dtype=np.int32), shape)
    return {
        'items': events,
        'segments': (events > 0).astype(np.int32),
        'positions': np.where(events > 0, positions, 0).astype(np.int32),
        **{name: scatter(shape, place, values) for name, values in coded.items()},
    }


def history_batches(
    histories: Histories,
    targets: Targets,
    *,
    max_len: int,
    batch_users: int,
    multiple: int = 1,
    tokens: int = 1 << 24,
    codes: Codes | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Histories of all `targets` in fixed shapes, users of similar length together.

    Rows are grouped by history length rounded up to a power of two (4 at least), so short users
    cost little and only a handful of shapes is ever compiled, one per length.

    Args:
      histories: the events.
      targets: the users, and where their input ends.
      max_len: window of the model.
      batch_users: most rows of a batch; users of long histories come in smaller batches, a power of
        two times `multiple`.
      multiple: of which the number of rows is one, as `batch_users` must be.
      tokens: most tokens of a batch that the model sees.
      codes: of features, `codes.Encoder.events`.

    Yields:
      (chosen, batch): `chosen` int64 [n <= rows] indexes `targets`; `batch` as `history_batch`
      gives it, plus `seen`: int32 [rows, S], the whole input history padded with 0. Rows from n
      on are padding.
    """
    starts = histories.offsets[targets.users]
    key = np.maximum(4, 1 << np.ceil(np.log2(np.maximum(targets.ends - starts, 1))).astype(int))
    order = np.argsort(key, kind='stable')
    for size in np.unique(key).tolist():
        group = order[key[order] == size]
        affordable = min(SEEN_ENTRIES // size, tokens // min(size, max_len))
        doublings = max(affordable // multiple, 1).bit_length() - 1
        rows = min(batch_users, multiple << doublings)
        for at in range(0, len(group), rows):
            chosen = group[at : at + rows]
            missing = rows - len(chosen)
            first = np.pad(starts[chosen], (0, missing))
            end = np.pad(targets.ends[chosen], (0, missing))
            batch = history_batch(histories.items, first, end, min(size, max_len), max_len, codes)
            seen = history_batch(histories.items, first, end, size, size)['items']
            yield chosen, {**batch, 'seen': seen}


def _windows(offsets, train_ends, max_len, windows):
    """Start (absolute), length and user of every training window of (input, next) pairs."""
    pairs = np.maximum(train_ends - offsets[:-1] - 1, 0)
    if windows == 'last':
        count = (pairs > 0).astype(np.int64)
    elif windows == 'all':
        count = -(-pairs // max_len)
    else:
        raise UserError(f"unknown data.windows {windows!r}: use 'last', 'all' or 'cuts'")
    users = np.repeat(np.arange(len(pairs)), count)
    nth_from_end = ranges(np.zeros_like(count), count)
    ends = train_ends[users] - 1 - nth_from_end * max_len  # one past the window's last input
    starts = np.maximum(ends - max_len, offsets[users])
    return starts, ends - starts, users


def scatter(shape: tuple[int, ...], place: np.ndarray, values: np.ndarray) -> np.ndarray:
    """int32 [*shape, ..]: values [n, ..] at these places of the flattened shape, else 0."""
    out = np.zeros((math.prod(shape), *values.shape[1:]), np.int32)
    out[place] = values
    return out.reshape(*shape, *values.shape[1:])
