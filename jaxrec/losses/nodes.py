"""InfoNCE between two views of a graph's nodes.

Unlike `contrastive.info_nce`, a node is looked for among nodes that need not be in the batch.
"""

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.devices.mesh import TABLE, lookup, placed, table_rows
from jaxrec.losses.contrastive import unit
from jaxrec.losses.softmax import log_partition_sum


def info_nce_among(
    queries: jax.Array,
    keys: jax.Array,
    own: jax.Array,
    counted: jax.Array,
    weights: jax.Array,
    *,
    temperature: float | jax.Array,
) -> jax.Array:
    """One-sided InfoNCE, the positive in the denominator (SGL, Wu et al. 2021, eq. 10).

    -log e^s(q_i, k_own(i)) / sum_n e^s(q_i, k_n) over the n that count, s a cosine over the
    temperature. Like `softmax` it holds a few rows of scores at a time, and yields the gradients of
    queries and keys in the same pass.

    Args:
      queries: [B, D].
      keys: [N, D], whole on every device.
      own: int32 [B], which of the keys is each query's.
      counted: bool [N].
      weights: [B].
      temperature: above 0.

    Returns:
      Scalar, the mean over the queries by their weights.
    """
    weights = jax.lax.stop_gradient(weights)
    queries, keys = unit(queries) / temperature, unit(keys)
    positive = (queries * lookup(keys, own)).sum(-1)
    more = table_rows(len(keys) - 1) - len(keys)  # rows that every mesh can split
    keys, counted = jnp.pad(keys, ((0, more), (0, 0))), jnp.pad(counted, (0, more))
    among = placed(counted, P(TABLE[0]))
    queries, each = queries[:, None], weights[:, None]
    rest = log_partition_sum(queries, placed(keys, TABLE), each, among, None, 0, False)
    return (rest - (weights * positive).sum()) / jnp.maximum(weights.sum(), 1e-9)


def info_nce_of_shares(
    queries: jax.Array,
    keys: jax.Array,
    identities: jax.Array,
    counted: jax.Array,
    *,
    temperature: float,
    positive: bool = True,
) -> jax.Array:
    """InfoNCE whose queries are several keys at once, by shares (i-Mix, Lee et al. 2021, eq. 3).

    -sum_j y_ij log softmax_j(cos(q_i, k_j) / t) over the keys that count.

    Args:
      queries: [B, D].
      keys: [N, D].
      identities: y, [B, N], rows that sum to 1.
      counted: bool [N].
      temperature: t, above 0.
      positive: False leaves the key at a query's own place out of the denominator (GraphCL).

    Returns:
      [B], one value per query; 0 where no key is in the denominator.
    """
    scores = jnp.einsum('bd,nd->bn', unit(queries), unit(keys), preferred_element_type=jnp.float32)
    scores = scores / temperature
    shown = counted[None]
    if not positive:
        shown = shown & (jnp.arange(len(queries))[:, None] != jnp.arange(len(keys)))
    none = jnp.finfo(scores.dtype).min / 2  # finite: a query may have no other key
    rest = jax.nn.logsumexp(jnp.where(shown, scores, none), axis=-1)
    return jnp.where(shown.any(-1), rest - (identities * scores).sum(-1), 0)


def shares_of(owner: jax.Array, other: jax.Array, count: int) -> jax.Array:
    """float32 [count, count]: of each owner's members, the share that belongs to each other one.

    Args:
      owner, other: int32 [n], whom a member is counted for and whom it is of, below `count`; an
        owner of -1 has none.
      count: of both.

    Returns:
      Rows that sum to 1; an owner without members is its own.
    """
    cell = jnp.where(owner >= 0, owner * count + other, count * count)
    met = jax.ops.segment_sum(jnp.ones(len(cell)), cell, count * count + 1)[:-1]
    met = met.reshape(count, count)
    members = met.sum(1, keepdims=True)
    return jnp.where(members > 0, met / jnp.maximum(members, 1), jnp.eye(count))
