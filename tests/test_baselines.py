"""Baselines against a loop over users and items."""

import collections

import numpy as np
import pytest

from jaxrec.data import splits
from jaxrec.data.histories import Histories
from jaxrec.data.splits import leave_one_out
from jaxrec.devices.top_k import UNREACHABLE
from jaxrec.evaluation import baselines, protocols
from jaxrec.evaluation.ranking import Ranking
from jaxrec.tasks import next_item

ITEMS, USERS, DAY = 25, 60, 86_400


def make_histories(unit=1):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, USERS)
    total = int(lengths.sum())
    gaps = rng.integers(0, DAY, total)
    starts = np.repeat(rng.integers(0, 20 * DAY, USERS), lengths)
    owner = np.repeat(np.arange(USERS), lengths)
    times = np.zeros(total, np.int64)
    for user in range(USERS):
        mine = owner == user
        times[mine] = 1_500_000_000 + starts[mine] + np.cumsum(gaps[mine])
    return Histories(
        items=np.minimum(
            rng.integers(1, ITEMS + 1, total), rng.integers(1, ITEMS + 1, total)
        ).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_ids=np.arange(USERS),
        item_ids=np.arange(ITEMS),
        times=times * unit,
    )


def slow_scores(histories, split, name, last):
    """Score of every item after `last`, as tuples, from the training events one by one."""
    events, follow = [], collections.Counter()
    for user in range(USERS):
        start, end = histories.offsets[user], split.train_ends[user]
        events += list(range(start, end))
        for i in range(start, end - 1):
            if histories.items[i] == last:
                follow[int(histories.items[i + 1])] += 1
    if name == 'last_week_popularity':
        newest = max(histories.times[i] for i in events)
        events = [i for i in events if histories.times[i] > newest - 7 * DAY]
    popular = collections.Counter(int(histories.items[i]) for i in events)
    if name == 'markov':
        return {j: (follow[j], popular[j]) for j in range(1, ITEMS + 1)}
    return {j: popular[j] for j in range(1, ITEMS + 1)}


SPLITS = {
    'leave-one-out': {},
    'temporal, first': {'targets': 'first'},
    'temporal, all': {'targets': 'all'},
    'users, all': {'targets': 'all', 'prefix_share': 0.3},
}
CASES = [(kind, 'full', filter_seen) for kind in SPLITS for filter_seen in (True, False)]
# several targets are ranked among the whole catalogue only
CASES += [(kind, 'uniform', True) for kind in SPLITS if not kind.endswith('all')]


@pytest.mark.parametrize('kind, protocol, filter_seen', CASES)
def test_against_a_loop(kind, protocol, filter_seen, monkeypatch):
    """All users at once, or in groups of one: the counts of every target of every user."""
    histories = make_histories()
    split = splits.split(histories, kind.partition(',')[0], 0.2, 0.4, **SPLITS[kind])
    settings = next_item.Config(protocol=protocol, filter_seen=filter_seen, negatives=9)
    ranking = Ranking(histories, split, 'test', protocols.protocol_of(settings))
    found = [baselines.counts(ranking)]
    monkeypatch.setattr(baselines, '_PAIRS_AT_ONCE', 1)
    found.append(baselines.counts(ranking))
    assert [tuple(counts) for counts in found] == [baselines.NAMES] * 2
    want = {name: [] for name in baselines.NAMES}
    parts = split.test
    for i, (user, end, stop) in enumerate(zip(parts.users, parts.ends, parts.stops, strict=True)):
        history = histories.items[histories.offsets[user] : end]
        allowed = set(range(1, ITEMS + 1))
        if protocol == 'uniform':
            allowed = set(ranking.candidates(np.array([i]))[0].tolist()) - {0}
        if ranking.filter_seen:
            allowed -= set(history.tolist())
        for name, counts in want.items():
            scores = slow_scores(histories, split, name, int(history[-1]))
            for target in sorted(set(histories.items[end:stop].tolist())):
                others = allowed - {target}
                beat = sum(scores[j] > scores[target] for j in others)
                same = sum(scores[j] == scores[target] for j in others)
                hidden = ranking.filter_seen and target in history
                counts.append((UNREACHABLE, 0) if hidden else (beat, same))
    for name, counts in want.items():
        for of in found:
            np.testing.assert_array_equal(np.stack(of[name], -1), counts, err_msg=name)
    assert len(counts) == len(ranking.items)
    assert (len(counts) > len(parts)) == kind.endswith('all')


@pytest.mark.parametrize('unit', [1, 10**3, 10**6, 10**9])
def test_unit_of_time(unit):
    want = baselines.last_week_counts(make_histories(), leave_one_out(make_histories()))
    histories = make_histories(unit)
    got = baselines.last_week_counts(histories, leave_one_out(histories))
    np.testing.assert_array_equal(got, want)
    assert 0 < got.sum() < len(histories.items)


def test_no_last_week_without_times():
    histories = make_histories()
    split = leave_one_out(histories)
    histories.times = histories.times - 1_500_000_000  # small numbers: no unit to tell
    assert baselines.last_week_counts(histories, split) is None
    histories.times = None
    ranking = Ranking(histories, split, 'valid', protocols.protocol_of(next_item.Config()))
    assert list(ranking.references()) == ['popularity', 'markov']


def test_ticks_per_day():
    assert baselines.ticks_per_day(978_300_760) == DAY
    assert baselines.ticks_per_day(978_300_760_000) == DAY * 1000
    assert baselines.ticks_per_day(17_000) is None
