"""Every metric against a slow reference that enumerates the positions that targets may take."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
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


# ---- several targets of a user


def of_list(relevant, wanted, cutoffs):
    """Metrics of one ranked list, from their definitions.

    Args:
      relevant: bool of every place, from the top.
      wanted: how many targets the user has, in the list or not.
    """
    ranks = [n for n, hit in enumerate(relevant, 1) if hit]
    values = {}
    for k in cutoffs:
        top = [r for r in ranks if r <= k]
        best = min(wanted, k)
        values[f'HR@{k}'] = float(bool(top))
        values[f'Recall@{k}'] = len(top) / wanted
        values[f'Precision@{k}'] = len(top) / k
        ideal = sum(1 / math.log2(r + 1) for r in range(1, best + 1))
        values[f'NDCG@{k}'] = sum(1 / math.log2(r + 1) for r in top) / ideal
        values[f'MAP@{k}'] = sum(sum(q <= r for q in ranks) / r for r in top) / best
        values[f'MRR@{k}'] = 1 / top[0] if top else 0.0
    values['MRR'] = 1 / ranks[0] if ranks else 0.0
    return values


def slow_user(scores, targets, hidden, cutoffs):
    """Mean over all orders of the candidates that put no lower score before a higher one.

    Args:
      scores: of all candidates.
      targets: which of them are the user's.
      hidden: how many more targets are filtered away.
    """
    groups = [[n for n, s in enumerate(scores) if s == value] for value in sorted(set(scores))]
    total, count = {}, 0
    for orders in itertools.product(*(itertools.permutations(g) for g in reversed(groups))):
        ranked = [n in targets for n in itertools.chain(*orders)]
        for name, value in of_list(ranked, len(targets) + hidden, cutoffs).items():
            total[name] = total.get(name, 0.0) + value
        count += 1
    return {name: value / count for name, value in total.items()}


def counted(scores, targets, hidden):
    """(greater, ties) of the targets, as the ranking gives them: other targets are candidates."""
    greater = [sum(s > scores[t] for s in scores) for t in targets] + [UNREACHABLE] * hidden
    ties = [scores.count(scores[t]) - 1 for t in targets] + [0] * hidden
    return greater, ties


@st.composite
def user(draw):
    """Scores of up to six candidates with many ties, who of them is a target, hidden targets."""
    scores = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
    targets = draw(st.sets(st.integers(0, len(scores) - 1)))
    hidden = draw(st.integers(0 if targets else 1, 2))
    return scores, draw(st.permutations(sorted(targets))), hidden


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    st.lists(user(), min_size=1, max_size=3),
    st.sets(st.sampled_from([1, 2, 3, 5, 8]), min_size=1, max_size=3),
)
def test_several_targets_against_all_orders_of_the_tied(users, cutoffs):
    cutoffs = tuple(sorted(cutoffs))
    counts = [counted(*one) for one in users]
    owner = np.repeat(np.arange(len(users)), [len(greater) for greater, _ in counts])
    greater, ties = (np.concatenate(x).astype(np.int32) for x in zip(*counts, strict=True))
    got = rank_metrics.per_user(greater, ties, owner, cutoffs)
    assert list(got) == rank_metrics.names(cutoffs, several=True)
    for n, (scores, targets, hidden) in enumerate(users):
        for name, value in slow_user(scores, set(targets), hidden, cutoffs).items():
            # differences of running totals are exact to a few units in the last place of 1
            np.testing.assert_allclose(got[name][n], value, rtol=1e-12, atol=1e-14, err_msg=name)


def test_several_targets_by_hand():
    """Targets at ranks 1 and 4, and one that is tied with a stranger for ranks 2 and 3."""
    got = rank_metrics.per_user(np.array([3, 0, 1]), np.array([0, 0, 1]), np.zeros(3, int), (2, 4))
    gain = [0, *(1 / math.log2(r + 1) for r in range(1, 5))]
    want = {
        'HR@2': 1,
        'MRR': 1,
        'Recall@2': 1.5 / 3,
        'Precision@4': 3 / 4,
        'NDCG@2': (gain[1] + gain[2] / 2) / (gain[1] + gain[2]),
        'NDCG@4': (gain[1] + (gain[2] + gain[3]) / 2 + gain[4]) / sum(gain[1:4]),
        'MAP@2': (1 + (2 / 2) / 2) / 2,
        'MAP@4': (1 + (2 / 2 + 2 / 3) / 2 + 3 / 4) / 3,
    }
    for name, value in want.items():
        np.testing.assert_allclose(got[name], [value], rtol=1e-12, err_msg=name)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    st.lists(
        st.one_of(st.tuples(st.integers(0, 3000), st.integers(0, 40)), st.just((UNREACHABLE, 0))),
        min_size=1,
        max_size=40,
    )
)
def test_with_one_target_each_it_is_the_same_bit_for_bit(counts):
    greater, ties = np.array(counts, np.int64).T
    one = rank_metrics.per_example(greater, ties, CUTOFFS)
    several = rank_metrics.per_user(greater, ties, np.arange(len(greater)), CUTOFFS)
    for name, values in one.items():
        np.testing.assert_array_equal(several[name], values, err_msg=name)
    for k in CUTOFFS:  # what one target adds nothing to
        np.testing.assert_array_equal(several[f'Recall@{k}'], one[f'HR@{k}'])
        np.testing.assert_array_equal(several[f'MAP@{k}'], one[f'MRR@{k}'])
        np.testing.assert_array_equal(several[f'Precision@{k}'], one[f'HR@{k}'] / k)


def test_many_users_are_measured_one_by_one():
    """Together and alone the same: no user's targets touch another's, whatever the order."""
    rng = np.random.default_rng(4)
    users = []
    for _ in range(50):
        scores = rng.integers(0, 5, 12).tolist()
        targets = rng.choice(12, rng.integers(1, 9), replace=False).tolist()
        users.append(counted(scores, targets, int(rng.integers(0, 2))))
    owner = np.repeat(np.arange(50), [len(greater) for greater, _ in users])
    greater, ties = (np.concatenate(x) for x in zip(*users, strict=True))
    together = rank_metrics.per_user(greater, ties, owner, (1, 4))
    for n, (greater, ties) in enumerate(users):
        shuffled = rng.permutation(len(greater))
        alone = rank_metrics.per_user(
            np.array(greater)[shuffled],
            np.array(ties)[shuffled],
            np.zeros(len(greater), int),
            (1, 4),
        )
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][n], value[0], rtol=1e-12, atol=1e-15)


def test_a_constant_scorer_finds_several_targets_by_chance():
    """Of 100, 4 are targets: the first is at p with chance C(100 - p, 3) / C(100, 4)."""
    got = rank_metrics.per_user(np.zeros(4, int), np.full(4, 99), np.zeros(4, int), (10,))
    np.testing.assert_allclose(got['Recall@10'], 10 / 100)
    np.testing.assert_allclose(got['Precision@10'], 4 / 100)
    np.testing.assert_allclose(got['HR@10'], 1 - math.comb(90, 4) / math.comb(100, 4))
    mrr = sum(math.comb(100 - p, 3) / math.comb(100, 4) / p for p in range(1, 98))
    np.testing.assert_allclose(got['MRR'], mrr)


# ---- means and groups


def test_mean_and_mask():
    values = {'HR@1': np.array([1.0, 0.0, 1.0])}
    assert rank_metrics.mean(values) == {'HR@1': 2 / 3}
    assert rank_metrics.mean(values, np.array([True, True, False])) == {'HR@1': 0.5}
    assert rank_metrics.mean(values, np.zeros(3, bool)) == {}


def test_no_examples_reachable():
    unreachable, none = np.full(2, UNREACHABLE), np.zeros(2, int)
    nothing = {'HR@1': 0, 'NDCG@1': 0, 'MRR@1': 0, 'MRR': 0}
    assert rank_metrics.mean(rank_metrics.per_example(unreachable, none, (1,))) == nothing
    nothing |= {'Recall@1': 0, 'Precision@1': 0, 'MAP@1': 0}
    for owner in (np.arange(2), none):
        assert rank_metrics.mean(rank_metrics.per_user(unreachable, none, owner, (1,))) == nothing


def test_coverage():
    assert rank_metrics.coverage(np.array([[1, 2], [2, 0]]), 8) == 2 / 8


def test_buckets():
    # 12 interactions: item 2 has 4 (head, nothing before it); item 1 has 3 (4 of 12 before it:
    # mid); item 4 has 3 (7 before it: mid); item 5 has 2 (10 before it: tail); item 3 has none.
    counts = np.array([0, 3, 4, 0, 3, 2])
    assert rank_metrics.popularity_buckets(counts)[1:].tolist() == [1, 0, 2, 1, 2]
    values = {'HR@1': np.array([1.0, 0.0, 1.0])}
    members = rank_metrics.of_buckets(np.array([0, 2, 2]))
    assert rank_metrics.by_group(values, members) == {
        'head': {'examples': 1, 'HR@1': 1.0},
        'mid': {'examples': 0},
        'tail': {'examples': 2, 'HR@1': 0.5},
    }
