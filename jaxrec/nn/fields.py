"""Fields of a row (`data.fields`) as vectors: one lookup in one table for all of them."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.nn.attention import softmax_among
from jaxrec.nn.embeddings import lookup

_FEATURE = 'feature.'  # of sizes: how many rows of the table a field has in an example, 0 = number
_LABEL = 'label.'  # of sizes: the place of a label


class Vectors(NamedTuple):
    """Of the fields that are no numbers, by name.

    members: [B, n, D], rows of the table, zeros where there is none; real: bool [B, n];
    mean: [B, D], of the members that are there, zeros if there is none.
    """

    members: dict[str, jax.Array]
    real: dict[str, jax.Array]
    mean: dict[str, jax.Array]


def widths_of(sizes: Mapping[str, int]) -> tuple[dict[str, int], tuple[str, ...]]:
    """How many vectors each field has, and the names of the numbers; both in the names' order."""
    fields = {k.removeprefix(_FEATURE): n for k, n in sizes.items() if k.startswith(_FEATURE)}
    widths = {name: n for name, n in sorted(fields.items()) if n}
    return widths, tuple(name for name, n in sorted(fields.items()) if not n)


def labels_of(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the labels, in the order of the logits."""
    places = {k.removeprefix(_LABEL): n for k, n in sizes.items() if k.startswith(_LABEL)}
    return tuple(sorted(places, key=places.get))


def look_up(table: jax.Array, features: dict[str, jax.Array], widths: dict[str, int]) -> Vectors:
    """The vectors of all fields, in one gather.

    Args:
      table: [rows, D]; row 0 is padding.
      features: int32 [B] or [B, n] rows of the table by field, 0 = padding.
      widths: see `widths_of`.
    """
    codes = [features[name] for name in widths]
    codes = [x if x.ndim == 2 else x[:, None] for x in codes]
    codes = jnp.concatenate(codes, axis=1)
    rows = lookup(table, codes)
    rows = rows * (codes > 0)[..., None].astype(rows.dtype)
    found, sizes = Vectors({}, {}, {}), list(widths.values())
    # whose gradients are put together at once; of slices each would be one of the whole
    parts = zip(widths, jax.lax.split(rows, sizes, 1), jax.lax.split(codes, sizes, 1), strict=True)
    for name, members, own in parts:
        found.members[name], found.real[name] = members, own > 0
        count = jnp.maximum(found.real[name].sum(1, keepdims=True), 1).astype(rows.dtype)
        found.mean[name] = members.sum(1) / count
    return found


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
    return jnp.einsum('bn,bnd->bd', softmax_among(logits, real), members)
