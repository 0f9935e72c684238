"""Kuaishou's multi-task contrastive framework (talk of Luo Qing, 2022): our reading of it.

The talk has no formulas, so those here are ours. Beside a main loss weighted by what each event was
worth (`data.rewards`) there are three terms, each of a weight of its own:

  user-item   -log e^s+ / (e^s+ + sum of e^s over the other items of the batch and of a bank of
              earlier ones), without logQ: it is to take popularity away; the mean over users weighs
              them by the reward of their next event
  user-user   two augmented views of the user, a term of `contrast` (`user_user`)
  feedback    the user against each event that was liked, with the disliked ones of the same
              history and the bank as negatives

s = cos(p_u(u), p_v(v)) / temperature with p_u, p_v two-layer projections of user and item vector.
So that the one positive is not drowned by thousands of negatives, it comes in several augmented
views (dropout), and the mean over them is outside the log. The bank takes in the items of a step
after it.

`MultiSignal`, `make_projections`, `start` and `terms` are all that a model needs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from jaxrec import losses, rng
from jaxrec.config import Rewards, field
from jaxrec.devices.mesh import placed, replicated
from jaxrec.errors import UserError
from jaxrec.nn.dropout import dropout
from jaxrec.nn.embeddings import lookup
from jaxrec.nn.linear import through, two_layers
from jaxrec.objectives.bank import push, start_bank
from jaxrec.objectives.contrast import Contrast
from jaxrec.objectives.in_batch import holds
from jaxrec.objectives.segments import apart, numbers, of_segments

_NONE = jnp.finfo(jnp.float32).min / 2  # log of an empty sum, finite


@dataclasses.dataclass
class MultiSignal:
    """Settings; as they are by default there is no framework at all."""

    rewards: Rewards = dataclasses.field(default_factory=Rewards)
    # what a reward is to the main loss: its weight, or (bce) the label in place of 1
    main: str = field('weight', choices=('weight', 'label'))
    user_item: float = field(0.0, least=0, traced=True)  # weight of that term; 0 = none
    feedback: float = field(0.0, least=0, traced=True)
    temperature: float = field(0.1, above=0, traced=True)
    bank: int = field(0, least=0)  # items of earlier steps that are kept
    views: int = field(2, least=1)  # of a positive
    view_dropout: float = field(0.1, least=0, below=1)  # what makes them differ

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        signals = self.rewards.signals
        name = 'model.multi_signal.rewards.signals'
        if signals and not sum(one.weight for one in signals if not one.negative):
            raise UserError(f'{name}: one that is not negative needs a weight above 0')
        for one in signals:
            if one.negative and one.kind != 'binary':
                raise UserError(f'{name}: {one.column!r} is negative, and so has to be binary')
            if one.within and one.kind != 'percentile':
                raise UserError(
                    f"{name}: {one.column!r} has within={one.within!r}: kind='percentile'"
                )
            if [other.column for other in signals].count(one.column) > 1:
                raise UserError(f'{name}: {one.column!r} is given twice')
        if self.rewards.disliked >= self.rewards.liked:
            raise UserError('model.multi_signal.rewards.disliked must be below liked')

    @property
    def active(self) -> tuple[str, ...]:
        """Terms of any weight; a model keeps them, for a weight may be traced later."""
        return tuple(name for name in ('user_item', 'feedback') if getattr(self, name) > 0)

    @property
    def extras(self) -> tuple[str, ...]:
        """What it wants of the data, see `problem.Inputs`."""
        return ('users',) if self.active else ()


def user_user(weight: float = 0.1, **changes: Any) -> Contrast:
    """The framework's term between users: two of mask, shuffle and sample of a history.

    Of n events floor(.3 n) are masked or shuffled, as CL4SRec has it: none of three.

    Args:
      weight: of the term.
      changes: of the other settings of `Contrast`.
    """
    settings = {'crop': 0.0, 'mask': 0.3, 'reorder': 0.3, 'sample': 0.7, 'head': True}
    settings |= {'similarity': 'cosine', 'temperature': 0.1, **changes}
    return Contrast(weight=weight, **settings)


def make_projections(settings: MultiSignal, kernel, dim: int, rngs: nnx.Rngs) -> nnx.Dict:
    """Kernels of p_u and p_v; none where no term takes part."""
    return nnx.Dict(
        {
            name: two_layers(kernel, dim, rngs)
            for name in (('user', 'item') if settings.active else ())
        }
    )


def start(settings: MultiSignal, dim: int) -> dict:
    """The first carry of `terms`."""
    bank = {'bank': start_bank(settings.bank, dim)} if settings.active and settings.bank else {}
    return {'multi_signal': bank} if bank else {}


def main_loss(settings: MultiSignal, batch: dict) -> dict:
    """The batch with the weights of the main loss; without rewards as it is."""
    if 'rewards' not in batch or settings.main != 'weight':
        return batch
    return {**batch, 'weights': batch['weights'] * batch['rewards']}


def terms(
    model: Any, users: jax.Array, table: Any, batch: dict, carry: dict, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """The terms of items, times their weights.

    Args:
      model: with config.multi_signal, item_terms (its `active`), projections (`make_projections`)
        and max_len.
      users: [N, D] user vectors of the batch, whole on every device.
      table: item table.
      batch: items, segments [B, L], users and user_targets [N]; with rewards also feedback [B, L]
        and user_rewards [N].
      carry: of `start`.
      key: of the step.

    Returns:
      The sum, what is logged (user_item, feedback, spread.users and spread.items of the projected
      vectors), and the next carry.
    """
    settings, bank = model.config.multi_signal, carry.get('multi_signal', {}).get('bank')
    keys = rng.keys(key, 'user_item', 'feedback')

    def project(x, name):
        return losses.unit(through(model.projections[name], x))

    def several(vectors, key):
        """[A, ..]: projections of as many views of item vectors."""
        views = [
            dropout(vectors, settings.view_dropout, one)
            for one in jax.random.split(key, settings.views)
        ]
        return jnp.stack([project(view, 'item') for view in views])

    targets = replicated(batch['user_targets'])
    u, vectors = project(users, 'user'), lookup(table, targets)
    v = project(vectors, 'item')
    real = (targets > 0).astype(jnp.float32)
    total, named = 0.0, {}
    for name, x in (('users', u), ('items', v)):
        named[f'spread.{name}'] = losses.spread(jax.lax.stop_gradient(x), real)
    if 'user_item' in model.item_terms:
        values = user_item(u, several(vectors, keys['user_item']), v, targets, bank, settings)
        weights = real * replicated(batch.get('user_rewards', real))
        named['user_item'] = losses.weighted_mean(values, weights)
        total = total + settings.user_item * named['user_item']
    if 'feedback' in model.item_terms:
        events = lookup(table, batch['items'])
        values, weights = feedback(
            u, several(events, keys['feedback']), project(events, 'item'), batch, bank, settings
        )
        named['feedback'] = losses.weighted_mean(values, weights)
        total = total + settings.feedback * named['feedback']
    new = {'multi_signal': {'bank': push(bank, v, targets)}} if bank else {}
    return total, named, new


def user_item(
    users: jax.Array,
    positives: jax.Array,
    items: jax.Array,
    numbers: jax.Array,
    bank: dict | None,
    settings: MultiSignal,
) -> jax.Array:
    """Of each user: mean over views of -log e^s+ / (e^s+ + sum_batch e^s + sum_bank e^s).

    The same item is no negative of itself, wherever it comes from. Gradient flows into the items of
    the batch, not into the bank.

    Args:
      users: [N, D], items: [N, D], unit vectors of the users and of what they went on to.
      positives: [A, N, D], the views of the latter.
      numbers: int32 [N] of the items, 0 = none.
      bank: of `bank.start_bank`, None = none.
      settings: temperature.

    Returns:
      [N].
    """
    users = _split(users)
    candidates, others = items, numbers
    if bank is not None:
        candidates = jnp.concatenate([items, jax.lax.stop_gradient(bank['vectors'])])
        others = jnp.concatenate([numbers, bank['items']])
    scores = jnp.einsum('nd,md->nm', users, candidates) / settings.temperature
    shown = (others > 0) & (others != _split(numbers)[:, None])
    rest = _log_sum(scores, shown)
    positive = (users * _split(positives, axis=1)).sum(-1) / settings.temperature
    return (jnp.logaddexp(positive, rest) - positive).mean(0)


def feedback(
    users: jax.Array,
    positives: jax.Array,
    events: jax.Array,
    rows: dict,
    bank: dict | None,
    settings: MultiSignal,
) -> tuple[jax.Array, jax.Array]:
    """Of each liked event p: mean over views of -log e^s_p / (e^s_p + sum e^s).

    The sum is over the user's disliked events and the bank without items of the user's own; without
    either the value is 0.

    Args:
      users: [N, D] unit vectors, in the order of `segments.ends`, whole on every device.
      positives: [A, B, L, D] views of the events, events: [B, L, D], unit vectors.
      rows: int32 [B, L]: items, segments, feedback, 1 liked, -1 disliked; without it all are liked.
      bank, settings: see `user_item`.

    Returns:
      [B, L] and their weights [B, L], whose sum is 1 over the events that a user liked.
    """
    items, segments, tau = rows['items'], rows['segments'], settings.temperature
    real, signs = segments > 0, rows.get('feedback', jnp.ones_like(items))
    liked, disliked = (real & (signs > 0)).astype(jnp.float32), real & (signs < 0)
    number = numbers(segments)
    own = lookup(users, number)
    same = segments[:, :, None] == segments[:, None, :]
    scores = (own * events).sum(-1) / tau
    rest = _log_sum(scores[:, None], same & disliked[:, None])
    if bank is not None:
        vectors = jax.lax.stop_gradient(bank['vectors'])
        read = apart({'items': items, 'segments': segments}, len(users), items.shape[1])
        shown = (bank['items'] > 0) & ~holds(read['items'], bank['items'])
        of_bank = _log_sum(jnp.einsum('nd,md->nm', _split(users), vectors) / tau, shown)
        rest = jnp.logaddexp(rest, lookup(replicated(of_bank)[:, None], number)[..., 0])
    scores = (own * positives).sum(-1) / tau
    values = (jnp.logaddexp(scores, rest) - scores).mean(0)
    return values, liked / jnp.maximum(of_segments(liked, segments), 1)


def _log_sum(scores, shown):
    """log sum e^s over what is shown along the last axis, very small where nothing is."""
    return jax.nn.logsumexp(jnp.where(shown, scores, _NONE), axis=-1)


def _split(x, axis=0):
    """x with an axis split over the devices of 'data', which share the work."""
    return placed(x, P(*[None] * axis, 'data'))
