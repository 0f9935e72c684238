"""DIN: deep interest network (Zhou et al., KDD 2018); of several labels each has a network.

A set in `attend` is summed, each member weighted by an activation unit: a network of query, member,
their difference and their product, whose output is not normalised. The networks of the labels see
all fields side by side, on one table.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.config import field
from jaxrec.devices.mesh import reshape_rows
from jaxrec.errors import UserError
from jaxrec.models import multi_task
from jaxrec.nn import experts
from jaxrec.nn.dropout import Key, split_key


@dataclasses.dataclass
class Config(multi_task.Config):
    """DIN's hyper-parameters."""

    tower_widths: tuple[int, ...] = (200, 80)
    unit_widths: tuple[int, ...] = (80, 40)  # of every hidden layer of an activation unit, sigmoid
    activation: str = field('dice', choices=('dice', 'relu'))  # of the labels' networks

    def check(self) -> None:
        super().check()
        if min((*self.unit_widths, 1)) < 1:
            raise UserError('model.unit_widths must be at least 1 each')

    def whole_batch(self) -> str:
        return 'model.activation=dice' if self.activation == 'dice' else ''

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'DIN':
        """Builds the model, see `multi_task.FieldModel`."""
        return DIN(self, sizes, rngs=rngs)


class DIN(multi_task.FieldModel):
    """See the module."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        super().__init__(config, sizes, rngs=rngs)
        self.towers = self.make_towers(self.input_width, rngs, hidden=config.activation)

    def make_pools(self, rngs: nnx.Rngs) -> int:
        widths = (4 * self.config.dim, *self.config.unit_widths, 1)
        self.units = nnx.List(
            experts.MLPs(1, widths, hidden='sigmoid', rngs=rngs) for _ in self.config.attend
        )
        return len(self.config.attend)

    def pool(self, nth: int, query: jax.Array, members: jax.Array, real: jax.Array) -> jax.Array:
        queries = jnp.broadcast_to(query[:, None], members.shape)
        parts = (queries, members, queries - members, queries * members)
        pairs = jnp.concatenate(parts, axis=2)
        rows = reshape_rows(pairs, (pairs.shape[0] * pairs.shape[1], pairs.shape[2]))
        weights = reshape_rows(self.units[nth](rows), real.shape) * real
        return jnp.einsum('bn,bnd->bd', weights, members)

    def logits(
        self, features: dict[str, jax.Array], key: Key = None, real: jax.Array | None = None
    ) -> tuple[jax.Array, list[experts.Mixed]]:
        """See `multi_task.ClickModel`."""
        input_key, tower_key = split_key(key, 2)
        x = self.field_input(features, input_key)
        return self.towers(x, tower_key, real)[..., 0], []
