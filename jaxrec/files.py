"""Files that are there whole or not at all, records of a known shape, and locks."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Collection, Iterator
from typing import Any

from jaxrec.errors import UserError

SEAL = 'contents.json'  # of a sealed folder: size and sha256 of each file in it


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a name beside `path` to write to; it becomes `path` if the block ends well.

    Raises:
      OSError: it cannot be written; with `path` as its filename, which a failed write lacks.
    """
    partial = path.with_name(f'{path.name}.partial{os.getpid()}')
    try:
        with naming(path, partial):
            yield partial
            with open(partial, 'rb') as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives an empty folder beside `folder`, which it replaces if the block ends well."""
    partial = folder.with_name(f'{folder.name}.partial{os.getpid()}')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def naming(path: pathlib.Path, partial: pathlib.Path | None = None) -> Iterator[None]:
    """Gives an OSError that names no file, or `partial`, the name `path`."""
    try:
        yield
    except OSError as e:
        if e.filename not in (None, path, str(path), partial, str(partial)):
            raise
        reason = e.strerror or str(e) or type(e).__name__
        raise OSError(e.errno or 0, reason.splitlines()[0], str(path)) from e


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding='utf-8')


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` as JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


def read_json(path: pathlib.Path, shape: Any = object) -> Any:
    """What a JSON file holds.

    Args:
      path: of the file.
      shape: what must be there, see `misfit`.

    Raises:
      UserError: the file is missing or damaged, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding='utf-8'), object_pairs_hook=_object)
    except FileNotFoundError as e:
        raise UserError(f'{path} is missing') from e
    except (ValueError, RecursionError) as e:
        raise UserError(f'{path} is damaged ({e}); put it back or delete its folder') from e
    if wrong := misfit(value, shape):
        raise UserError(
            f'{path} is not what this version of jaxrec writes there ({wrong}); put it back or '
            'delete its folder'
        )
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError('a name stands there twice')
    return made


def misfit(value: Any, shape: Any, name: str = 'it') -> str:
    """What is wrong with a value of JSON, '' if nothing is.

    Args:
      value: to look at.
      shape: a type; {'name': shape, str: shape} of an object that has these entries and maybe
        others, which are alike; [shape] of a list of alike values.
      name: of the value, for the text.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f'{name} is no object'
        missing = [one for one in shape if one is not str and one not in value]
        if missing:
            return f'{name} has no {missing[0]!r}'
        others = shape.get(str, object)
        wrong = (misfit(part, shape.get(one, others), repr(one)) for one, part in value.items())
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f'{name} is no list'
        wrong = (misfit(one, shape[0], f'{name}[{nth}]') for nth, one in enumerate(value))
    else:
        fits = isinstance(value, shape) and (not isinstance(value, bool) or shape in (bool, object))
        return '' if fits else f'{name} is no {getattr(shape, "__name__", shape)}'
    return next(filter(None, wrong), '')


def seal(folder: pathlib.Path, but: Collection[str] = ()) -> None:
    """Writes down what is in a folder, for `broken` to find what changes in it; `but` may."""
    paths = sorted(path for path in folder.rglob('*') if path.is_file())
    inside = {str(path.relative_to(folder)): path for path in paths}
    contents = {name: _content(path) for name, path in inside.items() if name not in but}
    write_json(folder / SEAL, contents)


def broken(folder: pathlib.Path) -> str:
    """What has happened to a sealed folder: the first file that is not as it was, '' if none.

    Of a folder without a seal, which was made before there were any, '' too.
    """
    try:
        sealed = read_json(folder / SEAL, {str: {'bytes': int, 'sha256': str}})
    except UserError as e:
        return '' if not (folder / SEAL).exists() else str(e).partition(';')[0]
    for name, there in sealed.items():
        path = folder / name
        if not path.is_file():
            return f'{name} is missing'
        size = path.stat().st_size
        if size != there['bytes']:
            return f'{name} has {size:,} bytes of {there["bytes"]:,}'
        if digest(path) != there['sha256']:
            return f'{name} has other bytes than were written'
    return ''


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file: some 1.5 GB/s where the processor has instructions for it."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def standing(path: pathlib.Path) -> list[int]:
    """Size, times and place on disk of a file: who changes its content changes one of them."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def noted(path: pathlib.Path) -> Any:
    """What a JSON note holds that can be made again: None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return None


def _content(path: pathlib.Path) -> dict:
    return {'bytes': path.stat().st_size, 'sha256': digest(path)}


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
