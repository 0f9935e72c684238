"""LightGCN and its family against dense float64 references of their formulas."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit

from jaxrec import losses
from jaxrec.devices.mesh import Divided, put_batch, put_whole
from jaxrec.errors import UserError
from jaxrec.experiment import check_fields
from jaxrec.models import lightgcn
from jaxrec.models.lightgcn import Config, Views
from jaxrec.nn import bipartite
from jaxrec.nn.bipartite import Nodes

USERS, ITEMS, D = 20, 30, 6
SIZES, ROWS = {'user': USERS, 'item': ITEMS}, Nodes(64, 64)
KEY = jax.random.key(4)
BATCH = {
    'users': np.array([3, 0, 3, 12, 19, 7, 0, 0], np.int32),
    'targets': np.array([1, 30, 4, 4, 17, 9, 0, 0], np.int32),
    'negatives': np.array([[2], [5], [30], [9], [4], [1], [0], [0]], np.int32),
    'weights': np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32),
}
REAL = 6


def pairs():
    """User 5 and items 2 and 29 are cold."""
    rng = np.random.default_rng(0)
    users, items = np.divmod(np.unique(rng.integers(0, USERS * ITEMS, 150)), ITEMS)
    there = (users != 5) & (items != 1) & (items != 28)
    return users[there], items[there] + 1


def constants(pieces=1):
    edges, degrees = bipartite.graph(*pairs(), ROWS, pieces)
    return jax.tree.map(jnp.asarray, {'edges': Divided(edges), 'degrees': degrees})


def make(**settings):
    return Config(dim=D, **settings).make(SIZES, rngs=nnx.Rngs(0))


def adjacency(kept=None):
    """D^-1/2 A D^-1/2, float64, of rows ROWS."""
    r = np.zeros(ROWS)
    r[pairs()] = 1 if kept is None else kept
    a = np.block([[np.zeros((ROWS.users,) * 2), r], [r.T, np.zeros((ROWS.items,) * 2)]])
    degrees = np.maximum(a.sum(1), 1e-300)
    return np.where(a > 0, a / np.sqrt(degrees) / np.sqrt(degrees)[:, None], 0)


def flat(nodes):
    return np.concatenate([np.asarray(n, np.float64) for n in nodes])


def own(model):
    return flat((model.users[...], model.items[...]))


def slow_layers(model, count, a=None):
    a, x = adjacency() if a is None else a, own(model)
    found = [x]
    for _ in range(count):
        found.append(a @ found[-1])
    return found


def slow_unit(x):
    return x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), 1e-6)


def value(model, given=None, key=KEY):
    """(loss, terms), floats."""
    loss, (terms, _) = jit(type(model).loss)(model, BATCH, given or constants(), {}, key)
    return float(loss), {name: float(v) for name, v in terms.items()}


@pytest.mark.parametrize(('layers', 'own_layer'), [(0, True), (3, True), (2, False)])
def test_final_vectors(layers, own_layer):
    """The mean of E^0 .. E^K, or from E^1 on; K = 0 is matrix factorisation."""
    model = make(layers=layers, own_layer=own_layer)
    found = jit(type(model).catalogue)(model, constants())
    expected = np.mean(slow_layers(model, layers)[0 if own_layer else 1 :], axis=0)
    expected[[5, *range(USERS, ROWS.users)]] = 0  # users without an edge
    got = flat((found['users'], found['items']))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def slow_bpr(model, final):
    users, items = final[: ROWS.users], final[ROWS.users :]
    rows = zip(BATCH['users'], BATCH['targets'], BATCH['negatives'][:, 0], strict=True)
    each = [
        np.log1p(np.exp(-(users[u] @ items[i] - users[u] @ items[j])))
        for u, i, j in list(rows)[:REAL]
    ]
    return np.mean(each)


def slow_decay(model):
    x = own(model)
    columns = (BATCH['users'], BATCH['targets'] + 64, BATCH['negatives'][:, 0] + 64)
    return 0.05 * sum((x[c[:REAL]] ** 2).sum() for c in columns) / REAL


@pytest.mark.parametrize('layers', [0, 2])
def test_bpr_and_decay(layers):
    model = make(layers=layers, decay=0.1)
    loss, terms = value(model)
    assert terms['bpr'] == pytest.approx(
        slow_bpr(model, np.mean(slow_layers(model, layers), axis=0)), rel=1e-5
    )
    assert terms['decay'] == pytest.approx(slow_decay(model), rel=1e-5)
    assert loss == pytest.approx(terms['bpr'] + terms['decay'], rel=1e-6)


@pytest.mark.parametrize('logq', ['counted', 'presence', 'none'])
def test_softmax(logq):
    """Cosines with the batch's items, less log of how often each is expected among them."""
    model, t = make(layers=2, loss='softmax', temperature=0.2, decay=0.0, logq=logq), 0.2
    final = slow_unit(np.mean(slow_layers(model, 2), axis=0))
    degrees = np.bincount(pairs()[1], minlength=ROWS.items)
    share = np.maximum(degrees / degrees.sum(), 1e-12)
    taken = {'counted': REAL * share, 'presence': 1 - (1 - share) ** REAL, 'none': share**0}[logq]
    users, targets = BATCH['users'][:REAL], BATCH['targets'][:REAL]
    each = []
    for u, i in zip(users, targets, strict=True):
        others = [i, *(j for j in targets if j != i)]  # the item twice in the batch: no negative
        logits = [final[u] @ final[64 + j] / t - np.log(taken[j]) for j in others]
        each.append(np.log(np.exp(logits).sum()) - logits[0])
    assert value(model)[1]['softmax'] == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize('layers', [0, 2])
def test_multinomial(layers):
    """A row stands for all items of its user, alike: their mean cross-entropy among all items."""
    model, t = make(layers=layers, loss='multinomial', temperature=0.2, decay=0.0), 0.2
    final = slow_unit(np.mean(slow_layers(model, layers), axis=0))
    of_users, of_items = pairs()
    each = []
    for u in BATCH['users'][:REAL]:
        logits = final[64 + 1 : 64 + ITEMS + 1] @ final[u] / t
        log_p = logits - np.log(np.exp(logits).sum())
        each.append(-np.mean(log_p[of_items[of_users == u] - 1]))
    assert value(model)[1]['multinomial'] == pytest.approx(np.mean(each), rel=1e-5)


def test_gradient_against_differences():
    """Through propagation, whose backward pass is its own."""
    model = make(layers=2, decay=0.1)
    graphdef, params = nnx.split(model)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)

    def along(t):
        moved = jax.tree.map(lambda x, d: x + t * d, params, direction)
        return nnx.merge(graphdef, moved).loss(BATCH, constants(), {}, KEY)[0]

    slope, value_at = jit(jax.grad(along))(0.0), jit(along)
    difference = float(value_at(0.01) - value_at(-0.01)) / 0.02
    assert float(slope) == pytest.approx(difference, rel=2e-3)


def slow_info_nce(first, second, ids, among, t=0.2):
    """Row by row: a node of the first view among `among` of the second."""
    first, second = slow_unit(first), slow_unit(second)
    each = []
    for i in ids:
        logits = np.array([first[i] @ second[j] for j in among]) / t
        each.append(np.log(np.exp(logits).sum()) - first[i] @ second[i] / t)
    return np.mean(each)


def slow_contrast(first, second, among):
    """Users and items, of flat [rows, D] views."""
    total = 0.0
    for column, begin, real in (
        (BATCH['users'], 0, range(20)),
        (BATCH['targets'], 64, range(1, 31)),
    ):
        ids = column[:REAL].tolist()
        if among == 'batch':
            ids = sorted(set(ids))
            real = ids
        a, b = (x[begin : begin + 64] for x in (first, second))
        total += slow_info_nce(a, b, ids, list(real))
    return total


@pytest.mark.parametrize('among', ['batch', 'all'])
def test_contrast(among):
    """The batch's distinct nodes (SimGCL), or every occurrence among all nodes (SGL)."""
    model = make(layers=2, views=Views('edge_drop', among=among))
    first, second = (
        model.mean(model.layers(constants(), 'edge_drop', k)) for k in jax.random.split(KEY)
    )
    got = model.contrast(first, second, jax.tree.map(jnp.asarray, BATCH))
    assert float(got) == pytest.approx(slow_contrast(flat(first), flat(second), among), rel=1e-5)


def test_info_nce_among(monkeypatch):
    """Values and gradients of the formula, in one piece and a few rows at a time."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(n, 5)), jnp.float32) for n in (70, 20))
    own_, counted = rng.integers(0, 17, 70).astype(np.int32), np.arange(20) < 17
    weights = (rng.random(70) * (rng.random(70) < 0.7)).astype(np.float32)

    def total(q, k):
        return losses.info_nce_among(q, k, own_, counted, weights, temperature=0.3)

    def slow(q, k):
        q, k = (x / jnp.sqrt((x * x).sum(-1, keepdims=True)) for x in (q, k))
        scores = q @ k[:17].T / 0.3
        each = jax.nn.logsumexp(scores, axis=-1) - scores[np.arange(70), own_]
        return (weights * each).sum() / weights.sum()

    with jax.enable_x64(True):
        wide = jax.value_and_grad(slow, (0, 1))(*(jnp.asarray(x, jnp.float64) for x in (q, k)))
    softmax = importlib.import_module('jaxrec.losses.softmax')  # not the function of that name
    whole = softmax.tuning()
    for tuned in (whole, dataclasses.replace(whole, logits=40)):
        monkeypatch.setattr(softmax, 'tuning', lambda tuned=tuned: tuned)
        got = jax.value_and_grad(total, (0, 1))(q, k)
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wide), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


DROPS = ('node_drop', 'edge_drop', 'random_walk', 'feature_mask')


@pytest.mark.parametrize('kind', (*DROPS, 'noise'))
def test_views_that_change_nothing_are_the_main_graph(kind):
    """Ratio 0, eps 0: bit for bit."""
    model = make(layers=2, views=Views(kind, rate=0.0, noise=0.0))
    main = model.mean(model.layers(constants()))
    view = model.mean(model.layers(constants(), kind, KEY))
    np.testing.assert_array_equal(flat(main), flat(view))


@pytest.mark.parametrize('kind', ['edge_drop', 'noise'])
def test_the_positive_logit_of_equal_views(kind):
    """1 / t exactly, whatever the vectors: log sum_j e^(cos / t) - 1 / t over distinct nodes.

    At a lower temperature little is left beside 1 / t, and of that float32 keeps few digits.
    """
    t = 0.2
    views = Views(kind, rate=0.0, noise=0.0, temperature=t)
    model = make(layers=2, views=views, decay=0.0)
    final = slow_unit(np.mean(slow_layers(model, 2), axis=0))
    expected = 0.0
    for column, begin in (('users', 0), ('targets', 64)):
        x = final[begin + np.unique(BATCH[column][:REAL])]
        expected += np.mean(np.log(np.exp(x @ x.T / t).sum(1)) - 1 / t)
    assert value(model)[1]['contrast'] == pytest.approx(expected, rel=1e-4)


def test_views_of_dropped_edges():
    """A dropped node keeps its own vector; of a random walk every layer has a graph of its own."""
    model = make(layers=2, views=Views('node_drop', rate=0.4))
    edges = constants()['edges'].arrays
    kept = bipartite.drop_nodes(edges, 0.4, KEY)
    by_user = np.asarray(kept.users)[np.asarray(edges.users.rows) < 64]
    expected = slow_layers(model, 2, adjacency(by_user))
    got = model.layers(constants(), 'node_drop', KEY)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(flat(one), other, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(flat(got[0]), own(model).astype(np.float32))
    gone = np.abs(expected[1]).sum(1) == 0
    assert gone[:USERS].sum() > 2

    model = make(layers=2, views=Views('random_walk', rate=0.4))
    x = own(model)
    got = model.layers(constants(), 'random_walk', KEY)
    for n in range(2):
        kept = bipartite.drop_edges(edges, 64, 0.4, jax.random.fold_in(KEY, n))
        x = adjacency(np.asarray(kept.users)[np.asarray(edges.users.rows) < 64]) @ x
        np.testing.assert_allclose(flat(got[n + 1]), x, rtol=1e-5, atol=1e-7)


def test_masked_features_are_whole_columns():
    model = make(layers=0, views=Views('feature_mask', rate=0.5))
    (x,) = model.layers(constants(), 'feature_mask', KEY)
    columns = np.abs(flat(x)).sum(0) > 0
    assert 0 < columns.sum() < D
    np.testing.assert_array_equal(flat(x), (own(model) * columns).astype(np.float32))


def test_noise():
    """eps sign(x) n / |n| with n uniform in [0, 1)^D of every node's own; zeros stay zero.

    Of such n the entries but the largest are, divided by it, independent and uniform.
    """
    nodes = 2000
    x = jnp.asarray(np.random.default_rng(0).normal(size=(nodes, D)), jnp.float32).at[3].set(0)
    moved = np.asarray(lightgcn.noisy(x, 0.3, KEY), np.float64)
    delta = moved - np.asarray(x)
    lengths = np.sqrt((delta**2).sum(1))
    assert (moved[3] == 0).all()
    np.testing.assert_allclose(np.delete(lengths, 3), 0.3, rtol=1e-5)
    assert (np.sign(moved) == np.sign(x)).all() and (delta * np.asarray(x) >= 0).all()
    n = np.abs(np.delete(delta, 3, 0))
    largest = n.argmax(1)
    share = nodes / D
    assert np.abs(np.bincount(largest, minlength=D) - share).max() < 4 * np.sqrt(share)
    rest = n / n.max(1, keepdims=True)
    rest = rest[np.arange(D) != largest[:, None]].reshape(-1, D - 1)
    ordered = np.sort(rest.ravel())
    even = np.linspace(0, 1, ordered.size)
    assert np.abs(ordered - even).max() < 2 / np.sqrt(ordered.size)
    # neither the columns of a node nor nodes side by side know of each other
    both = np.corrcoef(np.hstack([rest[:-1], rest[1:]]).T) - np.eye(2 * D - 2)
    assert np.abs(both).max() < 4 / np.sqrt(nodes)


def test_one_pass():
    """XSimGCL: the noisy pass ranks too, and its final vectors look for those of a layer."""
    views = Views('one_pass', weight=0.5, noise=0.2, layer=1)
    model = make(layers=2, own_layer=False, views=views, decay=0.0)
    first = jax.random.split(KEY)[0]
    layers = model.layers(constants(), 'one_pass', first)
    x = own(model)
    for n, got in enumerate(layers[1:]):
        keys = jax.random.split(jax.random.fold_in(first, n))
        clean = (adjacency() @ x).astype(np.float32)
        parts = np.split(clean, [64])
        noisy = [lightgcn.noisy(jnp.asarray(v), 0.2, k) for v, k in zip(parts, keys, strict=True)]
        x = flat(noisy)
        np.testing.assert_allclose(flat(got), x, rtol=1e-4, atol=1e-5)
    final = np.mean([flat(one) for one in layers[1:]], axis=0)
    loss, terms = value(model)
    assert terms['bpr'] == pytest.approx(slow_bpr(model, final), rel=1e-4)
    expected = slow_contrast(final, flat(layers[1]), 'batch')
    assert terms['contrast'] == pytest.approx(expected, rel=1e-4)
    assert loss == pytest.approx(terms['bpr'] + 0.5 * terms['contrast'], rel=1e-5)
    # without noise and with one layer it is a vector and itself
    model = make(layers=1, own_layer=False, views=Views('one_pass', noise=0.0, layer=1))
    final = slow_layers(model, 1)[1]
    expected = slow_contrast(final, final, 'batch')
    assert value(model)[1]['contrast'] == pytest.approx(expected, rel=1e-4)


def test_the_gradient_of_noisy_views():
    """That of the main pass is that of the views, each differentiated by itself."""
    views = Views('noise', weight=0.5, noise=0.2)
    graphdef, params = nnx.split(make(layers=2, own_layer=False, views=views))
    without = nnx.split(make(layers=2, own_layer=False))[0]
    batch = jax.tree.map(jnp.asarray, BATCH)

    def each(params):
        model = nnx.merge(graphdef, params)
        found = [
            model.mean(model.layers(constants(), 'noise', key)) for key in jax.random.split(KEY)
        ]
        rest = nnx.merge(without, params).loss(batch, constants(), {}, KEY)[0]
        return rest + 0.5 * model.contrast(*found, batch)

    def at_once(params):
        return nnx.merge(graphdef, params).loss(batch, constants(), {}, KEY)[0]

    got, expected = (jit(jax.value_and_grad(f))(params) for f in (at_once, each))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('kind', ['edge_drop', 'noise'])
def test_the_rest_of_the_loss_is_that_without_views(kind):
    """Bit for bit: with weight 0 SGL is LightGCN, and SimGCL LightGCN without its own layer."""
    settings = {'layers': 2, 'own_layer': kind != 'noise'}
    plain = value(make(**settings))
    loss, terms = value(make(**settings, views=Views(kind, weight=0.0)))
    assert (terms['bpr'], terms['decay'], loss) == (plain[1]['bpr'], plain[1]['decay'], plain[0])
    assert terms['contrast'] > 0


@pytest.mark.parametrize('layers', [0, 2])
def test_direct_au(layers):
    model = make(layers=layers, loss='direct_au', uniformity=2.0, decay=0.0)
    final = slow_unit(np.mean(slow_layers(model, layers), axis=0))
    users = final[BATCH['users'][:REAL]]
    items = final[64:][BATCH['targets'][:REAL]]
    near = ((users - items) ** 2).sum(1).mean()

    def uniform(x):
        each = [
            np.exp(-2 * ((x[a] - x[b]) ** 2).sum()) for a in range(REAL) for b in range(a + 1, REAL)
        ]
        return np.log(np.mean(each))

    loss, terms = value(model)
    assert terms['alignment'] == pytest.approx(near, rel=1e-5)
    assert terms['uniformity'] == pytest.approx((uniform(users) + uniform(items)) / 2, rel=1e-5)
    assert loss == pytest.approx(near + uniform(users) + uniform(items), rel=1e-5)


def test_uniformity_of_known_vectors():
    ones = jnp.ones(1000)
    assert float(losses.uniformity(jnp.ones((9, 4)), ones[:9])) == pytest.approx(0, abs=1e-5)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1000, 64)), jnp.float32)
    assert float(losses.uniformity(x, ones)) == pytest.approx(-3.875, abs=0.02)
    opposite = jnp.array([[1.0, 0], [-1, 0]])
    assert float(losses.uniformity(opposite, ones[:2])) == pytest.approx(-8, rel=1e-5)
    padded = losses.uniformity(x[:8].at[5:].set(1e9), ones[:8].at[5:].set(0))
    assert float(padded) == pytest.approx(float(losses.uniformity(x[:5], ones[:5])), rel=1e-5)


FAMILY = {
    'sgl': {'views': Views('node_drop', among='all')},
    'simgcl': {'views': Views('noise'), 'own_layer': False},
    'direct_au': {'loss': 'direct_au'},
    'softmax': {'loss': 'softmax'},
    'multinomial': {'loss': 'multinomial'},
}


@pytest.mark.parametrize('name', FAMILY)
def test_cold_nodes_have_finite_values_and_gradients(name):
    """User 5 and item 2 have no edge; with own_layer=False their vectors are 0."""
    model = make(layers=2, **FAMILY[name])
    batch = {**BATCH, 'users': BATCH['users'] * 0 + 5, 'targets': BATCH['targets'] * 0 + 2}
    graphdef, params = nnx.split(model)

    def loss(params):
        return nnx.merge(graphdef, params).loss(batch, constants(), {}, KEY)[0]

    found, grads = jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(found) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('sgl', (4, 2)),
        ('simgcl', (3, 1)),  # these devices do not divide the nodes
        pytest.param('simgcl', (2, 1), marks=pytest.mark.slow),
        pytest.param('softmax', (2, 2), marks=pytest.mark.slow),
        pytest.param('multinomial', (2, 2), marks=pytest.mark.slow),
        pytest.param('multinomial', (3, 1), marks=pytest.mark.slow),
        pytest.param('sgl', (7, 1), marks=pytest.mark.slow),
    ],
)
def test_the_same_on_every_mesh(mesh, shape, name):
    """Loss, gradient and ranking vectors."""
    model = make(layers=2, **FAMILY[name])
    graphdef, params = nnx.split(model)

    def both(params, batch, given):
        model = nnx.merge(graphdef, params)
        loss = lambda p: nnx.merge(graphdef, p).loss(batch, given, {}, KEY)[0]  # noqa: E731
        return jax.value_and_grad(loss)(params), model.catalogue(given)

    more = -len(BATCH['users']) % shape[0]  # rows without weight
    batch = {k: np.concatenate([v, 0 * v[:more]]) for k, v in BATCH.items()}
    expected = jax.tree.map(np.asarray, jit(both)(params, batch, constants()))
    mesh(*shape)
    edges, degrees = bipartite.graph(*pairs(), ROWS, shape[0] * shape[1])
    given = put_whole({'edges': Divided(edges), 'degrees': degrees})
    model = make(layers=2, **FAMILY[name])  # born on the mesh
    got = jit(both)(nnx.split(model)[1], put_batch(batch), given)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    for table in got[1].values():
        assert table.sharding.spec[0] == 'model'


def test_a_new_user_is_folded_in():
    """As the node would be that has no vector of its own, in a graph that is else the same."""
    model = make(layers=3)
    found = jit(type(model).catalogue)(model, constants())
    seen = np.array([[4, 9, 17, 0], [0, 0, 0, 0]], np.int32)
    got = np.asarray(model.queries({'seen': seen}, found))[:, 0]
    layers = slow_layers(model, 3)
    degrees = np.maximum((adjacency() > 0).sum(1), 1)
    items = seen[0][:3] + 64
    each = [sum(x[i] / np.sqrt(degrees[i]) for i in items) / np.sqrt(3) for x in layers[:-1]]
    np.testing.assert_allclose(got[0], sum(each) / 4, rtol=1e-5, atol=1e-7)
    assert (got[1] == 0).all()
    # a user of the data who has learnt nothing is one too, the others keep their own vectors
    users = np.array([5, 3], np.int32)
    known = model.queries({'users': users, 'seen': seen}, found)[:, 0]
    np.testing.assert_array_equal(known[0], got[0])
    np.testing.assert_array_equal(known[1], np.asarray(found['users'])[3])
    alone = model.queries({'users': users}, found)[:, 0]
    assert (alone[0] == 0).all() and (np.asarray(alone[1]) == known[1]).all()


def test_ranking_by_cosine():
    model = make(layers=1, cosine=True)
    found = model.catalogue(constants())
    lengths = np.linalg.norm(np.asarray(found['items'])[1:31], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    query = model.queries({'users': np.array([3], np.int32)}, found)
    assert np.linalg.norm(query) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'layers': 0, 'views': Views('noise')}, "model.views.kind='noise' needs layers"),
        ({'layers': 0, 'own_layer': False}, 'leaves nothing'),
        ({'views': Views('one_pass', layer=4)}, 'model.views.layer=4 is more than'),
        ({'views': Views('swap')}, 'model.views.kind=.* is not one of none, node_drop'),
        ({'views': Views('edge_drop', rate=1.0)}, r'model.views.rate=1.0 is not in \[0, 1\)'),
        ({'loss': 'hinge'}, 'model.loss=.* is not one of bpr, direct_au, softmax'),
    ],
)
def test_mistakes(settings, message):
    config = Config(**settings)
    with pytest.raises(UserError, match=message):
        check_fields(config, 'model')
        check_fields(config.views, 'model.views')
        config.check()
