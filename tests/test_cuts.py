"""Batches of cuts against slow loops over users, and exact expectations of systematic sampling."""

import math
from fractions import Fraction

import jax
import numpy as np
import pytest

from jaxrec.data.cuts import CutBatches
from jaxrec.data.histories import Histories
from jaxrec.errors import UserError

LENGTHS = [0, 1, 2, 3, 4, 5, 6, 9, 14, 30, 1, 7, 8, 0, 21, 3]  # one event of each is no training
W, ITEMS = 6, 12


def make_histories(lengths=LENGTHS, items=ITEMS, seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(
        items=rng.integers(1, items + 1, offsets[-1]).astype(np.int32),
        offsets=offsets,
        user_ids=np.arange(len(lengths)),
        item_ids=np.arange(1, items + 1),
    )


HISTORIES = make_histories()
TRAIN_ENDS = np.maximum(HISTORIES.offsets[1:] - 1, HISTORIES.offsets[:-1])


def number_events(index):
    """Codes that tell which event of the histories stands in a place: its index, from 1."""
    return {
        'event': (index + 1).astype(np.int32),
        'pair': np.stack([index + 1, 2 * index + 5], axis=1).astype(np.int32),
    }


def make(histories=HISTORIES, train_ends=TRAIN_ENDS, **options):
    defaults = {'max_len': W, 'rows': 4, 'seed': 0, 'codes': number_events}
    return CutBatches(histories, train_ends, **(defaults | options))


def targets_of_users(train_starts=None):
    """User -> indices of the events that may be targets: all but the first, in training."""
    targets = {}
    for u, (start, end) in enumerate(zip(HISTORIES.offsets[:-1], TRAIN_ENDS, strict=True)):
        first = start + 1 if train_starts is None else max(start + 1, train_starts[u])
        if end > first:
            targets[u] = list(range(first, end))
    return targets


TARGETS = targets_of_users()


def epoch_of(batches, epoch):
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    return [batches(step) for step in steps]


def real_rows(batches, epoch):
    """(index of the row's last target, its values in the batch) of every row but padding."""
    for batch in epoch_of(batches, epoch):
        for row in range(len(batch['items'])):
            if batch['segments'][row].any():
                values = jax.tree.map(lambda x, row=row: x[row], batch)
                # the numbered event in the last place counts from 1: it is the target's index
                yield int(values['features']['event'][-1]), values


def drawn_targets(batches, epoch):
    """Indices of all the events that are targets in an epoch."""
    drawn = []
    for last, values in real_rows(batches, epoch):
        count = len(values['weights'])
        drawn += [last - (count - 1 - g) for g in range(count) if values['weights'][g]]
    return drawn


def user_of(event):
    return int(np.searchsorted(HISTORIES.offsets, event, side='right')) - 1


def windows_of(targets, cuts, windows):
    """How many windows a user of so many targets has in an epoch."""
    needed = math.ceil(targets / cuts)
    return min(windows, needed) if windows else needed


def exact_chances(targets, cuts, taken):
    """Expected times each target is drawn in an epoch, over all random starts.

    A window at place p holds targets p - G + 1 .. p; the places are floor((n + start) apart). What
    they are only changes at multiples of 1 / places, so their middles stand for all starts. As many
    windows as take all targets hold each of them once.
    """
    if taken * cuts >= targets:
        return [Fraction(1)] * targets
    places = targets + cuts - 1
    chances = [Fraction(0)] * targets
    for i in range(places):
        start = Fraction(2 * i + 1, 2 * places)
        for n in range(taken):
            place = math.floor((n + start) * Fraction(places, taken))
            for target in range(place - cuts + 1, place + 1):
                if 0 <= target < targets:
                    chances[target] += Fraction(1, places)
    return chances


def exact_expectations(cuts, windows):
    """Event -> expected times it is a target of an epoch."""
    expected = {}
    for targets in TARGETS.values():
        taken = windows_of(len(targets), cuts, windows)
        chances = exact_chances(len(targets), cuts, taken)
        expected |= dict(zip(targets, chances, strict=True))
    return expected


@pytest.mark.parametrize('cuts', [1, 3])
def test_an_epoch_without_limit_holds_every_target_once(cuts):
    batches = make(cuts=cuts)
    expected = sorted(event for targets in TARGETS.values() for event in targets)
    for epoch in (0, 1, 5):
        assert sorted(drawn_targets(batches, epoch)) == expected
    assert batches.targets_per_epoch == len(expected)


@pytest.mark.parametrize('cuts', [1, 2, 3, W])
@pytest.mark.parametrize('windows', [0, 1, 2, 5])
def test_windows_of_every_user_and_no_target_twice(windows, cuts):
    batches = make(cuts=cuts, windows=windows)
    wanted = {u: windows_of(len(targets), cuts, windows) for u, targets in TARGETS.items()}
    allowed = {event for targets in TARGETS.values() for event in targets}
    for epoch in range(8):
        rows = {}
        for last, _ in real_rows(batches, epoch):
            rows[user_of(last)] = rows.get(user_of(last), 0) + 1
        assert rows == wanted
        drawn = drawn_targets(batches, epoch)
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= allowed
    assert batches.rows_per_epoch == batches.examples_per_epoch == sum(wanted.values())


@pytest.mark.parametrize(('cuts', 'windows'), [(1, 1), (1, 3), (2, 2), (3, 1), (4, 2)])
def test_over_many_epochs_each_target_comes_as_often_as_expected(cuts, windows):
    epochs = 600
    batches = make(cuts=cuts, windows=windows, rows=64)
    expected = exact_expectations(cuts, windows)
    counts = dict.fromkeys(expected, 0)
    for epoch in range(epochs):
        for event in drawn_targets(batches, epoch):
            counts[event] += 1
    for targets in TARGETS.values():  # all of a user's targets alike
        assert len({expected[event] for event in targets}) == 1
    for event, count in counts.items():  # once an epoch or not at all: a binomial
        chance = float(expected[event])
        deviation = math.sqrt(epochs * chance * (1 - chance))
        assert abs(count - epochs * chance) <= 5 * deviation + 1e-6, event
    total = float(sum(expected.values()))
    assert batches.targets_per_epoch == round(total)
    assert abs(sum(counts.values()) / epochs - total) < 0.1 * math.sqrt(total)


@pytest.mark.parametrize(('cuts', 'windows'), [(1, 0), (1, 2), (3, 0), (3, 2), (W, 1)])
def test_log_share_is_the_targets_expected_share(cuts, windows):
    batches = make(cuts=cuts, windows=windows)
    of_event = exact_expectations(cuts, windows)
    of_item = {}
    for event, times in of_event.items():
        item = int(HISTORIES.items[event])
        of_item[item] = of_item.get(item, 0) + times
    total = sum(of_item.values())
    seen = set()
    for epoch in range(3):
        for batch in epoch_of(batches, epoch):
            for item, share in zip(
                batch['targets'].ravel().tolist(), batch['log_share'].ravel(), strict=True
            ):
                if item:
                    np.testing.assert_allclose(share, math.log(of_item[item] / total), rtol=1e-5)
                    seen.add(item)
                else:
                    assert share == 0
            assert batch['log_share'].dtype == np.float32
    assert len(seen) > ITEMS / 2


@pytest.mark.parametrize(('cuts', 'windows'), [(1, 0), (3, 0), (3, 1), (W, 2)])
def test_a_row_is_the_history_before_its_last_target(cuts, windows):
    batches = make(cuts=cuts, windows=windows)
    masks = set()
    for epoch in range(4):
        for last, values in real_rows(batches, epoch):
            user = user_of(last)
            assert last in TARGETS[user]
            events = np.arange(max(HISTORIES.offsets[user], last - W), last)
            n = len(events)
            assert n > 0
            np.testing.assert_array_equal(values['features']['event'][W - n :], events + 1)
            np.testing.assert_array_equal(values['features']['pair'][W - n :, 0], events + 1)
            np.testing.assert_array_equal(values['features']['pair'][W - n :, 1], 2 * events + 5)
            np.testing.assert_array_equal(values['items'][W - n :], HISTORIES.items[events])
            np.testing.assert_array_equal(values['segments'], [0] * (W - n) + [1] * n)
            np.testing.assert_array_equal(values['positions'][W - n :], np.arange(W - n, W))
            padding = (values['items'], values['positions'], *values['features'].values())
            assert all((value[: W - n] == 0).all() for value in padding)
            masks.add(tuple(values['weights'].tolist()))
            assert values['weights'][-1] == 1
            for g, (target, weight) in enumerate(
                zip(values['targets'], values['weights'], strict=True)
            ):
                event = last - (cuts - 1 - g)
                assert weight == (target > 0)
                if weight:
                    assert event in TARGETS[user]
                    assert target == HISTORIES.items[event]
                    if g < cuts - 1:  # stands in the row, after the cut
                        assert target == values['items'][W - (cuts - 1 - g)]
    # windows over a history's ends have fewer targets: missing before the last one
    assert all(list(mask) == sorted(mask) for mask in masks)
    assert len(masks) > 1 or cuts == 1


def test_shapes_and_types():
    batch = make(cuts=3, rows=5)(0)
    types = jax.tree.map(lambda x: (x.shape, x.dtype.name), batch)
    assert types == {
        'items': ((5, W), 'int32'),
        'segments': ((5, W), 'int32'),
        'positions': ((5, W), 'int32'),
        'features': {'event': ((5, W), 'int32'), 'pair': ((5, W, 2), 'int32')},
        'targets': ((5, 3), 'int32'),
        'weights': ((5, 3), 'float32'),
        'log_share': ((5, 3), 'float32'),
    }


def test_rows_are_spread_evenly_and_the_rest_is_padding():
    batches = make(rows=9)  # 88 rows in 10 steps
    counts = []
    for batch in epoch_of(batches, 0):
        real = batch['segments'].any(1)
        assert list(real) == sorted(real, reverse=True)
        for value in jax.tree.leaves(batch):
            assert len(value) == 9 and (value[~real] == 0).all()
        counts.append(int(real.sum()))
    assert sum(counts) == batches.rows_per_epoch
    assert set(counts) == {8, 9}


@pytest.mark.parametrize(('cuts', 'windows'), [(1, 0), (3, 2)])
def test_fill_is_the_share_of_real_tokens(cuts, windows):
    batches = make(cuts=cuts, windows=windows)
    tokens = sum(batch['segments'].sum() for batch in epoch_of(batches, 0))
    np.testing.assert_allclose(batches.fill, tokens / (batches.rows_per_epoch * W))


def test_batch_is_a_pure_function_of_seed_and_step():
    one, two = make(cuts=2, windows=2), make(cuts=2, windows=2)
    two(11)  # another order of calls
    two.fill  # noqa: B018  (which looks at epoch 0)
    for step in (0, 13, 4, 13):
        a, b = one(step), two(step)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    other = make(cuts=2, windows=2, seed=1)
    assert not np.array_equal(one(0)['items'], other(0)['items'])
    assert not np.array_equal(one(0)['items'], one(one.steps_per_epoch)['items'])
    assert sorted(drawn_targets(one, 0)) != sorted(drawn_targets(one, 1))


def test_processes_share_the_global_batch():
    whole = make(rows=6, cuts=2)
    parts = [make(rows=6, cuts=2, process=(i, 3)) for i in range(3)]
    padded = 0
    for step in range(2 * whole.steps_per_epoch):
        expected, thirds = whole(step), [part(step) for part in parts]
        joined = jax.tree.map(lambda *x: np.concatenate(x), *thirds)
        jax.tree.map(np.testing.assert_array_equal, expected, joined)
        padded += (~expected['segments'].any(1)).sum()
    assert padded  # a slice of the padding too


@pytest.mark.parametrize('cuts', [1, 3])
def test_no_target_before_train_starts_but_its_history(cuts):
    train_starts = HISTORIES.offsets[:-1] + np.array(
        [0, 0, 0, 1, 2, 2, 3, 7, 4, 20, 1, 9, 0, 0, 5, 2]
    )
    targets = targets_of_users(train_starts)
    assert len(targets) < len(TARGETS)  # some users have none left
    batches = make(cuts=cuts, train_starts=train_starts)
    drawn = set()
    for epoch in range(20):
        drawn |= set(drawn_targets(batches, epoch))
        for last, values in real_rows(batches, epoch):
            start = HISTORIES.offsets[user_of(last)]
            assert values['segments'].sum() == min(last - start, W)
    assert drawn == {event for events in targets.values() for event in events}


def test_users_of_one_training_event_or_none_are_left_out():
    histories = make_histories([0, 1, 2, 3])
    for ends, users in (([0, 1, 2, 5], {3}), ([0, 1, 3, 4], {2}), ([0, 1, 3, 6], {2, 3})):
        batches = make(histories, np.array(ends))
        found = {
            int(np.searchsorted(histories.offsets, last, side='right')) - 1
            for last, _ in real_rows(batches, 0)
        }
        assert found == users


def test_nothing_to_train_on_is_an_error():
    histories = make_histories([0, 1, 2])
    with pytest.raises(UserError, match='nothing to train on'):
        make(histories, np.array([0, 1, 2]))
    with pytest.raises(UserError, match='nothing to train on'):
        make(histories, np.array([0, 1, 3]), train_starts=np.array([0, 1, 3]))


def test_rows_must_divide_over_the_processes():
    with pytest.raises(UserError, match='train.batch_rows=4 does not divide over 3 processes'):
        make(process=(0, 3))


def test_more_cuts_than_a_row_has_places_is_an_error():
    with pytest.raises(UserError, match=f'task.cuts={W + 1} is more than the model.max_len={W}'):
        make(cuts=W + 1)
