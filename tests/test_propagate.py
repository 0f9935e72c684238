"""Sparse products and dropped edges against dense float64 matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jaxrec.data.graph import Graph
from jaxrec.datasets import block_model
from jaxrec.nn import propagate

GRAPH = block_model.generate(block_model.Parameters(nodes=120, valid=20, test=20))
ADJACENCY = propagate.entries(GRAPH.normalised_adjacency())


def random_matrix(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((rows, columns)) < 0.2, rng.normal(size=(rows, columns)), 0)
    x[3] = 0
    return x.astype(np.float32)


def as_dense(matrix, shape):
    x = np.zeros(shape)
    np.add.at(x, (np.asarray(matrix.rows), np.asarray(matrix.columns)), np.asarray(matrix.values))
    return x


def test_entries():
    x = random_matrix(20, 30)
    matrix = propagate.entries(scipy.sparse.csr_array(x))
    np.testing.assert_array_equal(as_dense(matrix, x.shape), x)
    assert (np.diff(matrix.rows) >= 0).all()
    assert [column.dtype for column in matrix[:3]] == [np.int32, np.int32, np.float32]
    by = matrix.order.by_column
    for column in range(30):
        of = by[slice(*matrix.order.column_starts[column : column + 2])]
        np.testing.assert_array_equal(of, np.flatnonzero(matrix.columns == column))
    for row in range(20):
        of = np.arange(*matrix.order.starts[row : row + 2])
        np.testing.assert_array_equal(of, np.flatnonzero(matrix.rows == row))


@pytest.mark.parametrize('ordered', [True, False])
@pytest.mark.parametrize('shape', [(20, 30), (120, 50)])
def test_product_and_gradients(shape, ordered):
    dense = random_matrix(*shape)
    matrix = propagate.entries(scipy.sparse.csr_array(dense))
    matrix = matrix if ordered else matrix._replace(order=None)
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=(shape[1], 8)), rng.normal(size=(shape[0], 8))
    y, back = jax.vjp(
        lambda values, x: propagate.propagate(matrix._replace(values=values), x, shape[0]),
        matrix.values,
        jnp.asarray(x, jnp.float32),
    )
    np.testing.assert_allclose(y, dense.astype(np.float64) @ x, rtol=1e-4, atol=1e-5)
    assert (y[3] == 0).all()  # no entries
    d_values, d_x = back(jnp.asarray(g, jnp.float32))
    np.testing.assert_allclose(d_x, dense.astype(np.float64).T @ g, rtol=1e-4, atol=1e-5)
    expected = (g @ x.T)[matrix.rows, matrix.columns]
    np.testing.assert_allclose(d_values, expected, rtol=1e-4, atol=1e-5)


def test_propagation_twice_is_the_square_of_the_adjacency():
    a = GRAPH.normalised_adjacency().toarray().astype(np.float64)
    x = jnp.asarray(random_matrix(120, 8))
    y = propagate.propagate(ADJACENCY, propagate.propagate(ADJACENCY, x, 120), 120)
    np.testing.assert_allclose(y, a @ a @ x, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_summed_in_float32():
    matrix = propagate.entries(scipy.sparse.csr_array(np.ones((1, 400))))
    for given in (matrix, matrix._replace(order=None)):
        y = propagate.propagate(given, jnp.ones((400, 2), jnp.bfloat16), 1)
        assert y.dtype == jnp.bfloat16 and (y == 400).all()  # bfloat16 sums stop at 256


def test_an_order_of_other_rows_is_refused():
    with pytest.raises(ValueError, match='a matrix of 120 rows, not 121'):
        propagate.propagate(ADJACENCY, jnp.ones((120, 1)), 121)


def test_elsewhere_sums_of_segments_are_the_same(monkeypatch):
    x = jnp.asarray(random_matrix(120, 8))
    both = jax.value_and_grad(lambda x: (propagate.propagate(ADJACENCY, x, 120) ** 3).sum())
    expected = both(x)
    monkeypatch.setattr(propagate, 'platform', lambda: 'gpu')
    for a, b in zip(both(x), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shape', [(1, 1), (2, 2)])
def test_the_same_on_any_mesh(mesh, shape):
    x = jnp.asarray(random_matrix(120, 8))
    key = jax.random.key(0)

    def product(matrix, x):
        dropped = propagate.drop_edges(matrix, 120, 0.3, key)
        y = propagate.propagate(matrix, x, 120) * propagate.propagate(dropped, x, 120)
        return (y**2).sum(), y

    both = jax.value_and_grad(product, argnums=1, has_aux=True)
    expected = jax.tree.map(np.asarray, jax.jit(both)(ADJACENCY, x))
    mesh(*shape)
    whole = jax.NamedSharding(jax.sharding.get_mesh(), jax.P())
    got = jax.jit(both)(*jax.device_put((ADJACENCY, x), whole))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_multiply_takes_both_kinds_of_features():
    x, kernel = random_matrix(20, 30), np.random.default_rng(2).normal(size=(30, 4))
    expected = x.astype(np.float64) @ kernel
    kernel = jnp.asarray(kernel, jnp.float32)
    for features in (jnp.asarray(x), propagate.entries(scipy.sparse.csr_array(x))):
        got = propagate.multiply(features, kernel, 20)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_dropped_features():
    x = random_matrix(200, 300)
    sparse = propagate.entries(scipy.sparse.csr_array(x))
    key = jax.random.key(0)
    assert propagate.drop_entries(sparse, 0.5, None).values is sparse.values
    y = as_dense(propagate.drop_entries(sparse, 0.25, key), x.shape)
    kept = y[x != 0] != 0
    assert abs(kept.mean() - 0.75) < 0.02
    np.testing.assert_allclose(y[x != 0][kept], x[x != 0][kept] / 0.75, rtol=1e-6)
    assert (y[x == 0] == 0).all()
    dense = np.asarray(propagate.drop_entries(jnp.asarray(x), 0.25, key))
    assert abs((dense != 0).sum() / (x != 0).sum() - 0.75) < 0.02
    # whole columns, the same ones in both kinds, nothing scaled
    columns = np.asarray(propagate.drop_columns(jnp.asarray(x), 0.4, key))
    np.testing.assert_array_equal(
        as_dense(propagate.drop_columns(sparse, 0.4, key), x.shape), columns
    )
    gone = (columns == 0).all(0)
    assert 0.3 < gone.mean() < 0.5
    np.testing.assert_array_equal(columns[:, ~gone], x[:, ~gone])
    assert propagate.drop_columns(sparse, 0.4, None) is sparse


@pytest.mark.parametrize('rate', [0.2, 0.6])
def test_dropped_edges(rate):
    graph = block_model.generate(block_model.Parameters(nodes=600))
    nodes = graph.num_nodes
    adjacency = propagate.entries(graph.normalised_adjacency())
    view = propagate.drop_edges(adjacency, nodes, rate, jax.random.key(1))
    dense = as_dense(view, (nodes, nodes))
    kept = (dense[graph.edges[0], graph.edges[1]] > 0).mean()
    assert abs(kept - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / graph.edges.shape[1])
    left = graph.edges[:, dense[graph.edges[0], graph.edges[1]] > 0]
    expected = Graph(nodes, left).normalised_adjacency().toarray()  # symmetric, all loops
    np.testing.assert_allclose(dense, expected, rtol=1e-6)
    assert propagate.drop_edges(adjacency, nodes, rate, None) is adjacency
    assert propagate.drop_edges(adjacency, nodes, 0.0, jax.random.key(1)) is adjacency
