"""Negatives drawn by the data pipeline, outside what a user has seen."""

import numpy as np

from jaxrec.data.histories import Histories
from jaxrec.data.ragged import distinct, ranges
from jaxrec.errors import UserError


class UnseenNegatives:
    """Uniform negatives outside each user's training items (WarpSampler of the SASRec code)."""

    def __init__(self, histories: Histories, train_ends: np.ndarray, count: int):
        self._num_items, self._count = histories.num_items, count
        self._items, self._starts = histories.items, histories.offsets[:-1]
        self._lengths = train_ends - self._starts
        for user in np.flatnonzero(self._lengths >= self._num_items):
            if len(self._keys(np.array([user]))) >= self._num_items:
                raise UserError('a user has seen every item: task.unseen_negatives must be 0')

    def _keys(self, users: np.ndarray) -> np.ndarray:
        """Sorted n * (num_items + 1) + item of the items that users[n] has seen in training."""
        lengths = self._lengths[users]
        owner = np.repeat(np.arange(len(users)), lengths)
        items = self._items[ranges(self._starts[users], lengths)]
        return distinct(owner * (self._num_items + 1) + items)

    def __call__(self, rng: np.random.Generator, users: np.ndarray) -> np.ndarray:
        """int32 [len(users), count]."""
        who, number = np.unique(users, return_inverse=True)
        return unseen(rng, number, self._keys(who), self._num_items, self._count)


def unseen(
    rng: np.random.Generator, users: np.ndarray, seen: np.ndarray, num_items: int, count: int
) -> np.ndarray:
    """int32 [len(users), count] uniform items that the users have not seen.

    Args:
      rng: of the draws.
      users: int [n] numbers.
      seen: int64 ascending, user * (num_items + 1) + item of what they have; never all items.
      num_items: of the catalogue.
      count: for every entry of `users`.
    """
    drawn = rng.integers(1, num_items + 1, (len(users), count))
    while True:
        keys = users[:, None] * (num_items + 1) + drawn
        at = np.minimum(np.searchsorted(seen, keys), len(seen) - 1)
        again = seen[at] == keys
        if not again.any():
            return drawn.astype(np.int32)
        drawn[again] = rng.integers(1, num_items + 1, int(again.sum()))
