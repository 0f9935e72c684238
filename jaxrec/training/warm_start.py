"""Begins with what another run has learnt: train.start_from=WORKDIR, and train.grow if need be.

With train.grow the catalogue may have changed since: in a log that covers a window of time, items
come and go. Items are numbered by ascending raw id, so an item's number, which is its row, changes
when others come in before it. Rows are therefore carried over by raw id: of every array of the
train state whose length follows the catalogue (table, its optimiser slots, its average, a frequency
estimate). New items have the rows that a new run would draw for them; those of items that are gone
are left behind. All else is taken over as it is, and the state's count of steps goes on: moments
are not warmed up again, while epochs, and the learning rate's warm-up and decay, begin anew.

The old run's folder is enough: its catalogue has the raw ids. Where a task has no such ids (click,
nodes), the data must be the same.
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
from jaxrec.training.parallel_runs import Runs
from jaxrec.training.restore import read_experiment, served_problem
from jaxrec.training.state import Program, abstract_state, split_model
from jaxrec.training.workdir import check_owner, read_run

_ROWS_AT_ONCE = 1 << 16  # replicated while they change places
_GONE = np.iinfo(np.int32).max  # the new number of an item that is no longer there: no row


def state_from(experiment: Experiment, problem: Problem, program: Program | Runs) -> dict:
    """The last train state of the run in train.start_from, for the problem's rows.

    Old and new state are on the devices together while it is made.

    Args:
      experiment: the new run's; its model and optimiser must be built like the old one's.
      problem: the new run's, with the items of the old one, and with train.grow also others.
      program: of both.

    Raises:
      UserError: no such run, an item of it is gone or new without train.grow, all are gone, or
        another model or optimiser.
    """
    if isinstance(program, Runs):
        raise UserError('train.start_from is for one run in a program, not for several')
    folder = pathlib.Path(experiment.train.start_from)
    before = read_experiment(folder, 'train.start_from is the folder of one')
    _check_same(folder, before, experiment)
    old = problem if _same_data(folder, problem) else served_problem(folder, before)
    if not old.ids and old is not problem:
        raise UserError(
            f'{folder} has learnt other data, and this task cannot tell which of its rows are '
            'still the same: train anew, without train.start_from'
        )
    moves = {name: new_numbers(ids, problem.ids[name]) for name, ids in old.ids.items()}
    lines = [_told(name, old, problem, moves[name], experiment, folder) for name in moves]
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
    say(': '.join([f'going on from step {step} of {folder}', *filter(None, [', '.join(lines)])]))
    return state


def new_numbers(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """int32 [len(old) + 1], number by raw ids `new` of each number by `old`.

    0 stays 0; an id that is not in `new` has a number above all.
    """
    order = np.arange(len(new))
    if old.dtype.kind != new.dtype.kind:  # integers as long as no other id is among them
        old, new = (np.asarray(ids).astype('S') for ids in (old, new))
        order = np.argsort(new)  # as text 10 is before 9
    at = np.minimum(np.searchsorted(new, old, sorter=order), len(new) - 1)
    numbers = np.where(new[order[at]] == old, order[at] + 1, _GONE)
    return np.concatenate([[0], numbers]).astype(np.int32)


def _same_data(folder: pathlib.Path, problem: Problem) -> bool:
    return read_run(folder)['data_hash'] == problem.data_hash


def _told(
    name: str,
    old: Problem,
    new: Problem,
    moves: np.ndarray,
    experiment: Experiment,
    folder: pathlib.Path,
) -> str:
    """How many items are carried over, gone and new, for people.

    Raises:
      UserError: some are gone or new and train.grow is not set, or all are gone.
    """
    gone = np.flatnonzero(moves == _GONE)
    carried = len(moves) - 1 - len(gone)
    added = len(new.ids[name]) - carried
    if len(gone):
        first = old.ids[name][gone[0] - 1]
        first = first.decode() if isinstance(first, bytes) else int(first)
        others = f' and {len(gone) - 1:,} others' if len(gone) > 1 else ''
        which = f'{name} {first!r}{others} of {folder}'
        if not carried:
            raise UserError(f'no {name} of {folder} is in the new data: train anew')
        if not experiment.train.grow:
            raise UserError(
                f'{which} is not in the new data: train.grow leaves such {name}s behind'
            )
    if added and not experiment.train.grow:
        raise UserError(f'the data have ids that {folder} has not learnt: train.grow adds them')
    left = f', {len(gone):,} are gone ({which})' if len(gone) else ''
    return f'{carried:,} {name}s carried over, {added:,} new{left}'


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
        target = np.pad(moves[source], unused, constant_values=_GONE)
        new = _put(new, old, np.pad(source, unused), target)
    return new


@jax.jit(donate_argnums=0)
def _put(new, old, source, target):
    rows = sparse.gather(old, source)
    if jax.typeof(new).sharding.spec[0] is None:  # on every device whole
        return new.at[target].set(rows, mode='drop')
    return sparse.scatter(new, target, rows)
