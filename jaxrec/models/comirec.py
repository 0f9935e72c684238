"""ComiRec-SA: controllable multi-interest recommendation (Cen et al., KDD 2020), self-attentive.

The head of the paper in the frame of this library: in-batch softmax of cuts instead of its sampled
softmax, and max over interests when serving (the paper's merge with controllable factor 0).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.config import Data, Feature
from jaxrec.data.features import check_features
from jaxrec.devices.mesh import lookup
from jaxrec.errors import UserError
from jaxrec.nn import embeddings
from jaxrec.nn.dropout import Key, dropout
from jaxrec.nn.linear import linear_layer
from jaxrec.objectives import in_batch
from jaxrec.objectives.in_batch import InBatch


@dataclasses.dataclass
class Config:
    """ComiRec-SA's hyper-parameters; it trains on data.windows='cuts'."""

    dim: int = 64
    interests: int = 4
    hidden: int = 4  # inner width of the attention, in multiples of dim (the authors' code)
    max_len: int = 50  # newest events that the model sees
    features: tuple[Feature, ...] = ()  # of the events, beside the item
    feature_dim: int = 16  # width of each feature's vectors
    embedding_dropout: float = 0.1
    in_batch: InBatch = dataclasses.field(default_factory=InBatch)  # settings of the loss
    init: str = 'xavier_normal'  # see embeddings.INITS

    def make(self, num_items: int, *, rngs: nnx.Rngs) -> 'ComiRec':
        """Builds the model for items 1..num_items; UserError for a value that cannot be."""
        self.in_batch.check()
        check_features(self.features)
        for name in ('dim', 'interests', 'hidden', 'max_len', 'feature_dim'):
            if getattr(self, name) < 1:
                raise UserError(f'model.{name}={getattr(self, name)} is too small')
        if not 0 <= self.embedding_dropout < 1:
            raise UserError(f'model.embedding_dropout={self.embedding_dropout} is not in [0, 1)')
        if self.init not in embeddings.INITS:
            raise UserError(f'model.init={self.init!r} is not one of {", ".join(embeddings.INITS)}')
        return ComiRec(self, num_items, rngs=rngs)

    def check_data(self, data: Data) -> None:
        """Raises UserError for data that the model cannot train on."""
        if data.windows != 'cuts':
            raise UserError(f"ComiRec trains on data.windows='cuts', not {data.windows!r}")


class ComiRec(in_batch.InBatchModel):
    """K attentions over the history: V = softmax(W2 tanh(W1 (H + positions)))^T H (eq. 6, 7)."""

    def __init__(self, config: Config, num_items: int, *, rngs: nnx.Rngs):
        self.config, self.num_items, self.max_len = config, num_items, config.max_len
        init = embeddings.INITS[config.init]
        linear = linear_layer(init, jnp.float32, bias=False)
        table = embeddings.item_table(config.init, config.dim, num_items, rngs.params())
        self.table = nnx.Param(table)
        self.positions = nnx.Param(init(rngs.params(), (config.max_len, config.dim), jnp.float32))
        self.tokens = (
            embeddings.Tokens(config.features, config.dim, config.feature_dim, linear, rngs=rngs)
            if config.features
            else None
        )
        self.inner = linear(config.dim, config.hidden * config.dim, rngs=rngs)
        self.outer = linear(config.hidden * config.dim, config.interests, rngs=rngs)

    def item_table(self) -> jax.Array:
        """[sharding.table_rows(num_items), D]; row 0 and rows above num_items are padding."""
        return self.table[...]

    def queries(self, history: dict) -> jax.Array:
        """User vectors [B, K, D] of right-aligned histories (items, segments, positions [B, W])."""
        return self.encode(history, self.item_table())[:, 0]

    def encode(self, batch: dict, table: jax.Array, key: Key = None, cuts: int = 1) -> jax.Array:
        """The K interests at the last `cuts` places: [B, G, K, D]; zeros without a history.

        Args:
          batch: items, segments, positions: int32 [B, W], and feature.*.
          table: item table to look the items up in.
          key: dropout key; None at inference.
          cuts: G.
        """
        x = lookup(table, batch['items']) * self.config.dim**0.5
        if self.tokens is not None:
            x = self.tokens(x, batch)
        x = dropout(x, self.config.embedding_dropout, key)
        placed = x + lookup(self.positions[...], batch['positions'])
        logits = self.outer(jnp.tanh(self.inner(placed)))  # [B, W, K]
        width = logits.shape[1]
        before = jnp.arange(width) < width - jnp.arange(cuts)[::-1, None]  # [G, W]
        real = ((batch['segments'] > 0)[:, None] & before)[..., None]
        logits = jnp.where(real, logits[:, None], jnp.finfo(logits.dtype).min)
        weights = jax.nn.softmax(logits, axis=2) * real  # [B, G, W, K]
        return jnp.einsum('bgwk,bwd->bgkd', weights, x)

    def loss(self, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """In-batch softmax of the interest nearest to the target (eq. 8, 9), and its terms."""
        encode_key, _ = jax.random.split(key)
        table = self.item_table()
        queries = self.encode(batch, table, encode_key, batch['targets'].shape[1])
        batch = self.sample(batch, key)
        rows = lookup(table, batch['targets'])
        nearest = jnp.einsum('bgkd,bgd->bgk', queries, rows).argmax(2)
        chosen = jnp.take_along_axis(queries, nearest[..., None, None], axis=2)
        return in_batch.loss(self.config.in_batch, chosen, table, batch, self.num_items)
