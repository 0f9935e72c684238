"""Contrastive terms between two views of every user of a batch, for any sequence model.

A view is a way to look at a user's events: augmented (CL4SRec), under another dropout mask
(SimCSE), with dimensions cut off (ConSERT), or the events of another user who went on to the same
item (DuoRec). The term pulls the vectors of a user's two views together and pushes those of other
users away (InfoNCE), negatives being the users of the whole batch, over all devices; with a
momentum encoder (MoCo) the second view is encoded by an average of the model, and the negatives are
a queue of its vectors from the steps before. By the settings of `Contrast` this is

  CL4SRec (Xie et al. 2022)   the defaults
  DuoRec (Qiu et al. 2022)    first='dropout', second='same_target'
  SimCSE (Gao et al. 2021)    first='dropout', second='dropout'
  ConSERT (Yan et al. 2021)   first='cutoff', second='cutoff', or other pairs of views
  CoSeRec (Liu et al. 2021)   substitute and insert > 0, short=12
  MoCo (He et al. 2020)       momentum and queue > 0, with any of these views

CL4SRec's paper leaves open, and here is chosen: two different operations per user (as in the DuoRec
authors' port), the user vector is the one after the last event, views are drawn of the model's
window without its last target, and [mask] is row 0 of the item table, which is never recommended.

The batch names its users (`positives.Users`). Of a model `terms` asks for `config.contrast`,
`config.dim`, `max_len`, `contrasting` (`active`), `heads` (`make_heads`), `item_table()` and
`encode(rows, table, key, table_key=) -> [B, L, D]`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from jaxrec import losses, rng
from jaxrec.config import field
from jaxrec.devices.mesh import on_mesh, replicated
from jaxrec.devices.tuning import tuning
from jaxrec.errors import UserError
from jaxrec.objectives import augment
from jaxrec.objectives.queue import BLOCK, enqueue, start_queue

VIEWS = ('augment', 'dropout', 'cutoff', 'same_target')
_PLACES = ('items', 'segments', 'positions')


@dataclasses.dataclass
class Contrast:
    """Settings of a contrastive term; the defaults are CL4SRec's."""

    weight: float = field(0.1, least=0, traced=True)  # lambda, of the term in the loss; 0 = none
    first: str = field('augment', choices=VIEWS)
    second: str = field('augment', choices=VIEWS)
    # augment: rate of each operation (objectives/augment), 0 = without it
    crop: float = field(0.6, least=0, most=1)
    mask: float = field(0.3, least=0, most=1)
    reorder: float = field(0.6, least=0, most=1)
    substitute: float = field(0.0, least=0, most=1)
    insert: float = field(0.0, least=0, most=1)
    short: int = 0  # augment: histories up to this long are only masked, substituted, inserted into
    cutoff: float = field(0.1, least=0, most=1)  # cutoff: share of the dimensions
    # user vector: after the 'last' event, or the 'mean' over the events
    pool: str = field('last', choices=('last', 'mean'))
    head: bool = False  # a layer with ReLU and a linear one between user vectors and the term
    similarity: str = field('dot', choices=('dot', 'cosine'))
    temperature: float = field(1.0, above=0, traced=True)
    same_user_negatives: bool = False  # another vector of the user counts as a negative
    same_target_negatives: bool = True  # so does a user who goes on to the same item
    momentum: float = field(0.0, least=0, below=1)  # > 0: decay of the momentum encoder
    queue: int = field(0, least=0)  # vectors of it that are kept, with momentum > 0

    @property
    def rates(self) -> dict[str, float]:
        """Of the operations that take part in the view 'augment'."""
        return {name: rate for name in augment.OPERATIONS if (rate := getattr(self, name))}

    @property
    def extras(self) -> set[str]:
        """What it wants of the data, see `problem.Inputs`."""
        views = {self.first, self.second}
        wanted = {'users'}
        if 'same_target' in views:
            wanted.add('same_target')
        if 'augment' in views and {'substitute', 'insert'} & self.rates.keys():
            wanted.add('similar')
        return wanted

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if 'augment' in (self.first, self.second) and not self.rates:
            raise UserError("the view 'augment' needs an operation: set model.contrast.crop > 0")
        if self.queue % BLOCK or (self.queue > 0) != (self.momentum > 0):
            raise UserError(
                f'model.contrast.queue={self.queue} must be a multiple of {BLOCK}, above 0 if and '
                'only if momentum is'
            )


def active(contrasts: tuple[Contrast, ...]) -> tuple[str, ...]:
    """Places of those of any weight; a model keeps them, for a weight may be traced later."""
    return tuple(str(nth) for nth, one in enumerate(contrasts) if one.weight > 0)


def extras(contrasts: tuple[Contrast, ...]) -> tuple[str, ...]:
    """What they want of the data, see `problem.Inputs`."""
    return tuple(sorted({e for nth in active(contrasts) for e in contrasts[int(nth)].extras}))


def make_heads(contrasts: tuple[Contrast, ...], kernel, dim: int, rngs: nnx.Rngs) -> nnx.Dict:
    """The layers of the terms that have a head, by their place."""
    return nnx.Dict(
        {
            nth: nnx.List(nnx.Param(kernel(rngs.params(), (dim, dim), jnp.float32)) for _ in 'io')
            for nth in active(contrasts)
            if contrasts[int(nth)].head
        }
    )


def start(model: Any) -> dict:
    """The first carry of `terms`: momentum encoders and queues by the place of their term."""
    made = {}
    for nth in model.contrasting:
        settings = model.config.contrast[int(nth)]
        if settings.momentum:
            params = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
            queue = start_queue(settings.queue, model.config.dim)
            made[nth] = {'momentum': params, 'queue': queue}
    return made


def terms(
    model: Any, batch: dict, carry: dict, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """All terms of a model times their weights.

    Args:
      model: see the head of this file.
      batch: packed rows, and the users of them.
      carry: of `start`.
      key: of the step.

    Returns:
      The sum, what is logged ('contrast', 'alignment', 'uniformity', with the place of the term
      where there are several), and the next carry.
    """
    total, named, new = 0.0, {}, {}
    for nth in model.contrasting:
        settings = model.config.contrast[int(nth)]
        keys = rng.keys(jax.random.fold_in(key, 1 + int(nth)), 'views', 'first', 'second')
        rows = views(settings, batch, keys['views'], model.config.dim)
        encode_keys, users = jnp.stack([keys['first'], keys['second']]), len(batch['users'])

        def vectors(model, rows, key, settings=settings, nth=nth, users=users):
            own = rng.keys(key, 'encode', 'table')
            hidden = model.encode(rows, model.item_table(), own['encode'], table_key=own['table'])
            x = user_vectors(hidden, rows, users, model.max_len - 1, settings.pool)
            if settings.head:
                inner, outer = (replicated(kernel[...]) for kernel in model.heads[nth])
                x = jax.nn.relu(x @ inner) @ outer
            return x

        queue = None
        if settings.momentum:
            graphdef, params = nnx.split(model, nnx.Param)
            params = jax.lax.stop_gradient(nnx.to_pure_dict(params))
            decay, queue = settings.momentum, carry[nth]['queue']
            momentum = jax.tree.map(
                lambda a, b, decay=decay: decay * a + (1 - decay) * b,
                carry[nth]['momentum'],
                params,
            )
            second = vectors(nnx.merge(graphdef, momentum), rows[1], encode_keys[1])
            first = vectors(model, rows[0], encode_keys[0])
            new[nth] = {'momentum': momentum, 'queue': enqueue(queue, second, batch)}
        else:
            first, second = both(
                lambda rows, key, vectors=vectors: vectors(model, rows, key),
                rows,
                encode_keys,
                stack=tuning().stacked_views,
            )
        value, more = term(settings, first, second, batch, queue)
        total = total + settings.weight * value
        place = f'.{nth}' if len(model.contrasting) > 1 else ''
        named |= {name + place: x for name, x in more.items()}
    return total, named, new


def views(
    settings: Contrast, batch: dict, key: jax.Array, dim: int
) -> tuple[augment.Rows, augment.Rows]:
    """The rows of both views: items, segments, positions [B, L] and features, to be encoded.

    Args:
      settings: which views.
      batch: packed rows; `positive` for same_target, `similar` for substitute and insert.
      key: jax.random key.
      dim: D, of the vectors that cutoff cuts.
    """
    wanted = (settings.first, settings.second)
    rows = _rows(batch)
    augmented = iter(())
    if 'augment' in wanted:
        if {'substitute', 'insert'} & settings.rates.keys():
            rows['similar'] = batch['similar']
        pair = augment.two_views(rows, key, settings.rates, settings.short)
        augmented = iter([{n: x for n, x in view.items() if n != 'similar'} for view in pair])
        rows.pop('similar', None)
    made = []
    for name, view_key in zip(wanted, jax.random.split(jax.random.fold_in(key, 1)), strict=True):
        if name == 'augment':
            made.append(next(augmented))
        elif name == 'same_target':
            made.append(_rows(batch['positive']))
        elif name == 'cutoff':
            cut = augment.draw_dimensions(rows['segments'], view_key, settings.cutoff, dim)
            made.append({**rows, 'cutoff': cut})
        else:
            made.append(rows)
    return made[0], made[1]


def user_vectors(
    hidden: jax.Array, rows: augment.Rows, users: int, newest: int, pool: str
) -> jax.Array:
    """[N, D] vectors of the segments of a batch in their order, the same on every device.

    Args:
      hidden: [B, L, D] after every event.
      rows: the rows encoded, of at most N segments.
      users: N.
      newest: position number of a segment's newest event.
      pool: 'last' or 'mean'.
    """
    segments = rows['segments']
    if pool == 'mean':
        same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None]
        share = same / jnp.maximum(same.sum(-1, keepdims=True), 1)
        hidden = jnp.einsum('blm,bmd->bld', share.astype(hidden.dtype), hidden)
    ends = replicated((segments > 0) & (rows['positions'] == newest)).reshape(-1)
    (places,) = jnp.nonzero(ends, size=users, fill_value=0)
    flat = (ends.size, hidden.shape[-1])
    if not on_mesh():
        return hidden.reshape(flat)[places]
    flat = jax.lax.reshape(hidden, flat, out_sharding=P('data', None))
    return flat.at[places].get(out_sharding=P(None, None))


def term(
    settings: Contrast,
    first: jax.Array,
    second: jax.Array,
    batch: dict,
    queue: dict | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The contrastive term of a batch, and what is logged of it.

    Args:
      settings: of the similarity and the negatives.
      first, second: [N, D] vectors of both views.
      batch: users and user_targets int32 [N], 0 = none.
      queue: vectors [Q / 64, 64, D] and the same two of them, users and targets [Q / 64, 64].

    Returns:
      Scalar, and the terms contrast (the same), alignment and uniformity of the vectors (Wang &
      Isola 2020: mean |a - b|^2 over the pairs, log mean exp(-2 |a - a'|^2) over the users, of unit
      vectors).
    """
    users, targets = replicated(batch['users']), replicated(batch['user_targets'])
    weights = (users > 0).astype(jnp.float32)
    options = {'temperature': settings.temperature, 'cosine': settings.similarity == 'cosine'}

    def alike(other_users, other_targets):
        """bool [N, M], pairs that are no negatives."""
        hidden = jnp.broadcast_to(other_users == 0, (len(users), len(other_users)))
        if not settings.same_user_negatives:
            hidden |= users[:, None] == other_users
        if not settings.same_target_negatives:
            hidden |= targets[:, None] == other_targets
        return hidden

    if queue is not None:
        others = (replicated(queue[name]).reshape(-1) for name in ('users', 'targets'))
        values = losses.info_nce_queue(
            first, second, queue['vectors'], hidden=alike(*others), **options
        )
    else:
        values = losses.info_nce(first, second, hidden=alike(users, targets), **options)
    value = losses.weighted_mean(values, jnp.broadcast_to(weights, values.shape))
    with jax.named_scope('alignment'):
        a, b = (losses.unit(jax.lax.stop_gradient(x)) for x in (first, second))
        apart = jnp.exp(4 * (a @ a.T - 1)) * (1 - jnp.eye(len(a)))  # |a - a'|^2 = 2 - 2 a.a'
        pairs = jnp.maximum(weights.sum() * (weights.sum() - 1), 1)
        terms = {
            'contrast': value,
            'alignment': losses.weighted_mean(((a - b) ** 2).sum(-1), weights),
            'uniformity': jnp.log(jnp.maximum(weights @ apart @ weights / pairs, 1e-9)),
        }
    return value, terms


def both(function, rows: tuple[augment.Rows, augment.Rows], keys: jax.Array, *, stack: bool):
    """`function(rows, key)` of both views: with `stack` in one pass over a new axis.

    One pass after the other where the views are of different shapes, or not to be stacked: on a CPU
    half as much has to fit its caches.
    """
    shapes = [jax.tree.map(jnp.shape, view) for view in rows]
    if shapes[0] != shapes[1] or not stack:
        return function(rows[0], keys[0]), function(rows[1], keys[1])
    made = jax.vmap(function)(jax.tree.map(lambda *x: jnp.stack(x), *rows), keys)
    return made[0], made[1]


def _rows(batch):
    """What a model reads of the events in a batch."""
    return {name: x for name, x in batch.items() if name in (*_PLACES, 'features')}
