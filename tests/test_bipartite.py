"""Propagation between users and items against dense float64 products, on one device and on many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.devices.mesh import Divided, put_whole
from jaxrec.nn import bipartite, propagate
from jaxrec.nn.bipartite import Nodes

ROWS = Nodes(128, 64)
USERS, ITEMS, D = 100, 50, 5
KEY = jax.random.key(3)
WEIGHTS = np.random.default_rng(9).normal(size=(sum(ROWS), D))


def pairs(seed=0, count=400):
    """Distinct pairs; user 7 and items 0 and 11 have none, as padding rows have none."""
    rng = np.random.default_rng(seed)
    keys = np.unique(rng.integers(0, USERS * (ITEMS + 1), count))
    users, items = np.divmod(keys, ITEMS + 1)
    there = (users != 7) & (items != 0) & (items != 11)
    return users[there], items[there]


def dense(kept=None):
    """A [N, N] float64 of all rows, entries weighted by kept(user, item)."""
    users, items = pairs()
    r = np.zeros(ROWS)
    r[users, items] = 1 if kept is None else kept
    return np.block([[np.zeros((ROWS.users,) * 2), r], [r.T, np.zeros((ROWS.items,) * 2)]])


def normalised(a):
    degrees = a.sum(1)
    with np.errstate(divide='ignore'):
        scale = np.where(degrees > 0, degrees**-0.5, 0)
    return scale[:, None] * a * scale


def vectors(dtype=np.float32):
    x = np.random.default_rng(1).normal(size=(sum(ROWS), D)).astype(dtype)
    return Nodes(x[: ROWS.users], x[ROWS.users :])


def flat(nodes):
    return np.concatenate([np.asarray(n, np.float64) for n in nodes])


def made(pieces=1):
    edges, degrees = bipartite.graph(*pairs(), ROWS, pieces)
    return edges, Nodes(*map(jnp.asarray, degrees))


@pytest.mark.parametrize('pieces', [1, 4])
def test_layers_are_dense_powers(pieces):
    edges, degrees = made(pieces)
    a, x = normalised(dense()), Nodes(*map(jnp.asarray, vectors()))
    expected = flat(x)
    for _ in range(3):
        x = bipartite.propagated(edges, None, degrees, x)
        expected = a @ expected
        np.testing.assert_allclose(flat(x), expected, rtol=2e-5, atol=1e-6)
    lonely = [7, *range(USERS, ROWS.users), ROWS.users, ROWS.users + 11]
    assert (flat(x)[lonely] == 0).all()


def three_layers(edges, degrees, x):
    for _ in range(3):
        x = bipartite.propagated(edges, None, degrees, x)
    weights = Nodes(WEIGHTS[: ROWS.users], WEIGHTS[ROWS.users :])
    return sum((n * jnp.asarray(w, n.dtype)).sum() for n, w in zip(x, weights, strict=True))


def test_gradient_is_the_dense_one():
    """Its own backward pass: the transpose is the same product."""
    edges, degrees = made(2)
    x = Nodes(*map(jnp.asarray, vectors()))
    got = jax.jit(jax.grad(three_layers, argnums=2))(edges, degrees, x)
    a = normalised(dense())
    np.testing.assert_allclose(flat(got), a.T @ a.T @ a.T @ WEIGHTS, rtol=2e-5, atol=1e-6)


def test_a_cpu_takes_the_csr_product():
    """Forward and backward: no scatter is left."""
    edges, degrees = made()
    x = Nodes(*map(jnp.asarray, vectors()))
    text = jax.jit(jax.grad(three_layers, argnums=2)).lower(edges, degrees, x).as_text()
    assert text.count('csr_sparse_dense') >= 6 and 'scatter' not in text


def test_elsewhere_sums_of_segments_are_the_same(monkeypatch):
    edges, degrees = made(2)
    kept = bipartite.drop_edges(edges, ROWS.items, 0.3, KEY)
    x = Nodes(*map(jnp.asarray, vectors()))
    expected = [flat(bipartite.exchange(edges, k, x)) for k in (None, kept)]
    monkeypatch.setattr(propagate, 'platform', lambda: 'gpu')
    got = [flat(bipartite.exchange(edges, k, x)) for k in (None, kept)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    del degrees


def entries(edges, kept):
    """{(user, item): weight} of both directions."""
    found = []
    for side, weights, turn in zip(edges, kept, (1, -1), strict=True):
        each = side.starts.shape[1] - 1
        place = np.nonzero(side.rows < each)
        ends = np.stack([side.rows[place] + place[0] * each, side.columns[place]])[::turn]
        found.append(dict(zip(zip(*ends.tolist(), strict=True), weights[place], strict=True)))
    return found


def checked_view(edges, kept, degrees):
    """A view is symmetric, and its degrees are those of what is left."""
    by_user, by_item = entries(edges, jax.tree.map(np.asarray, kept))
    assert by_user == by_item and set(by_user) == set(zip(*pairs(), strict=True))
    a = dense([by_user[pair] for pair in zip(*pairs(), strict=True)])
    np.testing.assert_array_equal(flat(degrees), a.sum(1))
    x = Nodes(*map(jnp.asarray, vectors()))
    got = flat(bipartite.propagated(edges, kept, degrees, x))
    np.testing.assert_allclose(got, normalised(a) @ flat(x), rtol=2e-5, atol=1e-6)
    return a


def test_dropped_edges():
    edges, _ = made(4)
    kept = bipartite.drop_edges(edges, ROWS.items, 0.3, KEY)
    a = checked_view(edges, kept, bipartite.degrees(edges, kept, ROWS))
    share = a.sum() / dense().sum()
    assert abs(share - 0.7) < 4 * (0.21 / (dense().sum() / 2)) ** 0.5
    whole = bipartite.drop_edges(edges, ROWS.items, 0.0, KEY)
    assert all((w == 1).all() for w in whole)


def test_dropped_nodes():
    edges, degrees = made(4)
    kept = bipartite.drop_nodes(edges, 0.2, KEY)
    a = checked_view(edges, kept, bipartite.degrees(edges, kept, ROWS))
    gone = (a.sum(1) == 0) & (flat(degrees) > 0)
    assert 0.1 < gone.sum() / (flat(degrees) > 0).sum() < 0.35
    # an edge is gone where one of its ends is, and nowhere else but by chance of both
    full = dense()
    assert (a[gone] == 0).all() and ((full - a)[~gone][:, ~gone] == 0).all()


@pytest.mark.parametrize('shape', [(1, 1), (2, 1), (4, 2), (3, 1), (7, 1)])
def test_the_same_bits_on_every_mesh(mesh, shape):
    """Also where the devices do not divide the rows: zeros stand behind them."""
    expected = jax.tree.map(np.asarray, views(*bipartite.graph(*pairs(), ROWS, 1)))
    mesh(*shape)
    edges, degrees = bipartite.graph(*pairs(), ROWS, shape[0] * shape[1])
    placed = put_whole({'edges': Divided(edges), 'degrees': degrees})
    assert placed['edges'].arrays.users.rows.addressable_shards[0].data.shape[0] == 1
    got = jax.jit(views)(placed['edges'].arrays, placed['degrees'])
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        one, rows = np.asarray(one), len(other)
        assert len(one) % (shape[0] * shape[1]) == 0 and not one[rows:].any()
        np.testing.assert_array_equal(one[:rows], other)


@jax.jit
def views(edges, degrees):
    x = Nodes(*map(jnp.asarray, vectors()))
    kept = bipartite.drop_edges(edges, ROWS.items, 0.3, KEY)
    seen = bipartite.degrees(edges, kept, ROWS)
    return bipartite.propagated(edges, None, degrees, x), bipartite.propagated(edges, kept, seen, x)
