"""Experts and gates of multi-task models: MLPs side by side, and mixtures of what they say.

Every head is levels of `Mixture`: who listens to which experts, and how a listener's own ones reach
it, is data (`problem.Level`, OWN).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrec.devices.mesh import on_mesh, reshape_rows
from jaxrec.nn.batch_norm import BatchNorm
from jaxrec.nn.dropout import Key, dropout, split_key
from jaxrec.problem import Level

ACTIVATIONS = {
    'relu': jax.nn.relu,
    'swish': jax.nn.silu,
    'sigmoid': jax.nn.sigmoid,
    'none': lambda x: x,
}
KINDS = {  # of an expert
    'relu': {'hidden': 'relu', 'last': 'relu'},  # as published before HoME
    'bn_swish': {'hidden': 'swish', 'last': 'swish', 'norm': True},  # HoME: Swish(BN(MLP(x)))
}
OWN = ('', 'self', 'native')  # what a listener hears of its own experts besides its gate


class MLPs(nnx.Module):
    """N multi-layer perceptrons of equal widths, each with its own parameters, in one product.

    Kernels are Xavier uniform within each MLP, biases 0; a function of `rngs` alone.

    Args:
      count: N.
      widths: of the input, of every layer, and of the output.
      hidden: one of ACTIVATIONS, or 'dice' (`Dice`), after every layer but the last.
      last: the same after the last.
      norm: batch normalisation between the last layer, without bias then, and its activation.
      bias: whether layers have one.
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
        norm: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.count, self.hidden, self.last, self.dropout = count, hidden, last, dropout
        init = nnx.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', batch_axis=(0,))
        sizes = list(itertools.pairwise(widths))
        self.kernels = nnx.List(
            nnx.Param(init(rngs.params(), (count, *size), jnp.float32)) for size in sizes
        )
        with_bias = [bias] * (len(sizes) - 1) + [bias and not norm]
        self.biases = nnx.List(
            nnx.Param(jnp.zeros((count, size[1]))) if has else None
            for size, has in zip(sizes, with_bias, strict=True)
        )
        inner = sizes[:-1] if hidden == 'dice' else ()
        self.dice = nnx.List(Dice((count, size[1])) for size in inner)
        self.norm = BatchNorm((count, widths[-1])) if norm else None

    def __call__(self, x: jax.Array, key: Key = None, real: jax.Array | None = None) -> jax.Array:
        """[B, N, O] outputs.

        Args:
          x: [B, I], the same for all, or [B, N, I], each its own.
          key: dropout key; None at inference.
          real: of the rows in training, see `BatchNorm`; None at inference.
        """
        depth = len(self.kernels)
        keys = split_key(key, depth)
        for number in range(depth):
            last = number == depth - 1
            x = stacked_product(x, self.kernels[number][...])
            x = x if self.biases[number] is None else x + self.biases[number][...]
            x = self.norm(x, real) if last and self.norm is not None else x
            if last:
                return ACTIVATIONS[self.last](x)
            x = self.dice[number](x, real) if self.dice else ACTIVATIONS[self.hidden](x)
            x = dropout(x, self.dropout, keys[number])


class Dice(nnx.Module):
    """DIN's activation (Zhou et al. 2018): p x + (1 - p) alpha x, p = sigmoid(normalised x).

    Args:
      shape: of a row; alpha begins with 0.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.norm, self.alpha = BatchNorm(shape, affine=False), nnx.Param(jnp.zeros(shape))

    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """x of the same shape; `real` as in `BatchNorm`."""
        share = jax.nn.sigmoid(self.norm(x, real))
        return x * (share + (1 - share) * self.alpha[...])


class Mixed(NamedTuple):
    """What a level of C listeners and E experts gave, and how."""

    out: jax.Array  # [B, C, D]
    weights: jax.Array  # [B, C, E]
    experts: jax.Array  # [B, E, D]


class Mixture(nnx.Module):
    """Experts and gates: listener c hears sum_e W(x)[c, e] E_e(x), with

        W = softmax over the experts it sees of (G_c x), and of its own experts also
        'self':    softmax over these of (S_c x), sigmoid if it is one (HoME's self gate)
        'native':  a learned number each, 1 if it is one (AdaTT's residual)

    MMoE (Ma et al. 2018) is the one in which all see all. Where nobody sees more than one expert
    there is nothing to gate; if it is the same for all, that is the shared bottom. Gates are linear
    and have a column for every expert: those of experts that a listener does not see are not read.

    Args:
      level: listeners, experts and who sees whom.
      widths: of the experts' input, of every layer of an expert, and of its output D.
      selector: width of the gates' input; 0 = the experts' own input.
      kind: of the experts, one of KINDS.
      own: one of OWN.
      dropout: see `MLPs`.
      rngs: of the parameters.
    """

    def __init__(
        self,
        level: Level,
        widths: Sequence[int],
        *,
        selector: int = 0,
        kind: str = 'relu',
        own: str = '',
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.level, shape = level, level.sees.shape
        self.experts = MLPs(shape[1], widths, dropout=dropout, rngs=rngs, **KINDS[kind])
        gate = lambda: MLPs(shape[0], (selector or widths[0], shape[1]), rngs=rngs)  # noqa: E731
        self.gates = gate() if level.sees.sum(1).max() > 1 else None
        self.self_gates = gate() if own == 'self' and level.own.any() else None
        native = own == 'native' and level.own.any()
        self.native = nnx.Param(_native(level.own, rngs)) if native else None

    def __call__(
        self,
        x: jax.Array,
        selector: jax.Array | None = None,
        key: Key = None,
        real: jax.Array | None = None,
    ) -> Mixed:
        """What listeners hear, and how it came about.

        Args:
          x: [B, I], or [B, E, I], an input for each expert.
          selector: [B, J] or [B, C, J], what the gates see; None = x.
          key, real: see `MLPs`.
        """
        weights, said = (
            self.weights(x if selector is None else selector),
            self.experts(x, key, real),
        )
        return Mixed(mix(weights, said), weights, said)

    def weights(self, x: jax.Array) -> jax.Array:
        """[B, C, E] of what the gates see."""
        sees, own = self.level.sees, self.level.own
        if self.gates is None:
            weights = jnp.ones_like(x, shape=(x.shape[0], 1, 1)) * sees.astype(np.float32)
        else:
            weights = _shares(self.gates(x), sees)
        if self.self_gates is not None:
            logits = self.self_gates(x)
            alone = own.sum(1, keepdims=True) == 1
            shares = jnp.where(alone, jax.nn.sigmoid(logits), _shares(logits, own))
            weights = weights + shares * own.astype(np.float32)
        if self.native is not None:
            alone = own.sum(1, keepdims=True) == 1
            weights = weights + jnp.where(alone, 1, self.native[...]) * own.astype(np.float32)
        return weights


def _native(own, rngs):
    """Uniform within 1 / sqrt(own experts): float32 [C, E]."""
    bound = np.maximum(own.sum(1, keepdims=True), 1).astype(np.float32) ** -0.5
    return jax.random.uniform(rngs.params(), own.shape, minval=-1, maxval=1) * bound


def _shares(logits, seen):
    """Softmax over the experts that are seen: [B, C, E]."""
    if not seen.all():
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(logits, axis=-1)


class Levels(nnx.Module):
    """Mixtures one above the other: an expert sees its owner's stream, a gate its listener's.

    At the first level there is one stream, the input. A level's streams are what the listeners of
    the one below have heard.

    Args:
      levels: from the input on; the last one's listeners are heard by who comes next.
      widths: of every level, see `Mixture`.
      kind, own, dropout, rngs: see `Mixture`.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        widths: Sequence[Sequence[int]],
        *,
        kind: str = 'relu',
        own: str = '',
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.mixtures = nnx.List(
            Mixture(level, sizes, kind=kind, own=own, dropout=dropout, rngs=rngs)
            for level, sizes in zip(levels, widths, strict=True)
        )
        self.width = widths[-1][-1]

    def __call__(
        self, x: jax.Array, key: Key = None, real: jax.Array | None = None
    ) -> tuple[jax.Array, list[Mixed]]:
        """[B, C, D] of the last level for x [B, I], and what every level was like."""
        keys = split_key(key, len(self.mixtures)) if len(self.mixtures) > 1 else [key]
        below, levels = None, []
        for mixture, level_key in zip(self.mixtures, keys, strict=True):
            level, selector = mixture.level, None
            if levels:
                heard = levels[-1].out
                x = streams(heard, below.listeners, level.owners)
                selector = streams(heard, below.listeners, level.listeners)
            levels.append(mixture(x, selector, level_key, real))
            below = level
        return levels[-1].out, levels


def streams(x: jax.Array, there: Sequence[str], wanted: Sequence[str]) -> jax.Array:
    """[B, len(wanted), D] of x [B, len(there), D]: of every name the stream called so."""
    return jnp.stack([x[:, there.index(name)] for name in wanted], axis=1)


class FeatureGate(nnx.Module):
    """HoME's feature gate: x FG(x), FG(x) = sum_l softmax(G x)_l 2 sigmoid(x B_l A_l), N of them.

    Computed as 1 + sum_l softmax(G x)_l tanh(x B_l A_l / 2), the same: it is exactly 1 where A or B
    is 0. B_l is [I, I / L] and A_l [I / L, I], rounded down, so there are 2 I^2 parameters.

    Args:
      count: N.
      width: I.
      parts: L.
      rngs: of the parameters.
    """

    def __init__(self, count: int, width: int, parts: int, *, rngs: nnx.Rngs):
        self.parts = parts
        rank = max(width // parts, 1)
        widths = (width, rank, width)
        self.masks = MLPs(count * parts, widths, hidden='none', bias=False, rngs=rngs)
        self.gates = MLPs(count, (width, parts), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, I] of x [B, I], the same for all, or [B, N, I], each its own."""
        shares = jax.nn.softmax(self.gates(x), axis=-1)  # [B, N, L]
        every = x if x.ndim == 2 else jnp.repeat(x, self.parts, axis=1)
        masks = jnp.tanh(self.masks(every) / 2)
        masks = reshape_rows(masks, (masks.shape[0], *shares.shape[1:], masks.shape[2]))
        gate = 1 + jnp.einsum('bnl,bnli->bni', shares, masks)
        return gate * (x[:, None] if x.ndim == 2 else x)


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
