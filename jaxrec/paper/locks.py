"""A lock per cell between processes and hosts that share a folder, whose holder may die.

A lock is a row of files NAME.0, NAME.1, ..: the highest number holds. Nobody ever removes or
replaces another's file: a dead holder is followed by the next number, which `os.link` makes
atomically, on a network file system too. A holder touches its file; it is dead if that has not
happened for `patience` seconds by the file system's own clock, or at once if its process is gone
from this machine.
"""

import contextlib
import json
import os
import pathlib
import platform
import threading
import uuid

from jaxrec.errors import UserError

_BEATS = 6  # touches within `patience`


class Lock:
    """A lock that is held; see `claim`. A context manager, which gives it back."""

    def __init__(self, path: pathlib.Path, patience: float):
        self._path, self._done = path, threading.Event()
        self.lost = False  # someone took it for dead, as after a suspended machine: stop working
        self._beat = threading.Thread(target=self._touch, args=(patience / _BEATS,), daemon=True)
        self._beat.start()

    def __enter__(self) -> 'Lock':
        return self

    def __exit__(self, *_):
        self._done.set()
        self._beat.join()
        for path in _generations(self._path.with_suffix('')):
            if _number(path) <= _number(self._path):
                path.unlink(missing_ok=True)  # dead ones, and last our own

    def _touch(self, every):
        while not self._done.wait(every):
            try:
                os.utime(self._path)
            except OSError:
                pass  # a file system that comes back within `patience` costs nothing
            above = _generations(self._path.with_suffix(''))
            if above and _number(above[-1]) > _number(self._path):
                self.lost = True
                return


def claim(path: pathlib.Path, patience: float = 120.0) -> Lock | None:
    """Takes the lock `path` if nobody alive holds it.

    Args:
      path: name of the lock; its files get a number added.
      patience: seconds without a sign of life after which a holder on another machine is dead.

    Returns:
      The lock, or None if it is held.

    Raises:
      UserError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = _generations(path)
        if there and _alive(there[-1], patience):
            return None
        mine = path.with_name(f'{path.name}.{_number(there[-1]) + 1 if there else 0}')
        if not _create(mine):
            return None
        # While we looked, the holder may have finished and another begun again from 0.
        others = [p for p in _generations(path) if p != mine]
        if any(_number(p) > _number(mine) or _alive(p, patience) for p in others):
            mine.unlink(missing_ok=True)
            return None
        return Lock(mine, patience)
    except OSError as e:
        raise UserError(f'cannot write locks to {path.parent}: {e.strerror}') from e


def holder(path: pathlib.Path) -> str:
    """'host, process 42' of who holds the lock `path`, '' if nobody does."""
    there = _generations(path)
    about = _read(there[-1]) if there else None
    return f'{about["host"]}, process {about["pid"]}' if about else ''


def _create(path: pathlib.Path) -> bool:
    """Makes `path` with our name in it, whole; False if it is there already."""
    draft = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    draft.write_text(json.dumps({**_here(), 'pid': os.getpid(), 'since': _since(os.getpid())}))
    try:
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)


def _alive(path: pathlib.Path, patience: float) -> bool:
    about = _read(path)
    if about is None:  # gone, or not ours
        return path.exists() and _age(path) < patience
    here = _here()
    if here['processes'] and all(about.get(name) == value for name, value in here.items()):
        return _since(about['pid']) == about['since']
    return _age(path) < patience


def _age(path: pathlib.Path) -> float:
    """Seconds since a file was touched, by the clock of its own file system."""
    probe = path.with_name(f'.now.{uuid.uuid4().hex}')
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return float('inf')
    finally:
        probe.unlink(missing_ok=True)


def _generations(path: pathlib.Path) -> list[pathlib.Path]:
    """Files of the lock, lowest number first."""
    found = path.parent.glob(f'{path.name}.*')
    return sorted((p for p in found if p.suffix[1:].isdigit()), key=_number)


def _number(path: pathlib.Path) -> int:
    return int(path.suffix[1:])


def _read(path: pathlib.Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _here() -> dict[str, str]:
    """What tells this machine, since its start, and this table of processes, from others."""
    about = {'host': platform.node(), 'boot': '', 'processes': ''}
    with contextlib.suppress(OSError):
        about['boot'] = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        about['processes'] = os.readlink('/proc/self/ns/pid')
    return about


def _since(pid: int) -> str:
    """Start of a process, which tells it from a later one of the same number; '' = no process."""
    try:
        stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return ''
    state, *rest = stat.rpartition(')')[2].split()
    return '' if state in 'ZX' else rest[18]
