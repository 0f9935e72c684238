"""The optimiser that an experiment's Optim describes (optax)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from jaxrec import config
from jaxrec.problem import ModelConfig


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters are trained.

    Attributes:
      settings: the experiment's.
      schedule: learning rate by step.
      tx: of all parameters, or of all but `tables`.
      tables: those that `training.sparse` looks after, see `problem.ModelConfig.tables`.
    """

    settings: config.Optim
    schedule: optax.Schedule
    tx: optax.GradientTransformation
    tables: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def sparse(self) -> bool:
        return bool(self.tables)


def make_optimizer(
    optim: config.Optim, model: ModelConfig, steps: int, begun: int = 0
) -> Optimizer:
    """Adam, or AdamW when weight_decay > 0, after clipping by global norm if asked for.

    Args:
      optim: the experiment's settings.
      model: whose tables may be updated sparsely.
      steps: length of the decay, in steps.
      begun: steps that the state had behind it when the run began; the schedule starts there.
    """
    peak, warmup = optim.learning_rate, optim.warmup_steps
    decay = max(steps - warmup, 1)
    after = {
        'constant': lambda: optax.constant_schedule(peak),
        'linear': lambda: optax.linear_schedule(peak, 0.0, decay),
        'cosine': lambda: optax.cosine_decay_schedule(peak, decay),
    }
    schedule = after[optim.schedule]()
    if warmup:
        rise = optax.linear_schedule(0.0, peak, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])
    if begun:
        schedule = functools.partial(_later, schedule, begun)
    moments = {'b1': optim.b1, 'b2': optim.b2, 'eps': optim.eps}
    if optim.weight_decay:
        adam = optax.adamw(schedule, **moments, weight_decay=optim.weight_decay)
    else:
        adam = optax.adam(schedule, **moments)
    if optim.clip_norm:
        adam = optax.chain(optax.clip_by_global_norm(optim.clip_norm), adam)
    return Optimizer(optim, schedule, adam, {} if optim.table == 'dense' else model.tables())


def _later(schedule, begun, count):
    return schedule(count - begun)


def average(old, new, decay: float, step):
    """Moving average of parameters: decay * old + (1 - decay) * new.

    In the first steps the decay is (1 + step) / (10 + step) if that is less, so that the average
    does not hang on to the initial values.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: b + (a - b) * decay.astype(b.dtype), old, new)
