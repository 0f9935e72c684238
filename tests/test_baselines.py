"""Baselines against a loop over users and items."""

import collections

import numpy as np
import pytest

from jaxrec import config
from jaxrec.data.histories import Histories
from jaxrec.data.splits import leave_one_out, temporal
from jaxrec.devices.top_k import UNREACHABLE
from jaxrec.evaluation import baselines, protocols
from jaxrec.evaluation.ranking import Task

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


@pytest.mark.parametrize('group', [1, 1 << 23])
@pytest.mark.parametrize('name', ['popularity', 'last_week_popularity', 'markov'])
@pytest.mark.parametrize(
    'protocol, filter_seen', [('full', True), ('full', False), ('uniform', True)]
)
@pytest.mark.parametrize('kind', ['leave-one-out', 'temporal'])
def test_against_a_loop(name, protocol, filter_seen, kind, group, monkeypatch):
    monkeypatch.setattr(baselines, '_PAIRS_AT_ONCE', group)
    histories = make_histories()
    split = leave_one_out(histories) if kind == 'leave-one-out' else temporal(histories, 0.2, 0.2)
    settings = config.Eval(protocol=protocol, filter_seen=filter_seen, negatives=9)
    task = Task(histories, split, 'test', protocols.protocol_of(settings))
    result = baselines.evaluate(task)[name]
    for i, (user, end) in enumerate(zip(task.targets.users, task.targets.ends, strict=True)):
        history = histories.items[histories.offsets[user] : end]
        target = int(histories.items[end])
        scores = slow_scores(histories, split, name, int(history[-1]))
        if protocol == 'full':
            others = set(range(1, ITEMS + 1)) - {target}
            if filter_seen:
                others -= set(history.tolist())
        else:
            others = set(task.candidates(np.array([i]))[0].tolist()) - {0}
        if task.filter_seen and target in history:
            want = (UNREACHABLE, 0)
        else:
            beat = sum(scores[j] > scores[target] for j in others)
            want = (beat, sum(scores[j] == scores[target] for j in others))
        assert (result.greater[i], result.ties[i]) == want
    assert result.users == len(task.targets)


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
    task = Task(histories, split, 'valid', protocols.protocol_of(config.Eval()))
    assert list(baselines.evaluate(task)) == ['popularity', 'markov']


def test_ticks_per_day():
    assert baselines.ticks_per_day(978_300_760) == DAY
    assert baselines.ticks_per_day(978_300_760_000) == DAY * 1000
    assert baselines.ticks_per_day(17_000) is None
