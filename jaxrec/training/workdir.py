"""The work directory of a run: who is in it, what it records, whether a run may go on there."""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax

from jaxrec import files
from jaxrec.devices import cluster
from jaxrec.devices.tuning import tuning
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, effect, flat, read, to_record
from jaxrec.problem import Problem
from jaxrec.training import catalogue
from jaxrec.training.state import turns_of

_MAY_DIFFER = ('place', 'pace', 'length', 'epochs')  # effects of fields, where a run goes on


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


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
    """run.json of a run: 'data_hash', 'data_path', and 'sessions', one of every start.

    And 'id' and 'config', hashes of what it is, which runs of before have not, and 'started_from'
    of one that has begun with another's parameters (`warm_start.state_from`).

    Raises:
      UserError: it is missing or damaged.
    """
    session = dict.fromkeys(('time', 'platform'), str) | {'versions': dict, 'devices': list}
    session |= {'git': dict | None}
    path = workdir / 'run.json'
    run = files.read_json(path, {'data_hash': str, 'data_path': str, 'sessions': [session]})
    hashes = {'id': str, 'config': str}
    if hashes.keys() & run.keys():
        files.read_json(path, hashes)
    if not run['sessions']:
        raise UserError(f'{path} names no start of the run: put it back or delete its folder')
    return run


def read_config(workdir: pathlib.Path) -> Experiment:
    """The experiment of a run, from config.json.

    Raises:
      UserError: it is missing, damaged, or not what run.json says that it was.
    """
    path = workdir / 'config.json'
    experiment = read(path)
    written = read_run(workdir).get('config')  # runs of before did not note it
    if written not in (None, _digest(files.read_json(path), experiment)):
        raise UserError(
            f'{path} has other values than the run was trained with: put it back, or train anew in '
            'another --workdir'
        )
    return experiment


def _digest(record: dict, experiment: Experiment, *more: str) -> str:
    """Of the fields of an experiment's record that must stay as they are while a run goes on."""
    fields = flat(record).items()
    kept = {n: v for n, v in fields if effect(n, experiment) not in _MAY_DIFFER}
    text = json.dumps([kept, *more], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_id(workdir: pathlib.Path, experiment: Experiment, problem: Problem) -> str:
    """What tells a run's checkpoints from another's: what it was when it first began."""
    if (workdir / 'run.json').exists() and 'id' in (run := read_run(workdir)):
        return run['id']
    return _digest(to_record(experiment), experiment, problem.data_hash)


def check_owner(host: dict, owner: str | None, where: pathlib.Path) -> None:
    """Raises UserError if a checkpoint, by its host's part, was made by another run than `owner`.

    Neither runs nor checkpoints of before had a name.
    """
    if owner and host.get('run', owner) != owner:
        raise UserError(
            f'the checkpoints in {where} were made by another run: put those of this one back, or '
            'use another --workdir'
        )


def claim_runs(state: pathlib.Path, names: list[str]) -> None:
    """Notes beside their common state which runs share a program; UserError if others do."""
    path = state / 'runs.json'
    if path.exists():
        there = files.read_json(path, [str])
        if there != names:
            raise UserError(
                f'{state.parent} holds the runs {", ".join(there)} in one program, this command '
                f'has {", ".join(names)}; use another --workdir'
            )
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        files.write_json(path, names)


def check_processes(experiment: Experiment, problem: Problem) -> None:
    """Raises UserError if the processes of this run were given different experiments or data."""
    fields = flat(to_record(experiment)) | {'data hash': problem.data_hash}
    places = {n for n in fields if n.startswith('data.') and effect(n, experiment) == 'place'}
    same = sorted(fields.keys() - places)  # machines may keep their data in different places
    cluster.check_same({'the fields of the experiment': sorted(fields)})
    cluster.check_same({name: fields[name] for name in same})


def compare(workdir: pathlib.Path, experiment: Experiment, problem: Problem) -> None:
    """Checks that the run in `workdir`, if there is one, is of this experiment and these data.

    Raises:
      UserError: it is not.
    """
    if not (workdir / 'config.json').exists():
        return
    there, here = read_run(workdir)['data_hash'], problem.data_hash
    if there != here:
        raise UserError(
            f'{workdir} was trained on other data (hash {there[:12]}, now {here[:12]}); '
            'use another --workdir'
        )
    old = read_config(workdir)  # a new field has its default
    old, new = flat(to_record(old)), flat(to_record(experiment))
    may_differ = set(_MAY_DIFFER)
    if experiment.optim.schedule != 'constant':  # the decay depends on the epochs
        may_differ.discard('epochs')
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and effect(name, experiment) not in may_differ:
            raise UserError(
                f'{workdir} holds a run with {name}={old.get(name)!r}, this command has '
                f'{new.get(name)!r}; use another --workdir or the same setting'
            )


def record(
    workdir: pathlib.Path,
    experiment: Experiment,
    problem: Problem,
    step: int,
    started: dict[str, Any] | None = None,
) -> None:
    """Writes catalogue/, config.json and run.json, which gets one entry more for every (re)start.

    Args:
      workdir: folder of the run.
      experiment, problem: of the run.
      step: where it (re)starts.
      started: the run that it has begun with; None = as run.json has it, or none.

    Raises:
      UserError: the catalogue cannot be written.
    """
    catalogue.keep(workdir, experiment.task, problem)
    path = workdir / 'run.json'
    there = read_run(workdir) if path.exists() else {'sessions': []}
    sessions, started = there['sessions'], started or there.get('started_from')
    sessions.append(
        {
            'from_step': step,
            'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'command': [sys.executable, *sys.orig_argv[1:]],
            'versions': versions(),
            'git': _git(),
            'devices': [str(d.device_kind) for d in jax.sharding.get_mesh().devices.flat],
            'platform': jax.default_backend(),
            'tuning': dataclasses.asdict(tuning()) | {'microbatches': turns_of(experiment)},
            'host': platform.platform(),
        }
    )
    record = to_record(experiment)
    run = {
        'id': run_id(workdir, experiment, problem),
        'config': _digest(record, experiment),
        'data_hash': problem.data_hash,
        'data_path': problem.data_path,
        'sessions': sessions,
    }
    run |= {'started_from': started} if started else {}
    if jax.process_index() == 0:
        files.write_json(path, run)
        files.write_json(workdir / 'config.json', record)


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
        here = pathlib.Path(__file__).parent.parent
        return subprocess.run(
            ['git', '-C', str(here), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git('ls-files', '--error-unmatch', '__init__.py')  # not merely a venv inside a checkout
        return {'commit': git('rev-parse', 'HEAD'), 'dirty': bool(git('status', '--porcelain'))}
    except (OSError, subprocess.CalledProcessError):
        return None
