"""The files that SASRec published: `user item` lines in the authors' order, without times.

Equal timestamps were put in an unknown order there, so the raw data cannot give the same files:
published SASRec and BERT4Rec numbers belong to these.
"""

import io
from collections.abc import Callable

from jaxrec.datasets import text_layouts
from jaxrec.datasets.events import Events
from jaxrec.datasets.movielens import LICENCE as MOVIELENS_LICENCE
from jaxrec.datasets.public import DataSet, read_file

HOMEPAGE = 'https://github.com/kang205/SASRec'
DATA = 'https://raw.githubusercontent.com/kang205/SASRec/master/data'
CITATION = 'Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018, arXiv:1808.09781'


def _data_set(name, file, description, size, sha256, licence) -> DataSet:
    def read(source: str, say: Callable) -> tuple[Events, str]:
        data, used = read_file(source, say, f'{DATA}/{file}', sha256)
        return text_layouts.read_pairs(io.BytesIO(data), file), used

    return DataSet(name, description, CITATION, HOMEPAGE, licence, read, size)


GAMES = _data_set(
    'games',
    'Video.txt',
    'Amazon Video Games as published with SASRec. Not a strict 5-core: some users and items have '
    'a single event.',
    (31_013, 23_715, 287_107),
    'b7376fe24430743f411dc7f567285657b2adb3f74361cc7ba0aee94f3024b651',
    'no licence text comes with the file; the reviews are of the Amazon review data of McAuley et '
    'al.: ask before redistributing',
)
ML_1M = _data_set(
    'ml-1m-sasrec',
    'ml-1m.txt',
    'MovieLens-1M as published with SASRec: items with fewer than 5 ratings are gone, and equal '
    'timestamps stand in the order of its authors. No times, no ratings, no titles.',
    (6_040, 3_416, 999_611),
    'b725f3acb3986fe3130bffd1e77a74d182a1f51799567a236dbd60270f95b0a2',
    MOVIELENS_LICENCE,
)
