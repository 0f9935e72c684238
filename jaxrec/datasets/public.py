"""What is known about a public data set, and getting its files: a given source, or a download."""

import dataclasses
import gzip
import hashlib
import http.client
import io
import pathlib
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable

from jaxrec.data.rows import Rows
from jaxrec.datasets.events import Events
from jaxrec.errors import UserError

ZIP = b'PK\x03\x04'  # first bytes
TIMEOUT = 10  # seconds without an answer before a host counts as unreachable


@dataclasses.dataclass
class DataSet:
    """A public data set.

    Attributes:
      name: as in --dataset=NAME.
      description: what it is, and which of several versions.
      citation: the paper to cite.
      homepage: where it is published.
      licence: what is known about its terms.
      read: (source, say) -> the events and which source was used; source is '' to download. Or
        rows in their place, of a data set without `size`.
      size: published numbers of users, items and interactions; None = `read` checks what it reads.
      variant: source -> name of one of several data sets in the same layout.
    """

    name: str
    description: str
    citation: str
    homepage: str
    licence: str
    read: Callable[[str, Callable], tuple[Events | Rows, str]]
    size: tuple[int, int, int] | None = None
    variant: Callable[[str], str] | None = None

    def read_checked(self, source: str, say: Callable) -> tuple[Events | Rows, str]:
        """Reads the data; raises UserError if there are not as many events as published."""
        events, used = self.read(source, say)
        if self.size is None:
            return events, used
        found = (len(events.users.values), len(events.items.values), len(events.users.codes))
        if found != self.size:
            raise UserError(
                f'{used} is not {self.name} as published: {found[0]} users, {found[1]} items, '
                f'{found[2]} interactions where {self.size[0]}, {self.size[1]}, {self.size[2]} '
                'are expected; to use your own version give --log=FILE'
            )
        return events, used


def open_source(source: str, name: str) -> tuple[bytes, str]:
    """Content of the file `name` from a source given by the user, and where it was.

    Args:
      source: the file itself under any name, a zip that holds it, or a folder with either; files
        may be gzip'd.
      name: the file's published name.

    Raises:
      UserError: not found, or damaged.
    """
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        raise UserError(f'no such file or folder: {path} (--source)')
    if path.is_dir():
        found = [p for n in (name, f'{name}.gz') for p in (path / n, *path.glob(f'*/{n}'))]
        found = [p for p in [*found, *path.glob('*.zip')] if p.exists() and _holds(p, name)]
        if not found:
            raise UserError(f'{path} holds no {name} (plain, gzip or zip); see --source')
        path = found[0]
    return unpack(path.read_bytes(), name, str(path)), str(path)


def read_file(source: str, say: Callable, url: str, sha256: str) -> tuple[bytes, str]:
    """Content of the published file at `url`, and which source was used.

    Args:
      source: see `open_source`; '' downloads it.
      say: called with lines for people.
      url: where it is published; its last part is the file's name.
      sha256: of the published file, '' if not known.

    Raises:
      UserError: not to be had, or another file.
    """
    name = url.rsplit('/', 1)[-1]
    data, used = open_source(source, name) if source else (download(url, say), url)
    if sha256:
        check_sha256(data, sha256, used, name)
    return data, used


def unpack(data: bytes, name: str, where: str) -> bytes:
    """Content of file `name` in `data`: a zip holding it, or the file itself, gzip'd or not.

    Raises:
      UserError: `data`, which came from `where`, is a zip without it, or damaged.
    """
    try:
        if data[:4] != ZIP:
            return gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            for member in z.namelist():
                if member.rsplit('/', 1)[-1] == name:
                    return z.read(member)
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as e:
        raise UserError(f'{where} is damaged or truncated; get it again') from e
    raise UserError(f'{where} holds no {name}')


def download(url: str, say: Callable) -> bytes:
    """Fetches `url`; raises UserError with the reason and what to do instead."""
    say(f'downloading {url}')
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as e:
        reason = e.reason if isinstance(e, urllib.error.URLError) else e
        raise UserError(
            f'cannot download {url} ({reason}); fetch it by other means and give --source=FILE'
        ) from e


def check_sha256(data: bytes, sha256: str, where: str, name: str) -> None:
    """Raises UserError unless `data` is the published file."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UserError(
            f'{where} is not the published {name}: sha256 {found[:16]}... where {sha256[:16]}... '
            'is expected; to use your own version give --log=FILE'
        )


def _holds(path: pathlib.Path, name: str) -> bool:
    if path.suffix != '.zip':
        return True
    try:
        with zipfile.ZipFile(path) as z:
            return any(member.rsplit('/', 1)[-1] == name for member in z.namelist())
    except zipfile.BadZipFile:
        return False
