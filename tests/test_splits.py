"""Splits worked out by hand, and that nothing of a held-out user trains."""

import numpy as np
import pytest

from jaxrec.config import Data, Train
from jaxrec.data import splits
from jaxrec.data.histories import Histories
from jaxrec.errors import UserError
from jaxrec.evaluation import baselines, protocols
from jaxrec.experiment import Experiment, check
from jaxrec.models import sasrec
from jaxrec.tasks import next_item


def make(lengths, times=None):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(
        items=np.arange(1, offsets[-1] + 1, dtype=np.int32),
        offsets=offsets,
        user_ids=np.arange(len(lengths)),
        item_ids=np.arange(1, offsets[-1] + 1),
        times=None if times is None else np.asarray(times),
    )


def told(targets):
    """[(user, first target, one past the last)]."""
    return list(
        zip(*(x.tolist() for x in (targets.users, targets.ends, targets.stops)), strict=True)
    )


def test_leave_one_out():
    # users: [1 2 3 4] [5 6] [7] [8 9 10] [] : the last is test, the one before valid, from 3 events
    split = splits.leave_one_out(make([4, 2, 1, 3, 0]))
    assert list(split.train_ends) == [2, 6, 7, 8, 10]
    assert told(split.valid) == [(0, 2, 3), (3, 8, 9)]  # items[2] = 3 and items[8] = 9
    assert told(split.test) == [(0, 3, 4), (3, 9, 10)]


def test_temporal():
    #               user 0            user 1       user 2   user 3
    times = [1, 2, 7, 8, 9] + [3, 4, 9] + [8, 9] + [5, 6]
    # 12 events sorted: 1 2 3 4 5 6 7 8 8 9 9 9; test from index 9 -> 9, valid from index 6 -> 7
    histories = make([5, 3, 2, 2], times)
    split = splits.temporal(histories, valid_share=0.25, test_share=0.25)
    assert list(split.train_ends) == [2, 7, 8, 12]
    assert told(split.valid) == [(0, 2, 4)]  # the events at 7 and 8
    assert told(split.test) == [(0, 4, 5), (1, 7, 8), (2, 9, 10)]
    first = splits.split(histories, 'temporal', 0.25, 0.25)
    assert told(first.valid) == [(0, 2, 3)] and told(first.test) == told(split.test)
    every = splits.split(histories, 'temporal', 0.25, 0.25, targets='all')
    assert told(every.valid) == told(split.valid)
    np.testing.assert_array_equal(every.train_ends, split.train_ends)


def test_errors():
    with pytest.raises(UserError, match='needs timestamps'):
        splits.split(make([3]), 'temporal', 0.1, 0.1)
    with pytest.raises(
        UserError, match="unknown task.split 'half': use leave-one-out, temporal, users, random"
    ):
        splits.split(make([3]), 'half', 0.1, 0.1)
    for kind in ('temporal', 'users'):
        with pytest.raises(UserError, match='task.valid_share and task.test_share .* add up'):
            splits.split(make([3], [1, 2, 3]), kind, 0.6, 0.6)
    with pytest.raises(UserError, match=r'task.prefix_share=1.0 is not in \(0, 1\)'):
        splits.split(make([3]), 'users', 0.1, 0.1, prefix_share=1.0)
    with pytest.raises(UserError, match='unknown split'):
        splits.leave_one_out(make([3])).targets('tests')


# ---- whole users held out


LENGTHS = np.r_[np.random.default_rng(0).integers(0, 30, 96), 0, 1, 2, 2]
HELD_OUT = make(LENGTHS)


def test_whole_users_are_held_out():
    split = splits.users(HELD_OUT, 0.2, 0.3, 0.75, seed=5)
    eligible = np.flatnonzero(LENGTHS >= 2)
    valid, test = set(split.valid.users), set(split.test.users)
    assert not valid & test and valid | test < set(eligible)
    assert len(test) == round(0.3 * len(eligible)) and len(valid) == round(0.2 * len(eligible))
    starts, ends = HELD_OUT.offsets[:-1], HELD_OUT.offsets[1:]
    for user in range(len(LENGTHS)):  # all or nothing of a user trains
        held_out = user in valid | test
        assert split.train_ends[user] == (starts if held_out else ends)[user]
    for part in (split.valid, split.test):
        assert (np.diff(part.users) > 0).all()
        for user, end, stop in told(part):  # inputs and targets are all there is of the user
            given, length = end - starts[user], int(LENGTHS[user])
            assert stop == ends[user] and 1 <= given < length
            assert given == min(max(3 * length // 4, 1), length - 1)


@pytest.mark.parametrize(('share', 'length', 'given'), [(0.8, 5, 4), (0.58, 50, 29), (0.1, 3, 1)])
def test_the_prefix_is_the_share_asked_for(share, length, given):
    """Not one event less where the product of floats falls short: 0.58 * 50 is 28.99.."""
    histories = make([length] * 10)
    split = splits.users(histories, 0.1, 0.5, share, seed=0)
    assert set(split.test.ends - histories.offsets[split.test.users]) == {given}


def test_who_is_held_out_is_the_seeds_choice():
    def held_out(seed, share=0.8):
        split = splits.users(HELD_OUT, 0.1, 0.2, share, seed)
        return split.valid.users.tolist(), split.test.users.tolist()

    assert held_out(1) == held_out(1) == held_out(1, share=0.3)  # nor does the prefix matter
    assert len({str(held_out(seed)) for seed in range(20)}) == 20
    drawn = np.bincount(np.concatenate([held_out(s)[1] for s in range(200)]), minlength=100)
    eligible = LENGTHS >= 2
    assert (drawn[eligible] > 15).all() and (drawn[eligible] < 70).all()  # 40 of each, expected
    assert not drawn[~eligible].any()


def of_users(windows, seed=0, **model):
    experiment = Experiment(
        model=sasrec.Config(dim=8, blocks=1, max_len=7, **model),
        task=next_item.Config(
            split='users', valid_share=0.2, test_share=0.3, targets='all', windows=windows
        ),
        data=Data(dataset='synthetic'),
        train=Train(batch_rows=4, seed=seed),
    )
    check(experiment)
    return next_item.NextItem(experiment, HELD_OUT, {'data_hash': '', 'path': ''})


@pytest.mark.parametrize('windows', ['last', 'all', 'cuts'])
def test_no_event_of_a_held_out_user_trains(windows):
    """Every event is an item of its own, so that a batch says whose it holds."""
    problem = of_users(windows, **({'loss': 'in_batch'} if windows == 'cuts' else {}))
    split = problem.split
    held_out = np.union1d(split.valid.users, split.test.users)
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)  # of item n + 1
    batches, trained = problem.periods[0]().batches, set()
    for step in range(batches.steps_per_epoch):
        batch = batches(step)
        for name in ('items', 'targets'):
            trained |= set(owner[batch[name][batch[name] > 0] - 1])
    learns = np.flatnonzero(LENGTHS >= 2)  # one event alone has nothing to predict
    assert trained == set(learns) - set(held_out)
    # Nor do baselines and buckets know them.
    counts = protocols.training_counts(HELD_OUT, split)[1:]
    assert not counts[np.isin(owner, held_out)].any() and counts[~np.isin(owner, held_out)].all()
    pairs, _ = baselines.transitions(HELD_OUT, split)
    assert not np.isin(owner[pairs % (HELD_OUT.num_items + 1) - 1], held_out).any()
    for which in ('valid', 'test'):  # but they are who is evaluated
        ranking = problem.evaluations[which]()
        part = split.targets(which)
        np.testing.assert_array_equal(ranking.targets.users, part.users)
        assert len(ranking.items) == (part.stops - part.ends).sum()


def test_all_seeds_of_an_experiment_hold_out_the_same_users():
    first, other = of_users('last', seed=0).split, of_users('last', seed=7).split
    np.testing.assert_array_equal(first.train_ends, other.train_ends)
