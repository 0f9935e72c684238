"""The next-item objective: scores of sampled negatives."""

import jax
import jax.numpy as jnp

from jaxrec.devices.mesh import lookup


def negative_scores(hidden: jax.Array, table: jax.Array, negatives: jax.Array) -> jax.Array:
    """Scores [B, L, k] of negatives [B or 1, L or 1, k] under hidden [B, L, D].

    Negatives of single positions are walked in chunks along L and looked up again in the backward
    pass, so that [B, L, k, D] never exists.
    """
    if negatives.shape[:2] == (1, 1):  # one set for the batch
        return jnp.einsum('bld,kd->blk', hidden, lookup(table, negatives[0, 0]))
    if negatives.shape[1] == 1:  # one set per row
        return jnp.einsum('bld,bkd->blk', hidden, lookup(table, negatives[:, 0]))

    @jax.checkpoint
    def scores(x):
        h, ids = x
        return jnp.einsum('bd,bkd->bk', h, lookup(table, ids))

    if negatives.size * hidden.shape[-1] <= _LOOKUP_AT_ONCE:
        return jnp.einsum('bld,blkd->blk', hidden, lookup(table, negatives))
    by_position = (jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(negatives, 1, 0))
    return jnp.moveaxis(jax.lax.map(scores, by_position), 0, 1)


_LOOKUP_AT_ONCE = 1 << 24  # floats of negatives' vectors held at once: 64 MiB
