"""Splits worked out by hand."""

import numpy as np
import pytest

from jaxrec.data import splits
from jaxrec.data.histories import Histories
from jaxrec.errors import UserError


def make(lengths, times=None):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(
        items=np.arange(1, offsets[-1] + 1, dtype=np.int32),
        offsets=offsets,
        user_ids=np.arange(len(lengths)),
        item_ids=np.arange(1, offsets[-1] + 1),
        times=None if times is None else np.asarray(times),
    )


def test_leave_one_out():
    # users: [1 2 3 4] [5 6] [7] [8 9 10] [] : the last is test, the one before valid, from 3 events
    split = splits.leave_one_out(make([4, 2, 1, 3, 0]))
    assert list(split.train_ends) == [2, 6, 7, 8, 10]
    assert list(split.valid.users) == list(split.test.users) == [0, 3]
    assert list(split.valid.ends) == [2, 8]  # items[2] = 3 and items[8] = 9
    assert list(split.test.ends) == [3, 9]


def test_temporal():
    #               user 0            user 1       user 2   user 3
    times = [1, 2, 7, 8, 9] + [3, 4, 9] + [8, 9] + [5, 6]
    # 12 events sorted: 1 2 3 4 5 6 7 8 8 9 9 9; test from index 9 -> 9, valid from index 6 -> 7
    split = splits.temporal(make([5, 3, 2, 2], times), valid_share=0.25, test_share=0.25)
    assert list(split.train_ends) == [2, 7, 8, 12]
    assert list(split.valid.users) == [0] and list(split.valid.ends) == [2]  # first event from 7 on
    assert list(split.test.users) == [0, 1, 2] and list(split.test.ends) == [4, 7, 9]


def test_errors():
    with pytest.raises(UserError, match='needs timestamps'):
        splits.split(make([3]), 'temporal', 0.1, 0.1)
    with pytest.raises(UserError, match="unknown data.split 'random'"):
        splits.split(make([3]), 'random', 0.1, 0.1)
    with pytest.raises(UserError, match='add up'):
        splits.split(make([3], [1, 2, 3]), 'temporal', 0.6, 0.6)
    with pytest.raises(UserError, match='unknown split'):
        splits.leave_one_out(make([3])).targets('tests')
