"""Rows summed by number in one order: the same bits every time, for a few passes over them.

A GPU adds rows that fall on one another in whatever order its threads come to them. Forbidden that,
XLA sorts them and adds in log2(N) passes over all. Here sorted rows are added in blocks, each by a
product with zeros and ones, then what continues from block to block, in blocks again.
"""

import jax
import jax.numpy as jnp

_BLOCK = 32


def row_sums(
    numbers: jax.Array, rows: jax.Array, count: int, *, ordered: bool = False
) -> jax.Array:
    """[count, D] in the dtype of rows: row r is the sum of rows[i] over numbers[i] == r.

    Args:
      numbers: int32 [N]; others than 0 .. count - 1 count for nothing.
      rows: [N, D], summed in float32 at least.
      count: rows of the result.
      ordered: numbers ascend.
    """
    numbers = jnp.where((numbers >= 0) & (numbers < count), numbers, count)
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    if not ordered:
        order = jnp.argsort(numbers, stable=True)
        numbers, rows = numbers[order], rows[order]
    begins = jnp.concatenate([jnp.ones(1, bool), numbers[1:] != numbers[:-1]])[: len(numbers)]
    totals = _totals(numbers, rows.astype(wide)).astype(rows.dtype)
    beyond = count + jnp.arange(len(numbers), dtype=numbers.dtype)  # dropped, each by itself
    place = jnp.where(begins & (numbers < count), numbers, beyond)
    empty = jnp.zeros((count, *rows.shape[1:]), rows.dtype)
    return empty.at[place].set(totals, mode='drop', unique_indices=True)


def _totals(numbers, rows):
    """[N, D], at the first of equal neighbours the sum of all of them; elsewhere anything.

    numbers: [N] > -N, equal ones side by side.
    """
    length, width = rows.shape
    short = -length % _BLOCK
    blocks = jnp.pad(numbers, (0, short), constant_values=jnp.iinfo(numbers.dtype).max)
    blocks = blocks.reshape(-1, _BLOCK)
    alike = (blocks[:, :, None] == blocks[:, None, :]).astype(rows.dtype)
    rows = jnp.pad(rows, ((0, short), (0, 0))).reshape(-1, _BLOCK, width)
    sums = jnp.einsum('nij,njd->nid', alike, rows, precision='highest')
    if len(blocks) > 1:
        goes_on = blocks[1:, 0] == blocks[:-1, -1]  # from one block to the next
        alone = -1 - jnp.arange(len(goes_on), dtype=numbers.dtype)
        heads = jnp.where(goes_on, blocks[1:, 0], alone)
        later = _totals(heads, jnp.where(goes_on[:, None], sums[1:, 0], 0))
        last = (blocks == blocks[:, -1:])[:-1] & goes_on[:, None]
        more = jnp.where(last[..., None], later[:, None], 0)
        sums = sums + jnp.concatenate([more, jnp.zeros_like(sums[:1])])
    return sums.reshape(-1, width)[:length]
