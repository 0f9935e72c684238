"""Goes on from another run although the catalogue has grown: data.grow_vocabulary=WORKDIR.

Items are numbered by ascending raw id, so an item's number, which is its row, changes when others
come in before it. Rows are therefore carried over by raw id: of every array of the train state
whose length follows the catalogue (table, its optimiser slots, its average, a frequency estimate).
New items have the rows that a new run would draw for them. All else is taken over as it is, and the
state's count of steps goes on: moments are not warmed up again, while epochs, and the learning
rate's warm-up and decay, begin anew.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from jaxrec import config, files
from jaxrec.cli import say
from jaxrec.data.histories import Histories
from jaxrec.errors import UserError
from jaxrec.experiment import from_record, to_record
from jaxrec.training import sparse
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.optim import Optimizer
from jaxrec.training.restore import open_data
from jaxrec.training.state import abstract_state, init_state, split_model

_ROWS_AT_ONCE = 1 << 16  # replicated while they change places


def grown_state(experiment: config.Experiment, histories: Histories, optimizer: Optimizer) -> dict:
    """The last train state of the run in data.grow_vocabulary, for the items of `histories`.

    Old and new state are on the devices together while it is made.

    Args:
      experiment: the new run's; its model and optimiser must be built like the old one's.
      histories: the new run's, with all items of the old one.
      optimizer: of `experiment`.

    Raises:
      UserError: no such run, an item of it is gone, or another model or optimiser.
    """
    folder = pathlib.Path(experiment.data.grow_vocabulary)
    if not (folder / 'config.json').exists():
        raise UserError(f'data.grow_vocabulary={folder} holds no run')
    before = from_record(files.read_json(folder / 'config.json'))
    _check_same(folder, before, experiment)
    path = pathlib.Path(files.read_json(folder / 'run.json')['data_path'])
    if not path.exists():
        raise UserError(f'{path}, the prepared data of {folder}, is gone: its item ids are needed')
    old, _ = open_data(folder, before)
    moves = new_numbers(old, histories, folder)
    graphdef, abstract = split_model(before.model, old.num_items)
    checkpoints = Checkpoints(folder)
    restored, _ = checkpoints.restore_last(abstract_state(graphdef, abstract, optimizer))
    step = checkpoints.last_step()
    checkpoints.close()
    fresh = init_state(experiment.model, histories.num_items, optimizer, experiment.train.seed)
    state = jax.tree.map(
        lambda by_item, new, old: _carry(new, old, moves) if by_item else old,
        _follows_the_catalogue(experiment.model, optimizer),
        fresh,
        restored,
    )
    new = histories.num_items - old.num_items
    say(f'going on from step {step} of {folder}: {old.num_items:,} items and {new:,} new ones')
    return state


def new_numbers(old: Histories, new: Histories, folder: pathlib.Path) -> np.ndarray:
    """int32 [old items + 1], number in `new` of each item number of `old`; 0 stays 0.

    Raises:
      UserError: an item of `old` is not in `new`.
    """
    old_ids, new_ids = old.item_ids, new.item_ids
    if 'S' in (old_ids.dtype.kind, new_ids.dtype.kind):  # integers until the first other id came
        old_ids, new_ids = (np.asarray(ids).astype('S') for ids in (old_ids, new_ids))
    at = np.minimum(np.searchsorted(new_ids, old_ids), len(new_ids) - 1)
    gone = np.flatnonzero(new_ids[at] != old_ids)
    if len(gone):
        others = f' and {len(gone) - 1:,} others' if len(gone) > 1 else ''
        raise UserError(
            f'item {old.raw_item(int(gone[0]) + 1)!r}{others} of {folder} is not in the new log: '
            'data.grow_vocabulary needs every old item'
        )
    return np.concatenate([[0], at + 1]).astype(np.int32)


def _check_same(folder, before, experiment):
    old, new = (to_record(e) for e in (before, experiment))
    wanted = {
        f'model.{name}': (old['model'].get(name), value) for name, value in new['model'].items()
    }
    wanted['optim.table'] = old['optim']['table'], new['optim']['table']
    for name in ('ema', 'clip_norm', 'weight_decay'):  # whether they are there shapes the state
        if bool(old['optim'][name]) != bool(new['optim'][name]):
            wanted[f'optim.{name}'] = old['optim'][name], new['optim'][name]
    for name, (there, here) in wanted.items():
        if there != here:
            raise UserError(
                f'data.grow_vocabulary={folder} has {name}={there!r}, this command has {here!r}: '
                'they must be the same'
            )


def _follows_the_catalogue(model: Any, optimizer: Optimizer) -> dict:
    """Of every array of the train state, whether its rows are items: a larger catalogue tells."""

    def shapes(items):
        graphdef, params = split_model(model, items)
        return abstract_state(graphdef, params, optimizer)

    return jax.tree.map(lambda a, b: a.shape != b.shape, shapes(100), shapes(1000))


def _carry(new: jax.Array, old: jax.Array, moves: np.ndarray) -> jax.Array:
    """`new` with the rows of `old` at their new places."""
    for start in range(0, len(moves), _ROWS_AT_ONCE):
        source = np.arange(start, min(start + _ROWS_AT_ONCE, len(moves)), dtype=np.int32)
        unused = (0, min(_ROWS_AT_ONCE, len(moves)) - len(source))  # one shape, compiled once
        target = np.pad(moves[source], unused, constant_values=len(new))
        new = _put(new, old, np.pad(source, unused), target)
    return new


@jax.jit(donate_argnums=0)
def _put(new, old, source, target):
    rows = sparse.gather(old, source)
    if jax.typeof(new).sharding.spec[0] is None:  # on every device whole
        return new.at[target].set(rows, mode='drop')
    return sparse.scatter(new, target, rows)
