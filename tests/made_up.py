"""Data of 400,000 items for every task, made in a second or two; nothing is read.

Programs are compiled for their shapes and do not run: what the numbers are does not matter.
"""

import functools

import numpy as np

from jaxrec.data import item_texts, ratings, text_encoders
from jaxrec.data.graph import Graph, undirected
from jaxrec.data.graphs import Graphs
from jaxrec.data.histories import Histories
from jaxrec.data.rows import Rows
from jaxrec.datasets import block_model, live_rooms
from jaxrec.experiment import Experiment
from jaxrec.tasks import click, graphs, live, next_item, nodes, warm_ratings
from jaxrec.tasks import ratings as ratings_task

ITEMS, USERS = 400_000, 300


def data_of(experiment: Experiment) -> Histories | Rows | Graph | Graphs:
    """What the experiment's task would read."""
    match task := experiment.task:
        case next_item.Config():
            return histories(experiment)
        case click.Config():
            return impressions(task)
        case ratings_task.Config():
            return rated(task.source, task.target)
        case warm_ratings.Config():
            return opinions(task)
        case live.Config():
            return visits()
        case nodes.Config():
            return block_model.generate(block_model.Parameters(nodes=3_000))
        case graphs.Config():
            return small_graphs()
    raise AssertionError(f'there are no made-up data of {type(task).__module__}: write some')


def histories(experiment: Experiment) -> Histories:
    """300 users with histories longer than the window, and the features that the model reads."""
    inputs, task = experiment.model.inputs(), experiment.task
    length, rng = inputs.max_len + 5, np.random.default_rng(0)
    events = USERS * length
    made = Histories(
        items=_spread(events),
        offsets=np.arange(USERS + 1) * length,
        user_ids=np.arange(USERS),
        item_ids=np.arange(1, ITEMS + 1),
        times=np.tile(np.arange(length), USERS),
    )
    if task.in_domain:
        made.item_features['domain'] = np.array([b'food', b'kitchen'])[np.arange(ITEMS) % 2]
    if task.texts.encoder:
        made.titles = np.arange(ITEMS).astype('S')
    if task.split == 'given':
        made.features['part'] = np.maximum(np.arange(events) % 50 - 47.0, 0)
    for signal in inputs.rewards.signals if inputs.rewards else ():
        for column in {signal.column, signal.within} - {''}:
            made.features[column] = rng.integers(1, 9, events).astype(np.float64)
    for feature in inputs.features:
        if feature.kind == 'set':
            sets = rng.integers(0, feature.size + 1, (ITEMS, 3))
            made.item_features[feature.column] = sets.astype(np.int32)
        elif feature.column != 'gap':
            made.features[feature.column] = rng.uniform(0, 9, events)
    return made


def text_vectors(items: Histories, settings, *_) -> item_texts.ItemTexts:
    """In the place of `item_texts.of_items`, which reads every text: unit vectors."""
    some = np.random.default_rng(0).normal(size=(1000, settings.dim)).astype(np.float32)
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    vectors, none = some[np.arange(items.num_items + 1) % len(some)], np.zeros(0, np.float32)
    vectors[0] = 0
    rest = none.astype('S1'), none, none.reshape(0, settings.dim), np.zeros_like(vectors[0])
    return item_texts.ItemTexts(vectors, text_encoders.Encoder(settings.encoder, *rest))


def impressions(task: click.Config) -> Rows:
    """50,000 rows with the fields and labels of the task; a tenth validates, a tenth tests."""
    rng, count = np.random.default_rng(0), 50_000
    days = np.where(np.arange(count) % 10 == 8, task.valid_from, 0)
    days = np.where(np.arange(count) % 10 == 9, task.test_from, days)
    columns = {task.day: np.sort(days)}
    of_items = {field.of for field in task.fields} - {'', 'item'}
    for field in task.fields:
        if '.' in field.column or field.column in of_items:
            continue
        if field.kind == 'set':
            columns[field.column] = rng.integers(0, 50, (count, 5)).astype(np.int32)
        elif field.kind == 'category' and field.column not in ('user', 'item'):
            columns[field.column] = rng.integers(0, 50, count)
        elif field.column not in ('user', 'item'):
            columns[field.column] = rng.normal(size=count).astype(np.float32)
    sets = {field.column for field in task.fields if field.kind == 'set' and field.of == 'item'}
    sets &= columns.keys()
    return Rows(
        users=rng.integers(0, USERS, count).astype(np.int32),
        items=rng.integers(1, ITEMS + 1, count).astype(np.int32),
        times=np.arange(count),
        user_ids=np.arange(USERS),
        item_ids=np.arange(ITEMS),
        features={name: c for name, c in columns.items() if name not in sets},
        user_features={name: columns[name][:USERS] for name in sets},
        item_features={name: rng.integers(0, 50, ITEMS) for name in of_items},
        labels={name: rng.integers(0, 2, count).astype(np.float32) for name in task.labels},
    )


@functools.cache
def rated(source: str, target: str) -> Rows:
    """20,000 users rate ten items of each domain."""
    users, each = 20_000, 20
    count = users * each
    domains = np.array([source.encode(), target.encode()])
    return Rows(
        users=np.repeat(np.arange(users, dtype=np.int32), each),
        items=_spread(count),
        times=np.arange(count),
        user_ids=np.arange(users),
        item_ids=np.arange(1, ITEMS + 1),
        item_features={'domain': domains[np.arange(ITEMS) % 2]},
        labels={ratings.LABEL: (1 + np.arange(count) % 5).astype(np.float32)},
    )


def opinions(task: warm_ratings.Config) -> Histories:
    """20,000 users rate twenty items."""
    users, each = 20_000, 20
    count = users * each
    made = Histories(
        items=_spread(count),
        offsets=np.arange(users + 1) * each,
        user_ids=np.arange(users),
        item_ids=np.arange(1, ITEMS + 1),
        times=np.arange(count),
    )
    made.features[task.label] = (1 + np.arange(count) % 5).astype(np.float64)
    made.titles = np.arange(ITEMS).astype('S')
    if task.domain:
        names = np.array([task.domain.encode(), b'other'])
        made.item_features['domain'] = names[np.arange(ITEMS) % 2]
    return made


def texts_of(items: Histories, texts: item_texts.ItemTexts, *_) -> dict[str, np.ndarray]:
    """In the place of `warm_ratings.texts_of`: items of three out of 20 parts."""
    of = np.random.default_rng(0).integers(1, 21, (items.num_items + 1, 3)).astype(np.int32)
    return {'items': texts.vectors, 'parts': texts.vectors[:21], 'of': of}


def factors(given: ratings.Triples, num_users: int, num_items: int, dim: int) -> ratings.Factors:
    """In the place of `ratings.factorise`, which takes a minute for so many items."""
    rng, users, items = np.random.default_rng(0), num_users, num_items + 1
    mean, biases = float(given.values.mean()), (np.zeros(items), rng.normal(size=users))
    vectors = rng.normal(size=(items, dim)), rng.normal(size=(users, dim))
    return ratings.Factors(mean, *biases, *vectors, np.eye(dim), ratings.SHRINK)


@functools.cache
def visits() -> Rows:
    """An hour of visits, to as many live rooms as there are items."""
    return live_rooms.generate(live_rooms.Parameters(rooms=ITEMS // 2, hours=1, rate=60))


def small_graphs() -> Graphs:
    """1,000 of about 20 nodes and 80 edges, in two classes, as IMDB-BINARY has them."""
    rng, count = np.random.default_rng(0), 1_000
    sizes = rng.integers(12, 29, count)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    owner = np.repeat(np.arange(count), 5 * sizes)
    ends = offsets[owner] + (rng.random((2, len(owner))) * sizes[owner]).astype(np.int64)
    tags = rng.integers(0, 10, offsets[-1]).astype(np.int32)
    return Graphs(offsets, undirected(ends), tags, (np.arange(count) % 2).astype(np.int32))


def _spread(count: int) -> np.ndarray:
    """int32 [count], items; of 400,000 neighbours no two are alike."""
    return (np.arange(count) * 7919 % ITEMS + 1).astype(np.int32)
