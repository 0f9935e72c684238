"""How much the features of items say of each other."""

from collections.abc import Mapping

import numpy as np


def mutual_information(codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [k, k] of k columns in their order: sum P(a, b) log P(a, b) / (P(a) P(b)), in nats.

    Counted over items, each once whatever its events: MI(f, f) is the entropy of f where items have
    one value each. Of a set every member has an equal share of its item; a missing value is one.

    Args:
      codes: int32 [num_items + 1] or [num_items + 1, T] by column, row 0 padding, 0 missing.
    """
    columns = [_shares(np.asarray(column)[1:]) for column in codes.values()]
    found = np.zeros((len(columns), len(columns)))
    for i, left in enumerate(columns):
        for j, right in enumerate(columns[: i + 1]):
            found[i, j] = found[j, i] = _between(left, right)
    return found.astype(np.float32)


def _shares(column):
    """(values, shares) [n, T], shares that sum to 1 in a row; no member at all is the value 0."""
    column = column.reshape(len(column), -1).astype(np.int64)
    there = column > 0
    there[~there.any(1), 0] = True
    return np.where(there, column, 0), there / there.sum(1, keepdims=True)


def _between(left, right):
    (a, of_a), (b, of_b) = left, right
    weights = (of_a[:, :, None] * of_b[:, None, :]).reshape(-1)
    kept = weights > 0
    weights = weights[kept] / max(len(a), 1)
    pairs = [
        np.broadcast_to(x, (len(a), a.shape[1], b.shape[1])).reshape(-1)[kept]
        for x in (a[:, :, None], b[:, None, :])
    ]
    joint, place = np.unique(np.stack(pairs), axis=1, return_inverse=True)
    p = np.bincount(place.reshape(-1), weights)
    single = [np.bincount(x, weights) for x in pairs]
    return float((p * np.log(p / (single[0][joint[0]] * single[1][joint[1]]))).sum())
