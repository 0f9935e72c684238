"""GraphCL (You et al., NeurIPS 2020) and ID-MixGCL (arXiv:2304.10045) on whole graphs.

    GraphCL             the defaults: each graph as it is against a view by one of four operations
    plain InfoNCE       positive=True
    ID-MixGCL           alpha=1, positive=True: mixed graphs find the graphs they are made of
    an untrained GIN    train.epochs=1 with optim.learning_rate=1e-30

The encoder is GraphCL's GIN: x <- BN(relu(MLP(x + sum over neighbours))), and a graph's vector are
the sums over its nodes after every layer, side by side. GraphCL's code drops or masks exactly
int(n / 10) nodes, gives graphs self-loops before it makes views of them, and takes into a sub-graph
neighbours of its first node alone; its batches are random, ours hold graphs of all sizes.
ID-MixGCL's equations could not be checked against a code of the authors; the form is ours, see
`models.mixgcl`.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import problem, rng
from jaxrec.config import field
from jaxrec.devices.mesh import replicated
from jaxrec.errors import UserError
from jaxrec.losses import info_nce_of_shares, shares_of, weighted_mean
from jaxrec.nn import batch_norm, propagate
from jaxrec.nn.batch_norm import BatchNorm
from jaxrec.nn.dropout import hashed
from jaxrec.nn.linear import linear_layer

OPERATIONS = ('node_drop', 'edge_drop', 'attribute_mask', 'subgraph')
KINDS = ('none', 'any', *OPERATIONS)


@dataclasses.dataclass
class Config(problem.ModelConfig):
    """Hyper-parameters; the defaults are GraphCL's for TU's sets."""

    dim: int = field(32, least=1)  # of a layer
    layers: int = field(3, least=1)
    view: str = field('any', choices=KINDS)  # of the second view; any: one of OPERATIONS a graph
    rate: float = field(
        0.1, least=0, below=1
    )  # of nodes or edges that go, or nodes that are masked
    walk: float = field(0.2, above=0, most=1)  # subgraph: the nodes that stay
    temperature: float = field(0.2, above=0)
    positive: bool = False  # in the denominator too; GraphCL leaves it out
    alpha: float = field(0.0, least=0)  # shares are drawn from Beta(alpha, alpha); 0 = no mixing
    mix_at: int = field(0, least=0)  # 0: features, n: behind layer n; `layers` = the output

    verbs: ClassVar[tuple[str, ...]] = ('embed_graphs',)

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if self.mix_at > self.layers:
            raise UserError(f'model.mix_at={self.mix_at} is more than model.layers={self.layers}')
        if self.alpha and not self.positive:
            raise UserError('model.alpha mixes identities, all of them wanted: set model.positive')

    def whole_batch(self) -> str:
        """A graph is looked for among all others."""
        return 'the contrast between graphs'

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'GraphCL':
        """Builds the model for the tags of sizes 'tag'."""
        return GraphCL(self, sizes, rngs=rngs)


class Layer(nnx.Module):
    """BN(relu(W_2 relu(W_1 y))) of y = x + sum of the neighbours' x."""

    def __init__(self, inputs: int, dim: int, *, rngs: nnx.Rngs):
        linear = linear_layer(nnx.initializers.xavier_uniform(), jnp.float32)
        self.inner, self.outer = linear(inputs, dim, rngs=rngs), linear(dim, dim, rngs=rngs)
        self.norm = BatchNorm((dim,))

    def __call__(self, x, edges, real, train):
        y = x + propagate.propagate(edges, x, len(x))
        y = jax.nn.relu(self.outer(jax.nn.relu(self.inner(y[None])))[0])
        return self.norm(y, real if train else None) * real[:, None]


class GraphCL(problem.Model):
    """Graphs of a batch are told apart by their vectors behind a head."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config, self.tags = config, sizes['tag']
        widths = (self.tags, *[config.dim] * config.layers)
        self.layers = nnx.List(Layer(a, config.dim, rngs=rngs) for a in widths[: config.layers])
        linear = linear_layer(nnx.initializers.xavier_uniform(), jnp.float32)
        read = config.dim * config.layers
        self.inner, self.outer = linear(read, read, rngs=rngs), linear(read, read, rngs=rngs)

    def encode(self, view: dict, graphs: int, *, train: bool = False, mix=None) -> jax.Array:
        """[graphs, layers * dim], the sums over each graph's nodes after every layer.

        Args:
          view: of `whole`, or of `changed`.
          graphs: B.
          train: normalise by the batch, and move the running statistics.
          mix: a map of node states; it takes the input of layer mix_at, and of the layers before it
            what is read out, so that nothing is read out that is not mixed.
        """
        x, real, at = view['x'], view['real'], self.config.mix_at
        changed = lambda x: x if mix is None else mix(x)  # noqa: E731
        x, found = changed(x) if at == 0 else x, []
        for n, layer in enumerate(self.layers, 1):
            x = layer(x, view['edges'], real, train)
            read = changed(x) if n <= at else x
            x = read if n == at else x
            found.append(read)
        owner = jnp.where(view['owner'] < 0, graphs, view['owner'])
        total = jax.ops.segment_sum(jnp.concatenate(found, -1), owner, graphs + 1)
        return total[:graphs]

    def embed_graphs(self, batch: dict) -> jax.Array:
        """Vectors [B, layers * dim] of the graphs as they are, before the head."""
        return self.encode(whole(batch, self.tags), len(batch['graphs']))

    def sample(self, batch: dict, key: jax.Array) -> dict:
        """The batch with partners int32 [nodes] and shares float32 [B], where anything is mixed.

        Partners are a permutation of the real nodes, padding keeps its own.
        """
        if not self.config.alpha:
            return batch
        keys = rng.keys(key, 'partners', 'shares')
        owner = replicated(batch['owner'])
        drawn = jax.random.uniform(keys['partners'], owner.shape)
        order = jnp.argsort(jnp.where(owner >= 0, drawn, 2))  # real nodes lie before padding
        partners = jnp.where(owner >= 0, order, jnp.arange(len(owner)))
        shape = (len(batch['graphs']),)
        drawn = jax.random.beta(keys['shares'], self.config.alpha, self.config.alpha, shape)
        return {**batch, 'partners': partners, 'shares': jnp.maximum(drawn, 1 - drawn)}

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        """One-sided: the first view, mixed or as it is, looks for its graphs in the second.

        Args:
          batch: of `graphs.Packer`, and what `sample` adds.
          constants: none.
          carry: running statistics.
          key: of the second view.
        """
        del constants
        config, graphs = self.config, len(batch['graphs'])
        batch_norm.put(self, carry[problem.STATISTICS])
        view, mix = whole(batch, self.tags), None
        if config.alpha:
            partners, shares = replicated(batch['partners']), replicated(batch['shares'])
            of_node = jnp.where(view['owner'] >= 0, shares[view['owner']], 1)[:, None]
            mix = lambda x: of_node * x + (1 - of_node) * x[partners]  # noqa: E731
            wanted = identities(view['owner'], partners, shares)
        else:
            wanted = jnp.eye(graphs)
        other = changed(view, config, key, graphs)
        queries, keys = (
            self.project(self.encode(one, graphs, train=True, mix=how))
            for one, how in ((view, mix), (other, None))
        )
        weights = replicated(batch['weights'])
        values = info_nce_of_shares(
            queries,
            keys,
            wanted,
            weights > 0,
            temperature=config.temperature,
            positive=config.positive,
        )
        value = weighted_mean(values, weights)
        carry = {**carry, problem.STATISTICS: batch_norm.statistics(self)}
        return value, ({'contrast': value}, carry)

    def carry(self) -> dict:
        """The running statistics."""
        return {problem.STATISTICS: jax.tree.map(jnp.copy, batch_norm.statistics(self))}

    def project(self, vectors: jax.Array) -> jax.Array:
        """The head: W_2 relu(W_1 z)."""
        return self.outer(jax.nn.relu(self.inner(vectors[None])))[0]


def whole(batch: dict, tags: int) -> dict:
    """The batch's graphs as they are, whole on every device.

    Returns:
      x: float32 [nodes, tags]; real: float32 [nodes]; owner: int32 [nodes], -1 on padding; edges: a
      `propagate.Sparse` [nodes, nodes].
    """
    batch = {name: replicated(batch[name]) for name in ('tags', 'owner', *_ENTRIES)}
    real = (batch['owner'] >= 0).astype(jnp.float32)
    edges = propagate.Sparse(batch['targets'], batch['sources'], batch['there'])
    x = jax.nn.one_hot(batch['tags'], tags, dtype=jnp.float32)
    return {'x': x, 'real': real, 'owner': batch['owner'], 'edges': edges}


_ENTRIES = ('targets', 'sources', 'there')


def identities(owner: jax.Array, partners: jax.Array, shares: jax.Array) -> jax.Array:
    """Soft identities [B, B]: share_b e_b + (1 - share_b) times the mean of its partners' graphs.

    Args:
      owner: int32 [nodes], the graph of each node, -1 on padding.
      partners: int32 [nodes].
      shares: float32 [B].

    Returns:
      Rows that sum to 1; of a graph without nodes e_b.
    """
    count, shares = len(shares), shares[:, None]
    others = shares_of(owner, owner[partners], count)
    return shares * jnp.eye(count) + (1 - shares) * others


def changed(view: dict, config: Config, key: jax.Array, graphs: int) -> dict:
    """The graphs under the operation that config.view names, or under any of them each.

    node_drop takes nodes with their edges, edge_drop edges (in both directions), attribute_mask
    puts N(.5, .5) in place of features, subgraph keeps what a walk reaches, see `walked`.
    """
    if config.view == 'none':
        return view
    keys = rng.keys(key, 'which', *OPERATIONS, 'noise')
    owner, edges, real = view['owner'], view['edges'], view['real']
    place = jnp.arange(len(owner))
    names = OPERATIONS if config.view == 'any' else (config.view,)
    which = hashed(keys['which'], jnp.maximum(owner, 0).astype(jnp.uint32)) % len(names)
    mine = {name: which == n for n, name in enumerate(names)}
    stays, x, there = real > 0, view['x'], edges.values
    if 'node_drop' in mine:
        kept = propagate.kept(config.rate, keys['node_drop'], place)
        stays &= kept | ~mine['node_drop']
    if 'subgraph' in mine:
        asked = mine['subgraph'] & (real > 0)
        kept = walked(owner, edges, asked, config.walk, keys['subgraph'], graphs)
        stays &= kept | ~mine['subgraph']
    if 'edge_drop' in mine:
        low, high = jnp.minimum(*edges[:2]), jnp.maximum(*edges[:2])
        pair = low.astype(jnp.uint32) * jnp.uint32(len(owner)) + high.astype(jnp.uint32)
        kept = propagate.kept(config.rate, keys['edge_drop'], pair)
        there = jnp.where(kept | ~mine['edge_drop'][edges.rows], there, 0)
    if 'attribute_mask' in mine:
        hidden = ~propagate.kept(config.rate, keys['attribute_mask'], place)
        drawn = 0.5 + 0.5 * jax.random.normal(keys['noise'], x.shape)
        x = jnp.where((hidden & mine['attribute_mask'])[:, None], drawn, x)
    left = stays.astype(jnp.float32)
    there = there * left[edges.rows] * left[edges.columns]
    return {
        'x': x * left[:, None],
        'real': left,
        'owner': jnp.where(stays, owner, -1),
        'edges': edges._replace(values=there),
    }


def walked(owner, edges, asked, share: float, key, graphs: int) -> jax.Array:
    """bool [nodes]: ceil(share n) of the n nodes of each graph that is asked, joined by edges.

    From one node at random the neighbour of any node reached that comes first in a random order is
    next, as long as there is one: GraphCL's sub-graph, which its code calls a random walk.
    """
    count = graphs + 1
    group = jnp.where(asked, owner, graphs)
    # a rank from 1, no two alike, so that exactly one node of a graph is the first
    rank = 1 + jnp.argsort(jnp.argsort(hashed(key, jnp.arange(len(owner), dtype=jnp.uint32))))
    nodes = jax.ops.segment_sum(asked.astype(jnp.int32), group, count)
    wanted = jnp.ceil(share * nodes - 1e-4).astype(jnp.int32).at[graphs].set(0)

    def add(state):
        reached, size, _ = state
        near = jax.ops.segment_max(
            jnp.where(edges.values > 0, reached[edges.columns], 0), edges.rows, len(owner)
        )
        free = asked & (reached == 0)
        free &= (near > 0) | (size[group] == 0)  # the first one is any
        free &= (size < wanted)[group]
        first = jax.ops.segment_max(jnp.where(free, rank, 0), group, count)
        taken = free & (rank == first[group])
        size = size + jax.ops.segment_sum(taken.astype(jnp.int32), group, count)
        return reached | taken.astype(jnp.int32), size, taken.any()

    start = jnp.zeros(len(owner), jnp.int32), jnp.zeros(count, jnp.int32), jnp.array(True)
    return jax.lax.while_loop(lambda state: state[2], add, start)[0] > 0
