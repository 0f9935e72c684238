"""KuaiRand-Pure from a few made-up lines, and events without a time wherever times are used."""

import gzip
import hashlib

import numpy as np
import pytest
from real_data import real_data

from jaxrec import datasets
from jaxrec.config import Data, Feature
from jaxrec.data import splits
from jaxrec.data.features import Encoder
from jaxrec.data.histories import NO_TIME, Histories
from jaxrec.datasets import events as events_lib
from jaxrec.datasets import kuairand
from jaxrec.errors import UserError
from jaxrec.evaluation import baselines

# user 1 has 10 before 30 in time, but not in the file; user 3 has only a past.
LOG = """\
user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,\
long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab
1,30,20220425,0,1650900000300,1,1,0,0,0,0,1,6000,4000,12,0,1,0,4
2,20,20220425,0,1650900000200,0,0,0,0,0,1,0,500,0,0,0,0,0,1
1,10,20220425,0,1650900000100,1,0,1,0,1,0,0,1000,4000,0,0,0,0,0
2,30,20220426,0,1650980000000,1,0,0,1,0,0,1,8000,4000,0,7,0,0,14
"""
PAST = """\
user_id\thistory_len\tlast_time_ms\twatch_seq\tlike_seq\tlong_watch_seq
1\t70\t1650800000000\t40 20 40\t40\t20
2\t1\t1650800000001\t30\t\t
3\t2\t1650800000002\t10 50\t\t50 10
"""
VIDEOS = """\
video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,\
server_height,music_id,music_type,tag
10,900,NORMAL,2022-04-10,LongImport,0.0,4000.0,720.0,1280.0,9,9.0,39
20,7,NORMAL,2022-04-10,Kmovie,0.0,,720.0,1280.0,6,9.0,"0,43,5"
30,900,AD,2022-04-10,Web,0.0,4000.0,720.0,1280.0,6,9.0,
40,30,NORMAL,2022-04-10,Web,0.0,9500.0,720.0,1280.0,6,,2
60,8,NORMAL,2022-04-10,Web,0.0,1.0,720.0,1280.0,6,,"2,4"
"""
FILES = {kuairand.LOG: LOG, kuairand.PAST: PAST, kuairand.VIDEOS: VIDEOS}
SETS = {
    'PURE': (2, 3, 4),
    'WATCHED': (2, 1, 2),
    'HISTORY': (3, 5, 10),
    'WATCHED_HISTORY': (3, 4, 5),
}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Histories of one of SETS from the lines above."""
    for name, text in FILES.items():
        (tmp_path / f'{name}.gz').write_bytes(gzip.compress(text.encode()))
        monkeypatch.setitem(kuairand.SHA256, name, hashlib.sha256(text.encode()).hexdigest())

    def histories(attribute):
        data_set = getattr(kuairand, attribute)
        monkeypatch.setattr(data_set, 'size', SETS[attribute])
        events, used = data_set.read_checked(str(tmp_path), print)
        assert used == str(tmp_path / f'{kuairand.LOG}.gz')
        return events_lib.to_histories(events, data_set.name)

    return histories


def raw_items(h):
    return {h.raw_user(u): [h.raw_item(i) for i in h.history(u)] for u in range(h.num_users)}


def test_pure(read):
    h = read('PURE')
    assert raw_items(h) == {1: [10, 30], 2: [20, 30]}
    assert h.times.tolist() == [1650900000100, 1650900000300, 1650900000200, 1650980000000]
    wanted = {
        'is_click': [1, 1, 0, 1],
        'is_like': [0, 1, 0, 0],
        'is_follow': [1, 0, 0, 0],
        'is_comment': [0, 0, 0, 1],
        'is_forward': [1, 0, 0, 0],
        'is_hate': [0, 0, 1, 0],
        'is_profile_enter': [0, 1, 0, 0],
        'long_view': [0, 1, 0, 1],
        'tab': [0, 4, 1, 14],
        'play_time_ms': [1000, 6000, 500, 8000],
        'duration_ms': [4000, 4000, 0, 4000],
        'profile_stay_time': [0, 12, 0, 0],
        'comment_stay_time': [0, 0, 0, 7],
        'play_ratio': [0.25, 1.5, np.nan, 2],  # the second video's duration is 0
    }
    assert h.features.keys() == wanted.keys()
    for name, column in h.features.items():
        assert column.dtype == np.float32
        np.testing.assert_array_equal(column, wanted[name], err_msg=name)


def test_watched(read):
    h = read('WATCHED')
    assert raw_items(h) == {1: [30], 2: [30]}
    assert h.times.tolist() == [1650900000300, 1650980000000]
    assert h.features['long_view'].tolist() == [1, 1]
    assert h.features['play_ratio'].tolist() == [1.5, 2]


def test_history(read):
    h, log = read('HISTORY'), read('PURE')
    assert raw_items(h) == {1: [40, 20, 40, 10, 30], 2: [30, 20, 30], 3: [10, 50]}
    past = np.array([1, 1, 1, 0, 0, 1, 0, 0, 1, 1], bool)
    assert (h.times[past] == NO_TIME).all() and h.times[~past].tolist() == log.times.tolist()
    assert h.features.keys() == log.features.keys()
    for name, column in h.features.items():
        assert column.dtype == np.float32 and np.isnan(column[past]).all()
        np.testing.assert_array_equal(column[~past], log.features[name])


def test_watched_history(read):
    h = read('WATCHED_HISTORY')
    assert raw_items(h) == {1: [20, 30], 2: [30], 3: [50, 10]}
    assert h.times.tolist() == [NO_TIME, 1650900000300, 1650980000000, NO_TIME, NO_TIME]
    np.testing.assert_array_equal(h.features['tab'], [np.nan, 4, 14, np.nan, np.nan])


def test_features_of_videos(read):
    h = read('HISTORY')
    assert h.item_ids.tolist() == [10, 20, 30, 40, 50]  # nothing is known of 50
    nan = np.nan
    np.testing.assert_array_equal(h.item_features['duration'], [4000, nan, 4000, 9500, nan])
    np.testing.assert_array_equal(h.item_features['author'], [3, 0, 3, 2, nan])  # 7 8 30 900
    np.testing.assert_array_equal(h.item_features['video_type'], [1, 1, 0, 1, nan])  # AD, NORMAL
    np.testing.assert_array_equal(h.item_features['upload_type'], [1, 0, 2, 2, nan])
    np.testing.assert_array_equal(h.item_features['music'], [1, 0, 0, 0, nan])
    np.testing.assert_array_equal(h.item_features['music_type'], [0, 0, 0, nan, nan])
    tags = [[40, 0, 0], [1, 44, 6], [0, 0, 0], [3, 0, 0], [0, 0, 0]]
    assert h.item_features['tags'].tolist() == tags
    for name, column in h.item_features.items():
        assert column.dtype == (np.int32 if name == 'tags' else np.float32), name
    features = (Feature('author', size=4), Feature('tags', 'set', size=69), Feature('is_like'))
    codes = Encoder(h, features, h.offsets[1:]).events(np.arange(5))
    assert codes['author'].tolist() == [3, 1, 3, 4, 4]
    assert codes['tags'].tolist() == [tags[i] for i in (3, 1, 3, 0, 2)]
    assert codes['is_like'].tolist() == [0, 0, 0, 1, 2]


def test_prepared(read, tmp_path):
    h = read('HISTORY')
    config = Data(
        dataset='kuairand-pure-history', source=str(tmp_path), data_dir=str(tmp_path / 'data')
    )
    again, meta = datasets.load(config, say=lambda line: None)
    assert meta['data_hash'] == h.content_hash() and again.times[0] == NO_TIME
    assert meta['licence'] == 'CC BY-SA 4.0' and 'last 50 videos' in meta['description']


@pytest.mark.parametrize('attribute', SETS)
def test_without_its_files(tmp_path, attribute):
    name = getattr(kuairand, attribute).name

    def message(source):
        with pytest.raises(UserError) as error:
            datasets.load(Data(dataset=name, source=source, data_dir=str(tmp_path / 'data')))
        assert '\n' not in str(error.value)
        return str(error.value)

    assert message('').startswith(f'{name} is not downloaded: get KuaiRand-Pure from https://kuai')
    assert '--config.data.source=FOLDER' in message('')
    assert f'holds no {kuairand.LOG}' in message(str(tmp_path))
    (tmp_path / kuairand.LOG).write_text(LOG)
    assert f'is not the published {kuairand.LOG}' in message(str(tmp_path))


# Events without a time ---------------------------------------------------------------------------


def make(times, lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Histories(
        items=np.arange(1, offsets[-1] + 1, dtype=np.int32),
        offsets=offsets,
        user_ids=np.arange(len(lengths)),
        item_ids=np.arange(offsets[-1]),
        times=np.array(times),
    )


def test_gap():
    h = make([NO_TIME, NO_TIME, 50, 53] + [60, 61] + [NO_TIME] + [5, 9], [4, 2, 1, 2])
    encoder = Encoder(h, (Feature('gap', 'uniform', size=10, cap=10.0),), h.offsets[1:])
    gaps = [0, 0, 0, 4, 0, 2, 0, 0, 5]  # codes: 1 + the gap, 0 where there is none
    assert encoder.events(np.arange(9))['gap'].tolist() == gaps
    # Only the gaps 3, 1 and 4 make the edges of quantiles.
    encoder = Encoder(h, (Feature('gap', 'quantile', size=2),), h.offsets[1:])
    wanted = [0, 0, 0, 2, 0, 1, 0, 0, 2]
    assert encoder.events(np.arange(9))['gap'].tolist() == wanted


def test_temporal_split():
    timed = make([1, 4, 6, 8, 2, 3, 5, 7], [4, 4])
    split = splits.temporal(timed, valid_share=0.25, test_share=0.25)  # from 5, from 7
    assert split.train_ends.tolist() == [2, 6]
    assert split.valid.ends.tolist() == [2, 6] and split.test.ends.tolist() == [3, 7]
    # A past before user 0's events, a user with a past only, and a past that becomes an input.
    past = [NO_TIME] * 3
    h = make([*past, 1, 4, 6, 8, *past, 2, 3, 5, NO_TIME, 7], [7, 3, 3, 2])
    split = splits.temporal(h, valid_share=0.25, test_share=0.25)  # the same moments
    assert split.train_ends.tolist() == [5, 10, 12, 14]
    assert split.valid.users.tolist() == [0, 2] and split.valid.ends.tolist() == [5, 12]
    assert split.test.users.tolist() == [0, 3] and split.test.ends.tolist() == [6, 14]
    with pytest.raises(UserError, match='no event has one'):
        splits.temporal(make(past, [3]), valid_share=0.1, test_share=0.1)


def test_recent_popularity():
    day = 86_400_000
    newest = 1650900000000
    times = [NO_TIME, newest - 8 * day, newest - day, NO_TIME, newest]
    h = make(times, [3, 2])
    everything = splits.Split(h.offsets[1:], None, None)
    assert baselines.last_week_counts(h, everything).tolist() == [0, 0, 0, 1, 0, 1]
    past = splits.Split(h.offsets[:-1] + 1, None, None)  # nothing in training has a time
    assert baselines.last_week_counts(h, past) is None


def test_ties_are_counted_among_events_with_a_time():
    h = make([NO_TIME, NO_TIME, 3, 3, 4, NO_TIME, NO_TIME], [5, 2])
    assert h.statistics()['tied_timestamps'] == 0.5
    assert make([NO_TIME, NO_TIME], [2]).statistics()['tied_timestamps'] is None


# The real files ----------------------------------------------------------------------------------

REAL = {  # content hash
    'kuairand-pure': 'c82df6d7dc420c0b',
    'kuairand-pure-watched': 'da421f76d78a1de1',
    'kuairand-pure-history': '34bc1db622de788c',
    'kuairand-pure-watched-history': '1d0d61200da9e998',
}


@pytest.mark.slow
@pytest.mark.parametrize('name', REAL)
def test_real_files(tmp_path, name):
    source = real_data('kuairand-pure')
    config = Data(dataset=name, source=str(source), data_dir=str(tmp_path))
    assert datasets.load(config, say=lambda line: None)[1]['data_hash'].startswith(REAL[name])
