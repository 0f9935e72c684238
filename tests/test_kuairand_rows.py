"""KuaiRand-Pure as rows, from a few made-up lines and, by hand, from the real files."""

import gzip
import hashlib
import pathlib

import numpy as np
import pytest
from real_data import real_data

from jaxrec import datasets
from jaxrec.config import Data
from jaxrec.data.rows import Rows
from jaxrec.datasets import kuairand, kuairand_rows
from jaxrec.datasets.kuairand_rows import NAME
from jaxrec.errors import UserError

# Not in time order; user 3 has only a past, user 2 none; nothing is known of video 50 and user 2.
LOG = """\
user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,\
long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab
1,30,20220425,2300,1650900000300,1,1,0,0,0,0,1,6000,4000,0,0,1,0,4
2,20,20220425,100,1650900000200,0,0,0,0,0,1,0,500,0,0,0,0,0,1
1,10,20220425,0,1650900000200,1,0,1,0,1,0,0,1000,4000,0,0,0,0,0
2,30,20220503,0,1650980000000,1,0,0,1,0,0,1,8000,4000,0,0,0,0,14
"""
PAST = """\
user_id\thistory_len\tlast_time_ms\twatch_seq\tlike_seq\tlong_watch_seq
1\t70\t1650800000000\t40 20 40\t\t20
3\t2\t1650800000002\t10 50\t10\t50 10
"""
ONE_HOT = ','.join(f'onehot_feat{i}' for i in range(18))
USERS = f"""\
user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,\
follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,\
register_days,register_days_range,{ONE_HOT}
0,low_active,0,-124,0,9,"(0,10]",1,0,3,0,10,8-14,{','.join(['5'] * 18)}
1,full_active,0,1,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,7,7,7,7,,{','.join(['2'] * 13)}
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
FILES = {
    kuairand.LOG: LOG,
    kuairand.PAST: PAST,
    kuairand_rows.USERS: USERS,
    kuairand.VIDEOS: VIDEOS,
}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder with the lines above, known as the published files."""
    folder = tmp_path / 'source'
    folder.mkdir()
    sha256 = {}
    for name, text in FILES.items():
        (folder / f'{name}.gz').write_bytes(gzip.compress(text.encode()))
        sha256[name] = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(kuairand_rows, 'SHA256_USERS', sha256.pop(kuairand_rows.USERS))
    monkeypatch.setattr(kuairand_rows, 'SHA256', sha256)
    monkeypatch.setattr(kuairand_rows, 'SIZE', (2, 5, 4))
    return folder


def test_rows(source):
    rows, used = kuairand_rows.read_checked(str(source), print)
    assert used == str(source / f'{kuairand.LOG}.gz')
    assert rows.user_ids.tolist() == [1, 2] and rows.item_ids.tolist() == [10, 20, 30, 40, 50]
    assert rows.users.tolist() == [1, 0, 0, 1]  # equal times as in the file
    assert rows.items.tolist() == [2, 1, 3, 3]
    assert rows.times.tolist() == [1650900000200, 1650900000200, 1650900000300, 1650980000000]
    assert rows.features['date'].tolist() == [20220425] * 3 + [20220503]
    assert rows.features['hour'].tolist() == [1, 0, 23, 0]
    assert rows.features['tab'].tolist() == [1, 0, 4, 14]
    wanted = {
        'click': [0, 1, 1, 1],
        'long_view': [0, 0, 1, 1],
        'like': [0, 0, 1, 0],
        'profile_enter': [0, 0, 1, 0],
        'comment': [0, 0, 0, 1],
        'follow': [0, 1, 0, 0],
        'forward': [0, 1, 0, 0],
        'hate': [1, 0, 0, 0],
        'play_time_ms': [500, 1000, 6000, 8000],
    }
    assert rows.labels.keys() == wanted.keys() == {*kuairand_rows.LABELS, 'play_time_ms'}
    for name, column in rows.labels.items():
        assert column.dtype == np.float32 and column.tolist() == wanted[name]


def test_features(source):
    rows, _ = kuairand_rows.read_checked(str(source), print)
    of_user, of_item = rows.user_features, rows.item_features
    assert of_user['watch'].tolist() == [[4, 2, 4], [0, 0, 0]]
    assert of_user['long_watch'].tolist() == [[2, 0], [0, 0]]
    assert of_user['past_like'].tolist() == [[0], [0]]
    assert of_user['user_active_degree'].tolist() == [0, -1]
    assert of_user['is_live_streamer'].tolist() == [0, -1]  # user 0 does not count
    assert of_user['onehot_feat3'].tolist() == [0, -1]
    assert of_user['onehot_feat4'].tolist() == [-1, -1]
    np.testing.assert_array_equal(of_user['follow_user_num'], [514, np.nan])
    assert of_item['author'].tolist() == [2, 0, 2, 1, -1]  # of 7, 30, 900
    assert of_item['video_type'].tolist() == [1, 1, 0, 1, -1]
    assert of_item['music_type'].tolist() == [0, 0, 0, -1, -1]
    assert of_item['tags'].tolist() == [[40, 0, 0], [1, 44, 6], [0, 0, 0], [3, 0, 0], [0, 0, 0]]
    nan = np.nan
    np.testing.assert_array_equal(of_item['duration'], [4000, nan, 4000, 9500, nan])
    for columns in (rows.features, of_user, of_item):
        for name, column in columns.items():
            number = name == 'duration' or name in kuairand_rows._COUNTS
            assert column.dtype == (np.float32 if number else np.int32), name


def test_prepared_once(source, tmp_path):
    config = Data(dataset=NAME, source=str(source), data_dir=str(tmp_path / 'data'))
    said = []
    rows, meta = datasets.load(config, said.append, kind=Rows)
    assert len(said) == 1 and said[0].startswith('writing ')
    config.source = ''  # not needed any more
    again, same = datasets.load(config, said.append, kind=Rows)
    assert len(said) == 1 and same == meta and meta['data_hash'] == again.content_hash()
    assert meta['kind'] == 'rows' and meta['licence'] == 'CC BY-SA 4.0'
    assert isinstance(rows.items, np.memmap) and pathlib.Path(meta['path']).is_dir()
    rows.save(tmp_path / 'other' / 'columns')
    (pathlib.Path(meta['path']) / 'columns' / 'items.npy').unlink()
    with pytest.raises(UserError, match='is damaged .* delete that folder'):
        datasets.load(config, kind=Rows)
    with pytest.raises(UserError, match='holds rows, and this wants histories'):
        datasets.load(Data(log=str(tmp_path / 'other')))


def test_without_its_files(source, tmp_path):
    def message(**changes):
        with pytest.raises(UserError) as error:
            config = Data(**{'dataset': NAME, 'data_dir': str(tmp_path / 'd'), **changes})
            datasets.load(config, print, kind=Rows)
        assert '\n' not in str(error.value)
        return str(error.value)

    assert 'are for histories' in message(min_user=5, source=str(source))
    assert f'data.source=FOLDER with {kuairand.LOG}' in message()
    path = source / f'{kuairand_rows.USERS}.gz'
    path.write_bytes(gzip.compress(b'other'))
    assert f'is not the published {kuairand_rows.USERS}' in message(source=str(source))
    path.unlink()
    assert f'holds no {kuairand_rows.USERS}' in message(source=str(source))


@pytest.mark.slow
def test_real_files(tmp_path):
    source = real_data('kuairand-pure')
    config = Data(dataset=NAME, source=str(source), data_dir=str(tmp_path))
    rows, meta = datasets.load(config, say=lambda line: None, kind=Rows)
    assert meta['data_hash'].startswith('4a42ee831e4cbf7b')
    day = rows.features['date']
    for first, last, counts in (
        (20220425, 20220502, (135_128, 23_041, 5_876)),
        (20220503, 20220504, (36_543, 13_780, 4_068)),
        (20220505, 20220508, (56_658, 17_396, 4_956)),
    ):
        own = (day >= first) & (day <= last)
        users, items = (len(np.unique(x[own])) for x in (rows.users, rows.items))
        assert (own.sum(), users, items) == counts
    rates = {'click': 0.442, 'long_view': 0.311, 'like': 0.017, 'profile_enter': 0.0185}
    for name, rate in rates.items():
        assert meta['statistics']['labels'][name] == pytest.approx(rate, abs=5e-4)
