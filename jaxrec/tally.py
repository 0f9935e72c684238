"""Distinct keys and how often each came, of more keys than are wanted in memory at once."""

import numpy as np

_LEAST = 1 << 22  # keys that wait before they are merged


def distinct(keys: np.ndarray) -> np.ndarray:
    """np.unique(keys) of integers [n], by sorting.

    np.unique itself takes a hash table since NumPy 2.3, two hundred times as slow on keys such as
    user * items + item.
    """
    keys = np.sort(keys, axis=None)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


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
