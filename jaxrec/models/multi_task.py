"""What click models share: fields in, a logit per label out, a cross entropy for each.

A model with experts is a head between the two: `mmoe`, `ple`, `adatt`, `home`. Input of the
experts: the vectors of all fields side by side (a set: the mean of its members), of the sets in
`attend` also their members weighted by attention from the vector of `query` (target attention), of
the fields in `cross` the elementwise product with that of `query`, and the numbers.
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
from jaxrec.losses import pointwise
from jaxrec.nn import batch_norm, embeddings, experts, fields
from jaxrec.nn.dropout import Key, dropout, split_key


@dataclasses.dataclass
class Config(problem.ModelConfig):
    """Hyper-parameters of input and towers; each system has more."""

    dim: int = field(16, least=1)  # of every vector
    tower_widths: tuple[int, ...] = (64,)  # of every hidden layer of a label's tower
    attend: tuple[str, ...] = ()  # sets that are also pooled by attention
    cross: tuple[str, ...] = ()  # fields that are also multiplied with `query`
    query: str = 'item'  # the field that attention and products are with
    dropout: float = field(0.0, least=0, below=1)  # after hidden layers
    # of the experts' input
    embedding_dropout: float = field(0.0, least=0, below=1, traced=True)
    init: str = field('normal', choices=embeddings.INITS)  # of the table

    def check(self) -> None:
        if min((*self.tower_widths, 1)) < 1:
            raise UserError('model.tower_widths must be at least 1 each')

    def inputs(self) -> problem.Inputs:
        """The fields that the model knows by name; it takes all others as they come."""
        names = (*self.attend, *self.cross)
        names += (self.query,) if names else ()
        return problem.Inputs(features=tuple(dict.fromkeys(names)))

    def tables(self) -> dict[str, tuple[str, ...]]:
        """The table of all fields: a step looks up the rows that its features name."""
        return {'table': ('features',)}


@dataclasses.dataclass
class ExpertConfig(Config):
    """The same with experts; a system says which, in `expert_levels`, or has a `head` of its own.

    Attributes:
      own: how labels hear their own experts besides by their gate, see `experts.Mixture`.
    """

    expert_widths: tuple[int, ...] = (64, 32)  # of every layer of an expert
    expert: str = field('relu', choices=experts.KINDS)  # bn_swish: Swish(BatchNorm(MLP)), of HoME

    @property
    def own(self) -> str:
        return ''

    def check(self) -> None:
        super().check()
        if not self.expert_widths or min(self.expert_widths) < 1:
            raise UserError('model.expert_widths must be at least 1 each, and there must be one')

    def whole_batch(self) -> str:
        return 'model.expert=bn_swish' if self.expert == 'bn_swish' else ''

    def head(self, width: int, labels: tuple[str, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """What is between an input of this width and the towers, see `ExpertModel`."""
        levels = self.expert_levels(labels)
        depth, widths = len(self.expert_widths) // len(levels), (width, *self.expert_widths)
        return experts.Levels(
            levels,
            [widths[n * depth : (n + 1) * depth + 1] for n in range(len(levels))],
            kind=self.expert,
            own=self.own,
            dropout=self.dropout,
            rngs=rngs,
        )

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'ExpertModel':
        """Builds the model, see `FieldModel`."""
        return ExpertModel(self, sizes, rngs=rngs)


def owners(shared: int, names: tuple[str, ...], own: int) -> tuple[str, ...]:
    """Of a level's experts, see `problem.Level`: `shared` of all, `own` of each name."""
    return ('',) * shared + tuple(name for name in names for _ in range(own))


@dataclasses.dataclass
class LevelsConfig(ExpertConfig):
    """The same with several levels, in which labels have experts of their own.

    An expert's layers are spread evenly over the levels.
    """

    levels: int = field(2, least=1)
    shared_experts: int = field(2, least=0)  # of a level
    own_experts: int = field(1, least=0)  # of a label, of a level

    def check(self) -> None:
        super().check()
        if self.shared_experts + self.own_experts < 1:
            raise UserError('model.shared_experts and model.own_experts are both 0: no expert')
        if len(self.expert_widths) % self.levels:
            raise UserError(
                f'model.expert_widths={self.expert_widths} cannot be spread evenly over '
                f'model.levels={self.levels}'
            )


class ClickModel(problem.Model):
    """Logits of the labels, learnt by cross entropy; subclasses have `logits`."""

    def logits(
        self, features: dict[str, jax.Array], key: Key = None, real: jax.Array | None = None
    ) -> tuple[jax.Array, list[experts.Mixed]]:
        """Logits [B, T] and what the levels of experts gave.

        Args:
          features: int32 [B] or [B, n] rows of the table, 0 = padding; float32 [B] numbers.
          key: dropout key; None at inference.
          real: in training the batch's weights, see `BatchNorm`; None at inference.
        """
        raise NotImplementedError

    def heard(
        self, batch: problem.Batch, key: Key = None, real: jax.Array | None = None
    ) -> tuple[jax.Array, list[experts.Mixed]]:
        """`logits` of a batch; a model that sees more of it than features has its own."""
        return self.logits(batch['features'], key, real)

    def scores(
        self, batch: problem.Batch, constants: dict[str, jax.Array], key: Key = None
    ) -> jax.Array:
        """Logits [B, T]; batch['features'] and key as in `logits`, constants not used."""
        del constants
        return self.heard(batch, key)[0]

    def look(self, batch: problem.Batch, constants: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Weights and experts' outputs of every level, see `problem.Model.look`."""
        del constants
        columns = {}
        for number, mixed in enumerate(self.heard(batch)[1]):
            columns |= {f'gates/{number}': mixed.weights, f'experts/{number}': mixed.experts}
        return columns

    def loss(
        self,
        batch: problem.Batch,
        constants: dict[str, jax.Array],
        carry: dict,
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """Sum over labels of the mean cross entropy over the label's known rows; terms: each.

        With microbatches, a label's mean is over its known rows of a turn.

        Args:
          batch: features as in `logits`, labels and mask float32 [B, T] and weights float32 [B];
            of windows of rows [B, S, T] and [B, S]. Of a label stream (`data.label_streams`) also
            missed float32 [B, T], and told_early float32 [B] where all were told as negatives.
          constants: not used.
          carry: of `carry`.
          key: dropout.
        """
        if problem.STATISTICS in carry:
            batch_norm.put(self, carry[problem.STATISTICS])
        logits, _ = self.heard(batch, key, batch['weights'])
        if problem.STATISTICS in carry:
            carry = {**carry, problem.STATISTICS: batch_norm.statistics(self)}
        losses, known = _label_losses(logits, batch)
        weights = known * batch['weights'][..., None]
        over = tuple(range(weights.ndim - 1))
        means = (losses * weights).sum(over) / jnp.maximum(weights.sum(over), 1e-9)
        terms = {f'loss_{n}': means[n] for n in range(len(means))}
        return means.sum(), (terms, carry)

    def carry(self) -> dict:
        """Running means and variances, where there is batch normalisation."""
        kept = batch_norm.statistics(self)
        return {problem.STATISTICS: jax.tree.map(jnp.copy, kept)} if kept else {}


def _label_losses(logits, batch):
    """Losses of the labels, and which of them are known, as `logits`."""
    labels, known = batch['labels'], batch['mask']
    if 'told_early' in batch:
        return pointwise.fake_negative_weighted(logits, labels), known
    losses = optax.losses.sigmoid_binary_cross_entropy(logits, labels)
    if 'missed' not in batch:
        return losses, known
    missed = batch['missed']
    losses = (1 - missed) * losses + missed * pointwise.taken_back(logits)
    return losses, known + missed


class FieldModel(ClickModel):
    """A click model whose fields are vectors side by side.

    Args:
      config: of the system.
      sizes: 'table', 'feature.NAME' of every field, 'label.NAME' of every label.
      rngs: of the parameters.
    """

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config, self.labels = config, fields.labels_of(sizes)
        self.widths, self.numbers = fields.widths_of(sizes)
        table = embeddings.item_table(config.init, config.dim, sizes['table'] - 1, rngs.params())
        self.table = nnx.Param(table)
        vectors = len(self.widths) + self.make_pools(rngs) + len(config.cross)
        self.input_width = vectors * config.dim + len(self.numbers)

    def make_pools(self, rngs: nnx.Rngs) -> int:
        """Makes what `pooled` needs; returns how many vectors it gives."""
        init, shape = embeddings.INITS['xavier_uniform'], (self.config.dim, self.config.dim)
        self.queries = nnx.List(
            nnx.Param(init(rngs.params(), shape, jnp.float32)) for _ in self.config.attend
        )
        return len(self.config.attend)

    def pool(self, nth: int, query: jax.Array, members: jax.Array, real: jax.Array) -> jax.Array:
        """[B, D] of the nth set in `attend` for queries [B, D], see `fields.attend`."""
        query = experts.stacked_product(query, self.queries[nth][...][None])[:, 0]
        return fields.attend(query, members, real)

    def pooled(self, found: fields.Vectors, features: dict[str, jax.Array]) -> list[jax.Array]:
        """Vectors [B, D] of what attention from the query makes of sets."""
        del features
        query = found.mean.get(self.config.query)
        return [
            self.pool(nth, query, found.members[name], found.real[name])
            for nth, name in enumerate(self.config.attend)
        ]

    def vectors(self, features: dict[str, jax.Array]) -> fields.Vectors:
        """Of the fields that are no numbers."""
        return fields.look_up(self.table[...], features, self.widths)

    def field_input(self, features: dict[str, jax.Array], key: Key = None) -> jax.Array:
        """[B, I], what all that follows sees of `features`."""
        found, config = self.vectors(features), self.config
        parts, query = list(found.mean.values()), found.mean.get(config.query)
        parts += self.pooled(found, features)
        parts += [found.mean[name] * query for name in config.cross]
        parts += [features[name][:, None] for name in self.numbers]
        return dropout(jnp.concatenate(parts, axis=1), config.embedding_dropout, key)

    def make_towers(self, width: int, rngs: nnx.Rngs, hidden: str = 'relu') -> experts.MLPs:
        """An MLP to the logit of each label, from `width` numbers."""
        config, widths = self.config, (width, *self.config.tower_widths, 1)
        return experts.MLPs(
            len(self.labels), widths, hidden=hidden, dropout=config.dropout, rngs=rngs
        )


class ExpertModel(FieldModel):
    """Fields, a head of experts, a tower for each label.

    The head is `config.head(..)`: called with x [B, I], a dropout key and `real` it gives [B, T, D]
    for the towers, of width `head.width`, and what its levels were like.
    """

    def __init__(self, config: ExpertConfig, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        super().__init__(config, sizes, rngs=rngs)
        self.head = config.head(self.input_width, self.labels, rngs=rngs)
        self.towers = self.make_towers(self.head.width, rngs)

    def logits(
        self, features: dict[str, jax.Array], key: Key = None, real: jax.Array | None = None
    ) -> tuple[jax.Array, list[experts.Mixed]]:
        """See `ClickModel.logits`."""
        input_key, expert_key, tower_key = split_key(key, 3)
        heard, levels = self.head(self.field_input(features, input_key), expert_key, real)
        return self.towers(heard, tower_key)[..., 0], levels
