"""Everything about placement: the mesh, the few partition specs, and how arrays get there.

One mesh with axes ('data', 'model') and explicit sharding: (1, 1) on a laptop, (n, 1) is data
parallel, (n / m, m) also splits the item table by rows.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from jaxrec import config
from jaxrec.devices.row_sums import row_sums
from jaxrec.errors import UserError

BATCH = P('data')  # leading axis of every batch array
TABLE = P('model', None)  # rows of the item table
REPLICATED = P()
EVERY = P(('data', 'model'))  # leading axis over all devices
_ROW_MULTIPLE = 64  # table rows are padded to this, so that one checkpoint fits every mesh


def make_mesh(mesh: config.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The ('data', 'model') mesh over all devices; UserError if the shape does not fit.

    Args:
      mesh: its shape.
      devices: instead of those that are here.
    """
    everyone = in_order(jax.devices() if devices is None else devices)
    count = len(everyone)
    if mesh.model < 1 or mesh.data < 0:
        raise UserError('mesh.model must be >= 1 and mesh.data >= 0')
    data = mesh.data or count // mesh.model
    if data * mesh.model > count or data < 1:
        raise UserError(
            f'mesh.data={mesh.data}, mesh.model={mesh.model} needs {max(data, 1) * mesh.model} '
            f'devices or more, and here are {count}'
        )
    chosen = np.array(everyone[: data * mesh.model]).reshape(data, mesh.model)
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    return jax.sharding.Mesh(chosen, ('data', 'model'), axis_types=explicit)


def in_order(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Devices slice by slice, in a slice process by process.

    So a process has neighbouring rows of any mesh, whatever the order that JAX lists or the torus
    would like: the order within a mesh's row or column does not matter to a sum over it, and what
    the devices of a row send each other stays within a host as far as it can.
    """
    return sorted(devices, key=lambda d: (getattr(d, 'slice_index', 0) or 0, d.process_index, d.id))


def table_rows(num_items: int) -> int:
    """Rows of an item table: padding row 0, the items, and unused rows up to a multiple of 64."""
    return -(-(num_items + 1) // _ROW_MULTIPLE) * _ROW_MULTIPLE


def batch_part() -> tuple[int, int]:
    """(index, count): which part of a batch's rows this process makes, on the current mesh.

    Processes that share a row of the mesh, the table being split between them, make the same part.

    Raises:
      UserError: a process has no device in the mesh, or the parts are not equally large.
    """
    rows = jax.sharding.get_mesh().devices
    owners = [sorted({d.process_index for d in row}) for row in rows]
    mine = [i for i, owner in enumerate(owners) if jax.process_index() in owner]
    everyone = {process for owner in owners for process in owner}
    parts = {}
    for i, owner in enumerate(owners):
        parts.setdefault(tuple(owner), []).append(i)
    fits = len(everyone) == jax.process_count() == sum(map(len, parts))
    size = len(mine)
    if not fits or any(p != list(range(p[0], p[0] + size)) for p in parts.values()):
        raise UserError(
            f'mesh ({rows.shape[0]}, {rows.shape[1]}) does not fit {jax.process_count()} processes:'
            ' each must have as many whole rows of it, or each row as many whole processes; leave '
            'mesh.data=0 and let mesh.model divide the devices of a process, or be a multiple'
        )
    return mine[0] // size, len(owners) // size


def put_batch(batch: dict) -> dict:
    """Places this process's rows of a nested batch on the current mesh, split over 'data'."""
    split = jax.NamedSharding(jax.sharding.get_mesh(), BATCH)
    if jax.process_count() == 1:  # half the time of one by one
        return jax.device_put(batch, split)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), batch)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Divided:
    """Nested arrays among constants of which every device keeps its part of the leading axis."""

    arrays: Any


def put_whole(constants: dict) -> dict:
    """Places nested arrays that every process holds on the current mesh, whole on every device.

    But for what is `Divided`.
    """

    def place(x):
        return Divided(_put(x.arrays, EVERY)) if isinstance(x, Divided) else _put(x, REPLICATED)

    return jax.tree.map(place, constants, is_leaf=lambda x: isinstance(x, Divided))


def place_whole(batch: dict) -> dict:
    """Places a batch that every process holds whole on the current mesh, split over 'data'."""
    return _put(batch, BATCH)


def place_rows(rows: np.ndarray) -> jax.Array:
    """Places [table rows], whole in every process, on the current mesh, split as the table is."""
    return _put(rows, P(TABLE[0]))


def abstract(tree, spec: P):
    """Shapes of nested arrays as if they were placed on the current mesh."""
    placed = jax.NamedSharding(jax.sharding.get_mesh(), spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=placed), tree)


def _put(tree, spec):
    return put_as(tree, jax.NamedSharding(jax.sharding.get_mesh(), spec))


def put_as(tree, placed: jax.NamedSharding):
    """Places nested arrays that every process holds whole; each puts what is on its devices."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, placed, x.__getitem__), tree
    )


def any_process(flags: tuple[bool, ...]) -> jax.Array:
    """bool [len(flags)], whole in every process: which are set in any. All must call it alike."""
    by_process = np.array(in_order(jax.devices())).reshape(jax.process_count(), -1)
    mesh = jax.sharding.Mesh(by_process, ('process', 'device'))
    mine = np.array([flags])
    with jax.set_mesh(mesh):
        votes = jax.make_array_from_process_local_data(jax.NamedSharding(mesh, P('process')), mine)
        return _any(votes)


@jax.jit
def _any(votes):
    return jax.reshard(votes, P()).any(0)


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': what the current mesh is made of, which need not be here.

    Without a mesh, JAX's default. Also inside jit.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = device.platform if device else jax.default_backend()
    return 'gpu' if found in ('cuda', 'rocm') else found


def on_mesh() -> bool:
    """Whether a ('data', 'model') mesh is set; models and losses also work without one."""
    return 'model' in jax.sharding.get_abstract_mesh().axis_names


def placed_like(x: jax.Array) -> jax.NamedSharding | None:
    """Where x is, as its type says, for what is made beside it; None without a mesh."""
    return jax.typeof(x).sharding if on_mesh() else None


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows `ids` of a table split over 'model': [*ids.shape, D], placed like `ids`.

    Its gradient is summed in one order also on a GPU (`row_sums`).
    """
    in_order = platform() == 'gpu' and jnp.issubdtype(table.dtype, jnp.floating)
    return (_lookup_in_order if in_order else _lookup)(table, ids)


def _lookup(table, ids):
    if not on_mesh():
        return table.at[ids].get(mode='clip')
    spec = jax.typeof(ids).sharding.spec
    return table.at[ids].get(mode='clip', out_sharding=P(*spec, *[None] * (table.ndim - 1)))


_lookup_in_order = jax.custom_vjp(_lookup)


def _forward(table, ids):
    return _lookup_in_order(table, ids), (table, ids)


def _backward(saved, cotangent):
    table, ids = saved

    def local(ids, rows, first, count):
        numbers = jnp.clip(ids.reshape(-1), 0, len(table) - 1) - first
        rows = rows.reshape(len(numbers), -1)
        return row_sums(numbers, rows, count).reshape(count, *table.shape[1:])

    if not on_mesh():
        return local(ids, cotangent, 0, len(table)), None
    axes, spec = _axes(jax.typeof(table).sharding.spec[0]), jax.typeof(ids).sharding.spec
    spec = [tuple(a for a in _axes(own) if a not in axes) or None for own in spec]
    ids = jax.reshard(ids, P(*spec))
    cotangent = jax.reshard(cotangent, P(*spec, *[None] * (table.ndim - 1)))
    count = len(table) // math.prod(jax.sharding.get_abstract_mesh().shape[a] for a in axes)
    over = tuple(a for own in spec for a in _axes(own))

    def part(ids, rows):
        total = local(ids, rows, jax.lax.axis_index(axes) * count if axes else 0, count)
        return jax.lax.psum(total, over) if over else total

    rows = P(axes or None, *[None] * (table.ndim - 1))
    in_specs = P(*spec), P(*spec, *[None] * (table.ndim - 1))
    summed = jax.shard_map(part, in_specs=in_specs, out_specs=rows)
    return summed(ids, cotangent), None


def _axes(own):
    """Of one entry of a spec, as a tuple."""
    return own if isinstance(own, tuple) else (own,) if own else ()


_lookup_in_order.defvjp(_forward, _backward)


def replicated(x: jax.Array) -> jax.Array:
    """The whole of x on every device."""
    return placed(x, REPLICATED)


def placed(x: jax.Array, spec: P) -> jax.Array:
    """x placed as `spec` says on the current mesh, inside jit; without one as it is."""
    return jax.reshard(x, spec) if on_mesh() else x


def reshape_rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x.reshape(shape) that keeps the leading axis, and its placement even if it has one row."""
    if not on_mesh():
        return x.reshape(shape)
    rows = jax.typeof(x).sharding.spec[0]
    return jax.lax.reshape(x, shape, out_sharding=P(rows, *[None] * (len(shape) - 1)))


def split_rows(x: jax.Array, groups: int) -> jax.Array:
    """[B, ..] as [B / groups, groups, ..], so that every device keeps the rows it has."""
    return reshape_rows(x, (x.shape[0] // groups, groups, *x.shape[1:]))


def concrete(tree):
    """Turns `jax.eval_shape` output into restore targets on the current mesh."""
    mesh = jax.sharding.get_mesh()

    def place(x):
        spec = P() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)
