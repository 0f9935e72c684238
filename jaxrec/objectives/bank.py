"""A bank of item vectors of earlier steps: the negatives of CLRec, CBNS and Kuaishou's framework.

What it holds are values: no gradient flows into it. Places that are not filled yet have item 0.
"""

import jax
import jax.numpy as jnp

Bank = dict[str, jax.Array]


def start_bank(size: int, dim: int) -> Bank:
    """An empty bank: vectors [K, D], items int32 [K], log_q [K]; whole on every device."""
    return {
        'vectors': jnp.zeros((size, dim)),
        'items': jnp.zeros(size, jnp.int32),
        'log_q': jnp.zeros(size),
    }


def push(bank: Bank, vectors: jax.Array, items: jax.Array, log_q: jax.Array | float = 0.0) -> Bank:
    """The bank after a step: first in, first out, whatever the sizes.

    Args:
      bank: of `start_bank`.
      vectors: [N, D], whole on every device.
      items: int32 [N] theirs; 0 = none, which stays out.
      log_q: [N] or one for all, log of how often the item was drawn.
    """
    order = jnp.argsort(items == 0, stable=True)
    count = (items > 0).sum()
    log_q = jnp.broadcast_to(jnp.asarray(log_q, jnp.float32), items.shape)
    new = {'vectors': jax.lax.stop_gradient(vectors), 'items': items, 'log_q': log_q}

    def add(old, new):
        both = jnp.concatenate([old, new[order].astype(old.dtype)])
        return jax.lax.dynamic_slice_in_dim(both, count, len(old))

    return {name: add(bank[name], new[name]) for name in bank}
