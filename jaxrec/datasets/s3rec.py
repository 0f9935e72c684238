"""The 5-core sets that S3-Rec published and CL4SRec and many others use: no times, order only.

Other papers' Beauty, Sports and Toys differ (SASRec's Beauty has 52,024 users, BERT4Rec's 40,226):
numbers on them cannot be compared.

NAME-attributes are the same events with 'attributes' of the items, a set of numbers from 1 each
(categories and brands, as published); the paper's Beauty had 1,221 of them, the file has 637.
"""

import dataclasses
import io
import json
from collections.abc import Callable

import numpy as np

from jaxrec.data.ragged import padded
from jaxrec.datasets import text_layouts
from jaxrec.datasets.events import Events
from jaxrec.datasets.public import DataSet, read_file
from jaxrec.errors import UserError

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


def _with_attributes(plain: DataSet, file: str, sha256: str) -> DataSet:
    """The data set with the attributes of its items."""

    def read(source: str, say: Callable) -> tuple[Events, str]:
        events, used = plain.read(source, say)
        data, where = read_file(source, say, f'{DATA}/{file}', sha256)
        events.item_features['attributes'] = read_attributes(data, where)
        return events, f'{used} and {where}'

    return dataclasses.replace(
        plain,
        name=f'{plain.name}-attributes',
        description=f'{plain.description} With attributes of the items.',
        read=read,
    )


def read_attributes(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Raw ids int64 [T] and sets int32 [T, S] padded with 0, of the JSON {'12': [1, 5], ..}.

    Raises:
      UserError: `data`, which came from `where`, is something else.
    """
    try:
        found = {int(item): [int(n) for n in own] for item, own in json.loads(data).items()}
        if not found or min(min(own, default=1) for own in found.values()) < 1:
            raise ValueError('attributes are numbers from 1')
    except (ValueError, TypeError, AttributeError) as e:
        raise UserError(
            f'{where} is not {{"item": [attribute, ..], ..}} in whole numbers: {e}'
        ) from e
    return np.array(list(found)), padded(list(found.values()))


BEAUTY_ATTRIBUTES = _with_attributes(
    BEAUTY,
    'Beauty_item2attributes.json',
    '129e40f67486f6877eff0f5318cfa8530ee8ac23d8b0d1de04e1bb7a2ba0b2d4',
)
SPORTS_ATTRIBUTES = _with_attributes(
    SPORTS,
    'Sports_and_Outdoors_item2attributes.json',
    '7fb10733ac4f1811384a52144cdefa7fcc7536fa80a7232c5da9bd789155c34b',
)
YELP_ATTRIBUTES = _with_attributes(
    YELP,
    'Yelp_item2attributes.json',
    'f25acd5e1e680e0b22fd4e3f4fb6be4b2a7461e9222610616e3e1ee6702dd58d',
)
