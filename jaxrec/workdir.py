"""The work directory of a run: what it records, and how a trained model is opened from it."""

import contextlib
import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import typing
from collections.abc import Iterator
from typing import Any

import jax

from jaxrec import cluster, datasets, files, memory, sharding
from jaxrec import config as config_lib
from jaxrec.checkpoint import Checkpoints
from jaxrec.cli import UserError, say
from jaxrec.histories import Histories
from jaxrec.optim import make_optimizer
from jaxrec.splits import Split, split
from jaxrec.state import abstract_state, evaluated, split_model

# A run may go on although these differ: they do not change its steps.
_MAY_DIFFER = (
    'train.steps',
    'train.log_every',
    'train.save_every',
    'eval.batch_users',
    'mesh.',
    'data.log',  # the content hash is compared instead
    'data.source',
    'data.data_dir',
)
_PLACES = ('data.log', 'data.source', 'data.data_dir')  # machines may differ in these


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
    jax.set_mesh(sharding.make_mesh(config_lib.Mesh(model=model_axis)))
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
    memory.keep_freed()
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


@contextlib.contextmanager
def claimed(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder and keeps other runs on this machine out of it.

    Raises:
      UserError: it cannot be written, another run is in it, or the processes of this run do not
        share it.
    """
    busy = f'another process is training in {workdir}; wait for it or use another --workdir'
    with contextlib.ExitStack() as held:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:  # the processes of one run share the folder
                held.enter_context(files.lock(workdir / '.lock', busy))
        except OSError as e:
            raise UserError(f'cannot write to --workdir={workdir}: {e.strerror}') from e
        cluster.check_shared(workdir)
        yield


def check_processes(experiment: config_lib.Experiment, meta: dict) -> None:
    """Raises UserError if the processes of this run were given different experiments or data."""
    fields = flat(to_record(experiment)) | {'data hash': meta['data_hash']}
    cluster.check_same({'the fields of the experiment': sorted(fields)})
    cluster.check_same({name: fields[name] for name in sorted(fields) if name not in _PLACES})


def compare(workdir: pathlib.Path, experiment: config_lib.Experiment, meta: dict) -> None:
    """Checks that the run in `workdir`, if there is one, is of this experiment and these data.

    Raises:
      UserError: it is not.
    """
    if not (workdir / 'config.json').exists():
        return
    there, here = files.read_json(workdir / 'run.json')['data_hash'], meta['data_hash']
    if there != here:
        raise UserError(
            f'{workdir} was trained on other data (hash {there[:12]}, now {here[:12]}); '
            'use another --workdir'
        )
    old = from_record(files.read_json(workdir / 'config.json'))  # a new field has its default
    old, new = flat(to_record(old)), flat(to_record(experiment))
    may_differ = _MAY_DIFFER
    if experiment.optim.schedule == 'constant':  # else the decay depends on the length
        may_differ += ('train.epochs',)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and not name.startswith(may_differ):
            raise UserError(
                f'{workdir} holds a run with {name}={old.get(name)!r}, this command has '
                f'{new.get(name)!r}; use another --workdir or the same setting'
            )


def record(workdir: pathlib.Path, experiment: config_lib.Experiment, meta: dict, step: int) -> None:
    """Writes config.json and run.json; run.json gets one entry more for every (re)start."""
    path = workdir / 'run.json'
    sessions = files.read_json(path)['sessions'] if path.exists() else []
    sessions.append(
        {
            'from_step': step,
            'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'command': [sys.executable, *sys.orig_argv[1:]],
            'versions': versions(),
            'git': _git(),
            'devices': [str(d.device_kind) for d in jax.sharding.get_mesh().devices.flat],
            'platform': jax.default_backend(),
            'host': platform.platform(),
        }
    )
    run = {'data_hash': meta['data_hash'], 'data_path': meta['path'], 'sessions': sessions}
    if jax.process_index() == 0:
        files.write_json(path, run)
        files.write_json(workdir / 'config.json', to_record(experiment))


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
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            value = _rebuild(hint, value)
        if isinstance(value, list):
            of = (typing.get_args(hint) or (None,))[0]
            value = tuple(_rebuild(of, v) if dataclasses.is_dataclass(of) else v for v in value)
        made[name] = value
    return kind(**made)


def flat(tree: dict, prefix: str = '') -> dict:
    """A nested record with one level: 'optim.learning_rate' -> value."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f'{prefix}{name}.')
        else:
            found[prefix + name] = value
    return found


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result may depend on."""
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
        git('ls-files', '--error-unmatch', '__init__.py')  # not merely a venv inside a checkout
        return {'commit': git('rev-parse', 'HEAD'), 'dirty': bool(git('status', '--porcelain'))}
    except (OSError, subprocess.CalledProcessError):
        return None
