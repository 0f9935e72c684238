"""S3-Rec: pre-training of SASRec's encoder on items and attributes (Zhou et al., CIKM 2020).

An encoder that sees both ways, F, learns four tasks, arXiv 2008.07873, section 4; what the paper
leaves open is as in the authors' code. Each task has a map W of its own, A are vectors of the
attributes and e of the items:

  AAP  the attributes of an event that is seen:    BCE of A W1 F over all attributes
  MIP  the item of a hidden one:                   -log s(W2 F . e+  -  W2 F . e-)
  MAP  the attributes of a hidden one:             BCE of A W3 F over all attributes
  SP   a hidden segment by itself:                 -log s(W4 F . F+  -  W4 F . F-)

Hidden are events by chance and always the newest, which become [mask]; e- is uniform among the
items that the prefix does not have. Of SP, F is of the newest event where a run of 1 to n / 2
events is hidden, F+ of these events where all else is hidden, F- the same with others in their
place: a run as long of the batch's events one after the other, which like the authors' may cross
from one history into the next. A prefix of one event has no segment.

`faithful` is the authors' form: s(.) stands also around both scores of MIP and SP, so that either
begins at log 2 and can never fall below log(1 + 1/e), and the tasks are sums, so that their balance
depends on the batch. Otherwise the scores stand bare and each task is a mean over its events (a sum
over attributes: the likelihood of the whole set). One thing is not as in the authors' code in
either form: their F- are cut from all events, validation and test events among them; here nothing
but training events is ever read.

Rows are all prefixes of each user's newest events (task.windows='prefixes'). Validation ranks by
MIP: the next event is one more that is hidden. Fine-tuning is SASRec with
--config.train.start_from=WORKDIR: table, positions, blocks and norm go on, the rest is left.
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
from jaxrec.devices.mesh import on_mesh, replicated
from jaxrec.errors import UserError
from jaxrec.losses.pointwise import bpr
from jaxrec.models import sasrec
from jaxrec.nn import embeddings
from jaxrec.nn.blocks import BLOCKS
from jaxrec.nn.dropout import hash_bits
from jaxrec.nn.embeddings import lookup
from jaxrec.nn.linear import linear_layer
from jaxrec.objectives.augment import MASK
from jaxrec.objectives.segments import Segments, ends, uniform
from jaxrec.problem import Inputs, ModelConfig

TASKS = ('aap', 'mip', 'map', 'sp')
_STREAMS = ('table', 'negatives', 'hidden', 'events', 'segments', 'context', 'inside', 'other')
_PLACES = ('items', 'segments', 'positions')


@dataclasses.dataclass
class Config(ModelConfig):
    """Hyper-parameters; those of the encoder are SASRec's, and the same there to go on from here.

    Defaults are the paper's but for the variant of the blocks, whose vectors of items are times
    sqrt(dim), as SASRec's are, and have no norm of their own before the blocks.
    """

    variant: str = field('pre_ln', choices=BLOCKS)
    dim: int = field(64, least=1)
    blocks: int = field(2, least=0)
    heads: int = field(2, least=1)
    ffn: int = field(4, least=1)  # inner width of the feed-forward layer, in multiples of dim
    max_len: int = field(50, least=1)  # newest events that the model sees
    dropout: float = field(0.5, least=0, below=1)  # inside the blocks
    embedding_dropout: float = field(0.5, least=0, below=1)  # on the sum of item and position
    table_dropout: float = field(0.0, least=0, below=1)  # on the item table itself
    init: str = field('normal', choices=embeddings.INITS)
    # of the items, a set or a category
    attributes: Feature = dataclasses.field(
        default_factory=lambda: Feature('attributes', 'set', size=637)
    )
    aap: float = field(0.2, least=0)  # weights of the tasks; 0 = without it
    mip: float = field(1.0, least=0)
    map: float = field(1.0, least=0)
    sp: float = field(0.5, least=0)
    mask: float = field(0.2, least=0, most=1)  # chance of an event to be hidden
    faithful: bool = False  # the authors' form, see the head of the file

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        self.encoder().check()
        if not self.weights:
            raise UserError(f'one of model.{", model.".join(TASKS)} must be above 0')
        if self.attributes.kind not in ('set', 'category'):
            raise UserError(
                f"model.attributes.kind={self.attributes.kind!r} is not one of 'set', 'category'"
            )

    def encoder(self) -> sasrec.Config:
        """The settings of the encoder."""
        shared = {f.name for f in dataclasses.fields(sasrec.Config)}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return sasrec.Config(**{name: x for name, x in own.items() if name in shared})

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'S3Rec':
        """Builds the model for items 1..sizes['item']."""
        return S3Rec(self, sizes['item'], rngs=rngs)

    def inputs(self) -> Inputs:
        """What the model wants of the data."""
        return Inputs(self.max_len, (self.attributes,), prefixes=True)

    def whole_batch(self) -> str:
        """Segments of the batch are each other's negatives, and hidden events are counted."""
        return 'pre-training by model.sp and model.mip'

    @property
    def weights(self) -> dict[str, float]:
        """Of the tasks that take part."""
        return {name: getattr(self, name) for name in TASKS if getattr(self, name)}


class S3Rec(sasrec.SASRec):
    """SASRec's encoder, both ways, with a map for every task and a table of attributes."""

    causal: ClassVar[bool] = False

    def __init__(self, config: Config, num_items: int, *, rngs: nnx.Rngs):
        super().__init__(config.encoder(), num_items, rngs=rngs)
        self.tasks = config
        init = embeddings.INITS[config.init]
        linear = linear_layer(init, jnp.float32)
        self.maps = nnx.Dict(
            {n: linear(config.dim, config.dim, rngs=rngs) for n in TASKS if n in config.weights}
        )
        shape = (config.attributes.rows, config.dim)  # row 0: none
        self.attributes = nnx.Param(init(rngs.params(), shape, jnp.float32))

    def queries(self, batch: dict, catalogue: dict[str, jax.Array]) -> jax.Array:
        """[B, 1, D] of right-aligned histories [B, W], followed by a hidden event.

        Through the map of MIP, where there is one.
        """
        width = batch['items'].shape[1]
        wide = min(width + 1, self.max_len)  # at its widest, the oldest event makes room
        moved = {}
        for name, newest in (('items', MASK), ('segments', 1)):
            x = jnp.pad(batch[name], ((0, 0), (0, 1)))[:, -wide:]
            moved[name] = jnp.where(jnp.arange(wide) == wide - 1, newest, x)
        column = jnp.arange(self.max_len - wide, self.max_len)
        moved['positions'] = jnp.where(moved['segments'] > 0, column, 0)
        found = self.encode(moved, catalogue['items'], last=1)
        return self.maps['mip'](found) if 'mip' in self.maps else found

    def sample(self, batch: dict, key: jax.Array) -> dict:
        """The batch with `negatives` int32 [B, L] of MIP, see `unseen`."""
        key = rng.keys(key, *_STREAMS)['negatives']
        drawn = unseen(batch['items'], batch['segments'], key, self.num_items)
        return {**batch, 'negatives': drawn}

    def loss(
        self, batch: dict, constants: dict[str, jax.Array], carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """The weighted tasks, and each by itself."""
        del constants, carry
        tasks, keys = self.tasks, rng.keys(key, *_STREAMS)
        table = embeddings.dropped(self.item_table(), tasks.table_dropout, keys['table'])
        rows = {name: batch[name] for name in _PLACES}
        real, found = rows['segments'] > 0, {}
        if tasks.weights.keys() - {'sp'}:
            hidden = hidden_places(rows['segments'], keys['hidden'], tasks.mask)
            vectors = self.encode(_masked(rows, hidden), table, keys['events'])
            if tasks.aap:
                found['aap'] = self._attribute_loss('aap', vectors, batch), real & ~hidden
            if tasks.mip:
                query = self.maps['mip'](vectors)
                scores = [
                    (query * lookup(table, batch[name])).sum(-1) for name in ('items', 'negatives')
                ]
                found['mip'] = pairwise(*scores, tasks.faithful), hidden & (batch['negatives'] > 0)
            if tasks.map:
                found['map'] = self._attribute_loss('map', vectors, batch), hidden
        if tasks.sp:
            found['sp'] = self._segment_loss(rows, table, keys)
        terms = {}
        for name, (values, places) in found.items():
            total = jnp.where(places, values, 0).sum()
            terms[name] = total if tasks.faithful else total / jnp.maximum(places.sum(), 1)
        return sum(tasks.weights[name] * terms[name] for name in terms), (terms, {})

    def _attribute_loss(self, task: str, vectors: jax.Array, batch: dict) -> jax.Array:
        """[B, L]: binary cross-entropy, summed over all attributes."""
        codes = batch['features'][self.tasks.attributes.column]
        codes = codes if codes.ndim == 3 else codes[..., None]
        table = replicated(self.attributes[...])[1:]
        logits = jnp.einsum('bld,ad->bla', self.maps[task](vectors), table)
        has = (codes[..., None] == jnp.arange(1, len(table) + 1)).any(2)
        return (jax.nn.softplus(logits) - has * logits).sum(-1)

    def _segment_loss(self, rows, table, keys) -> tuple[jax.Array, jax.Array]:
        """SP at the newest event of every prefix, float32 and bool [B, L]."""
        inside, other = segment_views(rows, keys['segments'])
        context = self.encode(_masked(rows, inside), table, keys['context'])
        own = self.encode(_masked(rows, ~inside), table, keys['inside'])
        foreign = {**rows, 'items': jnp.where(inside, other, MASK)}
        foreign = self.encode(foreign, table, keys['other'])
        query = self.maps['sp'](context)
        values = pairwise((query * own).sum(-1), (query * foreign).sum(-1), self.tasks.faithful)
        several = Segments(rows['segments']).length > 1
        return values, ends(rows['segments']) & several


def pairwise(positive: jax.Array, negative: jax.Array, faithful: bool) -> jax.Array:
    """-log s(r+ - r-) of scores r [..], or `faithful` of s(r), in [log(1 + 1/e), log(1 + e)]."""
    if faithful:
        positive, negative = jax.nn.sigmoid(positive), jax.nn.sigmoid(negative)
    return bpr(positive, negative[..., None])


def hidden_places(segments: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """bool [B, L]: events by chance, and the newest of every segment."""
    chosen = uniform(hash_bits(key, segments)) < rate
    return (chosen & (segments > 0)) | ends(segments)


def unseen(items: jax.Array, segments: jax.Array, key: jax.Array, num_items: int) -> jax.Array:
    """int32 [B, L]: of every event an item that its segment does not have, uniform among these.

    0 on padding, and where the segment has all items. Exact, without trying again: with g_j of the
    others below the jth of the segment's items, the xth of them is 1 + x + |{j: g_j <= x}|.

    Args:
      items, segments: int32 [B, L].
      key: jax.random key.
      num_items: items are 1..num_items.
    """
    place = Segments(segments).place
    same = segments[:, :, None] == segments[:, None, :]
    alike = same & (items[:, :, None] == items[:, None, :])
    first = ~(alike & (place[:, None, :] < place[:, :, None])).any(-1)
    among = same & first[:, None, :]  # every item of the segment once
    below = items - 1 - (among & (items[:, None, :] < items[:, :, None])).sum(-1)
    others = num_items - among.sum(-1)
    bits = hash_bits(key, segments) % jnp.maximum(others, 1).astype(jnp.uint32)
    nth = bits.astype(jnp.int32)
    skipped = (among & (below[:, None, :] <= nth[:, :, None])).sum(-1)
    return jnp.where((segments > 0) & (others > 0), 1 + nth + skipped, 0)


def segment_views(rows: dict, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A run of 1 to n / 2 events of every segment, bool [B, L], and others for it, int32 [B, L].

    These follow each other in the batch, of all devices, padding aside; every start is equally
    likely.

    Args:
      rows: items, segments int32 [B, L].
      key: jax.random key.
    """
    length_key, start_key, other_key = jax.random.split(key, 3)
    span, real = Segments(rows['segments']), rows['segments'] > 0
    half = span.length // 2
    drawn = (uniform(span.draw(length_key)) * half).astype(jnp.int32)
    count = 1 + jnp.minimum(drawn, jnp.maximum(half - 1, 0))
    first = span.draw_start(start_key, count)
    inside = real & (span.index >= first) & (span.index < first + count)
    items, there = (replicated(x).reshape(-1) for x in (rows['items'], real))
    events = items[jnp.argsort(~there, stable=True)]
    begins = jnp.maximum(there.sum() - count + 1, 1).astype(jnp.uint32)
    start = (span.draw(other_key) % begins).astype(jnp.int32)
    source = jnp.clip(start + span.index - first, 0, len(events) - 1)
    if on_mesh():
        return inside, events.at[source].get(out_sharding=P('data', None))
    return inside, events[source]


def _masked(rows: dict, hidden: jax.Array) -> dict:
    """The rows with [mask] in place of the events that are `hidden`, bool [B, L]."""
    return {**rows, 'items': jnp.where(hidden, MASK, rows['items'])}
