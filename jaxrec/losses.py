"""Losses: pure functions of scores or vectors, one weight per target (0 = padding).

Every loss is a mean over targets weighted by `weights`. The exact softmax never holds
tokens x items logits: it walks the tokens in chunks and yields the gradients in the same pass.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.sharding import on_mesh

_CHUNK_LOGITS = 1 << 22  # logits held at once: 16 MiB in float32


def bce(positive: jax.Array, negatives: jax.Array, weights: jax.Array) -> jax.Array:
    """Binary cross-entropy with k negatives (SASRec, eq. 6): -log s(r+) - sum_j log(1 - s(r_j)).

    Args:
      positive: [...] scores of the targets.
      negatives: [..., k] scores of the negatives.
      weights: [...] weight per target.

    Returns:
      Scalar, the weighted mean over targets.
    """
    return gbce_sum(positive, negatives, weights, beta=1.0)


def gbce(
    positive: jax.Array, negatives: jax.Array, weights: jax.Array, *, num_items: int, t: float
) -> jax.Array:
    """Generalised BCE (gSASRec, Petrov & Macdonald 2023, eq. 9).

    -(beta log s(r+) + sum_j log(1 - s(r_j))) / (k + 1) with sampling rate alpha = k / (I - 1) and
    beta = alpha (t (1 - 1/alpha) + 1/alpha). In log space, log s(r+)^beta is beta * log_sigmoid:
    no float64 and no clipping needed.

    Args:
      positive: [...] scores of the targets.
      negatives: [..., k] scores of uniform negatives.
      weights: [...] weight per target.
      num_items: I, size of the catalogue.
      t: calibration in [0, 1]; 0 is plain BCE over k + 1, 1 fully calibrated.

    Returns:
      Scalar, the weighted mean over targets.
    """
    k = negatives.shape[-1]
    alpha = k / max(num_items - 1, 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    return gbce_sum(positive, negatives, weights, beta) / (k + 1)


def gbce_sum(positive, negatives, weights, beta):
    """Weighted mean of -(beta log s(r+) + sum_j log(1 - s(r_j)))."""
    positive, negatives = positive.astype(_wide(positive)), negatives.astype(_wide(negatives))
    per_target = beta * jax.nn.softplus(-positive) + jax.nn.softplus(negatives).sum(-1)
    return weighted_mean(per_target, weights)


def sampled_softmax(
    positive: jax.Array,
    negatives: jax.Array,
    weights: jax.Array,
    *,
    hits: jax.Array | None = None,
    log_q_positive: jax.Array | float = 0.0,
    log_q_negatives: jax.Array | float = 0.0,
) -> jax.Array:
    """Cross-entropy of the target against sampled negatives, with optional logQ correction.

    Args:
      positive: [...] scores of the targets.
      negatives: [..., k] scores of the negatives.
      weights: [...] weight per target.
      hits: bool [..., k], True where a negative is the target itself; it is left out.
      log_q_positive, log_q_negatives: log of the expected number of times that the sampler draws
        the item, subtracted from its score (Bengio & Senecal 2008; Yi et al. 2019, eq. 3),
        broadcast against the scores. With 0 for the target and log(k q) for the negatives the
        denominator is an unbiased estimate of the exact softmax's.

    Returns:
      Scalar, the weighted mean over targets.
    """
    positive = positive.astype(_wide(positive)) - log_q_positive
    negatives = negatives.astype(_wide(negatives)) - log_q_negatives
    if hits is not None:
        negatives = jnp.where(hits, -jnp.inf, negatives)
    rest = jax.nn.logsumexp(negatives, axis=-1)
    return weighted_mean(jnp.logaddexp(positive, rest) - positive, weights)


def softmax(
    queries: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    num_items: int,
    label_smoothing: float = 0.0,
    chunk: int = 0,
) -> jax.Array:
    """Exact softmax cross-entropy over the catalogue in memory that does not grow with tokens.

    -log softmax(h E^T)[target] over items 1..num_items; with label smoothing e the target
    distribution is (1 - e) onehot + e / num_items. Placement: queries, targets and weights are
    split over 'data', the table's rows over 'model'; only per-token scalars, d queries and (once)
    d table cross devices.

    Args:
      queries: [B, L, D] vectors h.
      table: [rows, D] item table; row 0 and rows above num_items are padding.
      targets: int32 [B, L] item numbers.
      weights: [B, L] weight per target.
      num_items: size of the catalogue.
      label_smoothing: e in [0, 1).
      chunk: tokens per chunk and device; 0 chooses about 4M logits.

    Returns:
      Scalar, the weighted mean over targets, in float32 (float64 for float64 queries).
    """
    total = _softmax_sum(queries, table, targets, weights, (num_items, label_smoothing, chunk))
    return total / jnp.maximum(weights.sum(), 1e-9)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _softmax_sum(queries, table, targets, weights, options):
    return _softmax_pass(queries, table, targets, weights, options, gradients=False)


def _softmax_sum_forward(queries, table, targets, weights, options):
    total, *gradients = _softmax_pass(queries, table, targets, weights, options, gradients=True)
    return total, gradients


def _softmax_sum_backward(options, residuals, g):
    d_queries, d_table = residuals
    return (d_queries * g).astype(d_queries.dtype), (d_table * g).astype(d_table.dtype), None, None


_softmax_sum.defvjp(_softmax_sum_forward, _softmax_sum_backward)


def _softmax_pass(queries, table, targets, weights, options, gradients):
    """Summed loss, and with `gradients` its derivatives by queries and table."""
    if not on_mesh():
        local = functools.partial(_softmax_local, options=options, gradients=gradients)
        return local(queries, table, targets, weights)
    outputs = (P(), P('data'), P('model')) if gradients else P()
    return jax.shard_map(
        functools.partial(
            _softmax_local, options=options, gradients=gradients, axes=('data', 'model')
        ),
        in_specs=(P('data'), P('model'), P('data'), P('data')),
        out_specs=outputs,
        check_vma=False,  # the collectives below are written out; nothing is differentiated here
    )(queries, table, targets, weights)


def _softmax_local(queries, table, targets, weights, options, gradients, axes=None):
    """This device's tokens against this device's rows of the table, chunk by chunk."""
    num_items, smoothing, chunk = options
    (rows, dim), tokens = table.shape, targets.size
    wide = _wide(queries)
    add_model = (lambda x: jax.lax.psum(x, axes[1])) if axes else (lambda x: x)
    max_model = (lambda x: jax.lax.pmax(x, axes[1])) if axes else (lambda x: x)
    first_row = jax.lax.axis_index(axes[1]) * rows if axes else 0

    row_number = first_row + jnp.arange(rows)
    is_item = (row_number >= 1) & (row_number <= num_items)
    bias = jnp.where(is_item, 0.0, -jnp.inf).astype(wide)
    smooth_row = (is_item.astype(wide) @ table.astype(wide)) / num_items  # mean item vector
    smooth_row = add_model(smooth_row)

    def rows_of(ids):  # rows of the table that live here; zeros for the others
        here = (ids >= first_row) & (ids < first_row + rows)
        local = jnp.where(here, ids - first_row, 0)
        return local, jnp.where(here[:, None], table[local], 0).astype(wide), here

    chunk = min(chunk or max(_CHUNK_LOGITS // rows, 1), tokens)
    steps = math.ceil(tokens / chunk)
    chunk = math.ceil(tokens / steps)
    missing = steps * chunk - tokens

    def chunked(x):
        x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(steps, chunk, *x.shape[1:])

    xs = chunked(queries.reshape(tokens, dim))
    ts, ws = chunked(targets.reshape(tokens)), chunked(weights.reshape(tokens).astype(wide))

    def one(carry, inputs):
        total, d_table = carry
        x, target, weight = inputs
        logits = jnp.einsum('td,vd->tv', x, table, preferred_element_type=wide) + bias
        peak = max_model(logits.max(-1))
        e = jnp.exp(logits - peak[:, None])
        partition = add_model(e.sum(-1))
        local, target_row, here = rows_of(target)
        goal = (1 - smoothing) * add_model(target_row) + smoothing * smooth_row
        goal_logit = (x.astype(wide) * goal).sum(-1)
        total = total + (weight * (peak + jnp.log(partition) - goal_logit)).sum()
        if not gradients:
            return (total, d_table), None
        # p = e / partition; the target's part of the gradient is a gather and a scatter of rows.
        scale = weight / partition
        low = e.astype(x.dtype)
        d_x = jnp.einsum('tv,vd->td', low, table, preferred_element_type=wide)
        d_x = add_model(d_x * scale[:, None]) - weight[:, None] * goal
        scaled = x.astype(wide) * scale[:, None]
        d_table = d_table + jnp.einsum(
            'tv,td->vd', low, scaled.astype(x.dtype), preferred_element_type=wide
        )
        weighted = x.astype(wide) * (weight * (1 - smoothing))[:, None]
        d_table = d_table.at[local].add(jnp.where(here[:, None], -weighted, 0))
        if smoothing:
            mean = (x.astype(wide) * weight[:, None]).sum(0) * (smoothing / num_items)
            d_table = d_table - jnp.where(is_item[:, None], mean, 0)
        return (total, d_table), d_x

    zero = jnp.zeros((rows, dim) if gradients else (), wide)
    (total, d_table), d_x = jax.lax.scan(one, (jnp.zeros((), wide), zero), (xs, ts, ws))
    if axes:
        total = jax.lax.psum(total, axes[0])
    if not gradients:
        return total
    if axes:
        d_table = jax.lax.psum(d_table, axes[0])
    d_x = d_x.reshape(steps * chunk, dim)[:tokens].reshape(queries.shape)
    return total, d_x.astype(queries.dtype), d_table.astype(table.dtype)


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """sum(values * weights) / sum(weights), 0 when there is no weight."""
    # where, not only a product: padding may score inf or nan
    total = jnp.where(weights > 0, values * weights, 0).sum()
    return total / jnp.maximum(weights.sum(), 1e-9)


def _wide(x: jax.Array):
    return jnp.promote_types(x.dtype, jnp.float32)
