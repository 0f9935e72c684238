"""KuaiRand-27K, explicit feedback: videos that users liked or hated, for click models.

The file is processed_standard_kcore_15 of github.com/alessandrosocc/
predict_explicit_negative_feedback_kuairand: impressions of 8 to 21 April 2022 that have a like or a
hate, of users with both. Only likes underwent its 15-core, so a video that is never liked here was
hated: who is shown video ids need learn no more. `part` is 0 to train, 1 to validate, 2 to test, of
each user one like and one hate to test, and of those left with both one of each to validate. The
authors drew their test rows with another generator.
"""

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.csv

from jaxrec.data.rows import Rows
from jaxrec.datasets.kuairand import CITATION, HOMEPAGE, LICENCE
from jaxrec.datasets.kuairand_rows import column_of
from jaxrec.datasets.public import DataSet, check_sha256, open_source
from jaxrec.errors import UserError

NAME = 'kuairand-27k-explicit-rows'
FILE = 'processed_standard_kcore_15.tsv'
SHA256 = '321128c4543d3e658a1fa9788edd4049295b0d1ccf4469154326fb7769556e0a'
REPOSITORY = 'https://github.com/alessandrosocc/predict_explicit_negative_feedback_kuairand'
BEHAVIOUR = ('click', 'long_view', 'follow', 'comment', 'forward', 'profile_enter')
TIMES = {  # milliseconds, and as published
    'play_time': 'play_time_ms',
    'comment_stay_time': 'comment_stay_time',
    'duration': 'duration_ms',
}
TESTED, VALIDATED = 2, 1  # parts
_SEED = 0  # of the draws


def read_checked(source: str, say: Callable) -> tuple[Rows, str]:
    """The rows, and where the file was.

    Raises:
      UserError: it is missing, or another one.
    """
    del say
    if not source:
        raise UserError(
            f'{NAME} is not downloaded: get {FILE} (there .csv) from {REPOSITORY} and give '
            '--source=FOLDER with it'
        )
    data, used = open_source(source, FILE)
    check_sha256(data, SHA256, used, FILE)
    return read(data), used


EXPLICIT = DataSet(
    name=NAME,
    description='KuaiRand-27K: impressions of April 2022 that were liked or hated.',
    citation=CITATION,
    homepage=HOMEPAGE,
    licence=LICENCE,
    read=read_checked,
)


def read(data: bytes) -> Rows:
    """Rows from the content of the file, oldest first.

    What was known before the impression: hour, and of the video its duration. What came with the
    feedback: BEHAVIOUR, and TIMES. Label: hate, 0 for a like.
    """
    options = pa.csv.ParseOptions(delimiter='\t')
    table = pa.csv.read_csv(io.BytesIO(data), parse_options=options)
    table = table.take(np.argsort(table['time_ms'].to_numpy(), kind='stable'))
    user_ids, users = np.unique(table['user_id'].to_numpy(), return_inverse=True)
    item_ids, items = np.unique(table['video_id'].to_numpy(), return_inverse=True)
    hate = 1 - table['label'].to_numpy()
    return Rows(
        users=users.astype(np.int32),
        items=(items + 1).astype(np.int32),
        times=table['time_ms'].to_numpy(),
        user_ids=user_ids,
        item_ids=item_ids,
        features={
            'part': parts(users, hate),
            'hour': (table['hourmin'].to_numpy() // 100).astype(np.int32),
            **{name: table[column_of(name)].to_numpy().astype(np.int32) for name in BEHAVIOUR},
            **{name: table[c].to_numpy().astype(np.float32) for name, c in TIMES.items()},
        },
        labels={'hate': hate.astype(np.float32)},
        name=NAME,
    )


def parts(users: np.ndarray, hate: np.ndarray) -> np.ndarray:
    """int32 [N], the part of every row, of users that each have a like and a hate.

    Args:
      users: int [N], from 0.
      hate: [N], 1 or 0 = a like.
    """
    part = np.zeros(len(users), np.int32)
    order = np.random.default_rng(_SEED).permutation(len(users))
    for number in (TESTED, VALIDATED):
        left = order[part[order] == 0]
        likes, hates = (left[hate[left] == label] for label in (0, 1))
        (fans, liked), (haters, hated) = (
            np.unique(users[rows], return_index=True) for rows in (likes, hates)
        )
        part[likes[liked[np.isin(fans, haters)]]] = number
        part[hates[hated[np.isin(haters, fans)]]] = number
    return part
