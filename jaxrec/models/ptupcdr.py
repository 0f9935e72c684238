"""PTUPCDR: a bridge of its own for every user's preferences (Zhu et al., WSDM 2022).

A user's vector in the source domain times a matrix is the vector in the target domain; the matrix
comes of what the user likes. With one matrix for everybody it is EMCDR (Man et al., IJCAI 2017),
trained by the loss of the ratings and not of the vectors. Vectors of both domains are those of a
biased factorisation, which stay as they are; the published code has a dot product without biases,
which loses to the mean of the item. Preferences in units of their deviation, as CDRNP reads them,
were worse: five seeds, MAE .7425 instead of .7385 (ML-1M, a fifth cold).
"""

import dataclasses
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import losses
from jaxrec.config import field
from jaxrec.devices.mesh import replicated, reshape_rows
from jaxrec.nn.attention import softmax_among
from jaxrec.nn.embeddings import lookup, values_at
from jaxrec.problem import Inputs, Model, ModelConfig

BRIDGES = ('meta', 'linear')


@dataclasses.dataclass
class Config(ModelConfig):
    """PTUPCDR's hyper-parameters; the defaults are those of the authors' code."""

    bridge: str = field('meta', choices=BRIDGES)  # the user's own matrix, or one for everybody
    hidden: int = field(50, least=1)  # of both networks
    decay: float = field(0.0, least=0, traced=True)  # of the mean squared entry of the matrices

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'PTUPCDR':
        """Builds the model for vectors of sizes['factor']."""
        return PTUPCDR(self, sizes['factor'], rngs=rngs)

    def inputs(self) -> Inputs:
        """Users by number."""
        return Inputs(users=True)


class Layers(nnx.Module):
    """Linear layers with ReLU between them.

    Args:
      widths: of the input and of every layer.
      zero: whether the last layer begins at 0.
    """

    def __init__(self, widths: tuple[int, ...], *, rngs: nnx.Rngs, zero: bool = False):
        init = nnx.initializers.lecun_normal()
        shapes = list(itertools.pairwise(widths))
        kernels = [init(rngs.params(), shape, jnp.float32) for shape in shapes]
        if zero:
            kernels[-1] = jnp.zeros_like(kernels[-1])
        self.kernels = nnx.List(map(nnx.Param, kernels))
        self.biases = nnx.List(nnx.Param(jnp.zeros(shape[1])) for shape in shapes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[.., last width] of [.., first width]."""
        for n, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = x @ replicated(kernel[...]) + bias[...]
            x = jax.nn.relu(x) if n + 1 < len(self.kernels) else x
        return x


class Preferences(nnx.Module):
    """c_u = sum_j softmax_j(MLP(q_j)) q_j over the items that a user likes; 0 of who likes none."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs):
        self.weigh = Layers((dim, hidden, 1), rngs=rngs)

    def __call__(self, liked: jax.Array, items: jax.Array) -> jax.Array:
        """[B, d] of items int32 [B, H], 0 = none, and the vectors of all [rows, d]."""
        vectors, real = lookup(items, liked), liked > 0
        weights = softmax_among(self.weigh(vectors)[..., 0], real)
        return jnp.einsum('bh,bhd->bd', weights, vectors)


def base(batch: dict, constants: dict) -> jax.Array:
    """float32 [B], mean + b_i + k b_u, of the constants of `tasks.ratings`.

    Of ratings that are learnt, b_i without the rating itself where they say so ('item_base').
    """
    known = constants['base']
    if 'item_base' in batch:
        of_items = batch['item_base']
    else:
        of_items = values_at(known['items'], batch['items'])
    return of_items + values_at(known['users'], batch['users'])


def item_factors(batch: dict, constants: dict) -> jax.Array:
    """float32 [B, d], q_i, likewise ('item_factors')."""
    if 'item_factors' in batch:
        return batch['item_factors']
    return lookup(constants['vectors']['items'], batch['items'])


class PTUPCDR(Model):
    """mean + b_i + k b_u + (p_u W_u) . q_i, W_u = MLP(c_u)."""

    def __init__(self, config: Config, dim: int, *, rngs: nnx.Rngs):
        self.config, self.dim = config, dim
        if config.bridge == 'meta':
            self.preferences = Preferences(dim, config.hidden, rngs=rngs)
            self.meta = Layers((dim, config.hidden, dim * dim), rngs=rngs)
        else:
            init = nnx.initializers.lecun_normal()
            self.bridge = nnx.Param(init(rngs.params(), (dim, dim), jnp.float32))

    def bridges(self, batch: dict, constants: dict) -> jax.Array:
        """W_u [B, d, d]."""
        rows = batch['users'].shape[0]
        if self.config.bridge == 'linear':
            one = jnp.ones_like(batch['users'], jnp.float32)
            return one[:, None, None] * replicated(self.bridge[...])
        items = constants['vectors']['items']
        likes = self.preferences(lookup(constants['liked'], batch['users']), items)
        return reshape_rows(self.meta(likes), (rows, self.dim, self.dim))

    def ratings(self, batch: dict, constants: dict) -> jax.Array:
        """float32 [B]; see `tasks.ratings`."""
        return self._ratings(batch, constants, self.bridges(batch, constants))

    def _ratings(self, batch, constants, bridges):
        p = lookup(constants['vectors']['users'], batch['users'])
        q = item_factors(batch, constants)
        return base(batch, constants) + jnp.einsum('bd,bde,be->b', p, bridges, q)

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        """The squared error of ratings."""
        del key
        bridges = self.bridges(batch, constants)
        error = self._ratings(batch, constants, bridges) - batch['ratings']
        value = losses.weighted_mean(error**2, batch['weights'])
        decay = losses.weighted_mean((bridges**2).mean((1, 2)), batch['weights'])
        return value + self.config.decay * decay, ({'mse': value}, carry)
