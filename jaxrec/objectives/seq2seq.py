"""From past to future in K intentions: disentangled seq2seq (Ma et al., KDD 2020).

A history is cut at a random place. Of its past, and of its future read backwards, the encoder's
vectors z_i are shared out among K prototypes c_k and weighted by how much they say:

  p(k | i) = softmax_k LN(z_i) . LN(c_k) / sqrt(D)
  p(i) = softmax_i key_i . query / sqrt(D), h_i = LN(z_i + a_i), key_i = h_i + ReLU(h_i W),
         query = LN(z_n + a_n + b)
  phi_k = LN(beta_k + sum_i p(k | i) p(i) z_i), beta of the past and of the future

and each phi_k of the past is to find the same user's phi_k of the future among all phi of the
batch, over all devices. Only the share `confidence` of the smallest losses counts: what cannot be
told from the past is left out. The paper's details are read from third-party code; LN is without
scale and shift, and the share is of the users that are there. The paper's other term, from the
past to the next item, is the main loss.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from jaxrec import rng
from jaxrec.config import field
from jaxrec.devices.mesh import lookup, placed, replicated
from jaxrec.nn.attention import softmax_among
from jaxrec.objectives.segments import (
    Rows,
    Segments,
    newest_places,
    only,
    picked,
    take,
    uniform,
)
from jaxrec.objectives.views import read_rows

_EPSILON = 1e-6


@dataclasses.dataclass
class Seq2Seq:
    """Settings of the term."""

    weight: float = field(0.0, least=0, traced=True)  # 0 = none
    intentions: int = field(4, least=1)  # K
    confidence: float = field(0.5, above=0, most=1)  # share of the losses that counts

    @property
    def extras(self) -> tuple[str, ...]:
        """What it wants of the data, see `problem.Inputs`."""
        return ('users',) if self.weight > 0 else ()


def make(settings: Seq2Seq, length: int, dim: int, kernel, rngs: nnx.Rngs) -> nnx.Dict:
    """The parameters, by name; none where the weight is 0."""
    shapes = {
        'prototypes': (settings.intentions, dim),
        'kernel': (dim, dim),
        'places': (length, dim),
        'past': (settings.intentions, dim),
        'future': (settings.intentions, dim),
    }
    if not settings.weight:
        return nnx.Dict({})
    made = {n: nnx.Param(kernel(rngs.params(), shape, jnp.float32)) for n, shape in shapes.items()}
    return nnx.Dict({**made, 'bias': nnx.Param(jnp.zeros(dim))})


def term(model: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The term of a batch, and what is logged of it: seq2seq, intention_use.

    Args:
      model: with config.seq2seq, seq2seq (`make`), max_len, item_table() and `encode`.
      batch: packed rows, and the users of them.
      key: of the step.
    """
    settings, keys = model.config.seq2seq, rng.keys(key, 'cut', 'encode', 'table')
    own = {name: replicated(x[...]) for name, x in model.seq2seq.items()}
    parts = cut(read_rows(batch), keys['cut'], model.max_len)
    hidden = model.encode(parts, model.item_table(), keys['encode'], table_key=keys['table'])
    summed, shares = (replicated(x) for x in intentions(own, hidden, parts))
    ends = newest_places(batch['segments'], len(batch['users']), fill=-1)  # of the futures
    whole, future = (
        replicated(Segments(x['segments']).length).reshape(-1)[ends] for x in (batch, parts)
    )
    real = (ends >= 0) & (whole > 1)
    places = {'past': jnp.where(real, ends - future, 0), 'future': jnp.where(real, ends, 0)}
    found = {}
    for name, at in places.items():
        at = placed(at, P('data'))
        found[name] = _norm(own[name] + picked(summed.reshape(-1, *summed.shape[2:]), at))
    value = confident(between(found['past'], found['future'], real), real, settings.confidence)
    use = (shares.reshape(-1, settings.intentions)[ends] * real[:, None]).sum(0)
    use = jax.lax.stop_gradient(use / jnp.maximum(use.sum(), 1e-9))
    spread = jnp.exp(-jax.scipy.special.xlogy(use, use).sum()) / settings.intentions
    return value, {'seq2seq': value, 'intention_use': spread}


def cut(rows: Rows, key: jax.Array, width: int) -> Rows:
    """Each history as two, in its own places: its past, and its future, the newest event first.

    It is cut at a random place, and both have one event at least where there are two; a history of
    one has no future. Segment n becomes 2 n - 1 and 2 n.

    Args:
      rows: packed rows.
      key: jax.random key.
      width: the model's longest history, which positions count up to.
    """
    at = Segments(rows['segments'])
    drawn = (uniform(at.draw(key)) * (at.length - 1)).astype(jnp.int32)
    past = 1 + jnp.minimum(drawn, jnp.maximum(at.length - 2, 0))
    later = at.index >= past
    backwards = at.start + past + at.length - 1 - at.index
    source = jnp.where(later, backwards, at.place)
    moved = jax.tree.map(lambda x: take(x, source), rows)
    places = {
        'segments': 2 * rows['segments'] - 1 + later,
        'positions': jnp.where(later, width - at.length + at.index, width - past + at.index),
    }
    return only({**moved, **places}, rows['segments'] > 0)


def intentions(
    own: dict[str, jax.Array], hidden: jax.Array, rows: Rows
) -> tuple[jax.Array, jax.Array]:
    """sum_i p(k | i) p(i) z_i [B, L, K, D] of each event's segment, and sum_i p(k | i) p(i).

    Args:
      own: prototypes [K, D], kernel [D, D], places [W, D], bias [D].
      hidden: [B, L, D] after every event.
      rows: segments, positions int32 [B, L].
    """
    scale, segments = hidden.shape[-1] ** -0.5, rows['segments']
    to_prototype = jnp.einsum('bld,kd->blk', _norm(hidden), _norm(own['prototypes'])) * scale
    share = jax.nn.softmax(to_prototype, axis=-1)
    h = _norm(hidden + lookup(own['places'], rows['positions']))
    keys = h + jax.nn.relu(h @ own['kernel'])
    at = Segments(segments)
    newest = take(hidden, at.start + at.length - 1)
    query = _norm(newest + own['places'][-1] + own['bias'])
    logits = (keys * query).sum(-1) * scale
    same = segments[:, :, None] == segments[:, None, :]
    weights = softmax_among(logits[:, None], same)
    weights = jnp.einsum('blm,bmk->blmk', weights, share)
    return jnp.einsum('blmk,bmd->blkd', weights, hidden), weights.sum(2)


def between(past: jax.Array, future: jax.Array, real: jax.Array) -> jax.Array:
    """[N, K]: -log e^s(b,k; b,k) / sum over users b' and k' of e^s(b,k; b',k').

    Args:
      past, future: [N, K, D].
      real: bool [N], whole on every device; False is nobody's candidate.
    """
    others = replicated(future)
    past, future = (placed(x, P('data', None, None)) for x in (past, future))
    scale = past.shape[-1] ** -0.5
    scores = jnp.einsum('nkd,mjd->nkmj', past, others) * scale
    scores = jnp.where(real[:, None], scores, jnp.finfo(scores.dtype).min / 2)
    return jax.nn.logsumexp(scores, axis=(2, 3)) - (past * future).sum(-1) * scale


def confident(values: jax.Array, real: jax.Array, share: float) -> jax.Array:
    """Mean of the smallest `share` of the values [N, K] of real users, one at least."""
    values, real = replicated(values), jnp.broadcast_to(real[:, None], values.shape)
    ordered = jnp.sort(jnp.where(real, values, jnp.inf).reshape(-1))
    count = jnp.maximum(jnp.floor(share * real.sum() + 1e-4), 1)
    kept = (jnp.arange(len(ordered)) < count) & jnp.isfinite(ordered)
    return jnp.where(kept, ordered, 0).sum() / count


def _norm(x):
    """LayerNorm without scale and shift."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + _EPSILON)
