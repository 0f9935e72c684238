"""Experts and gates of multi-task models: MLPs side by side, and mixtures of what they say."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.devices.mesh import on_mesh
from jaxrec.nn.dropout import Key, dropout, split_key

ACTIVATIONS = {'relu': jax.nn.relu, 'swish': jax.nn.silu, 'none': lambda x: x}


class MLPs(nnx.Module):
    """N multi-layer perceptrons of equal widths, each with its own parameters, in one product.

    Kernels are Xavier uniform within each MLP, biases 0; a function of `rngs` alone.

    Args:
      count: N.
      widths: of the input, of every layer, and of the output.
      hidden: one of ACTIVATIONS, after every layer but the last.
      last: the same after the last.
      dropout: rate, after every hidden activation.
      rngs: of the parameters.
    """

    def __init__(
        self,
        count: int,
        widths: Sequence[int],
        *,
        hidden: str = 'relu',
        last: str = 'none',
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.count, self.hidden, self.last, self.dropout = count, hidden, last, dropout
        init = nnx.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', batch_axis=(0,))
        sizes = list(itertools.pairwise(widths))
        self.kernels = nnx.List(
            nnx.Param(init(rngs.params(), (count, *size), jnp.float32)) for size in sizes
        )
        self.biases = nnx.List(nnx.Param(jnp.zeros((count, size[1]))) for size in sizes)

    def __call__(self, x: jax.Array, key: Key = None) -> jax.Array:
        """[B, N, O] outputs.

        Args:
          x: [B, I], the same for all, or [B, N, I], each its own.
          key: dropout key; None at inference.
        """
        depth = len(self.kernels)
        keys = split_key(key, depth)
        for number in range(depth):
            last = number == depth - 1
            x = stacked_product(x, self.kernels[number][...]) + self.biases[number][...]
            x = ACTIVATIONS[self.last if last else self.hidden](x)
            if not last:
                x = dropout(x, self.dropout, keys[number])
        return x


class Mixture(nnx.Module):
    """MMoE's mixture (Ma et al. 2018): task t sees sum_e softmax(G_t x)_e E_e(x).

    With one expert there is nothing to gate: that is the shared bottom, for every task the same.

    Args:
      experts: E, how many.
      widths: of the input, of every layer of an expert, and of its output D.
      tasks: T, how many gates; each is linear.
      dropout: see `MLPs`.
      rngs: of the parameters.
    """

    def __init__(
        self,
        experts: int,
        widths: Sequence[int],
        tasks: int,
        *,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.tasks = tasks
        self.experts = MLPs(experts, widths, last='relu', dropout=dropout, rngs=rngs)
        self.gates = MLPs(tasks, (widths[0], experts), rngs=rngs) if experts > 1 else None

    def __call__(self, x: jax.Array, key: Key = None) -> jax.Array:
        """[B, T, D] of inputs [B, I]; `key` as in `MLPs`."""
        return mix(self.weights(x), self.experts(x, key))

    def weights(self, x: jax.Array) -> jax.Array:
        """[B, T, E] share of each expert in what each task sees; sums to 1 over experts."""
        if self.gates is None:
            return jnp.ones_like(x, shape=(x.shape[0], self.tasks, 1))
        return jax.nn.softmax(self.gates(x), axis=-1)


def mix(weights: jax.Array, experts: jax.Array) -> jax.Array:
    """sum_e weights[b, t, e] experts[b, e, :]: [B, T, D] of [B, T, E] and [B, E, D]."""
    return jnp.einsum('bte,bed->btd', weights, experts)


@jax.custom_vjp
def stacked_product(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """x @ kernels[n] for every n; the kernels' gradient is whole on every device of a mesh.

    Args:
      x: [B, I] or [B, N, I].
      kernels: [N, I, O].

    Returns:
      [B, N, O].
    """
    return jnp.einsum(f'{_axes(x)},nio->bno', x, kernels)


def _axes(x):
    return 'bi' if x.ndim == 2 else 'bni'


def _product_forward(x, kernels):
    return stacked_product(x, kernels), (x, kernels)


def _product_backward(residuals, g):
    x, kernels = residuals
    whole = jax.P(None, None, None) if on_mesh() else None
    d_x = jnp.einsum(f'bno,nio->{_axes(x)}', g, kernels)
    d_kernels = jnp.einsum(f'{_axes(x)},bno->nio', x, g, out_sharding=whole)
    return d_x, d_kernels


stacked_product.defvjp(_product_forward, _product_backward)
