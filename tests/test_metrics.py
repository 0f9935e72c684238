"""Every metric against a slow reference that enumerates the positions a target may take."""

import math

import numpy as np
import pytest

from jaxrec.devices.top_k import UNREACHABLE
from jaxrec.evaluation import rank_metrics

CUTOFFS = (1, 3, 10, 1000)


def slow(greater, ties, cutoffs):
    """Average over the positions, one by one."""
    values = {name: 0.0 for name in rank_metrics.names(cutoffs)}
    if greater == UNREACHABLE:
        return values
    for rank in range(greater + 1, greater + ties + 2):
        for k in cutoffs:
            if rank <= k:
                values[f'HR@{k}'] += 1
                values[f'Recall@{k}'] += 1
                values[f'NDCG@{k}'] += 1 / math.log2(rank + 1)
                values[f'MRR@{k}'] += 1 / rank
        values['MRR'] += 1 / rank
    return {name: value / (ties + 1) for name, value in values.items()}


def test_against_enumeration():
    rng = np.random.default_rng(0)
    greater = rng.integers(0, 15, 200).astype(np.int32)
    ties = (rng.integers(0, 12, 200) * rng.integers(0, 2, 200)).astype(np.int32)
    greater[:3] = UNREACHABLE
    got = rank_metrics.per_example(greater, ties, CUTOFFS)
    assert list(got) == rank_metrics.names(CUTOFFS)
    for i in range(200):
        want = slow(int(greater[i]), int(ties[i]), CUTOFFS)
        for name, value in want.items():
            np.testing.assert_allclose(got[name][i], value, rtol=1e-12, atol=1e-15, err_msg=name)


def test_by_hand():
    got = rank_metrics.per_example(np.array([0, 2, 1]), np.array([0, 0, 1]), (2, 3))
    np.testing.assert_allclose(got['HR@2'], [1, 0, 0.5])
    np.testing.assert_allclose(got['NDCG@3'], [1, 0.5, (1 / math.log2(3) + 0.5) / 2])
    np.testing.assert_allclose(got['MRR'], [1, 1 / 3, (1 / 2 + 1 / 3) / 2])


@pytest.mark.parametrize('candidates', [7, 101])
def test_constant_scorer_is_at_chance(candidates):
    got = rank_metrics.per_example(np.zeros(5, int), np.full(5, candidates - 1), (1, 5))
    np.testing.assert_allclose(got['HR@1'], 1 / candidates)
    np.testing.assert_allclose(got['HR@5'], 5 / candidates)
    gain = sum(1 / math.log2(r + 1) for r in range(1, 6))
    np.testing.assert_allclose(got['NDCG@5'], gain / candidates)


def test_mean_and_mask():
    values = {'HR@1': np.array([1.0, 0.0, 1.0])}
    assert rank_metrics.mean(values) == {'HR@1': 2 / 3}
    assert rank_metrics.mean(values, np.array([True, True, False])) == {'HR@1': 0.5}
    assert rank_metrics.mean(values, np.zeros(3, bool)) == {}


def test_no_examples_reachable():
    unreachable = np.full(2, UNREACHABLE)
    got = rank_metrics.per_example(unreachable, np.zeros(2, int), (1,))
    assert rank_metrics.mean(got) == {'HR@1': 0, 'NDCG@1': 0, 'MRR@1': 0, 'Recall@1': 0, 'MRR': 0}


def test_coverage():
    assert rank_metrics.coverage(np.array([[1, 2], [2, 0]]), 8) == 2 / 8


def test_buckets():
    # 12 interactions: item 2 has 4 (head, nothing before it); item 1 has 3 (4 of 12 before it:
    # mid); item 4 has 3 (7 before it: mid); item 5 has 2 (10 before it: tail); item 3 has none.
    counts = np.array([0, 3, 4, 0, 3, 2])
    assert rank_metrics.popularity_buckets(counts)[1:].tolist() == [1, 0, 2, 1, 2]
    values = {'HR@1': np.array([1.0, 0.0, 1.0])}
    assert rank_metrics.by_bucket(values, np.array([0, 2, 2])) == {
        'head': {'users': 1, 'HR@1': 1.0},
        'mid': {'users': 0},
        'tail': {'users': 2, 'HR@1': 0.5},
    }
