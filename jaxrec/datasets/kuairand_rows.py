"""KuaiRand-Pure as rows: an impression each, for click models; see `kuairand` for the data set.

Four files are read: the log of 25 April to 8 May 2022, each user's last 50 videos before it, and
user_features_pure.csv and video_features_basic_pure.csv as published. What a model may see was
known before the impression: the videos before 25 April are frozen, and no play time is a feature.
video_features_statistic_pure.csv is never read: its counts are taken over the whole period.
"""

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from jaxrec.data.rows import Rows
from jaxrec.datasets.kuairand import (
    CITATION,
    HOMEPAGE,
    LICENCE,
    LOG,
    PAST,
    SHA256,
    VIDEOS,
    read_videos,
    video_columns,
)
from jaxrec.datasets.public import DataSet, check_sha256, open_source
from jaxrec.datasets.tabular import category, number
from jaxrec.errors import UserError

NAME = 'kuairand-pure-rows'
USERS = 'user_features_pure.csv'
SHA256_USERS = 'dc729a656301b4c6d07f713fe41d05ec9bfaab670b90e531c70037caf033c011'
SIZE = (25_156, 7_515, 228_329)  # users of the log, videos of the log or of before, impressions
DESCRIPTION = (
    'KuaiRand-Pure: the impressions of 25 April to 8 May 2022 under standard policies, with what '
    'was known of user and video, the last 50 videos of each user before, and what the user did.'
)
LABELS = (  # as published, without 'is_'
    'click',
    'long_view',
    'like',
    'profile_enter',
    'comment',
    'follow',
    'forward',
    'hate',
)
PASTS = {'watch': 'watch_seq', 'long_watch': 'long_watch_seq', 'past_like': 'like_seq'}
_CATEGORIES = (
    'user_active_degree',
    'is_live_streamer',
    'is_video_author',
    'follow_user_num_range',
    'fans_user_num_range',
    'friend_user_num_range',
    'register_days_range',
    *(f'onehot_feat{i}' for i in range(18)),
)
_COUNTS = ('follow_user_num', 'fans_user_num', 'friend_user_num', 'register_days')


def read_checked(source: str, say: Callable) -> tuple[Rows, str]:
    """Reads the published files from a folder (or zip), and where the log was.

    Raises:
      UserError: a file is missing, or is another one.
    """
    del say
    if not source:
        raise UserError(
            f'{NAME} is not downloaded: get KuaiRand-Pure from {HOMEPAGE} and give '
            f'--source=FOLDER with {LOG}, {PAST}, {USERS} and {VIDEOS}'
        )
    files, used = {}, {}
    for name, sha256 in ({USERS: SHA256_USERS} | SHA256).items():
        files[name], used[name] = open_source(source, name)
        check_sha256(files[name], sha256, used[name], name)
    rows = read(files[LOG], files[PAST], files[USERS], files[VIDEOS])
    found = (rows.num_users, rows.num_items, len(rows))
    if found != SIZE:
        raise UserError(f'{used[LOG]}: {found} users, videos and impressions; {SIZE} are expected')
    return rows, used[LOG]


PURE = DataSet(NAME, DESCRIPTION, CITATION, HOMEPAGE, LICENCE, read_checked)


def column_of(signal: str) -> str:
    """The published name of a column that says whether users did something."""
    return signal if signal == 'long_view' else f'is_{signal}'


def read(log: bytes, past: bytes, users: bytes, videos: bytes) -> Rows:
    """Rows from the content of the four files; rows of equal times stay in the file's order.

    Of the row: date (as published, yyyymmdd), hour, tab. Of the user: the published categories and
    counts, and `watch`, `long_watch`, `past_like`, the videos of PAST, oldest first. Of the video:
    author, video_type, upload_type, music, music_type, tags (published number + 1), duration in ms.
    Labels: LABELS, and play_time_ms. Categories are numbered in ascending order of
    their values, -1 = missing.
    """
    table = pa.csv.read_csv(io.BytesIO(log))
    table = table.take(np.argsort(table['time_ms'].to_numpy(), kind='stable'))
    user_ids, user = np.unique(table['user_id'].to_numpy(), return_inverse=True)
    past_users, pasts = _past(past)
    ids = [table['video_id'].to_numpy(), *(videos for videos, _ in pasts.values())]
    item_ids = np.unique(np.concatenate(ids))
    signals = {name: column_of(name) for name in LABELS}
    signals['play_time_ms'] = 'play_time_ms'
    return Rows(
        users=user.astype(np.int32),
        items=(np.searchsorted(item_ids, ids[0]) + 1).astype(np.int32),
        times=table['time_ms'].to_numpy(),
        user_ids=user_ids,
        item_ids=item_ids,
        features={
            'date': table['date'].to_numpy().astype(np.int32),
            'hour': (table['hourmin'].to_numpy() // 100).astype(np.int32),
            'tab': table['tab'].to_numpy().astype(np.int32),
        },
        user_features=_users(users, user_ids)
        | {
            name: _sets(videos, lengths, past_users, user_ids, item_ids)
            for name, (videos, lengths) in pasts.items()
        },
        item_features=video_columns(_of(read_videos(videos), 'video_id', item_ids)),
        labels={name: table[c].to_numpy().astype(np.float32) for name, c in signals.items()},
        name=NAME,
    )


def _past(data: bytes) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """User ids [P]; by name the videos of all of them in a row, and how many each user has."""
    options = pa.csv.ParseOptions(delimiter='\t')
    types = pa.csv.ConvertOptions(column_types={name: pa.string() for name in PASTS.values()})
    table = pa.csv.read_csv(io.BytesIO(data), parse_options=options, convert_options=types)
    pasts = {}
    for name, column in PASTS.items():
        words = pc.utf8_split_whitespace(table[column].combine_chunks())
        full = pc.list_flatten(words)
        kept = pc.not_equal(full, '')
        owner = pc.list_parent_indices(words).filter(kept).to_numpy()
        videos = full.filter(kept).cast(pa.int64()).to_numpy()
        pasts[name] = videos, np.bincount(owner, minlength=len(table))
    return table['user_id'].to_numpy(), pasts


def _sets(videos, lengths, past_users, user_ids, item_ids):
    """int32 [U, most], item numbers padded with 0; users without a past have none."""
    place = np.searchsorted(user_ids, past_users)
    there = user_ids[np.minimum(place, len(user_ids) - 1)] == past_users
    out = np.zeros((len(user_ids), lengths.max(initial=1)), np.int32)
    column = np.arange(len(videos)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = np.repeat(there, lengths)
    numbers = np.searchsorted(item_ids, videos) + 1
    out[np.repeat(place, lengths)[kept], column[kept]] = numbers[kept]
    return out


def _users(data: bytes, user_ids: np.ndarray) -> dict[str, np.ndarray]:
    table = _of(pa.csv.read_csv(io.BytesIO(data)), 'user_id', user_ids)
    columns = {name: category(table[name]) for name in _CATEGORIES}
    return columns | {name: number(table[name]) for name in _COUNTS}


def _of(table: pa.Table, key: str, ids: np.ndarray) -> pa.Table:
    """The table's rows of these ids; all missing where it has none."""
    return table.take(pc.index_in(pa.array(ids), table[key].combine_chunks()))
