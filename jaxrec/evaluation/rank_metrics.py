"""Ranking metrics from counts: how many candidates beat a target, and how many tie with it.

All metrics are per user and exact in float64. A target that ties with t other candidates may take
any of t + 1 positions with the same probability; each metric is its expectation over them, so the
order in which items happen to be stored never matters and a constant scorer scores at chance.
"""

from collections.abc import Sequence

import numpy as np

from jaxrec.devices.top_k import UNREACHABLE

BUCKETS = ('head', 'mid', 'tail')


def names(cutoffs: Sequence[int], several: bool = False) -> list[str]:
    """Names of the metrics of `per_example`, or of `per_user`, in its order."""
    kinds = ('HR', 'NDCG', 'MRR', *(('Recall', 'Precision', 'MAP') if several else ()))
    return [f'{kind}@{k}' for k in cutoffs for kind in kinds] + ['MRR']


def per_example(
    greater: np.ndarray, ties: np.ndarray, cutoffs: Sequence[int]
) -> dict[str, np.ndarray]:
    """Expected metrics of users with one target each, ties shared fairly.

    With rank r (1 = best): HR@k = [r <= k], NDCG@k = [r <= k] / log2(r + 1), MRR@k = [r <= k] / r,
    MRR = 1 / r.

    Args:
      greater: int [E], candidates that score higher than the target, or UNREACHABLE.
      ties: int [E], other candidates that score the same as the target.
      cutoffs: the k of the metrics at k.

    Returns:
      float64 [E] by name, see `names`.
    """
    reachable, first, places = _positions(greater, ties)
    totals = _Totals(int((first + places).max(initial=1)))

    def expected(name, k):
        return np.where(reachable, totals.inside(name, first, places, k) / places, 0.0)

    values = {}
    for k in cutoffs:
        values[f'HR@{k}'] = expected('hit', k)
        values[f'NDCG@{k}'] = expected('gain', k)
        values[f'MRR@{k}'] = expected('reciprocal', k)
    values['MRR'] = expected('reciprocal', totals.deepest)
    return values


def per_user(
    greater: np.ndarray, ties: np.ndarray, owner: np.ndarray, cutoffs: Sequence[int]
) -> dict[str, np.ndarray]:
    """Expected metrics of users with several targets each, ties shared fairly.

    With n targets of a user at ranks r: HR@k = [some r <= k]; Recall@k = #[r <= k] / n; Precision@k
    = #[r <= k] / k; NDCG@k = sum of [r <= k] / log2(r + 1) over that of the ranks 1 .. min(n, k);
    MAP@k = sum of [r <= k] #[targets at r or before] / r, over min(n, k); MRR@k = [r <= k] / r of
    the first target, MRR without the limit.

    Args:
      greater, ties: int [P] of all targets, see `per_example`; a user's other targets are
        candidates like all others.
      owner: int [P] ascending, user of each target, 0 .. E - 1, each of whom has one.
      cutoffs: the k of the metrics at k.

    Returns:
      float64 [E] by name, see `names`.
    """
    reachable, first, places = _positions(greater, ties)
    count = np.bincount(owner)
    deepest = int((first + places).max(initial=1))
    totals = _Totals(max(deepest, int(count.max()), *cutoffs))
    # A user's targets of the same score are a group of `members`, with `above` targets before it.
    order = np.lexsort((first, ~reachable, owner))
    key = np.stack([owner, ~reachable, first])[:, order]
    starts = np.flatnonzero(np.r_[True, (key[:, 1:] != key[:, :-1]).any(0)])
    group = np.empty(len(order), np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(order)]))
    members = np.bincount(group)[group]
    above = starts[group] - (np.cumsum(count) - count)[owner]
    # At the p-th of its group's places, rank r = first + p, a target has above + 1 targets at or
    # before it, and of the group's others the share of the places before: growth (p - 1).
    growth = (members - 1) / np.maximum(places - 1, 1)
    best = order[np.searchsorted(owner[order], np.arange(len(count)))]  # a target that comes first

    def summed(values):
        return np.bincount(owner, np.where(reachable, values / places, 0.0), minlength=len(count))

    def first_found(k):
        return _first_found(first[best], places[best], members[best], reachable[best], totals, k)

    values = {}
    for k in cutoffs:
        hits, over_rank = (totals.inside(n, first, places, k) for n in ('hit', 'reciprocal'))
        precision = (above + 1 - growth * (first + 1)) * over_rank + growth * hits
        ideal = np.minimum(count, k)
        values[f'HR@{k}'], reciprocal = first_found(k)
        values[f'NDCG@{k}'] = summed(totals.inside('gain', first, places, k)) / totals.gain[ideal]
        values[f'MRR@{k}'] = reciprocal
        values[f'Recall@{k}'] = summed(hits) / count
        values[f'Precision@{k}'] = summed(hits) / k
        values[f'MAP@{k}'] = summed(precision) / ideal
    values['MRR'] = first_found(deepest)[1]
    return values


class _Totals:
    """Running totals over the ranks: what ranks a + 1 .. b are worth is a difference of two."""

    def __init__(self, deepest: int):
        rank = np.arange(1, deepest + 1)
        self.deepest = deepest
        self.hit, self.gain, self.reciprocal = (
            np.concatenate([[0.0], np.cumsum(value)])
            for value in (np.ones(deepest), 1 / np.log2(rank + 1), 1 / rank)
        )

    def inside(self, name: str, first: np.ndarray, places: np.ndarray, k: int) -> np.ndarray:
        """What the ranks first + 1 .. first + places that are not beyond k are worth together."""
        total, k = getattr(self, name), min(k, self.deepest)
        return total[np.minimum(first + places, k)] - total[np.minimum(first, k)]


def _positions(greater, ties):
    """(reachable, best position from 0, number of places that it may take) of every target."""
    reachable = np.asarray(greater) != UNREACHABLE
    first = np.where(reachable, greater, 0).astype(np.int64)
    return reachable, first, np.where(reachable, ties, 0).astype(np.int64) + 1


def _first_found(first, places, members, reachable, totals, k):
    """(chance that the first of a user's targets is within k, its expected [rank <= k] / rank)."""
    hit = totals.inside('hit', first, places, k) / places
    reciprocal = totals.inside('reciprocal', first, places, k) / places
    several = np.flatnonzero(reachable & (members > 1))
    cases = np.stack([first, places, members])[:, several]
    distinct, which = np.unique(cases, axis=1, return_inverse=True)
    for number, (f, m, t) in enumerate(distinct.T.tolist()):
        p = np.arange(1, m - t + 2)  # places that the first of t targets among m may have
        later = np.concatenate([[1.0], np.cumprod((m - t + 1 - p) / (m + 1 - p))])
        chance = later[:-1] - later[1:]
        rank = f + p
        chance = np.where(rank <= k, chance, 0.0)
        chosen = several[which.reshape(-1) == number]
        hit[chosen], reciprocal[chosen] = chance.sum(), (chance / rank).sum()
    return np.where(reachable, hit, 0.0), np.where(reachable, reciprocal, 0.0)


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


def of_lists(top: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """How much of the catalogue lists show, and how popular it is.

    Args:
      top: int [E, k] item numbers, 0 = none.
      counts: int [num_items + 1], training interactions per item; entry 0 is padding.

    Returns:
      gini: of how often each item of the catalogue is shown, 0 = all alike, near 1 = one for all;
      mean_log_popularity: of log(1 + interactions) over the places of the lists; coverage: share of
      the catalogue that is shown.
    """
    shown = np.bincount(top.reshape(-1), minlength=len(counts))[1:].astype(np.float64)
    total, n = max(shown.sum(), 1), len(shown)
    rank = np.arange(1, n + 1)
    return {
        'gini': float(((2 * rank - n - 1) * np.sort(shown)).sum() / (n * total)),
        'mean_log_popularity': float((shown * np.log1p(counts[1:])).sum() / total),
        'coverage': float(np.count_nonzero(shown) / n),
    }


def popularity_buckets(counts: np.ndarray, parts: int = len(BUCKETS)) -> np.ndarray:
    """Bucket of each item by its share of the training interactions.

    Items are put in order of descending count (equal counts by item number). An item is head if
    the items before it hold less than 1/3 of all interactions, mid if less than 2/3, else tail;
    items without any training interaction are always tail.

    Args:
      counts: int [num_items + 1], training interactions per item; entry 0 is padding.
      parts: instead of 3.

    Returns:
      int8 [num_items + 1], index into BUCKETS, or 0 .. parts - 1; entry 0 means nothing.
    """
    order = np.argsort(-counts[1:], kind='stable') + 1
    before = np.cumsum(counts[order]) - counts[order]
    total = int(counts[1:].sum())
    buckets = np.zeros(len(counts), np.int8)
    buckets[order] = sum(parts * before >= n * total for n in range(1, parts))
    buckets[counts == 0] = parts - 1
    return buckets


Members = dict[str, np.ndarray]  # bool [E] of the examples, by name of the group


def by_group(values: dict[str, np.ndarray], members: Members) -> dict[str, dict]:
    """Means of the examples of each group.

    Args:
      values: float64 [E] by metric.
      members: of the groups.

    Returns:
      {'head': {'examples': count, metric: mean, ..}, ..}; an empty group has only 'examples': 0.
    """
    return {name: {'examples': int(m.sum()), **mean(values, m)} for name, m in members.items()}


def of_buckets(buckets: np.ndarray, names: Sequence[str] = BUCKETS) -> Members:
    """By the popularity bucket of the target, int [E]."""
    return {name: buckets == i for i, name in enumerate(names)}


def of_events(counts: np.ndarray) -> dict[str, Members]:
    """By the training events of the target, int [E], without empty groups; {} if none is new."""
    if counts.all():
        return {}
    members = {'0': counts == 0, '1 to 5': (counts > 0) & (counts <= 5), 'more': counts > 5}
    return {'training events': {name: m for name, m in members.items() if m.any()}}


def of_parts(names: Sequence[str], part: np.ndarray) -> Members:
    """By part, int [E] index into `names`, without empty parts."""
    members = {name: part == n for n, name in enumerate(names)}
    return {name: m for name, m in members.items() if m.any()}
