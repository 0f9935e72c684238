"""ComiRec-SA against an independent numpy forward pass; which interest its loss teaches."""

import math

import jax
import models
import numpy as np
import pytest
from flax import nnx
from models import jit

from jaxrec.config import Data, Feature
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, check
from jaxrec.models import comirec
from jaxrec.objectives.in_batch import InBatch
from jaxrec.tasks import next_item

ITEMS, W, D, K = 30, 7, 8, 3
FEATURES = (Feature('action', size=2), Feature('tags', 'set', size=4))
LENGTHS = (W, 4, 1, 0, 2)  # of the histories in `make_batch`


def make(**options):
    defaults = {'dim': D, 'interests': K, 'hidden': 2, 'max_len': W, 'embedding_dropout': 0.0}
    config = comirec.Config(feature_dim=3, **(defaults | options))
    return models.make(config, ITEMS)


def make_batch(lengths=LENGTHS, width=W, seed=0):
    """The newest events of histories of these lengths, the same ones at every width."""
    rng = np.random.default_rng(seed)
    real = np.arange(W) >= W - np.array(lengths)[:, None]
    batch = {
        'items': rng.integers(1, ITEMS + 1, real.shape) * real,
        'segments': real,
        'positions': np.arange(W) * real,
        'features': {
            'action': rng.integers(0, 4, real.shape) * real,
            'tags': rng.integers(0, 6, (*real.shape, 2)) * real[..., None],
        },
    }
    return jax.tree.map(lambda x: x[:, W - width :].astype(np.int32), batch)


def slow_interests(params, batch, row, end, features):
    """The interests [K, D] of one user after the event in place end - 1, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    vectors, logits = [], []
    for place in range(end):
        if not batch['segments'][row, place]:
            continue
        x = p['table'][batch['items'][row, place]] * math.sqrt(D)
        if features:
            parts = [x]
            for number, feature in enumerate(features):
                codes = np.atleast_1d(batch['features'][feature.column][row, place])
                members = [p['tokens']['tables'][number][c] for c in codes if c]
                parts.append(sum(members) / len(members) if members else np.zeros(3))
            hidden = np.concatenate(parts) @ p['tokens']['inner']['kernel']
            x = x + hidden / (1 + np.exp(-hidden)) @ p['tokens']['outer']['kernel']
        placed = x + p['positions'][W - batch['items'].shape[1] + place]
        logits.append(np.tanh(placed @ p['inner']['kernel']) @ p['outer']['kernel'])
        vectors.append(x)
    if not vectors:
        return np.zeros((K, D))
    weights = np.exp(logits)
    return (weights / weights.sum(0)).T @ np.array(vectors)


def encoder(graphdef, cuts):
    @jit
    def encode(params, batch):
        model = nnx.merge(graphdef, params)
        return model.encode(batch, model.item_table(), cuts=cuts)

    return encode


def queries_of(graphdef):
    @jit
    def queries(params, batch):
        model = nnx.merge(graphdef, params)
        return model.queries(batch, model.catalogue({}))

    return queries


@pytest.mark.parametrize('features', [(), FEATURES])
def test_interests(features):
    """Of short and full histories and none, after each of the last places."""
    graphdef, params = make(features=features)
    batch = make_batch()
    cuts = 4
    got = encoder(graphdef, cuts)(params, batch)
    assert got.shape == (len(LENGTHS), cuts, K, D)
    for row in range(len(LENGTHS)):
        for g in range(cuts):
            expected = slow_interests(params, batch, row, W - (cuts - 1 - g), features)
            np.testing.assert_allclose(got[row, g], expected, atol=2e-5)
    assert (got[3] == 0).all()  # no history
    queries = queries_of(graphdef)(params, batch)
    assert queries.shape == (len(LENGTHS), K, D)
    np.testing.assert_allclose(queries, got[:, -1], atol=1e-6)


def test_interests_of_one_event_are_its_vector():
    graphdef, params = make()
    batch = make_batch(lengths=(1, 1))
    got = encoder(graphdef, 1)(params, batch)[:, 0]
    vectors = params['table'][batch['items'][:, -1]] * math.sqrt(D)
    for k in range(K):
        np.testing.assert_allclose(got[:, k], vectors, rtol=1e-5)


def test_padding_and_company_change_nothing():
    graphdef, params = make(features=FEATURES)
    encode = encoder(graphdef, 1)
    lengths = (1, 4, 3)
    whole = encode(params, make_batch(lengths))
    for width in (4, 6):
        np.testing.assert_allclose(encode(params, make_batch(lengths, width)), whole, atol=1e-5)
    alone = jax.tree.map(lambda x: x[1:2], make_batch(lengths))
    np.testing.assert_allclose(encode(params, alone), whole[1:2], atol=1e-5)


def make_cuts():
    """A batch of two cuts a row, one row of padding, one row whose first cut has no target."""
    batch = make_batch()
    rng = np.random.default_rng(2)
    targets = rng.integers(1, ITEMS + 1, (len(LENGTHS), 2)).astype(np.int32)
    targets[3], targets[2, 0] = 0, 0
    shares = np.log(rng.uniform(0.01, 0.2, ITEMS + 1)).astype(np.float32)
    return batch | {
        'targets': targets,
        'weights': (targets > 0).astype(np.float32),
        'log_share': np.where(targets > 0, shares[targets], 0),
        'sampled': rng.integers(1, ITEMS + 1, 6).astype(np.int32),
    }


def nearest_interests(params, batch):
    """(row, cut) -> number of the interest nearest to the target, and its vector."""
    table = np.asarray(params['table'], np.float64)
    nearest = {}
    for row, cut in zip(*np.nonzero(batch['targets']), strict=True):
        interests = slow_interests(params, batch, row, W - 1 + cut, ())
        number = int((interests @ table[batch['targets'][row, cut]]).argmax())
        nearest[row, cut] = number, interests[number]
    return nearest


def test_loss_and_accuracy_of_the_nearest_interest():
    """All candidates are scored by that one interest, not each by its own nearest."""
    graphdef, params = make(in_batch=InBatch(uniform=6))
    batch = make_cuts()
    params['table'][batch['targets'][0]] *= 4  # so that some targets score highest
    table = np.asarray(params['table'], np.float64)
    places = list(zip(*np.nonzero(batch['targets']), strict=True))
    candidates = [(batch['targets'][at], float(batch['log_share'][at])) for at in places]
    candidates += [(item, -math.log(ITEMS)) for item in batch['sampled']]
    losses, right = [], []
    for (row, cut), (_, vector) in nearest_interests(params, batch).items():
        own = {*batch['items'][row], *batch['targets'][row]}
        target = batch['targets'][row, cut]

        def score(item, share, vector=vector):
            return vector @ table[item] - share - math.log(len(candidates))

        positive = score(target, batch['log_share'][row, cut])
        others = [score(item, share) for item, share in candidates if item not in own]
        losses.append(math.log(sum(math.exp(s) for s in (positive, *others))) - positive)
        right.append(positive > max(others))
    loss = jit(lambda p, b: nnx.merge(graphdef, p).loss(b, {}, {}, jax.random.key(0)))
    value, (terms, carry) = loss(params, batch)
    assert carry == {}
    np.testing.assert_allclose(value, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(terms['accuracy'], np.mean(right), rtol=1e-5)
    assert 0 < np.mean(right) < 1
    assert set(terms) == {'in_batch', 'accuracy'}


def test_only_the_nearest_interest_learns():
    """Column k of the outer layer makes interest k, and nothing else."""
    graphdef, params = make(in_batch=InBatch(uniform=6))
    whole = make_cuts()
    loss = lambda p, b: nnx.merge(graphdef, p).loss(b, {}, {}, jax.random.key(0))[0]  # noqa: E731
    gradient = jit(jax.grad(loss))
    winners = set()
    for (row, cut), (number, _) in nearest_interests(params, whole).items():
        if not whole['segments'][row, : W - 1 + cut].sum() > 1:
            continue  # an interest of one event is that event's vector, whatever the layer says
        weights = np.zeros_like(whole['weights'])
        weights[row, cut] = 1
        grads = gradient(params, whole | {'weights': weights})
        learnt = (np.asarray(grads['outer']['kernel']) != 0).any(0)
        assert list(np.flatnonzero(learnt)) == [number]
        winners.add(number)
    assert len(winners) > 1


def experiment(task=None, **options):
    task = task or next_item.Config(windows='cuts', cuts=3)
    return Experiment(model=comirec.Config(**options), task=task, data=Data(dataset='synthetic'))


def test_packed_windows_are_refused():
    check(experiment())
    with pytest.raises(UserError, match="this model trains on task.windows='cuts', not 'all'"):
        check(experiment(next_item.Config(windows='all')))
    with pytest.raises(UserError, match='task.cuts=51 is more than the 50 newest events'):
        check(experiment(next_item.Config(windows='cuts', cuts=51)))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'interests': 0}, 'model.interests=0 must be at least 1'),
        ({'hidden': 0}, 'model.hidden=0 must be at least 1'),
        ({'embedding_dropout': 1.0}, r'model.embedding_dropout=1.0 is not in \[0, 1\)'),
        ({'init': 'zeros'}, "model.init='zeros' is not one of xavier_uniform"),
        ({'in_batch': InBatch(rate=0.0)}, r'in_batch.rate=0.0 is not in \(0, 1\)'),
        ({'features': (Feature('a', 'kind'),)}, "feature 'a': kind='kind' is not one of"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(UserError, match=message):
        check(experiment(**options))
