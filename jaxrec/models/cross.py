"""Cross, of Moment&Cross (arXiv 2408.05709): several searched sequences, attention, alignment.

A sequence is a set of the task's fields, oldest first, searched for the few members that count for
the query (the live room): the latest, those with the largest dot products, or the latest that share
a category with it. Each is heard by attention of its own from the query, MHA(V_query W_q, V_s W_k,
V_s W_v), beside the fields in front of PLE; the mean of the members found is seen too. Besides, the
sequences are aligned with an anchor, the mixed one:

    L_cl = sum_s -log e^c(anchor_b, s_b) / sum_j e^c(anchor_b, s_j),  c = cosine / temperature

anchor and s the means of the members found, j the rows of the batch. A row without a member in one
of the two is left out of that sequence's loss, as its negative too; rows alike in `apart` (the
user) are not each other's negatives, our choice, as are temperature and weight: none is published.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import problem
from jaxrec.config import field
from jaxrec.devices.mesh import replicated
from jaxrec.errors import UserError
from jaxrec.losses import contrastive, pointwise
from jaxrec.models import multi_task, ple
from jaxrec.nn import embeddings, fields
from jaxrec.nn.attention import SelfAttention
from jaxrec.nn.linear import linear_layer
from jaxrec.nn.search import latest, nearest

SEARCHES = ('latest', 'dot', 'same')


@dataclasses.dataclass
class Sequence:
    """A searched sequence of a row."""

    name: str
    field: str  # of the task, a set, oldest first
    search: str = field('latest', choices=SEARCHES)
    most: int = field(50, least=1)  # members that are found at most
    same: str = ''  # search = same: a category; the members' own is the field FIELD.SAME


@dataclasses.dataclass
class Config(ple.Config):
    """Hyper-parameters of Cross; those of its experts are PLE's."""

    sequences: tuple[Sequence, ...] = ()
    heads: int = field(1, least=1)  # of a sequence's attention
    anchor: str = ''  # name of the sequence that the others are aligned with
    weight: float = field(0.1, least=0)  # of the alignment; 0 = none
    temperature: float = field(0.1, above=0)
    apart: str = 'user'  # field; rows alike in it are no negatives; '' = all are

    def check(self) -> None:
        super().check()
        names = [one.name for one in self.sequences]
        if not names or len(set(names)) < len(names):
            raise UserError('model.sequences must be at least one, of different names')
        for one in self.sequences:
            if (one.search == 'same') != bool(one.same):
                raise UserError(f'sequence {one.name!r}: search=same goes with same=CATEGORY')
        if self.dim % self.heads:
            raise UserError(f'model.heads={self.heads} must divide model.dim={self.dim}')
        if self.weight and (self.anchor not in names or len(names) < 2):
            raise UserError(
                f'model.anchor={self.anchor!r} must be one of several sequences '
                f'({", ".join(names)}), or model.weight 0'
            )

    def inputs(self) -> problem.Inputs:
        """Fields of the sequences and of their searches too."""
        known = super().inputs()
        names = [*known.features, self.query]
        for one in self.sequences:
            names += [one.field, *([one.same, f'{one.field}.{one.same}'] if one.same else [])]
        names += [self.apart] if self.weight and self.apart else []
        return dataclasses.replace(known, features=tuple(dict.fromkeys(names)))

    def whole_batch(self) -> str:
        return 'model.weight' if self.weight else super().whole_batch()

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'Cross':
        """Builds the model, see `multi_task.ExpertModel`."""
        return Cross(self, sizes, rngs=rngs)


class Cross(multi_task.ExpertModel):
    """See the module."""

    def make_pools(self, rngs: nnx.Rngs) -> int:
        """An attention for each sequence, which gives its output and its mean."""
        others, config = super().make_pools(rngs), self.config
        linear = linear_layer(embeddings.INITS['xavier_uniform'], None, bias=False)
        self.heard_by = nnx.List(
            SelfAttention(config.dim, config.heads, linear, output=False, causal=False, rngs=rngs)
            for _ in config.sequences
        )
        return others + 2 * len(config.sequences)

    def pooled(self, found: fields.Vectors, features: dict[str, jax.Array]) -> list[jax.Array]:
        """Of each sequence what its attention hears, [B, D], and its mean."""
        query, vectors = found.mean[self.config.query], super().pooled(found, features)
        for one, layer in zip(self.config.sequences, self.heard_by, strict=True):
            members, real = found.members[one.field], self.found(one, found, features)
            heard = layer(query[:, None], members, real[:, None, None], 0.0, None)[:, 0]
            vectors.append(jnp.where(real.any(1, keepdims=True), heard, 0))
            vectors.append(mean(members, real))
        return vectors

    def found(
        self, one: Sequence, found: fields.Vectors, features: dict[str, jax.Array]
    ) -> jax.Array:
        """bool [B, n], the members that a sequence's search finds in its field."""
        real = found.real[one.field]
        if one.search == 'dot':
            query = found.mean[self.config.query][:, None]
            return nearest(query, found.members[one.field], real[:, None], one.most)[:, 0]
        if one.search == 'same':
            real &= features[f'{one.field}.{one.same}'] == features[one.same][:, None]
        return latest(real, one.most)

    def loss(
        self,
        batch: problem.Batch,
        constants: dict[str, jax.Array],
        carry: dict,
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """See `multi_task.ClickModel.loss`; term 'aligned' is L_cl before its weight."""
        value, (terms, carry) = super().loss(batch, constants, carry, key)
        if not self.config.weight:
            return value, (terms, carry)
        terms['aligned'] = self.aligned(batch['features'], batch['weights'])
        return value + self.config.weight * terms['aligned'], (terms, carry)

    def aligned(self, features: dict[str, jax.Array], weights: jax.Array) -> jax.Array:
        """L_cl, of each sequence the mean over the rows with weights [B] that have both."""
        config, vectors = self.config, self.vectors(features)
        means, there = {}, {}
        for one in config.sequences:
            real = self.found(one, vectors, features)
            means[one.name] = replicated(mean(vectors.members[one.field], real))
            there[one.name] = replicated(real.any(1) & (weights > 0))
        alike = jnp.eye(len(weights), dtype=bool)
        if config.apart:
            group = replicated(features[config.apart])
            alike |= group[:, None] == group
        total = jnp.zeros(())
        for name in (one.name for one in config.sequences if one.name != config.anchor):
            losses = contrastive.info_nce_queue(
                means[config.anchor],
                means[name],
                means[name][None],
                temperature=config.temperature,
                cosine=True,
                hidden=alike | ~there[name],
            )
            both = (there[config.anchor] & there[name]).astype(losses.dtype)
            total += pointwise.weighted_mean(losses, both)
        return total


def mean(members: jax.Array, real: jax.Array) -> jax.Array:
    """[B, D], of the members [B, n, D] that are real, bool [B, n]; zeros if there is none."""
    real = real.astype(members.dtype)
    count = jnp.maximum(real.sum(1, keepdims=True), 1)
    return jnp.einsum('bn,bnd->bd', real, members) / count
