"""Packed rows, segment by segment: where events stand in theirs, and segments set apart.

A segment is a run of equal numbers > 0 in `segments` int32 [B, L]: the events of one user.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.devices.mesh import on_mesh, placed, replicated
from jaxrec.nn.dropout import counted, hashed

Rows = dict[str, Any]  # arrays [B, L, ..] of events, which may be nested


class Segments:
    """Where the events of rows stand in their segments, each int32 [B, L].

    Attributes:
      place: column of the event; start: of the segment's first; index: from 0 within it; length: of
        the segment.
    """

    def __init__(self, segments: jax.Array):
        width = segments.shape[1]
        self.segments = segments
        self.place = jnp.zeros_like(segments) + jnp.arange(width)
        edge = segments[:, 1:] != segments[:, :-1]
        begins = jnp.pad(edge, ((0, 0), (1, 0)), constant_values=True)
        ends = jnp.pad(edge, ((0, 0), (0, 1)), constant_values=True)
        self.start = jax.lax.cummax(jnp.where(begins, self.place, 0), axis=1)
        last = jax.lax.cummin(jnp.where(ends, self.place, width), axis=1, reverse=True)
        self.index, self.length = self.place - self.start, last - self.start + 1

    def share(self, rate: float) -> jax.Array:
        """floor(rate n), in spite of rates that have no exact binary form."""
        return jnp.floor(rate * self.length.astype(jnp.float32) + 1e-4).astype(jnp.int32)

    def draw(self, key: jax.Array) -> jax.Array:
        """uint32 [B, L], one number per segment."""
        return self._hash(key, self.start)

    def draw_start(self, key: jax.Array, count: jax.Array) -> jax.Array:
        """int32 [B, L], where a span of `count` events begins, one per segment."""
        choices = self.length - count + 1
        start = jnp.floor(uniform(self.draw(key)) * choices).astype(jnp.int32)
        return jnp.minimum(start, choices - 1)

    def draw_places(self, key, count, where=None) -> jax.Array:
        """bool [B, L], `count` events of every segment, of those that `where` allows."""
        allowed = self.segments > 0
        if where is not None:
            allowed &= where
        return allowed & (self.ranks(key, allowed) < count)

    def ranks(self, key: jax.Array, among: jax.Array) -> jax.Array:
        """int32 [B, L], a random order of a segment's events, from 0, those `among` them first."""
        keys = self.start, (~among).astype(jnp.int32), self._hash(key, self.place)
        order = jax.lax.sort((*keys, self.place), dimension=1, num_keys=3)[-1]
        return jnp.argsort(order, axis=1) - self.start

    def _hash(self, key, column):
        row = counted(column, axis=0)
        return hashed(key, row * jnp.uint32(column.shape[1]) + column.astype(jnp.uint32))


def uniform(bits: jax.Array) -> jax.Array:
    """float32 in [0, 1) of uint32."""
    return (bits >> 8).astype(jnp.float32) * 2.0**-24


def only(rows, keep):
    """The rows with everything 0 where not `keep`."""
    return jax.tree.map(
        lambda x: jnp.where(keep.reshape(*keep.shape, *[1] * (x.ndim - 2)), x, 0), rows
    )


def take(x: jax.Array, source: jax.Array) -> jax.Array:
    """[B, M, ..]: of every row of x [B, L, ..] the places `source` int32 [B, M]."""

    def pick(x, source):
        return jax.vmap(lambda row, at: row[at])(x, source)

    if not on_mesh():
        return pick(x, source)
    split = P('data')
    return jax.shard_map(pick, in_specs=(split, split), out_specs=split)(x, source)


def ends(segments: jax.Array) -> jax.Array:
    """bool [B, L], the newest event of every segment."""
    after = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    return (segments > 0) & (segments != after)


def numbers(segments: jax.Array) -> jax.Array:
    """int32 [B, L], placed like `segments`: of every event its segment's number among `ends`."""
    last = replicated(ends(segments)).reshape(-1).astype(jnp.int32)
    return placed((jnp.cumsum(last) - last).reshape(segments.shape), P('data', None))


def newest_places(segments: jax.Array, count: int, fill: int = 0) -> jax.Array:
    """int32 [N] places of `ends` in the flattened rows, the same on every device.

    Args:
      segments: int32 [B, L] of at most N segments.
      count: N.
      fill: the place of missing ones.
    """
    newest = replicated(ends(segments)).reshape(-1)
    return jnp.nonzero(newest, size=count, fill_value=fill)[0]


def with_their_rows(
    x: jax.Array, mask: jax.Array, segments: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For every segment its newest place, the row it stands in, and what it sees of that.

    Args:
      x: [B, L, D].
      mask: bool [B, 1, L, L].
      segments: int32 [B, L] of at most N segments.
      count: N, a multiple of the devices of the 'data' axis.

    Returns:
      [N, D], [N, L, D] and bool [N, 1, 1, L]; those of place 0 where a segment is missing.
    """
    length = segments.shape[1]
    places = newest_places(segments, count)
    if on_mesh():
        places = jax.reshard(places, P('data'))
    # a product by 1: else XLA's CPU computes what x is made of for every segment, not for every row
    x = replicated(x) @ jnp.eye(x.shape[-1], dtype=x.dtype)
    masks = replicated(mask).reshape(-1, length)
    return (
        picked(x.reshape(-1, x.shape[-1]), places),
        picked(x, places // length),
        picked(masks, places)[:, None, None],
    )


def picked(x: jax.Array, rows: jax.Array) -> jax.Array:
    """x[rows], split over the 'data' axis as the row numbers are; x whole on every device."""
    if not on_mesh():
        return x[rows]
    return x.at[rows].get(out_sharding=P('data', *[None] * (x.ndim + rows.ndim - 2)))


def of_segments(x: jax.Array, segments: jax.Array) -> jax.Array:
    """Sums [B, L] over the events of each segment, of x [B, L] that is 0 on padding."""
    same = segments[:, :, None] == segments[:, None, :]
    return jnp.einsum('blm,bm->bl', same.astype(x.dtype), x)


def apart(rows: Rows, count: int, width: int) -> Rows:
    """The segments of packed rows in rows of their own, right-aligned: what is [B, L] is [N, W].

    Args:
      rows: of at most N segments, none longer than W.
      count: N, a multiple of the devices of the 'data' axis.
      width: W.
    """
    segments = replicated(rows['segments'])
    length = segments.shape[1]
    last = newest_places(segments, count, fill=-1)
    number = jnp.where(last < 0, 0, segments.reshape(-1)[last])[:, None]
    column = last[:, None] % length - jnp.arange(width)[::-1]
    source = jnp.where(column < 0, 0, last[:, None] - (width - 1 - jnp.arange(width)))
    real = (column >= 0) & (segments.reshape(-1)[source] == number) & (number > 0)
    if on_mesh():
        source, real = (jax.reshard(x, P('data', None)) for x in (source, real))

    def gathered(x):
        return picked(replicated(x).reshape(-1, *x.shape[2:]), source)

    found = only(jax.tree.map(gathered, rows), real)
    return {**found, 'segments': real.astype(jnp.int32)}
