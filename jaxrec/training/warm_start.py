"""Begins with what another run has learnt: train.start_from=WORKDIR, and train.grow if need be.

With train.grow the catalogue may have grown since. Items are numbered by ascending raw id, so an
item's number, which is its row, changes when others come in before it. Rows are therefore carried
over by raw id: of every array of the train state whose length follows the catalogue (table, its
optimiser slots, its average, a frequency estimate). New items have the rows that a new run would
draw for them. All else is taken over as it is, and the state's count of steps goes on: moments are
not warmed up again, while epochs, and the learning rate's warm-up and decay, begin anew.
"""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from jaxrec.cli import say
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, flat, to_record
from jaxrec.problem import ModelConfig, Problem
from jaxrec.training import sparse
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.optim import Optimizer
from jaxrec.training.restore import open_problem
from jaxrec.training.state import Program, abstract_state, split_model
from jaxrec.training.workdir import check_owner, read_config, read_run

_ROWS_AT_ONCE = 1 << 16  # replicated while they change places


def state_from(experiment: Experiment, problem: Problem, program: Program) -> dict:
    """The last train state of the run in train.start_from, for the problem's rows.

    Old and new state are on the devices together while it is made.

    Args:
      experiment: the new run's; its model and optimiser must be built like the old one's.
      problem: the new run's, with all items of the old one, and no other without train.grow.
      program: of both.

    Raises:
      UserError: no such run, an item of it is gone or new, or another model or optimiser.
    """
    folder = pathlib.Path(experiment.train.start_from)
    if not (folder / 'config.json').exists():
        raise UserError(f'train.start_from={folder} holds no run')
    before = read_config(folder)
    _check_same(folder, before, experiment)
    path = pathlib.Path(read_run(folder)['data_path'])
    if not path.exists():
        raise UserError(f'{path}, the prepared data of {folder}, is gone: its ids are needed')
    old = open_problem(folder, before)
    moves = {name: new_numbers(ids, problem.ids[name], folder) for name, ids in old.ids.items()}
    grown = {name: problem.sizes[name] - old.sizes[name] for name in moves}
    if any(grown.values()) and not experiment.train.grow:
        raise UserError(f'the data have ids that {folder} has not learnt: train.grow adds them')
    optimizer = program.optimizer
    graphdef, abstract = split_model(before.model, old.sizes)
    checkpoints = Checkpoints(folder)
    restored, host = checkpoints.restore_last(abstract_state(graphdef, abstract, optimizer))
    check_owner(host, read_run(folder).get('id'), folder)
    step = checkpoints.last_step()
    checkpoints.close()
    followed = _followed(experiment.model, optimizer, old.sizes, moves)
    state = jax.tree.map(
        lambda name, new, old: _carry(new, old, moves[name]) if name else old,
        followed,
        program.init(),
        restored,
    )
    told = ', '.join(f'{old.sizes[n]:,} {n}s and {more:,} new ones' for n, more in grown.items())
    say(f'going on from step {step} of {folder}: {told}')
    return state


def new_numbers(old: np.ndarray, new: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    """int32 [len(old) + 1], number by raw ids `new` of each number by `old`; 0 stays 0.

    Raises:
      UserError: an id of `old` is not in `new`.
    """
    if 'S' in (old.dtype.kind, new.dtype.kind):  # integers until the first other id came
        old, new = (np.asarray(ids).astype('S') for ids in (old, new))
    at = np.minimum(np.searchsorted(new, old), len(new) - 1)
    gone = np.flatnonzero(new[at] != old)
    if len(gone):
        others = f' and {len(gone) - 1:,} others' if len(gone) > 1 else ''
        first = old[gone[0]]
        raise UserError(
            f'item {first.decode() if isinstance(first, bytes) else int(first)!r}{others} of '
            f'{folder} is not in the new data: train.start_from needs every old item'
        )
    return np.concatenate([[0], at + 1]).astype(np.int32)


def _check_same(folder: pathlib.Path, before: Experiment, experiment: Experiment) -> None:
    old, new = (flat(to_record(e)) for e in (before, experiment))
    wanted = {name: (old.get(name), value) for name, value in new.items() if 'model.' in name}
    wanted['optim.table'] = old['optim.table'], new['optim.table']
    for name in ('ema', 'clip_norm', 'weight_decay'):  # whether they are there shapes the state
        pair = old[f'optim.{name}'], new[f'optim.{name}']
        if bool(pair[0]) != bool(pair[1]):
            wanted[f'optim.{name}'] = pair
    for name, (there, here) in wanted.items():
        if there != here:
            raise UserError(
                f'train.start_from={folder} has {name}={there!r}, this command has {here!r}: '
                'they must be the same'
            )


def _followed(
    model: ModelConfig, optimizer: Optimizer, sizes: Mapping[str, int], names: Mapping
) -> dict:
    """Of every array of the train state, which of `names` its rows are numbered by, '' if none.

    Larger sizes tell: whatever grows with one of them follows it.
    """

    def shapes(sizes):
        graphdef, params = split_model(model, sizes)
        return abstract_state(graphdef, params, optimizer)

    before = shapes(sizes)
    found = jax.tree.map(lambda x: '', before)
    for name in names:
        larger = shapes({**sizes, name: sizes[name] + 1000})
        found = jax.tree.map(
            lambda was, a, b, name=name: name if a.shape != b.shape else was, found, before, larger
        )
    return found


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
