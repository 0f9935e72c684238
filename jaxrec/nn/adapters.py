"""Low-rank adapters of a projection that stays as it is, and their merging."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import rng
from jaxrec.devices.mesh import replicated


class Adapter(nnx.Module):
    """What is added to a matrix [I, O]: (alpha / rank) A B (LoRA, Hu et al. 2022, eq. 3).

    B begins at 0: the matrix begins as it was, bit for bit.
    """

    def __init__(self, inner: int, outer: int, rank: int, alpha: float, *, rngs: nnx.Rngs):
        self.scale = alpha / rank
        drawn = jax.random.normal(rngs.params(), (inner, rank)) / inner**0.5
        self.a, self.b = nnx.Param(drawn), nnx.Param(jnp.zeros((rank, outer)))

    def delta(self) -> jax.Array:
        """[I, O]."""
        return self.scale * (replicated(self.a[...]) @ replicated(self.b[...]))


def base_projection(inner: int, outer: int) -> jax.Array:
    """float32 [I, O], the matrix that adapters are of: the same numbers in every run.

    Of deviation 1 / sqrt(O), so that lengths stay about as they are.
    """
    return jax.random.normal(rng.key(0), (inner, outer)) / outer**0.5


def dare(deltas: jax.Array, drop: float, key: jax.Array) -> jax.Array:
    """Adapters merged by drop and rescale (DARE, Yu et al. 2024): the mean of mask * delta / (1-p).

    Args:
      deltas: [K, I, O] of K adapters.
      drop: p in [0, 1), share of the entries of each that is dropped.
      key: of the masks.

    Returns:
      [I, O].
    """
    kept = jax.random.bernoulli(key, 1 - drop, deltas.shape)
    return jnp.where(kept, deltas / (1 - drop), 0).mean(0)
