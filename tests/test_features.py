"""Feature codes against a slow loop over single values."""

import math

import numpy as np
import pytest

from jaxrec.config import Feature
from jaxrec.data.features import Encoder, check_features
from jaxrec.data.histories import Histories
from jaxrec.errors import UserError


def histories(seed=0, lengths=(5, 1, 0, 7)):
    rng = np.random.default_rng(seed)
    n, items = sum(lengths), 9
    tags = rng.integers(0, 5, (items, 3)).astype(np.int32)
    return Histories(
        items=rng.integers(1, items + 1, n).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_ids=np.arange(len(lengths)),
        item_ids=np.arange(items) * 10,
        times=np.sort(rng.integers(0, 50, n)),
        features={
            'play': np.where(rng.random(n) < 0.2, np.nan, rng.uniform(-1, 12, n)),
            'action': rng.integers(-1, 6, n),
        },
        item_features={'duration': rng.uniform(0, 400, items), 'tags': tags},
    )


FEATURES = (
    Feature('action', 'category', size=4),
    Feature('play', 'uniform', size=5, cap=10.0),
    Feature('duration', 'log', size=6, cap=300.0),
    Feature('gap', 'quantile', size=3),
    Feature('tags', 'set', size=3),
)


def slow_code(feature, value, edges):
    if feature.kind == 'set':
        return feature.size + 1 if value > feature.size else value
    if math.isnan(value):
        return 0
    if feature.kind == 'quantile':
        if value > edges[-1]:
            return feature.size + 1
        return 1 + sum(value >= edge for edge in edges[:-1])
    if value < 0:
        return 0
    if feature.kind == 'category':
        return 1 + min(int(value), feature.size)
    share = value / feature.cap
    if feature.kind == 'log':
        share = math.log(1 + value) / math.log(1 + feature.cap)
    return 1 + min(math.floor(share * feature.size), feature.size)


def test_codes_of_events():
    h = histories()
    train_ends = np.maximum(h.offsets[1:] - 1, h.offsets[:-1])
    codes = Encoder(h, FEATURES, train_ends).events(np.arange(len(h.items)))
    gaps = []
    for start, end in zip(h.offsets[:-1], h.offsets[1:], strict=True):
        gaps += [math.nan if i == start else h.times[i] - h.times[i - 1] for i in range(start, end)]
    trained = [
        gaps[i]
        for start, end in zip(h.offsets[:-1], train_ends, strict=True)
        for i in range(start + 1, end)
    ]
    edges = [*np.quantile(trained, [1 / 3, 2 / 3]), max(trained)]
    seen = set()
    for event, item in enumerate(h.items):
        values = {name: column[event] for name, column in h.features.items()} | {
            'gap': gaps[event],
            'duration': h.item_features['duration'][item - 1],
        }
        for feature in FEATURES:
            got = codes[feature.column][event]
            if feature.kind == 'set':
                want = [slow_code(feature, v, ()) for v in h.item_features['tags'][item - 1]]
                assert got.tolist() == want
            else:
                assert got == slow_code(feature, values[feature.column], edges), feature
            assert got.max() < feature.rows
            seen.add((feature.kind, 0 if np.min(got) == 0 else int(np.max(got) > feature.size)))
    assert {('category', 0), ('category', 1), ('uniform', 0), ('uniform', 1)} <= seen


def test_codes_of_items_alone():
    """What is known of an item is known without its event; the rest is missing."""
    h = histories()
    encoder = Encoder(h, FEATURES, h.offsets[1:])
    events = encoder.events(np.arange(len(h.items)))
    codes = encoder.items(h.items)
    for name in ('duration', 'tags'):
        np.testing.assert_array_equal(codes[name], events[name])
    for name in ('action', 'play', 'gap'):
        assert (codes[name] == 0).all()
    assert not any(column.any() for column in encoder.items(np.zeros(4, np.int32)).values())


def test_bucket_edges():
    """The paper's duration: 1,000 buckets to 300 s; the cap itself is in the overflow bucket."""
    h = histories(lengths=(5,))
    h.features['s'] = np.array([0, 0.2999, 0.3, 299.99, 300.0])
    codes = Encoder(h, (Feature('s', 'uniform', 1000, 300.0),), h.offsets[1:]).events(np.arange(5))
    assert codes['s'].tolist() == [1, 1, 2, 1000, 1001]


@pytest.mark.parametrize(
    ('feature', 'word'),
    [
        (Feature('action', 'kind'), 'kind'),
        (Feature('action', size=0), 'size'),
        (Feature('play', 'uniform', 5), 'cap'),
    ],
)
def test_a_feature_that_cannot_be_is_refused_by_name(feature, word):
    """Before any data are read."""
    refused(lambda: check_features((Feature('other'), feature)), feature, word)


@pytest.mark.parametrize(
    ('feature', 'word'),
    [
        (Feature('nothing'), 'duration'),  # tells what there is
        (Feature('tags'), 'sets'),
        (Feature('play', 'set'), 'single'),
    ],
)
def test_a_column_that_does_not_fit_is_refused_by_name(feature, word):
    h = histories()
    refused(lambda: Encoder(h, (feature,), h.offsets[1:]), feature, word)


def refused(call, feature, word):
    with pytest.raises(UserError, match=word) as error:
        call()
    assert repr(feature.column) in str(error.value) and '\n' not in str(error.value)


def test_twice_and_without_times():
    with pytest.raises(UserError, match='twice'):
        check_features((Feature('a'), Feature('a')))
    h = histories()
    h.times = None
    with pytest.raises(UserError, match='times'):
        Encoder(h, (Feature('gap', 'quantile'),), h.offsets[1:])
