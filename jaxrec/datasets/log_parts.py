"""The files that are one log: which they are, what they hold, and whether they are still the same.

A log is a file, a folder (with its folders; what begins with a dot or underscore is left out, as
Spark and Hive do) or a pattern like 'day=*/part-*.parquet'. Its parts follow each other by name.
"""

import contextlib
import glob
import gzip
import hashlib
import os
import pathlib
import re
import time
from typing import BinaryIO

from jaxrec import files
from jaxrec.errors import UserError

PARQUET = b'PAR1'
GZIP = b'\x1f\x8b'
# first bytes of what people take for a text log, and what to do about it
FOREIGN = {
    b'PK\x03\x04': ('a zip archive (or a spreadsheet)', 'unzip it, or export it as CSV'),
    b'PK\x05\x06': ('an empty zip archive', 'unzip what it should hold'),
    b'BZh': ('compressed with bzip2', 'unpack it with bunzip2'),
    b'\x1f\x8b': ("gzip'd twice", 'unzip it'),
    b'\xfd7zXZ\x00': ('compressed with xz', 'unpack it with unxz'),
    b'\x28\xb5\x2f\xfd': ('compressed with zstd', 'unpack it with unzstd'),
    b'\x04\x22\x4d\x18': ('compressed with lz4', 'unpack it with unlz4'),
    b'7z\xbc\xaf\x27\x1c': ('a 7z archive', 'unpack it'),
    b'Rar!': ('a rar archive', 'unpack it'),
    b'\x1f\x9d': ('compressed with compress', 'unpack it with uncompress'),
    b'\xff\xfe': ('UTF-16 text', 'convert it: iconv -f UTF-16 -t UTF-8'),
    b'\xfe\xff': ('UTF-16 text', 'convert it: iconv -f UTF-16 -t UTF-8'),
    b'ORC': ('an ORC table', 'write it as Parquet'),
    b'Obj\x01': ('an Avro table', 'write it as Parquet'),
    b'ARROW1': ('an Arrow (Feather) table', 'write it as Parquet'),
    b'SQLite format 3': ('an SQLite database', 'export the table as CSV'),
    b'\x89HDF': ('an HDF5 file', 'write it as Parquet'),
    b'\x93NUMPY': ('a numpy array', 'write it as Parquet'),
}
_CONTROL = re.compile(rb'[\x00-\x08\x0e-\x1f]')
_JSON = re.compile(rb'\s*(\{\s*["}]|\[\s*["{\[])')
_MARKUP = re.compile(rb'\s*<(!doctype|html|\?xml)', re.IGNORECASE)
WHOLE = 1 << 28  # bytes of a file whose content is looked at every time
SETTLED = 2.0  # seconds after which a change of a file changes its times too


def parts(log: str) -> list[pathlib.Path]:
    """Files of a log, in order.

    Raises:
      UserError: there are none.
    """
    path = pathlib.Path(log).expanduser()
    if path.is_dir():
        inner = sorted(p for p in path.rglob('*') if p.is_file())
        hidden = ('.', '_')
        found = [p for p in inner if not any(x.startswith(hidden) for x in _below(p, path))]
        if not found:
            raise UserError(f'{path} is a folder without files (--log)')
        return found
    if path.exists():
        return [path]
    if any(letter in log for letter in '*?['):
        found = sorted(map(pathlib.Path, glob.glob(str(path), recursive=True)))
        found = [p for p in found if p.is_file()]
        if not found:
            raise UserError(f'no file matches {log} (--log)')
        return found
    raise UserError(f'no such file: {path} (--log)')


def _below(path: pathlib.Path, folder: pathlib.Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts


def open_plain(path: pathlib.Path) -> BinaryIO:
    """Opens a file for reading, unzipping it if its content is gzip'd."""
    return gzip.open(path, 'rb') if is_gzip(path) else open(path, 'rb')


def is_gzip(path: pathlib.Path) -> bool:
    with open(path, 'rb') as file:
        return file.read(2) == GZIP


def check_text(sample: bytes, name: str) -> None:
    """UserError if the first bytes of a file, not PARQUET, are not those of a text log."""
    if not sample.strip(b'\xef\xbb\xbf \t\r\n'):
        raise UserError(f'{name} is empty')
    binary = _CONTROL.search(sample) or not _is_utf8(sample[:4096])
    for first, (what, advice) in FOREIGN.items():
        if binary and sample.startswith(first):
            raise UserError(f'{name} is {what}; {advice}')
    if sample[257:262] == b'ustar':
        raise UserError(f'{name} is a tar archive; unpack it')
    if _JSON.match(sample):
        raise UserError(f'{name} is JSON; write it as CSV or Parquet')
    if _MARKUP.match(sample):
        raise UserError(f'{name} is HTML or XML, as of a failed download; write it as CSV')
    if b'\0' in sample:
        raise UserError(f'{name} is not text (it holds zero bytes); write it as CSV or Parquet')


def _is_utf8(some: bytes) -> bool:
    try:
        some.decode()
    except UnicodeDecodeError as e:
        return e.start > len(some) - 4  # a letter cut in two
    return True


def content_hash(log: str, root: pathlib.Path) -> str:
    """sha256 over the content of a log's parts, in order.

    The content of a file of more than WHOLE bytes is not read again as long as its size, times and
    place on disk are those of the last time; these are kept below `root`, if it can be written to.

    Args:
      log: see `parts`.
      root: folder of the prepared data sets.
    """
    digest = hashlib.sha256()
    for path in parts(log):
        digest.update(_of_file(path, root / 'log' / '.hashes').encode())
    return digest.hexdigest()


def _of_file(path: pathlib.Path, known: pathlib.Path) -> str:
    try:
        now = size, modified, changed, *_ = files.standing(path)
        if size <= WHOLE:
            return files.digest(path)
        note = known / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        match files.noted(note):
            case [before, str(found)] if before == now:
                return found
        found = files.digest(path)
        if time.time() - max(modified, changed) / 1e9 > SETTLED:
            with contextlib.suppress(OSError):  # it is only slower next time
                known.mkdir(parents=True, exist_ok=True)
                files.write_json(note, [now, found])
        return found
    except OSError as e:
        raise UserError(f'cannot read {path}: {e.strerror or e}') from e
