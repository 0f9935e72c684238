"""Begins with what another run has learnt: train.start_from=WORKDIR.

By itself it takes parameters, those of the best checkpoint (train.start_with): every one that this
model has by the same name, so that a pre-training and what follows it need only share a part.
Parameters of one name must have one shape; the rest begin as in a new run, and so do the
optimiser's state, averages, queues and the count of steps. What was taken, what is new and what was
left is told, and noted in run.json. A row must mean the same in both runs: the items are the same,
whatever they are numbered by.

With train.grow the run goes on: all of the last train state is taken over, for the same model and
optimiser, and its count of steps goes on: moments are not warmed up again, while epochs, and the
learning rate's warm-up and decay, begin anew. The catalogue may have changed since: in a log that
covers a window of time, items come and go. Items are numbered by ascending raw id, so an item's
number, which is its row, changes when others come in before it. Rows are therefore carried over by
raw id: of every array of the train state whose length follows the catalogue (table, its optimiser
slots, its average, a frequency estimate). New items have the rows that a new run would draw for
them; those of items that are gone are left behind.

The old run's folder is enough: its catalogue has the raw ids. Where a task has no such ids (click,
nodes), the data must be the same.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from jaxrec.cli import say
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, flat, to_record
from jaxrec.problem import Problem
from jaxrec.training import sparse
from jaxrec.training.checkpoint import Checkpoints, by_name
from jaxrec.training.parallel_runs import Runs
from jaxrec.training.restore import read_experiment, restored, served_problem
from jaxrec.training.state import Program, abstract_state, split_model
from jaxrec.training.workdir import check_owner, read_run

_ROWS_AT_ONCE = 1 << 16  # replicated while they change places
_GONE = np.iinfo(np.int32).max  # the new number of an item that is no longer there: no row


def state_from(
    experiment: Experiment, problem: Problem, program: Program | Runs
) -> tuple[dict, dict]:
    """The first train state of a run that begins with the one in train.start_from.

    Old and new state are on the devices together while it is made.

    Args:
      experiment: the new run's.
      problem: the new run's, with the items of the old one, and with train.grow also others.
      program: of both.

    Returns:
      The state; for run.json {'folder', 'run', 'checkpoint', 'step'}, the old run's, and without
      train.grow the names of parameters that were 'taken', are 'new' and were 'left'.

    Raises:
      UserError: no such run, an item of it is gone or new without train.grow, all are gone,
        parameters of other shapes, none of the same name, or with train.grow another model or
        optimiser.
    """
    if isinstance(program, Runs):
        raise UserError('train.start_from is for one run in a program, not for several')
    folder, grow = pathlib.Path(experiment.train.start_from), experiment.train.grow
    before = read_experiment(folder, 'train.start_from is the folder of one')
    if grow:
        _check_same(folder, before, experiment)
    if not experiment.task.one_split() and before.train.seed != experiment.train.seed:
        raise UserError(
            f'{folder} was trained with seed {before.train.seed}, which holds out other examples '
            '(task.split_seed=-1): it has learnt some of those that are held out here'
        )
    same_data = read_run(folder)['data_hash'] == problem.data_hash
    alike = same_data and before.task == experiment.task
    old = problem if alike else served_problem(folder, before)
    if not same_data and (not old.ids or old.ids.keys() != problem.ids.keys()):
        raise UserError(
            f'{folder} has learnt other data, and this task cannot tell which of its rows are '
            'still the same: train anew, without train.start_from'
        )
    moves = {
        name: new_numbers(ids, problem.ids[name])
        for name, ids in old.ids.items()
        if name in problem.ids
    }
    lines = [_told(name, old, problem, moves[name], experiment, folder) for name in moves]
    which = 'last' if grow else experiment.train.start_with
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        step = checkpoints.last_step() if which == 'last' else checkpoints.best_step()
        if step is None:
            why = checkpoints.missing(which)
            raise UserError(why.replace('--checkpoint=', '--config.train.start_with='))
        if grow:
            state = _all_of(folder, checkpoints, before, old, program, moves)
            named = {}
        else:
            there = restored(folder, checkpoints, which, before, old.sizes)[1]
            # coordinates of texts are no rows: their encoder is handed over
            names = () if same_data else [n for n in old.sizes if n != 'text']
            followed = _followed(
                lambda sizes: split_model(before.model, sizes)[1], old.sizes, names
            )
            moves = {} if same_data else moves
            state, named = _parameters(folder, there, followed, program, moves)
    if grow:
        lines = f': {", ".join(lines)}' if lines else ''
        say(f'going on from step {step} of {folder}{lines}')
    else:
        told = ', '.join(f'{len(found)} {kind}{_shown(found)}' for kind, found in named.items())
        say(f'parameters of the {which} checkpoint of {folder}, of step {step}: {told}')
    source = {'folder': str(folder), 'run': read_run(folder).get('id')}
    return state, {**source, 'checkpoint': which, 'step': step, **named}


def rows_from(experiment: Experiment, problem: Problem, program: Program | Runs) -> dict:
    """A new train state whose tables begin with the vectors of `problem.starts`.

    A table [rows, D] has their D leading principal components, as large as the numbers that it
    would have drawn; where vectors are 0, and in columns beyond their length, those remain.

    Raises:
      UserError: several runs in a program, or the model has no table of that kind.
    """
    if isinstance(program, Runs) or jax.process_count() > 1:
        raise UserError('task.start_table is for one run in a program, in one process')
    params = program.init()['params']
    shapes = lambda sizes: split_model(experiment.model, sizes)[1]  # noqa: E731
    followed = _followed(shapes, problem.sizes, problem.starts)
    if not any(jax.tree.leaves(followed)):
        raise UserError('task.start_table: this model has no table of items')

    def begun(name, drawn):
        if not name or drawn.ndim != 2:
            return drawn
        vectors = problem.starts[name]
        value = np.array(drawn)
        made = principal(vectors, value.shape[1])
        there = np.flatnonzero(vectors.any(1))
        size = value[1 : len(vectors)].std() / max(made[there].std(), 1e-12)
        value[there, : made.shape[1]] = made[there] * size
        return jax.device_put(value, drawn.sharding)

    return program.begin(jax.tree.map(begun, followed, params))


def principal(vectors: np.ndarray, most: int) -> np.ndarray:
    """float32 [n, min(d, most)], the leading principal components of vectors [n, d]."""
    there = vectors[vectors.any(1)].astype(np.float64)
    mean = there.mean(0)
    _, directions = np.linalg.eigh((there - mean).T @ (there - mean))
    directions = directions[:, ::-1][:, :most]
    largest = directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])]
    return ((vectors - mean) @ (directions * np.sign(largest))).astype(np.float32)


def _all_of(folder, checkpoints, before, old, program, moves) -> dict:
    """The whole last train state, rows at their new places."""
    optimizer = program.optimizer

    def shapes(sizes):
        graphdef, params = split_model(before.model, sizes)
        return abstract_state(graphdef, params, optimizer)

    there, host = checkpoints.restore_last(shapes(old.sizes))
    check_owner(host, read_run(folder).get('id'), folder)
    return jax.tree.map(
        lambda name, new, old: _carry(new, old, moves[name]) if name in moves else old,
        _followed(shapes, old.sizes, moves),
        program.init(),
        there,
    )


def _parameters(folder, there, followed, program, moves) -> tuple[dict, dict]:
    """A new train state with the parameters `there` of the same names, and which these are."""
    drawn = program.init()['params']
    there, followed, here = by_name(there), by_name(followed), by_name(drawn)
    taken = sorted(there.keys() & here.keys())
    if not taken:
        raise UserError(
            f'no parameter of {folder} has a name that this model knows: it has {_tops(there)}, '
            f'this model {_tops(here)}'
        )
    wrong = [n for n in taken if there[n].shape != here[n].shape]
    if wrong:
        shapes = ', '.join(f'{n} is {there[n].shape} there, {here[n].shape} here' for n in wrong)
        raise UserError(f'the parameters of {folder} do not fit this model: {shapes}')
    for name in taken:
        if followed[name] and followed[name] not in moves:
            raise UserError(
                f'{folder} has learnt other data, and {name} has a row for every '
                f'{followed[name]}: nothing tells whether these are the same'
            )

    def value(name, new):
        if name not in there:
            return new
        if followed[name] in moves:
            return _carry(new, there[name], moves[followed[name]])
        return jax.device_put(there[name], new.sharding)

    values = [value(name, new) for name, new in here.items()]  # in the order of the tree's leaves
    state = program.begin(jax.tree.unflatten(jax.tree.structure(drawn), values))
    new, left = sorted(here.keys() - there.keys()), sorted(there.keys() - here.keys())
    return state, {'taken': taken, 'new': new, 'left': left}


def _tops(names) -> str:
    """'blocks, table' of 'blocks.0.inner.kernel', ..: one line however large a model is."""
    return ', '.join(sorted({name.partition('.')[0] for name in names}))


def _shown(names) -> str:
    return f' ({_tops(names)})' if names else ''


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
    shapes: Callable[[Mapping[str, int]], dict], sizes: Mapping[str, int], names: Iterable[str]
) -> dict:
    """Of every array of `shapes(sizes)`, which of `names` its rows are numbered by, '' if none.

    Larger sizes tell: whatever grows with one of them follows it.
    """
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
