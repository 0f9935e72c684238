"""Softmax over the targets of a batch (and uniform draws), corrected for how they were drawn.

The candidates are the items that the rows of the whole batch, over all devices, have as targets:
popular items come often, so log of the expected number of draws, logQ, is taken from each score
(Yi et al. 2019). How often an item comes is counted by the data pipeline, or estimated on the way
by `estimate`.
"""

import jax
import jax.numpy as jnp

from jaxrec.losses import weighted_mean


def scores(queries: jax.Array, rows: jax.Array) -> jax.Array:
    """Largest dot product of each user's vectors with each item: [B, N].

    The gradient reaches the vector that wins alone (KuaiFormer, section 3.4).

    Args:
      queries: [B, K, D].
      rows: [N, D].
    """
    return jnp.einsum('bkd,nd->bkn', queries, rows, preferred_element_type=jnp.float32).max(1)


def in_batch_softmax(
    positive: jax.Array,
    negatives: jax.Array,
    weights: jax.Array,
    allowed: jax.Array,
    *,
    log_q_positive: jax.Array | float = 0.0,
    log_q_negatives: jax.Array | float = 0.0,
    smoothing: float = 0.0,
    refined: bool = False,
) -> jax.Array:
    """Cross-entropy of each row's target against the candidates allowed for it.

    With corrected scores s' = s - logQ and p their softmax over target and allowed candidates:

      (1 - a) (-log p_target) + (a / N) sum_j -log(1 - p_j)

    The second term is KuaiFormer's smoothing (arXiv 2411.10057, section 3.4): unlike label
    smoothing it pushes negatives down only. `refined` is arXiv 2507.09331: the target, which is
    always among the candidates, is not corrected, and each row's loss is multiplied by
    1 - p_target, through which no gradient flows.

    Args:
      positive: [B] scores of the targets.
      negatives: [B, N] scores of the candidates.
      weights: [B] weight per row.
      allowed: bool [B, N]; False leaves a candidate out: the target itself, an item of the user's
        history, padding.
      log_q_positive: [B], log_q_negatives: [N]; log of the expected number of draws.
      smoothing: a in [0, 1).
      refined: see above.

    Returns:
      Scalar, the weighted mean over rows, float32.
    """
    if not refined:
        positive = positive - log_q_positive
    negatives = jnp.where(allowed, negatives - log_q_negatives, -jnp.inf)
    log_z = jnp.logaddexp(positive, jax.nn.logsumexp(negatives, axis=-1))
    loss = log_z - positive
    if smoothing:
        p = jnp.exp(
            jnp.minimum(negatives - log_z[:, None], -1e-6)
        )  # below 1, so that log is finite
        push = -jnp.where(allowed, jnp.log1p(-p), 0).sum(-1)
        loss = (1 - smoothing) * loss + smoothing / negatives.shape[1] * push
    if refined:
        loss = loss * jax.lax.stop_gradient(-jnp.expm1(positive - log_z))
    return weighted_mean(loss, weights)


def allowed(
    candidates: jax.Array, targets: jax.Array, history: jax.Array, *, own_history: bool
) -> jax.Array:
    """bool [B, N], the candidates that count as negatives of each row.

    Never padding (0) or the row's target, so that an item drawn twice is no negative of itself;
    and with `own_history` False no item of the row's history either.

    Args:
      candidates: int32 [N] item numbers.
      targets: int32 [B].
      history: int32 [B, L] items, 0 = padding.
      own_history: whether items of the history count.
    """
    keep = (candidates > 0) & (candidates != targets[:, None])
    if own_history:
        return keep
    ordered = jnp.sort(history, axis=1)
    place = jax.vmap(lambda row: jnp.searchsorted(row, candidates))(ordered)
    place = jnp.minimum(place, history.shape[1] - 1)
    return keep & (jnp.take_along_axis(ordered, place, axis=1) != candidates)


def start_estimate(num_items: int, gap: float = 100.0) -> dict[str, jax.Array]:
    """State of `estimate`: every item last seen at step 0, and about every `gap` steps."""
    return {
        'last': jnp.zeros(num_items + 1, jnp.int32),
        'gap': jnp.full(num_items + 1, gap, jnp.float32),
    }


def estimate(
    state: dict[str, jax.Array], items: jax.Array, step: jax.Array, rate: float
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Streaming frequency estimation (Yi et al. 2019, Algorithm 2), a counter per item.

    gap <- (1 - rate) gap + rate (step - last), last <- step, for every item of the batch, once.

    Args:
      state: of `start_estimate`.
      items: int32 [N] items of this batch, repeats allowed, 0 = none.
      step: int32, number of this step, from 1.
      rate: a in (0, 1).

    Returns:
      The new state, and float32 [N] log Q = -log gap: the log of the share of batches that hold
      the item.
    """
    last, gap = state['last'], state['gap']
    new = (1 - rate) * gap[items] + rate * (step - last[items])  # the same for repeats
    state = {'last': last.at[items].set(step), 'gap': gap.at[items].set(new)}
    return state, -jnp.log(jnp.maximum(new, 1e-6))
