"""Contrastive terms between two views of every user of a batch, for any sequence model.

A view is a way to look at a user's events: augmented (CL4SRec), under another dropout mask
(SimCSE), with dimensions cut off (ConSERT), or the events of another user who went on to the same
item (DuoRec). The term pulls the vectors of a user's two views together and pushes those of other
users away (InfoNCE), negatives being the users of the whole batch, over all devices; with a
momentum encoder (MoCo) the second view is encoded by an average of the model, and the negatives are
a queue of its vectors from the steps before.

The batch names its users (`positives.Users`); `sasrec.encode` shows what is asked of a model.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import P

from jaxrec import losses
from jaxrec.devices.mesh import on_mesh, replicated
from jaxrec.errors import UserError
from jaxrec.objectives import augment
from jaxrec.objectives.queue import BLOCK

VIEWS = ('augment', 'dropout', 'cutoff', 'same_target')


_PLACES = ('items', 'segments', 'positions')


@dataclasses.dataclass
class Contrast:
    """Settings of the contrastive term; the defaults are CL4SRec's."""

    weight: float = 0.1  # lambda, of the term in the loss; 0 leaves it out altogether
    first: str = 'augment'  # view: augment | dropout | cutoff | same_target
    second: str = 'augment'
    crop: float = (
        0.6  # augment: rate of each operation (see jaxrec.objectives.augment), 0 = without it
    )
    mask: float = 0.3
    reorder: float = 0.6
    substitute: float = 0.0
    insert: float = 0.0
    short: int = 0  # augment: histories up to this long are only masked, substituted, inserted into
    cutoff: float = 0.1  # cutoff: share of the dimensions
    pool: str = 'last'  # user vector: after the 'last' event, or the 'mean' over the events
    head: bool = False  # a layer with ReLU and a linear one between user vectors and the term
    similarity: str = 'dot'  # dot | cosine
    temperature: float = 1.0
    same_user_negatives: bool = False  # another vector of the user counts as a negative
    same_target_negatives: bool = True  # so does a user who goes on to the same item
    momentum: float = 0.0  # > 0: decay of the momentum encoder
    queue: int = 0  # vectors of it that are kept, with momentum > 0

    @property
    def rates(self) -> dict[str, float]:
        """Of the operations that take part in the view 'augment'."""
        return {name: rate for name in augment.OPERATIONS if (rate := getattr(self, name))}

    def check(self) -> None:
        """Raises UserError for a value that cannot be."""

        def fail(name, why):
            raise UserError(f'model.contrast.{name}={getattr(self, name)!r} {why}')

        for name, known in (
            ('first', VIEWS),
            ('second', VIEWS),
            ('pool', ('last', 'mean')),
            ('similarity', ('dot', 'cosine')),
        ):
            if getattr(self, name) not in known:
                fail(name, f'is not one of {", ".join(known)}')
        for name in (*augment.OPERATIONS, 'cutoff'):
            if not 0 <= getattr(self, name) <= 1:
                fail(name, 'is not in [0, 1]')
        if 'augment' in (self.first, self.second) and not self.rates:
            raise UserError("the view 'augment' needs an operation: set model.contrast.crop > 0")
        if not self.weight >= 0:
            fail('weight', 'must not be negative')
        if not self.temperature > 0:
            fail('temperature', 'must be above 0')
        if not 0 <= self.momentum < 1:
            fail('momentum', 'is not in [0, 1)')
        if self.queue < 0 or self.queue % BLOCK or (self.queue > 0) != (self.momentum > 0):
            fail('queue', f'must be a multiple of {BLOCK}, above 0 if and only if momentum is')


def views(
    settings: Contrast, batch: dict, key: jax.Array, dim: int
) -> tuple[augment.Rows, augment.Rows]:
    """The rows of both views: items, segments, positions [B, L] and features, to be encoded.

    Args:
      settings: which views.
      batch: packed rows; `positive.*` for same_target, `similar` for substitute and insert.
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
            prefix = 'positive.'
            made.append(
                _rows({n.removeprefix(prefix): batch[n] for n in batch if n.startswith(prefix)})
            )
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
    settings: Contrast, first: jax.Array, second: jax.Array, batch: dict
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The contrastive term of a batch, and what is logged of it.

    Args:
      settings: of the similarity and the negatives.
      first, second: [N, D] vectors of both views.
      batch: users and user_targets int32 [N], 0 = none; with a queue `queue` [Q / 64, 64, D] and
        the same two of its vectors, `queue.users` and `queue.targets` [Q / 64, 64].

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

    if settings.queue:
        others = (replicated(batch[n]).reshape(-1) for n in ('queue.users', 'queue.targets'))
        value = losses.info_nce_queue(
            first, second, batch['queue'], weights, hidden=alike(*others), **options
        )
    else:
        value = losses.info_nce(first, second, weights, hidden=alike(users, targets), **options)
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
    shapes = [{name: x.shape for name, x in view.items()} for view in rows]
    if shapes[0] != shapes[1] or not stack:
        return function(rows[0], keys[0]), function(rows[1], keys[1])
    made = jax.vmap(function)(jax.tree.map(lambda *x: jnp.stack(x), *rows), keys)
    return made[0], made[1]


def _rows(batch):
    """What a model reads of the events in a batch."""
    return {n: x for n, x in batch.items() if n in _PLACES or n.startswith('feature.')}
