"""UniCDR: a vector of a user in each domain, and one of all others (Cao et al., WSDM 2023).

Of domain k: u^k = A_k(P^k[u], C) with C items that the user has there, and u^s = A_s(P^s[u], G)
with G items of the other domain: what can be told of the user without k. Both are
A(p, {q_j}) = a p + (1 - a) W agg({q_j}), an item i of k scores (u^k + u^s) . q_i, and a critic
tells a user's own u^k from another's beside u^s.

UniCDR+ (Cao et al., arXiv 2409.04540) adds five things, of which the paper's forms are not known to
us; those here are our reading: attributes of items (`features`), propagation over items with common
users (`layers`), an encoder of the sequence as aggregator (aggregator='sequence'), and a soft
contrast beside the critic (`soft`). The fifth, a head for every behaviour, is not here: the data
have one. All off is UniCDR.

What differs from the authors' code: items that are not there have no weight in attention (theirs
keep exp(0)), at least one item is left of a short history, negatives and contexts are drawn anew
each step, and of a user without an event in a domain P^k counts as 0 when lists are made, since
nothing was learnt of it. Items of domains have a table together, as they are different items,
vectors begin short and not at N(0, 1), critics have no bias, and `decay` is of the rows that a pair
looks up, where theirs weighs down all parameters. `bias` adds to a score a number of the item,
which the authors have not: how popular an item is must else grow as a direction that all users and
items share, and in the time of our runs it hardly does. Lists are made of what training saw
(`sees`). Propagation divides by the roots of degrees in the whole graph, of a user those in both
domains. Domains are two, where theirs may be more, and all users have P^s in one table: theirs has
for cold users rows of each domain, and makes lists of those of the other one. There is no
aggregator by the similarity of items that EASE tells, and the learning rate stays as it is, where
theirs is multiplied by .98 when validation stalls after epoch 10.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import losses, rng
from jaxrec.config import Feature, field
from jaxrec.devices.mesh import TABLE, placed, replicated
from jaxrec.errors import UserError
from jaxrec.nn import bipartite, embeddings
from jaxrec.nn.attention import causal_mask, softmax_among
from jaxrec.nn.bipartite import Nodes, spread, whole
from jaxrec.nn.blocks import Block2018
from jaxrec.nn.dropout import Key, dropout, split_key
from jaxrec.nn.embeddings import lookup, values_at
from jaxrec.nn.linear import layer_norm, linear_layer
from jaxrec.problem import Inputs, Model, ModelConfig

AGGREGATORS = ('mean', 'attention', 'sequence')
_STREAMS = ('own', 'shared', 'items', 'shift')  # of a step's key


@dataclasses.dataclass
class Config(ModelConfig):
    """UniCDR's hyper-parameters.

    Defaults are the authors' but for `sees`, `decay`, `deviation` and `max_len`.
    """

    dim: int = field(128, least=1)
    aggregator: str = field('mean', choices=AGGREGATORS)
    own: float = field(0.5, least=0, most=1)  # a: of the user's own vector in u
    context: int = field(10, least=1)  # items of either domain that a step sees of a user
    # and lists, of both together; the order of a log that has none is no reason to leave some out
    max_len: int = field(1024, least=1)
    shared: bool = True  # u^s; without it every domain is by itself
    # items that u^s is made of where lists are made: of the other domain, as in training, or all as
    # in the authors' code, which costs a quarter of NDCG@10 on Sport and Cloth
    sees: str = field('other', choices=('other', 'all'))
    critic: float = field(0.6, least=0, below=1, traced=True)  # weight; that of pairs is the rest
    dropout: float = field(0.3, least=0, below=1)
    deviation: float = field(0.1, above=0)  # of the vectors in the beginning
    decay: float = field(0.0, least=0, traced=True)  # of half the squared length of a pair's rows
    bias: bool = False  # a number of every item in its score, without decay
    # UniCDR+
    features: tuple[Feature, ...] = ()  # of items, whose vectors are added to theirs
    layers: int = field(0, least=0)  # of propagation over items with common users
    soft: float = field(0.0, least=0, traced=True)  # weight of the soft contrast
    temperature: float = field(0.2, above=0, traced=True)  # of it

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if not self.shared and (self.critic or self.soft):
            raise UserError('model.shared=False leaves nothing to compare: set model.critic=0')

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'UniCDR':
        """Builds the model for users 0..sizes['user'] - 1 and items 1..sizes['item']."""
        return UniCDR(self, sizes, rngs=rngs)

    def inputs(self) -> Inputs:
        """Pairs with their context, users by number, domains."""
        return Inputs(
            max_len=self.max_len,
            features=self.features,
            items=bool(self.features),
            pairs=True,
            users=True,
            negatives=True,
            domains=True,
            context=self.context,
        )

    def tables(self) -> dict[str, tuple[str, ...]]:
        """Those of users and items, where no step makes vectors of all items."""
        if self.layers or self.features:
            return {}
        shared = ('users_shared',) if self.shared else ()
        found = {name: ('users',) for name in ('users_first', 'users_second', *shared)}
        if self.bias:
            found['biases'] = ('targets', 'negatives')
        return {'items': ('items', 'targets', 'negatives'), **found}

    def whole_batch(self) -> str:
        """Users are each other's negatives, and one propagation serves a whole batch."""
        if self.layers:
            return "a graph's propagation"
        return 'model.critic' if self.critic else 'model.soft' if self.soft else ''


class Aggregator(nnx.Module):
    """A(p, {q_j}) = a p + (1 - a) W agg({q_j}); a p of an empty set."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.kind, self.own, self.rate = config.aggregator, config.own, config.dropout
        init, shape = nnx.initializers.xavier_uniform(), (config.dim, config.dim)
        self.out = nnx.Param(init(rngs.params(), shape, jnp.float32))
        if self.kind == 'attention':
            self.weigh = nnx.Param(init(rngs.params(), shape, jnp.float32))
            self.bias = nnx.Param(jnp.zeros(config.dim))
        if self.kind == 'sequence':
            linear, norm = linear_layer(init, jnp.float32), layer_norm(1e-6, jnp.float32)
            self.block = Block2018(config.dim, 1, 1, config.dropout, linear, norm, rngs=rngs)
            self.norm = norm(config.dim, rngs=rngs)
            shape = config.context, config.dim
            self.positions = nnx.Param(config.deviation * jax.random.normal(rngs.params(), shape))

    def __call__(self, p: jax.Array, items: jax.Array, real: jax.Array, key: Key = None):
        """[B, D] of p [B, D], vectors [B, L, D] and which of them count, bool [B, L]."""
        there = real.astype(items.dtype)
        if self.kind == 'mean':
            count = jnp.maximum(there.sum(1, keepdims=True), 1)
            agg = (items * there[..., None]).sum(1) / count
        elif self.kind == 'attention':
            hidden = jnp.tanh(items @ replicated(self.weigh[...]) + self.bias[...])
            weights = softmax_among(jnp.einsum('bld,bd->bl', hidden, p), real)
            weights = dropout(weights, self.rate, key)
            agg = jnp.einsum('bl,bld->bd', weights, items)
        else:
            agg = self._read(items, there, key)
        return self.own * p + (1 - self.own) * (agg @ replicated(self.out[...]))

    def _read(self, items, there, key):
        """[B, D], the state at the last item that counts; the oldest share a position."""
        segments = there.astype(jnp.int32)
        later = jnp.cumsum(segments[:, ::-1], axis=1)[:, ::-1] - segments
        x = items + lookup(self.positions[...], jnp.minimum(later, len(self.positions[...]) - 1))
        x = self.norm(self.block(x * there[..., None], causal_mask(segments), key))
        length = items.shape[1]
        last = length - 1 - segments[:, ::-1].argmax(1)
        chosen = jax.nn.one_hot(last, length, dtype=x.dtype) * there.max(1, keepdims=True)
        return jnp.einsum('bl,bld->bd', chosen, x)


class UniCDR(Model):
    """See the module; domains are numbered from 1."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config, self.num_users, self.num_items = config, sizes['user'], sizes['item']
        # of any weight, which may be traced later
        self.terms = tuple(n for n in ('critic', 'soft', 'decay') if getattr(config, n))

        def table(count):
            drawn = embeddings.item_table(config.deviation, config.dim, count, rngs.params())
            return nnx.Param(drawn)

        self.items = table(self.num_items)  # row 0 is padding
        if config.bias:
            self.biases = nnx.Param(placed(jnp.zeros((len(self.items[...]), 1)), TABLE))
        # of the first and of the second domain; row u is user u
        self.users_first, self.users_second = (table(self.num_users - 1) for _ in range(2))
        self.aggregators = nnx.List(Aggregator(config, rngs=rngs) for _ in range(2))
        if config.shared:
            self.users_shared = table(self.num_users - 1)
            self.aggregator_shared = Aggregator(config, rngs=rngs)
        if config.critic:
            init, shape = nnx.initializers.xavier_uniform(), (config.dim, config.dim)
            drawn = (init(rngs.params(), shape, jnp.float32) for _ in range(2))
            self.critics = nnx.List(map(nnx.Param, drawn))
        if config.features:
            self.attributes = embeddings.Attributes(config.features, config.dim, rngs=rngs)

    def vectors(self, constants: dict) -> jax.Array:
        """[rows, D] of items, with their attributes, after propagation in their own domain.

        `embeddings.Rows` of the table where a step has only these.
        """
        x = self.items[...]
        if self.config.features:
            codes = constants['items']['codes']
            added = sum(self.attributes.vectors(codes))
            x = x + replicated(jnp.pad(added, ((0, len(x) - len(added)), (0, 0))))
        if not self.config.layers:
            return x
        edges, degrees = constants['edges'].arrays, constants['degrees']
        layers, domain = [spread(x)], spread(constants['domains'][:, None])
        for _ in range(self.config.layers):
            layers.append(sum(self._hop(edges, degrees, layers[-1], domain == n) for n in (1, 2)))
        return placed(whole(sum(layers) / len(layers), len(x)), TABLE)

    def _hop(self, edges, degrees, x, mine):
        """R^T R x of the items of a domain, R the pairs over the roots of both degrees."""
        users = spread(jnp.zeros((len(degrees.users), x.shape[1]), x.dtype))
        there = bipartite.propagated(edges, None, degrees, Nodes(users, x * mine))
        back = bipartite.propagated(edges, None, degrees, Nodes(there.users, x * 0))
        return back.items * mine

    def catalogue(self, constants: dict) -> dict[str, jax.Array]:
        """'items' [rows, 2 D (+ 1)] for dot products with `queries`; 'vectors', 'domains'."""
        vectors = self.vectors(constants)
        domain = placed(constants['domains'][:, None], TABLE)
        apart = [vectors * (domain == n) for n in (1, 2)]
        if self.config.bias:
            apart.append(self.biases[...])
        return {
            'items': jnp.concatenate(apart, axis=1),
            'vectors': vectors,
            'domains': constants['domains'],
        }

    def queries(self, batch: dict, catalogue: dict) -> jax.Array:
        """[B, 1, 2 D (+ 1)], u^k + u^s of both domains, and 1 for the items' biases.

        Users who are not of the data have p = 0.
        """
        items = batch['items']
        vectors = lookup(catalogue['vectors'], items)
        domain = values_at(catalogue['domains'], items)
        sees_all, found = self.config.sees == 'all', []
        for n in (1, 2):
            own, other = domain == n, (domain > 0) & ((domain != n) | sees_all)
            known = own.any(1, keepdims=True)
            p = self._of(self._own[n - 1], batch, vectors) * known
            u = self.aggregators[n - 1](p, vectors, own)
            if self.config.shared:
                p = self._of(self.users_shared, batch, vectors)
                u = u + self.aggregator_shared(p, vectors, other)
            found.append(u)
        if self.config.bias:
            found.append(jnp.ones_like(found[0][:, :1]))
        return jnp.concatenate(found, axis=-1)[:, None]

    @property
    def _own(self):
        return self.users_first, self.users_second

    def _of(self, table, batch, vectors):
        """[B, D] rows of the users, 0 of those without a number."""
        if 'users' not in batch:
            return jnp.zeros_like(vectors[:, 0])
        return lookup(table[...], batch['users'])

    def users_of(
        self, batch: dict, vectors: jax.Array, domains: jax.Array, key: Key = None
    ) -> tuple[jax.Array, jax.Array]:
        """(u^k, u^s) [B, D] of a training batch, k the domain of each row's target."""
        keys = rng.keys(key, *_STREAMS)
        items, mine = batch['items'], batch['domain'][:, None]
        drawn, domain = lookup(vectors, items), values_at(domains, items)
        own_keys, found = split_key(keys['own'], 4), []
        for n in (1, 2):
            p = lookup(self._own[n - 1][...], batch['users'])
            u = self.aggregators[n - 1](p, drawn, domain == n, own_keys[2 * n - 2])
            found.append(dropout(u, self.config.dropout, own_keys[2 * n - 1]))
        u = jnp.where(mine == 1, *found)
        if not self.config.shared:
            return u, jnp.zeros_like(u)
        weigh, drop = split_key(keys['shared'], 2)
        p, other = lookup(self.users_shared[...], batch['users']), (domain > 0) & (domain != mine)
        return u, dropout(self.aggregator_shared(p, drawn, other, weigh), self.config.dropout, drop)

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        """Of each domain, added: cross entropies of pairs, the critic's, and the soft contrast.

        Args:
          batch: of `data.pairs.DomainPairBatches`.
          constants: domains; of propagation edges and degrees.
          carry: handed on.
          key: of dropout and of whom the critic compares.
        """
        config, keys = self.config, rng.keys(key, *_STREAMS)
        vectors = self.vectors(constants)
        u, shared = self.users_of(batch, vectors, constants['domains'], key)
        known = [lookup(vectors, batch[name]) for name in ('targets', 'negatives')]
        dropped = zip(known, split_key(keys['items'], 2), strict=True)
        item, others = (dropout(x, config.dropout, k) for x, k in dropped)
        user = u + shared
        score, wrong = (user * item).sum(-1), jnp.einsum('bd,bkd->bk', user, others)
        if config.bias:
            score = score + lookup(self.biases[...], batch['targets'])[..., 0]
            wrong = wrong + lookup(self.biases[...], batch['negatives'])[..., 0]
        values = jax.nn.softplus(-score) + jax.nn.softplus(wrong).mean(-1)
        of = [batch['weights'] * (batch['domain'] == n) for n in (1, 2)]
        terms = {'bce': sum(losses.weighted_mean(values, w) for w in of)}
        value = (1 - config.critic) * terms['bce']
        if 'critic' in self.terms:
            terms['critic'] = self.criticised(u, shared, of, keys['shift'])
            value = value + config.critic * terms['critic']
        if 'soft' in self.terms:
            terms['soft'] = sum(soft_contrast(u, shared, w, config.temperature) for w in of)
            value = value + config.soft * terms['soft']
        if 'decay' in self.terms:
            terms['decay'] = sum(losses.weighted_mean(self._lengths(batch, known), w) for w in of)
            value = value + config.decay * terms['decay']
        return value, (terms, carry)

    def _lengths(self, batch, known):
        """[B], half the squared lengths of a pair's user, in its domain and shared, and items."""
        first, second = (lookup(x[...], batch['users']) for x in self._own)
        rows = [jnp.where(batch['domain'][:, None] == 1, first, second)]
        if self.config.shared:
            rows.append(lookup(self.users_shared[...], batch['users']))
        item, others = known
        return sum((x**2).sum(-1) for x in (*rows, item)) / 2 + (others**2).sum(-1).mean(-1) / 2

    def criticised(self, u: jax.Array, shared: jax.Array, of: list, key: jax.Array) -> jax.Array:
        """BCE(u^k D_k u^s, 1) + BCE(v^k D_k u^s, 0) of both domains; v is another user of k.

        All users of a domain's rows move on by one number of places that chance draws; a domain
        with a single row has nobody else: 0.

        Args:
          u, shared: [B, D], rows of both domains in turns.
          of: float32 [B], weights of the rows of each.
          key: of that number.
        """
        u, shared, rows = replicated(u), replicated(shared), u.shape[0] // 2
        if rows < 2:
            return jnp.zeros(())
        move = 2 * jax.random.randint(key, (), 1, rows)
        other = u[(jnp.arange(2 * rows) + move) % (2 * rows)]
        total = 0.0
        for weights, critic in zip(of, self.critics, strict=True):
            right = shared @ replicated(critic[...]).T
            true, wrong = ((x * right).sum(-1) for x in (u, other))
            values = jax.nn.softplus(-true) + jax.nn.softplus(wrong)
            total = total + losses.weighted_mean(values, replicated(weights))
        return total


def soft_contrast(
    u: jax.Array, shared: jax.Array, weights: jax.Array, temperature: float
) -> jax.Array:
    """Cross entropy between how alike users are by u^s and how near u^k is to their u^s.

    Labels are softmax(cos(u^s, v^s) / t), held fixed; logits cos(u^k, v^s) / t.

    Args:
      u, shared: [B, D].
      weights: float32 [B]; only rows with weight are compared.
      temperature: t.
    """
    u, shared, weights = (replicated(x) for x in (u, shared, weights))
    near, like = losses.unit(u), losses.unit(shared)
    hidden = jnp.where(weights > 0, 0, -1e9)
    labels = jax.nn.softmax(jax.lax.stop_gradient(like @ like.T) / temperature + hidden)
    values = -(labels * jax.nn.log_softmax(near @ like.T / temperature + hidden)).sum(-1)
    return losses.weighted_mean(values, weights)
