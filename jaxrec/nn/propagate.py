"""Products with a sparse matrix whose entries are data: propagation over the edges of a graph."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from jaxrec.devices.mesh import lookup
from jaxrec.nn.dropout import Key, dropout, hashed


class Sparse(NamedTuple):
    """Entries of a matrix [R, C], whole on every device.

    Attributes:
      rows: int32 [E], ascending.
      columns: int32 [E].
      values: float32 [E].
    """

    rows: jax.Array | np.ndarray
    columns: jax.Array | np.ndarray
    values: jax.Array | np.ndarray


def entries(matrix: scipy.sparse.csr_array) -> Sparse:
    """The entries of a CSR matrix, as numpy arrays."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    columns = np.asarray(matrix.indices, np.int32)
    return Sparse(rows, columns, np.asarray(matrix.data, np.float32))


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
    wide = jnp.promote_types(x.dtype, jnp.float32)
    gathered = lookup(x, matrix.columns).astype(wide)
    terms = matrix.values[:, None].astype(wide) * gathered
    total = jax.ops.segment_sum(terms, matrix.rows, rows, indices_are_sorted=True)
    return total.astype(x.dtype)


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


def drop_columns(x: Sparse | jax.Array, rate: float, key: Key) -> Sparse | jax.Array:
    """Zeroes whole columns of features, each with probability `rate`, and scales nothing.

    As GRACE masks features (Zhu et al. 2020, section 3.2.2).
    """
    if key is None or rate == 0:
        return x
    if isinstance(x, Sparse):
        return x._replace(values=jnp.where(kept(rate, key, x.columns), x.values, 0))
    return jnp.where(kept(rate, key, jnp.arange(x.shape[1])), x, 0)


def drop_edges(adjacency: Sparse, nodes: int, rate: float, key: Key) -> Sparse:
    """Takes edges from a graph with probability `rate`, and normalises what is left.

    An edge goes in both directions or in none, a loop stays, and the values become
    1 / sqrt(d_r d_c) with the degrees d of the edges that are left.

    Args:
      adjacency: symmetric [N, N] with all loops; its values are not looked at.
      nodes: N.
      rate: in [0, 1).
      key: None leaves the adjacency as it is.
    """
    if key is None or rate == 0:
        return adjacency
    rows, columns, _ = adjacency
    low, high = jnp.minimum(rows, columns), jnp.maximum(rows, columns)
    pair = low.astype(jnp.uint32) * jnp.uint32(nodes % 2**32) + high.astype(jnp.uint32)
    left = (kept(rate, key, pair) | (rows == columns)).astype(jnp.float32)
    degrees = jax.ops.segment_sum(left, rows, nodes, indices_are_sorted=True)
    scale = jax.lax.rsqrt(jnp.maximum(degrees, 1))
    return Sparse(rows, columns, left * scale[rows] * scale[columns])


def kept(rate: float, key: jax.Array, index: jax.Array) -> jax.Array:
    """bool like `index`: False with probability `rate`, the same for the same index."""
    limit = jnp.uint32(min(int(rate * 2**32), 2**32 - 1))
    return hashed(key, index.astype(jnp.uint32)) >= limit
