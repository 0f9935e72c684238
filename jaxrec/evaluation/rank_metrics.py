"""Ranking metrics from counts: how many candidates beat the target, and how many tie with it.

All metrics are per example and exact in float64. A target that ties with t other candidates may
take any of t + 1 positions with the same probability; each metric is its expectation over them, so
the order in which items happen to be stored never matters and a constant scorer scores at chance.
"""

from collections.abc import Sequence

import numpy as np

from jaxrec.devices.top_k import UNREACHABLE

BUCKETS = ('head', 'mid', 'tail')


def names(cutoffs: Sequence[int]) -> list[str]:
    """Names of the metrics of `per_example`, in its order."""
    return [f'{m}@{k}' for k in cutoffs for m in ('HR', 'NDCG', 'MRR', 'Recall')] + ['MRR']


def per_example(
    greater: np.ndarray, ties: np.ndarray, cutoffs: Sequence[int]
) -> dict[str, np.ndarray]:
    """Expected metrics of every example, ties shared fairly.

    With rank r (1 = best): HR@k = [r <= k], NDCG@k = [r <= k] / log2(r + 1), MRR@k = [r <= k] / r,
    MRR = 1 / r. Recall@k equals HR@k, because an example has one target.

    Args:
      greater: int [E], candidates that score higher than the target, or UNREACHABLE.
      ties: int [E], other candidates that score the same as the target.
      cutoffs: the k of the metrics at k.

    Returns:
      float64 [E] by name, see `names`.
    """
    reachable = np.asarray(greater) != UNREACHABLE
    first = np.where(reachable, greater, 0).astype(np.int64)  # best position, counted from 0
    places = np.where(reachable, ties, 0).astype(np.int64) + 1
    deepest = int((first + places).max(initial=1))
    rank = np.arange(1, deepest + 1)
    # Running totals over ranks: the share of positions a..b-1 is (total[b] - total[a]) / places.
    hit, gain, reciprocal = (
        np.concatenate([[0.0], np.cumsum(value)])
        for value in (np.ones(deepest), 1 / np.log2(rank + 1), 1 / rank)
    )

    def expected(total, k):
        inside = total[np.minimum(first + places, k)] - total[np.minimum(first, k)]
        return np.where(reachable, inside / places, 0.0)

    values = {}
    for k in cutoffs:
        k_here = min(k, deepest)
        values[f'HR@{k}'] = expected(hit, k_here)
        values[f'NDCG@{k}'] = expected(gain, k_here)
        values[f'MRR@{k}'] = expected(reciprocal, k_here)
        values[f'Recall@{k}'] = values[f'HR@{k}']
    values['MRR'] = expected(reciprocal, deepest)
    return values


def mean(values: dict[str, np.ndarray], mask: np.ndarray | None = None) -> dict[str, float]:
    """Mean of each metric over the examples where `mask` is true; {} if there are none."""
    if mask is None:
        mask = np.ones(len(next(iter(values.values()))), bool)
    if not mask.any():
        return {}
    return {name: float(np.mean(value[mask])) for name, value in values.items()}


def coverage(top: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that appears in the lists `top`, int [E, k]; 0 = no item."""
    shown = np.zeros(num_items + 1, bool)
    shown[top.reshape(-1)] = True
    return float(np.count_nonzero(shown[1:]) / num_items)


def popularity_buckets(counts: np.ndarray) -> np.ndarray:
    """Bucket of each item by its share of the training interactions.

    Items are put in order of descending count (equal counts by item number). An item is head if
    the items before it hold less than 1/3 of all interactions, mid if less than 2/3, else tail;
    items without any training interaction are always tail.

    Args:
      counts: int [num_items + 1], training interactions per item; entry 0 is padding.

    Returns:
      int8 [num_items + 1], index into BUCKETS; entry 0 means nothing.
    """
    order = np.argsort(-counts[1:], kind='stable') + 1
    before = np.cumsum(counts[order]) - counts[order]
    total = int(counts[1:].sum())
    buckets = np.zeros(len(counts), np.int8)
    buckets[order] = (3 * before >= total).astype(np.int8) + (3 * before >= 2 * total)
    buckets[counts == 0] = len(BUCKETS) - 1
    return buckets


def by_bucket(values: dict[str, np.ndarray], buckets: np.ndarray) -> dict[str, dict]:
    """Means per popularity bucket of the target.

    Args:
      values: float64 [E] by metric.
      buckets: int [E], bucket of each example's target.

    Returns:
      {'head': {'users': count, metric: mean, ...}, ...}; an empty bucket has only 'users': 0.
    """
    members = {name: buckets == i for i, name in enumerate(BUCKETS)}
    return {name: {'users': int(m.sum()), **mean(values, m)} for name, m in members.items()}
