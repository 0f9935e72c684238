"""The work directory of a run: what it records, and how a trained model is opened from it."""

import dataclasses
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import typing
from typing import Any

import jax

from jaxrec import config as config_lib
from jaxrec import datasets, sharding
from jaxrec.checkpoint import Checkpoints
from jaxrec.cli import UserError, say
from jaxrec.histories import Histories
from jaxrec.optim import make_optimizer
from jaxrec.splits import Split, split
from jaxrec.state import abstract_state, evaluated, split_model

# A run may go on although these differ: they change how long and how it is watched, not its steps.
MAY_DIFFER = (
    'train.epochs',
    'train.steps',
    'train.log_every',
    'train.save_every',
    'eval.',
    'mesh.',
    'data.source',
    'data.data_dir',
)


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
    experiment = from_record(json.loads((workdir / 'config.json').read_text()))
    checkpoints = Checkpoints(workdir)
    step = checkpoints.best_step() if which == 'best' else checkpoints.last_step()
    if step is None:
        raise UserError(f'{workdir} has no {which} checkpoint yet: its run has not got that far')
    histories, meta = datasets.load(experiment.data, say=say)
    recorded = json.loads((workdir / 'run.json').read_text())['data_hash']
    if meta['data_hash'] != recorded:
        raise UserError(
            f'the data set has changed since {workdir} was trained (hash {meta["data_hash"][:12]}, '
            f'trained on {recorded[:12]}): train again in another --workdir'
        )
    jax.set_mesh(sharding.make_mesh(experiment.mesh))
    graphdef, params = split_model(experiment.model, histories.num_items)
    if which == 'best':
        params, _ = checkpoints.restore_best(params)
    else:
        tx = make_optimizer(experiment.optim, steps=1)  # its state does not depend on the length
        state, _ = checkpoints.restore_last(abstract_state(params, experiment.optim, tx))
        params = evaluated(state)
    checkpoints.close()
    data = experiment.data
    parts = split(histories, data.split, data.valid_share, data.test_share)
    return Trained(experiment, histories, parts, graphdef, params, step, meta['data_hash'], workdir)


def open_run(workdir: pathlib.Path, experiment: config_lib.Experiment, data_hash: str) -> None:
    """Records a new run in `workdir`, or checks that the run there is this experiment.

    Raises:
      UserError: the folder holds a run of another experiment or other data.
    """
    record = to_record(experiment)
    path = workdir / 'config.json'
    if path.exists():
        there = json.loads((workdir / 'run.json').read_text())['data_hash']
        if there != data_hash:
            raise UserError(
                f'{workdir} was trained on other data (hash {there[:12]}, now {data_hash[:12]}); '
                'use another --workdir'
            )
        old, new = _flat(json.loads(path.read_text())), _flat(record)
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name) and not name.startswith(MAY_DIFFER):
                raise UserError(
                    f'{workdir} holds a run with {name}={old.get(name)!r}, this command has '
                    f'{new.get(name)!r}; use another --workdir or the same setting'
                )
    run = {
        'command': [sys.executable, *sys.orig_argv[1:]],
        'versions': _versions(),
        'git': _git(),
        'data_hash': data_hash,
        'devices': [str(d.device_kind) for d in jax.devices()],
        'platform': jax.default_backend(),
        'host': platform.platform(),
    }
    _write_json(workdir / 'run.json', run)
    _write_json(path, record)


def to_record(experiment: config_lib.Experiment) -> dict:
    """JSON-able form of an experiment; the model's Config is named by module and class."""
    record = dataclasses.asdict(experiment)
    kind = type(experiment.model)
    record['model'] = {'type': f'{kind.__module__}:{kind.__qualname__}', **record['model']}
    return json.loads(json.dumps(record))


def from_record(record: dict) -> config_lib.Experiment:
    """Inverse of `to_record`."""
    record = dict(record)
    model = dict(record.pop('model'))
    module, _, name = model.pop('type').partition(':')
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise UserError(f'the run needs model {module}.{name}, which cannot be imported') from e
    return _rebuild(config_lib.Experiment, {**record, 'model': _rebuild(kind, model)})


def _rebuild(kind, values):
    hints = typing.get_type_hints(kind)
    unknown = values.keys() - {f.name for f in dataclasses.fields(kind)}
    if unknown:
        raise UserError(f'the run was made by another version of jaxrec: no field {min(unknown)}')
    made = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            value = _rebuild(hints[name], value)
        made[name] = tuple(value) if isinstance(value, list) else value
    return kind(**made)


def _flat(tree: dict, prefix: str = '') -> dict:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f'{prefix}{name}.')
        else:
            flat[prefix + name] = value
    return flat


def _versions() -> dict[str, str]:
    names = ('jaxrec', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    found = {'python': platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = 'not installed'
    return found


def _git() -> dict[str, Any] | None:
    """Commit and dirtiness of the checkout that holds this package, None outside one."""

    def git(*args):
        here = pathlib.Path(__file__).parent
        return subprocess.run(
            ['git', '-C', str(here), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {'commit': git('rev-parse', 'HEAD'), 'dirty': bool(git('status', '--porcelain'))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _write_json(path: pathlib.Path, value: Any) -> None:
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(value, indent=1) + '\n')
    os.replace(partial, path)
