"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018), and its heirs."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from jaxrec import losses
from jaxrec.config import Data, Feature
from jaxrec.data.features import check_features
from jaxrec.devices.mesh import lookup, on_mesh
from jaxrec.errors import UserError
from jaxrec.nn import embeddings
from jaxrec.nn.attention import causal_mask
from jaxrec.nn.blocks import BLOCKS
from jaxrec.nn.dropout import Key, dropout, dropout_rows, split_key
from jaxrec.nn.linear import layer_norm, linear_layer
from jaxrec.objectives import in_batch
from jaxrec.objectives.in_batch import InBatch
from jaxrec.objectives.next_item import negative_scores


@dataclasses.dataclass
class Config:
    """SASRec's hyper-parameters; the defaults are those of a strong modern baseline."""

    variant: str = '2018'  # 2018 (the authors' code) | pre_ln | ligr
    dim: int = 64
    blocks: int = 2
    heads: int = 1
    ffn: int = 1  # inner width of the feed-forward layer, in multiples of dim
    max_len: int = 50  # newest events that the model sees
    dropout: float = 0.2  # inside the blocks: attention weights and feed-forward
    embedding_dropout: float = 0.2  # on the sum of item and position vectors
    table_dropout: float = 0.0  # on the item table itself: one mask per step, both its uses
    loss: str = 'softmax'  # softmax | sampled_softmax | bce | gbce | in_batch (data.windows='cuts')
    negatives: int = 256  # of the sampled losses
    negatives_per: str = 'position'  # negatives shared per batch | row | position, or 'data' (drawn
    # by the data pipeline outside the user's items: data.unseen_negatives)
    logq: bool = False  # sampled_softmax: negatives weighted to estimate the exact denominator
    gbce_t: float = 0.75  # gbce: calibration
    label_smoothing: float = 0.0  # softmax
    in_batch: InBatch = dataclasses.field(default_factory=InBatch)  # settings of that loss
    features: tuple[Feature, ...] = ()  # of the events, beside the item
    feature_dim: int = 16  # width of each feature's vectors
    init: str = 'xavier_normal'  # xavier_uniform (the authors' code) | xavier_normal | normal (.02)
    bf16: bool = False  # compute in bfloat16; parameters, scores and losses stay float32

    def make(self, num_items: int, *, rngs: nnx.Rngs) -> 'SASRec':
        """Builds the model for items 1..num_items; UserError for a value that cannot be."""
        self.check()
        return SASRec(self, num_items, rngs=rngs)

    def check(self) -> None:
        """Raises UserError for a value that cannot be."""
        _one_of('variant', self.variant, BLOCKS)
        _one_of('loss', self.loss, ('softmax', 'sampled_softmax', 'bce', 'gbce', 'in_batch'))
        _one_of('negatives_per', self.negatives_per, ('batch', 'row', 'position', 'data'))
        _one_of('init', self.init, embeddings.INITS)
        self.in_batch.check()
        check_features(self.features)
        for name in ('dim', 'blocks', 'heads', 'ffn', 'max_len', 'negatives', 'feature_dim'):
            if getattr(self, name) < (0 if name == 'blocks' else 1):
                raise UserError(f'model.{name}={getattr(self, name)} is too small')
        for name in ('dropout', 'embedding_dropout', 'table_dropout', 'label_smoothing'):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f'model.{name}={getattr(self, name)} is not in [0, 1)')
        if self.dim % self.heads:
            raise UserError(f'model.dim={self.dim} is not a multiple of model.heads={self.heads}')
        if not 0 <= self.gbce_t <= 1:
            raise UserError(f'model.gbce_t={self.gbce_t} is not in [0, 1]')

    def check_data(self, data: Data) -> None:
        """Raises UserError for data that the model cannot train on."""
        if (data.windows == 'cuts') != (self.loss == 'in_batch'):
            raise UserError(
                "data.windows='cuts' and model.loss='in_batch' go together; here they are "
                f'{data.windows!r} and {self.loss!r}'
            )


class SASRec(nnx.Module):
    """A causal transformer over item vectors; the score of an item is a dot product (tied table).

    With variant '2018' this is what the authors' code computes: sqrt(d) scaling of the item
    vectors, learned positions, `layers.Block2018`, LayerNorm epsilon 1e-8.
    """

    def __init__(self, config: Config, num_items: int, *, rngs: nnx.Rngs):
        self.config, self.num_items, self.max_len = config, num_items, config.max_len
        dtype = jnp.bfloat16 if config.bf16 else jnp.float32
        init = embeddings.INITS[config.init]
        linear = linear_layer(init, dtype)
        norm = layer_norm(1e-8 if config.variant == '2018' else 1e-6, dtype)
        table = embeddings.item_table(config.init, config.dim, num_items, rngs.params())
        self.table = nnx.Param(table)
        self.positions = nnx.Param(init(rngs.params(), (config.max_len, config.dim), jnp.float32))
        block = BLOCKS[config.variant]
        self.tokens = (
            embeddings.Tokens(config.features, config.dim, config.feature_dim, linear, rngs=rngs)
            if config.features
            else None
        )
        self.blocks = nnx.List(
            block(config.dim, config.heads, config.ffn, config.dropout, linear, norm, rngs=rngs)
            for _ in range(config.blocks)
        )
        self.norm = norm(config.dim, rngs=rngs)

    def item_table(self) -> jax.Array:
        """[sharding.table_rows(num_items), D]; row 0 and rows above num_items are padding."""
        return self.table[...]

    def encode(
        self,
        batch: dict,
        table: jax.Array,
        key: Key = None,
        *,
        last: int = 0,
        table_key: Key = None,
    ) -> jax.Array:
        """Hidden vector after every event, or after the last ones of each row.

        Args:
          batch: items, segments, positions: int32 [B, L], and feature.* of its features; cutoff:
            bool [B, L, D] if there is any, where the vectors of events are 0.
          table: item table to look the items up in.
          key: dropout key; None at inference.
          last: > 0: the last block computes this many last places only.
          table_key: of table_dropout, for a `table` that has not undergone it.

        Returns:
          [B, L, D], or [B, last, D]; zeros on padding (before the final LayerNorm).
        """
        config = self.config
        dtype = jnp.bfloat16 if config.bf16 else table.dtype
        keys = split_key(key, config.blocks + 1)
        real = (batch['segments'] > 0)[..., None].astype(dtype)
        x = lookup(table, batch['items'])
        x = dropout_rows(x, batch['items'], config.table_dropout, table_key)
        x = x * config.dim**0.5
        if self.tokens is not None:
            x = self.tokens(x, batch)
        x = x + lookup(self.positions[...], batch['positions'])
        if 'cutoff' in batch:
            x = jnp.where(batch['cutoff'], 0, x)
        x = dropout(x.astype(dtype), config.embedding_dropout, keys[-1]) * real
        mask = causal_mask(batch['segments'])
        for block, block_key in zip(self.blocks, keys[:-1], strict=True):
            if last and block is self.blocks[-1]:
                mask, real = mask[:, :, -last:], real[:, -last:]
            x = block(x, mask, block_key) * real
        return self.norm(x[:, -last:])

    def queries(self, history: dict) -> jax.Array:
        """User vectors [B, 1, D] of right-aligned histories (items, segments, positions [B, W])."""
        return self.encode(history, self.item_table(), last=1)

    def loss(self, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Next-item loss at every position of packed rows, or of cuts, and its named terms."""
        config = self.config
        if 'negatives' in batch and (config.loss == 'softmax' or config.negatives_per != 'data'):
            raise UserError(
                "data.unseen_negatives goes with a sampled loss and negatives_per='data'"
            )
        encode_key, table_key, _ = jax.random.split(key, 3)
        table = dropout(self.item_table(), config.table_dropout, table_key)
        if config.loss == 'in_batch':
            last = batch['targets'].shape[1]
            queries = self.encode(batch, table, encode_key, last=last)[:, :, None]
            batch = self.sample(batch, key)
            return in_batch.loss(config.in_batch, queries, table, batch, self.num_items)
        hidden = self.encode(batch, table, encode_key)
        targets, weights = batch['targets'], batch['weights']
        if config.loss == 'softmax':
            loss = losses.softmax(
                hidden,
                table.astype(hidden.dtype),
                targets,
                weights,
                num_items=self.num_items,
                label_smoothing=config.label_smoothing,
            )
            return loss, {'softmax': loss}
        if 'sampled' not in batch:
            batch = self.sample(batch, key)
        negatives = batch['sampled']
        positive = (hidden * lookup(table, targets)).sum(-1)
        scores = negative_scores(hidden, table, negatives)
        if config.loss == 'bce':
            loss = losses.bce(positive, scores, weights)
        elif config.loss == 'gbce':
            loss = losses.gbce(positive, scores, weights, num_items=self.num_items, t=config.gbce_t)
        else:
            expected = negatives.shape[-1] / self.num_items  # draws of each item
            loss = losses.sampled_softmax(
                positive,
                scores,
                weights,
                hits=negatives == targets[..., None],
                log_q_negatives=jnp.log(expected) if config.logq else 0.0,
            )
        return loss, {config.loss: loss}

    def sample(self, batch: dict, key: jax.Array) -> dict:
        """The batch with the negatives that `loss(batch, key)` uses.

        Returns:
          `batch` and, under 'sampled', int32 [B, L, k], [B, 1, k] or [1, 1, k] item numbers
          (in_batch: [in_batch.uniform], if there are to be any).
        """
        config = self.config
        if config.loss == 'in_batch':
            negative_key = jax.random.split(key, 3)[2]
            return in_batch.sample(config.in_batch, batch, negative_key, self.num_items)
        if config.loss == 'softmax':
            raise UserError("optim.table: touched rows only need a sampled loss, not 'softmax'")
        if config.negatives_per == 'data':
            if 'negatives' not in batch:
                raise UserError("model.negatives_per='data' needs data.unseen_negatives > 0")
            return {**batch, 'sampled': batch['negatives']}
        (b, l), k = batch['items'].shape, config.negatives
        shape = {'batch': (1, 1, k), 'row': (b, 1, k), 'position': (b, l, k)}[config.negatives_per]
        split = P('data', None, None) if shape[0] > 1 and on_mesh() else None
        negative_key = jax.random.split(key, 3)[2]
        drawn = jax.random.randint(negative_key, shape, 1, self.num_items + 1, out_sharding=split)
        return {**batch, 'sampled': drawn}

    def init_memory(self) -> dict:
        """See `state`: the frequency estimate, if the loss uses one."""
        if self.config.loss != 'in_batch':
            return {}
        return in_batch.init_memory(self.config.in_batch, self.num_items)

    def remember(
        self, batch: dict, memory: dict, step: jax.Array, key: jax.Array
    ) -> tuple[dict, dict]:
        """See `state`."""
        del key
        return in_batch.remember(batch, memory, step, self.config.in_batch.rate)


def _one_of(name, value, known):
    if value not in known:
        raise UserError(f'model.{name}={value!r} is not one of {", ".join(known)}')
