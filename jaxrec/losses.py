"""Losses: pure functions of scores or vectors, one weight per target (0 = padding).

Every loss is a mean over targets weighted by `weights`. The exact softmax never holds
tokens x items logits: it walks the tokens in chunks and yields the gradients in the same pass.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.sharding import lookup, on_mesh

_CHUNK_LOGITS = 1 << 22  # logits held at once: 16 MiB in float32
_SAFE_LOGIT = 40.0  # e^40 times any number of items is far from overflow


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
    if hits is not None:  # finite: a row may have no negative left
        negatives = jnp.where(hits, jnp.finfo(negatives.dtype).min / 2, negatives)
    rest = jax.nn.logsumexp(negatives, axis=-1)
    return weighted_mean(jnp.logaddexp(positive, rest) - positive, weights)


def info_nce(
    first: jax.Array,
    second: jax.Array,
    weights: jax.Array,
    *,
    temperature: float = 1.0,
    cosine: bool = False,
    hidden: jax.Array | None = None,
) -> jax.Array:
    """InfoNCE of N pairs of views (NT-Xent, SimCLR; CL4SRec, eq. 3).

    Each of the 2N vectors against its partner, with the 2(N - 1) vectors of the other pairs as
    negatives: -log e^s(i, i') / (e^s(i, i') + sum_j e^s(i, j)), s a dot product or cosine over the
    temperature. On a mesh the vectors are the same on every device, and so is the result; the N x N
    scores are split over 'data'.

    Args:
      first, second: [N, D] vectors of both views.
      weights: [N] weight per pair; one of 0 takes no part, as a negative neither.
      temperature: above 0.
      cosine: divide vectors by their lengths.
      hidden: bool [N, N], True where pair m is no negative of pair n.

    Returns:
      Scalar, the weighted mean over pairs and directions.
    """
    both = jnp.stack([first, second])
    both = unit(both) if cosine else both
    rows = jax.reshard(both, P(None, 'data', None)) if on_mesh() else both
    scores = jnp.einsum('and,bmd->anbm', rows, both, preferred_element_type=_wide(both))
    out = jnp.eye(len(weights), dtype=bool) | (weights == 0)
    out = out if hidden is None else out | hidden
    positive = jnp.broadcast_to((rows[0] * rows[1]).sum(-1), (2, len(weights)))
    scores, out = jnp.concatenate([scores[:, :, 0], scores[:, :, 1]], -1), jnp.tile(out, (1, 2))
    return sampled_softmax(
        positive / temperature, scores / temperature, jnp.stack([weights, weights]), hits=out
    )


def info_nce_queue(
    queries: jax.Array,
    keys: jax.Array,
    queue: jax.Array,
    weights: jax.Array,
    *,
    temperature: float = 1.0,
    cosine: bool = False,
    hidden: jax.Array | None = None,
) -> jax.Array:
    """InfoNCE with a queue of negatives (MoCo, He et al. 2020, eq. 1).

    -log e^s(q, k) / (e^s(q, k) + sum_j e^s(q, queue_j)).

    Args:
      queries, keys: [N, D] vectors of both views.
      queue: [Q / b, b, D] negatives, b split over 'data'.
      weights: [N] weight per pair.
      temperature, cosine: see `info_nce`.
      hidden: bool [N, Q], True where a vector of the queue is no negative.

    Returns:
      Scalar, the weighted mean over pairs.
    """
    if cosine:
        queries, keys, queue = unit(queries), unit(keys), unit(queue)
    scores = jnp.einsum('nd,cbd->ncb', queries, queue, preferred_element_type=_wide(queries))
    scores = scores / temperature
    if hidden is not None:
        hidden = hidden.reshape(scores.shape)
        hidden = jax.reshard(hidden, P(None, None, 'data')) if on_mesh() else hidden
        scores = jnp.where(hidden, jnp.finfo(scores.dtype).min / 2, scores)
    positive = (queries * keys).sum(-1).astype(scores.dtype) / temperature
    rest = jax.nn.logsumexp(scores, axis=(1, 2))
    return weighted_mean(jnp.logaddexp(positive, rest) - positive, weights)


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., D] divided by their lengths; the gradient of a zero vector is finite."""
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12))


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
    d table cross devices. Gradients reach queries and table, not the weights.

    Args:
      queries: [B, L, D] vectors h.
      table: [rows, D] item table; row 0 and rows above num_items are padding.
      targets: int32 [B, L] item numbers.
      weights: [B, L] weight per target.
      num_items: size of the catalogue.
      label_smoothing: e in [0, 1).
      chunk: tokens per chunk and device; 0 chooses about 4M logits, or as many as the table has
        numbers where that is more.

    Returns:
      Scalar, the weighted mean over targets, in float32 (float64 for float64 queries).
    """
    wide = _wide(queries)
    weights = jax.lax.stop_gradient(weights.astype(wide))
    wanted = (1 - label_smoothing) * lookup(table, targets).astype(wide)
    if label_smoothing:
        is_item = _is_item(jnp.arange(table.shape[0]), num_items)
        mean = jnp.where(is_item[:, None], table.astype(wide), 0).sum(0) / num_items
        wanted = wanted + label_smoothing * mean
    total = _log_partition_sum(queries, table, weights, num_items, chunk)
    total = total - (weights * (queries.astype(wide) * wanted).sum(-1)).sum()
    return total / jnp.maximum(weights.sum(), 1e-9)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _log_partition_sum(queries, table, weights, num_items, chunk):
    """sum_t weights[t] log sum_i exp(queries[t] . table[i]) over the items i."""
    return _log_partition(queries, table, weights, num_items, chunk, gradients=False)


def _log_partition_forward(queries, table, weights, num_items, chunk):
    total, *gradients = _log_partition(queries, table, weights, num_items, chunk, gradients=True)
    return total, gradients


def _log_partition_backward(num_items, chunk, residuals, g):
    d_queries, d_table = residuals
    return (d_queries * g).astype(d_queries.dtype), (d_table * g).astype(d_table.dtype), None


_log_partition_sum.defvjp(_log_partition_forward, _log_partition_backward)


def _log_partition(queries, table, weights, num_items, chunk, gradients):
    """The sum, and with `gradients` its derivatives by queries and table from the same pass."""
    local = functools.partial(
        _local_log_partition, num_items=num_items, chunk=chunk, gradients=gradients
    )
    if not on_mesh():
        return local(queries, table, weights)
    return jax.shard_map(
        functools.partial(local, axes=('data', 'model')),
        in_specs=(P('data'), P('model'), P('data')),
        out_specs=(P(), P('data'), P('model')) if gradients else P(),
        check_vma=False,  # the collectives below are written out; nothing is differentiated here
    )(queries, table, weights)


def _local_log_partition(queries, table, weights, *, num_items, chunk, gradients, axes=None):
    """This device's tokens against this device's rows of the table, chunk by chunk."""
    (rows, dim), tokens, wide = table.shape, weights.size, _wide(queries)

    def across(reduce, axis):  # over the devices of an axis, nothing to do for a single one
        alone = axes is None or jax.lax.axis_size(axis) == 1
        return (lambda x: x) if alone else functools.partial(reduce, axis_name=axis)

    sum_data, sum_model = across(jax.lax.psum, 'data'), across(jax.lax.psum, 'model')
    max_model = across(jax.lax.pmax, 'model')
    first_row = jax.lax.axis_index('model') * rows if axes else 0
    is_item = _is_item(first_row + jnp.arange(rows), num_items)
    bias = jnp.where(is_item, 0, -jnp.inf).astype(wide)

    # |x . row| <= |x| |row|: as long as that cannot overflow exp, no pass looks for the largest
    bound = _longest(queries, wide) * max_model(_longest(table, wide))

    def peaks(logits):
        return jax.lax.cond(
            bound < _SAFE_LOGIT,
            lambda logits: jnp.zeros(logits.shape[0], wide),
            lambda logits: (logits + bias).max(-1),
            logits,
        )

    chunk = min(chunk or max(_CHUNK_LOGITS // rows, dim), tokens)
    steps = math.ceil(tokens / chunk)
    chunk = math.ceil(tokens / steps)
    missing = steps * chunk - tokens
    xs = jnp.pad(queries.reshape(tokens, dim), [(0, missing), (0, 0)]).reshape(steps, chunk, dim)
    ws = jnp.pad(weights.reshape(tokens), (0, missing)).reshape(steps, chunk)

    def one(carry, inputs):
        total, d_table = carry
        x, weight = inputs
        logits = jnp.einsum('td,vd->tv', x, table, preferred_element_type=wide)
        peak = max_model(peaks(logits))
        e = jnp.exp(logits + bias - peak[:, None])
        partition = sum_model(e.sum(-1))
        total = total + (weight * (peak + jnp.log(partition))).sum()
        if not gradients:
            return (total, d_table), None
        scale = (weight / partition)[:, None]
        e = e.astype(x.dtype)
        d_x = jnp.einsum('tv,vd->td', e, table, preferred_element_type=wide)
        # transposed, so that nothing has to turn the large factor round
        scaled = (x.astype(wide) * scale).astype(x.dtype)
        d_table += jnp.einsum('td,tv->dv', scaled, e, preferred_element_type=wide)
        return (total, d_table), sum_model(d_x) * scale

    zero = jnp.zeros((dim, rows) if gradients else (), wide)
    (total, d_table), d_x = jax.lax.scan(one, (jnp.zeros((), wide), zero), (xs, ws))
    total = sum_data(total)
    if not gradients:
        return total
    d_x = d_x.reshape(steps * chunk, dim)[:tokens].reshape(queries.shape)
    return total, d_x.astype(queries.dtype), sum_data(d_table).T.astype(table.dtype)


def _is_item(row, num_items):
    """Whether a row of the table is an item and not padding."""
    return (row >= 1) & (row <= num_items)


def _longest(vectors, wide):
    """Largest length of vectors [..., D]."""
    return jnp.sqrt((vectors.astype(wide) ** 2).sum(-1).max())


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """sum(values * weights) / sum(weights), 0 when there is no weight."""
    # where, not only a product: padding may score inf or nan
    total = jnp.where(weights > 0, values * weights, 0).sum()
    return total / jnp.maximum(weights.sum(), 1e-9)


def _wide(x: jax.Array):
    return jnp.promote_types(x.dtype, jnp.float32)
