"""Contrastive terms between two views of every user of a batch, for any sequence model.

A view is a way to look at a user's events: augmented (CL4SRec), under another dropout mask
(SimCSE), with parts cut off, positions shuffled or vectors attacked (ConSERT), or the events of
another user who went on to the same item (DuoRec). An objective says what the vectors of a user's
two views have to do with each other and with those of other users, over all devices; with a
momentum encoder views are also encoded by an average of the model. By the settings of `Contrast`
this is

  CL4SRec (Xie et al. 2022)   the defaults
  DuoRec (Qiu et al. 2022)    first='dropout', second='same_target'
  SimCSE (Gao et al. 2021)    first='dropout', second='dropout'
  ConSERT (Yan et al. 2021)   first='shuffle', second='cutoff', or other pairs of views
  CoSeRec (Liu et al. 2021)   substitute, insert > 0, short=12 (Beauty; elsewhere 4), crop=.2,
                              mask=.7, reorder=.2; it draws one operation for each view, and
                              compares the vectors of all events side by side
  SimCLR (Chen et al. 2020)   head=True, similarity='cosine', temperature=.1 to .5
  i-Mix (Lee et al. 2021)     objective='mixed', first='mixed', second='dropout', temperature=.1
  MoCo (He et al. 2020)       momentum and queue > 0, with any of these views
  the others                  objective='decoupled', 'swav', 'simsiam', 'byol' (with momentum) or
                              'direct_au', with any of these views; see `view_objectives`

CL4SRec's paper leaves open, and here is chosen: two different operations per user (as in the DuoRec
authors' port), the user vector is the one after the last event, views are drawn of the model's
window without its last target, and [mask] is row 0 of the item table, which is never recommended.

The batch names its users (`positives.Users`). Of a model `terms` asks for `config.contrast`,
`config.dim`, `contrasting` (`active`), `heads` (`make_heads`), `objectives` (`make_objectives`) and
`user_vectors(rows, users, pool, key) -> [N, D]`, the vectors of the segments of rows in their
order, the same on every device.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import losses, rng
from jaxrec.config import field
from jaxrec.devices.mesh import replicated
from jaxrec.devices.tuning import tuning
from jaxrec.errors import UserError
from jaxrec.nn.linear import through, two_layers
from jaxrec.objectives import augment, view_objectives
from jaxrec.objectives.queue import BLOCK
from jaxrec.objectives.view_objectives import OBJECTIVES, Vectors
from jaxrec.objectives.views import VIEWS, attacked, both, views


@dataclasses.dataclass
class Contrast:
    """Settings of a contrastive term; the defaults are CL4SRec's."""

    # lambda, of the term in the loss; 0 = none. A mean over users beside a mean over events: the
    # longer the histories, the more it weighs where each user's vector is, at the newest event
    weight: float = field(0.1, least=0, traced=True)
    objective: str = field('info_nce', choices=OBJECTIVES)
    first: str = field('augment', choices=VIEWS)
    second: str = field('augment', choices=VIEWS)
    # both views are of the events up to one drawn at random, not of all: then the vectors compared
    # are at all positions, as those of the main loss are
    prefix: bool = False
    # augment: rate of each operation (objectives/augment), 0 = without it
    crop: float = field(0.6, least=0, most=1)
    mask: float = field(0.3, least=0, most=1)
    reorder: float = field(0.6, least=0, most=1)
    sample: float = field(0.0, least=0, most=1)
    substitute: float = field(0.0, least=0, most=1)
    insert: float = field(0.0, least=0, most=1)
    short: int = 0  # augment: histories up to this long are only masked, substituted, inserted into
    cutoff: float = field(0.1, least=0, most=1)  # cutoff: share of the dimensions
    token_cutoff: float = field(0.15, least=0, most=1)  # token_cutoff: share of the events
    adversarial: float = field(
        0.1, above=0, traced=True
    )  # length of the shift of an event's vector
    # user vector: after the 'last' event, or the 'mean' over the events
    pool: str = field('last', choices=('last', 'mean'))
    head: bool = False  # a layer with ReLU and a linear one between user vectors and the term
    similarity: str = field('dot', choices=('dot', 'cosine'))  # info_nce, decoupled
    temperature: float = field(1.0, above=0, traced=True)  # these and swav
    same_user_negatives: bool = False  # another vector of the user counts as a negative
    same_target_negatives: bool = True  # so does a user who goes on to the same item
    momentum: float = field(0.0, least=0, below=1)  # > 0: decay of the momentum encoder
    queue: int = field(0, least=0)  # vectors of it that are kept: info_nce and decoupled with it
    prototypes: int = field(128, least=2)  # swav
    code_temperature: float = field(0.05, above=0, traced=True)  # swav: epsilon of its codes
    code_steps: int = field(3, least=1)  # swav: of the iteration that evens them out
    uniformity: float = field(1.0, least=0, traced=True)  # direct_au: weight beside alignment
    mixing: float = field(1.0, above=0)  # mixed: a share is drawn from Beta(mixing, mixing)

    @property
    def rates(self) -> dict[str, float]:
        """Of the operations that take part in the view 'augment'."""
        return {name: rate for name in augment.OPERATIONS if (rate := getattr(self, name))}

    @property
    def extras(self) -> set[str]:
        """What it wants of the data, see `problem.Inputs`."""
        wanted_views = {self.first, self.second}
        wanted = {'users'}
        if 'same_target' in wanted_views:
            wanted.add('same_target')
        if 'augment' in wanted_views and {'substitute', 'insert'} & self.rates.keys():
            wanted.add('similar')
        return wanted

    def check(self, name: str) -> None:
        """Raises UserError for values that do not go together; `name` is model.contrast.N."""
        if 'augment' in (self.first, self.second) and not self.rates:
            raise UserError(f"the view 'augment' needs an operation: set {name}.crop > 0")
        if 'mixed' in (self.objective, self.first, self.second) and (
            (self.objective, self.first) != ('mixed', 'mixed') or self.second == 'mixed'
        ):
            raise UserError(
                f"the view 'mixed' is the first of {name}.objective='mixed': set both, and "
                f"another view as {name}.second, e.g. 'dropout'"
            )
        if self.prefix and 'same_target' in (self.first, self.second):
            raise UserError(f"{name}.prefix leaves the view 'same_target' without its target")
        objective = OBJECTIVES[self.objective]
        if objective.momentum == 'must' and not self.momentum:
            raise UserError(
                f'{name}.objective={self.objective!r} predicts what a momentum encoder says: set '
                f'{name}.momentum, e.g. .99'
            )
        if objective.momentum == 'never' and self.momentum:
            raise UserError(
                f'{name}.objective={self.objective!r} has no momentum encoder: set '
                f'{name}.momentum=0'
            )
        if not objective.queue and self.queue:
            raise UserError(
                f'{name}.objective={self.objective!r} knows no negatives: set {name}.queue=0'
            )
        if objective.queue and (self.queue % BLOCK or (self.queue > 0) != (self.momentum > 0)):
            raise UserError(
                f'{name}.queue={self.queue} must be a multiple of {BLOCK}, above 0 if and only if '
                'momentum is'
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
            nth: two_layers(kernel, dim, rngs)
            for nth in active(contrasts)
            if contrasts[int(nth)].head
        }
    )


def make_objectives(contrasts: tuple[Contrast, ...], kernel, dim: int, rngs: nnx.Rngs) -> nnx.Dict:
    """The parameters of the objectives that have some, by the place of their term."""
    made = {
        nth: view_objectives.make(contrasts[int(nth)], dim, kernel, rngs)
        for nth in active(contrasts)
    }
    return nnx.Dict({nth: own for nth, own in made.items() if len(own)})


def start(model: Any) -> dict:
    """The first carry of `terms`: momentum encoders and states of objectives by place."""
    made = {}
    for nth in model.contrasting:
        settings = model.config.contrast[int(nth)]
        if settings.momentum:
            params = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
            made[nth] = {'momentum': params, **view_objectives.start(settings, model.config.dim)}
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
      The sum, what is logged ('contrast', `view_objectives.monitors` and what the objective adds,
      with the place of the term where there are several), and the next carry.
    """
    total, named, new = 0.0, {}, {}
    for nth in model.contrasting:
        term_key = jax.random.fold_in(key, 1 + int(nth))
        value, more, kept = _one(model, nth, batch, carry.get(nth, {}), term_key)
        total = total + model.config.contrast[int(nth)].weight * value
        place = f'.{nth}' if len(model.contrasting) > 1 else ''
        named |= {name + place: x for name, x in more.items()}
        new |= {nth: kept} if kept else {}
    return total, named, new


def _one(model, nth, batch, carry, key):
    """(value, what is logged, next carry) of the term in place `nth`."""
    settings = model.config.contrast[int(nth)]
    keys = rng.keys(key, 'views', 'first', 'second')
    encode_keys, users = jnp.stack([keys['first'], keys['second']]), len(batch['users'])
    own = model.objectives[nth] if nth in model.objectives else {}
    own = {name: replicated(x[...]) for name, x in own.items()}
    average, momentum = None, {}
    if settings.momentum:
        graphdef, params = nnx.split(model, nnx.Param)
        params = jax.lax.stop_gradient(nnx.to_pure_dict(params))
        decay = settings.momentum
        momentum = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, carry['momentum'], params)
        average = nnx.merge(graphdef, momentum)

    def seen(model, rows, key):
        """[N, D] vectors of the users of a view."""
        x = model.user_vectors(rows, users, settings.pool, key)
        return through(model.heads[nth], x) if settings.head else x

    state = {name: x for name, x in carry.items() if name != 'momentum'}

    rows = views(settings, batch, keys['views'], model.config.dim)
    identities = rows[0].pop('identities', None)

    def judged(rows):
        first, second, targets = _encoded(settings, seen, model, average, rows, encode_keys)
        named = (replicated(batch[name]) for name in ('users', 'user_targets'))
        return term(settings, Vectors(first, second, *named, targets, identities), own, state)

    if 'adversarial' in (settings.first, settings.second):
        rows = attacked(rows, lambda rows: judged(rows)[0], settings.adversarial)
    value, more, state = judged(rows)
    return value, more, {'momentum': momentum, **state} if settings.momentum else state


def _encoded(settings, seen, model, average, rows, keys):
    """Vectors of both views, and those of the momentum encoder if the objective predicts them."""
    if OBJECTIVES[settings.objective].queue and settings.momentum:
        second = seen(average, rows[1], keys[1])
        return seen(model, rows[0], keys[0]), second, None

    def pair(model):
        return both(
            lambda rows, key: seen(model, rows, key), rows, keys, stack=tuning().stacked_views
        )

    return *pair(model), pair(average) if settings.momentum else None


def term(
    settings: Contrast, vectors: Vectors, own: dict[str, jax.Array], state: dict
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """The contrastive term of a batch, what is logged of it, and the objective's next state.

    Args:
      settings: which objective.
      vectors: of both views.
      own: the objective's parameters.
      state: what it carries.

    Returns:
      Scalar, the mean over users; the terms contrast (the same), `view_objectives.monitors` and
      those of the objective; the state.
    """
    values, more, state = OBJECTIVES[settings.objective].values(settings, vectors, own, state)
    value = losses.weighted_mean(values, jnp.broadcast_to(vectors.weights, values.shape))
    return value, {'contrast': value, **view_objectives.monitors(vectors), **more}, state
