"""Losses: pure functions of scores or vectors, one weight per target (0 = padding).

Every loss is a mean over targets weighted by `weights`. The exact softmax never holds
tokens x items logits: it walks the tokens in chunks and yields the gradients in the same pass.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.devices.mesh import TABLE, lookup, on_mesh, placed, table_rows
from jaxrec.devices.tuning import tuning
from jaxrec.losses.pointwise import at_least_float32

_ANY = -1  # bits of all sets
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

    Returns:
      Scalar, the weighted mean over targets, in float32 (float64 for float64 queries).
    """
    wide = at_least_float32(queries)
    weights = jax.lax.stop_gradient(weights.astype(wide))
    wanted = (1 - label_smoothing) * lookup(table, targets).astype(wide)
    row = jnp.arange(table.shape[0])
    is_item = (row >= 1) & (row <= num_items)
    if label_smoothing:
        mean = jnp.where(is_item[:, None], table.astype(wide), 0).sum(0) / num_items
        wanted = wanted + label_smoothing * mean
    among = placed(is_item, P(TABLE[0]))
    total = log_partition_sum(queries, table, weights, among, None, chunk, False)
    total = total - (weights * (queries.astype(wide) * wanted).sum(-1)).sum()
    return total / jnp.maximum(weights.sum(), 1e-9)


def in_domain(
    queries: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    domain: jax.Array,
    of_domain: Sequence[jax.Array],
    chunk: int = 0,
) -> jax.Array:
    """`softmax` among the candidates of the target's domain; other domains' are not looked at.

    Args:
      queries, table, targets, weights: see `softmax`.
      domain: int32 [B, L], of the targets, from 1.
      of_domain: of each domain int32 [candidates], their rows of the table.
      chunk: see `softmax`.

    Returns:
      Scalar, see `softmax`.
    """
    wide = at_least_float32(queries)
    weights = jax.lax.stop_gradient(weights.astype(wide))
    total = -(weights * (queries.astype(wide) * lookup(table, targets).astype(wide)).sum(-1)).sum()
    if on_mesh() and jax.sharding.get_abstract_mesh().shape['model'] > 1:
        # rows stay where they are, and every device looks at all that it has
        marks = jnp.zeros(len(table), jnp.int32)
        for n, rows in enumerate(of_domain):
            marks = marks.at[rows].add(1 << n)
        wanted = jnp.where(domain > 0, 1 << (domain - 1), _ANY)
        args = queries, table, weights, placed(marks, P(TABLE[0])), wanted
        total = total + log_partition_sum(*args, chunk, False)
        return total / jnp.maximum(weights.sum(), 1e-9)
    for n, rows in enumerate(of_domain, 1):
        rows = placed(jnp.pad(rows, (0, table_rows(len(rows)) - len(rows))), P(TABLE[0]))
        args = queries, lookup(table, rows), weights * (domain == n), rows > 0, None
        total = total + log_partition_sum(*args, chunk, True)
    return total / jnp.maximum(weights.sum(), 1e-9)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def log_partition_sum(queries, table, weights, among, wanted, chunk, sparse):
    """sum_t weights[t] log sum_i exp(queries[t] . table[i]) over the rows i in `among`.

    `among` [rows] is bool, or the bits of the sets a row is in, where `wanted` has each token's
    set. With `sparse`, for tables that no mesh splits, tokens without weight cost nothing.
    """
    return _log_partition(queries, table, weights, among, wanted, chunk, sparse, gradients=False)


def _log_partition_forward(*args):
    total, *gradients = _log_partition(*args, gradients=True)
    return total, gradients


def _log_partition_backward(chunk, sparse, residuals, g):
    by_queries, by_table = ((d * g).astype(d.dtype) for d in residuals)
    return by_queries, by_table, None, None, None


log_partition_sum.defvjp(_log_partition_forward, _log_partition_backward)


def _log_partition(queries, table, weights, among, wanted, chunk, sparse, gradients):
    """The sum, and with `gradients` its derivatives by queries and table from the same pass."""
    local = functools.partial(
        _local_log_partition,
        chunk=chunk,
        sparse=sparse,
        gradients=gradients,
    )
    if not on_mesh():
        return local(queries, table, weights, among, wanted)
    return jax.shard_map(
        functools.partial(local, axes=('data', 'model')),
        in_specs=(P('data'), P('model'), P('data'), P('model'), P('data')),
        out_specs=(P(), P('data'), P('model')) if gradients else P(),
        check_vma=False,  # the collectives below are written out; nothing is differentiated here
    )(queries, table, weights, among, wanted)


def _local_log_partition(
    queries, table, weights, among, wanted, *, chunk, sparse, gradients, axes=None
):
    """This device's tokens against this device's rows of the table, chunk by chunk."""
    (rows, dim), tokens, wide = table.shape, weights.size, at_least_float32(queries)

    def across(reduce, axis):  # over the devices of an axis, nothing to do for a single one
        alone = axes is None or jax.lax.axis_size(axis) == 1
        return (lambda x: x) if alone else functools.partial(reduce, axis_name=axis)

    sum_data, sum_model = across(jax.lax.psum, 'data'), across(jax.lax.psum, 'model')
    max_model = across(jax.lax.pmax, 'model')
    bias = jnp.where(among, 0, -jnp.inf).astype(wide)

    def masked(logits, sets):
        if sets is None:
            return logits + bias
        return jnp.where(among & sets[:, None], logits, -jnp.inf)

    # |x . row| <= |x| |row|: as long as that cannot overflow exp, no pass looks for the largest
    bound = _longest(queries, wide) * max_model(_longest(table, wide))

    def peaks(logits, sets):
        return jax.lax.cond(
            bound < _SAFE_LOGIT,
            lambda logits, _: jnp.zeros(logits.shape[0], wide),
            lambda logits, sets: masked(logits, sets).max(-1),
            logits,
            sets,
        )

    chunk = min(chunk or max(tuning().logits // rows, dim), tokens)
    steps = max(math.ceil(tokens / chunk), 8 if sparse else 1)  # the last busy one is half empty
    chunk = math.ceil(tokens / steps)
    missing = steps * chunk - tokens
    xs, ws = queries.reshape(tokens, dim), weights.reshape(tokens)
    if sparse:  # tokens without weight to the end
        order = jnp.argsort(ws == 0, stable=True)
        xs, ws = xs[order], ws[order]
    xs = jnp.pad(xs, [(0, missing), (0, 0)]).reshape(steps, chunk, dim)
    ws, sets = jnp.pad(ws, (0, missing)).reshape(steps, chunk), None
    if wanted is not None:
        sets = jnp.pad(wanted.reshape(tokens), (0, missing), constant_values=_ANY)
        sets = sets.reshape(steps, chunk)

    def one(carry, inputs):
        total, d_table = carry
        x, weight, sets = inputs
        logits = jnp.einsum('td,vd->tv', x, table, preferred_element_type=wide)
        peak = max_model(peaks(logits, sets))
        e = jnp.exp(masked(logits, sets) - peak[:, None])
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
    carry = jnp.zeros((), wide), zero
    if sparse:
        busy = (ws != 0).any(-1).sum()  # of this device: the table is whole, nobody waits
        (total, d_table), d_x = _first(one, carry, (xs, ws, sets), busy)
    else:
        (total, d_table), d_x = jax.lax.scan(one, carry, (xs, ws, sets))
    total = sum_data(total)
    if not gradients:
        return total
    d_x = d_x.reshape(steps * chunk, dim)[:tokens]
    d_x = (d_x[jnp.argsort(order)] if sparse else d_x).reshape(queries.shape)
    return total, d_x.astype(queries.dtype), sum_data(d_table).T.astype(table.dtype)


def _first(step, carry, inputs, count):
    """`jax.lax.scan` over the first `count` inputs; zeros come out of the others."""
    shapes = jax.eval_shape(step, carry, jax.tree.map(lambda x: x[0], inputs))[1]
    outputs = jax.tree.map(lambda x: jnp.zeros((len(inputs[0]), *x.shape), x.dtype), shapes)

    def turn(n, done):
        carry, outputs = done
        carry, new = step(carry, jax.tree.map(lambda x: x[n], inputs))
        return carry, jax.tree.map(lambda all_, one: all_.at[n].set(one), outputs, new)

    return jax.lax.fori_loop(0, count, turn, (carry, outputs))


def _longest(vectors, wide):
    """Largest length of vectors [..., D]."""
    return jnp.sqrt((vectors.astype(wide) ** 2).sum(-1).max())
