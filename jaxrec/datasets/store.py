"""Prepared data sets on disk: found if finished, else built once, whole or not at all.

    data_dir/name[/variant]/version/           of histories: a TFDS data set (array_record, ..)
    data_dir/name[/variant]/version/columns/   the same data as memory-mappable columns

The columns are written last and appear by a rename, so a folder that has them is finished.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from jaxrec import files
from jaxrec.data.graph import Graph
from jaxrec.data.graphs import Graphs
from jaxrec.data.histories import Histories
from jaxrec.data.rows import Rows
from jaxrec.data.stored import FORMAT, read_meta
from jaxrec.errors import UserError

VERSION = '1.3.0'  # of what the readers make of a source; a new one makes old folders stale
COLUMNS = 'columns'
OF_BEAM = 'beam-'  # begins the folder of a log that Beam has read
NO_SPACE = os.strerror(errno.ENOSPC)  # array_record reports it as a RuntimeError with this text


Stored = Histories | Rows | Graph | Graphs
KINDS = {kind.KIND: kind for kind in (Histories, Rows, Graph, Graphs)}  # by the kind in meta.json


@dataclasses.dataclass
class Source:
    """What a source gave: the data, and what is told about them."""

    data: Stored
    description: str
    source: str  # file or address that was read
    content: str = ''  # hash of the log that was read
    citation: str = ''
    homepage: str = ''
    licence: str = ''


@dataclasses.dataclass
class Recipe:
    """How to make one prepared data set.

    Attributes:
      folder: path below data_dir: name[/variant]/version.
      read: reads the source; may leave files that the data need in the empty folder given.
    """

    folder: str
    read: Callable[[pathlib.Path], Source]


class Damaged(UserError):
    """A prepared data set whose files are missing or have changed."""


def log_source(log: str) -> str:
    """How meta.json names the log that was read."""
    return str(pathlib.Path(log).expanduser().resolve())


def find(folder: pathlib.Path) -> tuple[Stored, dict] | None:
    """The finished data set in `folder`, or None. Only meta.json and numpy files are read.

    Raises:
      Damaged: a file of it is missing or has changed.
    """
    columns = folder / COLUMNS
    if not (columns / 'meta.json').exists():
        return None
    try:
        meta = read_meta(columns)
        kind = KINDS[meta.get('kind', 'histories')]
        if meta['format'] != FORMAT:
            return None
        data = kind.load(columns)
        if 'files' not in meta and data.content_hash() != meta['data_hash']:
            raise ValueError('its content is not that of its data_hash')
        return data, {**meta, 'path': str(folder)}
    except (OSError, EOFError, AttributeError, KeyError, TypeError, ValueError) as e:
        reason = ' '.join(str(e).split())
        raise Damaged(
            f'the prepared data set {folder} is damaged ({reason}): delete that folder and prepare '
            'again'
        ) from e


def find_or_build(recipe: Recipe, data_dir: str, say: Callable) -> tuple[Stored, dict]:
    """Opens the data set of `recipe` below `data_dir`, after building it if need be.

    Returns:
      The data, memory-mapped, and meta.json with the folder as 'path'.

    Raises:
      UserError: `data_dir` cannot be written to, the disk is full, or the source is at fault.
    """
    root = pathlib.Path(data_dir).expanduser().absolute()
    folder = root / recipe.folder
    with contextlib.suppress(Damaged):
        if found := find(folder):
            return found
    with locked(folder, root):
        damaged = None
        try:
            if found := find(folder):  # built by another process while this one waited
                return found
        except Damaged as e:
            damaged = e
            say(f'{str(e).partition(": delete")[0]}: preparing it again')
        try:
            with scratch_beside(folder) as scratch:
                _build(_read(recipe, scratch), folder, root, say)
        except UserError as e:
            if damaged:
                raise UserError(f'{damaged}; that fails now: {e}') from e
            raise
        except (OSError, RuntimeError) as e:
            if isinstance(e, RuntimeError) and NO_SPACE not in str(e):
                raise
            shutil.rmtree(folder, ignore_errors=True)  # makes room again
            raise _cannot_write(folder, e) from e
    return find(folder)


def _read(recipe: Recipe, scratch: pathlib.Path) -> Source:
    try:
        return recipe.read(scratch)
    except OSError as e:
        if e.errno == errno.ENOSPC:  # of what is written beside the result
            raise
        where = f' ({e.filename})' if e.filename else ''
        raise UserError(f'cannot read the source: {e.strerror or e}{where}') from e


def _build(source: Source, folder: pathlib.Path, root: pathlib.Path, say: Callable) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _check_space(source.data, folder.parent)
    say(f'writing {folder}')
    about = {f.name: getattr(source, f.name) for f in dataclasses.fields(source)[1:]}
    if isinstance(source.data, Histories):
        from jaxrec.datasets import tfds_builder  # imports tensorflow_datasets: only to build

        tfds_builder.write(source.data, folder, root, about)
    source.data.save(folder / COLUMNS, about)


def _check_space(data: Stored, folder: pathlib.Path) -> None:
    """Raises OSError if not even the columns fit, before the long part begins."""
    need = sum(column.nbytes for column in data.columns().values())
    free = shutil.disk_usage(folder).free
    if need > free:
        reason = f'{NO_SPACE} (over {need >> 20} MiB needed, {free >> 20} MiB free)'
        raise OSError(errno.ENOSPC, reason)


@contextlib.contextmanager
def scratch_beside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `folder`, for as long as it is built; makes room for both."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for kind in ('incomplete.*', 'scratch.*'):  # of a build that was killed
        for leftover in folder.parent.glob(kind):
            shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix='scratch.', dir=folder.parent) as scratch:
        yield pathlib.Path(scratch)


@contextlib.contextmanager
def locked(folder: pathlib.Path, root: pathlib.Path) -> Iterator[None]:
    """Holds the lock of `folder`, so that of several processes one builds and the others wait."""
    name = '-'.join(folder.relative_to(root).parts)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.lock(root / '.locks' / name))
        except OSError as e:
            raise _cannot_write(folder, e) from e
        yield


def _cannot_write(folder: pathlib.Path, error: Exception) -> UserError:
    reason = getattr(error, 'strerror', None)
    if not reason:  # a short write: numpy's OSError has no number, array_record's no type
        reason = NO_SPACE
    return UserError(f'cannot write {folder}: {reason}; choose another folder with --data_dir')
