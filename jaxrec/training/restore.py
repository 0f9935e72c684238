"""Opens what a run has trained: its checkpoint, its data and its mesh."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from jaxrec.cli import say
from jaxrec.config import Data, Mesh
from jaxrec.devices.mesh import make_mesh, put_whole
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, check, effect
from jaxrec.problem import Problem
from jaxrec.training import catalogue
from jaxrec.training.checkpoint import Checkpoints, standing
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import abstract_state, evaluated, split_model
from jaxrec.training.workdir import check_owner, read_config, read_run


@dataclasses.dataclass
class Trained:
    """A trained model with everything needed to use it, on its mesh."""

    experiment: Experiment
    served: Problem  # as the run keeps it, see `Problem.catalogue`; else on the data
    mesh: jax.sharding.Mesh
    graphdef: Any
    params: dict
    constants: dict  # of the problem, placed
    step: int
    workdir: pathlib.Path
    checkpoint: str  # 'best' or 'last'

    @functools.cached_property
    def problem(self) -> Problem:
        """The problem on its data, which are opened when they are first asked for.

        Raises:
          UserError: they are gone or have changed.
        """
        if self.served.periods:
            return self.served
        with jax.set_mesh(self.mesh):
            return open_problem(self.workdir, self.experiment)


def load_trained(
    workdir: str | os.PathLike, which: str = 'best', task: Mapping[str, Any] | None = None
) -> Trained:
    """Opens the best (or last) checkpoint of a run.

    A training of the run may go on meanwhile: where it replaces the checkpoint while that is read,
    the new one is opened.

    Args:
      workdir: folder of a run of `jaxrec.train`.
      which: 'best' (by validation) or 'last'.
      task: fields of the task that are to differ from the run's, {'protocol': 'full'}.

    Raises:
      UserError: no run or no checkpoint there, its catalogue is damaged, a run without one whose
        data are gone or have changed, or a field that the task lacks or that says nothing.
    """
    workdir = pathlib.Path(workdir)
    if which not in ('best', 'last'):
        raise UserError(f"unknown checkpoint {which!r}: use 'best' or 'last'")
    trained = read_experiment(workdir, f'train one with --workdir={workdir} first')
    changed = {f'task.{name}': value for name, value in (task or {}).items()}
    experiment = applied(trained, changed)
    for name in changed:
        if effect(name, experiment) not in ('measure', 'pace'):
            raise UserError(f'{name} is part of what {workdir} has learnt: it cannot differ')
    check(experiment)
    for name, why in experiment.task.idle().items():
        if f'task.{name}' in changed:
            raise UserError(f'task.{name} says nothing here, {why}: leave it out')
    while True:
        there = standing(workdir, which)
        try:
            return _opened(workdir, which, experiment)
        except Exception:
            if standing(workdir, which) in (there, None):
                raise


def _opened(workdir: pathlib.Path, which: str, experiment: Experiment) -> Trained:
    checkpoints = Checkpoints(workdir)
    newest = checkpoints.best_step if which == 'best' else checkpoints.last_step
    if newest() is None:
        raise UserError(checkpoints.missing(which))
    mesh = make_mesh(Mesh(model=math.gcd(experiment.mesh.model, jax.device_count())))
    with jax.set_mesh(mesh):
        served = served_problem(workdir, experiment)
        graphdef, params = restored(workdir, checkpoints, which, experiment, served.sizes)
        constants = put_whole(served.constants)
    step = newest()
    checkpoints.close()
    return Trained(experiment, served, mesh, graphdef, params, constants, step, workdir, which)


def restored(
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    which: str,
    experiment: Experiment,
    sizes: Mapping[str, int],
) -> tuple[Any, dict]:
    """(graphdef, parameters to evaluate) of a run's 'best' or 'last' checkpoint, on the mesh.

    Args:
      workdir: folder of the run.
      checkpoints: in it.
      which: 'best' or 'last'.
      experiment: of the run.
      sizes: of its problem.

    Raises:
      UserError: there is none, or it is another run's.
    """
    graphdef, params = split_model(experiment.model, sizes)
    if which == 'best':
        params, host = checkpoints.restore_best(params)
    else:
        optimizer = make_optimizer(experiment.optim, experiment.model, steps=1)
        state, host = checkpoints.restore_last(abstract_state(graphdef, params, optimizer))
        params = evaluated(state)
    check_owner(host, read_run(workdir).get('id'), workdir)
    return graphdef, params


def read_experiment(workdir: pathlib.Path, advice: str) -> Experiment:
    """The experiment of a run.

    Raises:
      UserError: the folder holds none, or several; with `advice` if it holds none.
    """
    if (workdir / 'config.json').exists():
        return read_config(workdir)
    inside = sorted(path.parent for path in workdir.glob('*/config.json'))
    if inside:
        names = ', '.join(folder.name for folder in inside[:5]) + ', ..' * (len(inside) > 5)
        raise UserError(
            f'{workdir} holds no run but the folders of {len(inside):,} ({names}): give one of '
            f'them, e.g. {inside[0]}'
        )
    raise UserError(f'{workdir} holds no run: {advice}')


def served_problem(workdir: pathlib.Path, experiment: Experiment) -> Problem:
    """The problem of a run from the catalogue that it keeps, else on its data."""
    data_hash = read_run(workdir)['data_hash']
    kept = catalogue.kept(workdir, experiment.task, data_hash)
    return kept or open_problem(workdir, experiment)


def open_problem(workdir: pathlib.Path, experiment: Experiment) -> Problem:
    """The problem of a run on the prepared data that it used, else on what its config names.

    Raises:
      UserError: neither is there, or they have changed.
    """
    run = read_run(workdir)
    prepared, named = run['data_path'], experiment
    if prepared and pathlib.Path(prepared).exists():
        named = dataclasses.replace(experiment, data=Data(log=prepared))
    without = ''
    if (workdir / catalogue.FOLDER).exists():
        without = f'; {experiment.task.needs_no_data}'
    try:
        problem = named.task.open(named, say)
    except UserError as e:
        gone = ''
        if named is experiment:
            gone = f'{workdir} was trained on {prepared or "data"}, not here now; its source: '
        raise UserError(f'{gone}{e}{without}') from e
    if problem.data_hash != run['data_hash']:
        raise UserError(
            f'the data set has changed since {workdir} was trained (hash {problem.data_hash[:12]}, '
            f'trained on {run["data_hash"][:12]}): train again in another --workdir{without}'
        )
    return problem
