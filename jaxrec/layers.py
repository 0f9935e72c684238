"""Building blocks: dropout, attention over packed rows, and the transformer blocks."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import sharding

Key = jax.Array | None  # a jax.random key, or None for no dropout


def dropout(x: jax.Array, rate: float | jax.Array, key: Key) -> jax.Array:
    """Zeroes entries with probability `rate`, scales the others by 1 / (1 - rate).

    The bits are a hash of (key, index of the entry) instead of a counter-based generator:
    cheaper on a CPU, and the same on every mesh since the index is global.

    Args:
      x: any shape.
      rate: in [0, 1); an array where it differs between runs of one program (`seeds`).
      key: jax.random key; None leaves x as it is.
    """
    if key is None or _is_zero(rate):
        return x
    return _drop(x, rate, hash_bits(key, x.shape))


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


def hash_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 [shape]: `hashed` of the entries' indices."""
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        step = jnp.uint32(stride % 2**32)
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * step
        stride *= shape[axis]
    return hashed(key, index)


def hashed(key: jax.Array, index: jax.Array) -> jax.Array:
    """uint32 like `index` uint32: two rounds of a 32-bit mixer, seeded by the key."""
    seed = jax.random.bits(key, (2,), jnp.uint32)
    return _mix(_mix(index ^ seed[0]) + seed[1])


def _mix(x: jax.Array) -> jax.Array:
    """'lowbias32' (Wellons 2018), an invertible mixer of 32 bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def causal_mask(segments: jax.Array) -> jax.Array:
    """bool [B, 1, L, L]: a token sees itself and earlier tokens of its own segment.

    Padding (segment 0) sees padding only, so that no row is fully masked.

    Args:
      segments: int32 [B, L], 0 = padding.
    """
    length = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    earlier = jnp.tril(jnp.ones((length, length), bool))
    return (same & earlier)[:, None]


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
        out, since queries go in groups of at most 64, each against the keys up to its end.

    Returns:
      [B, M, H, d].
    """
    # heads before positions: otherwise XLA writes the products in a transposed layout, at 2-4x
    # their time on a CPU
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    length = q.shape[2]
    groups = -(-length // _QUERIES_AT_ONCE) if causal else 1
    outputs = []
    for group, group_key in enumerate(split_key(key, groups)):
        first, end = group * length // groups, (group + 1) * length // groups
        seen = end if causal else k.shape[2]
        logits = jnp.einsum(
            'bhqd,bhkd->bhqk',
            q[:, :, first:end],
            k[:, :, :seen],
            preferred_element_type=jnp.float32,
        )
        shown = mask[:, :, first:end, :seen]
        logits = jnp.where(shown, logits * q.shape[-1] ** -0.5, jnp.finfo(logits.dtype).min)
        weights = dropout(jax.nn.softmax(logits, axis=-1).astype(v.dtype), rate, group_key)
        outputs.append(jnp.einsum('bhqk,bhkd->bhqd', weights, v[:, :, :seen]))
    return jnp.moveaxis(jnp.concatenate(outputs, axis=2), 1, 2)


_QUERIES_AT_ONCE = 64


def newest(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The positions [B, M, D] of x [B, L, D] that a mask [B, 1, M, L] has queries for: the last M.

    A block given a mask of the last position alone computes only that one's output.
    """
    return x[:, x.shape[1] - mask.shape[2] :]


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
        def split(x):
            shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
            return sharding.reshape_rows(x, shape)

        q, k, v = split(self.q(queries)), split(self.k(keys)), split(self.v(keys))
        if places is not None:  # rotary positions
            q, k = rotate(q, places[-q.shape[1] :]), rotate(k, places)
        causal = self.causal and mask.shape[2] == mask.shape[3]  # the newest alone see every key
        y = attention(q, k, v, mask, rate, key, causal=causal)
        y = sharding.reshape_rows(y, queries.shape)
        return y if self.out is None else self.out(y)


class Block2018(nnx.Module):
    """The block of the SASRec authors' code, which differs from their paper.

    q = LN(x) for the query only, keys and values from x itself; no output projection; the residual
    adds the normalised query; then z = LN(.), z + FFN(z) with a ReLU layer of the same width.
    """

    def __init__(self, dim, heads, ffn, rate, linear, norm, *, rngs):
        self.rate = rate
        self.norm_query, self.norm_ffn = norm(dim, rngs=rngs), norm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, heads, linear, output=False, rngs=rngs)
        self.inner = linear(dim, ffn * dim, rngs=rngs)
        self.outer = linear(ffn * dim, dim, rngs=rngs)

    def __call__(self, x, mask, key):
        keys = split_key(key, 3)
        query = self.norm_query(newest(x, mask))
        z = self.norm_ffn(query + self.attention(query, x, mask, self.rate, keys[0]))
        hidden = dropout(jax.nn.relu(self.inner(z)), self.rate, keys[1])
        return z + dropout(self.outer(hidden), self.rate, keys[2])


class BlockPreLN(nnx.Module):
    """Pre-LayerNorm block: x + MHA(LN x), then x + FFN(LN x) with GELU."""

    def __init__(self, dim, heads, ffn, rate, linear, norm, *, rngs):
        self.rate = rate
        self.norm_attention, self.norm_ffn = norm(dim, rngs=rngs), norm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, heads, linear, output=True, rngs=rngs)
        self.inner = linear(dim, ffn * dim, rngs=rngs)
        self.outer = linear(ffn * dim, dim, rngs=rngs)

    def __call__(self, x, mask, key):
        keys = split_key(key, 4)
        y = self.norm_attention(x)
        x, own = newest(x, mask), newest(y, mask)
        x = x + dropout(self.attention(own, y, mask, self.rate, keys[0]), self.rate, keys[1])
        hidden = dropout(jax.nn.gelu(self.inner(self.norm_ffn(x))), self.rate, keys[2])
        return x + dropout(self.outer(hidden), self.rate, keys[3])


class BlockLiGR(nnx.Module):
    """Gated pre-LN block of LiGR as used in eSASRec (Tikhonovich et al. 2025).

    x + sigmoid(W1 x) * MHA(LN x), then x + sigmoid(W2 x) * SwiGLU(LN x); the gates are computed
    from the un-normalised stream.
    """

    def __init__(self, dim, heads, ffn, rate, linear, norm, *, rngs):
        self.rate = rate
        self.norm_attention, self.norm_ffn = norm(dim, rngs=rngs), norm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, heads, linear, output=True, rngs=rngs)
        self.gate_attention = linear(dim, dim, rngs=rngs)
        self.gate_ffn = linear(dim, dim, rngs=rngs)
        self.inner, self.swish = (linear(dim, ffn * dim, rngs=rngs) for _ in range(2))
        self.outer = linear(ffn * dim, dim, rngs=rngs)

    def __call__(self, x, mask, key):
        keys = split_key(key, 4)
        y = self.norm_attention(x)
        x, own = newest(x, mask), newest(y, mask)
        y = dropout(self.attention(own, y, mask, self.rate, keys[0]), self.rate, keys[1])
        x = x + jax.nn.sigmoid(self.gate_attention(x)) * y
        y = self.norm_ffn(x)
        hidden = dropout(jax.nn.silu(self.swish(y)) * self.inner(y), self.rate, keys[2])
        y = dropout(self.outer(hidden), self.rate, keys[3])
        return x + jax.nn.sigmoid(self.gate_ffn(x)) * y


class BlockLlama(nnx.Module):
    """x + MHA(norm x), then x + SwiGLU(norm x), as in Llama.

    Call with `places` int [L] for rotary positions, and with `pool` for `pool(output)` of a linear
    function of rows [B, L, ..], at less cost: the last product works on its outputs.
    """

    def __init__(self, dim, heads, ffn, rate, linear, norm, *, causal=True, rngs):
        self.rate = rate
        self.norm_attention, self.norm_ffn = norm(dim, rngs=rngs), norm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, heads, linear, output=True, causal=causal, rngs=rngs)
        self.inner, self.swish = (linear(dim, ffn * dim, rngs=rngs) for _ in range(2))
        self.outer = linear(ffn * dim, dim, rngs=rngs)

    def __call__(self, x, mask, key, places=None, pool=lambda x: x):
        keys = split_key(key, 4)
        y = self.norm_attention(x)
        x, own = newest(x, mask), newest(y, mask)
        x = x + dropout(
            self.attention(own, y, mask, self.rate, keys[0], places), self.rate, keys[1]
        )
        y = self.norm_ffn(x)
        hidden = dropout(jax.nn.silu(self.swish(y)) * self.inner(y), self.rate, keys[2])
        return pool(x) + dropout(self.outer(pool(hidden)), self.rate, keys[3])


BLOCKS = {'2018': Block2018, 'pre_ln': BlockPreLN, 'ligr': BlockLiGR}


def linear_layer(init, dtype, *, bias: bool = True):
    """nnx.Linear with this kernel initialiser, computing in `dtype`, parameters in float32."""
    return functools.partial(
        nnx.Linear, kernel_init=init, dtype=dtype, use_bias=bias, dot_general=_dot_general
    )


def _dot_general(x, kernel, dimension_numbers, precision=None, out_sharding=None):
    """`product` in the form that nnx.Linear calls."""
    del dimension_numbers, precision, out_sharding
    return product(x, kernel)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel; the kernel's gradient is summed row by row of the batch, then over rows.

    Summed over all positions at once, XLA turns a factor round before the product, on a CPU at
    twice the cost of the product itself.

    Args:
      x: [B, L, I].
      kernel: [I, O].

    Returns:
      [B, L, O] in the dtype of x, accumulated in float32 at least.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum('bli,io->blo', x, kernel, preferred_element_type=wide).astype(x.dtype)


def _product_forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_backward(residuals, g):
    x, kernel = residuals
    wide = jnp.promote_types(x.dtype, jnp.float32)
    d_x = jnp.einsum('blo,io->bli', g, kernel, preferred_element_type=wide)
    if min(kernel.shape) <= x.shape[1]:  # a matrix per row takes no more memory than x or g
        d_kernel = jnp.einsum('bli,blo->bio', x, g, preferred_element_type=wide).sum(0)
    else:
        whole = jax.P(None, None) if sharding.on_mesh() else None
        d_kernel = jnp.einsum('bli,blo->io', x, g, preferred_element_type=wide, out_sharding=whole)
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


product.defvjp(_product_forward, _product_backward)


def layer_norm(epsilon: float, dtype):
    """nnx.LayerNorm with `epsilon` added to the variance; statistics in float32."""
    return functools.partial(nnx.LayerNorm, epsilon=epsilon, use_fast_variance=False, dtype=dtype)


def rms_norm(epsilon: float, dtype):
    """nnx.RMSNorm with `epsilon` added to the mean square; statistics in float32."""
    return functools.partial(nnx.RMSNorm, epsilon=epsilon, dtype=dtype)


def split_key(key: Key, count: int) -> list:
    """`count` keys, or as many None where there is no key."""
    return [None] * count if key is None else jax.random.split(key, count)
