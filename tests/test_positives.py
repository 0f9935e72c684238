"""Users, same-target positives and similar items of a batch against slow loops."""

import math

import jax
import numpy as np
import pytest

from jaxrec.data import positives
from jaxrec.data.cuts import CutBatches
from jaxrec.data.histories import Histories
from jaxrec.data.packed import TrainBatches
from jaxrec.data.splits import leave_one_out

L = 6


@pytest.fixture
def histories():
    rng = np.random.default_rng(0)
    lengths = np.r_[rng.integers(3, 15, 40), 2, 3]  # one user without a training target
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, 13, offsets[-1]).astype(np.int32)
    items[offsets[41] : offsets[41] + 1] = 13
    return Histories(items, offsets, np.arange(42), np.arange(1, 15))


def users_of(histories, ends, **options):
    settings = {'max_len': L, 'seed': 0, 'same_target': True} | options
    return positives.Users(histories, ends, **settings)


def segments_of(batch):
    """Items of every segment, in order."""
    found = []
    for row in range(len(batch['items'])):
        numbers = batch['segments'][row]
        for number in range(1, numbers.max() + 1):
            here = numbers == number
            positions = batch['positions'][row, here]
            np.testing.assert_array_equal(positions, np.arange(L - here.sum(), L))
            found.append(batch['items'][row, here].tolist())
        assert not batch['items'][row][numbers == 0].any()
    return found


def prefixes(histories, ends):
    """item -> the windows before its training events, with the event's index."""
    found = {}
    for user in range(histories.num_users):
        first = histories.offsets[user]
        for event in range(first + 1, ends[user]):
            window = histories.items[max(first, event - L) : event].tolist()
            found.setdefault(int(histories.items[event]), []).append((event, window))
    return found


@pytest.mark.parametrize('windows', ['last', 'all'])
@pytest.mark.parametrize('multiple', [1, 3])
def test_packed_batches(histories, windows, multiple):
    ends = leave_one_out(histories).train_ends
    extras = users_of(histories, ends, multiple=multiple)
    batches = TrainBatches(
        histories, ends, max_len=L, rows=12, seed=1, windows=windows, extras=extras
    )
    known, others = prefixes(histories, ends), 0
    for step in range(2 * batches.steps_per_epoch):
        batch = batches(step)
        segments, positive = segments_of(batch), segments_of(batch['positive'])
        count = len(segments)
        assert len(batch['users']) % (64 * multiple) == 0
        assert len(batch['positive']['items']) % multiple == 0
        assert not batch['users'][count:].any() and len(positive) == count
        for n, (window, other) in enumerate(zip(segments, positive, strict=True)):
            user, target = batch['users'][n] - 1, batch['user_targets'][n]
            history = histories.history(user)[: ends[user] - histories.offsets[user]].tolist()
            assert any(
                history[i - len(window) : i] == window and history[i] == target
                for i in range(len(window), len(history))
            )
            assert other in [w for _, w in known[target]]
            if len(known[target]) > 1 and len({tuple(w) for _, w in known[target]}) > 1:
                others += other != window
    assert others


def test_every_other_event_of_the_item_comes_as_often(histories):
    ends = leave_one_out(histories).train_ends
    users = users_of(histories, ends)
    known = prefixes(histories, ends)
    item, events = max(known.items(), key=lambda pair: len(pair[1]))
    target = events[2][0]
    rng = np.random.default_rng(0)
    drawn = users._others(rng, np.full(9000, target))
    places, counts = np.unique(drawn, return_counts=True)
    assert set(places) == {event for event, _ in events} - {target}
    expected = 9000 / len(places)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < len(places) - 1 + 4 * math.sqrt(2 * (len(places) - 1))
    assert (histories.items[drawn] == item).all()
    lonely = int(histories.items[ends[41] - 1])  # of an item's only event
    single = [event for event, _ in known.get(lonely, [])]
    if len(single) == 1:
        assert users._others(rng, np.array(single)).tolist() == single


def test_batches_of_cuts(histories):
    ends = leave_one_out(histories).train_ends
    batches, *halves = (
        CutBatches(
            histories,
            ends,
            max_len=L,
            rows=16,
            cuts=2,
            seed=0,
            extras=users_of(histories, ends, multiple=2),
            process=process,
        )
        for process in ((0, 1), (0, 2), (1, 2))
    )
    for step in range(batches.steps_per_epoch):
        batch = batches(step)
        segments = segments_of(batch)
        for n, window in enumerate(segments):
            history = histories.history(batch['users'][n] - 1).tolist()
            assert str(window)[1:-1] in str(history)
            assert batch['user_targets'][n] == batch['targets'][n][batch['targets'][n] > 0][-1]
        assert (batch['users'] > 0).sum() == len(segments)
        joined = jax.tree.map(lambda *x: np.concatenate(x), *(half(step) for half in halves))
        jax.tree.map(np.testing.assert_array_equal, joined, batch)


def test_similar_items_against_a_loop(histories):
    ends = leave_one_out(histories).train_ends
    score, count = np.zeros((15, 15)), np.zeros(15)
    for user in range(histories.num_users):
        events = histories.items[histories.offsets[user] : ends[user]].tolist()
        for i in set(events):
            count[i] += 1
            for j in set(events) - {i}:
                score[i, j] += 1 / math.log(1 + len(events))
    score /= np.sqrt(np.maximum(np.outer(count, count), 1))
    expected = np.where(score.max(1) > 0, score.argmax(1), 0)
    got = positives.similar_items(histories, ends)
    assert got[0] == 0 and got[14] == 0  # padding, and an item that nobody has
    np.testing.assert_allclose(
        score[np.arange(15), got], score[np.arange(15), expected], rtol=1e-12
    )
    assert (got == expected).mean() > 0.8
