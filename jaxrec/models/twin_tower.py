"""A twin tower of titles (Zhuanzhuan): item-to-item lists that need nothing but texts.

An item's title is the mean of its words' vectors, t; an auto-encoder makes r of it, the positive of
t; the negative is an item of the batch that is clicked as differently as can be. Both sides go
through the same layers, and are asked whether they belong together. Our reading of a short
description: its dimensions, the cosine as what is compared, dropout before the auto-encoder (else
r is a near copy), and gradients through r are choices. `positive='near'` takes an item that was
clicked together with it instead, which teaches what the auto-encoder cannot.
"""

import dataclasses
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import losses, rng
from jaxrec.config import field
from jaxrec.data.item_batches import HOW
from jaxrec.devices.mesh import TABLE, placed, replicated, table_rows
from jaxrec.errors import UserError
from jaxrec.losses import unit, weighted_mean
from jaxrec.nn import embeddings
from jaxrec.nn.dropout import Key, dropout
from jaxrec.nn.embeddings import lookup
from jaxrec.nn.linear import linear_layer
from jaxrec.problem import Inputs, Model, ModelConfig

_STREAMS = ('input', 'near')  # of a step's key
_NONE = -1e9  # logit of a negative that is not there


@dataclasses.dataclass
class Config(ModelConfig):
    """Hyper-parameters; it trains on items by themselves (task.windows='items')."""

    widths: tuple[int, ...] = (128, 64, 32)  # of the shared layers; the last is the vectors'
    hidden: int = field(64, least=1)  # of the auto-encoder
    dropout: float = field(0.2, least=0, below=1)  # of the numbers of t before the auto-encoder
    positive: str = field('autoencoder', choices=('autoencoder', 'near'))
    loss: str = field('bce', choices=('bce', 'info_nce'))
    # bce, in the batch: of the lowest click similarity, of the lowest tenth, or any
    negatives: str = field('lowest', choices=HOW)
    temperature: float = field(0.1, above=0)  # of the cosines of info_nce
    reconstruction: float = field(1.0, least=0)  # weight of |r - t|^2
    residual: bool = False  # vectors are t W + the layers of t: they begin near the texts' own
    init: str = field('xavier_normal', choices=embeddings.INITS)

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if not self.widths or min(self.widths) < 1:
            raise UserError(f'model.widths={self.widths} must be at least 1 each, and one at least')

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'TwinTower':
        """Builds the model for texts of sizes['text'] numbers and items 1..sizes['item']."""
        return TwinTower(self, sizes, rngs=rngs)

    def inputs(self) -> Inputs:
        """Items by themselves and their texts; of a history it reads the newest event."""
        return Inputs(max_len=1, items=True, texts=True, alone=self.negatives)

    def whole_batch(self) -> str:
        """A batch's rows are each other's negatives."""
        return 'the negatives of this model'


class TwinTower(Model):
    """The score of an item after another is the cosine of their texts' vectors."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config, self.num_items = config, sizes['item']
        linear = linear_layer(embeddings.INITS[config.init], jnp.float32)
        dim = sizes['text']
        pairs = itertools.pairwise((dim, *config.widths))
        self.layers = nnx.List(linear(a, b, rngs=rngs) for a, b in pairs)
        self.shortcut = linear(dim, config.widths[-1], rngs=rngs) if config.residual else None
        self.encoder = linear(dim, config.hidden, rngs=rngs)
        self.decoder = linear(config.hidden, dim, rngs=rngs)
        self.scale = nnx.Param(jnp.asarray(5.0))  # of the cosine, in the logit
        self.shift = nnx.Param(jnp.asarray(0.0))

    def tower(self, texts: jax.Array) -> jax.Array:
        """Unit vectors [n, D] of texts' vectors [n, d]; 0 where these are 0."""
        x = texts[None]
        for n, layer in enumerate(self.layers):
            x = layer(jax.nn.relu(x) if n else x)
        if self.shortcut is not None:
            x = x + self.shortcut(texts[None])
        return unit(x[0]) * (texts != 0).any(-1, keepdims=True)

    def reconstructed(self, texts: jax.Array, key: Key = None) -> jax.Array:
        """r [n, d] of texts' vectors t [n, d]."""
        x = dropout(texts[None], self.config.dropout, key)
        return self.decoder(jax.nn.relu(self.encoder(x)))[0]

    def logits(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """[n], whether two of `tower`'s vectors belong together: w cos + b."""
        return self.scale[...] * (first * second).sum(-1) + self.shift[...]

    def catalogue(self, constants: dict) -> dict[str, jax.Array]:
        """{'items': [rows, D]} of all items."""
        texts = constants['items']['texts']
        beyond = (0, table_rows(self.num_items) - len(texts))
        return {'items': self.tower(placed(jnp.pad(texts, (beyond, (0, 0))), TABLE))}

    def queries(self, batch: dict, catalogue: dict[str, jax.Array]) -> jax.Array:
        """[B, 1, D], the vector of the newest event of right-aligned histories."""
        return lookup(catalogue['items'], batch['items'][:, -1:])

    def text_queries(self, vectors: jax.Array) -> jax.Array:
        """[n, 1, D] of the vectors [n, d] of any texts."""
        return self.tower(vectors)[:, None]

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """BCE of pairs, or InfoNCE over the batch, and the auto-encoder's squared error."""
        config, texts = self.config, constants['items']['texts']
        keys = rng.keys(key, *_STREAMS)
        batch = {name: replicated(x) for name, x in batch.items()}
        own, weights, terms, total = texts[batch['items']], batch['weights'], {}, 0.0
        if config.positive == 'autoencoder':
            other = self.reconstructed(own, keys['input'])
            terms['reconstruction'] = weighted_mean(((other - own) ** 2).sum(-1), weights)
            total = config.reconstruction * terms['reconstruction']
        else:  # dropout makes the two sides differ here too
            weights = weights * (batch['near'] > 0)
            other = dropout(texts[batch['near']][None], config.dropout, keys['near'])[0]
            own = dropout(own[None], config.dropout, keys['input'])[0]
        first, second = self.tower(own), self.tower(other)
        if config.loss == 'bce':
            negative = self.logits(first, self.tower(texts[batch['negatives']]))
            negative = jnp.where(batch['negatives'] > 0, negative, _NONE)
            values = losses.bce(self.logits(first, second), negative[:, None])
        else:
            hidden = batch['titles'][:, None] == batch['titles']
            if config.positive == 'near':
                hidden = hidden | meet(batch['items'], batch['near'])
            values = losses.info_nce(
                first, second, temperature=config.temperature, hidden=hidden | (weights == 0)
            ).mean(0)
        terms[config.loss] = weighted_mean(values, weights)
        terms['near_copies'] = weighted_mean(unit_cosine(own, other), weights)
        return total + terms[config.loss], (terms, carry)


def meet(items: jax.Array, near: jax.Array) -> jax.Array:
    """bool [n, n], whether an item of {items, near} of two rows is the same, 0 = none."""
    both = jnp.stack([items, near], axis=1)
    same = (both[:, None, :, None] == both[:, None]) & (both > 0)[:, None, :, None]
    return same.any((2, 3))


def unit_cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """[n] cosines of rows: how near the positive is to the item before any layer."""
    return (unit(first) * unit(second)).sum(-1)
