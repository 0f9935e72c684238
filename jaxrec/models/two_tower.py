"""Two towers with in-batch negatives (Yi et al., RecSys 2019): users and items meet in one product.

The user tower reads the user's id, a history and the attributes of its events; the item tower the
item's id and attributes. Both end in unit vectors. An id is left out by chance in training, so that
users and items without one, unknown or never seen in training, are served from the rest.

With `item_views` the item tower also learns from items themselves: two views of an item's features
are to have one vector (Google's self-supervised learning for item towers, Yao et al., CIKM 2021).
"""

import dataclasses
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import rng
from jaxrec.config import Feature, field
from jaxrec.devices.mesh import TABLE, placed, replicated
from jaxrec.errors import UserError
from jaxrec.losses import unit
from jaxrec.models import sasrec
from jaxrec.nn import embeddings
from jaxrec.nn.dropout import Key, dropout, kept_ids
from jaxrec.nn.embeddings import Rows, lookup
from jaxrec.nn.linear import linear_layer
from jaxrec.objectives import in_batch, item_views
from jaxrec.objectives.in_batch import InBatch
from jaxrec.objectives.item_views import ItemViews
from jaxrec.problem import Inputs, Model, ModelConfig

_STREAMS = ('user', 'item', 'history', 'dropout', 'negatives')  # of a step's key
_OF_VIEWS = ('items', 'masks', 'first', 'second')  # of a key apart from it
_AT_ONCE = 1 << 13  # items of a piece of the catalogue


@dataclasses.dataclass
class Config(ModelConfig):
    """Hyper-parameters of both towers; they train on task.windows='cuts'.

    `in_batch.uniform` adds negatives drawn uniformly to those of the batch: mixed negatives (Yang
    et al. 2020).
    """

    dim: int = field(64, least=1)  # of the vectors that meet, and of ids
    widths: tuple[int, ...] = (128,)  # of the hidden layers of each tower
    max_len: int = field(50, least=1)  # newest events that the user tower sees
    # the mean of the events' vectors, or a causal transformer over them
    history: str = field('mean', choices=('mean', 'transformer'))
    blocks: int = field(1, least=1)  # of the transformer
    heads: int = field(1, least=1)
    user_id: bool = True
    item_id: bool = True
    id_dropout: float = field(0.1, least=0, below=1)  # how often an id of either tower is left out
    features: tuple[Feature, ...] = ()  # of items, in both towers; of events, in the user's
    feature_dim: int = field(16, least=1)
    texts: bool = False  # of the items too, in the item tower (task.texts)
    dropout: float = field(0.1, least=0, below=1)  # of the history's events and the hidden layers
    temperature: float = field(0.05, above=0)  # of the cosines; where it is learnt, at the start
    learnt_temperature: bool = False
    in_batch: InBatch = dataclasses.field(default_factory=InBatch)  # settings of the loss
    # a term of the item tower: two maskings of an item have one vector (Yao et al., CIKM 2021)
    item_views: ItemViews = dataclasses.field(default_factory=ItemViews)
    init: str = field('xavier_normal', choices=embeddings.INITS)

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if self.dim % self.heads:
            raise UserError(f'model.dim={self.dim} is not a multiple of model.heads={self.heads}')
        if min(self.widths, default=1) < 1:
            raise UserError(f'model.widths={self.widths} must be at least 1 each')
        if not (self.item_id or self.features or self.texts):
            raise UserError(
                'model.item_id=False needs model.features or model.texts: else all items are alike'
            )
        if self.item_views.weight and not self.features:
            raise UserError('model.item_views masks features of items: name some in model.features')
        if self.item_views.weight and self.texts:
            raise UserError(
                'model.item_views masks no texts, and both views would have them: leave '
                'model.texts or model.item_views out'
            )
        if self.in_batch.similarity != 'dot' or self.in_batch.temperature != 1:
            raise UserError(
                'the towers end in unit vectors: set model.temperature, and leave '
                'model.in_batch.similarity and model.in_batch.temperature as they are'
            )

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'TwoTower':
        """Builds the model for users 0..sizes['user'] - 1 and items 1..sizes['item']."""
        return TwoTower(self, sizes, rngs=rngs)

    def inputs(self) -> Inputs:
        """What the model wants of the data."""
        return Inputs(
            self.max_len,
            self.features,
            cuts=self.max_len,
            users=self.user_id,
            items=True,
            information=self.item_views.weight > 0,
            texts=self.texts,
            described=not self.item_id,
        )

    def whole_batch(self) -> str:
        """The in-batch loss takes a batch's rows as each other's negatives."""
        return 'the in-batch loss of this model'


class Tower(nnx.Module):
    """Hidden layers with ReLU and dropout, then a unit vector."""

    def __init__(self, inputs: int, config: Config, *, rngs: nnx.Rngs):
        linear = linear_layer(embeddings.INITS[config.init], jnp.float32)
        sizes = (inputs, *config.widths, config.dim)
        self.rate = config.dropout
        self.layers = nnx.List(linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes))

    def __call__(self, x: jax.Array, key: Key = None) -> jax.Array:
        """[B, L, dim] of x [B, L, inputs]."""
        for n, layer in enumerate(self.layers):
            if n:
                own = None if key is None else jax.random.fold_in(key, n)
                x = dropout(jax.nn.relu(x), self.rate, own)
            x = layer(x)
        return unit(x)


class TwoTower(Model):
    """The score of an item is the cosine of the two towers' vectors."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config, self.num_items = config, sizes['item']
        dim, features = config.dim, config.features
        table = lambda count: embeddings.item_table(config.init, dim, count, rngs.params())  # noqa: E731
        # row u is user u
        self.users = nnx.Param(table(sizes['user'] - 1)) if config.user_id else None
        self.attributes = (
            embeddings.Attributes(features, config.feature_dim, rngs=rngs) if features else None
        )
        described = len(features) * config.feature_dim
        width = config.item_id * dim + described + (sizes['text'] if config.texts else 0)
        self.item_tower = Tower(width, config, rngs=rngs)
        pooled = dim + (described if config.history == 'mean' else 0)
        self.user_tower = Tower(config.user_id * dim + pooled, config, rngs=rngs)
        if config.history == 'mean':
            self.items, self.sequence = nnx.Param(table(self.num_items)), None
        else:
            settings = sasrec.Config(
                dim=dim,
                blocks=config.blocks,
                heads=config.heads,
                max_len=config.max_len,
                dropout=config.dropout,
                embedding_dropout=config.dropout,
                features=features,
                feature_dim=config.feature_dim,
                init=config.init,
            )
            self.items, self.sequence = None, sasrec.SASRec(settings, self.num_items, rngs=rngs)
        self.contrasting = config.item_views.weight > 0  # the weight may be traced later
        start = jnp.asarray(-jnp.log(config.temperature), jnp.float32)
        self.scale = nnx.Param(start) if config.learnt_temperature else None

    def item_table(self) -> jax.Array:
        """[rows, dim] of item ids; row 0 and rows above num_items are padding."""
        return self.items[...] if self.sequence is None else self.sequence.item_table()

    def item_vectors(
        self, items: jax.Array, constants: dict, key: Key = None, view: tuple | None = None
    ) -> jax.Array:
        """[n, dim] of items int32 [n], whole on every device.

        Args:
          items: numbers.
          constants: 'items', see `next_item.constants_of`: which are known, and codes by column.
          key: of dropout and of ids that are left out; None at inference.
          view: (bool [columns of `codes`, by name], bool), what is masked of a view, whose values
            are also left out by chance; None = nothing is, and ids are left out.
        """
        known, codes = constants['items']['known'], constants['items']['codes']
        parts = []
        if self.config.item_id:
            kept = kept_ids(items, self.config.id_dropout, key) if view is None else ~view[1]
            there = known[items] & kept
            parts.append(lookup(self.item_table(), items) * there[:, None])
        if self.attributes is not None:  # an item has no attributes of events
            own = {c: codes[c][items] if c in codes else items * 0 for c in self.attributes.columns}
            if view is not None:
                own |= self._masked({c: own[c] for c in codes}, view[0], key)
            parts += self.attributes.vectors(own)
        if self.config.texts:
            parts.append(constants['items']['texts'][items])
        return self.item_tower(jnp.concatenate(parts, -1)[None], key)[0]

    def _masked(self, codes, hidden, key):
        """The codes by column as a view has them."""
        found = {}
        for n, name in enumerate(sorted(codes)):
            column = codes[name]
            if column.ndim == 2:
                rate = self.config.item_views.value_dropout
                column = item_views.left_out(column, rate, jax.random.fold_in(key, 1 << 16 | n))
            found[name] = jnp.where(hidden[n], 0, column)
        return found

    def _views(self, constants, key):
        """The term of `item_views`, of items drawn from the whole catalogue."""
        config, keys = self.config.item_views, rng.keys(key, *_OF_VIEWS)
        items = item_views.draw(config.items, self.num_items, keys['items'])
        columns = len(constants['items']['codes'])
        information = constants['items'].get('information')
        hidden, of_id = item_views.masked(
            config.masks, columns, self.config.item_id, information, keys['masks']
        )
        views = [
            self.item_vectors(items, constants, keys[name], (hidden[n], of_id[n]))
            for n, name in enumerate(('first', 'second'))
        ]
        return item_views.term(*views, config.temperature)

    def catalogue(self, constants: dict) -> dict[str, jax.Array]:
        """{'items': [rows, dim]} of all items, a piece at a time."""
        rows = len(self.item_table())
        size = min(rows, _AT_ONCE)
        pieces = -(-rows // size)
        numbers = jnp.minimum(jnp.arange(pieces * size), self.num_items).reshape(pieces, size)
        made = jax.lax.map(lambda items: self.item_vectors(items, constants), numbers)
        made = made.reshape(pieces * size, -1)[:rows]
        return {'items': placed(made, TABLE)}

    def queries(self, batch: dict, catalogue: dict[str, jax.Array]) -> jax.Array:
        """User vectors [B, 1, dim] of right-aligned histories, and of `users` where there are."""
        del catalogue
        return self.user_vectors(batch, last=1)

    def user_vectors(self, batch: dict, last: int, keys: Mapping[str, Key] | None = None):
        """[B, last, dim] after each of the `last` newest places of the rows.

        Args:
          batch: items, segments, positions int32 [B, L] and features; users int32 [B], if known.
          last: at most L.
          keys: 'user', 'history' and 'dropout'; None at inference.
        """
        keys = keys or dict.fromkeys(('user', 'history', 'dropout'))
        if self.sequence is not None:
            table = self.item_table()
            hidden = self.sequence.encode(batch, table, keys['history'], last=last)
        else:
            hidden = self._mean(batch, last, keys['history'])
        parts = [hidden]
        if self.users is not None:
            if 'users' in batch:
                ids = lookup(self.users[...], batch['users'])
                there = kept_ids(batch['users'], self.config.id_dropout, keys['user'])
                ids = ids * there[:, None]
            else:
                ids = jnp.zeros_like(hidden[:, 0, : self.config.dim])
            parts.append(jnp.broadcast_to(ids[:, None], (*hidden.shape[:2], ids.shape[-1])))
        return self.user_tower(jnp.concatenate(parts, -1), keys['dropout'])

    def _mean(self, batch, last, key):
        """[B, last, ..] means of the events' vectors up to each place; 0 before the first."""
        real = (batch['segments'] > 0)[..., None].astype(jnp.float32)
        x = [lookup(self.item_table(), batch['items'])]
        if self.attributes is not None:
            x += self.attributes.vectors(batch['features'])
        x = dropout(jnp.concatenate(x, -1), self.config.dropout, key) * real
        length = x.shape[1]
        upto = jnp.tril(jnp.ones((length, length), x.dtype))[-last:]  # of each place, as a product
        total, count = (jnp.einsum('ml,bld->bmd', upto, one) for one in (x, real))
        return total / jnp.maximum(count, 1)

    def sample(self, batch: dict, key: jax.Array) -> dict:
        """The batch with its uniform negatives, see `in_batch.sample`."""
        key = rng.keys(key, *_STREAMS)['negatives']
        return in_batch.sample(self.config.in_batch, batch, key, self.num_items)

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        """In-batch softmax of cuts; the item tower sees the items of the batch alone."""
        keys = rng.keys(key, *_STREAMS)
        last = batch['targets'].shape[1]
        queries = self.user_vectors(batch, last, keys)[:, :, None]
        scale = 1 / self.config.temperature if self.scale is None else jnp.exp(self.scale[...])
        wanted = replicated(batch['targets']).reshape(-1)
        if 'sampled' in batch:
            wanted = jnp.concatenate([wanted, batch['sampled']])
        ids = jnp.sort(wanted)
        rows = Rows(ids, self.item_vectors(ids, constants, keys['item']))
        value, (terms, new) = in_batch.loss(
            self.config.in_batch, queries * scale, rows, batch, carry, self.num_items
        )
        if self.scale is not None:
            terms = {**terms, 'temperature': 1 / scale}
        if self.contrasting:
            alike = self._views(constants, jax.random.fold_in(key, 1))
            value = value + self.config.item_views.weight * alike
            terms = {**terms, 'item_views': alike}
        return value, (terms, new)

    def carry(self) -> dict:
        """What the in-batch loss remembers."""
        return in_batch.start(self.config.in_batch, self.num_items, self.config.dim)
