"""What an item's vector is made of: its own row of the table, its text, or both.

An item that nothing was learnt of has no row, so that it is known by its text alone; with
`id_dropout` training makes others like it (DropoutNet, Volkovs et al. 2017).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.config import field
from jaxrec.devices.mesh import TABLE, placed, replicated
from jaxrec.errors import UserError
from jaxrec.nn.dropout import Key, kept_ids
from jaxrec.nn.embeddings import Rows, deviation, lookup

MADE_OF = ('ids', 'ids+texts', 'texts')


@dataclasses.dataclass
class ItemTokens:
    """Settings: what item vectors are made of, `task.texts` says what the texts are."""

    made_of: str = field('ids', choices=MADE_OF)
    id_dropout: float = field(0.1, least=0, below=1)  # ids+texts: how often an id is left out

    @property
    def texts(self) -> bool:
        """Whether texts take part."""
        return self.made_of != 'ids'

    def check(self, similarity: str, others: str) -> None:
        """Raises UserError for what does not go with texts.

        Args:
          similarity: of the in-batch loss.
          others: the settings of terms beside the main loss that take part; '' = none.
        """
        if self.texts and others:
            raise UserError(
                f'model.items.made_of={self.made_of!r} goes with the main loss alone: leave out '
                f'{others}'
            )
        if self.texts and similarity != 'dot':
            raise UserError(
                f"model.items.made_of={self.made_of!r} needs model.in_batch.similarity='dot'"
            )


class TextTokens(nnx.Module):
    """The table of item vectors: rows of ids plus W times the texts' vectors.

    W begins with numbers as large as those of the table: the two weigh alike at first.
    """

    def __init__(
        self,
        settings: ItemTokens,
        sizes: Mapping[str, int],
        init: str,
        dim: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.ids = settings.made_of == 'ids+texts'
        self.rate = settings.id_dropout
        scale = deviation(init, dim, sizes['item'])
        drawn = scale * jax.random.normal(rngs.params(), (sizes['text'], dim))
        self.kernel = nnx.Param(drawn)

    def project(self, vectors: jax.Array) -> jax.Array:
        """[.., D] of the vectors [.., d] of texts."""
        return vectors @ self.kernel[...]

    def __call__(
        self,
        table: jax.Array,
        constants: Mapping,
        key: Key = None,
        wanted: tuple[jax.Array, ...] | None = None,
    ) -> jax.Array | Rows:
        """Item vectors in the place of `table` [rows, D].

        Args:
          table: rows of the ids.
          constants: 'items', of the problem: 'known' and 'texts'.
          key: of the ids that are left out; None at inference.
          wanted: int32 arrays, the numbers that will be looked up; None = all. Where they are fewer
            than the rows, these alone are made.
        """
        texts, known = constants['items']['texts'], constants['items']['known']
        if wanted is not None and sum(ids.size for ids in wanted) < len(table):
            flat = [replicated(ids).reshape(-1) for ids in wanted]
            ids = jnp.sort(jnp.concatenate(flat))
            values = self.project(texts[ids])
            if self.ids:
                there = known[ids] & kept_ids(ids, self.rate, key)
                values = values + lookup(table, ids) * there[:, None]
            return Rows(ids, values)
        beyond = (0, len(table) - len(texts))
        made = self.project(placed(jnp.pad(texts, (beyond, (0, 0))), TABLE))
        if self.ids:
            ids = jnp.arange(len(table))
            there = jnp.pad(known, beyond) & kept_ids(ids, self.rate, key)
            made = made + table * placed(there[:, None], TABLE)
        return made


def table_of(
    model: Any, constants: Mapping, key: Key = None, wanted: tuple[jax.Array, ...] | None = None
) -> jax.Array | Rows:
    """Item vectors of a model with item_table() and `texts` (`make`), see `TextTokens`."""
    table = model.item_table()
    return table if model.texts is None else model.texts(table, constants, key, wanted)


def looked_up(batch: dict) -> tuple[jax.Array, ...]:
    """The numbers that a loss by samples looks up in the table of items."""
    return tuple(batch[name] for name in ('items', 'targets', 'sampled') if name in batch)


def make(
    settings: ItemTokens, sizes: Mapping[str, int], init: str, dim: int, rngs: nnx.Rngs
) -> TextTokens | None:
    """The tokens of a model; None where item vectors are the rows of its table."""
    return TextTokens(settings, sizes, init, dim, rngs=rngs) if settings.texts else None
