"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018), and its heirs.

With terms in `contrast` it is CL4SRec, DuoRec and others, see `objectives.contrast`.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from jaxrec import rng
from jaxrec.config import Feature, field
from jaxrec.devices.mesh import placed, replicated
from jaxrec.errors import UserError
from jaxrec.nn import embeddings, item_tokens
from jaxrec.nn.attention import both_ways_mask, causal_mask
from jaxrec.nn.blocks import BLOCKS
from jaxrec.nn.dropout import Key, dropout, dropout_rows, split_key
from jaxrec.nn.embeddings import Rows, lookup
from jaxrec.nn.item_tokens import ItemTokens
from jaxrec.nn.linear import layer_norm, linear_layer
from jaxrec.objectives import contrast as contrast_lib
from jaxrec.objectives import in_batch, multi_signal, next_item, seq2seq
from jaxrec.objectives.contrast import Contrast
from jaxrec.objectives.in_batch import InBatch
from jaxrec.objectives.multi_signal import MultiSignal
from jaxrec.objectives.segments import with_their_rows
from jaxrec.objectives.seq2seq import Seq2Seq
from jaxrec.objectives.views import segment_vectors
from jaxrec.problem import Inputs, Model, ModelConfig

_STREAMS = ('encode', 'table', 'negatives')  # of a step's key


@dataclasses.dataclass
class Config(ModelConfig):
    """SASRec's hyper-parameters; the defaults are those of a strong modern baseline."""

    variant: str = field('2018', choices=BLOCKS)  # 2018 is the authors' code
    dim: int = field(64, least=1)
    blocks: int = field(2, least=0)
    heads: int = field(1, least=1)
    ffn: int = field(1, least=1)  # inner width of the feed-forward layer, in multiples of dim
    max_len: int = field(50, least=1)  # newest events that the model sees
    # inside the blocks: attention weights and feed-forward
    dropout: float = field(0.2, least=0, below=1)
    # on the sum of item and position vectors
    embedding_dropout: float = field(0.2, least=0, below=1, traced=True)
    # on the item table itself: one mask per step for both its uses, another for each view
    table_dropout: float = field(0.0, least=0, below=1, traced=True)
    # in_batch learns cuts (task.windows='cuts'), the others every event
    loss: str = field('softmax', choices=(*next_item.LOSSES, 'in_batch'))
    negatives: int = field(256, least=1)  # of the sampled losses
    # negatives shared per batch, row or position, or drawn by the data pipeline outside the user's
    # items (task.unseen_negatives)
    negatives_per: str = field('position', choices=('batch', 'row', 'position', 'data'))
    logq: bool = False  # sampled_softmax: negatives weighted to estimate the exact denominator
    gbce_t: float = field(0.75, least=0, most=1, traced=True)  # gbce: calibration
    label_smoothing: float = field(0.0, least=0, below=1)  # softmax
    in_batch: InBatch = dataclasses.field(default_factory=InBatch)  # settings of that loss
    contrast: tuple[Contrast, ...] = ()  # contrastive terms
    # rewards of events, and terms between users and items (Kuaishou's framework)
    multi_signal: MultiSignal = dataclasses.field(default_factory=MultiSignal)
    # from the past to the future in several intentions
    seq2seq: Seq2Seq = dataclasses.field(default_factory=Seq2Seq)
    features: tuple[Feature, ...] = ()  # of the events, beside the item
    feature_dim: int = field(16, least=1)  # width of each feature's vectors
    items: ItemTokens = dataclasses.field(default_factory=ItemTokens)  # ids, texts or both
    # xavier_uniform is the authors' code; normal has a deviation of .02
    init: str = field('xavier_normal', choices=embeddings.INITS)
    bf16: bool = False  # compute in bfloat16; parameters, scores and losses stay float32

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if self.dim % self.heads:
            raise UserError(f'model.dim={self.dim} is not a multiple of model.heads={self.heads}')
        for nth, one in enumerate(self.contrast):
            one.check(f'model.contrast.{nth}')
        self.in_batch.check()
        if self.loss != 'in_batch' and self.in_batch.similarity != 'dot':
            raise UserError(
                f"model.in_batch.similarity='cosine' is for loss='in_batch', not {self.loss!r}"
            )
        self.multi_signal.check()
        if self.multi_signal.main == 'label' and self.loss != 'bce':
            raise UserError(
                f"model.multi_signal.main='label' is for model.loss='bce', not {self.loss!r}"
            )
        terms = {
            'model.contrast': contrast_lib.active(self.contrast),
            'model.multi_signal': self.multi_signal.active,
            'model.seq2seq': self.seq2seq.weight,
        }
        others = ' and '.join(name for name, there in terms.items() if there)
        self.items.check(self.in_batch.similarity, others)

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'SASRec':
        """Builds the model for items 1..sizes['item']."""
        return SASRec(self, sizes['item'], sizes, rngs=rngs)

    def inputs(self) -> Inputs:
        """What the model wants of the data."""
        return Inputs(
            self.max_len,
            self.features,
            tuple(sorted({e for one in self._terms for e in one.extras})),
            cuts=self.max_len if self.loss == 'in_batch' else 0,
            negatives=self._sampled and self.negatives_per == 'data',
            rewards=self.multi_signal.rewards if self.multi_signal.rewards.signals else None,
            items=self.items.texts,
            texts=self.items.texts,
        )

    def tables(self) -> dict[str, tuple[str, ...]]:
        """The item table, if the loss is sampled and no average of the whole model is kept."""
        if self.loss == 'softmax' or self.items.texts or any(one.momentum for one in self.contrast):
            return {}
        paths = ('items', 'targets', 'sampled', 'similar', 'positive/items')
        return {'table': (*paths, 'user_targets') if self.multi_signal.active else paths}

    def whole_batch(self) -> str:
        """The in-batch loss and contrastive terms take a batch's rows as each other's negatives."""
        if self.loss == 'in_batch':
            return "model.loss='in_batch'"
        if self.seq2seq.weight:
            return 'model.seq2seq with a weight above 0'
        if self.multi_signal.active or self.multi_signal.rewards.signals:
            return 'model.multi_signal with a term or with signals'
        return 'model.contrast with a weight above 0' if contrast_lib.active(self.contrast) else ''

    @property
    def _terms(self) -> tuple:
        """Settings of everything beside the main loss that takes part."""
        contrasts = (self.contrast[int(nth)] for nth in contrast_lib.active(self.contrast))
        return *contrasts, self.multi_signal, self.seq2seq

    @property
    def _sampled(self) -> bool:
        return self.loss not in ('softmax', 'in_batch')


class SASRec(Model):
    """A causal transformer over item vectors; the score of an item is a dot product (tied table).

    With variant '2018' this is what the authors' code computes: sqrt(d) scaling of the item
    vectors, learned positions, `blocks.Block2018`, LayerNorm epsilon 1e-8.

    Attributes:
      causal: whether an event sees earlier ones only. No shape depends on it, so that what was
        learnt the one way may begin the other (train.start_from).
    """

    causal: ClassVar[bool] = True

    def __init__(
        self,
        config: Config,
        num_items: int,
        sizes: Mapping[str, int] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
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
            block(
                config.dim,
                config.heads,
                config.ffn,
                config.dropout,
                linear,
                norm,
                causal=self.causal,
                rngs=rngs,
            )
            for _ in range(config.blocks)
        )
        self.norm = norm(config.dim, rngs=rngs)
        self.contrasting = contrast_lib.active(config.contrast)
        self.heads = contrast_lib.make_heads(config.contrast, init, config.dim, rngs)
        self.objectives = contrast_lib.make_objectives(config.contrast, init, config.dim, rngs)
        self.seq2seq = seq2seq.make(config.seq2seq, config.max_len, config.dim, init, rngs)
        self.item_terms = config.multi_signal.active
        self.projections = multi_signal.make_projections(
            config.multi_signal, init, config.dim, rngs
        )
        sizes = sizes or {'item': num_items}
        self.texts = item_tokens.make(config.items, sizes, config.init, config.dim, rngs)

    def item_table(self) -> jax.Array | Rows:
        """[mesh.table_rows(num_items), D]; row 0 and rows above num_items are padding."""
        return self.table[...]

    def catalogue(self, constants: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """{'items': item vectors [rows, D]}, as their dot products are scores."""
        table = item_tokens.table_of(self, constants)
        return {'items': in_batch.compared(self.config.in_batch, table)}

    def queries(self, batch: dict, catalogue: dict[str, jax.Array]) -> jax.Array:
        """User vectors [B, 1, D] of right-aligned histories (items, segments, positions [B, W])."""
        table = in_batch.own_table(self, catalogue)
        return in_batch.compared(self.config.in_batch, self.encode(batch, table, last=1))

    def text_queries(self, vectors: jax.Array) -> jax.Array:
        """[n, 1, D] after one event on an item that is known by its text's vector [n, d] alone."""
        made = replicated(self.texts.project(vectors))
        table = Rows(jnp.arange(len(made) + 1), jnp.pad(made, ((1, 0), (0, 0))))
        items = placed(jnp.arange(1, len(made) + 1)[:, None], P('data', None))
        codes = {
            f.column: items[..., None] * 0 if f.kind == 'set' else items * 0
            for f in self.config.features
        }
        one = {'items': items, 'segments': items * 0 + 1, 'features': codes}
        one['positions'] = items * 0 + self.max_len - 1
        return self.encode(one, table, last=1)

    def encode(
        self,
        batch: dict,
        table: jax.Array,
        key: Key = None,
        *,
        last: int = 0,
        users: int = 0,
        table_key: Key = None,
    ) -> jax.Array:
        """Hidden vector after every event, after the last ones of each row, or of each segment.

        Args:
          batch: items, segments, positions: int32 [B, L], and features; if there are any, cutoff
            bool [B, L, D], where the vectors of events are 0, and shift [B, L, D], added to them.
          table: item table to look the items up in.
          key: dropout key; None at inference.
          last: > 0: the last block computes this many last places only.
          users: > 0: the last block computes the newest event of each segment only, of at most
            this many, a multiple of the devices of the 'data' axis.
          table_key: of table_dropout, for a `table` that has not undergone it.

        Returns:
          [B, L, D], [B, last, D] or [users, D]; zeros on padding (before the final LayerNorm).
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
        x = embeddings.disturbed(x, batch)
        x = dropout(x.astype(dtype), config.embedding_dropout, keys[-1]) * real
        mask = (causal_mask if self.causal else both_ways_mask)(batch['segments'])
        for block, block_key in zip(self.blocks, keys[:-1], strict=True):
            if last and block is self.blocks[-1]:
                mask, real = mask[:, :, -last:], real[:, -last:]
            if users and block is self.blocks[-1]:
                asked, x, mask = with_their_rows(x, mask, batch['segments'], users)
                return self.norm(block(x, mask, block_key, asked))
            x = block(x, mask, block_key) * real
        return self.norm(x[:, -last:])

    def user_vectors(self, rows: dict, users: int, pool: str, key: Key) -> jax.Array:
        """[users, D] vectors of the segments of packed rows, see `views.segment_vectors`."""
        keys = rng.keys(key, 'encode', 'table')
        asked = users if pool == 'last' and self.config.blocks else 0
        hidden = self.encode(
            rows, self.item_table(), keys['encode'], users=asked, table_key=keys['table']
        )
        return replicated(hidden) if asked else segment_vectors(hidden, rows, users, pool)

    def sample(self, batch: dict, key: jax.Array) -> dict:
        """The batch with its negatives, see `next_item.sample` and `in_batch.sample`."""
        config, key = self.config, rng.keys(key, *_STREAMS)['negatives']
        if config.loss == 'in_batch':
            return in_batch.sample(config.in_batch, batch, key, self.num_items)
        return next_item.sample(config, batch, key, self.num_items)

    def loss(
        self, batch: dict, constants: dict[str, jax.Array], carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """Next-item loss at every position of packed rows, or of cuts, plus contrastive terms."""
        config, keys = self.config, rng.keys(key, *_STREAMS, 'ids')
        framework, given = config.multi_signal, batch
        batch = multi_signal.main_loss(framework, batch)
        wanted = None if config.loss == 'softmax' else item_tokens.looked_up(batch)
        table = item_tokens.table_of(self, constants, keys['ids'], wanted)
        table = embeddings.dropped(table, config.table_dropout, keys['table'])
        if config.loss == 'in_batch':
            last = batch['targets'].shape[1]
            hidden = self.encode(batch, table, keys['encode'], last=last)
            value, (terms, new) = in_batch.loss(
                config.in_batch, hidden[:, :, None], table, batch, carry, self.num_items
            )
        else:
            hidden = self.encode(batch, table, keys['encode'])
            value, terms = next_item.loss(config, hidden, table, batch, self.num_items)
            new = {}
        if self.contrasting:
            more, named, kept = contrast_lib.terms(self, batch, carry, key)
            value, terms, new = value + more, {**terms, **named}, {**new, **kept}
        if len(self.seq2seq):
            more, named = seq2seq.term(self, given, rng.keys(key, *_STREAMS, 'seq2seq')['seq2seq'])
            value, terms = value + config.seq2seq.weight * more, {**terms, **named}
        if self.item_terms:
            ends = {'segments': given['segments'][:, -hidden.shape[1] :]}
            users = segment_vectors(hidden, ends, len(given['users']), 'last')
            framework_key = jax.random.fold_in(key, 0)
            more, named, kept = multi_signal.terms(self, users, table, given, carry, framework_key)
            value, terms, new = value + more, {**terms, **named}, {**new, **kept}
        return value, (terms, new)

    def carry(self) -> dict:
        """What the in-batch loss, contrastive terms and the bank carry from step to step."""
        estimate = self.config.loss == 'in_batch'
        made = (
            in_batch.start(self.config.in_batch, self.num_items, self.config.dim)
            if estimate
            else {}
        )
        framework = multi_signal.start(self.config.multi_signal, self.config.dim)
        return {**made, **contrast_lib.start(self), **framework}
