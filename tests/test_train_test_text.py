"""Layout train-test: pairs that come split, and what stops a reader in one line."""

import gzip

import numpy as np
import pytest
from real_data import real_data

from jaxrec import datasets
from jaxrec.config import Data
from jaxrec.data import splits
from jaxrec.data.histories import Histories
from jaxrec.errors import UserError

TRAIN, TEST = '0 3 1\n2 1\n1 0 2 3\n', '1 1\n0 2\n2\n'


def quiet(line):
    del line


def folder(path, **parts):
    path.mkdir(exist_ok=True)
    for name, text in ({'train': TRAIN, 'test': TEST} | parts).items():
        (path / f'{name}.txt').write_text(text)
    return Data(log=str(path), layout='train-test', data_dir=str(path.parent / 'data'))


def test_reads(tmp_path):
    histories, _ = datasets.load(folder(tmp_path / 'log'), quiet)
    assert histories.user_ids.tolist() == [0, 1, 2] and histories.item_ids.tolist() == [0, 1, 2, 3]
    # raw item i is number i + 1; a user's train items first, ascending
    assert histories.items.tolist() == [2, 4, 3, 1, 3, 4, 2, 2]
    assert histories.features['part'].tolist() == [0, 0, 2, 0, 0, 0, 2, 0]
    assert histories.offsets.tolist() == [0, 3, 7, 8] and histories.times is None


def test_valid_and_gzip(tmp_path):
    config = folder(tmp_path / 'log', valid='0 0\n')
    for name in ('train', 'valid'):
        path = tmp_path / 'log' / f'{name}.txt'
        path.with_name(f'{name}.txt.gz').write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (tmp_path / 'log' / 'user_list.txt').write_text('org_id remap_id\n7 0\n')  # not read
    histories, _ = datasets.load(config, quiet)
    assert histories.features['part'].tolist() == [0, 0, 1, 2, 0, 0, 0, 2, 0]


@pytest.mark.parametrize(
    ('parts', 'message'),
    [
        ({'test': '0 2\n7 1\n'}, r'test.txt has user 7, who is not in train.txt \(1 such'),
        ({'valid': '9 1\n'}, r'valid.txt has user 9, who is not in train.txt'),
        ({'train': TRAIN + '3 0 2 0\n'}, r'user 3 has item 0 twice, in train.txt and train.txt'),
        ({'test': '0 1\n'}, r'user 0 has item 1 twice, in train.txt and test.txt'),
        ({'train': TRAIN + '3 -1\n'}, r"train.txt has the item '?-1'?: node ids .* whole numbers"),
        ({'train': TRAIN + '-3 1\n'}, r"train.txt has the user '?-3'?: node ids .* whole numbers"),
        ({'train': TRAIN + '3 x7\n'}, r"train.txt has the item 'x7': node ids .* whole numbers"),
        ({'test': '0 02\n'}, r"test.txt has the item '02': node ids .* whole numbers"),
        ({'test': f'0 {10**20}\n'}, r"test.txt has the item '1000.*': node ids"),
        ({'train': TRAIN + '2 1\n'}, r'train.txt has user 2 on lines 2 and 4'),
        ({'test': ''}, 'test.txt is empty'),
    ],
)
def test_one_line_errors(tmp_path, parts, message):
    with pytest.raises(UserError, match=message) as e:
        datasets.load(folder(tmp_path / 'log', **parts), quiet)
    assert '\n' not in str(e.value)


def test_files_that_do_not_fit(tmp_path):
    config = folder(tmp_path / 'log')
    (tmp_path / 'log' / 'test.txt').unlink()
    with pytest.raises(UserError, match='has no test.txt'):
        datasets.load(config, quiet)
    config = folder(tmp_path / 'log')
    (tmp_path / 'log' / 'train.txt.gz').write_bytes(gzip.compress(TRAIN.encode()))
    with pytest.raises(UserError, match='are both the train part'):
        datasets.load(config, quiet)


# Splits of single events --------------------------------------------------------------------------


def histories(lengths, seed=0, **features):
    rng = np.random.default_rng(seed)
    items = [np.sort(rng.choice(60, n, replace=False)) + 1 for n in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(
        items=np.concatenate(items).astype(np.int32),
        offsets=offsets,
        user_ids=np.arange(len(lengths)) + 100,
        item_ids=np.arange(60) * 10,
        times=np.arange(offsets[-1]),
        features=features,
    )


def parts_of(made, split, user):
    """Items of the three parts of a user."""
    first, last = made.offsets[user : user + 2]
    ends = [split.train_ends[user]]
    for targets in (split.valid, split.test):
        at = np.flatnonzero(targets.users == user)
        assert not len(at) or targets.ends[at[0]] == ends[-1]
        ends.append(targets.stops[at[0]] if len(at) else ends[-1])
    assert ends[-1] == last
    return [set(p.tolist()) for p in np.split(made.items[first:last], np.array(ends[:-1]) - first)]


def test_random_split():
    lengths = [1, 2, 9, 10, 21, 40]
    h = histories(lengths, signal=np.arange(83))
    made = splits.parted(h, 'random', 0.1, 0.2, seed=3)
    split = splits.split(made, 'random', targets='all')
    for user, n in enumerate(lengths):
        train, valid, test = parts_of(made, split, user)
        wanted = int(0.2 * n + 1e-6), int(0.1 * n + 1e-6)
        assert (len(test), len(valid), len(train)) == (*wanted, n - sum(wanted))
        assert sorted(train | valid | test) == h.history(user).tolist()
    # columns go along, times do not, and only the seed decides
    owner = np.repeat(range(6), lengths)
    was, now = (list(zip(owner, one.items, strict=True)) for one in (h, made))
    assert made.features['signal'].tolist() == [was.index(pair) for pair in now]
    assert made.times is None
    again, other = (splits.parted(h, 'random', 0.1, 0.2, seed=s) for s in (3, 4))
    assert (again.items == made.items).all() and (other.items != made.items).any()
    tested = np.concatenate(
        [np.isin(h.history(u), list(parts_of(made, split, u)[2])) for u in (4, 5)]
    )
    assert tested[:30].any() and tested[30:].any()  # drawn, not the last ones


def test_one_training_event_is_left():
    made = splits.parted(histories([2, 3]), 'random', 0.5, 0.49)
    split = splits.split(made, 'random')
    assert (split.train_ends - made.offsets[:-1]).min() >= 1


def test_given_split_and_its_validation():
    part = np.zeros(32, np.int8)
    part[[3, 7, 25]] = 2
    h = histories([20, 12], part=part)
    made = splits.parted(h, 'given', 0.1, 0.0)
    split = splits.split(made, 'given', targets='all')
    for user, tested in enumerate((h.items[[3, 7]], h.items[[25]])):
        train, valid, test = parts_of(made, split, user)
        assert test == set(tested.tolist()) and len(valid) == 1 and not valid & (train | test)
    # without one all the rest trains, and one that is given stays
    split = splits.split(splits.parted(h, 'given', 0.0, 0.0), 'given', targets='all')
    assert not len(split.valid) and split.train_ends.tolist() == [18, 31]
    part[0] = 1
    split = splits.split(splits.parted(h, 'given', 0.5, 0.0), 'given', targets='all')
    assert split.valid.users.tolist() == [0] and split.train_ends.tolist() == [17, 31]


@pytest.mark.parametrize(
    ('kind', 'shares', 'change', 'message'),
    [
        ('random', (0.5, 0.5), {}, 'add up to < 1'),
        ('random', (0.1, 0.0), {}, 'task.test_share > 0'),
        ('given', (0.1, 0.0), {}, "column 'part' of the data .* has none"),
        ('given', (1.0, 0.0), {'part': [0, 0, 2, 0, 2]}, 'task.valid_share=1.0'),
        ('given', (0.1, 0.0), {'part': [0, 0, 3, 0, 2]}, "column 'part' holds 3"),
        ('given', (0.1, 0.0), {'part': [0.0, np.nan, 2, 0, 2]}, "column 'part' holds nan"),
        ('given', (0.1, 0.0), {'part': [0, 0, 0, 0, 0]}, 'names no test event'),
        ('given', (0.1, 0.0), {'part': [0, 0, 0, 2, 2]}, 'user 101 is evaluated and has no train'),
        ('random', (0.1, 0.1), {'repeat': True}, 'user 101 has item .* twice'),
    ],
)
def test_split_errors(kind, shares, change, message):
    h = histories([3, 2], **{n: np.array(v) for n, v in change.items() if n == 'part'})
    if 'repeat' in change:
        h.items[-1] = h.items[-2]
    with pytest.raises(UserError, match=message):
        splits.split(splits.parted(h, kind, *shares), kind)


REAL = {'gowalla': (29_858, 40_981, 217_242), 'ml-1m-graph': (6_022, 3_043, 99_455)}


@pytest.mark.slow
@pytest.mark.parametrize('name', REAL)
def test_real_files(tmp_path, name):
    source = real_data(name)
    config = Data(dataset=name, source=str(source), data_dir=str(tmp_path))
    found, _ = datasets.load(config, quiet)
    tested = int((found.features['part'] == 2).sum())
    assert (found.num_users, found.num_items, tested) == REAL[name]
