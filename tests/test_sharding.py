"""Placement: meshes, the padded table, lookups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import config
from jaxrec.devices.mesh import TABLE, lookup, make_mesh, on_mesh, put_batch, table_rows
from jaxrec.errors import UserError


def test_make_mesh():
    assert make_mesh(config.Mesh()).shape == {'data': 8, 'model': 1}
    assert make_mesh(config.Mesh(model=4)).shape == {'data': 2, 'model': 4}
    assert make_mesh(config.Mesh(data=1)).shape == {'data': 1, 'model': 1}
    for bad in (config.Mesh(data=3, model=4), config.Mesh(model=16), config.Mesh(model=0)):
        with pytest.raises(UserError, match='mesh'):
            make_mesh(bad)


def test_table_rows_leave_room_for_padding_and_fit_every_mesh():
    assert [table_rows(n) for n in (1, 63, 64, 12101)] == [64, 64, 128, 12160]


def test_lookup_of_a_split_table(mesh):
    mesh(4, 2)
    table = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
    ids = np.arange(16, dtype=np.int32).reshape(8, 2) * 4
    current = jax.sharding.get_mesh()
    placed = jax.device_put(table, jax.NamedSharding(current, TABLE))
    batch = put_batch({'ids': ids})
    assert batch['ids'].sharding.spec == jax.P('data')
    got = jax.jit(lookup)(placed, batch['ids'])
    np.testing.assert_array_equal(got, table[ids])
    grad = jax.jit(jax.grad(lambda t, i: (lookup(t, i) ** 2).sum()))(placed, batch['ids'])
    assert grad.sharding.spec == TABLE  # never gathered
    expected = np.zeros_like(table)
    np.add.at(expected, ids, 2 * table[ids])
    np.testing.assert_array_equal(grad, expected)


def test_without_a_mesh():
    assert not on_mesh()
    np.testing.assert_array_equal(lookup(jnp.arange(6.0)[:, None], jnp.array([2, 5])), [[2], [5]])
