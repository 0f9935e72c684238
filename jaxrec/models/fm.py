"""FM: a factorisation machine (Rendle 2010) for every label.

score = b + sum_f x_f w_f + sum_{f < g} <x_f v_f, x_g v_g>, over the fields f of a row: x_f = 1 for
a category, 1 / n for each of the n members of a set, the value for a number. All labels' weights w
and vectors v lie side by side in one row of the table.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import problem
from jaxrec.config import field
from jaxrec.devices.mesh import reshape_rows
from jaxrec.models import multi_task
from jaxrec.nn import embeddings, experts, fields
from jaxrec.nn.dropout import Key, dropout


@dataclasses.dataclass
class Config(problem.ModelConfig):
    """FM's hyper-parameters."""

    dim: int = field(16, least=1)  # of a vector
    embedding_dropout: float = field(0.0, least=0, below=1, traced=True)
    init: str = field('normal', choices=embeddings.INITS)  # of the table

    def tables(self) -> dict[str, tuple[str, ...]]:
        """See `multi_task.Config.tables`."""
        return {'table': ('features',)}

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'FM':
        """Builds the model, see `multi_task.FieldModel`."""
        return FM(self, sizes, rngs=rngs)


class FM(multi_task.ClickModel):
    """See the module."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config, self.labels = config, fields.labels_of(sizes)
        self.widths, self.numbers = fields.widths_of(sizes)
        width, count = len(self.labels) * (1 + config.dim), len(self.numbers)
        table = embeddings.item_table(config.init, width, sizes['table'] - 1, rngs.params())
        self.table, self.bias = nnx.Param(table), nnx.Param(jnp.zeros(len(self.labels)))
        init = embeddings.INITS[config.init]
        self.of_numbers = nnx.Param(init(rngs.params(), (count, width), jnp.float32))

    def logits(
        self, features: dict[str, jax.Array], key: Key = None, real: jax.Array | None = None
    ) -> tuple[jax.Array, list[experts.Mixed]]:
        """See `multi_task.ClickModel`."""
        del real
        found = fields.look_up(self.table[...], features, self.widths).mean.values()
        parts = list(found)
        for nth, name in enumerate(self.numbers):
            parts.append(features[name][:, None] * self.of_numbers[...][nth])
        rows = dropout(jnp.stack(parts, axis=1), self.config.embedding_dropout, key)
        labels, dim = len(self.labels), self.config.dim
        first, vectors = rows[..., :labels], rows[..., labels:]
        pairs = (jnp.square(vectors.sum(1)) - jnp.square(vectors).sum(1)) / 2
        pairs = reshape_rows(pairs, (pairs.shape[0], labels, dim))
        return self.bias[...] + first.sum(1) + pairs.sum(2), []
