"""Losses: pure functions of scores or vectors, one weight per target (0 = padding).

Every loss is a mean over targets weighted by `weights`. The exact softmax never holds
tokens x items logits: it walks the tokens in chunks and yields the gradients in the same pass.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.devices.mesh import lookup, on_mesh
from jaxrec.devices.tuning import tuning
from jaxrec.losses.pointwise import at_least_float32

_FAR = -1e4  # on logits of the other domain: exp gives 0
_SAFE_LOGIT = 40.0  # e^40 times any number of items is far from overflow


def softmax(
    queries: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    num_items: int,
    label_smoothing: float = 0.0,
    chunk: int = 0,
    lowering: int = 0,
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
      chunk: tokens per chunk and device; 0 chooses by the device (`tuning`), or as many as the
        table has numbers where that is more.
      lowering: last columns whose products only ever make a logit less, as `in_domain` has them.

    Returns:
      Scalar, the weighted mean over targets, in float32 (float64 for float64 queries).
    """
    wide = at_least_float32(queries)
    weights = jax.lax.stop_gradient(weights.astype(wide))
    wanted = (1 - label_smoothing) * lookup(table, targets).astype(wide)
    if label_smoothing:
        is_item = _is_item(jnp.arange(table.shape[0]), num_items)
        mean = jnp.where(is_item[:, None], table.astype(wide), 0).sum(0) / num_items
        wanted = wanted + label_smoothing * mean
    total = _log_partition_sum(queries, table, weights, num_items, chunk, lowering)
    total = total - (weights * (queries.astype(wide) * wanted).sum(-1)).sum()
    return total / jnp.maximum(weights.sum(), 1e-9)


def in_domain(
    queries: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    domain: jax.Array,
    of_rows: jax.Array,
    num_items: int,
) -> jax.Array:
    """`softmax` among the items of the target's domain, of two.

    Args:
      queries, table, targets, weights, num_items: see `softmax`.
      domain: int32 [B, L], 1 or 2, of the targets.
      of_rows: int32 [rows, 1], of the table's rows, placed like these; 0 = candidates of both.

    Returns:
      Scalar, see `softmax`.
    """
    far = [_FAR * (domain == n)[..., None].astype(queries.dtype) for n in (2, 1)]
    marks = [(of_rows == n).astype(table.dtype) for n in (1, 2)]
    queries, table = (jnp.concatenate(x, axis=-1) for x in ([queries, *far], [table, *marks]))
    return softmax(queries, table, targets, weights, num_items=num_items, lowering=len(marks))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _log_partition_sum(queries, table, weights, num_items, chunk, lowering):
    """sum_t weights[t] log sum_i exp(queries[t] . table[i]) over the items i."""
    settings = num_items, chunk, lowering
    return _log_partition(queries, table, weights, *settings, gradients=False)


def _log_partition_forward(queries, table, weights, *settings):
    total, *gradients = _log_partition(queries, table, weights, *settings, gradients=True)
    return total, gradients


def _log_partition_backward(num_items, chunk, lowering, residuals, g):
    d_queries, d_table = residuals
    return (d_queries * g).astype(d_queries.dtype), (d_table * g).astype(d_table.dtype), None


_log_partition_sum.defvjp(_log_partition_forward, _log_partition_backward)


def _log_partition(queries, table, weights, num_items, chunk, lowering, gradients):
    """The sum, and with `gradients` its derivatives by queries and table from the same pass."""
    local = functools.partial(
        _local_log_partition,
        num_items=num_items,
        chunk=chunk,
        lowering=lowering,
        gradients=gradients,
    )
    if not on_mesh():
        return local(queries, table, weights)
    return jax.shard_map(
        functools.partial(local, axes=('data', 'model')),
        in_specs=(P('data'), P('model'), P('data')),
        out_specs=(P(), P('data'), P('model')) if gradients else P(),
        check_vma=False,  # the collectives below are written out; nothing is differentiated here
    )(queries, table, weights)


def _local_log_partition(
    queries, table, weights, *, num_items, chunk, lowering, gradients, axes=None
):
    """This device's tokens against this device's rows of the table, chunk by chunk."""
    (rows, dim), tokens, wide = table.shape, weights.size, at_least_float32(queries)

    def across(reduce, axis):  # over the devices of an axis, nothing to do for a single one
        alone = axes is None or jax.lax.axis_size(axis) == 1
        return (lambda x: x) if alone else functools.partial(reduce, axis_name=axis)

    sum_data, sum_model = across(jax.lax.psum, 'data'), across(jax.lax.psum, 'model')
    max_model = across(jax.lax.pmax, 'model')
    first_row = jax.lax.axis_index('model') * rows if axes else 0
    is_item = _is_item(first_row + jnp.arange(rows), num_items)
    bias = jnp.where(is_item, 0, -jnp.inf).astype(wide)

    # |x . row| <= |x| |row|: as long as that cannot overflow exp, no pass looks for the largest
    raising = dim - lowering
    bound = _longest(queries[..., :raising], wide)
    bound = bound * max_model(_longest(table[:, :raising], wide))

    def peaks(logits):
        return jax.lax.cond(
            bound < _SAFE_LOGIT,
            lambda logits: jnp.zeros(logits.shape[0], wide),
            lambda logits: (logits + bias).max(-1),
            logits,
        )

    chunk = min(chunk or max(tuning().logits // rows, dim), tokens)
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
