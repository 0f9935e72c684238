"""Batch normalisation (Ioffe and Szegedy 2015): of the batch in training, of all before it after.

Running mean and variance are `Statistic`s: they lie among the parameters of a model, at the same
place on every mesh and in every checkpoint, but follow the batches instead of a gradient. In
training a step takes them from its carry (`put`), normalises by the batch, and hands the next ones
on (`statistics`); what is evaluated has those of the carry in their place, see
`training.state.evaluated`. So an evaluation never depends on what else is in its batch.
"""

import jax
import jax.numpy as jnp
from flax import nnx

RATE = 0.1  # least weight of a batch in the running mean and variance; of the nth it is 1 / n
EPSILON = 1e-5  # added to the variance


class Statistic(nnx.Param):
    """An array among the parameters that no gradient teaches."""


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(variance + EPSILON) scale + bias, over the rows of a batch that count.

    Args:
      shape: of a row.
      affine: whether there are scale and bias.
    """

    def __init__(self, shape: tuple[int, ...], *, affine: bool = True):
        self.mean, self.variance = Statistic(jnp.zeros(shape)), Statistic(jnp.ones(shape))
        self.batches = Statistic(jnp.zeros(()))  # that have been seen
        self.scale = nnx.Param(jnp.ones(shape)) if affine else None
        self.bias = nnx.Param(jnp.zeros(shape)) if affine else None

    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """x normalised.

        Args:
          x: [B, *shape].
          real: in training float32 [B], 1 on rows that count: the batch's statistics (the variance
            over n, as it is used) are taken, and the running ones move on. None: the running ones.
        """
        mean, variance = self.mean[...], self.variance[...]
        if real is not None:
            weights = real.reshape(-1, *[1] * (x.ndim - 1))
            total = real.sum()
            count = jnp.maximum(total, 1e-9)
            mean = (x * weights).sum(0) / count
            variance = (jnp.square(x - mean) * weights).sum(0) / count
            seen = self.batches[...] + (total > 0)
            rate = jnp.where(total > 0, jnp.maximum(RATE, 1 / jnp.maximum(seen, 1)), 0)
            self.batches[...] = seen
            for kept, new in ((self.mean, mean), (self.variance, variance)):
                kept[...] = kept[...] + rate * (jax.lax.stop_gradient(new) - kept[...])
        x = (x - mean) * jax.lax.rsqrt(variance + EPSILON)
        return x if self.scale is None else x * self.scale[...] + self.bias[...]


def statistics(module: nnx.Module) -> dict:
    """All `Statistic`s of a module, nested as in its parameters; {} if it has none."""
    return nnx.to_pure_dict(nnx.state(module, Statistic))


def put(module: nnx.Module, values: dict) -> None:
    """Sets the `Statistic`s of a module to what `statistics` gave."""
    state = nnx.state(module, Statistic)
    nnx.replace_by_pure_dict(state, values)
    nnx.update(module, state)
