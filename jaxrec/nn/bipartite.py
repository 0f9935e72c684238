"""Propagation between users and items over the pairs of both, split by rows over all devices.

The graph is a matrix R [users, items] of zeros and ones and its transpose, each by rows, so that
neither product scatters. Both together are symmetric: the backward pass of a product with them is
the same product. On a CPU it is that of a CSR matrix, elsewhere sums of sorted segments. Where the
devices do not divide the rows, what is split over them ends with rows of zeros: `spread`, `whole`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from jaxrec.devices.mesh import EVERY, on_mesh, placed, replicated
from jaxrec.nn.dropout import counted
from jaxrec.nn.propagate import kept as kept_of
from jaxrec.nn.propagate import of_rows


class Nodes(NamedTuple):
    """What users and items have, or their directions of an edge: arrays [rows, ..] or `Side`s."""

    users: jax.Array
    items: jax.Array


class Side(NamedTuple):
    """Ones of a matrix, in P pieces of n rows each.

    Attributes:
      starts: int32 [P, n + 1], where each row's entries begin among the piece's.
      rows: int32 [P, E] ascending, within the piece; n on padding.
      columns: int32 [P, E].
      shares: float32 [P, E], 1 / sqrt(d_r d_c) with the degrees of the entry's row and column.
    """

    starts: jax.Array | np.ndarray
    rows: jax.Array | np.ndarray
    columns: jax.Array | np.ndarray
    shares: jax.Array | np.ndarray


def graph(users: np.ndarray, items: np.ndarray, rows: Nodes, pieces: int) -> tuple[Nodes, Nodes]:
    """The edges of distinct pairs as `Side`s, and the float32 degrees [rows].

    Args:
      users, items: int [E], numbers of the pairs.
      rows: of both tables; the pieces hold as many, rounded up to a multiple of their number.
      pieces: P, a multiple of the devices that will share them.
    """
    ends = zip((users, items), rows, strict=True)
    degrees = Nodes(*(np.bincount(x, minlength=n).astype(np.float32) for x, n in ends))
    shares = (degrees.users[users] * degrees.items[items]) ** -0.5
    sides = (
        _side(users, items, shares, rows.users, pieces),
        _side(items, users, shares, rows.items, pieces),
    )
    return Nodes(*sides), degrees


def _side(rows, columns, shares, count, pieces):
    order, each = np.lexsort((columns, rows)), -(-count // pieces)
    rows, columns, shares = rows[order], columns[order], shares[order]
    piece, first = rows // each, np.searchsorted(rows, np.arange(pieces) * each)
    place = np.arange(len(rows)) - first[piece]
    shape = pieces, int(place.max(initial=0)) + 1
    side = Side(
        starts=np.arange(pieces)[:, None] * each + np.arange(each + 1),
        rows=np.full(shape, each, np.int32),
        columns=np.zeros(shape, np.int32),
        shares=np.zeros(shape, np.float32),
    )
    side.rows[piece, place], side.columns[piece, place] = rows - piece * each, columns
    side.shares[piece, place] = shares
    starts = np.searchsorted(rows, side.starts) - first[:, None]
    return side._replace(starts=starts.astype(np.int32))


@jax.custom_vjp
def exchange(edges: Nodes, kept: Nodes | None, x: Nodes) -> Nodes:
    """(R items, R^T users) of x = (users, items): every node gets the sum of its neighbours.

    Args:
      edges: of `graph`.
      kept: float32 like the columns of both sides, weights of the entries; None = all 1.
      x: [rows, D] of both, split like the result, see `spread`.

    Returns:
      [rows, D] of both, split over all devices.
    """
    of_users, of_items = (None, None) if kept is None else kept
    return Nodes(_product(edges.users, of_users, x.items), _product(edges.items, of_items, x.users))


def _forward(edges, kept, x):
    return exchange(edges, kept, x), (edges, kept)


def _backward(saved, cotangents):
    return None, None, exchange(*saved, Nodes(*cotangents))


exchange.defvjp(_forward, _backward)


def _product(side, kept, x):
    """[rows, D] of x [columns, D]."""

    def local(side, kept, x):
        kept = [None] * len(side.starts) if kept is None else kept
        pieces = zip(side.starts, side.rows, side.columns, kept, strict=True)
        return jnp.concatenate([of_rows(*piece, x) for piece in pieces])

    if not on_mesh():
        return local(side, kept, x)
    split = jax.tree.map(lambda one: jax.reshard(one, EVERY), (side, kept))
    product = jax.shard_map(local, in_specs=(EVERY, EVERY, P()), out_specs=EVERY)
    return product(*split, replicated(x))


def degrees(edges: Nodes, kept: Nodes, rows: Nodes) -> Nodes:
    """float32 of both, spread like x: the sum of each node's weights."""
    ones = exchange(edges, kept, Nodes(*(jnp.ones((n, 1), jnp.float32) for n in rows)))
    return Nodes(ones.users[:, 0], ones.items[:, 0])


def propagated(edges: Nodes, kept: Nodes | None, degrees: Nodes, x: Nodes) -> Nodes:
    """D^-1/2 A D^-1/2 x with A of `exchange` and D the degrees; nodes of degree 0 get 0.

    Of the whole graph the roots are in the entries' weights, and no pass over x is for them.
    """
    if kept is None:
        return exchange(edges, Nodes(*(side.shares for side in edges)), Nodes(*map(spread, x)))
    scale = [spread(inverse_root(d)[:, None]) for d in degrees]
    scaled = Nodes(*(s * spread(v) for s, v in zip(scale, x, strict=True)))
    return Nodes(*(s * v for s, v in zip(scale, exchange(edges, kept, scaled), strict=True)))


def inverse_root(degrees: jax.Array) -> jax.Array:
    """degrees ** -1/2, 0 where they are 0."""
    return jnp.where(degrees > 0, jax.lax.rsqrt(jnp.maximum(degrees, 1e-9)), 0)


def spread(x: jax.Array) -> jax.Array:
    """[rows, D] split over all devices, with rows of zeros at the end until they divide them."""
    more = -len(x) % jax.sharding.get_abstract_mesh().size if on_mesh() else 0
    if more:
        x = jnp.pad(replicated(x), ((0, more), (0, 0)))
    return placed(x, P(('data', 'model'), None))


def whole(x: jax.Array, rows: int) -> jax.Array:
    """The first `rows` of what is `spread`, on every device."""
    return replicated(x)[:rows] if len(x) > rows else replicated(x)


def drop_edges(edges: Nodes, items: int, rate: float, key: jax.Array) -> Nodes:
    """Weights of all entries, each pair of both directions 0 with probability `rate`, else 1.

    Args:
      edges: of `graph`.
      items: rows of the item table.
      rate, key: see `propagate.kept`.
    """

    def weights(users, items_of):
        pair = users * jnp.uint32(items) + items_of
        return kept_of(rate, key, pair).astype(jnp.float32)

    return Nodes(*(weights(*ends) for ends in _ends(edges)))


def drop_nodes(edges: Nodes, rate: float, key: jax.Array) -> Nodes:
    """Weights of all entries: 0 where one of the ends is dropped, nodes with probability `rate`."""
    of_users, of_items = jax.random.split(key)

    def weights(users, items):
        left = kept_of(rate, of_users, users) & kept_of(rate, of_items, items)
        return left.astype(jnp.float32)

    return Nodes(*(weights(*ends) for ends in _ends(edges)))


def _ends(edges):
    """(users, items) uint32 of the entries of both sides."""

    def rows(side):
        first = counted(side.rows, 0) * jnp.uint32(side.starts.shape[1] - 1)
        return first + side.rows.astype(jnp.uint32)

    by_user = rows(edges.users), edges.users.columns.astype(jnp.uint32)
    return by_user, (edges.items.columns.astype(jnp.uint32), rows(edges.items))
