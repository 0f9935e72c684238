"""C2DSR: contrastive cross-domain sequential recommendation (Cao et al., CIKM 2022).

Three causal encoders read a history: the merged one, and for each of two domains its own events.
An item of domain X is scored by W_X (h + h^X), h the merged vector and h^X that of X alone; one
table [w, 0, b] or [0, w, b] makes that a dot product, so that ranking and serving are those of all.

What differs from the authors' code: every loss is a mean over targets (theirs divides by all
positions, so weights fall with padding), all positions of the window are targets and not the last
10, all events count in the infomax means, the pads before a history are never seen, corrupted
histories are drawn anew each step, attention has no output projection, propagation no bias, and
vectors begin as Xavier has it and not at N(0, 1). Other corrections are fields, at the authors'
value by default: `masked`, `once`, `pad`, and `served`. Lists add h of the newest event to h^X of
the last event of X, which may be an earlier one; theirs learns h + h^X at events of X alone, where
both are of one event, and with `served` every event learns the sum that lists are made of.

With `tied` an item's head is its token: of the merged table, or without a merged encoder of that of
its domain, so that one encoder alone is the SASRec of the library.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import losses, rng
from jaxrec.config import field
from jaxrec.devices.mesh import TABLE, placed, replicated, table_rows
from jaxrec.errors import UserError
from jaxrec.nn import embeddings
from jaxrec.nn.attention import causal_mask
from jaxrec.nn.blocks import Block2018
from jaxrec.nn.dropout import Key, dropout, hash_bits, split_key
from jaxrec.nn.embeddings import lookup, values_at
from jaxrec.nn.linear import layer_norm, linear_layer, product
from jaxrec.nn.propagate import propagate
from jaxrec.problem import Inputs, Model, ModelConfig

_STREAMS = ('tokens', 'encode', 'corrupt', 'false')  # of a step's key


@dataclasses.dataclass
class Config(ModelConfig):
    """C2DSR's hyper-parameters; the defaults are those of the authors' code but for `init`."""

    dim: int = field(256, least=1)
    blocks: int = field(2, least=0)
    heads: int = field(1, least=1)
    max_len: int = field(15, least=1)  # newest events that the model sees
    dropout: float = field(0.2, least=0, below=1)
    graph: int = field(1, least=0)  # layers over the followers of items; 0 = none
    # of the losses of next items; the rest is the infomax term, which 1 leaves out
    mix: float = field(0.7, above=0, most=1)
    own: bool = True  # the encoders of single domains; without them it is one merged encoder
    merged: bool = True  # the merged encoder
    masked: bool = False  # correction: events of the other domain are not seen as zero keys
    # correction: an item's vector is added once where there is no graph, not twice
    once: bool = False
    pad: bool = True  # a class of no item in every softmax, as the authors have it
    # correction: h + h^X is learnt at every event, for the next one, as lists are made of it
    served: bool = False
    tied: bool = False  # heads are the tokens' own table, not one beside it
    init: str = field('xavier_normal', choices=embeddings.INITS)

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if self.dim % self.heads:
            raise UserError(f'model.dim={self.dim} is not a multiple of model.heads={self.heads}')
        if not (self.own or self.merged):
            raise UserError('model.own=False and model.merged=False leave no encoder')
        if self.served and not self.own:
            raise UserError('model.served is of the encoders of single domains: set model.own=True')
        if self.mix < 1 and not (self.own and self.merged):
            raise UserError('the infomax term compares both kinds of encoders: set model.mix=1')

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'C2DSR':
        """Builds the model for items 1..sizes['item']."""
        return C2DSR(self, sizes['item'], rngs=rngs)

    def inputs(self) -> Inputs:
        """What the model wants of the data."""
        return Inputs(self.max_len, domains=True, followers=bool(self.graph))

    def whole_batch(self) -> str:
        """The infomax term is a mean over the users of a batch."""
        return 'model.mix below 1' if self.mix < 1 else ''


class Encoder(nnx.Module):
    """A causal encoder of the events that a mask leaves, with positions counted from the first."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, self.rate = embeddings.INITS[config.init], config.dropout
        linear, norm = linear_layer(init, jnp.float32), layer_norm(1e-6, jnp.float32)
        self.positions = nnx.Param(init(rngs.params(), (config.max_len, config.dim), jnp.float32))
        self.blocks = nnx.List(
            Block2018(config.dim, config.heads, 1, config.dropout, linear, norm, rngs=rngs)
            for _ in range(config.blocks)
        )
        self.norm = norm(config.dim, rngs=rngs)
        self.masked = config.masked

    def __call__(self, items: jax.Array, tokens: jax.Array, segments, events, key: Key = None):
        """[B, L, D] after every event, zeros (before the last norm) where `events` is False.

        Args:
          items: int32 [B, L].
          tokens: [rows, D] vectors of items.
          segments: int32 [B, L], 0 = padding.
          events: bool [B, L], those that are read.
          key: of dropout, None at inference.
        """
        keys = split_key(key, len(self.blocks) + 1)
        nth = _before(segments, events).sum(-1) - 1
        x = lookup(tokens, items) * tokens.shape[1] ** 0.5
        x = x + lookup(self.positions[...], jnp.maximum(nth, 0))
        real = events[..., None].astype(x.dtype)
        x = dropout(x, self.rate, keys[-1]) * real
        mask = causal_mask(jnp.where(events, segments, 0) if self.masked else segments)
        for block, block_key in zip(self.blocks, keys[:-1], strict=True):
            x = block(x, mask, block_key) * real
        return self.norm(x)


class C2DSR(Model):
    """Merged and single-domain encoders, item graphs, and an infomax term between them."""

    def __init__(self, config: Config, num_items: int, *, rngs: nnx.Rngs):
        self.config, self.num_items, self.max_len = config, num_items, config.max_len

        def table():
            # one row more than there are items: the class of no item in `heads`
            drawn = embeddings.item_table(config.init, config.dim, num_items + 1, rngs.params())
            return nnx.Param(drawn)

        init = embeddings.INITS[config.init]
        # of the merged log, and of each domain; None where it is left out
        there = config.merged, config.own, config.own
        self.encoders = nnx.List(Encoder(config, rngs=rngs) if t else None for t in there)
        self.items = nnx.List(table() if t else None for t in there)
        if not config.tied:
            self.heads = table()
        self.bias = nnx.Param(jnp.zeros(table_rows(num_items + 1)))
        shape = config.dim, config.dim
        self.critics = nnx.List(nnx.Param(init(rngs.params(), shape)) for _ in range(2))
        self.critic_bias = nnx.Param(jnp.zeros(2))

    def catalogue(self, constants: dict) -> dict:
        """'items' [rows, 2 D + 1] for dot products with `queries`; 'tokens' and 'domains'."""
        heads, bias, domain, _ = self._table(constants['domains'])
        apart = [heads * (domain == 1), heads * (domain == 2), bias]
        return {
            'items': jnp.concatenate(apart, axis=1),
            'tokens': self.tokens(constants),
            'domains': constants['domains'],
        }

    def queries(self, batch: dict, catalogue: dict) -> jax.Array:
        """[B, 1, 2 D + 1] of right-aligned histories: h + h^X, h + h^Y and 1.

        h^X is the vector at the last event of X, of who has none that of a place without an event.
        """
        items, segments = batch['items'], batch['segments']
        domain = values_at(catalogue['domains'], items)
        merged, *own = self.encode(items, segments, domain, catalogue['tokens'])
        last = merged[:, -1:]
        length = items.shape[1]
        found = []
        for n, hidden in enumerate(own, 1):
            place = (length - 1 - (domain == n)[:, ::-1].argmax(1)) % length
            chosen = jax.nn.one_hot(place, length, dtype=hidden.dtype)
            found.append(last + jnp.einsum('bl,bld->bd', chosen, hidden)[:, None])
        return jnp.concatenate([*found, jnp.ones_like(last[..., :1])], axis=-1)

    def tokens(self, constants: dict, key: Key = None) -> list[jax.Array | None]:
        """[rows, D] for each encoder: vectors of items, and means over their followers added."""
        found = []
        for n, (table, own_key) in enumerate(zip(self.items, split_key(key, 3), strict=True)):
            if table is None:
                found.append(None)
                continue
            table = replicated(table[...])
            hidden, total = table, table
            for layer_key in split_key(own_key, self.config.graph):
                graph = constants['follow_own' if n else 'follow']
                hidden = dropout(hidden, self.config.dropout, layer_key)
                # the table has a row more than there are items, which may be one of a new 64
                rows = len(graph.order.starts) - 1
                hidden = propagate(graph, hidden[:rows], rows)
                hidden = jnp.pad(hidden, ((0, len(table) - rows), (0, 0)))
                total = total + hidden
            mean = total / (self.config.graph + 1)
            found.append(mean if self.config.once and not self.config.graph else mean + table)
        return found

    def encode(self, items, segments, domain, tokens, key: Key = None) -> list[jax.Array]:
        """[B, L, D] of the merged log and of each domain; zeros of encoders that are left out."""
        keys, found = split_key(key, 3), []
        nothing = jnp.zeros_like(lookup(next(x for x in tokens if x is not None), items))
        for n, encoder in enumerate(self.encoders):
            if encoder is None:
                found.append(nothing)
                continue
            events = domain == n if n else segments > 0
            found.append(encoder(items, tokens[n], segments, events, keys[n]))
        return found

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """Next items among those of their domain, from all encoders, and the infomax term."""
        del carry
        config, keys = self.config, rng.keys(key, *_STREAMS)
        items, segments, targets = batch['items'], batch['segments'], batch['targets']
        domain, wanted = (values_at(constants['domains'], x) for x in (items, targets))
        tokens = self.tokens(constants, keys['tokens'])
        hidden = self.encode(items, segments, domain, tokens, keys['encode'])
        merged, *own = hidden
        terms = {}
        if config.merged:
            args = merged, merged, targets, wanted, batch['weights']
            terms['merged'] = self._softmax(constants, *args)
        if config.own and config.served:
            mine = last_of_domain(own, segments, domain, wanted)
            args = merged + mine, mine, targets, wanted, batch['weights']
            terms['own'] = self._softmax(constants, *args)
        elif config.own:
            mine = jnp.where((domain == 2)[..., None], own[1], own[0])
            following, there = next_of_domain(segments, domain, targets, wanted)
            args = merged + mine, mine, following, domain, batch['weights'] * there
            terms['own'] = self._softmax(constants, *args)
        value = sum(terms.values())
        if config.mix < 1:
            false = self._corrupted(items, domain, constants, keys['corrupt'])
            read = [
                self.encoders[0](one, tokens[0], segments, segments > 0, one_key)
                for one, one_key in zip(false, split_key(keys['false'], 2), strict=True)
            ]
            terms['infomax'] = self.infomax(hidden, read, segments, domain)
            value = config.mix * value + (1 - config.mix) * terms['infomax']
        return value, (terms, {})

    def infomax(self, hidden: list, false: list, segments, domain) -> jax.Array:
        """L_X + L_Y, means over the users of a batch with events of both domains; else 0.

        L_X = BCE(g^X D c^Y + b, 1) + BCE(g^X D f^Y + b, 0): g^X is the mean of h^X over the events
        of X, c^Y that of h over those of Y, and f^Y the same of the same events of Y after those of
        X around them were replaced. Of L_Y the other way round.

        Args:
          hidden: [B, L, D] of `encode`.
          false: [B, L, D] merged, after the items of X, and of Y, were replaced.
          segments, domain: int32 [B, L].
        """
        following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
        both = (segments > 0) & (segments != following)  # the last event of each user
        same = segments[:, :, None] == segments[:, None, :]
        parts = []
        for n in (1, 2):
            mask = (same & (domain == n)[:, None, :]).astype(jnp.float32)
            count = mask.sum(-1, keepdims=True)
            both = both & (count[..., 0] > 0)
            parts.append(mask / jnp.maximum(count, 1))
        total = 0.0
        for n in (0, 1):
            mine, other = parts[n], parts[1 - n]
            left = product(_mean(mine, hidden[1 + n]), self.critics[n][...])
            bias = self.critic_bias[...][n]
            true, wrong = ((left * _mean(other, h)).sum(-1) + bias for h in (hidden[0], false[n]))
            values = jax.nn.softplus(-true) + jax.nn.softplus(wrong)
            total = total + losses.weighted_mean(values, both.astype(values.dtype))
        return total

    def _corrupted(self, items, domain, constants, key):
        """Items with those of the first, and with those of the second domain drawn anew."""
        bits, found = hash_bits(key, items), []
        for n, mine in enumerate(constants['of_domain'], 1):
            drawn = values_at(mine, (bits % len(mine)).astype(jnp.int32))
            found.append(jnp.where(domain == n, drawn, items))
        return found

    def _table(self, domains):
        """(w [rows, D], b, domain, whether it is the class of no item: [rows, 1])."""
        bias = self.bias[...]
        domains = jnp.pad(domains, (0, len(bias) - len(domains)))
        none = jnp.arange(len(bias)) == self.num_items + 1
        columns = [placed(x[:, None], TABLE) for x in (bias, domains, none)]
        return self._heads(columns[1]), *columns

    def _heads(self, domains):
        if not self.config.tied:
            return self.heads[...]
        merged, *own = self.items
        return jnp.where(domains == 2, own[1][...], own[0][...]) if merged is None else merged[...]

    def _softmax(self, constants, hidden, of_none, targets, domain, weights):
        """Mean cross-entropy of targets among the items of their domain, and no item."""
        heads, bias, _, none = self._table(constants['domains'])
        one, of_domain = jnp.ones_like(hidden[..., :1]), constants['of_domain']
        queries, classes = [hidden, one], [heads, bias]
        if self.config.pad:
            queries, classes = [hidden, of_none, one], [heads * ~none, heads * none, bias]
            of_domain = [jnp.append(items, self.num_items + 1) for items in of_domain]
        return losses.in_domain(
            jnp.concatenate(queries, axis=-1),
            jnp.concatenate(classes, axis=1),
            targets,
            weights,
            domain=domain,
            of_domain=of_domain,
        )


def next_of_domain(segments, domain, targets, wanted) -> tuple[jax.Array, jax.Array]:
    """Of every event the next one of its own domain, whatever is between.

    Args:
      segments, domain: int32 [B, L] of the events.
      targets, wanted: int32 [B, L], the next event and its domain.

    Returns:
      int32 [B, L], 0 where there is none, and whether there is, float32 [B, L].
    """
    length = segments.shape[1]
    later = jnp.triu(jnp.ones((length, length), bool))
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
    found = later & same & (wanted[:, None, :] == domain[:, :, None])
    there = found.any(-1)
    place = jax.nn.one_hot(found.argmax(-1), length, dtype=jnp.int32)
    following = (place * targets[:, None, :]).sum(-1)
    return jnp.where(there, following, 0), there.astype(jnp.float32)


def last_of_domain(own, segments, domain, wanted) -> jax.Array:
    """The state of a domain after its last event so far, as `C2DSR.queries` has it.

    Args:
      own: of either domain the states [B, L, D] of its encoder.
      segments, domain: int32 [B, L] of the events.
      wanted: int32 [B, L], at every event the domain asked for.

    Returns:
      [B, L, D]; of who had no event of it the state at the event itself.
    """
    length = segments.shape[1]
    mine = causal_mask(segments)[:, 0] & (domain[:, None, :] == wanted[:, :, None])
    place = (mine * jnp.arange(1, length + 1)).max(-1) - 1
    place = jnp.where(place < 0, jnp.arange(length), place)
    chosen = jax.nn.one_hot(place, length, dtype=own[0].dtype)
    first, second = (jnp.einsum('bml,bld->bmd', chosen, hidden) for hidden in own)
    return jnp.where((wanted == 2)[..., None], second, first)


def _before(segments, events):
    """bool [B, L, L]: of a place (second) the events at or before it in its segment (last)."""
    return causal_mask(segments)[:, 0] & events[:, None, :]


def _mean(weights, x):
    return jnp.einsum('bij,bjd->bid', weights, x)
