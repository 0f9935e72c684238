"""ComiRec-SA: controllable multi-interest recommendation (Cen et al., KDD 2020), self-attentive.

The head of the paper in the frame of this library: in-batch softmax of cuts instead of its sampled
softmax, and max over interests when serving (the paper's merge with controllable factor 0).
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import rng
from jaxrec.config import Feature, field
from jaxrec.nn import embeddings, item_tokens
from jaxrec.nn.attention import softmax_among
from jaxrec.nn.dropout import Key, dropout
from jaxrec.nn.embeddings import Rows, lookup
from jaxrec.nn.item_tokens import ItemTokens
from jaxrec.nn.linear import linear_layer
from jaxrec.objectives import in_batch
from jaxrec.objectives.in_batch import InBatch
from jaxrec.problem import Inputs, Model, ModelConfig

_STREAMS = ('encode', 'negatives')  # of a step's key


@dataclasses.dataclass
class Config(ModelConfig):
    """ComiRec-SA's hyper-parameters; it trains on task.windows='cuts'."""

    dim: int = field(64, least=1)
    interests: int = field(4, least=1)
    hidden: int = field(4, least=1)  # inner width of the attention, in multiples of dim
    max_len: int = field(50, least=1)  # newest events that the model sees
    features: tuple[Feature, ...] = ()  # of the events, beside the item
    feature_dim: int = field(16, least=1)  # width of each feature's vectors
    embedding_dropout: float = field(0.1, least=0, below=1, traced=True)
    in_batch: InBatch = dataclasses.field(default_factory=InBatch)  # settings of the loss
    items: ItemTokens = dataclasses.field(default_factory=ItemTokens)  # ids, texts or both
    init: str = field('xavier_normal', choices=embeddings.INITS)

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        self.in_batch.check()
        self.items.check(self.in_batch.similarity, '')

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'ComiRec':
        """Builds the model for items 1..sizes['item']."""
        return ComiRec(self, sizes, rngs=rngs)

    def inputs(self) -> Inputs:
        """What the model wants of the data."""
        texts = self.items.texts
        return Inputs(self.max_len, self.features, cuts=self.max_len, items=texts, texts=texts)

    def tables(self) -> dict[str, tuple[str, ...]]:
        """The item table, where it alone makes item vectors."""
        return {} if self.items.texts else {'table': ('items', 'targets', 'sampled')}

    def whole_batch(self) -> str:
        """The in-batch loss takes a batch's rows as each other's negatives."""
        return 'the in-batch loss of this model'


class ComiRec(Model):
    """K attentions over the history: V = softmax(W2 tanh(W1 (H + positions)))^T H (eq. 6, 7)."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        num_items = sizes['item']
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
        self.texts = item_tokens.make(config.items, sizes, config.init, config.dim, rngs)

    def item_table(self) -> jax.Array | Rows:
        """[mesh.table_rows(num_items), D]; row 0 and rows above num_items are padding."""
        return self.table[...]

    def catalogue(self, constants: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """{'items': item vectors [rows, D]}, as their dot products are scores."""
        table = item_tokens.table_of(self, constants)
        return {'items': in_batch.compared(self.config.in_batch, table)}

    def queries(self, batch: dict, catalogue: dict[str, jax.Array]) -> jax.Array:
        """User vectors [B, K, D] of right-aligned histories (items, segments, positions [B, W])."""
        table = in_batch.own_table(self, catalogue)
        return in_batch.compared(self.config.in_batch, self.encode(batch, table)[:, 0])

    def encode(
        self, batch: dict, table: jax.Array | Rows, key: Key = None, cuts: int = 1
    ) -> jax.Array:
        """The K interests at the last `cuts` places: [B, G, K, D]; zeros without a history.

        Args:
          batch: items, segments, positions: int32 [B, W], and features.
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
        weights = softmax_among(logits[:, None], real, axis=2)  # [B, G, W, K]
        return jnp.einsum('bgwk,bwd->bgkd', weights, x)

    def loss(
        self, batch: dict, constants: dict[str, jax.Array], carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """In-batch softmax of the interest nearest to the target (eq. 8, 9), and its terms."""
        keys = rng.keys(key, *_STREAMS, 'ids')
        wanted = item_tokens.looked_up(batch)
        table = item_tokens.table_of(self, constants, keys['ids'], wanted)
        queries = self.encode(batch, table, keys['encode'], batch['targets'].shape[1])
        queries = in_batch.compared(self.config.in_batch, queries)
        rows = lookup(table, batch['targets'])
        nearest = jnp.einsum('bgkd,bgd->bgk', queries, rows).argmax(2)
        chosen = jnp.take_along_axis(queries, nearest[..., None, None], axis=2)
        return in_batch.loss(self.config.in_batch, chosen, table, batch, carry, self.num_items)

    def sample(self, batch: dict, key: jax.Array) -> dict:
        """The batch with its uniform negatives, see `in_batch.sample`."""
        key = rng.keys(key, *_STREAMS)['negatives']
        return in_batch.sample(self.config.in_batch, batch, key, self.num_items)

    def carry(self) -> dict:
        """The frequency estimate, if the loss uses one."""
        return in_batch.start(self.config.in_batch, self.num_items, self.config.dim)
