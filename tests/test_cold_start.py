"""Ratings of cold users: the split, biases and factors, PTUPCDR and CDRNP against slow numpy."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax import nnx
from models import jit, made, softmax

from jaxrec import evaluate, rng
from jaxrec.config import Data, Mesh, Optim, Train
from jaxrec.data import ratings as data
from jaxrec.data.rows import Rows
from jaxrec.datasets import rating_domains
from jaxrec.errors import UserError
from jaxrec.evaluation import cold_start, point_metrics
from jaxrec.experiment import Experiment, applied, check
from jaxrec.models import cdrnp, lightgcn, ptupcdr
from jaxrec.tasks import ratings
from jaxrec.training.loop import fit, fit_together
from jaxrec.training.parallel_runs import expand

USERS, BOOKS, FILMS, DIM = 60, 12, 15, 3
SHARES = {'cold_share': 0.2, 'valid_share': 0.1}


def rows(seed=0):
    """Ratings 1 to 5 with biases and tastes that both domains share; user 0 dislikes all books."""
    rng = np.random.default_rng(seed)
    items = np.arange(1, BOOKS + FILMS + 1)
    taste, kind = rng.normal(size=(USERS, 2)), rng.normal(size=(len(items) + 1, 2))
    bias = rng.normal(0, 0.5, USERS)
    user, item = np.divmod(rng.permutation(USERS * len(items)), len(items))
    item += 1
    kept = rng.random(len(user)) < 0.6
    kept &= ~((user >= USERS - 5) & (item <= BOOKS))  # who has no book
    kept &= ~((user < 2) & (item > BOOKS))  # who has no film
    user, item = user[kept], item[kept]
    value = 3 + bias[user] + (taste[user] * kind[item]).sum(1) + rng.normal(0, 0.3, len(user))
    value = np.clip(np.round(value), 1, 5)
    value[(user == 5) & (item <= BOOKS)] = 1
    return Rows(
        users=user.astype(np.int32),
        items=item.astype(np.int32),
        times=np.zeros(len(user), np.int64),
        user_ids=np.arange(USERS),
        item_ids=items,
        item_features={'domain': np.where(items <= BOOKS, b'book', b'film')},
        labels={'rating': value.astype(np.float32)},
        name='made',
    )


def split(given=None, **changes):
    return data.cold_start(given or rows(), 'book', 'film', **{**SHARES, **changes})


@pytest.fixture(scope='module')
def bases():
    return cold_start.Bases(split(), DIM)


@pytest.fixture(scope='module')
def constants(bases):
    return jax.tree.map(jnp.asarray, ratings.constants_of(bases, ratings.learnt_ratings(bases), 4))


def built(config, constants, **zero):
    """(model, parameters as drawn by `made`)."""
    graphdef, params = made(lambda: config.make({'factor': DIM}, rngs=nnx.Rngs(0)))
    return graphdef, jax.tree.map(jnp.asarray, params)


def called(graph, params, function, *args):
    """function(model, *args), compiled: op by op it takes longer."""
    return jit(lambda params, args: function(nnx.merge(graph, params), *args))(params, args)


def predicted(model, query, constants):
    return model.ratings(query, model.begin(constants))


def batch_of(triples, count=None):
    return jax.tree.map(jnp.asarray, data.rating_batch(triples, count or len(triples)))


def test_no_target_rating_of_a_cold_user_is_learnt():
    """Check 4.6.3: by their numbers, and a held-out rating changes no prediction."""
    given = rows()
    one = split(given)
    held = np.union1d(one.test.users, one.valid.users)
    assert len(np.intersect1d(one.test.users, one.valid.users)) == 0
    assert len(np.intersect1d(one.train.users, held)) == 0
    assert set(held) < set(one.source.users)  # their source ratings stay
    both = np.intersect1d(one.source.users, np.r_[one.train.users, held])
    assert len(np.unique(one.test.users)) == round(0.2 * len(both))
    assert len(one.source) == (given.items <= BOOKS).sum()
    other = rows()
    tested = np.isin(other.users, held) & (other.items > BOOKS)
    other.labels['rating'][tested] = 6 - other.labels['rating'][tested]
    first, second = (cold_start.Bases(split(g), DIM) for g in (given, other))
    for a, b in zip(
        jax.tree.leaves(ratings.constants_of(first, ratings.learnt_ratings(first), 4)),
        jax.tree.leaves(ratings.constants_of(second, ratings.learnt_ratings(second), 4)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    for name, values in cold_start.predictions(first, one.test).items():
        np.testing.assert_array_equal(values, cold_start.predictions(second, one.test)[name])


def test_biases_and_factors():
    """Biases turn by turn, and factors at which the gradient of their loss vanishes."""
    one = split()
    found = data.factorise(one.source, USERS, one.num_items, DIM)
    r, mean = one.source, one.source.values.mean()
    of_user, of_item = np.zeros(USERS), np.zeros(one.num_items + 1)
    for _ in range(12):
        for values, owner, other, partner in (
            (of_item, r.items, of_user, r.users),
            (of_user, r.users, of_item, r.items),
        ):
            for n in range(len(values)):
                mine = owner == n
                left = r.values[mine] - mean - other[partner[mine]]
                values[n] = left.sum() / (mine.sum() + 5)
    np.testing.assert_allclose(found.user_bias, of_user, atol=1e-5)
    np.testing.assert_allclose(found.item_bias, of_item, atol=1e-5)
    left = r.values - mean - of_user[r.users] - of_item[r.items]
    many = data.Triples(r.users, r.items, left)  # more sweeps than training has
    matrix = many.matrix(USERS, one.num_items)
    p, q, _ = data._alternating(matrix, DIM, sweeps=400)
    error = left - (p[r.users] * q[r.items]).sum(1)
    for factors, owner, other in ((p, r.users, q[r.items]), (q, r.items, p[r.users])):
        gradient = 8 * factors
        np.add.at(gradient, owner, -error[:, None] * other)
        assert np.abs(gradient).max() < 1e-3
    gram = p.T @ p
    np.testing.assert_allclose(gram, q.T @ q, atol=1e-8)  # lengths are shared, columns orthogonal
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-8
    assert (np.diff(np.diag(gram)) <= 1e-9).all()


def test_an_item_without_the_own_rating(bases):
    """b_i and q_i solved anew of the item's other ratings, in the columns that ALS solves in."""
    train, found = bases.data.train, bases.target
    bias, vectors = data.without_own(found, train)
    left = train.values - found.mean - found.user_bias[train.users]

    def solved(some):
        b = left[some].sum() / (len(some) + 5)
        p = found.users[train.users[some]]
        gram = p.T @ p + 8 * found.metric
        return b, np.linalg.solve(gram, p.T @ (left[some] - b))

    for n in range(0, len(train), 7):
        mates = np.flatnonzero(train.items == train.items[n])
        b, q = solved(mates)
        np.testing.assert_allclose(found.item_bias[train.items[n]], b, atol=1e-4)
        np.testing.assert_allclose(found.items[train.items[n]], q, atol=1e-3)
        b, q = solved(mates[mates != n])
        np.testing.assert_allclose(bias[n], b, atol=1e-6)
        np.testing.assert_allclose(vectors[n], q, atol=1e-6)


def test_the_own_rating_says_nothing_of_its_item(bases):
    """Another value of a learnt rating leaves what a model reads beside it as it is."""
    train = bases.data.train
    other = train.values.copy()
    other[3] = 6 - other[3]
    changed = data.Triples(train.users, train.items, other)
    before, after = (data.without_own(bases.target, x) for x in (train, changed))
    for was, now in zip(before, after, strict=True):
        np.testing.assert_allclose(was[3], now[3], atol=1e-12)
        mates = np.flatnonzero(train.items == train.items[3])
        assert np.abs(was[mates] - now[mates]).max() > 1e-3


def test_fewer_users_than_factors():
    """Columns of which nothing is known stay empty."""
    items = np.tile(np.arange(1, 301, dtype=np.int32), 2)
    users, values = (
        np.repeat([0, 1], 300).astype(np.int32),
        np.random.default_rng(0).integers(1, 6, 600),
    )
    some = data.Triples(users, items, values.astype(np.float32))
    found = data.factorise(some, 8, 300, 5)
    known = np.abs(found.items).max(0) > 0.1
    assert 1 <= known.sum() <= 2
    vectors = data.without_own(found, some)[1]
    with pytest.raises(UserError, match='task.factors=5 is more than there are users'):
        data.factorise(some, 4, 300, 5)
    assert np.abs(vectors[:, known]).max() > 0.1 and np.abs(vectors[:, ~known]).max() < 1e-6


def test_a_batch_tells_its_items_without_themselves(bases):
    """As untrained networks add nothing, the errors are those of the bases beside the ratings."""
    train = ratings.learnt_ratings(bases)
    own = jax.tree.map(jnp.asarray, ratings.constants_of(bases, train, 4))
    batch = data.RatingBatches(train, rows=len(train) + 5, seed=0, process=(0, 1))(0)
    bias = bases.slope * bases.source.user_bias[train.users]
    alone = data.without_own(bases.target, bases.data.train)[0][bases.taught_ratings()]
    of_items, bare = bases.target.mean + alone, dataclasses.replace(train, beside={})
    known = bases.target.of_items(train.items)
    for some, items in ((batch, of_items), (batch_of(bare), known)):
        graph, params = nnx.split(CONFIG.make({'factor': DIM}, rngs=nnx.Rngs(0)))
        terms = called(
            graph, params, lambda m, b: m.loss(b, own, {}, jax.random.key(0))[1][0], some
        )
        wanted = ((train.values - items - bias) ** 2).mean()
        np.testing.assert_allclose(terms['mse'], wanted, rtol=1e-5)
    support = own['support']
    assert support['item_base'].shape == support['ratings'].shape
    assert not batch['item_factors'][len(train) :].any()


def test_references(bases):
    """Item mean, its bias, and neighbours by loops; errors are of clipped predictions."""
    one, found = bases.data, cold_start.predictions(bases, bases.data.test)
    source, target = bases.source, bases.target
    known = set(bases.taught())
    taught = [n for n in range(len(one.train)) if one.train.users[n] in known]
    x = np.array([source.user_bias[one.train.users[n]] for n in taught])
    y = np.array([one.train.values[n] - target.of_items(one.train.items[n]) for n in taught])
    assert bases.slope == pytest.approx((x @ y) / (x @ x))
    residual = np.zeros((USERS, one.num_items + 1))
    s = one.source
    residual[s.users, s.items] = (
        s.values - source.of_items(s.items) - source.user_bias[s.users]
    ).astype(np.float32)
    for place in range(0, len(one.test), 7):
        user, item = one.test.users[place], one.test.items[place]
        base = target.of_items(item) + bases.slope * source.user_bias[user]
        assert found['item_source_bias'][place] == pytest.approx(base)
        top = bottom = 0.0
        for n in taught:
            if one.train.items[n] == item:
                other = one.train.users[n]
                a, b = residual[user], residual[other]
                like = max(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9), 0)
                left = one.train.values[n] - target.of_items(item) - target.user_bias[other]
                top, bottom = top + like * left, bottom + like
        assert found['source_knn'][place] == pytest.approx(base + top / (bottom + 1), abs=1e-5)
    evaluation = ratings.ColdRatings(ratings.Config(source='book', target='film'), bases, one.test)
    measured = evaluation.references()['item_mean']
    clipped = np.clip(found['item_mean'], 1, 5)
    assert measured.metrics['MAE'] == pytest.approx(np.mean(abs(clipped - one.test.values)))
    wanted = np.sqrt(np.mean((clipped - one.test.values) ** 2))
    assert measured.metrics['RMSE'] == pytest.approx(wanted)
    assert measured.metrics['MSE'] == pytest.approx(measured.values['MSE'].mean())
    assert 'numbers' not in runs.check_members(measured)
    own = dataclasses.replace(evaluation._config, split_seed=-1)
    kept = ratings.ColdRatings(own, bases, one.test).references()['item_mean'].to_keep()
    pairs = list(zip(one.test.users.tolist(), one.test.items.tolist(), strict=True))
    assert len(set(kept['numbers'].tolist())) == len(set(pairs)) == len(pairs)


def test_emcdr_of_equal_factors_is_the_source(bases):
    """Check 4.6.4: where both domains have the same factors the map is the identity."""
    users = np.random.default_rng(0).normal(size=(USERS, DIM))
    twin = copy.copy(bases)
    twin.source = dataclasses.replace(bases.source, users=users)
    twin.target = dataclasses.replace(bases.target, users=users)
    np.testing.assert_allclose(cold_start.linear_map(twin, ridge=0), np.eye(DIM), atol=1e-9)


def test_a_constant_meta_net_is_emcdr_trained_by_ratings(bases, constants):
    """Check 4.6.4: the same predictions, and the same gradient of the one matrix."""
    batch = batch_of(bases.data.train)
    graph, params = built(ptupcdr.Config(hidden=4), constants)
    params['meta']['kernels'][1] *= 0
    linear, other = built(ptupcdr.Config(bridge='linear'), constants)
    other['bridge'] = params['meta']['biases'][1].reshape(DIM, DIM)

    def loss(graph, params):
        return nnx.merge(graph, params).loss(batch, constants, {}, jax.random.key(0))[0]

    one, two = (jit(jax.value_and_grad(lambda p, g=g: loss(g, p))) for g in (graph, linear))
    (value, gradient), (wanted, theirs) = one(params), two(other)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    mine = gradient['meta']['biases'][1].reshape(DIM, DIM)
    np.testing.assert_allclose(mine, theirs['bridge'], rtol=1e-4, atol=1e-6)
    got = called(graph, params, lambda model: model.ratings(batch, constants))
    p, q = (np.asarray(constants['vectors'][n]) for n in ('users', 'items'))
    at = bases.data.train
    mapped = (p[at.users] @ np.asarray(other['bridge']) * q[at.items]).sum(1)
    np.testing.assert_allclose(got, bases.predict(at.users, at.items) + mapped, atol=1e-4)


def test_preferences(bases, constants):
    """c_u by a loop; the first item is no padding, and who likes nothing has 0, not NaN."""
    graph, params = built(ptupcdr.Config(hidden=4), constants)
    s, liked = bases.data.source, constants['liked']
    items = constants['vectors']['items']
    found = np.asarray(called(graph, params, lambda model: model.preferences(liked, items)))
    weigh = params['preferences']['weigh']
    for user in range(USERS):
        own = s.items[(s.users == user) & (s.values > 3)][-4:]
        vectors = np.asarray(constants['vectors']['items'])[own]
        hidden = np.maximum(vectors @ weigh['kernels'][0] + weigh['biases'][0], 0)
        scores = np.exp(hidden @ weigh['kernels'][1] + weigh['biases'][1])[:, 0]
        wanted = (scores / scores.sum()) @ vectors if len(own) else np.zeros(DIM)
        np.testing.assert_allclose(found[user], wanted, atol=1e-5)
    assert (found[5] == 0).all() and (np.asarray(liked) == 1).any()


CONFIG = cdrnp.Config(hidden=8, latent=4, layers=2, support=64, memory=3, dropout=0.0)


def test_query_as_support_diverges_by_nothing(bases, constants):
    """Check 4.6.1: KL = 0 where a batch is what is drawn; of triples no order and no repeats."""
    graph, params = built(CONFIG, constants)
    triples = batch_of(bases.data.train.take(np.arange(20)))
    query = batch_of(bases.data.test.take(np.arange(10)))

    def divergence(model, key):
        batch = model._drawn(constants, rng.keys(key, *cdrnp._STREAMS)['support'])
        batch['weights'] = jnp.ones(CONFIG.support)
        return model.loss(batch, constants, {}, key)[1][0]['kl']

    def of_support(model, order):
        state = model.support({n: x[order] for n, x in triples.items()}, constants)
        z = model.gaussian(state['mean'])[0]
        return model.ratings(query, constants | {'state': state, 'z': z})

    found = called(graph, params, divergence, jax.random.key(1))
    np.testing.assert_allclose(found, 0, atol=1e-6)
    reference = called(graph, params, of_support, jnp.arange(20))
    for order in (np.arange(20)[::-1], np.r_[np.arange(20), np.arange(20)]):
        found = called(graph, params, of_support, jnp.asarray(order))
        np.testing.assert_allclose(found, reference, atol=1e-5)


def layers(w, x):
    """Linear layers with ReLU between them."""
    for n in range(len(w['kernels'])):
        x = x @ w['kernels'][n] + w['biases'][n]
        x = np.maximum(x, 0) if n + 1 < len(w['kernels']) else x
    return x


def slow_known(w, bases, triples):
    """[p_u; c_u; q_i] of triples, each over the deviation of its kind, and their base."""
    s, source, target = bases.data.source, bases.source, bases.target
    found, base = [], []
    for n, (user, item) in enumerate(zip(triples['users'], triples['items'], strict=True)):
        liked = source.items[s.items[(s.users == user) & (s.values > 3)][-4:]]
        c = np.zeros(DIM)
        if len(liked):
            c = softmax(layers(w['preferences']['weigh'], liked)[:, 0]) @ liked
        q, of_item = target.items[item], target.of_items(item)
        if 'item_factors' in triples:  # without the own rating
            q, of_item = (np.float64(triples[x][n]) for x in ('item_factors', 'item_base'))
        parts = (
            source.users[user] / source.users[np.unique(s.users)].std(),
            c / source.items[np.unique(s.items)].std(),
            q / target.items[np.unique(bases.data.train.items)].std(),
        )
        found.append(np.concatenate(parts))
        base.append(of_item + bases.slope * source.user_bias[user])
    return np.array(found), np.array(base)


def slow_encoded(w, bases, triples):
    """e of triples."""
    known, base = slow_known(w, bases, triples)
    left = np.float64(triples['ratings']) - base
    return layers(w['encoder'], np.column_stack([known, left]))


def slow_gaussian(w, e):
    mean, raw = np.split(layers(w['latent'], np.maximum(e.mean(0), 0)), 2)
    return mean, 2 * np.log(0.1 + 0.9 / (1 + np.exp(-raw)))


def slow_ratings(w, bases, z, query, support):
    """Attention without own triples, remainer, FiLM and decoder, one query at a time."""
    e, theirs = slow_encoded(w, bases, support), slow_known(w, bases, support)[0]
    keys, users, found = layers(w['keys'], theirs), np.asarray(support['users']), []
    for x, base, user in zip(*slow_known(w, bases, query), query['users'], strict=True):
        others = users != user
        r = softmax(keys[others] @ layers(w['keys'], x) / keys.shape[1] ** 0.5) @ e[others]
        r = r + softmax(w['memory'] @ r) @ w['memory']
        x = np.concatenate([x, (x[:DIM] @ w['match']) * x[-DIM:], z])
        for n, layer in w['decoder'].items():
            gamma, beta = np.split(layers(w['films'][n], r), 2)
            x = np.maximum((1 + gamma) * layers(layer, x) + beta, 0)
        found.append(base + layers(w['out'], x)[0])
    return np.array(found)


def test_ratings_against_loops(bases, constants):
    """Of cold users, and of users of the support; z is the mean of what the support tells."""
    graph, params = built(CONFIG, constants)
    w, train = jax.tree.map(np.float64, params), bases.data.train
    support = {n: np.asarray(x)[: CONFIG.support] for n, x in constants['support'].items()}
    taught = np.flatnonzero(np.isin(train.users, support['users']))
    z = slow_gaussian(w, slow_encoded(w, bases, support))[0]
    for triples in (bases.data.test.take(np.arange(20)), train.take(taught[:20])):
        query = batch_of(triples)
        found = called(graph, params, predicted, query, constants)
        wanted = slow_ratings(w, bases, z, query, support)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_step_against_loops(bases, constants):
    """Prior of the drawn support, posterior of it and the batch without its padding.

    The squared error is of a draw of the posterior, and kl times the divergence is added.
    """
    graph, params = built(CONFIG, constants)
    w, count = jax.tree.map(np.float64, params), len(constants['support']['users'])
    high = np.flatnonzero(bases.data.train.values == 5)  # far from the support's mean
    rest = bases.data.train.take(high[:50])
    batch, key = batch_of(rest, 64), jax.random.key(3)
    value, (terms, _) = called(graph, params, lambda m: m.loss(batch, constants, {}, key))

    keys = rng.keys(key, *cdrnp._STREAMS)
    place = np.asarray(jax.random.randint(keys['support'], (CONFIG.support,), 0, count))
    support = {n: np.asarray(x)[place] for n, x in constants['support'].items()}
    query = {n: np.asarray(x)[: len(rest)] for n, x in batch.items()}
    e = [slow_encoded(w, bases, triples) for triples in (support, query)]
    prior, posterior = slow_gaussian(w, e[0]), slow_gaussian(w, np.concatenate(e))
    kl = 0
    for m, v, a, b in zip(*posterior, *prior, strict=True):
        kl += 0.5 * (np.exp(v - b) + (m - a) ** 2 / np.exp(b) - 1 + b - v) / CONFIG.latent
    np.testing.assert_allclose(terms['kl'], kl, rtol=1e-3)
    noise = np.float64(jax.random.normal(keys['latent'], (CONFIG.latent,)))
    z = posterior[0] + np.exp(posterior[1] / 2) * noise
    mse = ((slow_ratings(w, bases, z, query, support) - rest.values) ** 2).mean()
    np.testing.assert_allclose(terms['mse'], mse, rtol=1e-4)
    np.testing.assert_allclose(value - terms['mse'], 0.1 * kl, rtol=1e-2)


def test_a_network_of_nothing_is_the_biases(bases, constants):
    """Check 4.6.2: predictions of item + source bias; layers without a condition are plain."""
    query, cold = batch_of(bases.data.test), bases.data.test
    graph, params = built(CONFIG, constants)
    zeros = {**params, 'out': jax.tree.map(jnp.zeros_like, params['out'])}
    found = called(graph, zeros, predicted, query, constants)
    np.testing.assert_allclose(found, bases.predict(cold.users, cold.items), atol=1e-6)
    plain, _ = built(dataclasses.replace(CONFIG, adaptive=False), constants)
    without = {**params, 'films': jax.tree.map(jnp.zeros_like, params['films'])}
    one = called(graph, without, predicted, query, constants)
    del without['films']
    two = called(plain, without, predicted, query, constants)
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert np.abs(one - found).max() > 0.1


def test_a_user_does_not_see_the_own_ratings(bases, constants):
    """Attention leaves a user's own triples out; who has no source ratings is finite."""
    graph, params = built(CONFIG, constants)
    train = bases.data.train
    user = int(train.users[0])
    query = batch_of(train.take(np.flatnonzero(train.users == user)))

    def of_support(model, query, support):
        state = model.support(support, constants)
        return model.ratings(query, constants | {'state': state, 'z': jnp.zeros(4)})  # z is of all

    found = []
    for shift in (0.0, 2.0):
        support = batch_of(train)
        support['ratings'] = support['ratings'] + shift * (support['users'] == user)
        found.append(called(graph, params, of_support, query, support))
    np.testing.assert_array_equal(*found)
    nobody = {'users': jnp.array([0, USERS - 1]), 'items': jnp.array([BOOKS + 1, BOOKS + 2])}
    assert np.isfinite(called(graph, params, predicted, nobody, constants)).all()


def test_shuffled_users_teach_nothing_and_cold_ones_keep_theirs():
    one, other = split(), split(shuffled=True)
    assert np.array_equal(one.test.users, other.test.users)
    cold = np.isin(one.source.users, np.union1d(one.test.users, one.valid.users))
    np.testing.assert_array_equal(one.source.users[cold], other.source.users[cold])
    moved = one.source.users[~cold] != other.source.users[~cold]
    both = np.isin(one.source.users[~cold], one.train.users)
    assert moved[both].all() and not moved[~both].any()
    assert np.array_equal(np.unique(one.source.users), np.unique(other.source.users))
    slopes = [cold_start.Bases(s, DIM).slope for s in (one, other)]
    assert abs(slopes[1]) < 0.5 * slopes[0]
    fewer = split(alone=0.5)
    assert len(np.unique(fewer.source.users)) < len(np.unique(one.source.users))
    assert np.array_equal(fewer.test.users, one.test.users)


@pytest.mark.parametrize(
    'change, says',
    [
        ({'source': 'music'}, 'the data have book, film'),
        ({'source': 'film'}, "both 'film'"),
        ({'domain': np.full(BOOKS + FILMS, b'book')}, 'has the one value'),
        ({'domain': None}, 'names no domains'),
        ({'twice': True}, 'twice'),
        ({'cold_share': 0.95}, 'add up to < 1'),
        ({'cold_share': 0.001}, 'too few'),
    ],
)
def test_mistakes_of_data(change, says):
    given, options = rows(), dict(SHARES)
    source = change.pop('source', 'book')
    if 'domain' in change:
        given.item_features['domain'] = change['domain']
        if change.pop('domain') is None:
            del given.item_features['domain']
    if change.pop('twice', False):
        given = dataclasses.replace(given, items=np.ones_like(given.items))
    with pytest.raises(UserError, match=says) as e:
        data.cold_start(given, source, 'film', **{**options, **change})
    assert '\n' not in str(e.value)


def experiment(folder, model=CONFIG, **changes):
    rows().save(folder / 'rows' / 'columns')
    given = Experiment(
        model=model,
        task=ratings.Config(source='book', target='film', **SHARES, factors=DIM, batch_rows=64),
        data=Data(log=str(folder / 'rows')),
        optim=Optim(learning_rate=1e-2),
        train=Train(batch_rows=64, epochs=3),
        mesh=Mesh(1, 1),
    )
    return applied(given, changes)


@pytest.mark.slow
def test_a_run_keeps_the_lowest_error(tmp_path):
    """Lower is better: the best checkpoint is that of the least RMSE; an evaluation repeats it."""
    one = experiment(tmp_path)
    summary = fit(one, tmp_path / 'run')
    errors = [x['valid/RMSE'] for x in runs.lines_of(tmp_path / 'run') if 'valid/RMSE' in x]
    assert summary['metric'] == 'RMSE' and len(errors) == 3
    assert summary['best'] == min(errors)
    measured = evaluate(tmp_path / 'run', 'valid')
    assert measured.metrics['RMSE'] == pytest.approx(summary['best'], abs=1e-6)  # on all devices


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_and_is_alike_on_meshes(tmp_path):
    one = experiment(tmp_path)
    summary = fit(one, tmp_path / 'run')
    asked = iter([False, True])
    stopped = fit(one, tmp_path / 'stopped', stop=lambda: next(asked))
    assert stopped['stopped'] == 'signal'
    assert {**fit(one, tmp_path / 'stopped'), 'workdir': ''} == {**summary, 'workdir': ''}
    other = fit(applied(one, {'mesh.data': 2, 'mesh.model': 2}), tmp_path / 'mesh')
    assert other['best'] == pytest.approx(summary['best'], abs=1e-4)


def test_every_seed_may_hold_out_its_own_users(tmp_path):
    """split_seed=-1: by train.seed, and told so; never in one program, whose constants are one."""
    one = experiment(tmp_path, **{'task.split_seed': -1, 'train.seed': 3})
    opened = one.task.open(one, lambda line: None)
    (given, other) = (data.cold_start(rows(), 'book', 'film', **SHARES, seed=n) for n in (3, 0))
    np.testing.assert_array_equal(opened.evaluations['test']()._held.users, given.test.users)
    assert not np.array_equal(np.unique(given.test.users), np.unique(other.test.users))
    assert one.task.protocol_fields()['split_seed'] == 'train.seed'
    assert not one.task.one_split() and applied(one, {'task.split_seed': 0}).task.one_split()
    with pytest.raises(UserError, match='leave out --seeds_in_parallel'):
        fit_together(expand(one, ['0', '1'], []), tmp_path / 'runs')
    fit(applied(one, {'train.steps': 1}), tmp_path / 'run')
    other = applied(one, {'train.seed': 0, 'train.start_from': str(tmp_path / 'run')})
    with pytest.raises(UserError, match='with seed 3, which holds out other examples'):
        fit(other, tmp_path / 'other')
    told = {'protocol': one.task.protocol_fields(), 'metrics': {}, 'seed': 3}
    assert one.task.gains(told, told) == {}
    with pytest.raises(UserError, match='its seed, 0, holds out other examples'):
        one.task.gains(told, {**told, 'seed': 0})


def test_mistakes_of_settings(tmp_path):
    given = experiment(tmp_path)
    for change, says in (
        ({'task.source': ''}, 'name the two domains'),
        ({'task.cold_share': 0.95}, 'add up to < 1'),
        ({'task.lowest': 6.0}, 'below task.highest'),
    ):
        with pytest.raises(UserError, match=says):
            check(applied(given, change))
    with pytest.raises(UserError, match='has no ratings'):
        fit(dataclasses.replace(given, model=lightgcn.Config(loss='direct_au')), tmp_path / 'x')


def test_readers(tmp_path):
    """Two files of ratings whose items share numbers and not names; and a log of one's own."""
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'book_ratings.dat').write_text('1\t1\t5\n2\t1\t3\n2\t7\t1')
    (tmp_path / 'a' / 'film_ratings.dat').write_text('2\t1\t4\n3\t9\t2\n')
    found, _ = rating_domains.read_douban(str(tmp_path / 'a'), lambda line: None)
    assert found.item_ids.tolist() == [b'book:1', b'book:7', b'film:1', b'film:9']
    assert found.item_features['domain'].tolist() == [b'book', b'book', b'film', b'film']
    assert found.user_ids.tolist() == [1, 2, 3] and found.items.tolist() == [1, 1, 2, 3, 4]
    assert found.labels['rating'].tolist() == [5, 3, 1, 4, 2]
    for text, says in (('4\t1\t4\n', 'ids are not shared'), ('2 1\n', 'line 1 is not')):
        (tmp_path / 'a' / 'film_ratings.dat').write_text(text)
        with pytest.raises(UserError, match=says):
            rating_domains.read_douban(str(tmp_path / 'a'), lambda line: None)
    (tmp_path / 'a' / 'music_ratings.dat').write_text('2\t1\t4\n')
    with pytest.raises(UserError, match='holds 3 files'):
        rating_domains.read_douban(str(tmp_path / 'a'), lambda line: None)
    given = rows()
    own = tmp_path / 'ratings.csv'
    lines = ['user,item,rating,kind,timestamp']
    for u, i, r in zip(given.users, given.items, given.labels['rating'], strict=True):
        lines.append(f'u{u},i{i},{r:g},{"book" if i <= BOOKS else "film"},0')
    own.write_text('\n'.join(lines))
    change = {'data.log': str(own), 'data.domain_col': 'kind', 'data.data_dir': str(tmp_path / 'c')}
    one = experiment(tmp_path, **change)
    problem = one.task.open(one, say=lambda line: None)
    assert problem.source.labels['rating'].max() == 5
    assert problem.evaluations['test']().examples > 20
    with pytest.raises(UserError, match='domain_col'):
        one = applied(one, {'data.domain_col': ''})
        one.task.open(one, say=lambda line: None)
    with pytest.raises(UserError, match='finite'):
        problem.evaluations['test']().measure([(np.array([0]), {'ratings': np.array([np.nan])})])


def test_mae_and_rmse():
    predictions, values = np.array([1.0, 2.0, 5.0], np.float32), np.array([2.0, 2.0, 2.0])
    assert point_metrics.mae(predictions, values) == pytest.approx(4 / 3)
    assert point_metrics.rmse(predictions, values) == pytest.approx((10 / 3) ** 0.5)
