"""The catalogue that a run keeps, WORKDIR/catalogue: with it the run is served without its data.

A run of an older version has none. It is served through its data, and gets one when it goes on.
"""

import pathlib
import shutil

import jax

from jaxrec.errors import UserError
from jaxrec.problem import Problem, Task

FOLDER = 'catalogue'


def keep(workdir: pathlib.Path, task: Task, problem: Problem) -> None:
    """Writes the problem's catalogue into the run's folder, unless it is there and whole.

    The folder appears whole or not at all; of several processes one writes it.
    """
    if problem.catalogue is None or jax.process_index():
        return
    try:
        there = kept(workdir, task, problem.data_hash) is not None
    except UserError:  # damaged: here are the data to make it anew
        there = False
    if there:
        return
    for leftover in workdir.glob(f'{FOLDER}.partial*'):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        problem.catalogue.save(workdir / FOLDER)
    except OSError as e:
        raise UserError(f'cannot write {workdir / FOLDER}: {e.strerror or e}') from e


def kept(workdir: pathlib.Path, task: Task, data_hash: str) -> Problem | None:
    """The problem of a run as its catalogue gives it; None if the run has none.

    Args:
      workdir: folder of the run.
      task: of the run.
      data_hash: of the data that it has learnt.

    Raises:
      UserError: the catalogue is damaged, or another run's.
    """
    folder = workdir / FOLDER
    if not folder.exists():
        return None
    advice = (
        'copy the run again, or start its training again with the same command, which makes the '
        'folder anew from the data'
    )
    try:
        problem = task.open_catalogue(folder)
    except UserError as e:
        raise UserError(f'{e}: {advice}') from e
    if problem.data_hash != data_hash:
        raise UserError(f'{folder} belongs to a run on other data: {advice}')
    return problem
