"""Training steps whose cost does not depend on a table's size: only touched rows take part.

A step gathers the rows that its batch names (each once), trains on these, and writes the updated
rows and their optimiser state back. The gradients of the touched rows are those of the dense step,
duplicates summed.

Optimisers of the rows (optim.table):
  rowwise_adagrad  one accumulator per row, of the mean squared gradient (as in FBGEMM, TorchRec).
  sparse_adam      Adam whose moments are decayed for the steps that a row missed when it is touched
                   again, so they equal dense Adam's; the steps that dense Adam takes in between, on
                   momentum alone, are left out (as in torch.optim.SparseAdam).
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import P
from jax.experimental.layout import Format, Layout

from jaxrec import config
from jaxrec.devices.mesh import on_mesh, platform, replicated
from jaxrec.nn.embeddings import Rows


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


_BY_ROW = Layout(major_to_minor=(0, 1))


def layouts(state: dict, tables: Iterable[str]) -> Any:
    """How a train state has to lie in memory for its tables to be updated in place.

    A TPU by itself lays a table [rows, D] out column by column where D is no multiple of 128, and
    then turns it round before a step's scatter and back after it: two copies of the whole. Row by
    row a row takes the room of the next multiple, and a step does not touch the others. What is on
    disk stays as it was.

    Args:
      state: abstract, placed.
      tables: those updated sparsely.

    Returns:
      A tree like `state` of formats, None where any will do; None where nothing is asked for.
    """
    if platform() != 'tpu' or not tables:
        return None
    moments = state['opt_state']['tables']
    own = jax.tree.leaves([(state['params'][name], moments[name]) for name in tables])
    asked = {id(x) for x in own if x.ndim == 2}
    return jax.tree.map(lambda x: Format(_BY_ROW, x.sharding) if id(x) in asked else None, state)


def laid_out(state: dict, layouts: Any) -> dict:
    """The train state, or its shapes, laid out as `layouts` says."""

    def put(wanted, x):
        if wanted is None:
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=wanted)
        return jax.device_put(x, wanted)

    if layouts is None:
        return state
    return jax.tree.map(put, layouts, state, is_leaf=lambda x: x is None)


def plain(tree: Any) -> Any:
    """Arrays as JAX lays them out by itself: Orbax mixes up the numbers of what is laid out."""
    if platform() != 'tpu':
        return tree

    def own(x):
        laid = x.ndim == 2 and x.format.layout.major_to_minor == _BY_ROW.major_to_minor
        return jnp.copy(x) if laid else x

    return jax.tree.map(own, tree)


def touched(batch: dict, paths: Iterable[str], rows: int) -> jax.Array:
    """The distinct rows of a table that a batch names.

    Args:
      batch: nested, with row numbers under some of `paths`.
      paths: such as 'items', 'positive/items' and 'features', which stands for all whole numbers
        below it; those that the batch lacks name nothing.
      rows: of the whole table; marks unused places.

    Returns:
      int32 [n] ascending and replicated, n = numbers in the batch + 1 (or `rows` if that is less),
      padded with `rows`; the first is 0, padding.
    """
    found = jax.tree.leaves([_at(batch, path) for path in paths])
    flat = [replicated(x.reshape(-1)) for x in found if jnp.issubdtype(x.dtype, jnp.integer)]
    everything = jnp.concatenate([jnp.zeros(1, jnp.int32), *flat])
    return jnp.unique(everything, size=min(everything.size, rows), fill_value=rows)


def _at(batch: dict, path: str) -> jax.Array | dict | None:
    """What a path names in the batch, None if it is not there."""
    for name in path.split('/'):
        batch = batch.get(name) if isinstance(batch, dict) else None
    return batch


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
    loss: Callable, params: dict, batch: dict, tables: dict[str, tuple[str, ...]]
) -> tuple[tuple, tuple[dict[str, Rows], dict]]:
    """Loss and gradients with the tables cut down to the rows that the batch names.

    Args:
      loss: params -> (scalar, anything); finds `Rows` in the place of the tables.
      params: with the tables under their names.
      batch: holds every row number that the loss looks up, sampled negatives included.
      tables: paths in the batch by table, see `problem.ModelConfig.tables`.

    Returns:
      (scalar, anything), ({table: Rows of its gradient}, gradients of all other parameters).
    """
    ids = {name: touched(batch, paths, len(params[name])) for name, paths in tables.items()}
    rest = {name: value for name, value in params.items() if name not in tables}
    values = {name: gather(params[name], own) for name, own in ids.items()}

    def cut_down(values, rest):
        return loss(rest | {name: Rows(ids[name], value) for name, value in values.items()})

    result, (rows, rest) = jax.value_and_grad(cut_down, argnums=(0, 1), has_aux=True)(values, rest)
    return result, ({name: Rows(ids[name], grad) for name, grad in rows.items()}, rest)
