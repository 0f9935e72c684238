"""Placement: meshes, the padded table, lookups."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import config
from jaxrec.devices.mesh import (
    TABLE,
    any_process,
    batch_part,
    lookup,
    make_mesh,
    on_mesh,
    put_batch,
    table_rows,
)
from jaxrec.errors import UserError


def test_make_mesh():
    assert make_mesh(config.Mesh()).shape == {'data': 8, 'model': 1}
    assert make_mesh(config.Mesh(model=4)).shape == {'data': 2, 'model': 4}
    assert make_mesh(config.Mesh(data=1)).shape == {'data': 1, 'model': 1}
    for bad in (config.Mesh(data=3, model=4), config.Mesh(model=16), config.Mesh(model=0)):
        with pytest.raises(UserError, match='mesh'):
            make_mesh(bad)


@dataclasses.dataclass(frozen=True)
class Device:
    """Of a topology that is not here, as JAX lists it."""

    id: int
    process_index: int
    slice_index: int = 0
    device_kind: str = 'stand-in'


def torus(side, slices=1):
    """side x side chips, 2 x 2 a host: ids go along the rows, so hosts take turns in the list."""
    hosts = side // 2
    for slice_index in range(slices):
        for y in range(side):
            for x in range(side):
                host = y // 2 * hosts + x // 2 + slice_index * hosts**2
                yield Device(slice_index * 1000 + y * side + x, host, slice_index)


def round_robin(hosts, each):
    return [Device(n, n % hosts) for n in range(hosts * each)]


def shuffled(devices):
    devices = list(devices)
    return [devices[n] for n in np.random.default_rng(0).permutation(len(devices))]


TOPOLOGIES = {
    'a torus': list(torus(4)),
    'two slices': list(torus(4, 2)),
    'slices in turns': shuffled(torus(4, 2)),
    'round robin': round_robin(4, 3),
    'a device a host': shuffled(round_robin(8, 1)),
    'one host': shuffled(round_robin(1, 8)),
    'odd hosts': shuffled(round_robin(3, 4)),
}


@pytest.mark.parametrize('name', TOPOLOGIES)
def test_every_mesh_shape_gives_a_process_the_rows_that_its_devices_hold(name, monkeypatch):
    """Device order is not process order; a shape that cannot be split says so."""
    devices = TOPOLOGIES[name]
    hosts = {d.process_index for d in devices}
    each = len(devices) // len(hosts)
    monkeypatch.setattr(jax, 'devices', lambda: devices)
    monkeypatch.setattr(jax, 'process_count', lambda: len(hosts))
    for model in (n for n in range(1, len(devices) + 1) if len(devices) % n == 0):
        mesh = make_mesh(config.Mesh(model=model))
        assert mesh.shape == {'data': len(devices) // model, 'model': model}
        assert set(mesh.devices.flat) == set(devices)
        monkeypatch.setattr(jax.sharding, 'get_mesh', lambda mesh=mesh: mesh)
        made = set()
        for host in hosts:
            monkeypatch.setattr(jax, 'process_index', lambda host=host: host)
            if each % model and model % each:
                with pytest.raises(UserError, match='let mesh.model divide'):
                    batch_part()
                continue
            index, count = batch_part()
            size = len(mesh.devices) // count
            mine = [
                n for n, row in enumerate(mesh.devices) if host in [d.process_index for d in row]
            ]
            assert mine == list(range(index * size, (index + 1) * size))
            made |= set(mine)
        assert made == set() or made == set(range(len(mesh.devices)))
        slices = len({d.slice_index for d in devices})
        if len(devices) // slices % model == 0:  # no row reaches into another slice
            assert all(len({d.slice_index for d in row}) == 1 for row in mesh.devices)


def test_a_mesh_that_leaves_a_process_out_says_so(monkeypatch):
    monkeypatch.setattr(jax, 'devices', lambda: TOPOLOGIES['a torus'])
    monkeypatch.setattr(jax, 'process_count', lambda: 4)
    mesh = make_mesh(config.Mesh(data=8))
    monkeypatch.setattr(jax.sharding, 'get_mesh', lambda: mesh)
    with pytest.raises(UserError, match='leave mesh.data=0'):
        batch_part()


@pytest.mark.parametrize('shape', [(8, 1), (2, 4)])
def test_the_order_of_the_devices_changes_no_number(shape, mesh):
    """Lookup, its gradient and sums on a mesh of shuffled devices: those of the usual order."""
    table = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    ids = np.random.default_rng(1).integers(0, 64, (8, 2), np.int32)

    def loss(table, ids):
        return (lookup(table, ids) ** 2).sum((1, 2)).mean()

    def found():
        there = jax.device_put(table, jax.NamedSharding(jax.sharding.get_mesh(), TABLE))
        value, grad = jax.jit(jax.value_and_grad(loss))(there, put_batch({'ids': ids})['ids'])
        return np.asarray(value), np.asarray(grad), np.asarray(any_process((True, False)))

    mesh(*shape)
    expected = found()
    devices = np.array(shuffled(jax.devices())).reshape(shape)
    assert list(devices.flat) != jax.devices()
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    jax.set_mesh(jax.sharding.Mesh(devices, ('data', 'model'), axis_types=explicit))
    for one, other in zip(found(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


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
