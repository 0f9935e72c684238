"""Opens what a run has trained: its checkpoint, its data and its mesh."""

import dataclasses
import math
import os
import pathlib
from typing import Any

import jax

from jaxrec import config as config_lib
from jaxrec import datasets, files
from jaxrec.cli import say
from jaxrec.data.histories import Histories
from jaxrec.data.splits import Split, split
from jaxrec.devices.malloc import keep_freed
from jaxrec.devices.mesh import make_mesh
from jaxrec.errors import UserError
from jaxrec.experiment import from_record
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import abstract_state, evaluated, split_model


@dataclasses.dataclass
class Trained:
    """A trained model with everything needed to use it; its mesh is set."""

    experiment: config_lib.Experiment
    histories: Histories
    split: Split
    graphdef: Any
    params: dict
    step: int
    data_hash: str
    workdir: pathlib.Path


def load_trained(workdir: str | os.PathLike, which: str = 'best') -> Trained:
    """Opens the best (or last) checkpoint of a run.

    Args:
      workdir: folder of a run of `jaxrec.train`.
      which: 'best' (by validation) or 'last'.

    Raises:
      UserError: no run or no checkpoint there, or its data set is gone or has changed.
    """
    workdir = pathlib.Path(workdir)
    if which not in ('best', 'last'):
        raise UserError(f"unknown checkpoint {which!r}: use 'best' or 'last'")
    if not (workdir / 'config.json').exists():
        raise UserError(f'{workdir} holds no run: train one with --workdir={workdir} first')
    experiment = from_record(files.read_json(workdir / 'config.json'))
    checkpoints = Checkpoints(workdir)
    step = checkpoints.best_step() if which == 'best' else checkpoints.last_step()
    if step is None:
        raise UserError(f'{workdir} has no {which} checkpoint yet: its run has not got that far')
    histories, data_hash = open_data(workdir, experiment)
    model_axis = math.gcd(experiment.mesh.model, jax.device_count())
    jax.set_mesh(make_mesh(config_lib.Mesh(model=model_axis)))
    graphdef, params = split_model(experiment.model, histories.num_items)
    if which == 'best':
        params, _ = checkpoints.restore_best(params)
    else:
        optimizer = make_optimizer(experiment.optim, steps=1)  # the state's shape knows no length
        state, _ = checkpoints.restore_last(abstract_state(graphdef, params, optimizer))
        params = evaluated(state)
    checkpoints.close()
    data = experiment.data
    parts = split(histories, data.split, data.valid_share, data.test_share)
    keep_freed()
    return Trained(experiment, histories, parts, graphdef, params, step, data_hash, workdir)


def open_data(workdir: pathlib.Path, experiment: config_lib.Experiment) -> tuple[Histories, str]:
    """The data set of a run: the prepared folder it used, else what its config names."""
    run = files.read_json(workdir / 'run.json')
    prepared = pathlib.Path(run['data_path'])
    named = config_lib.Data(log=str(prepared)) if prepared.exists() else experiment.data
    histories, meta = datasets.load(named, say=say)
    if meta['data_hash'] != run['data_hash']:
        raise UserError(
            f'the data set has changed since {workdir} was trained (hash {meta["data_hash"][:12]}, '
            f'trained on {run["data_hash"][:12]}): train again in another --workdir'
        )
    return histories, meta['data_hash']
