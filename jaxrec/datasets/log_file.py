"""Your own interaction log: which layout it has, and reading it.

A log is one of
- `table`: CSV or TSV with a header line, or Parquet; columns are named with --user_col, --item_col
  and --time_col, further numeric columns with --features;
- `sequences`: no header, `user item item ...`, one line per user, oldest first;
- `pairs`: no header, `user item`, one line per event, a user's events oldest first;
plain or gzip'd (Parquet has its own compression). `--layout=auto` goes by content, not by name:

1. The file starts with `PAR1`: a Parquet table. It starts with the bytes 1f 8b: it is unzipped, and
   what follows goes by its content.
2. The first line, split at tabs, commas, semicolons or bars, holds the user and the item column:
   a table. If it holds a comma, a semicolon or a bar but not these columns: a table whose columns
   have other names, which is an error that lists them.
3. Else fields are split at blanks. All lines of the first MiB have 2 fields: pairs. Some have more,
   and none begins with the user of an earlier line: sequences.
4. Anything else (users on several lines of 3 or more fields; a first line of words above lines of
   numbers) cannot be told, and is an error that asks for --layout.

Raw ids come back as given: a column of plain integers as int64, anything else as text ('007' stays
'007'); in Parquet the column's type decides. Times are kept in the source's unit as int64. If some
time has a fraction, all are kept as millionths of the unit; ISO dates and Arrow timestamps count
microseconds since 1970 in UTC (nanoseconds if a date needs them). Sorting uses the times as given.
"""

import contextlib
import errno
import functools
import gzip
import hashlib
import itertools
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from jaxrec import config as config_lib
from jaxrec.data.histories import Histories
from jaxrec.datasets import large, tabular, text_layouts
from jaxrec.datasets.events import Events
from jaxrec.errors import UserError

LAYOUTS = ('auto', 'table', 'sequences', 'pairs')
SAMPLE = 1 << 20  # bytes looked at to tell the layout
LARGE = 1 << 24  # events of a Parquet log that are read into memory together


def key(config: config_lib.Data) -> str:
    """Folder name for the prepared log: its stem, and a hash of the file's identity and options."""
    path = pathlib.Path(config.log).expanduser().resolve()
    stat = path.stat()
    options = [config.layout, config.user_col, config.item_col, config.time_col]
    options += [','.join(columns(config)), config.min_user, config.min_item]
    identity = repr([str(path), stat.st_size, stat.st_mtime_ns, *options])
    stem = re.sub(r'[^A-Za-z0-9_-]+', '_', path.name.split('.')[0])[:40] or 'log'
    return f'{stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}'


def columns(config: config_lib.Data) -> tuple[str, ...]:
    """The extra columns to keep; raises UserError on one that cannot be a file name."""
    names = tuple(dict.fromkeys(c.strip() for c in config.features.split(',') if c.strip()))
    for name in names:
        if not re.fullmatch(r'[\w.-]+', name):
            raise UserError(
                f'--features: column {name!r} must be renamed to letters, digits and _ . - only'
            )
    return names


def read(config: config_lib.Data) -> Events:
    """Reads config.log.

    Raises:
      UserError: the file is missing, empty, truncated, ragged, or not as the options say.
    """
    path = pathlib.Path(config.log).expanduser()
    with _complaints(path):
        return _read(path, path.name, config)


def read_large(config: config_lib.Data, scratch: pathlib.Path) -> Histories | None:
    """Reads config.log if it is a Parquet file of more than LARGE events, else None.

    Args:
      config: see `read`.
      scratch: see `large.to_histories`.
    """
    path = pathlib.Path(config.log).expanduser()
    with _complaints(path):
        with open(path, 'rb') as file:
            parquet = file.read(4) == b'PAR1' and config.layout in ('auto', 'table')
        if not parquet or tabular.parquet_rows(path) <= LARGE:
            return None
        _check_columns(tabular.parquet_columns(path), path.name, config)
        names = {'user_col': config.user_col, 'item_col': config.item_col}
        names |= {'time_col': config.time_col, 'features': columns(config)}
        wanted = [config.user_col, config.item_col, *columns(config)]
        wanted += [config.time_col] if config.time_col else []
        limits = {'min_user': config.min_user, 'min_item': config.min_item}
        batches = functools.partial(tabular.parquet_batches, path, wanted)
        return large.to_histories(batches, path.name, scratch, **names, **limits)


@contextlib.contextmanager
def _complaints(path: pathlib.Path) -> Iterator[None]:
    """One line for what is wrong with a log or its layout."""
    name = path.name
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UserError(f'{name} is a damaged or truncated gzip file; copy it again') from e
    except pa.ArrowException as e:
        reason = ' '.join(str(e).split())
        if 'UTF8' in reason.upper().replace('-', ''):
            reason = 'it is not UTF-8 text; convert it, e.g. with iconv'
        raise UserError(f'cannot read {name}: {reason}') from e
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise  # where the result goes, not the log
        raise UserError(f'cannot read {path}: {e.strerror or e}') from e


def open_plain(path: pathlib.Path) -> BinaryIO:
    """Opens a file for reading, unzipping it if its content is gzip'd."""
    with open(path, 'rb') as file:
        zipped = file.read(2) == b'\x1f\x8b'
    return gzip.open(path, 'rb') if zipped else open(path, 'rb')


def _read(path: pathlib.Path, name: str, config: config_lib.Data) -> Events:
    if config.layout not in LAYOUTS:
        raise UserError(f'--layout={config.layout} is none of {", ".join(LAYOUTS)}')
    with open_plain(path) as file:
        sample = file.read(SAMPLE)
    if not sample.strip():
        raise UserError(f'{name} is empty')
    columns_of = {
        'user_col': config.user_col,
        'item_col': config.item_col,
        'time_col': config.time_col,
    }
    if sample[:4] == b'PAR1':
        if config.layout not in ('auto', 'table'):
            raise UserError(f'{name} is a Parquet table; leave out --layout={config.layout}')
        if _is_gzip(path):
            raise UserError(f"{name} is a gzip'd Parquet file; unzip it first")
        _check_columns(tabular.parquet_columns(path), name, config)
        return tabular.read_parquet(path, name, **columns_of, features=columns(config))
    layout, delimiter = _layout(sample, name, config)
    with open_plain(path) as file:
        if layout == 'table':
            return tabular.read_csv(
                file, name, delimiter=delimiter, **columns_of, features=columns(config)
            )
        if columns(config):
            raise UserError(f'--features needs a table; {name} has layout {layout}')
        if sample.startswith(b'\xef\xbb\xbf'):
            file.read(3)
        read_text = {'pairs': text_layouts.read_pairs, 'sequences': text_layouts.read_sequences}
        return read_text[layout](file, name)


def _is_gzip(path: pathlib.Path) -> bool:
    with open(path, 'rb') as file:
        return file.read(2) == b'\x1f\x8b'


def _layout(sample: bytes, name: str, config: config_lib.Data) -> tuple[str, str]:
    """Layout and delimiter of a text log (see the module's rule)."""
    first = sample.removeprefix(b'\xef\xbb\xbf').lstrip().split(b'\n', 1)[0]
    first = first.decode(errors='replace').strip()
    if config.layout in ('sequences', 'pairs'):
        return config.layout, ''
    headers = {d: tabular.header_fields(first, d) for d in tabular.DELIMITERS}
    for delimiter, header in headers.items():
        if config.user_col in header and config.item_col in header:
            _check_columns(header, name, config)
            return 'table', delimiter
    best = max(headers, key=lambda d: len(headers[d]))
    if config.layout == 'table' or any(len(headers[d]) > 1 for d in ',;|'):
        _check_columns(headers[best], name, config)
    return _text_layout(sample, first, name, config), ''


def _text_layout(sample: bytes, first: str, name: str, config: config_lib.Data) -> str:
    if len(sample) == SAMPLE:
        sample = sample[: sample.rfind(b'\n') + 1] or sample
    block = text_layouts.split_words(sample.removeprefix(b'\xef\xbb\xbf'))
    counts = block.counts[block.counts > 0]
    ask = 'say which it is with --layout=table, sequences or pairs'
    integer = re.compile(r'-?\d+$')
    below = block.words[int(counts[0]) :][:1000].to_pylist()
    if below and all(integer.match(w.decode(errors='replace')) for w in below):
        if not any(integer.match(w) for w in first.split()):
            if '\t' in first:
                _check_columns(tabular.header_fields(first, '\t'), name, config)
            raise UserError(
                f'cannot tell the layout of {name}: its first line looks like a header, but the '
                f'columns of a table are split at tabs or commas; {ask}'
            )
    if (counts == 2).all():
        return 'pairs'
    if (counts < 2).any():
        line = int((block.counts == 1).argmax()) + 1
        raise UserError(f'cannot tell the layout of {name}: line {line} has a single field; {ask}')
    starts = counts.cumsum() - counts
    users = block.words.take(pa.array(starts))
    if len(users.unique()) == len(users):
        return 'sequences'
    raise UserError(
        f'cannot tell the layout of {name}: lines of {counts.max()} fields share their first field '
        f'and no header line names the columns {config.user_col!r} and {config.item_col!r}; {ask}'
    )


def _check_columns(header: list[str], name: str, config: config_lib.Data) -> None:
    wanted = [('user_col', config.user_col), ('item_col', config.item_col)]
    if config.time_col:
        wanted.append(('time_col', config.time_col))
    for (flag, column), (other, same) in itertools.combinations(wanted, 2):
        if column == same:
            raise UserError(f'--{flag} and --{other} both name column {column!r}')
    wanted += [('features', c) for c in columns(config)]
    there = ', '.join(header[:30])
    for flag, column in wanted:
        if column not in header and any(field.strip().isdigit() for field in header):
            raise UserError(
                f'{name} has no header line: its first line is {there}; a table needs one with the '
                'column names; text without one is split at blanks (--layout=sequences or pairs)'
            )
        if column not in header:
            hint = f'name it with --{flag}=COLUMN'
            if flag == 'time_col':
                hint += ', or give --time_col= if the file is in time order'
            raise UserError(f'{name} has no column {column!r}; it has {there}; {hint}')
        if header.count(column) > 1:
            raise UserError(f'{name} has {header.count(column)} columns called {column!r}')
