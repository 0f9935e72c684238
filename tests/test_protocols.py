"""Presets, and what sampled candidates avoid, repeat and are distributed like."""

import json

import numpy as np
import pytest

from jaxrec.data.histories import Histories
from jaxrec.data.splits import leave_one_out
from jaxrec.errors import UserError
from jaxrec.evaluation import protocols
from jaxrec.experiment import Experiment, check
from jaxrec.models import sasrec
from jaxrec.tasks import next_item


def make_histories(users=30, items=60, seed=0, longest=20):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest, users)
    lists = [rng.choice(items, n, replace=False) + 1 for n in lengths]
    return Histories(
        items=np.concatenate(lists).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_ids=np.arange(users),
        item_ids=np.arange(items) * 10,
    )


def draw(name, histories, users=None, negatives=20):
    protocol = protocols.protocol_of(next_item.Config(protocol=name, negatives=negatives))
    sampler = protocols.Negatives(protocol, histories, leave_one_out(histories))
    return sampler(np.arange(histories.num_users) if users is None else users)


def test_presets():
    full = protocols.protocol_of(next_item.Config())
    assert (full.candidates, full.filter_seen, full.negatives) == ('all', True, 0)
    assert not protocols.protocol_of(next_item.Config(filter_seen=False)).filter_seen
    sasrec = protocols.protocol_of(next_item.Config(protocol='sasrec-2018', negatives=7))
    assert (sasrec.negatives, sasrec.exclude, sasrec.duplicates) == (100, 'train', True)
    assert sasrec.max_users == 10_000
    s3rec = protocols.protocol_of(next_item.Config(protocol='s3rec-99'))
    assert (s3rec.negatives, s3rec.exclude, s3rec.duplicates) == (99, 'history', False)
    assert (
        protocols.protocol_of(next_item.Config(protocol='popularity', negatives=7)).negatives == 7
    )
    assert protocols.protocol_of(next_item.Config(cutoffs=(10, 1, 10))).cutoffs == (1, 10)
    for name in protocols.NAMES:
        recorded = protocols.asdict(protocols.protocol_of(next_item.Config(protocol=name)))
        assert json.loads(json.dumps(recorded)) == recorded
        assert recorded['name'] == name and recorded['ties'] == 'shared'


@pytest.mark.parametrize(
    'settings, text',
    [
        ({'protocol': 'sasrec'}, 'one of full, sasrec-2018, s3rec-99, uniform, popularity'),
        ({'protocol': 'uniform', 'negatives': 0}, 'task.negatives=0 must be at least 1'),
        ({'negatives': -4}, 'task.negatives=-4 must be at least 1'),
        ({'cutoffs': ()}, 'task.cutoffs'),
        ({'cutoffs': (0, 5)}, 'task.cutoffs'),
        ({'targets': 'all'}, 'has one target: set task.targets'),
        ({'targets': 'all', 'split': 'users', 'protocol': 'uniform'}, "needs task.protocol='full'"),
    ],
)
def test_errors(settings, text):
    with pytest.raises(UserError, match=text):
        check(Experiment(model=sasrec.Config(), task=next_item.Config(**settings)))


def test_numbers_that_cannot_be_compared_are_told_apart():
    """Whatever changes an evaluation is in its protocol; what does not, is not."""

    def told(**settings):
        return next_item.Config(**settings).protocol_fields()

    plain = told()
    assert plain == {
        **protocols.asdict(protocols.protocol_of(next_item.Config())),
        'data_split': 'leave-one-out',
    }
    assert told(batch_users=3, valid_users=9, windows='all') == plain
    users = {'split': 'users'}
    different = [
        {},
        {'protocol': 'uniform'},
        {'filter_seen': False},
        {'split': 'temporal'},
        {'split': 'temporal', 'test_share': 0.2},
        {'split': 'temporal', 'targets': 'all'},
        users,
        {**users, 'prefix_share': 0.5},
        {**users, 'targets': 'all'},
        {'periods': 3},
        {'periods': 3, 'targets': 'all'},
    ]
    found = [json.dumps(told(**settings), sort_keys=True) for settings in different]
    assert len(set(found)) == len(found)


def test_choose_users():
    targets = leave_one_out(make_histories(200)).test
    some = protocols.choose_users(targets, 50, 3)
    assert len(some) == 50 and (np.diff(some.users) > 0).all()
    again = protocols.choose_users(targets, 50, 3)
    np.testing.assert_array_equal(some.users, again.users)
    assert (protocols.choose_users(targets, 50, 4).users != some.users).any()
    for all_of_them in (0, 200, 1000):
        assert len(protocols.choose_users(targets, all_of_them, 3)) == 200


@pytest.mark.parametrize('name', ['uniform', 'popularity', 's3rec-99'])
def test_avoids_the_whole_history_without_repeats(name):
    histories = make_histories(items=200, users=100)
    drawn = draw(name, histories)
    for user in range(100):
        assert not set(drawn[user]) & set(histories.history(user))
        assert len(set(drawn[user])) == drawn.shape[1] and drawn[user].min() > 0


def test_sasrec_2018_avoids_training_items_only():
    histories = make_histories()
    drawn = draw('sasrec-2018', histories)
    own_test, repeats = 0, 0
    for user in range(30):
        assert not set(drawn[user]) & set(histories.history(user)[:-2])
        own_test += histories.history(user)[-1] in drawn[user]
        repeats += len(set(drawn[user])) < 100
    assert own_test > 10 and repeats == 30  # 100 draws among fewer than 60 items
    assert drawn.shape == (30, 100) and drawn.min() > 0


@pytest.mark.parametrize('name', ['uniform', 'popularity', 'sasrec-2018'])
def test_a_pure_function_of_the_user(name):
    histories = make_histories()
    everyone = draw(name, histories)
    some = np.array([17, 3, 28])
    np.testing.assert_array_equal(draw(name, histories, some), everyone[some])
    np.testing.assert_array_equal(draw(name, histories, some[:1])[0], everyone[17])


@pytest.mark.parametrize('name', ['uniform', 'popularity'])
def test_takes_all_when_few_are_left(name):
    """A user who has seen all but 4 items gets those 4, and no candidate in the other places."""
    items = np.concatenate([np.arange(1, 57), np.arange(50, 61)]).astype(np.int32)
    histories = Histories(items, np.array([0, 56, 67]), np.arange(2), np.arange(60))
    drawn = draw(name, histories, negatives=10)[0]
    # Of 57..60 only 57 and 58 are anybody's training items.
    want = [57, 58, 59, 60] if name == 'uniform' else [57, 58]
    assert sorted(drawn) == [0] * (10 - len(want)) + want


def test_repeats_when_few_are_left():
    items = np.arange(1, 60, dtype=np.int32)  # 57 train; 58, 59 are targets; 60 is unseen
    histories = Histories(items, np.array([0, 59]), np.arange(1), np.arange(60))
    drawn = draw('sasrec-2018', histories)[0]
    assert set(drawn) == {58, 59, 60}
    assert np.bincount(drawn)[58:].min() > 15


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def crowd(users=4000):
    """Many users with the history 1, 2, 3, and popular items 10 > 11 > ... > 19 beside them."""
    mine = np.tile(np.array([1, 2, 3], np.int32), users)
    extra = np.repeat(np.arange(10, 20), np.arange(10, 0, -1) * 100).astype(np.int32)
    items = np.concatenate([mine, extra, np.array([1, 1], np.int32)])
    offsets = np.concatenate([np.arange(users + 1) * 3, [len(items)]])
    return Histories(items, offsets, np.arange(users + 1), np.arange(20))


def test_uniform_distribution():
    histories = crowd()
    drawn = draw('uniform', histories, np.arange(4000), negatives=5)
    counts = np.bincount(drawn.reshape(-1), minlength=21)
    assert counts[:4].sum() == 0
    assert chi_square(counts[4:], np.full(17, 4000 * 5 / 17)) < 40  # 16 dof: p = 0.0008


@pytest.fixture(scope='module')
def successive():
    """How often each of ten weighted items is among three drawn without replacement."""
    rng, weights = np.random.default_rng(0), np.arange(10, 0, -1) / 55
    drawn = [rng.choice(10, 3, replace=False, p=weights) for _ in range(20000)]
    return np.bincount(np.concatenate(drawn), minlength=10) / 20000


@pytest.mark.parametrize('rounds', [0, 4])
def test_popularity_distribution(monkeypatch, rounds, successive):
    """First draws follow the counts; both ways to draw agree with numpy's successive sampling."""
    monkeypatch.setattr(protocols.Negatives, '_ROUNDS', rounds)
    histories = crowd()
    drawn = draw('popularity', histories, np.arange(4000), negatives=3)
    weights = np.arange(10, 0, -1) / 55
    first = np.bincount(drawn[:, 0], minlength=21)[10:20]
    assert chi_square(first, 4000 * weights) < 28  # 9 dof: p = 0.001
    got = np.bincount(drawn.reshape(-1), minlength=21)[10:20] / 4000
    np.testing.assert_allclose(got, successive, atol=0.035)


def test_training_counts():
    histories = Histories(
        np.array([1, 2, 1, 3, 2, 2], np.int32), np.array([0, 4, 6]), np.arange(2), np.arange(3)
    )
    counts = protocols.training_counts(histories, leave_one_out(histories))
    assert counts.tolist() == [0, 1, 3, 0]


@pytest.mark.parametrize('name', ['uniform', 'popularity'])
def test_too_few_is_the_number_of_short_lists(name, monkeypatch):
    monkeypatch.setattr(protocols, '_USERS_AT_ONCE', 7)
    histories = make_histories()
    protocol = protocols.protocol_of(next_item.Config(protocol=name, negatives=48))
    sampler = protocols.Negatives(protocol, histories, leave_one_out(histories))
    users = np.arange(histories.num_users)
    short = int((sampler(users) == 0).any(1).sum())
    assert 0 < short < len(users)
    assert sampler.too_few(users) == short
