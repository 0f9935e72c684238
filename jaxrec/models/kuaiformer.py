"""KuaiFormer: transformer-based retrieval at Kuaishou (Liu et al. 2024, arXiv 2411.10057).

Where the paper is silent, this is what was chosen: one compressing layer per group size, shared by
the groups of that size; rotary positions inside a group and over the compressed sequence, or
learned ones; SwiGLU; item vectors shared by input and candidates; a history shorter than the window
fills the newest part first, and groups without any event are masked out.
"""

import dataclasses
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from jaxrec import rng
from jaxrec.config import Feature, field
from jaxrec.devices.mesh import on_mesh, replicated, reshape_rows
from jaxrec.errors import UserError
from jaxrec.nn import embeddings, item_tokens
from jaxrec.nn.attention import causal_mask
from jaxrec.nn.blocks import BlockLlama
from jaxrec.nn.dropout import Key, dropout, split_key
from jaxrec.nn.embeddings import Rows, lookup
from jaxrec.nn.item_tokens import ItemTokens
from jaxrec.nn.linear import linear_layer, rms_norm
from jaxrec.objectives import contrast as contrast_lib
from jaxrec.objectives import in_batch
from jaxrec.objectives.contrast import Contrast
from jaxrec.objectives.in_batch import InBatch
from jaxrec.objectives.segments import apart
from jaxrec.problem import Inputs, Model, ModelConfig

_STREAMS = ('encode', 'negatives')  # of a step's key


@dataclasses.dataclass
class Config(ModelConfig):
    """KuaiFormer's hyper-parameters; it trains on task.windows='cuts'."""

    dim: int = field(64, least=1)
    blocks: int = field(4, least=1)  # causal layers over the compressed sequence
    heads: int = field(2, least=1)
    ffn: int = field(4, least=1)  # inner width of the feed-forward layer, in multiples of dim
    interests: int = field(4, least=1)  # query tokens k, so user vectors
    max_len: int = field(256, least=1)  # newest events that the model sees
    compress: tuple[int, ...] = (64, 64, 16, 16, 16, 16, 16)  # events per group, oldest first
    compress_ffn: int = field(1, least=1)  # as ffn, of the layers that compress
    newest: int = field(48, least=1)  # events after the groups that are tokens of their own
    positions: str = field('rope', choices=('rope', 'learned'))
    features: tuple[Feature, ...] = ()  # of the events, beside the item
    feature_dim: int = field(16, least=1)  # width of each feature's vectors
    dropout: float = field(0.1, least=0, below=1)  # inside the layers
    embedding_dropout: float = field(0.1, least=0, below=1, traced=True)  # on the tokens
    in_batch: InBatch = dataclasses.field(default_factory=InBatch)  # settings of the loss
    contrast: tuple[Contrast, ...] = ()  # contrastive terms; of the mean of the k vectors of a user
    items: ItemTokens = dataclasses.field(default_factory=ItemTokens)  # ids, texts or both
    init: str = field('xavier_normal', choices=embeddings.INITS)  # of the item table and the layers
    bf16: bool = False  # compute in bfloat16; parameters, scores and losses stay float32

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if self.dim % (self.heads * (2 if self.positions == 'rope' else 1)):
            raise UserError(
                f'model.dim={self.dim} must be a multiple of model.heads={self.heads}, and with '
                "model.positions='rope' of twice that"
            )
        if min(self.compress, default=1) < 1:
            raise UserError(f'model.compress={self.compress} must be at least 1 each')
        if sum(self.compress) + self.newest != self.max_len:
            raise UserError(
                f'model.compress={self.compress} and model.newest={self.newest} must add up to '
                f'model.max_len={self.max_len}, not {sum(self.compress) + self.newest}'
            )
        self.in_batch.check()
        others = 'model.contrast' if contrast_lib.active(self.contrast) else ''
        self.items.check(self.in_batch.similarity, others)
        for nth, one in enumerate(self.contrast):
            name = f'model.contrast.{nth}'
            one.check(name)
            if one.pool != 'last':
                raise UserError(
                    f'{name}.pool={one.pool!r}: KuaiFormer has no vector after every event'
                )
            if 'shuffle' in (one.first, one.second):
                raise UserError(
                    "the view 'shuffle' is of numbered positions, which KuaiFormer does not read: "
                    f"take 'augment' with {name}.reorder"
                )

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'KuaiFormer':
        """Builds the model for items 1..sizes['item']."""
        return KuaiFormer(self, sizes, rngs=rngs)

    def inputs(self) -> Inputs:
        """What the model wants of the data."""
        extras = contrast_lib.extras(self.contrast)
        texts = self.items.texts
        return Inputs(
            self.max_len, self.features, extras, cuts=self.newest, items=texts, texts=texts
        )

    def tables(self) -> dict[str, tuple[str, ...]]:
        """The item table, if no average of the whole model is kept."""
        if self.items.texts or any(one.momentum for one in self.contrast):
            return {}
        return {'table': ('items', 'targets', 'sampled', 'similar', 'positive/items')}

    def whole_batch(self) -> str:
        """The in-batch loss takes a batch's rows as each other's negatives."""
        return 'the in-batch loss of this model'


class KuaiFormer(Model):
    """Tokens of item and features, compressed groups, a causal transformer, k query tokens."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        num_items = sizes['item']
        self.config, self.num_items, self.max_len = config, num_items, config.max_len
        dtype = jnp.bfloat16 if config.bf16 else jnp.float32
        linear = linear_layer(embeddings.INITS[config.init], dtype, bias=False)
        norm = rms_norm(1e-6, dtype)
        rotary = config.positions == 'rope'

        def block(ffn, causal):
            return BlockLlama(
                config.dim,
                config.heads,
                ffn,
                config.dropout,
                linear,
                norm,
                causal=causal,
                rngs=rngs,
            )

        def vectors(count, scale=1.0):
            return nnx.Param(scale * jax.random.normal(rngs.params(), (count, config.dim)))

        table = embeddings.item_table(config.init, config.dim, num_items, rngs.params())
        self.table = nnx.Param(table)
        self.tokens = embeddings.Tokens(
            config.features, config.dim, config.feature_dim, linear, rngs=rngs
        )
        self.sizes = tuple(sorted(set(config.compress)))
        self.compressors = nnx.List(block(config.compress_ffn, causal=False) for _ in self.sizes)
        self.query_tokens = vectors(config.interests)
        length = len(config.compress) + config.newest + config.interests
        self.positions = None if rotary else vectors(length, 0.02)
        self.group_positions = nnx.List(vectors(size, 0.02) for size in self.sizes if not rotary)
        self.blocks = nnx.List(block(config.ffn, causal=True) for _ in range(config.blocks))
        self.norm = norm(config.dim, rngs=rngs)
        init = embeddings.INITS[config.init]
        self.contrasting = contrast_lib.active(config.contrast)
        self.heads = contrast_lib.make_heads(config.contrast, init, config.dim, rngs)
        self.objectives = contrast_lib.make_objectives(config.contrast, init, config.dim, rngs)
        self.texts = item_tokens.make(config.items, sizes, config.init, config.dim, rngs)

    def item_table(self) -> jax.Array | Rows:
        """[mesh.table_rows(num_items), D]; row 0 and rows above num_items are padding."""
        return self.table[...]

    def catalogue(self, constants: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """{'items': item vectors [rows, D]}, as their dot products are scores."""
        table = item_tokens.table_of(self, constants)
        return {'items': in_batch.compared(self.config.in_batch, table)}

    def queries(self, batch: dict, catalogue: dict[str, jax.Array]) -> jax.Array:
        """User vectors [B, k, D] of right-aligned histories (items, segments [B, W], features)."""
        table = in_batch.own_table(self, catalogue)
        return in_batch.compared(self.config.in_batch, self.encode(batch, table)[:, 0])

    def encode(
        self, batch: dict, table: jax.Array | Rows, key: Key = None, cuts: int = 1
    ) -> jax.Array:
        """The k interests at the last `cuts` places of each row: [B, G, k, D].

        Query tokens see the events before their cut and the earlier query tokens of their cut; no
        event sees a query token: a cut does not notice the others of its row. Only the groups of
        compressed events end where they end for the last cut.

        Args:
          batch: items, segments: int32 [B, W], W <= max_len, right-aligned, and features; cutoff
            and shift [B, W, D] if there are any, see `embeddings.disturbed`.
          table: item table to look the items up in.
          key: dropout key; None at inference.
          cuts: G <= min(newest, W).
        """
        config = self.config
        dtype = jnp.bfloat16 if config.bf16 else table.dtype
        token_key, group_key, *block_keys = split_key(key, 2 + config.blocks)
        real = batch['segments'] > 0
        x = lookup(table, batch['items']).astype(dtype) * config.dim**0.5
        x = embeddings.disturbed(self.tokens(x, batch), batch)
        x = dropout(x, config.embedding_dropout, token_key)
        x, real = self.compress(x * real[..., None].astype(dtype), real, group_key)
        events, asked = x.shape[1], cuts * config.interests
        x = jnp.concatenate([x, self._query_tokens(x, cuts)], axis=1)
        mask, places = mask_and_places(real, cuts, config.interests)
        if self.positions is not None:
            first = len(self.positions) - config.interests - events
            x, places = x + self.positions[first + places].astype(dtype), None
        for block, block_key in zip(self.blocks, block_keys, strict=True):
            if block is self.blocks[-1]:  # of which only the query tokens' outputs are used
                mask = mask[:, :, events:]
            x = block(x, mask, block_key, places)
        x = self.norm(x[:, -asked:])
        return reshape_rows(x, (x.shape[0], cuts, config.interests, config.dim))

    def _query_tokens(self, like: jax.Array, cuts: int) -> jax.Array:
        """[B, cuts k, D] for every row of `like` [B, ..], placed like it."""
        tokens = jnp.tile(self.query_tokens[...].astype(like.dtype), (cuts, 1))
        shape, placed = (like.shape[0], *tokens.shape), None
        if on_mesh():
            placed = P(jax.typeof(like).sharding.spec[0], None, None)
        return jax.lax.broadcast_in_dim(tokens, shape, (1, 2), out_sharding=placed)

    def compress(
        self, x: jax.Array, real: jax.Array, key: Key = None
    ) -> tuple[jax.Array, jax.Array]:
        """Adaptive item compression (section 3.3): old events in groups, the newest as they are.

        A group goes through one bidirectional layer and becomes the mean of its real events.
        Groups that lie wholly before the first of the W events are left out.

        Args:
          x: [B, W, D] tokens, right-aligned.
          real: bool [B, W].
          key: dropout key.

        Returns:
          [B, groups + newest, D] and bool [B, groups + newest], whether there is an event.
        """
        runs, missing = groups_within(self.config.compress, self.config.newest, x.shape[1])
        x = jnp.pad(x, ((0, 0), (missing, 0), (0, 0)))
        real = jnp.pad(real, ((0, 0), (missing, 0)))
        tokens, present, at = [], [], 0
        for (size, count), run_key in zip(runs, split_key(key, len(runs)), strict=True):
            end = at + size * count
            groups = (x.shape[0] * count, size)
            inside = reshape_rows(real[:, at:end], groups)
            y = reshape_rows(x[:, at:end], (*groups, x.shape[2]))
            mean = self._group(y, inside, self.sizes.index(size), run_key)
            tokens.append(reshape_rows(mean, (x.shape[0], count, x.shape[2])))
            present.append(reshape_rows(inside.any(1), (x.shape[0], count)))
            at = end
        return (
            jnp.concatenate([*tokens, x[:, at:]], axis=1),
            jnp.concatenate([*present, real[:, at:]], axis=1),
        )

    def _group(self, x, real, which, key):
        """Means [G, D] over the real events of groups [G, S, D], after the layer for size S."""
        if self.positions is not None:
            x = x + self.group_positions[which][...].astype(x.dtype)
        mask = (real[:, :, None] == real[:, None, :])[:, None]  # padding sees padding only
        places = jnp.arange(x.shape[1]) if self.positions is None else None
        weights = real / jnp.maximum(real.sum(1, keepdims=True), 1)

        def mean(y):
            return jnp.einsum('gs,gsd->gd', weights.astype(y.dtype), y)[:, None]

        return self.compressors[which](x, mask, key, places, mean)[:, 0]

    def loss(
        self, batch: dict, constants: dict[str, jax.Array], carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """In-batch softmax of cuts (`in_batch.loss`) plus contrastive terms, and the carry."""
        keys = rng.keys(key, *_STREAMS, 'ids')
        wanted = item_tokens.looked_up(batch)
        table = item_tokens.table_of(self, constants, keys['ids'], wanted)
        queries = self.encode(batch, table, keys['encode'], batch['targets'].shape[1])
        value, (terms, new) = in_batch.loss(
            self.config.in_batch, queries, table, batch, carry, self.num_items
        )
        if self.contrasting:
            more, named, kept = contrast_lib.terms(self, batch, carry, key)
            value, terms, new = value + more, {**terms, **named}, {**new, **kept}
        return value, (terms, new)

    def user_vectors(self, rows: dict, users: int, pool: str, key: Key) -> jax.Array:
        """[users, D]: the mean of the k vectors after each segment of packed rows."""
        del pool
        rows = apart(rows, users, self.max_len)
        x = self.encode(rows, self.item_table(), key)
        return replicated(x[:, 0].mean(1))

    def sample(self, batch: dict, key: jax.Array) -> dict:
        """The batch with its uniform negatives, see `in_batch.sample`."""
        key = rng.keys(key, *_STREAMS)['negatives']
        return in_batch.sample(self.config.in_batch, batch, key, self.num_items)

    def carry(self) -> dict:
        """The frequency estimate, if the loss uses one, and what contrastive terms carry."""
        estimate = in_batch.start(self.config.in_batch, self.num_items, self.config.dim)
        return {**estimate, **contrast_lib.start(self)}


def mask_and_places(real: jax.Array, cuts: int, interests: int) -> tuple[jax.Array, jax.Array]:
    """Who sees whom among T events and then the query tokens of G cuts, and where they stand.

    Args:
      real: bool [B, T], events that are no padding.
      cuts: G; cut g = 0..G-1 comes after place T - (G - 1 - g) - 1.
      interests: k query tokens per cut.

    Returns:
      bool [B, 1, T + G k, T + G k], and int32 [T + G k]: tokens' places; the queries of a cut go on
      counting from its last event.
    """
    length = real.shape[1]
    cut = jnp.repeat(jnp.arange(cuts), interests)  # of each query token
    nth = jnp.tile(jnp.arange(interests), cuts)
    end = length - (cuts - 1 - cut)
    events = causal_mask(real.astype(jnp.int32))  # [B, 1, T, T]
    seen = real[:, None, None] & (jnp.arange(length) < end[:, None])  # [B, 1, G k, T]
    own = (cut[:, None] == cut) & (nth <= nth[:, None])
    own = own & (seen[..., :1] | True)  # for every row, placed like it
    none = jnp.zeros_like(seen).swapaxes(2, 3)  # events see no queries
    mask = jnp.block([[events, none], [seen, own]])
    return mask, jnp.concatenate([jnp.arange(length), end + nth])


def groups_within(
    compress: tuple[int, ...], newest: int, width: int
) -> tuple[list[tuple[int, int]], int]:
    """Which groups the newest `width` events reach: ([(size, how many)], events they lack)."""
    reached, covered = [], min(newest, width)
    for size in reversed(compress):
        if covered >= width:
            break
        reached.append(size)
        covered += size
    runs = itertools.groupby(reversed(reached))
    return [(size, len(list(run))) for size, run in runs], covered - width
