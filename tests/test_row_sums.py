"""Sums of rows by number, and lookups whose gradients they are, against sums one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax import P
from models import slow

from jaxrec.devices import mesh as mesh_lib
from jaxrec.devices.row_sums import row_sums
from jaxrec.nn import propagate

BY_HAND = (31, 64, 1000, 1057)  # of the lengths


def one_by_one(numbers, rows, count):
    total = np.zeros((count, rows.shape[1]))
    for number, row in zip(numbers, np.asarray(rows, np.float64), strict=True):
        if 0 <= number < count:
            total[number] += row
    return total


@pytest.mark.parametrize('length', slow((0, 1, 31, 32, 33, 64, 1000, 1024, 1057, 5000), *BY_HAND))
@pytest.mark.parametrize('most', slow((1, 3, 40, 3000), 3))
@pytest.mark.parametrize('ordered', [False, True])
def test_rows_are_summed_by_number(length, most, ordered):
    rng = np.random.default_rng(length + most)
    numbers = np.minimum(rng.zipf(1.3, length) - 1, most - 1).astype(np.int32)
    numbers = np.sort(numbers) if ordered else numbers
    rows = rng.normal(size=(length, 5)).astype(np.float32)
    found = jax.jit(row_sums, static_argnums=2, static_argnames='ordered')(
        numbers, rows, most, ordered=ordered
    )
    scale = one_by_one(numbers, np.abs(rows), most) + 1e-9
    np.testing.assert_array_less(abs(found - one_by_one(numbers, rows, most)) / scale, 1e-6)


@pytest.mark.parametrize('shape', slow((None, (1, 1), (8, 1), (4, 2), (1, 8)), (1, 1), (1, 8)))
@pytest.mark.parametrize(
    'table_spec', [P('model', None), P(None, None), P(('data', 'model'), None)]
)
@pytest.mark.parametrize('ids_spec', [P('data', None), P(None, None)])
def test_lookups_gradient_is_theirs(shape, table_spec, ids_spec, mesh, monkeypatch):
    monkeypatch.setattr(mesh_lib, 'platform', lambda: 'gpu')
    rng = np.random.default_rng(0)
    table = rng.normal(size=(64, 3)).astype(np.float32)
    ids = rng.integers(0, 64, (8, 40)).astype(np.int32)
    weights = rng.normal(size=(8, 40, 3)).astype(np.float32)
    if shape:
        mesh(*shape)
        table = jax.device_put(table, table_spec)
        ids, weights = jax.device_put(ids, ids_spec), jax.device_put(weights, P(*ids_spec, None))

    @jax.jit
    def found(table, ids, weights):
        rows, back = jax.vjp(lambda table: mesh_lib.lookup(table, ids), table)
        return rows, back(weights)[0]

    rows, gradient = found(table, ids, weights)
    np.testing.assert_array_equal(rows, np.asarray(table)[np.asarray(ids)])
    expected = one_by_one(np.ravel(ids), np.reshape(weights, (-1, 3)), 64)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    if shape:
        assert gradient.sharding.is_equivalent_to(table.sharding, 2)


@pytest.mark.parametrize('kind', ['cpu', 'gpu', 'tpu'])
def test_products_with_a_graph_are_those_of_the_dense_matrix(kind, monkeypatch):
    monkeypatch.setattr(propagate, 'platform', lambda: kind)
    monkeypatch.setattr(mesh_lib, 'platform', lambda: kind)
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(70, 50)) * (rng.random((70, 50)) < 0.3)
    dense[[0, 3, 69]] = 0
    dense[5] = rng.normal(size=50)
    matrix = propagate.entries(scipy.sparse.csr_array(dense))
    x, weights = rng.normal(size=(50, 4)), rng.normal(size=(70, 4))

    def product(values, x):
        return propagate.propagate(matrix._replace(values=values), x, 70)

    found, back = jax.vjp(product, jnp.asarray(matrix.values), jnp.asarray(x, jnp.float32))
    of_values, of_x = back(jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(found, dense @ x, atol=1e-5)
    np.testing.assert_allclose(of_x, dense.T @ weights, atol=1e-5)
    np.testing.assert_allclose(of_values, (weights @ x.T)[np.nonzero(dense)], atol=1e-5)
