"""MARM: layers of target attention over what layers made of earlier events (arXiv 2411.09425).

Row j of a user's stream, x_j^0 = the vector of `query`, N_l(j) = `memory` earlier rows:

    x_j^{l+1} = x_j^l + W_o attention(W_q x_j^l; W_k m_i^l, W_v m_i^l, i in N_l(j))
    m_i^l     = x_i^l + the vectors of what came of row i, of its known labels

The labels' networks see all fields side by side and x_j^1 .. x_j^L. Without a past x_j^{l+1} is
x_j^l. The paper's equations are not public in full: residuals, no feed-forward part and the labels'
vectors added when a memory is read are this file's choice.

N_l(j) is picked from the latest `searched` rows, as SIM does (arXiv 2006.05639): the latest ones
(search = latest, of `memory` rows), the latest that share the value of a field (same, its hard
search), or those of which x_i^l has the largest products with x_j^l (dot, its soft search, in every
layer by itself; without its tower, and no gradient goes through the choice). Ties are all seen.

x_i^0 .. x_i^{L-1} never change once row i has been: served, they are kept (`Marm.read`), and a
candidate costs L * searched * dim. Training computes them anew, with gradient, over windows of the
stream with L * searched rows of context (`Marm.outputs`): the banded, strictly causal form, which
gives the same numbers. A candidate is no row of the stream: no past has it until it was shown.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import problem
from jaxrec.config import field
from jaxrec.devices.mesh import reshape_rows
from jaxrec.errors import UserError
from jaxrec.models import multi_task
from jaxrec.nn import embeddings, experts
from jaxrec.nn.attention import SelfAttention
from jaxrec.nn.dropout import Key, split_key
from jaxrec.nn.linear import linear_layer
from jaxrec.nn.search import latest, nearest

SEARCHES = ('latest', 'same', 'dot')


@dataclasses.dataclass
class Config(multi_task.Config):
    """MARM's hyper-parameters."""

    layers: int = field(2, least=0)  # L; 0 = the past is not seen
    memory: int = field(50, least=1)  # n, events that a layer attends to
    heads: int = field(1, least=1)
    search: str = field('latest', choices=SEARCHES)  # how they are picked
    searched: int = field(0, least=0)  # the latest events that they are picked from; 0 = `memory`
    same: str = ''  # search = same: the field, a category

    def check(self) -> None:
        super().check()
        if self.dim % self.heads:
            raise UserError(f'model.heads={self.heads} must divide model.dim={self.dim}')
        if self.search == 'latest' and self.searched:
            raise UserError('model.searched goes with model.search=same or dot')
        if self.search != 'latest' and self.searched <= self.memory:
            raise UserError(
                f'model.search={self.search} picks model.memory={self.memory} events from more: '
                f'set model.searched above it, which is {self.searched}'
            )
        if (self.search == 'same') != bool(self.same):
            raise UserError('model.search=same goes with model.same, the field that is to be alike')

    @property
    def reach(self) -> int:
        """Latest events of which a layer may hear."""
        return self.searched or self.memory

    def inputs(self) -> problem.Inputs:
        """A row hears of layers * reach rows before it, directly or through others."""
        known = super().inputs()
        more = (self.query, self.same) if self.same else (self.query,)
        features = tuple(dict.fromkeys((*known.features, *more)))
        return dataclasses.replace(known, features=features, max_len=self.layers * self.reach)

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'Marm':
        """Builds the model, see `multi_task.FieldModel`."""
        return Marm(self, sizes, rngs=rngs)


class Marm(multi_task.FieldModel):
    """See the module."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        super().__init__(config, sizes, rngs=rngs)
        linear = linear_layer(embeddings.INITS['xavier_uniform'], None, bias=False)
        self.layers = nnx.List(
            SelfAttention(config.dim, config.heads, linear, output=True, rngs=rngs)
            for _ in range(config.layers)
        )
        if config.layers:
            shape = (len(self.labels), 2, config.dim)
            init = embeddings.INITS[config.init]
            self.outcomes = nnx.Param(init(rngs.params(), shape, jnp.float32))
        width = self.input_width + config.layers * config.dim
        self.towers = self.make_towers(width, rngs)

    def told(self, labels: jax.Array, mask: jax.Array) -> jax.Array:
        """[.., D], the vectors of what came of rows, from labels and mask float32 [.., T]."""
        no, yes = self.outcomes[..., 0, :], self.outcomes[..., 1, :]
        known = mask * labels
        return jnp.einsum('...t,td->...d', mask - known, no) + jnp.einsum(
            '...t,td->...d', known, yes
        )

    def outputs(
        self,
        x: jax.Array,
        labels: jax.Array,
        mask: jax.Array,
        sees: jax.Array,
        groups: jax.Array | None = None,
    ) -> list[jax.Array]:
        """x^0 .. x^L, each [B, S, D], of every row of windows of streams.

        Args:
          x: [B, S, D], x^0.
          labels, mask: float32 [B, S, T], what came of the rows; of the row itself it is not read.
          sees: int32 [B, S], a row's past are the latest of the window's first `sees`.
          groups: int32 [B, S], values of the field `same`; None where there is none.
        """
        number, end = jnp.arange(x.shape[1]), sees[:, :, None]
        past = ((number < end) & (number >= end - self.config.reach))[:, None]
        told, out = self.told(labels, mask), [x]
        for layer in self.layers:
            picked = self.picked(out[-1], out[-1], past, groups, groups)
            out.append(_heard(layer, out[-1], out[-1] + told, picked))
        return out

    def picked(
        self,
        x: jax.Array,
        kept: jax.Array,
        past: jax.Array,
        own: jax.Array | None,
        groups: jax.Array | None,
    ) -> jax.Array:
        """bool [B, 1, M, N], which events M rows attend to in a layer.

        Args:
          x: [B, M, D], of the layer, of the rows.
          kept: [B, N, D], the same of the events, oldest first.
          past: bool [B, 1, M, N], which of them are the row's past.
          own, groups: int32 [B, M] and [B, N], values of the field `same` of both; None without.
        """
        search, most = self.config.search, self.config.memory
        if search == 'latest':
            return past
        if search == 'same':
            alike = past & (own[:, None, :, None] == groups[:, None, None, :])
            return latest(alike, most)
        return nearest(x, kept, past[:, 0], most)[:, None]

    def read(
        self,
        x: jax.Array,
        kept: jax.Array,
        labels: jax.Array,
        mask: jax.Array,
        there: jax.Array,
        own: jax.Array | None = None,
        groups: jax.Array | None = None,
    ) -> jax.Array:
        """x^0 .. x^L [B, L + 1, D] of candidates whose users' pasts are kept.

        The first L of a row that was shown are what is kept of it.

        Args:
          x: [B, D], x^0.
          kept: [B, n, L, D], what was kept of the latest rows; of search = same oldest first, else
            in any order.
          labels, mask: float32 [B, n, T], what came of them.
          there: bool [B, n], which places are used.
          own, groups: int32 [B] and [B, n], values of the field `same`; None where there is none.
        """
        told, x, there = self.told(labels, mask), x[:, None], there[:, None, None]
        own = None if own is None else own[:, None]
        out = [x]
        for number, layer in enumerate(self.layers):
            events = kept[:, :, number]
            picked = self.picked(out[-1], events, there, own, groups)
            out.append(_heard(layer, out[-1], events + told, picked))
        return jnp.concatenate(out, axis=1)

    def kept(self, batch: problem.Batch) -> jax.Array:
        """`read` of rows, [B, L + 1, D]; batch['memory'] has its arguments but for x and own."""
        features = batch['features']
        return self.read(self.query(features), own=self.groups(features), **batch['memory'])

    def groups(self, features: dict[str, jax.Array]) -> jax.Array | None:
        """Values of the field `same`, int32 [B]; None where there is none."""
        return features[self.config.same] if self.config.same else None

    def heard(
        self, batch: problem.Batch, key: Key = None, real: jax.Array | None = None
    ) -> tuple[jax.Array, list[experts.Mixed]]:
        """Logits [B, S, T] of windows, see `data.streams`; [B, T] of rows with what was kept.

        Without layers [B, T] of rows.
        """
        if not self.layers:
            return super().heard(batch, key, real)
        if 'memory' in batch:
            outputs = self.kept(batch)
            return self.judge(batch['features'], list(jnp.moveaxis(outputs, 1, 0))[1:], key), []
        shape = batch['sees'].shape
        features = {
            name: reshape_rows(column, (shape[0] * shape[1], *column.shape[2:]))
            for name, column in batch['features'].items()
        }
        wide = lambda x: reshape_rows(x, (*shape, *x.shape[1:]))  # noqa: E731
        flat = lambda x: reshape_rows(x, (shape[0] * shape[1], x.shape[2]))  # noqa: E731
        x = wide(self.query(features))
        seen = (batch['labels'], batch['mask'], batch['sees'])
        outputs = self.outputs(x, *seen, self.groups(batch['features']))
        logits = self.judge(features, [flat(out) for out in outputs[1:]], key)
        return wide(logits), []

    def logits(
        self, features: dict[str, jax.Array], key: Key = None, real: jax.Array | None = None
    ) -> tuple[jax.Array, list[experts.Mixed]]:
        """See `multi_task.ClickModel`; of rows that have no past."""
        del real
        x = self.query(features)
        return self.judge(features, [x] * len(self.layers), key), []

    def query(self, features: dict[str, jax.Array]) -> jax.Array:
        """x^0 [B, D]."""
        return self.vectors(features).mean[self.config.query]

    def judge(
        self, features: dict[str, jax.Array], outputs: list[jax.Array], key: Key = None
    ) -> jax.Array:
        """Logits [B, T] of the fields and x^1 .. x^L, each [B, D]."""
        input_key, tower_key = split_key(key, 2)
        x = jnp.concatenate([self.field_input(features, input_key), *outputs], axis=1)
        return self.towers(x, tower_key)[..., 0]

    def scores(
        self, batch: problem.Batch, constants: dict[str, jax.Array], key: Key = None
    ) -> jax.Array:
        """Logits [B, T], of windows [B * S, T], row by row."""
        logits = super().scores(batch, constants, key)
        if logits.ndim < 3:
            return logits
        return reshape_rows(logits, (logits.shape[0] * logits.shape[1], logits.shape[2]))


def _heard(layer, x, memories, past):
    """x + what the layer hears; x alone where there is no past."""
    heard = layer(x, memories, past, 0.0, None)
    return x + jnp.where(past[:, 0].any(-1)[..., None], heard, 0)
