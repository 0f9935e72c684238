"""Softmax cross-entropy against sampled candidates, corrected for how they were drawn."""

import jax
import jax.numpy as jnp

from jaxrec.devices.mesh import reshape_rows
from jaxrec.losses.pointwise import at_least_float32


def scores(queries: jax.Array, rows: jax.Array, softness: float = 0.0) -> jax.Array:
    """`united` dot products of each user's vectors with each item: [B, N].

    Args:
      queries: [B, K, D].
      rows: [N, D].
      softness: see `united`.
    """
    (users, vectors, dim), wide = queries.shape, jnp.float32
    if vectors == 1:
        each = jnp.einsum('bkd,nd->bkn', queries, rows, preferred_element_type=wide)
        return united(each, softness)
    # as one matrix: the gradient of the rows takes half the time on a CPU
    flat = reshape_rows(queries, (users * vectors, dim))
    each = jnp.einsum('bd,nd->bn', flat, rows, preferred_element_type=wide)
    return united(reshape_rows(each, (users, vectors, len(rows))), softness)


def united(each: jax.Array, softness: float = 0.0) -> jax.Array:
    """One score of the scores by each of a user's vectors, [B, K, ..] -> [B, ..].

    The largest: the gradient reaches the vector that wins alone (KuaiFormer, section 3.4). With a
    softness t > 0 it is t log mean exp(score / t), from which every vector learns; at 0 the same.
    """
    if not softness:
        return each.max(1)
    return softness * (jax.nn.logsumexp(each / softness, axis=1) - jnp.log(each.shape[1]))


def in_batch_softmax(
    positive: jax.Array,
    negatives: jax.Array,
    allowed: jax.Array,
    *,
    log_q_positive: jax.Array | float = 0.0,
    log_q_negatives: jax.Array | float = 0.0,
    smoothing: float = 0.0,
    refined: bool = False,
    hardness: float = 0.0,
) -> jax.Array:
    """Cross-entropy of each row's target against the candidates allowed for it.

    With corrected scores s' = s - logQ and p their softmax over target and allowed candidates:

      (1 - a) (-log p_target) + (a / N) sum_j -log(1 - p_j)

    The second term is KuaiFormer's smoothing (arXiv 2411.10057, section 3.4): unlike label
    smoothing it pushes negatives down only. N is the number of candidates, padding included.
    `refined` is arXiv 2507.09331: the target, which is always among the candidates, is not
    corrected, and each row's loss is multiplied by 1 - p_target, through which no gradient flows.

    With a hardness b > 0 candidate j weighs w_j = exp(b s_j) / mean exp(b s), the mean weighted by
    1/Q: negatives that a user's vectors score high count more (REMI's interest-aware hard
    negatives, RecSys 2023, after Robinson et al., ICLR 2021). Not with smoothing.

    Args:
      positive: [B] scores of the targets.
      negatives: [B, N] scores of the candidates.
      allowed: bool [B, N]; False leaves a candidate out: the target itself, an item of the user's
        history, padding.
      log_q_positive: [B], log_q_negatives: [N]; log of the expected number of draws.
      smoothing: a in [0, 1).
      refined: see above.

    Returns:
      [B], one value per row, float32.
    """
    if not refined:
        positive = positive - log_q_positive
    none = jnp.finfo(negatives.dtype).min / 2  # finite: a row may have no negative
    corrected = jnp.where(allowed, negatives - log_q_negatives, none)

    def total(times):
        return jax.nn.logsumexp(corrected + times * negatives if times else corrected, axis=-1)

    rest = total(hardness)
    if hardness:
        rest = rest - total(hardness - 1) + total(-1)
    log_z = jnp.logaddexp(positive, rest)
    loss = log_z - positive
    if smoothing:
        p = jnp.exp(jnp.minimum(corrected - log_z[:, None], -1e-6))  # below 1: its log is finite
        push = -jnp.where(allowed, jnp.log1p(-p), 0).sum(-1)
        loss = (1 - smoothing) * loss + smoothing / negatives.shape[1] * push
    if refined:
        loss = loss * jax.lax.stop_gradient(-jnp.expm1(positive - log_z))
    return loss


def sampled_softmax(
    positive: jax.Array,
    negatives: jax.Array,
    *,
    hits: jax.Array | None = None,
    log_q_positive: jax.Array | float = 0.0,
    log_q_negatives: jax.Array | float = 0.0,
) -> jax.Array:
    """Cross-entropy of the target against sampled negatives, with optional logQ correction.

    Args:
      positive: [...] scores of the targets.
      negatives: [..., k] scores of the negatives.
      hits: bool [..., k], True where a negative is the target itself; it is left out.
      log_q_positive, log_q_negatives: log of the expected number of times that the sampler draws
        the item, subtracted from its score (Bengio & Senecal 2008; Yi et al. 2019, eq. 3),
        broadcast against the scores. With 0 for the target and log(k q) for the negatives the
        denominator is an unbiased estimate of the exact softmax's.

    Returns:
      [...], one value per target.
    """
    positive = positive.astype(at_least_float32(positive)) - log_q_positive
    negatives = negatives.astype(at_least_float32(negatives)) - log_q_negatives
    if hits is not None:  # finite: a row may have no negative left
        negatives = jnp.where(hits, jnp.finfo(negatives.dtype).min / 2, negatives)
    rest = jax.nn.logsumexp(negatives, axis=-1)
    return jnp.logaddexp(positive, rest) - positive
