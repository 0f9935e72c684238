"""Transformer blocks.

Each is called with x [B, L, D], a mask [B, 1, M, L] and a dropout key, and computes the last M
positions, or in their place `asked` [B, D], a position of each row.
"""

import jax
from flax import nnx

from jaxrec.nn.attention import SelfAttention
from jaxrec.nn.dropout import dropout, split_key


def newest(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The positions [B, M, D] of x [B, L, D] that a mask [B, 1, M, L] has queries for: the last M.

    A block given a mask of the last position alone computes only that one's output.
    """
    return x[:, x.shape[1] - mask.shape[2] :]


def asking(x, mask, asked, norm) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a block with the LayerNorm first computes: `asked` or the newest, both, and norm(x)."""
    y = norm(x)
    if asked is None:
        return newest(x, mask), newest(y, mask), y
    return asked, norm(asked), y


class Block2018(nnx.Module):
    """The block of the SASRec authors' code, which differs from their paper.

    q = LN(x) for the query only, keys and values from x itself; no output projection; the residual
    adds the normalised query; then z = LN(.), z + FFN(z) with a ReLU layer of the same width.
    """

    def __init__(self, dim, heads, ffn, rate, linear, norm, *, causal=True, rngs):
        self.rate = rate
        self.norm_query, self.norm_ffn = norm(dim, rngs=rngs), norm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, heads, linear, output=False, causal=causal, rngs=rngs)
        self.inner = linear(dim, ffn * dim, rngs=rngs)
        self.outer = linear(ffn * dim, dim, rngs=rngs)

    def __call__(self, x, mask, key, asked=None):
        keys = split_key(key, 3)
        query = self.norm_query(newest(x, mask) if asked is None else asked)
        z = self.norm_ffn(query + self.attention(query, x, mask, self.rate, keys[0]))
        hidden = dropout(jax.nn.relu(self.inner(z)), self.rate, keys[1])
        return z + dropout(self.outer(hidden), self.rate, keys[2])


class BlockPreLN(nnx.Module):
    """Pre-LayerNorm block: x + MHA(LN x), then x + FFN(LN x) with GELU."""

    def __init__(self, dim, heads, ffn, rate, linear, norm, *, causal=True, rngs):
        self.rate = rate
        self.norm_attention, self.norm_ffn = norm(dim, rngs=rngs), norm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, heads, linear, output=True, causal=causal, rngs=rngs)
        self.inner = linear(dim, ffn * dim, rngs=rngs)
        self.outer = linear(ffn * dim, dim, rngs=rngs)

    def __call__(self, x, mask, key, asked=None):
        keys = split_key(key, 4)
        x, own, y = asking(x, mask, asked, self.norm_attention)
        x = x + dropout(self.attention(own, y, mask, self.rate, keys[0]), self.rate, keys[1])
        hidden = dropout(jax.nn.gelu(self.inner(self.norm_ffn(x))), self.rate, keys[2])
        return x + dropout(self.outer(hidden), self.rate, keys[3])


class BlockLiGR(nnx.Module):
    """Gated pre-LN block of LiGR as used in eSASRec (Tikhonovich et al. 2025).

    x + sigmoid(W1 x) * MHA(LN x), then x + sigmoid(W2 x) * SwiGLU(LN x); the gates are computed
    from the un-normalised stream.
    """

    def __init__(self, dim, heads, ffn, rate, linear, norm, *, causal=True, rngs):
        self.rate = rate
        self.norm_attention, self.norm_ffn = norm(dim, rngs=rngs), norm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, heads, linear, output=True, causal=causal, rngs=rngs)
        self.gate_attention = linear(dim, dim, rngs=rngs)
        self.gate_ffn = linear(dim, dim, rngs=rngs)
        self.inner, self.swish = (linear(dim, ffn * dim, rngs=rngs) for _ in range(2))
        self.outer = linear(ffn * dim, dim, rngs=rngs)

    def __call__(self, x, mask, key, asked=None):
        keys = split_key(key, 4)
        x, own, y = asking(x, mask, asked, self.norm_attention)
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
