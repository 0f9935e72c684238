"""What goes into a sequence model: the item table, and tokens made of items and their features."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from jaxrec.config import Feature
from jaxrec.devices import mesh as mesh_lib
from jaxrec.devices.mesh import TABLE, on_mesh, table_rows
from jaxrec.nn.dropout import Key, dropout, dropout_rows

INITS = {
    'xavier_uniform': nnx.initializers.xavier_uniform(),
    'xavier_normal': nnx.initializers.xavier_normal(),
    'normal': nnx.initializers.normal(0.02),
}
_ROWS_AT_ONCE = 1 << 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Rows:
    """The rows of a table that a step names, under the numbers that they have in the table.

    Stands in for the whole table where a step touches few rows (`training.sparse`). A number that
    is not among them reads NaN: what a model forgets to name stops its first step.

    Attributes:
      ids: int32 [n] ascending, replicated; places that are not used come last, beyond the table.
      values: [n, D] the rows, replicated.
    """

    ids: jax.Array
    values: jax.Array

    @property
    def dtype(self):
        return self.values.dtype

    def __getitem__(self, index):
        if index is not Ellipsis:
            raise TypeError('rows of a table are looked up by `lookup` only')
        return self


def lookup(table: jax.Array | Rows, ids: jax.Array) -> jax.Array:
    """Rows `ids` of a table, or of its `Rows`: [*ids.shape, D], placed like `ids`."""
    if not isinstance(table, Rows):
        return mesh_lib.lookup(table, ids)

    def find(known, ids):
        place = jnp.minimum(jnp.searchsorted(known, ids), len(known) - 1)
        return place, known[place] == ids

    if on_mesh():
        spec = jax.typeof(ids).sharding.spec
        find = jax.shard_map(find, in_specs=(P(), spec), out_specs=(spec, spec))
    place, found = find(table.ids, ids)
    rows = mesh_lib.lookup(table.values, place)
    return jnp.where(found[..., None], rows, jnp.nan)


def values_at(column: jax.Array, ids: jax.Array) -> jax.Array:
    """Values of a column [rows] at ids: [*ids.shape], placed like these."""
    return lookup(column[:, None], ids)[..., 0]


def dropped(table: jax.Array | Rows, rate: float | jax.Array, key: Key) -> jax.Array | Rows:
    """The table, or its rows, after dropout of its entries: the same bits for both."""
    if isinstance(table, Rows):
        return Rows(table.ids, dropout_rows(table.values, table.ids, rate, key))
    return dropout(table, rate, key)


def item_table(init: str | float, dim: int, num_items: int, key: jax.Array) -> jax.Array:
    """[table_rows, D], born split over 'model'; the same values on every mesh.

    A table of more than 65,536 rows is drawn row by row, each from its number, a part at a time.

    Args:
      init: one of INITS, or the deviation of normal numbers.
      dim: D.
      num_items: items 1..num_items; row 0 is padding.
      key: jax.random key.
    """
    rows = table_rows(num_items)
    if init == 'xavier_uniform':
        limit = (6 / (num_items + 1 + dim)) ** 0.5
        draw = functools.partial(jax.random.uniform, minval=-limit, maxval=limit)
    else:
        scale = init if isinstance(init, float) else deviation(init, dim, num_items)
        draw = lambda *args, **kwargs: jax.random.normal(*args, **kwargs) * scale  # noqa: E731
    if rows <= _ROWS_AT_ONCE:
        return draw(key, (rows, dim), out_sharding=TABLE if on_mesh() else None)
    row = lambda key, number: draw(jax.random.fold_in(key, number), (dim,))  # noqa: E731
    if not on_mesh():
        return _filled(row, key, rows, dim, 0)

    def shard(key):
        own = rows // jax.lax.axis_size('model')
        return _filled(row, key, own, dim, jax.lax.axis_index('model') * own)

    return jax.shard_map(shard, in_specs=P(), out_specs=TABLE)(key)


def deviation(init: str, dim: int, num_items: int) -> float:
    """Of the numbers of an item table, by the name of its beginning."""
    return 0.02 if init == 'normal' else (2 / (num_items + 1 + dim)) ** 0.5


def _filled(row, key, rows, dim, first):
    """row(key, first), row(key, first + 1), ..: [rows, D].

    Random bits take several times the memory of the numbers made from them: not all rows at once.
    """
    size = min(rows, _ROWS_AT_ONCE)

    def fill(n, table):
        start = jnp.minimum(n * size, rows - size)  # the last ones are drawn twice alike
        numbers = first + start + jnp.arange(size)
        drawn = jax.vmap(row, (None, 0))(key, numbers)
        return jax.lax.dynamic_update_slice_in_dim(table, drawn, start, 0)

    empty = jnp.zeros((rows, dim))
    if on_mesh():
        empty = jax.lax.pcast(empty, 'model', to='varying')
    return jax.lax.fori_loop(0, -(-rows // size), fill, empty)


def disturbed(x: jax.Array, batch: dict) -> jax.Array:
    """Vectors of events [B, L, D] as a view of them has it.

    Args:
      x: [B, L, D].
      batch: if there are any, `cutoff` bool [B, L, D], where they are 0, and `shift` float32
        [B, L, D], which is added.
    """
    if 'cutoff' in batch:
        x = jnp.where(batch['cutoff'], 0, x)
    return x + batch['shift'].astype(x.dtype) if 'shift' in batch else x


class Attributes(nnx.Module):
    """Vectors of features: a table of `size + 2` rows for each.

    A set is the mean of its members' rows, and code 0 (missing, padding) is a zero vector.
    """

    def __init__(self, features: tuple[Feature, ...], feature_dim: int, *, rngs: nnx.Rngs):
        self.columns = tuple(feature.column for feature in features)
        self.sets = tuple(feature.kind == 'set' for feature in features)
        self.tables = nnx.List(
            nnx.Param(INITS['normal'](rngs.params(), (feature.rows, feature_dim), jnp.float32))
            for feature in features
        )

    def vectors(self, features: dict[str, jax.Array], dtype=jnp.float32) -> list[jax.Array]:
        """[.., feature_dim] for each of {column: int32 [..], or [.., T] of sets}."""
        found = []
        for column, table, members in zip(self.columns, self.tables, self.sets, strict=True):
            codes = features[column]
            rows = lookup(table[...], codes).astype(dtype)
            rows = rows * (codes > 0)[..., None].astype(dtype)
            if members:
                count = (codes > 0).sum(-1, keepdims=True)
                rows = rows.sum(-2) / jnp.maximum(count, 1).astype(dtype)
            found.append(rows)
        return found


class Tokens(Attributes):
    """x + MLP([x; feature vectors]) of item vectors x: what KuaiFormer's transformer reads.

    The paper (section 3.2) has MLP([x; f]) and does not say more; with x added, the vector of an
    item as input stays near to its vector as candidate from the start. One hidden layer of D with
    SiLU.
    """

    def __init__(
        self, features: tuple[Feature, ...], dim: int, feature_dim: int, linear, *, rngs: nnx.Rngs
    ):
        super().__init__(features, feature_dim, rngs=rngs)
        self.inner = linear(dim + feature_dim * len(features), dim, rngs=rngs)
        self.outer = linear(dim, dim, rngs=rngs)

    def __call__(self, items: jax.Array, batch: dict) -> jax.Array:
        """[B, L, D] tokens.

        Args:
          items: [B, L, D] item vectors.
          batch: features {column: int32 [B, L], or [B, L, T] of sets}.
        """
        parts = [items, *self.vectors(batch.get('features', {}), items.dtype)]
        return items + self.outer(jax.nn.silu(self.inner(jnp.concatenate(parts, axis=-1))))
