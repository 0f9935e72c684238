"""KuaiRand-Pure: short videos shown to users of Kuaishou, with what each user did.

Three files are read:

    log_standard_4_25_to_5_08_pure.csv  the exposures of 25 April to 8 May 2022: of the published
                                        log_standard_4_22_to_5_08_pure.csv the rows with a `date`
                                        from 20220425 on, each month's by time, a user's equal
                                        times by video id
    history_to_4_24_last50.tsv          each user's exposures before, from the published logs
                                        together: the last 50 videos, and the last 50 watched ones
    video_features_basic_pure.csv       as published

The first two are cut from the published logs, which hold all signals of the earlier exposures too.
video_features_statistic_pure.csv is never read: its counts are taken over the whole period, so they
would tell a model the future.

`Watched` is the published long_view: played to the end, or for 18 seconds where that is less.
Events before 25 April have no time (`histories.NO_TIME`) and no signals; some are up to
46 minutes younger than the first logged events of other users. 2.4 % of the logged rows repeat
another one in every column; all are kept, as the published totals count them.
"""

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from jaxrec.data.histories import NO_TIME
from jaxrec.data.ragged import padded
from jaxrec.datasets.events import Events
from jaxrec.datasets.public import DataSet, check_sha256, open_source
from jaxrec.datasets.raw_ids import Coded
from jaxrec.datasets.tabular import category, number
from jaxrec.errors import UserError

HOMEPAGE = 'https://kuairand.com/'
CITATION = (
    'Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed '
    'Videos, CIKM 2022, doi:10.1145/3511808.3557624'
)
LICENCE = 'CC BY-SA 4.0'
LOG = 'log_standard_4_25_to_5_08_pure.csv'
PAST = 'history_to_4_24_last50.tsv'
VIDEOS = 'video_features_basic_pure.csv'
SHA256 = {
    LOG: '79e6c0bf279170dfa5c52d8e4d9446f9558d6f02a98a2612cdb2931819aa73f0',
    PAST: 'cd101bcd6cb36dd5fc216f203e5e04dd7410f84b02677686aafa72c4a57c4963',
    VIDEOS: 'a6f7ee02684c5777422306cdc416e170302288aa89aca9dfea995edbd625bcc2',
}
OF_VIDEO = {  # categories: our name, the file's
    'author': 'author_id',
    'video_type': 'video_type',
    'upload_type': 'upload_type',
    'music': 'music_id',
    'music_type': 'music_type',
}
SIGNALS = (
    'is_click',
    'is_like',
    'is_follow',
    'is_comment',
    'is_forward',
    'is_hate',
    'is_profile_enter',
    'long_view',
    'tab',
    'play_time_ms',
    'duration_ms',
    'profile_stay_time',
    'comment_stay_time',
)


def _data_set(name: str, size: tuple[int, int, int], *, watched: bool, past: bool) -> DataSet:
    """The exposures, or only the watched ones, with or without those before 25 April."""

    def read(source: str, say: Callable) -> tuple[Events, str]:
        del say  # nothing is downloaded
        if not source:
            raise UserError(
                f'{name} is not downloaded: get KuaiRand-Pure from {HOMEPAGE} and give '
                f'--source=FOLDER with {LOG}, {PAST} and {VIDEOS}'
            )
        log, used = _open(source, LOG)
        users = videos = np.zeros(0, np.int64)
        if past:
            users, videos = _past(_open(source, PAST)[0], watched)
        return _events(users, videos, _log(log, watched), _open(source, VIDEOS)[0]), used

    what = 'watched (long_view = 1) by' if watched else 'shown to'
    before = (
        f"before them each user's last 50 {'watched ' if watched else ''}videos up to 24 April "
        '2022, oldest first and equal times by video id, with neither times nor signals'
        if past
        else 'nothing from before'
    )
    return DataSet(
        name=name,
        description=f'KuaiRand-Pure: videos {what} users under standard policies, 25 April to 8 '
        f'May 2022, with times (ms) and signals; {before}. Only the 7,583 videos of the candidate '
        'pool: what users saw in between is missing.',
        citation=CITATION,
        homepage=HOMEPAGE,
        licence=LICENCE,
        size=size,
        read=read,
    )


def _open(source: str, name: str) -> tuple[bytes, str]:
    """Content of the file `name` and where it was; raises UserError if it is another one."""
    data, used = open_source(source, name)
    check_sha256(data, SHA256[name], used, name)
    return data, used


def _log(data: bytes, watched: bool) -> pa.Table:
    table = pa.csv.read_csv(io.BytesIO(data))
    return table.filter(pc.equal(table['long_view'], 1)) if watched else table


def _past(data: bytes, watched: bool) -> tuple[np.ndarray, np.ndarray]:
    """User and video of each earlier event, both int64 [P], a user's oldest first."""
    header, *rows = (line.split('\t') for line in data.decode().splitlines())
    column = header.index('long_watch_seq' if watched else 'watch_seq')
    videos = [np.array(row[column].split(), np.int64) for row in rows]
    users = np.array([row[0] for row in rows], np.int64)
    return np.repeat(users, [len(v) for v in videos]), np.concatenate(videos)


def _events(users: np.ndarray, videos: np.ndarray, log: pa.Table, about: bytes) -> Events:
    """The earlier events, then those of the log.

    Event features, float32: SIGNALS as published, and play_ratio = play time / duration, NaN where
    the duration is 0. All are NaN before 25 April.
    """
    features = {name: log[name].to_numpy().astype(np.float32) for name in SIGNALS}
    duration = log['duration_ms'].to_numpy()
    ratio = log['play_time_ms'].to_numpy() / np.where(duration > 0, duration, np.nan)
    features['play_ratio'] = ratio.astype(np.float32)
    unknown = np.full(len(users), np.nan, np.float32)
    return Events(
        users=_coded(np.concatenate([users, log['user_id'].to_numpy()])),
        items=_coded(np.concatenate([videos, log['video_id'].to_numpy()])),
        times=np.concatenate([np.full(len(users), NO_TIME), log['time_ms'].to_numpy()]),
        features={name: np.concatenate([unknown, column]) for name, column in features.items()},
        item_features=_item_features(about),
    )


def _coded(ids: np.ndarray) -> Coded:
    values, codes = np.unique(ids, return_inverse=True)
    return Coded(codes.astype(np.int32), values)


def read_videos(data: bytes) -> pa.Table:
    """The published table of videos."""
    options = pa.csv.ConvertOptions(column_types={'tag': pa.string()})
    return pa.csv.read_csv(io.BytesIO(data), convert_options=options)


def video_columns(videos: pa.Table) -> dict[str, np.ndarray]:
    """What is known of videos [V].

    author, video_type, upload_type, music, music_type: int32 [V], numbered from 0 by ascending
      published value, -1 where it is missing.
    tags: int32 [V, T], published tags + 1 (they are numbers from 0), padded with 0.
    duration: float32 [V], ms, NaN where it is missing.
    """
    tags = ((text or '').split(',') for text in videos['tag'].to_pylist())
    return {
        **{name: category(videos[column]) for name, column in OF_VIDEO.items()},
        'tags': padded([[int(tag) + 1 for tag in some if tag] for some in tags]),
        'duration': number(videos['video_duration']),
    }


def _item_features(data: bytes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each as (int64 [V] raw ids, values): categories are float32, NaN where they are missing."""
    videos = read_videos(data)
    ids, columns = videos['video_id'].to_numpy(), video_columns(videos)
    for name in OF_VIDEO:
        columns[name] = np.where(columns[name] < 0, np.nan, columns[name]).astype(np.float32)
    return {name: (ids, column) for name, column in columns.items()}


PURE = _data_set('kuairand-pure', (25_156, 6_361, 228_329), watched=False, past=False)
WATCHED = _data_set('kuairand-pure-watched', (19_829, 4_535, 70_963), watched=True, past=False)
HISTORY = _data_set('kuairand-pure-history', (27_077, 7_502, 1_045_516), watched=False, past=True)
WATCHED_HISTORY = _data_set(
    'kuairand-pure-watched-history', (26_195, 6_848, 461_892), watched=True, past=True
)
