"""LightGCN (He et al., SIGIR 2020), and what was made of it: settings of one model.

    MF-BPR      layers=0
    LightGCN    layers=3
    SGL         views of kind node_drop, edge_drop, random_walk, feature_mask, among='all'
                (Wu et al., SIGIR 2021)
    SimGCL      views of kind noise, own_layer=False (Yu et al., SIGIR 2022)
    XSimGCL     views of kind one_pass, own_layer=False (Yu et al., TKDE 2024)
    DirectAU    loss='direct_au', with any number of layers (Wang et al., KDD 2022)
    softmax     loss='softmax', cosine=True: the items of the batch are each other's negatives,
                corrected for how often they come (Yi et al., RecSys 2019; for graphs Wu et al.,
                SSM, TOIS 2024)
    multinomial loss='multinomial', cosine=True: all items are, and a pair stands for all items of
                its user (the likelihood of Liang et al., WWW 2018)

Where their codes differ in what does not make the model, one form is taken: losses are means over
the batch (SGL's sums share a factor, which Adam does not see), `decay` is of half the squared
length of a pair's own vectors, before propagation (as in LightGCN and SGL), what a view drops is
drawn by chance at a rate, anew in every step. Every pair comes once an epoch; task.by_user draws
users instead, and an item of each, as LightGCN's code does.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from jaxrec import losses, rng
from jaxrec.config import field
from jaxrec.devices.mesh import TABLE, placed, replicated
from jaxrec.errors import UserError
from jaxrec.losses import unit, weighted_mean
from jaxrec.nn import bipartite, embeddings, propagate
from jaxrec.nn.bipartite import Nodes, spread, whole
from jaxrec.nn.dropout import hash_bits
from jaxrec.nn.embeddings import lookup, values_at
from jaxrec.problem import Inputs, Model, ModelConfig

DROPS = ('node_drop', 'edge_drop', 'random_walk', 'feature_mask')
KINDS = ('none', *DROPS, 'noise', 'one_pass')


@dataclasses.dataclass
class Views:
    """A contrastive term: a node is looked for among the others of another view.

    node_drop and edge_drop take nodes or edges from the graph, random_walk other edges in every
    layer; feature_mask takes whole columns from the nodes' own vectors; noise adds to every layer a
    random vector of length `noise` that changes no sign. Of each of these there are two views
    beside the main pass. one_pass has noise in the main pass itself, and looks from its final
    vectors for those after `layer` layers.
    """

    kind: str = field('none', choices=KINDS)
    weight: float = field(0.1, above=0, traced=True)
    temperature: float = field(0.2, above=0, traced=True)
    rate: float = field(0.1, least=0, below=1)  # of what is dropped
    noise: float = field(0.1, least=0, traced=True)
    layer: int = field(1, least=1)  # of one_pass
    # all nodes of its kind, or the distinct ones of the batch
    among: str = field('batch', choices=('batch', 'all'))


@dataclasses.dataclass
class Config(ModelConfig):
    """Hyper-parameters; it trains on pairs (task.windows='pairs'). The defaults are LightGCN's."""

    dim: int = field(64, least=1)
    layers: int = field(3, least=0)  # of propagation; 0 = matrix factorisation
    own_layer: bool = True  # whether a node's own vector counts in the mean of its layers
    loss: str = field('bpr', choices=('bpr', 'direct_au', 'softmax', 'multinomial'))
    temperature: float = field(0.1, above=0, traced=True)  # softmax, multinomial: of the cosines
    # softmax: what is taken from a score for how often its item comes: log of the expected number
    # of its draws in a batch (counted), of the chance that it is there (presence), or nothing
    logq: str = field('counted', choices=('counted', 'presence', 'none'))
    uniformity: float = field(1.0, least=0, traced=True)  # direct_au: weight beside alignment
    decay: float = field(1e-4, least=0, traced=True)  # of half the squared length of own vectors
    deviation: float = field(0.1, above=0)  # of the vectors in the beginning
    views: Views = dataclasses.field(default_factory=Views)
    # rank by cosine, as 'softmax', 'multinomial' and 'direct_au' learn it, not by dot product;
    # published code ranks by dot product, that of DirectAU and of SimGCL and its kin too
    cosine: bool = False

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        kind = self.views.kind
        if not self.layers and kind not in ('none', 'feature_mask'):
            raise UserError(f'model.views.kind={kind!r} needs layers: set model.layers')
        if not (self.layers or self.own_layer):
            raise UserError('model.own_layer=False leaves nothing of model.layers=0')
        if kind == 'one_pass' and self.views.layer > self.layers:
            raise UserError(
                f'model.views.layer={self.views.layer} is more than model.layers={self.layers}'
            )

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'LightGCN':
        """Builds the model for users 0..sizes['user'] - 1 and items 1..sizes['item']."""
        return LightGCN(self, sizes, rngs=rngs)

    def inputs(self) -> Inputs:
        """Pairs, their graph and users by number; of a history it reads the whole as a set."""
        return Inputs(max_len=1, pairs=True, users=True, negatives=self.loss == 'bpr')

    def whole_batch(self) -> str:
        """One propagation serves a whole batch, and pairs may be each other's negatives."""
        return "a graph's propagation"


class LightGCN(Model):
    """e^(k+1) = D^-1/2 A D^-1/2 e^(k); a node's vector is the mean of its layers."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config, self.num_users, self.num_items = config, sizes['user'], sizes['item']
        table = functools.partial(embeddings.item_table, config.deviation, config.dim)
        self.users = nnx.Param(table(self.num_users - 1, rngs.params()))  # row u is user u
        self.items = nnx.Param(table(self.num_items, rngs.params()))  # row 0 is padding

    def layers(self, constants: dict, kind: str = 'none', key: jax.Array | None = None) -> list:
        """`Nodes` [rows, D] after 0, 1, .. layers, split over all devices.

        Args:
          constants: edges and degrees, see `bipartite.graph`.
          kind: of the view, of KINDS.
          key: of the view; not for 'none'.
        """
        views, edges, degrees = self.config.views, constants['edges'].arrays, constants['degrees']
        x, rows, kept = Nodes(self.users[...], self.items[...]), Nodes(*map(len, degrees)), None
        if kind == 'feature_mask':
            x = Nodes(*(propagate.drop_columns(one, views.rate, key) for one in x))
        if kind == 'node_drop' and views.rate:
            kept = bipartite.drop_nodes(edges, views.rate, key)
        if kind == 'edge_drop' and views.rate:
            kept = bipartite.drop_edges(edges, rows.items, views.rate, key)
        if kept is not None:
            degrees = bipartite.degrees(edges, kept, rows)
        found = [Nodes(*map(spread, x))]
        for n in range(self.config.layers):
            own = None if key is None else jax.random.fold_in(key, n)
            if kind == 'random_walk' and views.rate:
                kept = bipartite.drop_edges(edges, rows.items, views.rate, own)
                degrees = bipartite.degrees(edges, kept, rows)
            x = bipartite.propagated(edges, kept, degrees, found[-1])
            if kind in ('noise', 'one_pass'):
                keys = jax.random.split(own)
                x = Nodes(*(noisy(v, views.noise, k) for v, k in zip(x, keys, strict=True)))
            found.append(x)
        return found

    def mean(self, layers: list[Nodes]) -> Nodes:
        """The final vectors [rows, D], whole on every device."""
        counted = layers[0 if self.config.own_layer else 1 :]
        return self._whole(Nodes(*(sum(x) / len(counted) for x in zip(*counted, strict=True))))

    def _whole(self, x: Nodes) -> Nodes:
        return Nodes(whole(x.users, len(self.users[...])), whole(x.items, len(self.items[...])))

    def catalogue(self, constants: dict) -> dict[str, jax.Array]:
        """Final vectors: 'items' and 'users' [rows, D], and 'inward' [rows, D] of items.

        The sum of `inward` over a new user's n items, divided by sqrt(n), is the vector of a node
        that has no own vector and changes no other node. Without layers it is the items' mean.
        Users without an edge have learnt nothing: 0.
        """
        layers, config = self.layers(constants), self.config
        users, items = self.mean(layers)
        degrees = constants['degrees']
        users = jnp.where(degrees.users[:, None] > 0, users, 0)
        if config.layers:
            scale = bipartite.inverse_root(degrees.items)[:, None]
            count = config.layers + config.own_layer
            inward = sum(whole(x.items, len(scale)) for x in layers[:-1]) * scale / count
        else:
            inward = items
        if config.cosine:
            items = unit(items)
        place = lambda x: placed(x, TABLE)  # noqa: E731
        return {'items': place(items), 'users': place(users), 'inward': place(inward)}

    def queries(self, batch: dict, catalogue: dict[str, jax.Array]) -> jax.Array:
        """User vectors [B, 1, D].

        Of `users` int32 [B]; of those without an edge, and where no numbers are given, of what they
        have `seen` [B, S].
        """
        if 'users' not in batch:
            vectors = self._folded(batch['seen'], catalogue)
        else:
            vectors = lookup(catalogue['users'], batch['users'])
            if 'seen' in batch:
                new = (vectors == 0).all(-1)
                folded = lambda: self._folded(batch['seen'], catalogue)  # noqa: E731
                other = jax.lax.cond(replicated(new).any(), folded, lambda: vectors)
                vectors = jnp.where(new[:, None], other, vectors)
        return (unit(vectors) if self.config.cosine else vectors)[:, None]

    def _folded(self, seen, catalogue):
        """Vectors [B, D] of new users with these items, 0 = none; see `catalogue`."""
        real = (seen > 0).astype(jnp.float32)
        count = jnp.maximum(real.sum(1, keepdims=True), 1)
        total = (lookup(catalogue['inward'], seen) * real[..., None]).sum(1)
        return total / (jnp.sqrt(count) if self.config.layers else count)

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        """The loss of pairs, decay, and the contrastive term.

        Args:
          batch: users, targets int32 [B], weights float32 [B]; for 'bpr' negatives int32 [B, k].
          constants: edges and degrees.
          carry: handed on.
          key: of the views.
        """
        config, weights = self.config, batch['weights']
        keys = rng.keys(key, 'first', 'second')
        one_pass = config.views.kind == 'one_pass'
        layers = self.layers(constants, 'one_pass' if one_pass else 'none', keys['first'])
        users, items = self.mean(layers)
        user, item = lookup(users, batch['users']), lookup(items, batch['targets'])
        own = [lookup(self.users[...], batch['users']), lookup(self.items[...], batch['targets'])]
        if config.loss == 'bpr':
            others = lookup(items, batch['negatives'])
            scores = (user * item).sum(-1), jnp.einsum('bd,bkd->bk', user, others)
            value = weighted_mean(losses.bpr(*scores), weights)
            own.append(lookup(self.items[...], batch['negatives']))
            terms = {'bpr': value}
        elif config.loss == 'softmax':
            value = weighted_mean(self._softmax(user, item, batch, constants), weights)
            terms = {'softmax': value}
        elif config.loss == 'multinomial':
            value = self._multinomial(items, user, item, batch, constants)
            terms = {'multinomial': value}
        else:
            near = weighted_mean(losses.alignment(user, item), weights)
            far = (losses.uniformity(user, weights) + losses.uniformity(item, weights)) / 2
            value, terms = near + config.uniformity * far, {'alignment': near, 'uniformity': far}
        sizes = sum((x**2).reshape(len(weights), -1).sum(-1) for x in own)
        decay = config.decay / 2 * weighted_mean(sizes, weights)
        value, terms = value + decay, {**terms, 'decay': decay}
        if config.views.kind != 'none':
            if one_pass:
                first, second = Nodes(users, items), self._whole(layers[config.views.layer])
            else:
                main = Nodes(users, items)
                first, second = (self._view(constants, k, main) for k in keys.values())
            contrast = self.contrast(first, second, batch)
            value, terms = value + config.views.weight * contrast, {**terms, 'contrast': contrast}
        return value, (terms, carry)

    def _view(self, constants, key, main):
        """Final vectors of a view.

        Noise has no gradient, so that of its vectors is that of the main pass: one backward pass
        serves them all.
        """
        found = self.mean(self.layers(constants, self.config.views.kind, key))
        if self.config.views.kind != 'noise':
            return found
        different = jax.tree.map(jnp.subtract, found, main)
        return jax.tree.map(jnp.add, main, jax.lax.stop_gradient(different))

    def _softmax(self, user, item, batch, constants):
        """[B], each target among the batch's others; an item's share is that of its edges."""
        targets, degrees = replicated(batch['targets']), constants['degrees'].items
        share = jnp.maximum(degrees / degrees.sum(), 1e-12)
        user, item, count = unit(user), unit(item), replicated(batch['weights']).sum()
        if self.config.logq == 'none':
            log_q = jnp.zeros_like(share)
        elif self.config.logq == 'presence':  # 1 - (1 - share)^count, as exact for rare items
            log_q = jnp.log(-jnp.expm1(count * jnp.log1p(-share)))
        else:
            log_q = jnp.log(share) + jnp.log(count)
        log_draws = values_at(log_q, batch['targets'])
        return losses.in_batch_softmax(
            (user * item).sum(-1) / self.config.temperature,
            losses.scores(user[:, None], replicated(item)) / self.config.temperature,
            (targets > 0) & (targets != batch['targets'][:, None]),
            log_q_positive=log_draws,
            log_q_negatives=replicated(log_draws),
        )

    def _multinomial(self, items, user, item, batch, constants):
        """Mean cross-entropy of the items that a row's user has, all alike, among all items.

        It is that of the row's own item, plus how much nearer this one is than their mean.
        """
        items, temperature = unit(items), self.config.temperature
        known = Nodes(spread(jnp.zeros_like(self.users[...])), spread(items))
        summed = bipartite.exchange(constants['edges'].arrays, None, known).users
        degrees = constants['degrees'].users
        mean = whole(summed, len(degrees)) / jnp.maximum(degrees, 1)[:, None]
        query = unit(user) / temperature
        own = losses.softmax(
            query[:, None],
            placed(items, TABLE),
            batch['targets'][:, None],
            batch['weights'][:, None],
            num_items=self.num_items,
        )
        nearer = (query * (unit(item) - lookup(mean, batch['users']))).sum(-1)
        return own + weighted_mean(nearer, batch['weights'])

    def contrast(self, first: Nodes, second: Nodes, batch: dict) -> jax.Array:
        """InfoNCE of the batch's users and of its items, from the first view to the second."""
        users = self._contrast(first.users, second.users, batch['users'], batch, 0, self.num_users)
        items = self._contrast(
            first.items, second.items, batch['targets'], batch, 1, self.num_items + 1
        )
        return users + items

    def _contrast(self, first, second, ids, batch, begin, end):
        weights = batch['weights']
        if self.config.views.among == 'all':
            keys, own, number = second, ids, jnp.arange(len(second))
            counted = (number >= begin) & (number < end)
        else:
            everyone = replicated(ids)
            counted = distinct(everyone, replicated(weights) > 0)
            keys, own = lookup(second, everyone), jnp.arange(len(everyone), dtype=jnp.int32)
            own, once = (placed(x, P('data')) for x in (own, counted))
            weights = weights * once
        temperature = self.config.views.temperature
        return losses.info_nce_among(
            lookup(first, ids), keys, own, counted, weights, temperature=temperature
        )


def noisy(x: jax.Array, length: float, key: jax.Array) -> jax.Array:
    """x + length * sign(x) * n / |n| with n uniform in [0, 1) (SimGCL, eq. 6); zeros stay."""
    n = (hash_bits(key, x) >> 8).astype(jnp.float32) * 2.0**-24
    return x + length * jnp.sign(x) * unit(n)


def distinct(ids: jax.Array, real: jax.Array) -> jax.Array:
    """bool [B], True where a real id comes for the first time; ids int32 [B], whole everywhere."""
    ids = jnp.where(real, ids, -1)
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    new = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    return jnp.zeros(len(ids), bool).at[order].set(new) & real
