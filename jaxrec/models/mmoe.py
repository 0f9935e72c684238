"""MMoE: multi-gate mixture of experts (Ma et al., KDD 2018); with one expert the shared bottom.

Input of the experts: the vectors of all fields side by side (a set: the mean of its members), of
the sets in `attend` also their members weighted by attention from the vector of `query` (target
attention, as in DIN), of the fields in `cross` the elementwise product with that of `query`, and
the numbers.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrec import problem
from jaxrec.config import field
from jaxrec.errors import UserError
from jaxrec.nn import embeddings, experts
from jaxrec.nn.dropout import Key, dropout, split_key
from jaxrec.nn.embeddings import lookup

_FEATURE = 'feature.'  # of `sizes`: how many rows of the table a field has in an example


@dataclasses.dataclass
class Config(problem.ModelConfig):
    """MMoE's hyper-parameters."""

    dim: int = field(16, least=1)  # of every vector
    experts: int = field(6, least=1)  # 1 = shared bottom
    expert_widths: tuple[int, ...] = (64, 32)  # of every layer of an expert
    tower_widths: tuple[int, ...] = (64,)  # of every hidden layer of a task's tower
    attend: tuple[str, ...] = ()  # sets that are also pooled by attention
    cross: tuple[str, ...] = ()  # fields that are also multiplied with `query`
    query: str = 'item'  # the field that attention and products are with
    dropout: float = field(0.0, least=0, below=1)  # after hidden layers
    # of the experts' input
    embedding_dropout: float = field(0.0, least=0, below=1, traced=True)
    init: str = field('normal', choices=embeddings.INITS)  # of the table

    def check(self) -> None:
        if not self.expert_widths or min(*self.expert_widths, *self.tower_widths, 1) < 1:
            raise UserError('model.expert_widths and model.tower_widths must be at least 1 each')

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'MMoE':
        """Builds the model for `sizes`: 'table', 'label', and 'feature.NAME' of every field."""
        return MMoE(self, sizes, rngs=rngs)

    def inputs(self) -> problem.Inputs:
        """The fields that the model knows by name; it takes all others as they come."""
        names = (*self.attend, *self.cross)
        names += (self.query,) if names else ()
        return problem.Inputs(features=tuple(dict.fromkeys(names)))


class MMoE(problem.Model):
    """See the module; one table for all fields, looked up once a batch."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config = config
        self.table_rows, self.tasks = sizes['table'], sizes['label']
        of_field = {k.removeprefix(_FEATURE): n for k, n in sizes.items() if k.startswith(_FEATURE)}
        self.widths = {name: n for name, n in sorted(of_field.items()) if n}  # vectors of a field
        self.numbers = tuple(name for name, n in sorted(of_field.items()) if not n)
        dim = config.dim
        table = embeddings.item_table(config.init, dim, self.table_rows - 1, rngs.params())
        self.table = nnx.Param(table)
        init = embeddings.INITS['xavier_uniform']
        self.queries = nnx.List(
            nnx.Param(init(rngs.params(), (dim, dim), jnp.float32)) for _ in config.attend
        )
        vectors = len(self.widths) + len(config.attend) + len(config.cross)
        inputs = vectors * dim + len(self.numbers)
        self.mixture = experts.Mixture(
            config.experts,
            (inputs, *config.expert_widths),
            self.tasks,
            dropout=config.dropout,
            rngs=rngs,
        )
        self.towers = experts.MLPs(
            self.tasks,
            (config.expert_widths[-1], *config.tower_widths, 1),
            dropout=config.dropout,
            rngs=rngs,
        )

    def scores(
        self, batch: problem.Batch, constants: dict[str, jax.Array], key: Key = None
    ) -> jax.Array:
        """Logits [B, T].

        Args:
          batch: features: int32 [B] or [B, n] rows of the table, 0 = padding; float32 [B] numbers.
          constants: not used.
          key: dropout key; None at inference.
        """
        del constants
        input_key, expert_key, tower_key = split_key(key, 3)
        x = self.expert_input(batch['features'])
        x = dropout(x, self.config.embedding_dropout, input_key)
        return self.towers(self.mixture(x, expert_key), tower_key)[..., 0]

    def expert_input(self, features: dict[str, jax.Array]) -> jax.Array:
        """[B, I], what the experts see of `features`."""
        codes = [features[name] for name in self.widths]
        codes = [x if x.ndim == 2 else x[:, None] for x in codes]
        codes = jnp.concatenate(codes, axis=1)
        rows = lookup(self.table[...], codes)
        rows = rows * (codes > 0)[..., None].astype(rows.dtype)
        members, real, vectors, first = {}, {}, {}, 0
        for name, width in self.widths.items():
            members[name] = rows[:, first : first + width]
            real[name] = codes[:, first : first + width] > 0
            count = jnp.maximum(real[name].sum(1, keepdims=True), 1).astype(rows.dtype)
            vectors[name] = members[name].sum(1) / count
            first += width
        parts = list(vectors.values())
        for name, kernel in zip(self.config.attend, self.queries, strict=True):
            query = experts.stacked_product(vectors[self.config.query], kernel[...][None])[:, 0]
            parts.append(attend(query, members[name], real[name]))
        parts += [vectors[name] * vectors[self.config.query] for name in self.config.cross]
        parts += [features[name][:, None] for name in self.numbers]
        return jnp.concatenate(parts, axis=1)

    def loss(
        self,
        batch: problem.Batch,
        constants: dict[str, jax.Array],
        carry: dict,
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """Sum over tasks of the mean cross entropy over the task's known rows; terms: each task's.

        With microbatches, a task's mean is over its known rows of a turn.

        Args:
          batch: as in `scores`, with labels and mask float32 [B, T] and weights float32 [B].
          constants, carry: not used.
          key: dropout.
        """
        logits = self.scores(batch, constants, key)
        weights = batch['mask'] * batch['weights'][:, None]
        losses = optax.losses.sigmoid_binary_cross_entropy(logits, batch['labels'])
        means = (losses * weights).sum(0) / jnp.maximum(weights.sum(0), 1e-9)
        return means.sum(), ({f'loss_{n}': means[n] for n in range(self.tasks)}, carry)


def attend(query: jax.Array, members: jax.Array, real: jax.Array) -> jax.Array:
    """softmax(q m^T / sqrt(D)) m over the real members; zeros where there is none.

    Args:
      query: [B, D].
      members: [B, n, D].
      real: bool [B, n].

    Returns:
      [B, D].
    """
    logits = jnp.einsum('bd,bnd->bn', query, members) * query.shape[-1] ** -0.5
    logits = jnp.where(real, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=1) * real
    return jnp.einsum('bn,bnd->bd', weights, members)
