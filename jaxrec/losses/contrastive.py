"""InfoNCE between two views, with negatives from the batch or from a queue."""

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.devices.mesh import on_mesh
from jaxrec.losses.pointwise import at_least_float32
from jaxrec.losses.sampled import sampled_softmax


def info_nce(
    first: jax.Array,
    second: jax.Array,
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
      temperature: above 0.
      cosine: divide vectors by their lengths.
      hidden: bool [N, N], True where pair m is no negative of pair n.

    Returns:
      [2, N], one value per direction and pair.
    """
    both = jnp.stack([first, second])
    both = unit(both) if cosine else both
    rows = jax.reshard(both, P(None, 'data', None)) if on_mesh() else both
    scores = jnp.einsum('and,bmd->anbm', rows, both, preferred_element_type=at_least_float32(both))
    out = jnp.eye(len(first), dtype=bool)
    out = out if hidden is None else out | hidden
    positive = jnp.broadcast_to((rows[0] * rows[1]).sum(-1), (2, len(first)))
    scores, out = jnp.concatenate([scores[:, :, 0], scores[:, :, 1]], -1), jnp.tile(out, (1, 2))
    return sampled_softmax(positive / temperature, scores / temperature, hits=out)


def info_nce_queue(
    queries: jax.Array,
    keys: jax.Array,
    queue: jax.Array,
    *,
    temperature: float = 1.0,
    cosine: bool = False,
    hidden: jax.Array | None = None,
) -> jax.Array:
    """InfoNCE with a queue of negatives (MoCo, He et al. 2020, eq. 1).

    -log e^s(q, k) / (e^s(q, k) + sum_j e^s(q, queue_j)).

    Args:
      queries, keys: [N, D] vectors of both views.
      queue: [Q / b, b, D] negatives, b split over 'data' or whole on every device.
      temperature, cosine: see `info_nce`.
      hidden: bool [N, Q], True where a vector of the queue is no negative.

    Returns:
      [N], one value per pair.
    """
    if cosine:
        queries, keys, queue = unit(queries), unit(keys), unit(queue)
    scores = jnp.einsum(
        'nd,cbd->ncb', queries, queue, preferred_element_type=at_least_float32(queries)
    )
    scores = scores / temperature
    if hidden is not None:
        hidden = hidden.reshape(scores.shape)
        hidden = jax.reshard(hidden, jax.typeof(scores).sharding.spec) if on_mesh() else hidden
        scores = jnp.where(hidden, jnp.finfo(scores.dtype).min / 2, scores)
    positive = (queries * keys).sum(-1).astype(scores.dtype) / temperature
    rest = jax.nn.logsumexp(scores, axis=(1, 2))
    return jnp.logaddexp(positive, rest) - positive


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., D] divided by their lengths; the gradient of a zero vector is finite."""
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12))
