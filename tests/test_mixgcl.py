"""ID-MixGCL's mixed views and soft identities against dense float64 loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit, moments, slow_shares

from jaxrec.data.graph import Graph, row_normalised
from jaxrec.datasets import block_model
from jaxrec.errors import UserError
from jaxrec.experiment import check_fields
from jaxrec.models import mixgcl
from jaxrec.nn import propagate
from jaxrec.tasks import nodes

N = 80
GRAPH = block_model.generate(block_model.Parameters(nodes=N, valid=20, test=20))
GRAPH.features = row_normalised(GRAPH.features)


def constants_of(graph):
    return jax.tree.map(jnp.asarray, nodes.constants(graph))


CONSTANTS = constants_of(GRAPH)
SIZES = {'node': N, 'feature': 60, 'class': 3}
BATCH = {
    'nodes': np.array([5, 0, 7, 71, 33, 3, 0, 0], np.int32),
    'weights': np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32),
}
PLAIN = {'edge_drop': (0.0, 0.0), 'feature_drop': (0.0, 0.0)}
KEY = jax.random.key(5)


def make(**settings):
    return mixgcl.Config(dim=8, head=6, **settings).make(SIZES, rngs=nnx.Rngs(0))


def vectors(seed, rows=20, dim=6):
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return jnp.asarray(x, jnp.float32)


def slow_soft_info_nce(queries, keys, rows, partners, shares, temperature):
    """Node by node, with the rows of Y written out."""
    queries, keys = np.asarray(queries, np.float64), np.asarray(keys, np.float64)
    values = []
    for i in rows:
        identity = np.zeros(len(keys))
        identity[i] += shares[i]
        identity[partners[i]] += 1 - shares[i]
        logits = np.array(
            [q @ k / np.sqrt((q @ q) * (k @ k)) for q, k in ((queries[i], k) for k in keys)]
        )
        log_p = logits / temperature - np.log(np.exp(logits / temperature).sum())
        values.append(-(identity * log_p).sum())
    return np.array(values)


def test_soft_info_nce():
    rng = np.random.default_rng(0)
    partners, shares = jnp.asarray(rng.permutation(20)), jnp.asarray(rng.random(20), jnp.float32)
    rows = np.array([3, 19, 0, 7], np.int32)
    got = mixgcl.soft_info_nce(vectors(1), vectors(2), rows, partners, shares, temperature=0.4)
    expected = slow_soft_info_nce(vectors(1), vectors(2), rows, partners, shares, 0.4)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_soft_info_nce_without_mixing_is_plain():
    rng = np.random.default_rng(0)
    rows, partners = jnp.arange(20), jnp.asarray(rng.permutation(20))

    def value(partners, shares):
        return np.asarray(
            mixgcl.soft_info_nce(vectors(1), vectors(2), rows, partners, shares, temperature=0.4)
        )

    plain = value(None, None)
    np.testing.assert_array_equal(value(partners, jnp.ones(20)), plain)
    same = value(rows, jnp.asarray(rng.random(20), jnp.float32))
    np.testing.assert_allclose(same, plain, rtol=1e-6)
    # linear in the share
    ends = [value(partners, jnp.full(20, share)) for share in (0.0, 1.0)]
    middle = value(partners, jnp.full(20, 0.3))
    np.testing.assert_allclose(middle, 0.7 * ends[0] + 0.3 * ends[1], rtol=1e-5)


def test_grace_has_negatives_within_the_view():
    """-log e^uv/t / (sum_j e^u v_j/t + sum over j but the node of e^u u_j/t), node by node."""
    u, v, rows, t = vectors(1), vectors(2), np.array([3, 19, 0], np.int32), 0.4
    got = mixgcl.soft_info_nce(u, v, rows, None, None, temperature=t, within=u)
    a, b = (np.asarray(x, np.float64) for x in (u, v))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    for i, value in zip(rows, got, strict=True):
        total = np.exp(b @ a[i] / t).sum() + np.exp(np.delete(a, i, 0) @ a[i] / t).sum()
        assert float(value) == pytest.approx(np.log(total) - a[i] @ b[i] / t, rel=1e-5)


def test_rates_by_centrality():
    """GCA's of every edge and column, in float64; a node's few edges go more often."""
    adjacency, features = CONSTANTS['adjacency'], CONSTANTS['features']
    degrees = np.bincount(GRAPH.edges.reshape(-1), minlength=N).astype(np.float64)
    u, v = GRAPH.edges
    weight = np.log((degrees[u] + degrees[v]) / 2)
    want = np.minimum(0.3 * (weight.max() - weight) / (weight.max() - weight.mean()), 0.7)
    got = np.asarray(propagate.edge_rates(adjacency, N, 0.3))
    found = {(r, c): x for r, c, x in zip(*map(np.asarray, adjacency[:2]), got, strict=True)}
    for a, b, rate in zip(u, v, want, strict=True):
        assert found[a, b] == found[b, a] == pytest.approx(rate, abs=1e-5)
    total = degrees @ (GRAPH.features.toarray() > 0)
    there, weight = total > 0, np.log(np.maximum(total, 1))
    mean = weight[there].mean()
    want = np.minimum(0.3 * (weight.max() - weight) / (weight.max() - mean), 0.7)
    got = propagate.column_rates(features, adjacency, N, 60, 0.3)
    np.testing.assert_allclose(got, want, atol=1e-5)
    dense = propagate.column_rates(jnp.asarray(GRAPH.features.toarray()), adjacency, N, 60, 0.3)
    np.testing.assert_allclose(dense, got, atol=1e-6)
    # what is drawn at such rates: an edge in both directions or in none
    kept = propagate.drop_edges(adjacency, N, propagate.edge_rates(adjacency, N, 0.3), KEY)
    values = {(r, c): x for r, c, x in zip(*map(np.asarray, kept[:3]), strict=True)}
    assert all((values[a, b] > 0) == (values[b, a] > 0) for a, b in values)
    share = np.mean([values[a, b] == 0 for a, b in zip(u, v, strict=True)])
    assert 0.2 < share < 0.4


def slow_project(model, x):
    inner, outer = (
        (np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64))
        for layer in (model.inner, model.outer)
    )
    hidden = x @ inner[0] + inner[1]
    return np.where(hidden > 0, hidden, np.exp(np.minimum(hidden, 0)) - 1) @ outer[0] + outer[1]


def slow_views(model, partners, shares, at):
    """The encoder on dense matrices; what is mixed is mixed before the layer, node by node."""

    def mixed(x):
        return np.stack(
            [shares[i] * x[i] + (1 - shares[i]) * x[partners[i]] for i in range(len(x))]
        )

    a = GRAPH.normalised_adjacency().toarray().astype(np.float64)
    x = GRAPH.features.toarray().astype(np.float64)
    for n, kernel in enumerate(model.encoder.kernels):
        x = mixed(x) if n == at else x
        x = np.maximum(a @ x @ np.asarray(kernel[...], np.float64), 0)
    return slow_project(model, mixed(x) if at == 2 else x)


@pytest.mark.parametrize('at', [0, 1, 2])
def test_mixed_views(at):
    model = make(mix_at=at, **PLAIN)
    batch = sampled()
    plain, mixed = jax.jit(model.views)(batch, CONSTANTS, KEY)
    partners, shares = np.asarray(batch['partners']), np.asarray(batch['shares'], np.float64)
    for v in range(2):
        expected = slow_views(model, partners[v], shares[v], at)
        np.testing.assert_allclose(mixed[v], expected, rtol=1e-4, atol=1e-6)
        expected = slow_views(model, partners[v], shares[v], -1)
        np.testing.assert_allclose(plain[v], expected, rtol=1e-4, atol=1e-6)
    # and the loss of both directions, padding left out
    values = [
        slow_soft_info_nce(
            np.asarray(mixed[v]),
            np.asarray(plain[1 - v]),
            BATCH['nodes'][:6],
            partners[v],
            shares[v],
            0.4,
        )
        for v in range(2)
    ]
    loss, _ = model.loss(batch, CONSTANTS, {}, KEY)
    assert float(loss) == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize('alpha', [0.3, 2.0])
def test_sample(alpha):
    """Permutations, and max(s, 1 - s) of s ~ Beta(alpha, alpha), of every view's own."""
    model = make(alpha=alpha)
    draw = jit(jax.vmap(lambda key: model.sample(BATCH, key)))
    batch = jax.tree.map(np.asarray, draw(jax.random.split(KEY, 30)))
    partners, shares = batch['partners'], batch['shares']
    assert (np.sort(partners, axis=-1) == np.arange(N)).all()
    assert (partners[:, 0] != partners[:, 1]).any(-1).all()
    assert shares.shape == (30, 2, N) and (shares >= 0.5).all() and (shares <= 1).all()
    assert moments(shares, slow_shares(alpha)).max() < 4
    assert np.abs(np.corrcoef(shares[:, 0].ravel(), shares[:, 1].ravel())[0, 1]) < 0.1
    assert make(alpha=0.0).sample(BATCH, KEY) is BATCH


def test_alpha_0_is_two_view_info_nce():
    """As if every share were 1, bit for bit."""
    model = make(alpha=0.0)
    plain = model.loss(BATCH, CONSTANTS, {}, KEY)[0]
    model.config.alpha = 1.0
    batch = {**sampled(), 'shares': jnp.ones((2, N))}
    assert float(model.loss(batch, CONSTANTS, {}, KEY)[0]) == float(plain)


def test_numbering_the_nodes_otherwise_changes_nothing():
    model = make(**PLAIN)
    batch = sampled()
    new = np.random.default_rng(3).permutation(N)  # new number of each node
    old = np.argsort(new)
    edges = np.sort(new[GRAPH.edges], axis=0)
    edges = edges[:, np.lexsort(edges[::-1])].astype(np.int32)
    constants = constants_of(Graph(N, edges, GRAPH.features[old], GRAPH.labels[old]))
    moved = {
        **batch,
        'nodes': new[batch['nodes']].astype(np.int32),
        'partners': jnp.asarray(new[np.asarray(batch['partners'])[:, old]]),
        'shares': batch['shares'][:, old],
    }
    expected = model.loss(batch, CONSTANTS, {}, KEY)[0]
    assert float(model.loss(moved, constants, {}, KEY)[0]) == pytest.approx(float(expected))
    got = model.embed({'nodes': new.astype(np.int32)}, constants)
    expected = model.embed({'nodes': np.arange(N, dtype=np.int32)}, CONSTANTS)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


@functools.cache
def sampled():
    return jax.jit(lambda key: make().sample(BATCH, key))(KEY)


def gradients(batch, constants):
    graphdef, params = nnx.split(make())

    def loss(params, batch, constants):
        return nnx.merge(graphdef, params).loss(batch, constants, {}, KEY)[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params, batch, constants)
    return np.asarray(value), [np.asarray(g) for g in jax.tree.leaves(grads)]


@functools.cache
def expected_gradients():
    return gradients(sampled(), CONSTANTS)


def test_nodes_without_edges_and_features_have_finite_gradients():
    features = GRAPH.features.toarray()
    features[:10] = 0
    edges = GRAPH.edges[:, (GRAPH.edges >= 10).all(0)]
    constants = constants_of(Graph(N, edges, features))
    value, grads = gradients(sampled(), constants)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_padding_changes_nothing():
    value, grads = expected_gradients()
    short = {name: column[:6] for name, column in BATCH.items()}
    expected, expected_grads = gradients({**sampled(), **short}, CONSTANTS)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('shape', [(2, 2)])
def test_the_same_on_any_mesh(mesh, shape):
    expected, drawn = expected_gradients(), jax.tree.map(np.asarray, sampled())
    mesh(*shape)
    here = jax.sharding.get_mesh()
    batch = jax.device_put(BATCH, jax.NamedSharding(here, jax.P('data')))
    constants = jax.device_put(CONSTANTS, jax.NamedSharding(here, jax.P()))
    batch = jax.jit(lambda batch: make().sample(batch, KEY))(batch)
    for name in drawn:
        np.testing.assert_allclose(batch[name], drawn[name], rtol=1e-6)
    value, grads = gradients(batch, constants)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for a, b in zip(grads, expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'dim': 0}, 'model.dim=0'),
        ({'head': 0}, 'model.head=0'),
        ({'edge_drop': (0.1,)}, 'model.edge_drop'),
        ({'feature_drop': (0.1, 1.0)}, 'model.feature_drop'),
        ({'alpha': -1.0}, 'model.alpha'),
        ({'mix_at': 3}, 'model.mix_at=3'),
        ({'temperature': 0.0}, 'model.temperature=0.0'),
        ({'within': True}, 'model.within .* set model.alpha=0'),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        check_fields(mixgcl.Config(**settings), 'model')
        mixgcl.Config(**settings).check()
