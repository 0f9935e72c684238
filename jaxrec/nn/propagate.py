"""Products with a sparse matrix whose entries are data: propagation over the edges of a graph.

On a CPU a product with a matrix in order is that of a CSR matrix, forward and backward; elsewhere,
and where nothing is in order, it is a sum over sorted segments.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import P
from jax.experimental import sparse

from jaxrec.devices.mesh import lookup, on_mesh, platform
from jaxrec.devices.row_sums import row_sums
from jaxrec.nn.dropout import Key, dropout, hashed


class Sparse(NamedTuple):
    """Entries of a matrix [R, C], whole on every device.

    Attributes:
      rows: int32 [E], ascending.
      columns: int32 [E].
      values: float32 [E].
      order: None where the entries change from step to step.
    """

    rows: jax.Array | np.ndarray
    columns: jax.Array | np.ndarray
    values: jax.Array | np.ndarray
    order: 'Order | None' = None


class Order(NamedTuple):
    """Where the entries of rows and columns are.

    Attributes:
      starts: int32 [R + 1], where each row's entries begin.
      by_column: int32 [E], the entries by column, then by row.
      column_starts: int32 [C + 1], where each column's begin among these.
    """

    starts: jax.Array | np.ndarray
    by_column: jax.Array | np.ndarray
    column_starts: jax.Array | np.ndarray


def entries(matrix: scipy.sparse.csr_array) -> Sparse:
    """The entries of a CSR matrix, in order, as numpy arrays."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    columns = np.asarray(matrix.indices, np.int32)
    ends = np.cumsum(np.bincount(columns, minlength=matrix.shape[1]))
    order = Order(
        starts=np.asarray(matrix.indptr, np.int32),
        by_column=np.argsort(columns, kind='stable').astype(np.int32),
        column_starts=np.concatenate([[0], ends]).astype(np.int32),
    )
    return Sparse(rows, columns, np.asarray(matrix.data, np.float32), order)


def propagate(matrix: Sparse, x: jax.Array, rows: int) -> jax.Array:
    """matrix @ x: row r is the sum over its entries (r, c, value) of value * x[c].

    Rows without entries are 0. Computed by every device as a whole, so the values are the same on
    every mesh; nothing crosses devices.

    Args:
      matrix: [R, C].
      x: [C, D], whole on every device.
      rows: R.

    Returns:
      [R, D] in the dtype of x, summed in float32 at least.
    """
    if matrix.order is not None:
        if len(matrix.order.starts) != rows + 1:
            raise ValueError(f'a matrix of {len(matrix.order.starts) - 1} rows, not {rows}')
        return _product(*matrix[:3], matrix.order, x)
    return _summed(lookup(x, matrix.columns), matrix.values, matrix.rows, rows)


def _summed(gathered, values, rows, count):
    """[count, D], the sum of values * gathered [E, D] of each row; values None = ones."""
    wide = jnp.promote_types(gathered.dtype, jnp.float32)
    terms = gathered.astype(wide)
    terms = terms if values is None else terms * values[:, None].astype(wide)
    return _ordered_sums(rows, terms, count).astype(gathered.dtype)


def _ordered_sums(rows, terms, count):
    """[count, ..], the sum of the terms [E, ..] of each row; rows ascend."""
    if platform() != 'gpu':
        return jax.ops.segment_sum(terms, rows, count, indices_are_sorted=True)
    total = row_sums(rows, terms.reshape(len(rows), -1), count, ordered=True)
    return total.reshape(count, *terms.shape[1:])


@jax.custom_vjp
def _product(rows, columns, values, order, x):
    return _whole(order.starts, rows, columns, values, x)


def _forward(rows, columns, values, order, x):
    return _product(rows, columns, values, order, x), (rows, columns, values, order, x)


def _backward(saved, cotangent):
    rows, columns, values, order, x = saved
    place = order.by_column
    back = _whole(order.column_starts, columns[place], rows[place], values[place], cotangent)
    of_values = (lookup(cotangent, rows) * lookup(x, columns)).sum(-1).astype(values.dtype)
    return None, None, of_values, None, back


_product.defvjp(_forward, _backward)


def _whole(starts, rows, columns, values, x):
    """`of_rows` on every device."""
    if not on_mesh():
        return of_rows(starts, rows, columns, values, x)
    product = jax.shard_map(of_rows, in_specs=P(), out_specs=P())
    return product(starts, rows, columns, values, x)


def of_rows(
    starts: jax.Array, rows: jax.Array, columns: jax.Array, values: jax.Array | None, x: jax.Array
) -> jax.Array:
    """[R, D] in the dtype of x [C, D], summed in float32 at least: each row's values * x[columns].

    Args:
      starts: int32 [R + 1], where each row's entries begin.
      rows: int32 [E] ascending, R on padding.
      columns: int32 [E].
      values: [E]; None = ones.
    """
    count, wide = len(starts) - 1, jnp.promote_types(x.dtype, jnp.float32)
    if platform() != 'cpu':
        return _summed(x[columns], values, rows, count)
    values = jnp.ones(columns.shape, wide) if values is None else values.astype(wide)
    matrix = sparse.BCSR((values, columns, starts), shape=(count, len(x)))
    return (matrix @ x.astype(wide)).astype(x.dtype)


def multiply(x: Sparse | jax.Array, kernel: jax.Array, rows: int) -> jax.Array:
    """x @ kernel of features x [R, C], sparse or dense, and a kernel [C, D]: [R, D]."""
    if isinstance(x, Sparse):
        return propagate(x, kernel, rows)
    return jnp.einsum('rc,cd->rd', x, kernel, preferred_element_type=jnp.float32)


def drop_entries(x: Sparse | jax.Array, rate: float | jax.Array, key: Key) -> Sparse | jax.Array:
    """`dropout` of features; of sparse ones only the stored entries need a draw."""
    if isinstance(x, Sparse):
        return x._replace(values=dropout(x.values, rate, key))
    return dropout(x, rate, key)


def drop_columns(x: Sparse | jax.Array, rate: float | jax.Array, key: Key) -> Sparse | jax.Array:
    """Zeroes whole columns of features, each with probability `rate`, and scales nothing.

    As GRACE masks features (Zhu et al. 2020, section 3.2.2); `rate` may be one of each column.
    """
    if key is None or (isinstance(rate, int | float) and rate == 0):
        return x
    if isinstance(x, Sparse):
        rate = rate if isinstance(rate, int | float) else rate[x.columns]
        return x._replace(values=jnp.where(kept(rate, key, x.columns), x.values, 0))
    return jnp.where(kept(rate, key, jnp.arange(x.shape[1])), x, 0)


def drop_edges(adjacency: Sparse, nodes: int, rate: float | jax.Array, key: Key) -> Sparse:
    """Takes edges from a graph with probability `rate`, and normalises what is left.

    An edge goes in both directions or in none, a loop stays, and the values become
    1 / sqrt(d_r d_c) with the degrees d of the edges that are left.

    Args:
      adjacency: symmetric [N, N] with all loops; its values are not looked at.
      nodes: N.
      rate: in [0, 1), or of each entry, [E], the same of both directions.
      key: None leaves the adjacency as it is.
    """
    if key is None or (isinstance(rate, int | float) and rate == 0):
        return adjacency
    rows, columns = adjacency.rows, adjacency.columns
    low, high = jnp.minimum(rows, columns), jnp.maximum(rows, columns)
    pair = low.astype(jnp.uint32) * jnp.uint32(nodes % 2**32) + high.astype(jnp.uint32)
    left = (kept(rate, key, pair) | (rows == columns)).astype(jnp.float32)
    degrees = _ordered_sums(rows, left, nodes)
    scale = jax.lax.rsqrt(jnp.maximum(degrees, 1))
    return adjacency._replace(values=left * scale[rows] * scale[columns])


def edge_rates(adjacency: Sparse, nodes: int, rate: float) -> jax.Array:
    """Rates [E] for `drop_edges` with mean `rate`: edges between nodes of few edges go more often.

    GCA (Zhu et al., WWW 2021, eq. 3 to 5) with degree centrality: of an edge w = log((d_u + d_v) /
    2), and its rate is min(rate (max w - w) / (max w - mean w), GCA_MOST). Loops do not count.
    """
    rows, columns = adjacency.rows, adjacency.columns
    between = (rows != columns).astype(jnp.float32)
    degrees = _ordered_sums(rows, between, nodes)
    weight = jnp.log(jnp.maximum((degrees[rows] + degrees[columns]) / 2, 1))
    return _by_weight(weight, between, rate)


def column_rates(
    x: Sparse | jax.Array, adjacency: Sparse, nodes: int, columns: int, rate: float
) -> jax.Array:
    """Rates [columns] for `drop_columns`: features of nodes with few edges go more often.

    GCA (eq. 6 to 8): of a column w = log of the summed degrees of the nodes that have the feature.
    Columns that no node has count for nothing.
    """
    between = (adjacency.rows != adjacency.columns).astype(jnp.float32)
    degrees = _ordered_sums(adjacency.rows, between, nodes)
    if isinstance(x, Sparse):
        there = (x.values != 0).astype(jnp.float32)
        total = jnp.zeros(columns).at[x.columns].add(there * degrees[x.rows])
    else:
        total = degrees @ (x != 0).astype(jnp.float32)
    return _by_weight(jnp.log(jnp.maximum(total, 1)), (total > 0).astype(jnp.float32), rate)


GCA_MOST = 0.7  # the highest rate


def _by_weight(weight, counted, rate):
    """min(rate (max - w) / (max - mean), GCA_MOST), max and mean over what is counted."""
    high = jnp.where(counted > 0, weight, -jnp.inf).max()
    mean = (weight * counted).sum() / jnp.maximum(counted.sum(), 1)
    return jnp.minimum(rate * (high - weight) / jnp.maximum(high - mean, 1e-9), GCA_MOST)


def kept(rate: float | jax.Array, key: jax.Array, index: jax.Array) -> jax.Array:
    """bool like `index`: False with probability `rate`, the same for the same index.

    Args:
      rate: below 1, or of each index, like `index`.
      key: of the draw.
      index: whole numbers.
    """
    if isinstance(rate, int | float):
        limit = jnp.uint32(min(int(rate * 2**32), 2**32 - 1))
    else:
        limit = (jnp.maximum(rate, 0) * 2.0**32).astype(jnp.uint32)
    return hashed(key, index.astype(jnp.uint32)) >= limit
