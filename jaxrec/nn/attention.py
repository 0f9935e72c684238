"""Building blocks: dropout, attention over packed rows, and the transformer blocks."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.devices.mesh import reshape_rows
from jaxrec.devices.tuning import tuning
from jaxrec.nn.dropout import Key, dropout, split_key


def causal_mask(segments: jax.Array) -> jax.Array:
    """bool [B, 1, L, L]: a token sees itself and earlier tokens of its own segment.

    Padding (segment 0) sees padding only, so that no row is fully masked.

    Args:
      segments: int32 [B, L], 0 = padding.
    """
    length = segments.shape[1]
    earlier = jnp.tril(jnp.ones((length, length), bool))
    return both_ways_mask(segments) & earlier


def both_ways_mask(segments: jax.Array) -> jax.Array:
    """bool [B, 1, L, L]: a token sees all tokens of its own segment, later ones too."""
    return (segments[:, :, None] == segments[:, None, :])[:, None]


def softmax_among(logits: jax.Array, shown: jax.Array, axis: int = -1) -> jax.Array:
    """Softmax of logits over what is shown, of a shape that they broadcast to; 0 where nothing is.

    `attention` needs no such care: its masks let every place see something.
    """
    logits = jnp.where(shown, logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(logits, axis=axis) * shown


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    rate: float,
    key: Key,
    *,
    causal: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v with dropout on the weights.

    Args:
      q: [B, M, H, d].
      k, v: [B, L, H, d].
      mask: bool [B, 1, M, L], True where a query (second to last axis) sees a key (last).
      rate, key: dropout of the attention weights.
      causal: the mask shows no query a later key, M = L: then about half of the products are left
        out on a CPU, where queries go in groups, each against the keys up to its end (`tuning`).

    Returns:
      [B, M, H, d].
    """
    # heads before positions: otherwise XLA writes the products in a transposed layout, at 2-4x
    # their time on a CPU
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    length = q.shape[2]
    at_once = tuning().queries
    groups = -(-length // at_once) if causal and at_once else 1
    outputs = []
    for group, group_key in enumerate(split_key(key, groups)):
        first, end = group * length // groups, (group + 1) * length // groups
        seen = end if causal else k.shape[2]
        logits = jnp.einsum(
            'bhqd,bhkd->bhqk',
            q[:, :, first:end],
            k[:, :, :seen],
            preferred_element_type=jnp.promote_types(q.dtype, jnp.float32),
        )
        shown = mask[:, :, first:end, :seen]
        logits = jnp.where(shown, logits * q.shape[-1] ** -0.5, jnp.finfo(logits.dtype).min)
        weights = dropout(jax.nn.softmax(logits, axis=-1).astype(v.dtype), rate, group_key)
        outputs.append(jnp.einsum('bhqk,bhkd->bhqd', weights, v[:, :, :seen]))
    return jnp.moveaxis(jnp.concatenate(outputs, axis=2), 1, 2)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary positions (Su et al. 2021), halves paired as in Llama: products depend on distances.

    Args:
      x: [B, L, H, d], d even.
      positions: [L].
    """
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / half)
    angles = (positions[:, None] * frequencies)[:, None]  # [L, 1, d / 2]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


class SelfAttention(nnx.Module):
    """Multi-head projections around `attention`.

    Args:
      dim, heads: widths.
      linear: makes a linear layer.
      output: whether there is a projection after the heads.
      causal: no mask will show a query a later key.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        linear,
        *,
        output: bool,
        causal: bool = True,
        rngs: nnx.Rngs,
    ):
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v = (linear(dim, dim, rngs=rngs) for _ in range(3))
        self.out = linear(dim, dim, rngs=rngs) if output else None

    def __call__(self, queries, keys, mask, rate, key, places=None):
        if queries.ndim == 2:
            y = self._of_one_query(queries, keys, mask, rate, key)
            return y if self.out is None else self.out(y)
        if queries.shape[1] == 1 and key is None and places is None:
            return self(queries[:, 0], keys, mask, rate, key)[:, None]

        def split(x):
            shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
            return reshape_rows(x, shape)

        q, k, v = split(self.q(queries)), split(self.k(keys)), split(self.v(keys))
        if places is not None:  # rotary positions
            q, k = rotate(q, places[-q.shape[1] :]), rotate(k, places)
        causal = self.causal and mask.shape[2] == mask.shape[3]  # the newest alone see every key
        y = attention(q, k, v, mask, rate, key, causal=causal)
        y = reshape_rows(y, queries.shape)
        return y if self.out is None else self.out(y)

    def _of_one_query(self, query, keys, mask, rate, key):
        """What the heads give one query a row, [B, D]: no key is projected.

        q (x K + b)' is (q K') x' and a number that all keys share, and the projection of values
        can wait until they are summed: two products a row in place of two a key. Equal to the
        longer way up to rounding.
        """
        heads = (self.heads, query.shape[1] // self.heads)
        q = reshape_rows(self.q(query), (query.shape[0], *heads))
        k, v = (x.kernel[...].astype(q.dtype).reshape(-1, *heads) for x in (self.k, self.v))
        wide = {'preferred_element_type': jnp.promote_types(q.dtype, jnp.float32)}
        q = jnp.einsum('bhd,ihd->bhi', q, k, **wide).astype(q.dtype)
        logits = jnp.einsum('bhi,bli->bhl', q, keys, **wide) * heads[1] ** -0.5
        logits = jnp.where(mask[:, 0], logits, jnp.finfo(logits.dtype).min)
        weights = dropout(
            jax.nn.softmax(logits, axis=-1).astype(keys.dtype), rate, split_key(key, 1)[0]
        )
        summed = jnp.einsum('bhl,bli->bhi', weights, keys, **wide).astype(keys.dtype)
        y = jnp.einsum('bhi,ihd->bhd', summed, v, **wide).astype(keys.dtype)
        if self.v.bias is not None:
            bias = self.v.bias[...].astype(y.dtype).reshape(heads)
            y = y + weights.sum(-1, keepdims=True) * bias
        return reshape_rows(y, query.shape)
