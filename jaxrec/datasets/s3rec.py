"""The 5-core sets that S3-Rec published and CL4SRec and many others use: no times, order only.

Other papers' Beauty, Sports and Toys differ (SASRec's Beauty has 52,024 users, BERT4Rec's 40,226):
numbers on them cannot be compared.
"""

import io
from collections.abc import Callable

from jaxrec.datasets import text_layouts
from jaxrec.datasets.events import Events
from jaxrec.datasets.public import DataSet, read_file

HOMEPAGE = 'https://github.com/RUCAIBox/CIKM2020-S3Rec'
DATA = 'https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/master/data'
CITATION = (
    'Zhou et al., S3-Rec: Self-Supervised Learning for Sequential Recommendation with Mutual '
    'Information Maximization, CIKM 2020, arXiv:2008.07873'
)
AMAZON = (
    'no licence text comes with the file; the reviews are of the Amazon review data of McAuley et '
    'al.: ask before redistributing'
)
YELP_TERMS = "derived from the Yelp Open Dataset, which has its owner's terms of use"


def _data_set(name: str, file: str, what: str, size, sha256: str, licence: str) -> DataSet:
    def read(source: str, say: Callable) -> tuple[Events, str]:
        data, used = read_file(source, say, f'{DATA}/{file}', sha256)
        return text_layouts.read_sequences(io.BytesIO(data), file), used

    return DataSet(
        name=name,
        description=f'{what}: sequences with at least 5 events per user and item, as published '
        'with S3-Rec. One line per user, oldest first; no times, no ratings.',
        citation=CITATION,
        homepage=HOMEPAGE,
        licence=licence,
        size=size,
        read=read,
    )


BEAUTY = _data_set(
    'beauty',
    'Beauty.txt',
    'Amazon Beauty',
    (22_363, 12_101, 198_502),
    '226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8',
    AMAZON,
)
SPORTS = _data_set(
    'sports',
    'Sports_and_Outdoors.txt',
    'Amazon Sports and Outdoors',
    (35_598, 18_357, 296_337),
    '2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2',
    AMAZON,
)
TOYS = _data_set(
    'toys',
    'Toys_and_Games.txt',
    'Amazon Toys and Games',
    (19_412, 11_924, 167_597),
    '',  # not known; the published size is checked
    AMAZON,
)
YELP = _data_set(
    'yelp',
    'Yelp.txt',
    'Yelp 2019',
    (30_431, 20_033, 316_354),
    '724b219106b81dd2349027da997334ddb6da9fe2f152ad6e0d97a93170f7caed',
    YELP_TERMS,
)
