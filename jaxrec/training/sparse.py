"""Training steps whose cost does not depend on the catalogue: only touched rows of the item table.

A step gathers the rows that its batch names (each once), trains on that small table, and writes the
updated rows and their optimiser state back. It needs a sampled loss. The gradients of the touched
rows are those of the dense step, duplicates summed.

Optimisers of the rows (optim.table):
  rowwise_adagrad  one accumulator per row, of the mean squared gradient (as in FBGEMM, TorchRec).
  sparse_adam      Adam whose moments are decayed for the steps that a row missed when it is touched
                   again, so they equal dense Adam's; the steps that dense Adam takes in between, on
                   momentum alone, are left out (as in torch.optim.SparseAdam).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import P

from jaxrec import config
from jaxrec.devices.mesh import on_mesh, replicated

KINDS = ('rowwise_adagrad', 'sparse_adam')
# the batch's item numbers
_IDS = ('items', 'targets', 'negatives', 'sampled', 'similar', 'positive.items')


def init(table: jax.Array, kind: str) -> dict[str, jax.Array]:
    """Optimiser state of the rows, all zero, placed like the table [rows, D]."""
    per_row = jnp.zeros_like(table[:, 0])
    if kind == 'rowwise_adagrad':
        return {'sum': per_row}
    return {
        'm': jnp.zeros_like(table),
        'v': jnp.zeros_like(table),
        'touched': per_row.astype(jnp.int32),  # the last step that named the row
    }


def touched(batch: dict, rows: int) -> tuple[jax.Array, dict]:
    """The distinct items of a batch, and the batch in the numbering of the small table.

    Args:
      batch: with item numbers under some of `_IDS`.
      rows: of the whole table; marks unused places.

    Returns:
      ids: int32 [n] ascending and replicated, n = item numbers in the batch + 1 (or `rows` if that
      is less), padded with `rows`; ids[0] = 0, so padding stays 0. And the batch, every item number
      replaced by its place in `ids`.
    """
    names = [name for name in _IDS if name in batch]
    flat = [replicated(batch[name].reshape(-1)) for name in names]
    everything = jnp.concatenate([jnp.zeros(1, jnp.int32), *flat])
    size = min(everything.size, rows)
    ids, place = jnp.unique(everything, size=size, fill_value=rows, return_inverse=True)
    batch, start = dict(batch), 1
    for name in names:
        old = batch[name]
        new = place[start : start + old.size].reshape(old.shape).astype(jnp.int32)
        batch[name] = jax.reshard(new, jax.typeof(old).sharding) if on_mesh() else new
        start += old.size
    return ids, batch


def gather(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows `ids` of a table (or of its state), replicated; any row for an unused place."""
    if not on_mesh():
        return table.at[ids].get(mode='clip')
    return table.at[ids].get(mode='clip', out_sharding=P(*[None] * table.ndim))


def scatter(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """Writes rows `ids`, each device its own; unused places are dropped."""
    if not on_mesh():
        return table.at[ids].set(rows, mode='drop')

    def local(table, ids, rows):
        here = ids - jax.lax.axis_index('model') * len(table)
        here = jnp.where((here >= 0) & (here < len(table)), here, len(table))
        return table.at[here].set(rows, mode='drop')

    spec = P('model', *[None] * (table.ndim - 1))
    return jax.shard_map(local, in_specs=(spec, P(), P()), out_specs=spec)(table, ids, rows)


def update(
    table: jax.Array,
    state: dict[str, jax.Array],
    ids: jax.Array,
    grads: jax.Array,
    step: jax.Array,
    learning_rate: jax.Array,
    optim: config.Optim,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One optimiser step on rows `ids`.

    Args:
      table: [rows, D] and its `state`.
      ids: int32 [n], see `touched`.
      grads: [n, D], duplicates already summed.
      step: number of this step, from 1.
      learning_rate: of this step.
      optim: kind and moments.

    Returns:
      The new table and state.
    """
    old = {name: gather(value, ids) for name, value in state.items()}
    if optim.table == 'rowwise_adagrad':
        new = {'sum': old['sum'] + (grads**2).mean(-1)}
        change = grads / (jnp.sqrt(new['sum']) + optim.eps)[:, None]
    else:
        missed = (step - old['touched']).astype(grads.dtype)[:, None]
        m = old['m'] * optim.b1**missed + (1 - optim.b1) * grads
        v = old['v'] * optim.b2**missed + (1 - optim.b2) * grads**2
        new = {'m': m, 'v': v, 'touched': jnp.full_like(old['touched'], step)}
        unbiased = v / (1 - optim.b2**step)
        change = m / (1 - optim.b1**step) / (jnp.sqrt(unbiased) + optim.eps)
    table = scatter(table, ids, gather(table, ids) - learning_rate * change)
    return table, {name: scatter(state[name], ids, value) for name, value in new.items()}


def value_and_grad(
    loss: Callable, params: dict, batch: dict
) -> tuple[tuple, tuple[jax.Array, jax.Array, dict]]:
    """Loss and gradients with the item table cut down to the rows that the batch names.

    Args:
      loss: (params, batch) -> (scalar, terms).
      params: with the item table under 'table'.
      batch: holds every item number that the loss looks up, sampled negatives included.

    Returns:
      (scalar, terms), (ids, gradient of those rows, gradients of all other parameters).
    """
    ids, batch = touched(batch, len(params['table']))
    rest = {name: value for name, value in params.items() if name != 'table'}
    small = gather(params['table'], ids)
    result, grads = jax.value_and_grad(
        lambda rows, rest: loss({**rest, 'table': rows}, batch), argnums=(0, 1), has_aux=True
    )(small, rest)
    return result, (ids, *grads)
