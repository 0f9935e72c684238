"""Opens what a run has trained: its checkpoint, its data and its mesh."""

import dataclasses
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
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import abstract_state, evaluated, split_model
from jaxrec.training.workdir import check_owner, read_config, read_run


@dataclasses.dataclass
class Trained:
    """A trained model with everything needed to use it, on its mesh."""

    experiment: Experiment
    problem: Problem
    mesh: jax.sharding.Mesh
    graphdef: Any
    params: dict
    constants: dict  # of the problem, placed
    step: int
    workdir: pathlib.Path
    checkpoint: str  # 'best' or 'last'


def load_trained(
    workdir: str | os.PathLike, which: str = 'best', task: Mapping[str, Any] | None = None
) -> Trained:
    """Opens the best (or last) checkpoint of a run.

    Args:
      workdir: folder of a run of `jaxrec.train`.
      which: 'best' (by validation) or 'last'.
      task: fields of the task that are to differ from the run's, {'protocol': 'full'}.

    Raises:
      UserError: no run or no checkpoint there, its data set is gone or has changed, or a field
        that the task lacks.
    """
    workdir = pathlib.Path(workdir)
    if which not in ('best', 'last'):
        raise UserError(f"unknown checkpoint {which!r}: use 'best' or 'last'")
    if not (workdir / 'config.json').exists():
        raise UserError(f'{workdir} holds no run: train one with --workdir={workdir} first')
    trained = read_config(workdir)
    changed = {f'task.{name}': value for name, value in (task or {}).items()}
    experiment = applied(trained, changed)
    for name in changed:
        if effect(name, experiment) not in ('measure', 'pace'):
            raise UserError(f'{name} is part of what {workdir} has learnt: it cannot differ')
    check(experiment)
    checkpoints = Checkpoints(workdir)
    newest = checkpoints.best_step if which == 'best' else checkpoints.last_step
    if newest() is None:
        raise UserError(checkpoints.missing(which))
    mesh = make_mesh(Mesh(model=math.gcd(experiment.mesh.model, jax.device_count())))
    with jax.set_mesh(mesh):
        problem = open_problem(workdir, experiment)
        graphdef, params = split_model(experiment.model, problem.sizes)
        if which == 'best':
            params, host = checkpoints.restore_best(params)
        else:
            optimizer = make_optimizer(experiment.optim, experiment.model, steps=1)
            abstract = abstract_state(graphdef, params, optimizer)
            state, host = checkpoints.restore_last(abstract)
            params = evaluated(state)
        check_owner(host, read_run(workdir).get('id'), workdir)
        constants = put_whole(problem.constants)
    step = newest()
    checkpoints.close()
    return Trained(experiment, problem, mesh, graphdef, params, constants, step, workdir, which)


def open_problem(workdir: pathlib.Path, experiment: Experiment) -> Problem:
    """The problem of a run on the prepared data that it used, else on what its config names."""
    run = read_run(workdir)
    prepared = pathlib.Path(run['data_path'])
    named = experiment
    if run['data_path'] and prepared.exists():
        named = dataclasses.replace(experiment, data=Data(log=str(prepared)))
    problem = named.task.open(named, say)
    if problem.data_hash != run['data_hash']:
        raise UserError(
            f'the data set has changed since {workdir} was trained (hash {problem.data_hash[:12]}, '
            f'trained on {run["data_hash"][:12]}): train again in another --workdir'
        )
    return problem
