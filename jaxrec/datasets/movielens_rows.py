"""MovieLens-1M as rows: whether a user likes a movie, for click models with a past.

Of every user the last 100 ratings, in the order of `movielens`. Label like: a rating of 4 or 5.
`tenth`, 0 to 9, says in which tenth of the user's rows a row is: 8 validates and 9 tests, as the
reference runs of MARM have it. The rating itself is no feature.
"""

from collections.abc import Callable

import numpy as np

from jaxrec.data.ragged import ranges
from jaxrec.data.rows import Rows
from jaxrec.datasets import events, movielens
from jaxrec.datasets.public import DataSet

NAME = 'ml-1m-rows'
LATEST = 100  # rows of a user


def read_checked(source: str, say: Callable) -> tuple[Rows, str]:
    """The rows, and where the ratings were; errors as of `movielens.ML_1M`."""
    raw, used = movielens.ML_1M.read_checked(source, say)
    return rows_of(raw), used


ML_1M = DataSet(
    name=NAME,
    description='MovieLens-1M: the last 100 ratings of each user, whether they liked it.',
    citation=movielens.ML_1M.citation,
    homepage=movielens.ML_1M.homepage,
    licence=movielens.ML_1M.licence,
    read=read_checked,
)


def rows_of(raw: events.Events) -> Rows:
    """Rows of ratings, those of equal times in the file's order."""
    users, user_ids = events.number(raw.users)
    items, item_ids = events.number(raw.items)
    times = events.integer_times(raw.times, NAME)
    order = np.lexsort((np.arange(len(users)), times, users))
    counts = np.bincount(users)
    kept = np.minimum(counts, LATEST)
    order = order[ranges(np.cumsum(counts) - kept, kept)]
    tenth = 10 * ranges(np.zeros_like(kept), kept) // np.repeat(kept, kept)
    oldest_first = np.argsort(times[order], kind='stable')
    order, tenth = order[oldest_first], tenth[oldest_first]
    return Rows(
        users=users[order].astype(np.int32),
        items=(items[order] + 1).astype(np.int32),
        times=times[order],
        user_ids=user_ids,
        item_ids=item_ids,
        features={'tenth': tenth.astype(np.int32)},
        labels={'like': (raw.features['rating'][order] >= 4).astype(np.float32)},
        name=NAME,
    )
