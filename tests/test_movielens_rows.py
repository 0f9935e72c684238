"""MovieLens-1M as rows, from made-up ratings."""

import numpy as np

from jaxrec.datasets import movielens_rows
from jaxrec.datasets.events import Events
from jaxrec.datasets.raw_ids import Coded


def test_rows():
    """The last 100 of each user, tenths of the user's own rows, equal times in the file's order."""
    rng = np.random.default_rng(0)
    users = rng.permutation(np.repeat([7, 9, 30], [130, 20, 3]))
    events = Events(
        users=Coded(np.searchsorted([7, 9, 30], users).astype(np.int32), np.array([7, 9, 30])),
        items=Coded(rng.integers(0, 5, 153).astype(np.int32), np.array([11, 2, 44, 3, 8])),
        times=rng.integers(0, 60, 153),
        features={'rating': rng.integers(1, 6, 153).astype(np.float32)},
    )
    rows = movielens_rows.rows_of(events)
    assert (np.diff(rows.times) >= 0).all() and rows.item_ids.tolist() == [2, 3, 8, 11, 44]
    for number, (user, count) in enumerate([(7, 100), (9, 20), (30, 3)]):
        file = np.flatnonzero(users == user)
        file = file[np.argsort(events.times[file], kind='stable')][-count:]
        own = rows.users == number
        np.testing.assert_array_equal(rows.times[own], events.times[file])
        raw = events.items.values[events.items.codes[file]]
        np.testing.assert_array_equal(rows.item_ids[rows.items[own] - 1], raw)
        liked = events.features['rating'][file] >= 4
        np.testing.assert_array_equal(rows.labels['like'][own], liked)
        tenths = [10 * n // count for n in range(count)]
        np.testing.assert_array_equal(rows.features['tenth'][own], tenths)
