"""What two views of the same users are asked: InfoNCE, and objectives that know no negatives."""

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.devices.mesh import on_mesh, placed, replicated
from jaxrec.losses.pointwise import at_least_float32
from jaxrec.losses.sampled import sampled_softmax


def info_nce(
    first: jax.Array,
    second: jax.Array,
    *,
    temperature: float = 1.0,
    cosine: bool = False,
    hidden: jax.Array | None = None,
    decoupled: bool = False,
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
      decoupled: without the partner in the denominator (Yeh et al. 2022, arXiv 2110.06848): log
        sum_j e^s(i, j) - s(i, i'); 0 for a pair without negatives.

    Returns:
      [2, N], one value per direction and pair.
    """
    both = jnp.stack([first, second])
    both = unit(both) if cosine else both
    rows = placed((both / temperature).astype(both.dtype), P(None, 'data', None))
    against = both.reshape(-1, both.shape[-1])
    scores = jnp.einsum('and,md->anm', rows, against, preferred_element_type=at_least_float32(both))
    out = jnp.eye(len(first), dtype=bool)
    out = jnp.tile(out if hidden is None else out | hidden, (1, 2))
    positive = jnp.broadcast_to((rows[0] * both[1]).sum(-1), (2, len(first)))
    if decoupled:
        scores = jnp.where(out, jnp.finfo(scores.dtype).min / 2, scores)
        return _decoupled(positive, jax.nn.logsumexp(scores, axis=-1))
    return sampled_softmax(positive, scores, hits=out)


def info_nce_queue(
    queries: jax.Array,
    keys: jax.Array,
    queue: jax.Array,
    *,
    temperature: float = 1.0,
    cosine: bool = False,
    hidden: jax.Array | None = None,
    decoupled: bool = False,
) -> jax.Array:
    """InfoNCE with a queue of negatives (MoCo, He et al. 2020, eq. 1).

    -log e^s(q, k) / (e^s(q, k) + sum_j e^s(q, queue_j)).

    Args:
      queries, keys: [N, D] vectors of both views.
      queue: [Q / b, b, D] negatives, b split over 'data' or whole on every device.
      temperature, cosine, decoupled: see `info_nce`.
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
    if decoupled:
        return _decoupled(positive, rest)
    return jnp.logaddexp(positive, rest) - positive


def _decoupled(positive, rest):
    """rest - positive, where `rest` is the log of a sum that is not empty; else 0."""
    some = rest > jnp.finfo(rest.dtype).min / 4
    return jnp.where(some, jnp.where(some, rest, 0) - positive, 0)


def triplet(
    anchor: jax.Array, positive: jax.Array, negative: jax.Array, margin: float
) -> jax.Array:
    """max(|a - p| - |a - n| + margin, 0) of vectors [..., D], Euclidean distances: [...]."""

    def distance(x):
        return jnp.sqrt(jnp.maximum((x * x).sum(-1), 1e-12))

    return jax.nn.relu(distance(anchor - positive) - distance(anchor - negative) + margin)


def negative_cosine(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """-cos(p, stop-gradient(z)) in [-1, 1] (SimSiam, Chen & He 2021, eq. 1).

    Args:
      predicted, target: [..., D].

    Returns:
      [...].
    """
    return -(unit(predicted) * jax.lax.stop_gradient(unit(target))).sum(-1)


def swapped_prediction(
    first: jax.Array, second: jax.Array, codes: tuple[jax.Array, jax.Array], temperature: float
) -> jax.Array:
    """The code of one view predicted from the other (SwAV, Caron et al. 2020, eq. 1 and 2).

    Args:
      first, second: [N, K] scores of both views under the prototypes.
      codes: [N, K] each, of both views, see `sinkhorn`; no gradient flows through them.
      temperature: above 0.

    Returns:
      [2, N]: the second view's code from the first's scores, and the reverse.
    """
    codes = jax.lax.stop_gradient(jnp.stack([codes[1], codes[0]]))
    log_p = jax.nn.log_softmax(jnp.stack([first, second]) / temperature, axis=-1)
    return -(codes * log_p).sum(-1)


def sinkhorn(scores: jax.Array, weights: jax.Array, *, epsilon: float, steps: int) -> jax.Array:
    """Codes diag(a) exp(scores / epsilon) diag(b) that use all prototypes alike (SwAV, eq. 4).

    Each step makes the sums over the vectors equal, then those over the prototypes 1: the latter
    are exact. Equal scores give equal codes.

    Args:
      scores: [N, K].
      weights: [N], 0 leaves a vector out of the sums over vectors.
      epsilon: above 0; the smaller, the harder the codes.
      steps: of the iteration.

    Returns:
      [N, K] rows that sum to 1.
    """
    logs, counted = scores / epsilon, jnp.where(weights.sum() > 0, weights, 1)[:, None]
    for _ in range(steps):
        logs = logs - jax.nn.logsumexp(logs, axis=0, b=counted, keepdims=True)
        logs = logs - jax.nn.logsumexp(logs, axis=1, keepdims=True)
    return jnp.exp(logs)


def alignment(first: jax.Array, second: jax.Array) -> jax.Array:
    """|a - b|^2 of unit vectors [..., D] (Wang & Isola 2020): [...]."""
    return ((unit(first) - unit(second)) ** 2).sum(-1)


def uniformity(x: jax.Array, weights: jax.Array) -> jax.Array:
    """log mean exp(-2 |a - a'|^2) over all pairs of N unit vectors (Wang & Isola 2020), <= 0.

    Args:
      x: [N, D].
      weights: [N], 1 or 0 = none; fewer than two vectors give log 1e-9.

    Returns:
      Scalar.
    """
    rows = unit(x)
    every, counts = replicated(rows), replicated(weights)
    cosines = jnp.einsum('ad,bd->ab', rows, every, preferred_element_type=at_least_float32(x))
    pairs = weights[:, None] * counts * (1 - jnp.eye(len(counts)))
    total = (pairs * jnp.exp(4 * (cosines - 1))).sum()  # |a - a'|^2 = 2 - 2 a.a'
    return jnp.log(jnp.maximum(total / jnp.maximum(counts.sum() * (counts.sum() - 1), 1), 1e-9))


def spread(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Standard deviation of unit vectors [N, D] in a dimension, times sqrt(D) (SimSiam, fig. 2).

    1 where they point everywhere alike, 0 where all are the same: a collapse. Fewer than two
    vectors: 1.
    """
    x, count = unit(x), jnp.maximum(weights.sum(), 1)
    mean = weights @ x / count
    deviation = jnp.sqrt(jnp.maximum(weights @ (x - mean) ** 2 / count, 0)).mean()
    return jnp.where(weights.sum() > 1, deviation * x.shape[-1] ** 0.5, 1.0)


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., D] divided by their lengths; the gradient of a zero vector is finite."""
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12))
