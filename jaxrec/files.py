"""Small files that are there whole or not at all, and locks between processes."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxrec.errors import UserError


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a name beside `path` to write to; it becomes `path` if the block ends well."""
    partial = path.with_name(f'{path.name}.partial{os.getpid()}')
    try:
        yield partial
        with open(partial, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding='utf-8')


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` as JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


def read_json(path: pathlib.Path) -> Any:
    """What a JSON file holds; UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError as e:
        raise UserError(f'{path} is missing') from e
    except ValueError as e:
        raise UserError(f'{path} is damaged ({e}); put it back or delete its folder') from e


@contextlib.contextmanager
def lock(path: pathlib.Path, busy: str | None = None) -> Iterator[None]:
    """Holds a lock between processes; the file is never deleted, a waiter may hold it open.

    Args:
      path: lock file, made if need be.
      busy: what to tell the user, as UserError, if another process holds it; None waits for it.

    Raises:
      OSError: the file cannot be made, or its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as e:
            raise UserError(busy) from e
        yield
