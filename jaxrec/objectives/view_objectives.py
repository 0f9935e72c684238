"""What the vectors of two views of a user are asked: one objective a function.

An objective takes the vectors of both views, its own parameters and the state that it carries from
step to step, and returns one value per user (or one per user and direction), the terms it logs and
the next state:

  info_nce    SimCLR, CL4SRec, DuoRec, SimCSE, ConSERT; with a queue MoCo (He et al. 2020)
  decoupled   the same without the positive in the denominator (Yeh et al. 2022)
  swav        codes under prototypes, one view's from the other (Caron et al. 2020)
  simsiam     a predictor, and no gradient through what it predicts (Chen & He 2021)
  byol        the same with an average of the model as the target (Grill et al. 2020)
  direct_au   alignment and uniformity themselves (Wang et al. 2022)
  mixed       users mixed with each other find both (i-Mix, Lee et al. 2021); see `views.mixed`

`OBJECTIVES` has them by name, `make` their parameters, `start` their first state.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import losses
from jaxrec.devices.mesh import replicated
from jaxrec.objectives.queue import enqueue, start_queue

_EPSILON = 1e-5  # of the predictor's batch normalisation


@dataclasses.dataclass
class Vectors:
    """Of both views, the same on every device.

    Attributes:
      first, second: [N, D] of the views; with a momentum encoder that knows negatives (MoCo)
        `second` is its own.
      targets: the same two of the momentum encoder; None where the objective asks for none.
      users, items: int32 [N] the users and the item each goes on to, 0 = none.
      identities: float32 [N, N] of a first view that is mixed: what it has of each user.
    """

    first: jax.Array
    second: jax.Array
    users: jax.Array
    items: jax.Array
    targets: tuple[jax.Array, jax.Array] | None = None
    identities: jax.Array | None = None

    @property
    def weights(self) -> jax.Array:
        """float32 [N], 0 where there is no user."""
        return (self.users > 0).astype(jnp.float32)


Result = tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]  # values, terms, next state


def info_nce(settings: Any, vectors: Vectors, own: dict, state: dict) -> Result:
    """InfoNCE against the other users of the batch, or those of the queue where there is one.

    Args:
      settings: similarity, temperature, whether decoupled, and who is no negative.
      vectors: of both views.
      own: no parameters.
      state: 'queue' or nothing.
    """
    del own
    options = {
        'temperature': settings.temperature,
        'cosine': settings.similarity == 'cosine',
        'decoupled': settings.objective == 'decoupled',
    }
    users, items = vectors.users, vectors.items

    def alike(other_users, other_items):
        """bool [N, M], pairs that are no negatives."""
        hidden = jnp.broadcast_to(other_users == 0, (len(users), len(other_users)))
        if not settings.same_user_negatives:
            hidden |= users[:, None] == other_users
        if not settings.same_target_negatives:
            hidden |= items[:, None] == other_items
        return hidden

    if 'queue' not in state:
        hidden = alike(users, items)
        return losses.info_nce(vectors.first, vectors.second, hidden=hidden, **options), {}, {}
    queue = state['queue']
    hidden = alike(*(replicated(queue[name]).reshape(-1) for name in ('users', 'targets')))
    values = losses.info_nce_queue(
        vectors.first, vectors.second, queue['vectors'], hidden=hidden, **options
    )
    batch = {'users': users, 'user_targets': items}
    return values, {}, {'queue': enqueue(queue, vectors.second, batch)}


def swav(settings: Any, vectors: Vectors, own: dict, state: dict) -> Result:
    """Swapped prediction of codes; `code_use` is exp of the entropy of their mean, over K.

    Args:
      settings: temperature, code_temperature, code_steps.
      vectors: of both views.
      own: prototypes [K, D], of which the directions alone count: they are read at length 1.
      state: nothing.
    """
    prototypes = losses.unit(own['prototypes'])
    scores = [losses.unit(x) @ prototypes.T for x in (vectors.first, vectors.second)]
    codes = [
        losses.sinkhorn(
            jax.lax.stop_gradient(x),
            vectors.weights,
            epsilon=settings.code_temperature,
            steps=settings.code_steps,
        )
        for x in scores
    ]
    values = losses.swapped_prediction(*scores, tuple(codes), settings.temperature)
    mean = vectors.weights @ jax.nn.one_hot(scores[0].argmax(-1), len(prototypes))
    mean = jax.lax.stop_gradient(mean / jnp.maximum(mean.sum(), 1))
    use = jnp.exp(-jax.scipy.special.xlogy(mean, mean).sum()) / len(prototypes)
    return values, {'code_use': use}, state


def simsiam(settings: Any, vectors: Vectors, own: dict, state: dict) -> Result:
    """Minus the cosine of each view's prediction with the other view, in [-1, 1]."""
    del settings
    first, second = vectors.first, vectors.second
    values = [
        losses.negative_cosine(predicted(own, x, vectors.weights), target)
        for x, target in ((first, second), (second, first))
    ]
    return jnp.stack(values), {}, state


def byol(settings: Any, vectors: Vectors, own: dict, state: dict) -> Result:
    """2 - 2 cos of each view's prediction with the other view's target, in [0, 4].

    The mean over both directions, of which the paper has the sum.
    """
    del settings
    values = [
        2 + 2 * losses.negative_cosine(predicted(own, x, vectors.weights), target)
        for x, target in zip(
            (vectors.first, vectors.second), reversed(vectors.targets), strict=True
        )
    ]
    return jnp.stack(values), {}, state


def direct_au(settings: Any, vectors: Vectors, own: dict, state: dict) -> Result:
    """Alignment of a user's views plus `uniformity` times that of the users, the views' mean.

    Uniformity is one number of the batch and part of every user's value.
    """
    del own
    weights = vectors.weights
    apart = [losses.uniformity(x, weights) for x in (vectors.first, vectors.second)]
    values = losses.alignment(vectors.first, vectors.second)
    return values + settings.uniformity * (apart[0] + apart[1]) / 2, {}, state


def mixed(settings: Any, vectors: Vectors, own: dict, state: dict) -> Result:
    """InfoNCE by cosine from the mixed view to the other one, whose users are wanted by shares.

    Args:
      settings: temperature.
      vectors: of both views, and the identities of the first.
      own: no parameters.
      state: nothing.
    """
    del own
    values = losses.info_nce_of_shares(
        vectors.first,
        vectors.second,
        vectors.identities,
        vectors.users > 0,
        temperature=settings.temperature,
    )
    return values, {}, state


def predicted(own: dict, x: jax.Array, weights: jax.Array) -> jax.Array:
    """[N, D]: linear, batch normalisation, ReLU, linear (SimSiam, section 3; BYOL).

    Normalised by mean and variance over the users of this batch, of all devices: predictors are
    for training alone.

    Args:
      own: kernels inner [D, H] and outer [H, D], and scale, shift [H], bias [D].
      x: [N, D].
      weights: [N], 0 leaves a vector out of mean and variance.
    """
    x = x @ own['inner']
    count = jnp.maximum(weights.sum(), 1)
    mean = weights @ x / count
    variance = weights @ (x - mean) ** 2 / count
    x = (x - mean) * jax.lax.rsqrt(variance + _EPSILON) * own['scale'] + own['shift']
    return jax.nn.relu(x) @ own['outer'] + own['bias']


def _predictor(settings, dim, kernel, rngs):
    del settings
    inner = max(dim // 4, 1)  # the bottleneck of SimSiam
    return {
        'inner': kernel(rngs.params(), (dim, inner), jnp.float32),
        'outer': kernel(rngs.params(), (inner, dim), jnp.float32),
        'scale': jnp.ones(inner),
        'shift': jnp.zeros(inner),
        'bias': jnp.zeros(dim),
    }


def _prototypes(settings, dim, kernel, rngs):
    return {'prototypes': kernel(rngs.params(), (settings.prototypes, dim), jnp.float32)}


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective, and what it needs.

    Attributes:
      values: the function.
      make: of its parameters, None if it has none.
      momentum: whether it asks for a momentum encoder: 'never', 'may' or 'must'.
      queue: whether it keeps the vectors of the momentum encoder.
    """

    values: Callable[[Any, Vectors, dict, dict], Result]
    make: Callable[..., dict] | None = None
    momentum: str = 'never'
    queue: bool = False


OBJECTIVES = {
    'info_nce': Objective(info_nce, momentum='may', queue=True),
    'decoupled': Objective(info_nce, momentum='may', queue=True),
    'swav': Objective(swav, _prototypes),
    'simsiam': Objective(simsiam, _predictor),
    'byol': Objective(byol, _predictor, momentum='must'),
    'direct_au': Objective(direct_au),
    'mixed': Objective(mixed),
}


def make(settings: Any, dim: int, kernel: Callable, rngs: nnx.Rngs) -> nnx.Dict:
    """The parameters of an objective, by name; empty where it has none."""
    found = OBJECTIVES[settings.objective].make
    values = found(settings, dim, kernel, rngs) if found else {}
    return nnx.Dict({name: nnx.Param(value) for name, value in values.items()})


def start(settings: Any, dim: int) -> dict[str, Any]:
    """The first state of an objective."""
    return {'queue': start_queue(settings.queue, dim)} if settings.queue else {}


def monitors(vectors: Vectors) -> dict[str, jax.Array]:
    """What is logged of any two views.

    Returns:
      alignment and uniformity (Wang & Isola 2020: mean |a - b|^2 over the pairs, log mean
      exp(-2 |a - a'|^2) over the users, of unit vectors), and spread, the standard deviation of
      unit vectors times sqrt(D): 0 where all users have the same vector.
    """
    with jax.named_scope('alignment'):
        first, second = (jax.lax.stop_gradient(x) for x in (vectors.first, vectors.second))
        weights = vectors.weights
        return {
            'alignment': losses.weighted_mean(losses.alignment(first, second), weights),
            'uniformity': losses.uniformity(first, weights),
            'spread': losses.spread(first, weights),
        }
