"""Losses of single scores: binary cross-entropy and its generalisation."""

import jax
import jax.numpy as jnp


def bce(positive: jax.Array, negatives: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    """Binary cross-entropy with k negatives (SASRec, eq. 6): -log s(r+) - sum_j log(1 - s(r_j)).

    Args:
      positive: [...] scores of the targets.
      negatives: [..., k] scores of the negatives.
      labels: [...] y in [0, 1] of the targets, -y log s(r+) - (1 - y) log(1 - s(r+)); None = 1.

    Returns:
      [...], one value per target.
    """
    values = _weighted(positive, negatives, beta=1.0)
    return values if labels is None else values + (1 - labels) * positive


def gbce(positive: jax.Array, negatives: jax.Array, *, num_items: int, t: float) -> jax.Array:
    """Generalised BCE (gSASRec, Petrov & Macdonald 2023, eq. 9).

    -(beta log s(r+) + sum_j log(1 - s(r_j))) / (k + 1) with sampling rate alpha = k / (I - 1) and
    beta = alpha (t (1 - 1/alpha) + 1/alpha). In log space, log s(r+)^beta is beta * log_sigmoid:
    no float64 and no clipping needed.

    Args:
      positive: [...] scores of the targets.
      negatives: [..., k] scores of uniform negatives.
      num_items: I, size of the catalogue.
      t: calibration in [0, 1]; 0 is plain BCE over k + 1, 1 fully calibrated.

    Returns:
      [...], one value per target.
    """
    k = negatives.shape[-1]
    alpha = k / max(num_items - 1, 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    return _weighted(positive, negatives, beta) / (k + 1)


def bpr(positive: jax.Array, negatives: jax.Array) -> jax.Array:
    """Bayesian personalised ranking (Rendle et al. 2009): the mean of -log s(r+ - r_j) over j.

    Args:
      positive: [...] scores of the targets.
      negatives: [..., k] scores of the negatives.

    Returns:
      [...], one value per target.
    """
    wide = at_least_float32(positive)
    difference = positive.astype(wide)[..., None] - negatives.astype(wide)
    return jax.nn.softplus(-difference).mean(-1)


def taken_back(logits: jax.Array, most: float = 5.0) -> jax.Array:
    """-(log p - log(1 - p)) = -logit: of a positive that was learnt as a negative before.

    With that negative's -log(1 - p) it is the positive's -log p (Moment&Cross, L_slow). It has no
    end by itself: beyond the logit `most` there is no gradient (our choice).

    Args:
      logits: [...].
      most: see above.

    Returns:
      [...].
    """
    return -jnp.minimum(logits, most)


def fake_negative_weighted(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy where every row was told as a negative first (Ktena et al. 2019).

    -y (1 + p) log p - (1 - y) (1 - p) (1 + p) log(1 - p), p in the weights without gradient.

    Args:
      logits: [...].
      labels: [...], 0 or 1.

    Returns:
      [...].
    """
    p = jax.lax.stop_gradient(jax.nn.sigmoid(logits))
    positive, negative = jax.nn.softplus(-logits), jax.nn.softplus(logits)
    return (1 + p) * (labels * positive + (1 - labels) * (1 - p) * negative)


def _weighted(positive, negatives, beta):
    """-(beta log s(r+) + sum_j log(1 - s(r_j)))."""
    positive, negatives = (
        positive.astype(at_least_float32(positive)),
        negatives.astype(at_least_float32(negatives)),
    )
    return beta * jax.nn.softplus(-positive) + jax.nn.softplus(negatives).sum(-1)


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """sum(values * weights) / sum(weights), 0 when there is no weight."""
    # where, not only a product: padding may score inf or nan
    total = jnp.where(weights > 0, values * weights, 0).sum()
    return total / jnp.maximum(weights.sum(), 1e-9)


def at_least_float32(x: jax.Array):
    return jnp.promote_types(x.dtype, jnp.float32)
