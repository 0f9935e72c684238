"""Likes and hates of KuaiRand-27K as rows, from a few made-up lines and, by hand, the real file."""

import gzip
import hashlib

import numpy as np
import pytest
from real_data import real_data

from jaxrec import datasets
from jaxrec.config import Data
from jaxrec.data.rows import Rows
from jaxrec.datasets import kuairand_explicit
from jaxrec.datasets.kuairand_explicit import BEHAVIOUR, FILE, NAME, TESTED, TIMES, VALIDATED, parts
from jaxrec.errors import UserError
from jaxrec.evaluation import point_metrics

HEAD = (
    'user_id video_id date hourmin time_ms is_click is_follow is_comment is_forward long_view '
    'play_time_ms duration_ms comment_stay_time is_profile_enter label timestamp'
)
LINES = (
    '7 30 20220410 1700 3000 1 0 0 0 1 46186 45916 7639 1 1 -',
    '7 10 20220411 1600 4000 0 0 1 0 0 14549 0 5045 0 0 -',
    '5 30 20220408 300 1000 0 1 0 0 0 5738 7623 0 0 1 -',
    '5 20 20220409 0 2000 0 0 0 1 0 10 8000 0 0 0 -',
)


def prepared(source):
    config = Data(dataset=NAME, source=str(source), data_dir=str(source / 'data'))
    return datasets.load(config, say=lambda line: None, kind=Rows)[0]


def test_rows(tmp_path, monkeypatch):
    text = '\n'.join(line.replace(' ', '\t') for line in (HEAD, *LINES)).encode() + b'\n'
    (tmp_path / f'{FILE}.gz').write_bytes(gzip.compress(text))
    with pytest.raises(UserError, match='not the published'):
        prepared(tmp_path)
    monkeypatch.setattr(kuairand_explicit, 'SHA256', hashlib.sha256(text).hexdigest())
    rows = prepared(tmp_path)
    assert rows.user_ids[rows.users].tolist() == [5, 5, 7, 7]  # oldest first
    assert rows.item_ids[rows.items - 1].tolist() == [30, 20, 30, 10]
    assert rows.labels['hate'].tolist() == [0, 1, 0, 1]
    assert rows.features.keys() == {'part', 'hour', *BEHAVIOUR, *TIMES}
    assert rows.features['hour'].tolist() == [3, 0, 17, 16]
    assert rows.features['play_time'].tolist() == [5738, 10, 46186, 14549]
    assert rows.features['duration'].tolist() == [7623, 8000, 45916, 0]
    assert rows.features['comment_stay_time'].tolist() == [0, 0, 7639, 5045]
    assert rows.features['comment'].tolist() == [0, 0, 0, 1]
    assert rows.features['part'].tolist() == [TESTED] * 4


def test_every_user_has_a_like_and_a_hate_to_test_and_another_to_validate_where_there_is_one():
    rng = np.random.default_rng(1)
    users = rng.permutation(np.repeat(np.arange(40), 9))
    hate = np.zeros(len(users), int)
    for user in range(40):
        hate[rng.choice(np.flatnonzero(users == user), 1 + user % 3, replace=False)] = 1
    part = parts(users, hate)
    for user in range(40):
        own = users == user
        for label in (0, 1):
            got = np.bincount(part[own & (hate == label)], minlength=3)
            assert got[TESTED] == 1
            assert got[VALIDATED] == (user % 3 > 0)
    np.testing.assert_array_equal(part, parts(users, hate))


def test_without_a_source(tmp_path):
    with pytest.raises(UserError, match='is not downloaded'):
        datasets.load(Data(dataset=NAME, data_dir=str(tmp_path)), kind=Rows)


def test_decisions():
    logits, labels = np.array([2.0, 0.1, -1.0, 3.0, -0.2]), np.array([1, 0, 1, 1, 0])
    found = point_metrics.decisions(logits, labels)
    assert found == {'precision': 2 / 3, 'recall': 2 / 3, 'F1': 2 / 3}
    nothing = point_metrics.decisions(-np.abs(logits), labels)
    assert np.isnan(nothing['precision']) and nothing['recall'] == nothing['F1'] == 0


def test_real_file(tmp_path):
    source = real_data('kuairand-27k-explicit')
    config = Data(dataset=NAME, source=str(source), data_dir=str(tmp_path))
    rows = datasets.load(config, say=lambda line: None, kind=Rows)[0]
    assert (len(rows), rows.num_users, rows.num_items) == (41_828, 664, 9_359)
    assert int(rows.labels['hate'].sum()) == 8_083
    part, hate = rows.features['part'], rows.labels['hate']
    assert (part == TESTED).sum() == 2 * 664 == 2 * int(hate[part == TESTED].sum())
    liked = np.bincount(rows.items[(part == 0) & (hate == 0)], minlength=rows.num_items + 1) > 0
    tested = part == TESTED
    assert (hate[tested & ~liked[rows.items]] == 1).all()  # what the k-core of likes alone does
