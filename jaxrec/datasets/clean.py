"""The folder of prepared data sets: how large it is, and what of it nothing will open again."""

import dataclasses
import json
import pathlib
import shutil

from jaxrec.datasets import log_parts, store
from jaxrec.errors import UserError

LEFTOVERS = ('incomplete.*', 'scratch.*', '*.partial*')  # of builds that were killed


@dataclasses.dataclass
class Removed:
    """A folder that was removed.

    Attributes:
      path: where it was.
      size: its bytes.
      why: in words.
    """

    path: str
    size: int
    why: str


def clean(data_dir: str, log: str = '') -> list[Removed]:
    """Removes prepared copies of logs that have changed since, and leftovers.

    A copy whose log is not there is kept: it may be the only one.

    Args:
      data_dir: folder of the prepared data sets.
      log: look at the copies of this log only, '' = of all.

    Raises:
      UserError: something cannot be removed.
    """
    root = pathlib.Path(data_dir).expanduser().absolute()
    removed = []
    for folder in sorted(root.glob('log/[!.]*')):
        versions = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        for version in versions:
            if why := _outdated(version, root, log):
                removed.append(_remove(version, root, why))
        if versions and not any(folder.iterdir()):
            folder.rmdir()
    for pattern in () if log else LEFTOVERS:
        for folder in sorted(root.glob(f'**/{pattern}')):
            if folder.is_dir():
                removed.append(_remove(folder, root, 'left by a build that was stopped'))
    return removed


def size(data_dir: str) -> tuple[int, int]:
    """Number of prepared data sets below a folder, and bytes of all its files."""
    root = pathlib.Path(data_dir).expanduser()
    return sum(1 for _ in root.glob(f'**/{store.COLUMNS}/meta.json')), _bytes(root)


def _bytes(folder: pathlib.Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob('*') if p.is_file())


def _outdated(version: pathlib.Path, root: pathlib.Path, log: str) -> str:
    """Why no command will open this copy of a log again, '' if one may."""
    if version.parent.name.startswith(store.OF_BEAM):  # by size and time of remote files
        return ''
    try:
        meta = json.loads((version / store.COLUMNS / 'meta.json').read_text())
        source, content = meta['source'], meta.get('content', '')
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ''
    if log and source != store.log_source(log):
        return ''
    try:
        now = log_parts.content_hash(source, root)
    except UserError:
        return ''
    if now != content:
        return f'{source} has changed since'
    return '' if version.name == store.VERSION else 'made by another version'


def _remove(folder: pathlib.Path, root: pathlib.Path, why: str) -> Removed:
    removed = Removed(str(folder), _bytes(folder), why)
    with store.locked(folder, root):
        try:
            shutil.rmtree(folder)
        except OSError as e:
            raise UserError(f'cannot remove {folder}: {e.strerror}') from e
    return removed
