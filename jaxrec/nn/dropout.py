"""Dropout whose bits are a hash of the global index: the same on every mesh."""

import jax
import jax.numpy as jnp

from jaxrec.devices.mesh import placed_like

Key = jax.Array | None  # a jax.random key, or None for no dropout


def dropout(x: jax.Array, rate: float | jax.Array, key: Key) -> jax.Array:
    """Zeroes entries with probability `rate`, scales the others by 1 / (1 - rate).

    The bits are a hash of (key, index of the entry) instead of a counter-based generator:
    cheaper on a CPU, and the same on every mesh since the index is global. Every device draws
    those of its own part of x.

    Args:
      x: any shape.
      rate: in [0, 1); an array where it differs between runs of one program (`seeds`).
      key: jax.random key; None leaves x as it is.
    """
    if key is None or _is_zero(rate):
        return x
    return _drop(x, rate, hash_bits(key, x))


def dropout_rows(rows: jax.Array, ids: jax.Array, rate: float | jax.Array, key: Key) -> jax.Array:
    """Rows `ids` of a table as they are in `dropout(table, rate, key)`, without all the others.

    Args:
      rows: [..., D] rows of the table as it is.
      ids: int32 [...] their numbers.
      rate, key: see `dropout`.
    """
    if key is None or _is_zero(rate):
        return rows
    width = rows.shape[-1]
    index = ids[..., None].astype(jnp.uint32) * jnp.uint32(width)
    return _drop(rows, rate, hashed(key, index + jnp.arange(width, dtype=jnp.uint32)))


def _is_zero(rate):
    return not isinstance(rate, jax.Array) and rate == 0


def _drop(x, rate, bits):
    traced = isinstance(rate, jax.Array)
    limit = (rate * 2.0**32).astype(jnp.uint32) if traced else min(int(rate * 2**32), 2**32 - 1)
    return jnp.where(bits >= jnp.uint32(limit), x / (1 - rate), 0).astype(x.dtype)


def hash_bits(key: jax.Array, x: jax.Array) -> jax.Array:
    """uint32 [x.shape], placed like x: `hashed` of the entries' indices."""
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(x.ndim)):
        index = index + counted(x, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return hashed(key, index)


def counted(x: jax.Array, axis: int) -> jax.Array:
    """uint32 [x.shape], placed like x: the place of every entry along an axis of the whole."""
    return jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis, out_sharding=placed_like(x))


def hashed(key: jax.Array, index: jax.Array) -> jax.Array:
    """uint32 like `index` uint32: two rounds of a 32-bit mixer, seeded by the key."""
    seed = jax.random.bits(key, (2,), jnp.uint32)
    return _mix(_mix(index ^ seed[0]) + seed[1])


def kept_ids(ids: jax.Array, rate: float, key: Key) -> jax.Array:
    """bool like int32 `ids`: False with the chance `rate`, alike for the same id.

    All are True without a key.
    """
    if key is None or not rate:
        return ids >= 0
    return hashed(key, ids.astype(jnp.uint32)) >= jnp.uint32(int(rate * 2**32))


def _mix(x: jax.Array) -> jax.Array:
    """'lowbias32' (Wellons 2018), an invertible mixer of 32 bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def split_key(key: Key, count: int) -> list:
    """`count` keys, or as many None where there is no key."""
    return [None] * count if key is None else jax.random.split(key, count)
