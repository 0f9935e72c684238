"""Ragged arrays as flat columns: index ranges, blocks of users, scattering, tallies of keys."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

_LEAST = 1 << 22  # keys that wait before they are merged


def distinct(keys: np.ndarray) -> np.ndarray:
    """np.unique(keys) of integers [n], by sorting.

    np.unique itself takes a hash table since NumPy 2.3, two hundred times as slow on keys such as
    user * items + item.
    """
    keys = np.sort(keys, axis=None)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def distinct_each(parts: Sequence[Sequence[np.ndarray]], most: int) -> list[np.ndarray]:
    """The distinct numbers int32 [n], ascending, of each row's arrays of integers in 0..most."""
    size, row = most + 1, np.repeat(np.arange(len(parts)), [sum(map(len, some)) for some in parts])
    flat = np.concatenate([np.zeros(0, np.int64), *(one for some in parts for one in some)])
    row, found = np.divmod(distinct(row * size + flat), size)
    ends, found = np.searchsorted(row, np.arange(1, len(parts) + 1)), found.astype(np.int32)
    return [found[first:end] for first, end in zip([0, *ends], ends, strict=False)]


def padded(sets: Sequence[Sequence[int]]) -> np.ndarray:
    """int32 [N, most of one, 1 at least], rows of numbers from 1, padded with 0."""
    lengths = np.array([len(one) for one in sets])
    out = np.zeros((len(sets), lengths.max(initial=1)), np.int32)
    out[np.arange(out.shape[1]) < lengths[:, None]] = [n for one in sets for n in one]
    return out


class Tally:
    """Counts keys given in pieces; holds the distinct ones, twice over at most."""

    def __init__(self):
        self._waiting, self._size, self._merged = [], 0, 0

    def add(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Takes in distinct keys [n] (integers or bytes) and their int64 counts [n]."""
        self._waiting.append((keys, counts))
        self._size += len(keys)
        if self._size > _LEAST + 2 * self._merged:  # so that every key is merged a few times only
            self._merge()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct keys, ascending, and their counts; both empty if none were added."""
        self._merge()
        return self._waiting[0]

    def _merge(self):
        keys = [k for k, _ in self._waiting if len(k)] or [np.zeros(0, np.int64)]
        counts = [c for k, c in self._waiting if len(k)] or [np.zeros(0, np.int64)]
        keys, place = np.unique(np.concatenate(keys), return_inverse=True)
        total = np.zeros(len(keys), np.int64)
        np.add.at(total, place, np.concatenate(counts))
        self._waiting = [(keys, total)]
        self._size = self._merged = len(keys)


def part(values, index: int, count: int):
    """Part number `index` of `count` equal ones of the leading axis; of a dict, of its arrays."""
    if isinstance(values, dict):
        return {name: part(value, index, count) for name, value in values.items()}
    size = len(values) // count
    return values[index * size : (index + 1) * size]


def scatter(
    shape: tuple[int, ...], place: np.ndarray, values: np.ndarray, kind: type = np.int32
) -> np.ndarray:
    """kind [*shape, ..]: values [n, ..] at these places of the flattened shape, else 0."""
    out = np.zeros((math.prod(shape), *values.shape[1:]), kind)
    out[place] = values
    return out.reshape(*shape, *values.shape[1:])


EVENTS_AT_ONCE = 1 << 22  # that are copied together, of a log larger than memory


def blocks(offsets: np.ndarray, events: int = 0) -> Iterator[slice]:
    """Users in runs of about `events` (EVENTS_AT_ONCE if 0) events, one user at least.

    Args:
      offsets: int64 [U + 1] ascending; user u has offsets[u + 1] - offsets[u] events.
      events: see above.

    Yields:
      Slices of user numbers that cover 0..U in order.
    """
    ends = np.arange(offsets[0], offsets[-1], events or EVENTS_AT_ONCE)
    cuts = np.unique(np.concatenate([[0], np.searchsorted(offsets, ends), [len(offsets) - 1]]))
    for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        yield slice(start, stop)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of arange(start, start + length) over all pairs, int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
