"""GCN: semi-supervised classification of nodes (Kipf & Welling, ICLR 2017)."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import problem
from jaxrec.config import field
from jaxrec.devices.mesh import lookup
from jaxrec.losses import weighted_mean
from jaxrec.nn import propagate
from jaxrec.nn.dropout import Key, split_key


@dataclasses.dataclass
class Config(problem.ModelConfig):
    """Hyper-parameters of the two-layer GCN; the paper's for Cora."""

    hidden: int = field(16, least=1)
    dropout: float = field(0.5, least=0, below=1)  # of the features and of the hidden layer
    # factor of half the squared norm of the first layer's kernel
    weight_decay: float = field(5e-4, least=0)

    verbs: ClassVar[tuple[str, ...]] = ('scores', 'embed')  # what `tasks.nodes` may ask for

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'GCN':
        """Builds the model for sizes 'node', 'feature' and 'class'."""
        return GCN(self, sizes, rngs=rngs)


class Encoder(nnx.Module):
    """Layers x <- f_n(A drop(x) W_n) without biases; A is the normalised adjacency.

    Args:
      nodes: N.
      widths: of the features, then of every layer's output.
      activations: f_n, one for every layer.
    """

    def __init__(
        self,
        nodes: int,
        widths: tuple[int, ...],
        activations: tuple[Callable[[jax.Array], jax.Array], ...],
        *,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.xavier_uniform()
        self.nodes, self.activations = nodes, activations
        self.kernels = nnx.List(
            nnx.Param(init(rngs.params(), shape, jnp.float32))
            for shape in itertools.pairwise(widths)
        )

    def __call__(
        self,
        adjacency: propagate.Sparse,
        features: propagate.Sparse | jax.Array,
        rate: float = 0.0,
        key: Key = None,
        change: Callable[[jax.Array], jax.Array] = lambda x: x,
        at: int = -1,
    ) -> jax.Array:
        """Vectors [N, D] of all nodes.

        Args:
          adjacency: [N, N].
          features: [N, F].
          rate, key: dropout of every layer's input.
          change: a linear map over nodes, applied to the input of layer `at`, or to the output if
            there are `at` layers. It is applied behind the kernel, with which it commutes.
          at: see `change`; -1 = nowhere.
        """
        keys = split_key(key, len(self.kernels))
        x = features
        for n, (kernel, activation) in enumerate(zip(self.kernels, self.activations, strict=True)):
            y = propagate.multiply(
                propagate.drop_entries(x, rate, keys[n]), kernel[...], self.nodes
            )
            y = change(y) if n == at else y
            x = activation(propagate.propagate(adjacency, y, self.nodes))
        return change(x) if at == len(self.kernels) else x


class GCN(problem.Model):
    """Z = A relu(A X W_0) W_1, with dropout on X and on the hidden layer (eq. 9)."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config = config
        widths = (sizes['feature'], config.hidden, sizes['class'])
        self.encoder = Encoder(sizes['node'], widths, (jax.nn.relu, lambda x: x), rngs=rngs)

    def scores(self, batch: dict, constants: dict, key: Key = None) -> jax.Array:
        """Class logits [B, C] of the batch's nodes; `key` is of dropout, None at inference."""
        logits = self.encoder(
            constants['adjacency'], constants['features'], self.config.dropout, key
        )
        return lookup(logits, batch['nodes'])

    def embed(self, batch: dict, constants: dict) -> jax.Array:
        """Hidden layer [B, hidden] of the batch's nodes."""
        adjacency, nodes = constants['adjacency'], self.encoder.nodes
        y = propagate.multiply(constants['features'], self.encoder.kernels[0][...], nodes)
        hidden = jax.nn.relu(propagate.propagate(adjacency, y, nodes))
        return lookup(hidden, batch['nodes'])

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        """Softmax cross-entropy, plus weight_decay / 2 * |W_0|^2 as in the authors' code.

        Only the first layer decays, by its gradient as Adam sees it: AdamW's decay is another
        thing, and would take the second layer too. Nodes of label -1 take no part.

        Args:
          batch: nodes, labels: int32 [B], weights: float32 [B].
          constants: adjacency [N, N] and features [N, F].
          carry: handed on.
          key: of dropout.
        """
        logits = self.scores(batch, constants, key)
        labels = batch['labels']
        weights = jnp.where(labels >= 0, batch['weights'], 0)
        entropy = weighted_mean(cross_entropy(logits, labels), weights)
        decay = self.config.weight_decay / 2 * (self.encoder.kernels[0][...] ** 2).sum()
        return entropy + decay, ({'cross_entropy': entropy, 'decay': decay}, carry)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label]: [B] of logits [B, C] and int32 [B]; -1 picks no logit."""
    picked = (logits * jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - picked
