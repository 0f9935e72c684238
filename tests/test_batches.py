"""Packing, windows and negatives against what they promise, on ragged random histories."""

import itertools

import jax
import numpy as np
import pytest

from jaxrec.data import history_batches as history_batches_lib
from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import history_batch, history_batches
from jaxrec.data.negatives import UnseenNegatives
from jaxrec.data.packed import TrainBatches, pack_lengths
from jaxrec.data.splits import Targets, leave_one_out
from jaxrec.errors import UserError
from jaxrec.training.loop import prefetch


def make_histories(lengths, items=40, seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(
        items=rng.integers(1, items + 1, offsets[-1]).astype(np.int32),
        offsets=offsets,
        user_ids=np.arange(len(lengths)),
        item_ids=np.arange(1, items + 1),
    )


LENGTHS = [1, 2, 3, 4, 5, 5, 9, 13, 30, 7, 7, 6, 3, 3, 21, 8, 4]


def make(histories, **options):
    split = leave_one_out(histories)
    defaults = {'max_len': 8, 'rows': 3, 'seed': 0}
    return TrainBatches(histories, split.train_ends, **(defaults | options)), split


def segments_of(batch):
    """Every packed window as (items, targets, positions) lists."""
    for row, (items, targets, segments, positions) in enumerate(
        zip(*(batch[k] for k in ('items', 'targets', 'segments', 'positions')), strict=True)
    ):
        del row
        for number in range(1, segments.max() + 1):
            here = segments == number
            assert np.ptp(np.flatnonzero(here)) == here.sum() - 1  # contiguous
            yield list(items[here]), list(targets[here]), list(positions[here])


@pytest.mark.parametrize('windows', ['last', 'all'])
def test_an_epoch_holds_every_window_once(windows):
    histories = make_histories(LENGTHS)
    train, split = make(histories, windows=windows)
    expected = []
    for u in range(histories.num_users):
        items = list(histories.items[histories.offsets[u] : split.train_ends[u]])
        end = len(items)
        while end >= 2:  # from the user's end, in windows of 8 targets
            start = max(end - 1 - 8, 0)
            expected.append((items[start : end - 1], items[start + 1 : end]))
            end = start + 1 if windows == 'all' else 0
    for epoch in (0, 3):
        steps = range(epoch * train.steps_per_epoch, (epoch + 1) * train.steps_per_epoch)
        got = [s for step in steps for s in segments_of(train(step))]
        assert sorted((i, t) for i, t, _ in got) == sorted(expected)
        for items, _, positions in got:  # counted from the user's end
            assert positions == list(range(8 - len(items), 8))
    assert train.targets_per_epoch == sum(len(t) for _, t in expected)
    assert train.examples_per_epoch == len(expected)


def test_batch_is_a_pure_function_of_seed_and_step():
    histories = make_histories(LENGTHS)
    one, _ = make(histories, unseen_negatives=2)
    two, _ = make(histories, unseen_negatives=2)
    two(7)  # another order of calls
    for step in (0, 9, 4, 9):
        a, b = one(step), two(step)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    other, _ = make(histories, seed=1)
    assert not np.array_equal(one(0)['items'], other(0)['items'])
    assert not np.array_equal(one(0)['items'], one(one.steps_per_epoch)['items'])


@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize('k', [0, 1])
def test_processes_share_the_global_batch(k, count):
    histories = make_histories(LENGTHS * 3)
    whole, _ = make(histories, rows=4, unseen_negatives=k)
    flags = {'rows': 4, 'unseen_negatives': k}
    parts = [make(histories, **flags, process=(i, count))[0] for i in range(count)]
    for step in range(whole.steps_per_epoch):
        expected, shares = whole(step), [p(step) for p in parts]
        joined = jax.tree.map(lambda *x: np.concatenate(x), *shares)
        jax.tree.map(np.testing.assert_array_equal, expected, joined)
    with pytest.raises(UserError, match='does not divide over 3 processes'):
        make(histories, rows=4, process=(0, 3))


def test_packing_is_tight_and_padding_is_marked():
    histories = make_histories(np.random.default_rng(0).geometric(0.15, 500) + 2)
    train, _ = make(histories, max_len=50, rows=8)
    assert train.fill > 0.97
    batch = train(0)
    padding = batch['segments'] == 0
    for name in ('items', 'targets', 'positions', 'weights'):
        assert (batch[name][padding] == 0).all()
    assert (batch['weights'][~padding] == 1).all()
    assert (batch['items'][~padding] > 0).all()


@pytest.mark.parametrize('seed', range(5))
def test_pack_lengths_uses_each_length_once_and_overfills_nothing(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 30))
    lengths = rng.integers(1, size + 1, int(rng.integers(1, 300)))
    slots, rows = pack_lengths(lengths, size)
    assert sorted(slots) == sorted(lengths)
    sums = [slots[a:b].sum() for a, b in itertools.pairwise(rows)]
    assert max(sums) <= size and min(sums) > 0
    assert len(sums) <= 1.5 * np.ceil(lengths.sum() / size) + 1


def test_unseen_negatives_avoid_the_whole_training_history_and_are_uniform():
    histories = make_histories([11, 4, 9], items=12, seed=2)
    split = leave_one_out(histories)
    draw = UnseenNegatives(histories, split.train_ends, 4)
    users = np.repeat([1, 2], 4000)
    drawn = draw(np.random.default_rng(0), users)
    for user in (1, 2):
        train = histories.items[histories.offsets[user] : split.train_ends[user]]
        allowed = np.setdiff1d(np.arange(1, 13), train)
        counts = np.bincount(drawn[users == user].ravel(), minlength=13)
        assert set(np.flatnonzero(counts)) == set(allowed)
        expected = counts.sum() / len(allowed)
        assert np.abs(counts[allowed] - expected).max() < 6 * np.sqrt(expected)


def test_unseen_negatives_impossible_is_an_error():
    histories = make_histories([50, 5], items=3)
    with pytest.raises(UserError, match='seen every item: task.unseen_negatives must be 0'):
        UnseenNegatives(histories, leave_one_out(histories).train_ends, 1)


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(UserError, match='nothing to train on'):
        make(make_histories([1, 1]))
    with pytest.raises(UserError, match='windows'):
        make(make_histories([5]), windows='some')


def test_history_batches_cover_each_target_once():
    histories = make_histories([*LENGTHS, 70])
    targets = leave_one_out(histories).test
    found = np.zeros(len(targets), int)
    shapes = set()
    for chosen, batch in history_batches(histories, targets, max_len=20, batch_users=4):
        shapes.add((batch['items'].shape, batch['seen'].shape))
        assert len(batch['items']) == 4
        for row, index in enumerate(chosen):
            found[index] += 1
            start, end = histories.offsets[targets.users[index]], targets.ends[index]
            history = histories.items[start:end]
            width = batch['items'].shape[1]
            newest = history[-20:]
            n = len(newest)
            assert width >= n
            assert list(batch['items'][row, width - n :]) == list(newest)
            assert (batch['items'][row, : width - n] == 0).all()
            assert list(batch['positions'][row, width - n :]) == list(range(20 - n, 20))
            assert (batch['segments'][row] == (batch['items'][row] > 0)).all()
            assert set(batch['seen'][row]) - {0} == set(history)
        assert (batch['items'][len(chosen) :] == 0).all()
    assert (found == 1).all()
    assert len(shapes) <= 5


@pytest.mark.parametrize('multiple, rows', [(1, 4), (4, 4)])
def test_batches_of_long_histories_are_small(monkeypatch, multiple, rows):
    monkeypatch.setattr(history_batches_lib, 'SEEN_ENTRIES', 7 * 64)
    histories = make_histories([6] * 20 + [60] * 9 + [1000])
    targets = leave_one_out(histories).test
    found, shapes = [], set()
    for chosen, batch in history_batches(
        histories, targets, max_len=20, batch_users=12, multiple=multiple
    ):
        found += chosen.tolist()
        shapes.add(batch['seen'].shape)
        assert len(batch['items']) == len(batch['seen'])
    assert sorted(found) == list(range(30))
    assert shapes == {(12, 8), (rows, 64), (multiple, 1024)}


def test_history_batch_empty_history():
    batch = history_batch(
        np.zeros(0, np.int32), np.zeros(2, int), np.zeros(2, int), width=8, max_len=8
    )
    assert (batch['items'] == 0).all() and batch['items'].shape == (2, 8)


def test_prefetch_keeps_order_and_passes_errors_on():
    feed = prefetch(lambda step: {'step': step}, start=5)
    assert [next(feed)['step'] for _ in range(4)] == [5, 6, 7, 8]
    feed.close()

    def fails(step):
        raise OSError('disk gone')

    with pytest.raises(OSError, match='disk gone'):
        next(prefetch(fails, 0))


def test_targets_take():
    targets = Targets(np.arange(4), np.arange(4) * 10).take(np.array([2, 0]))
    assert list(targets.users) == [2, 0] and list(targets.ends) == [20, 0]
