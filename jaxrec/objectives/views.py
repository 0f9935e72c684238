"""Two views of every user of a batch, and the vectors that a model makes of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import P

from jaxrec import losses, rng
from jaxrec.devices.mesh import on_mesh, placed, replicated
from jaxrec.nn.dropout import hashed
from jaxrec.objectives import augment
from jaxrec.objectives.segments import (
    Rows,
    Segments,
    newest_places,
    numbers,
    of_segments,
    uniform,
)

VIEWS = ('augment', 'dropout', 'cutoff', 'token_cutoff', 'shuffle', 'adversarial', 'same_target')
VIEWS += ('mixed',)
_PLACES = ('items', 'segments', 'positions')


def views(settings: Any, batch: dict, key: jax.Array, dim: int) -> tuple[Rows, Rows]:
    """The rows of both views: items, segments, positions [B, L] and features, to be encoded.

    Args:
      settings: which views, a `contrast.Contrast`.
      batch: packed rows; `positive` for same_target, `similar` for substitute and insert.
      key: jax.random key.
      dim: D, of the vectors that cutoffs cut and an adversary shifts: `cutoff` bool and `shift`
        float32, both [B, L, D]; see `attacked`. A view 'mixed' also has `identities`, see `mixed`.
    """
    wanted = (settings.first, settings.second)
    rows = read_rows(batch)
    if settings.prefix:
        rows = augment.prefix(rows, jax.random.fold_in(key, 2))
    augmented = iter(())
    if 'augment' in wanted:
        if {'substitute', 'insert'} & settings.rates.keys():
            rows['similar'] = batch['similar']
        pair = augment.two_views(rows, key, settings.rates, settings.short)
        augmented = iter([{n: x for n, x in view.items() if n != 'similar'} for view in pair])
        rows.pop('similar', None)
    segments, made = rows['segments'], []
    for name, view_key in zip(wanted, jax.random.split(jax.random.fold_in(key, 1)), strict=True):
        if name == 'augment':
            made.append(next(augmented))
        elif name == 'same_target':
            made.append(read_rows(batch['positive']))
        elif name == 'cutoff':
            cut = augment.draw_dimensions(segments, view_key, settings.cutoff, dim)
            made.append({**rows, 'cutoff': cut})
        elif name == 'token_cutoff':
            cut = augment.draw_events(segments, view_key, settings.token_cutoff, dim)
            made.append({**rows, 'cutoff': cut})
        elif name == 'mixed':
            made.append(mixed(rows, view_key, settings.mixing, len(batch['users'])))
        elif name == 'shuffle':
            made.append(augment.shuffle(rows, view_key))
        elif name == 'adversarial':
            made.append(
                {**rows, 'shift': jnp.zeros_like(segments, float)[..., None] * jnp.ones(dim)}
            )
        else:
            made.append(rows)
    return made[0], made[1]


def mixed(rows: Rows, key: jax.Array, alpha: float, users: int) -> Rows:
    """Each user's events mixed with another's, and whose they are then.

    i-Mix (Lee et al., ICLR 2021) for sequences, in our form: there is nothing between two events,
    so of a user with share s ~ Beta(alpha, alpha), at least a half, each event stays with
    probability s and else becomes the event at its place in another row of the batch, if one is
    there. Positions stay.

    Args:
      rows: packed rows.
      key: jax.random key.
      alpha: above 0.
      users: N.

    Returns:
      The rows, and `identities` float32 [N, N], the same on every device: of each user's events the
      share that is each user's.
    """
    keys = rng.keys(key, 'turn', 'shares', 'events')
    whole = jax.tree.map(replicated, rows)
    segments = whole['segments']
    count = len(segments)
    number = replicated(numbers(segments))
    other = (jnp.arange(count) + jax.random.randint(keys['turn'], (), 1, max(count, 2))) % count
    drawn = jax.random.beta(keys['shares'], alpha, alpha, (users,))
    share = jnp.maximum(drawn, 1 - drawn)[jnp.minimum(number, users - 1)]
    place = jnp.arange(segments.size, dtype=jnp.uint32).reshape(segments.shape)
    theirs = jax.tree.map(lambda x: x[other], whole)
    real = segments > 0
    chosen = real & (theirs['segments'] > 0) & (uniform(hashed(keys['events'], place)) >= share)

    def pick(own, their):
        spread = chosen.reshape(*chosen.shape, *[1] * (own.ndim - 2))
        return placed(jnp.where(spread, their, own), P('data', *[None] * (own.ndim - 1)))

    changed = {n: jax.tree.map(pick, rows_of, theirs[n]) for n, rows_of in whole.items()}
    owner = jnp.where(real, number, -1).reshape(-1)
    of = jnp.where(chosen, number[other], number).reshape(-1)
    identities = losses.shares_of(owner, of, users)
    return {**changed, **{n: rows[n] for n in ('segments', 'positions')}, 'identities': identities}


def attacked(rows: tuple[Rows, Rows], value: Callable, length: float) -> tuple[Rows, Rows]:
    """The views, of which those with a `shift` are shifted to where the term grows most.

    The fast gradient value attack of ConSERT (Yan et al. 2021, section 3.2), by the gradient of the
    contrastive term itself, as there need not be labels: shift = length sqrt(n) g / |g|, g the
    gradient by all vectors of the n events of a segment. No gradient flows through it.

    Args:
      rows: of `views`.
      value: the term of two such rows, a scalar.
      length: of the shift of an event's vector, root mean square over its segment.
    """
    found = jax.grad(lambda shifts: value(_shifted(rows, shifts)))(
        [view.get('shift') for view in rows]
    )
    made = []
    for view, g in zip(rows, found, strict=True):
        if g is not None:
            segments = view['segments']
            g = jnp.where((segments > 0)[..., None], jax.lax.stop_gradient(g), 0)
            total = of_segments((g**2).sum(-1), segments)[..., None]
            events = Segments(segments).length[..., None]
            g = length * jnp.sqrt(events) * g * jax.lax.rsqrt(jnp.maximum(total, 1e-30))
        made.append(g)
    return _shifted(rows, made)


def _shifted(rows, shifts):
    return tuple(
        view if shift is None else {**view, 'shift': shift}
        for view, shift in zip(rows, shifts, strict=True)
    )


def segment_vectors(hidden: jax.Array, rows: Rows, users: int, pool: str) -> jax.Array:
    """[N, D] vectors of the segments of a batch in their order, the same on every device.

    Args:
      hidden: [B, L, D] after every event.
      rows: the rows encoded, of at most N segments.
      users: N.
      pool: 'last' or 'mean'.
    """
    segments = rows['segments']
    if pool == 'mean':
        same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None]
        share = same / jnp.maximum(same.sum(-1, keepdims=True), 1)
        hidden = jnp.einsum('blm,bmd->bld', share.astype(hidden.dtype), hidden)
    places = newest_places(segments, users)
    flat = (segments.size, hidden.shape[-1])
    if not on_mesh():
        return hidden.reshape(flat)[places]
    flat = jax.lax.reshape(hidden, flat, out_sharding=P('data', None))
    return flat.at[places].get(out_sharding=P(None, None))


def both(function, rows: tuple[Rows, Rows], keys: jax.Array, *, stack: bool):
    """`function(rows, key)` of both views: with `stack` in one pass over a new axis.

    One pass after the other where the views are of different shapes, or not to be stacked: on a CPU
    half as much has to fit its caches.
    """
    shapes = [jax.tree.map(jnp.shape, view) for view in rows]
    if shapes[0] != shapes[1] or not stack:
        return function(rows[0], keys[0]), function(rows[1], keys[1])
    made = jax.vmap(function)(jax.tree.map(lambda *x: jnp.stack(x), *rows), keys)
    return made[0], made[1]


def read_rows(batch: dict) -> Rows:
    """What a model reads of the events in a batch."""
    return {name: x for name, x in batch.items() if name in (*_PLACES, 'features')}
