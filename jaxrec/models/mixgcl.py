"""ID-MixGCL: identity mixup for graph contrastive learning (arXiv:2304.10045), and its kin.

    ID-MixGCL            the defaults
    plain InfoNCE        alpha=0
    GRACE                alpha=0, within=True (Zhu et al. 2020, arXiv:2006.04131)
    GCA                  alpha=0, within=True, central=True (Zhu et al., WWW 2021)
    an untrained encoder train.epochs=1 with optim.learning_rate=1e-30

The paper's idea: an augmentation changes what a node is, so the label of the contrastive task has
to change with it. Its equations could not be checked against a code of the authors; the form here
is i-Mix (Lee et al. 2021) around the encoder and augmentations of GRACE (Zhu et al. 2020). GRACE's
code drops each direction of an edge by itself, ours both or none, and its layers have biases.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from jaxrec import problem
from jaxrec.config import field
from jaxrec.devices.mesh import lookup, on_mesh
from jaxrec.errors import UserError
from jaxrec.losses import unit, weighted_mean
from jaxrec.models.gcn import Encoder
from jaxrec.nn import propagate
from jaxrec.nn.linear import linear_layer


@dataclasses.dataclass
class Config(problem.ModelConfig):
    """Hyper-parameters of ID-MixGCL; it trains on all nodes (task.nodes='all').

    The paper mixes inputs (mix_at=0). Then a node's neighbours are mixed too, with partners of
    their own, so that it holds less of its own partner than the share says; only vectors mixed
    behind the graph (mix_at=2) are what their soft identities say.
    """

    dim: int = field(128, least=1)  # of the vectors; the hidden layer has twice as many
    head: int = field(128, least=1)  # hidden width of the head, which only the loss sees
    edge_drop: tuple[float, float] = (0.2, 0.4)  # of the two views
    feature_drop: tuple[float, float] = (0.3, 0.4)  # whole columns
    alpha: float = field(1.0, least=0)  # shares are drawn from Beta(alpha, alpha); 0 = no mixing
    mix_at: int = field(0, least=0, most=2)  # 0: features, 1: hidden layer, 2: encoder's output
    temperature: float = field(0.4, above=0)
    within: bool = False  # the other nodes of the own view are negatives too
    # edges and features of nodes with few edges are dropped more often, see `propagate.edge_rates`
    central: bool = False

    verbs: ClassVar[tuple[str, ...]] = ('embed',)  # what `tasks.nodes` may ask for

    def check(self) -> None:
        """Raises UserError for a value that cannot be."""
        for name in ('edge_drop', 'feature_drop'):
            rates = getattr(self, name)
            if len(rates) != 2 or not all(0 <= rate < 1 for rate in rates):
                raise UserError(f'model.{name}={rates} is not two rates in [0, 1)')
        if self.within and self.alpha:
            raise UserError('model.within compares nodes that are not mixed: set model.alpha=0')

    def whole_batch(self) -> str:
        """A node is looked for among all others."""
        return 'the contrast between nodes'

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'MixGCL':
        """Builds the model for sizes 'node' and 'feature'."""
        return MixGCL(self, sizes, rngs=rngs)


class MixGCL(problem.Model):
    """Two views, each encoded as it is and mixed; a mixed node finds both its identities.

    View v has edges and feature columns dropped. In its mixed form node i is
    share_i * x_i + (1 - share_i) * x_partner(i), and it is looked for among all nodes of the other
    view, which is not mixed: L = (l(mixed 1, view 2) + l(mixed 2, view 1)) / 2, see
    `soft_info_nce`.
    """

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config = config
        widths = (sizes['feature'], 2 * config.dim, config.dim)
        self.encoder = Encoder(sizes['node'], widths, (jax.nn.relu, jax.nn.relu), rngs=rngs)
        linear = linear_layer(nnx.initializers.xavier_uniform(), jnp.float32)
        self.inner = linear(config.dim, config.head, rngs=rngs)
        self.outer = linear(config.head, config.dim, rngs=rngs)

    def embed(self, batch: dict, constants: dict) -> jax.Array:
        """Vectors [B, dim] of the batch's nodes in the graph as it is, before the head."""
        vectors = self.encoder(constants['adjacency'], constants['features'])
        return lookup(vectors, batch['nodes'])

    def sample(self, batch: dict, key: jax.Array) -> dict:
        """The batch with 'partners' int32 [2, N] and 'shares' float32 [2, N] of the two views.

        Partners are a permutation of all nodes, shares as in i-Mix: max(s, 1 - s) of a draw s.
        """
        alpha, nodes = self.config.alpha, self.encoder.nodes
        if alpha == 0:
            return batch
        first, second, third = jax.random.split(key, 3)
        partners = jnp.stack([jax.random.permutation(k, nodes) for k in (first, second)])
        drawn = jax.random.beta(third, alpha, alpha, (2, nodes))
        return {**batch, 'partners': partners, 'shares': jnp.maximum(drawn, 1 - drawn)}

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        """Mean over the batch's nodes and the two directions.

        Args:
          batch: nodes int32 [B], weights float32 [B], and what `sample` adds.
          constants: adjacency [N, N] and features [N, F].
          carry: handed on.
          key: of the augmentations.
        """
        plain, mixed = self.views(batch, constants, key)
        terms = [
            weighted_mean(
                soft_info_nce(
                    mixed[v],
                    plain[1 - v],
                    batch['nodes'],
                    batch['partners'][v] if self.config.alpha else None,
                    batch['shares'][v] if self.config.alpha else None,
                    temperature=self.config.temperature,
                    within=plain[v] if self.config.within else None,
                ),
                batch['weights'],
            )
            for v in range(2)
        ]
        return (terms[0] + terms[1]) / 2, ({}, carry)

    def views(
        self, batch: dict, constants: dict, key: jax.Array
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Vectors [N, dim] behind the head: of the two views, and of their mixed forms."""
        config, keys = self.config, jax.random.split(key, 4)
        plain, mixed = [], []
        for v in range(2):
            adjacency, features = constants['adjacency'], constants['features']
            rates = self._rates(adjacency, features, v)
            adjacency = propagate.drop_edges(adjacency, self.encoder.nodes, rates[0], keys[v])
            features = propagate.drop_columns(features, rates[1], keys[2 + v])
            plain.append(self.project(self.encoder(adjacency, features)))
            if not config.alpha:
                mixed.append(plain[v])
                continue
            partners, shares = batch['partners'][v], batch['shares'][v]
            change = lambda x, p=partners, s=shares: mix(x, p, s)  # noqa: E731
            vectors = self.encoder(adjacency, features, change=change, at=config.mix_at)
            mixed.append(self.project(vectors))
        return plain, mixed

    def _rates(self, adjacency, features, v):
        """Of edges and of columns, in view v."""
        edges, columns = self.config.edge_drop[v], self.config.feature_drop[v]
        if not self.config.central:
            return edges, columns
        nodes, width = self.encoder.nodes, self.encoder.kernels[0].shape[0]
        return (
            propagate.edge_rates(adjacency, nodes, edges),
            propagate.column_rates(features, adjacency, nodes, width, columns),
        )

    def project(self, vectors: jax.Array) -> jax.Array:
        """The head: W_2 elu(W_1 z)."""
        hidden = jax.nn.elu(self.inner(vectors[None]))
        return self.outer(hidden)[0]


def mix(x: jax.Array, partners: jax.Array, shares: jax.Array) -> jax.Array:
    """shares * x + (1 - shares) * x[partners] of rows x [N, D], partners and shares [N]."""
    shares = shares[:, None]
    return shares * x + (1 - shares) * lookup(x, partners)


def soft_info_nce(
    queries: jax.Array,
    keys: jax.Array,
    nodes: jax.Array,
    partners: jax.Array | None,
    shares: jax.Array | None,
    *,
    temperature: float,
    within: jax.Array | None = None,
) -> jax.Array:
    """InfoNCE with soft identities (i-Mix, Lee et al. 2021, eq. 3).

    -sum_j y_ij log softmax_j(cos(q_i, k_j) / t) over all rows j, where y_i is shares[i] on row i
    and 1 - shares[i] on row partners[i]. On a mesh the scores are split over 'data'. With `within`
    the softmax is also over its rows but i (GRACE, eq. 1).

    Args:
      queries, keys: [N, D], whole on every device.
      nodes: int32 [B], rows i of the queries.
      partners: int32 [N]; None if nothing is mixed.
      shares: float32 [N]; None if nothing is mixed.
      temperature: t, above 0.
      within: [N, D], vectors of the own view; None = these are no negatives.

    Returns:
      float32 [B], the value of every node of the batch.
    """
    queries, keys = lookup(unit(queries), nodes), unit(keys)
    scores = jnp.einsum('bd,nd->bn', queries, keys, preferred_element_type=jnp.float32)
    wanted = (queries * lookup(keys, nodes)).sum(-1)
    if partners is not None:
        partner, share = _picked(partners, nodes), _picked(shares, nodes)
        wanted = share * wanted + (1 - share) * (queries * lookup(keys, partner)).sum(-1)
    scores = scores / temperature
    if within is not None:
        own = jnp.einsum('bd,nd->bn', queries, unit(within), preferred_element_type=jnp.float32)
        itself = nodes[:, None] == jnp.arange(len(within))
        scores = jnp.concatenate([scores, jnp.where(itself, -jnp.inf, own / temperature)], axis=-1)
    return jax.nn.logsumexp(scores, axis=-1) - wanted / temperature


def _picked(x: jax.Array, nodes: jax.Array) -> jax.Array:
    """x[nodes] of x [N], placed like `nodes`."""
    spec = jax.typeof(nodes).sharding.spec
    return x.at[nodes].get(mode='clip', out_sharding=P(*spec) if on_mesh() else None)
