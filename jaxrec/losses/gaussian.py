"""The divergence of diagonal Gaussians, of models with a latent distribution."""

import jax
import jax.numpy as jnp

Gaussian = tuple[jax.Array, jax.Array]  # means and log variances [Z]


def gaussian_kl(q: Gaussian, p: Gaussian) -> jax.Array:
    """KL(q || p) of diagonal Gaussians, per dimension: a sum would grow with the width.

    The mean of (exp(v_q - v_p) + (m_q - m_p)^2 / exp(v_p) - 1 + v_p - v_q) / 2, v log variances.
    """
    (mean, log_variance), (of_p, log_of_p) = q, p
    square = (mean - of_p) ** 2 / jnp.exp(log_of_p)
    each = jnp.exp(log_variance - log_of_p) + square - 1 + log_of_p - log_variance
    return 0.5 * each.mean()
