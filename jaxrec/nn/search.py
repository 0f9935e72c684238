"""Searches of a long past for the few events that attention then sees (SIM, arXiv 2006.05639)."""

import jax
import jax.numpy as jnp


def latest(fits: jax.Array, most: int) -> jax.Array:
    """The last `most` of those that fit; fits and result bool [.., N], oldest first."""
    newer = jax.lax.cumsum(fits.astype(jnp.int32), axis=fits.ndim - 1, reverse=True)
    return fits & (newer <= most)


def nearest(queries: jax.Array, events: jax.Array, fits: jax.Array, most: int) -> jax.Array:
    """Of those that fit the `most` with the largest dot products; ties with the last of them too.

    No gradient goes through the choice.

    Args:
      queries: [B, M, D].
      events: [B, N, D].
      fits: bool [B, M, N]; what does not fit never beats a negative product.
      most: how many.

    Returns:
      bool [B, M, N].
    """
    if events.shape[1] <= most:
        return fits
    products = jnp.einsum('bmd,bnd->bmn', *map(jax.lax.stop_gradient, (queries, events)))
    products = jnp.where(fits, products, -jnp.inf)
    return fits & (products >= jnp.sort(products, axis=2)[..., -most, None])
