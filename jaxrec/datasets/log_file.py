"""Your own interaction log: which layout it has, and reading it.

A log is one or several files (see `log_parts`) and one of
- `table`: CSV or TSV with a header line, or Parquet; columns are named with --user_col, --item_col
  and --time_col, further numeric columns with --features; for text without a header line --columns
  names all its columns;
- `sequences`: no header, `user item item ...`, one line per user, oldest first;
- `pairs`: no header, `user item`, one line per event, a user's events oldest first;
plain or gzip'd (Parquet has its own compression). `--layout=auto` goes by content, not by name:

1. The file starts with `PAR1`: a Parquet table. It starts with the bytes 1f 8b: it is unzipped, and
   what follows goes by its content. Other archives and formats are named and refused.
2. The first line, split at tabs, commas, semicolons or bars, holds the user and the item column:
   a table. If it holds a comma, a semicolon or a bar but not these columns: a table whose columns
   have other names, which is an error that lists them.
3. Else fields are split at blanks. All lines of the first MiB have 2 fields: pairs. Some have more,
   their number differs, and none begins with the user of an earlier line: sequences.
4. Anything else cannot be told, and is an error that asks for --layout: users on several lines of 3
   or more fields; a first line of words above lines of numbers; lines that all have the same few
   fields, or that all end in what looks like a time; commas, semicolons or bars in a field.

Whether quotation marks quote fields is told from the whole file (see `dialect`), and rows are
counted against lines. A file that could be read in two ways is refused.

Raw ids come back as given: a column of plain integers as int64, anything else as text ('007' stays
'007'); in Parquet the column's type decides. What cannot be an id: see `raw_ids`. Times are kept in
the source's unit as int64. If some time has a fraction, all are kept as millionths of the unit; ISO
dates and Arrow timestamps count microseconds since 1970 in UTC (nanoseconds if a date needs them).
Sorting uses the times as given.
"""

import contextlib
import dataclasses
import errno
import functools
import gzip
import hashlib
import itertools
import pathlib
import re
import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec import config as config_lib
from jaxrec.data import domains
from jaxrec.data.catalogue import plain
from jaxrec.data.histories import Histories
from jaxrec.data.ragged import ranges
from jaxrec.datasets import dialect, large, log_parts, tabular, text_layouts
from jaxrec.datasets.events import Events
from jaxrec.errors import UserError

READERS = {'sequences': text_layouts.read_sequences, 'pairs': text_layouts.read_pairs}
TRAIN_TEST = 'train-test'
LAYOUTS = ('auto', 'table', *READERS, TRAIN_TEST)
PARQUET = 'Parquet table'
DELIMITERS = {'\t': 'tab', ',': 'comma', ';': 'semicolon', '|': 'bar'}
TIME = r'^([0-9]{9,19}(\.[0-9]+)?|[0-9]{4}-[0-9]{2}-[0-9]{2}.*|[0-9]{2}:[0-9]{2}.*)$'
FEW = 8  # fields of a line of the same number everywhere, which sequences seldom have
SAMPLE = 1 << 20  # bytes looked at to tell the layout
LARGE = 1 << 24  # events of a Parquet log that are read into memory together


def key(config: config_lib.Data, content: str) -> str:
    """Folder name for the prepared log: its stem, and a hash of its content and the options.

    Args:
      config: the options.
      content: hash of config.log, see `log_parts.content_hash`.
    """
    options = [config.layout, config.user_col, config.item_col, config.time_col, config.columns]
    options += [','.join(columns(config)), config.min_user, config.min_item]
    options += [config.domain_col] if config.domain_col else []
    identity = repr([content, *options])
    name = pathlib.Path(config.log).name.split('.')[0]
    stem = re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:40].strip('_') or 'log'
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


def read(config: config_lib.Data, most: int | None = None, words: tuple[str, ...] = ()) -> Events:
    """Reads config.log.

    Args:
      config: says what.
      most: about so many events, the first ones, of a Parquet log; None = all.
      words: those of its features that hold words.

    Raises:
      UserError: a file is missing, empty, truncated, ragged, or not as the options say.
    """
    if config.layout not in LAYOUTS:
        raise UserError(f'--layout={config.layout} is none of {", ".join(LAYOUTS)}')
    paths = log_parts.parts(config.log)
    if config.layout == TRAIN_TEST:
        return _read_train_test(paths, config)
    layouts = [_layout(path, config) for path in paths]
    if len(paths) == 1 and layouts[0][0] in READERS:
        return _read_words(paths[0], layouts[0][0], config)
    names = (config.user_col, config.item_col, config.time_col, columns(config))
    pieces, abouts, kinds = tabular.Pieces(*names, words), [], set()
    for path, (layout, delimiter) in zip(paths, layouts, strict=True):
        if most and pieces.rows >= most:
            break
        with _complaints(path):
            kinds.add(layout)
            if layout in READERS or len(kinds) > 1:
                raise UserError(
                    f'{path} has layout {layout}; several files are one log only if all are '
                    'Parquet, or all delimited text with the named columns'
                )
            if layout == PARQUET:
                tabular.add_parquet(pieces, path, path.name, most)
                schema = tabular.parquet_schema(path)
                said = {'columns': ', '.join(f'{f.name} ({f.type})' for f in schema)}
            else:
                opened = functools.partial(log_parts.open_plain, path)
                header = config.columns.split(',') if config.columns else None
                said = tabular.add_text(
                    pieces, opened, path.name, delimiter=delimiter, columns=header
                )
                said = {'delimiter': DELIMITERS[delimiter], **said}
            abouts.append({'layout': layout, **said})
    events = pieces.events(named(config), text=kinds != {PARQUET})
    events.about = {
        name: ' | '.join(dict.fromkeys(about[name] for about in abouts)) for name in abouts[0]
    }
    return events


def read_domains(config: config_lib.Data) -> Events:
    """`read` with the column config.domain_col as a column of items, see `data.domains`.

    Raises:
      UserError: the column is missing, empty in a row, has one value or very many, or an item is
        in several domains; or what `read` refuses.
    """
    column, name = config.domain_col, named(config)
    if column in columns(config):
        raise UserError(f'--domain_col and --features both name column {column!r}')
    both = ','.join(filter(None, (config.features, column)))
    events = read(dataclasses.replace(config, features=both), words=(column,))
    words = events.words.pop(column)
    missing = np.flatnonzero(words.counts == 0)
    if len(missing):
        raise UserError(f'{name} has no value in column {column!r} of event {missing[0] + 1}')
    row, place = np.repeat(np.arange(len(words.counts)), words.counts), words.counts
    table = np.zeros((len(place), place.max(initial=1)), np.int64)
    table[row, ranges(np.zeros_like(place), place)] = words.coded.codes + 1
    phrases, domain = np.unique(table, axis=0, return_inverse=True)
    text = [str(v.decode() if isinstance(v, bytes) else v) for v in words.coded.values.tolist()]
    names = [' '.join(text[n - 1] for n in phrase if n) for phrase in phrases.tolist()]
    domains.check_names(names, f'{name} ({column!r})')
    items, domain = events.items.codes, domain.reshape(-1)
    first = np.zeros(len(events.items.values), np.int64)
    first[items] = domain
    other = np.flatnonzero(first[items] != domain)
    if len(other):
        item = plain(events.items.values[items[other[0]]])
        count = len(np.unique(items[other]))
        raise UserError(
            f'{name} has item {item!r} in the domains {names[domain[other[0]]]!r} and '
            f'{names[first[items[other[0]]]]!r} ({count:,} such items): ids of different domains '
            'overlap; give every domain ids of its own, such as food:1 and kitchen:1'
        )
    values = np.array([n.encode() for n in names])[first]
    events.item_features[domains.COLUMN] = events.items.values, values
    return events


def _read_words(path: pathlib.Path, layout: str, config: config_lib.Data) -> Events:
    """A log without a header, split at blanks."""
    with _complaints(path), log_parts.open_plain(path) as file:
        if columns(config):
            raise UserError(f'--features needs a table; {path.name} has layout {layout}')
        if _sample(path).startswith(dialect.BOM):
            file.read(len(dialect.BOM))
        events = READERS[layout](file, path.name)
    events.about = {'layout': layout, 'delimiter': 'blanks'}
    return events


def _read_train_test(paths: list[pathlib.Path], config: config_lib.Data) -> Events:
    """A folder of train.txt and test.txt, perhaps valid.txt; other files in it are not read."""
    if columns(config) or config.columns:
        raise UserError(f'--features and --columns need a table, not --layout={TRAIN_TEST}')
    found = {}
    for path in paths:
        part = path.name.removesuffix('.gz').removesuffix('.txt')
        if part in text_layouts.PARTS and part in found:
            raise UserError(f'{found[part]} and {path} are both the {part} part: remove one')
        if part in text_layouts.PARTS:
            found[part] = path
    for part in ('train', 'test'):
        if part not in found:
            raise UserError(
                f'--layout={TRAIN_TEST} reads train.txt and test.txt, and {config.log} has no '
                f'{part}.txt'
            )
    with contextlib.ExitStack() as stack:
        files = {}
        for part, path in found.items():
            stack.enter_context(_complaints(path))
            log_parts.check_text(_sample(path), path.name)
            files[part] = stack.enter_context(log_parts.open_plain(path))
        names = {part: path.name for part, path in found.items()}
        events = text_layouts.read_train_test(files, names)
    events.about = {'layout': TRAIN_TEST, 'delimiter': 'blanks'}
    return events


def read_large(config: config_lib.Data, scratch: pathlib.Path) -> Histories | None:
    """Reads config.log if it is Parquet of more than LARGE events, else None.

    Args:
      config: see `read`.
      scratch: see `large.to_histories`.
    """
    if not is_large(config):
        return None
    paths = log_parts.parts(config.log)
    for path in paths:
        with _complaints(path):
            _check_columns(tabular.parquet_schema(path).names, path.name, config)
    names = {'user_col': config.user_col, 'item_col': config.item_col}
    names |= {'time_col': config.time_col, 'features': columns(config)}
    limits = {'min_user': config.min_user, 'min_item': config.min_item}
    wanted = tabular.Pieces(*names.values()).columns
    batches = functools.partial(tabular.parquet_parts, paths, wanted)
    with _complaints(paths[0] if len(paths) == 1 else pathlib.Path(config.log)):
        return large.to_histories(batches, named(config), scratch, **names, **limits)


def is_large(config: config_lib.Data) -> bool:
    """Whether config.log is Parquet of more than LARGE events."""
    if config.layout not in ('auto', 'table'):
        return False
    rows = 0
    for path in log_parts.parts(config.log):
        with _complaints(path):
            with open(path, 'rb') as file:
                if file.read(4) != log_parts.PARQUET:
                    return False
            rows += tabular.parquet_rows(path)
    return rows > LARGE


def named(config: config_lib.Data) -> str:
    """A log's name, for messages."""
    return pathlib.Path(config.log).name


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


def _sample(path: pathlib.Path) -> bytes:
    with log_parts.open_plain(path) as file:
        return file.read(SAMPLE)


def _first_line(sample: bytes) -> str:
    first = sample.removeprefix(dialect.BOM).lstrip(b'\r\n').split(b'\n', 1)[0]
    return first.decode(errors='replace').rstrip('\r')


def _layout(path: pathlib.Path, config: config_lib.Data) -> tuple[str, str]:
    """Layout of a file, PARQUET or one of LAYOUTS, and the delimiter of a text table."""
    name = path.name
    with _complaints(path):
        sample = _sample(path)
        if sample[:4] == log_parts.PARQUET:
            if config.layout not in ('auto', 'table'):
                raise UserError(f'{name} is a Parquet table; leave out --layout={config.layout}')
            if log_parts.is_gzip(path):
                raise UserError(f"{name} is a gzip'd Parquet file; unzip it first")
            if config.columns:
                raise UserError(f'{name} is a Parquet table, which has column names: no --columns')
            _check_columns(tabular.parquet_schema(path).names, name, config)
            return PARQUET, ''
        log_parts.check_text(sample, name)
        dialect.check_returns(sample, name)
        return _layout_of_text(sample, name, config)


def _layout_of_text(sample: bytes, name: str, config: config_lib.Data) -> tuple[str, str]:
    first = _first_line(sample)
    if config.layout in READERS:
        if config.columns:
            raise UserError(f'--columns goes with a table, not --layout={config.layout}')
        return config.layout, ''
    if config.columns:
        return 'table', _delimiter_without_header(first, name, config)
    headers = {d: tabular.header_fields(first, d) for d in tabular.DELIMITERS}
    for delimiter, header in headers.items():
        if config.user_col in header and config.item_col in header:
            _check_columns(header, name, config)
            return 'table', delimiter
    best = max(headers, key=lambda d: len(headers[d]))
    if config.layout == 'table' or any(len(headers[d]) > 1 for d in ',;|'):
        _check_columns(headers[best], name, config)
    return _text_layout(sample, first, name, config), ''


def _delimiter_without_header(first: str, name: str, config: config_lib.Data) -> str:
    """The one that splits the first line into as many fields as --columns has names."""
    named = config.columns.split(',')
    _check_columns(named, '--columns', config)
    for delimiter in tabular.DELIMITERS:
        fields = tabular.header_fields(first, delimiter)
        if len(fields) == len(named):
            if set(fields) & {config.user_col, config.item_col, config.time_col} - {''}:
                raise UserError(f'{name} has a header line ({first}); leave out --columns')
            return delimiter
    raise UserError(
        f'the first line of {name}, {first[:80]!r}, does not split at tabs, commas, semicolons or '
        f'bars into the {len(named)} fields of --columns'
    )


def _text_layout(sample: bytes, first: str, name: str, config: config_lib.Data) -> str:
    if len(sample) == SAMPLE:
        sample = sample[: sample.rfind(b'\n') + 1] or sample
    block = text_layouts.split_words(sample.removeprefix(dialect.BOM))
    counts = block.counts[block.counts > 0]
    starts = counts.cumsum() - counts
    ask = 'say which it is with --layout=table, sequences or pairs'
    columns_ask = f'if it is a table, name its columns (--columns=user,item,timestamp), or {ask}'
    cannot = f'cannot tell the layout of {name}:'
    integer = re.compile(r'-?\d+$')
    below = block.words[int(counts[0]) :][:1000].to_pylist()
    if below and all(integer.match(w.decode(errors='replace')) for w in below):
        if not any(integer.match(w) for w in first.split()):
            if '\t' in first:
                _check_columns(tabular.header_fields(first, '\t'), name, config)
            raise UserError(
                f'{cannot} its first line looks like a header, but the columns of a table are '
                f'split at tabs or commas; {ask}'
            )
    split = np.flatnonzero(np.asarray(pc.match_substring_regex(block.words, '[,;|]')))
    if len(split):
        word = block.words[int(split[0])].as_py().decode(errors='replace')
        raise UserError(
            f'{cannot} no header line names the columns {config.user_col!r} and '
            f'{config.item_col!r}, and {word[:40]!r} holds a delimiter; {columns_ask}'
        )
    if (counts == 2).all():
        return 'pairs'
    if (counts < 2).any():
        line = int((block.counts == 1).argmax()) + 1
        raise UserError(f'{cannot} line {line} has a single field; {ask}')
    if len(counts) > 1 and (counts == counts[0]).all() and counts[0] <= FEW:
        raise UserError(f'{cannot} all its lines have {counts[0]} fields; {columns_ask}')
    second, last = (block.words.take(pa.array(at)) for at in (starts + 1, starts + counts - 1))
    if _all_times(last) and not _all_times(second):
        raise UserError(f'{cannot} all its lines end in what looks like a time; {columns_ask}')
    users = block.words.take(pa.array(starts))
    if len(users.unique()) == len(users):
        return 'sequences'
    raise UserError(
        f'{cannot} lines of {counts.max()} fields share their first field and no header line names '
        f'the columns {config.user_col!r} and {config.item_col!r}; {columns_ask}'
    )


def _all_times(words: pa.Array) -> bool:
    """Whether all could be seconds (or less) since 1970, or ISO dates."""
    return pc.all(pc.match_substring_regex(words, TIME)).as_py()


def _check_columns(header: list[str], name: str, config: config_lib.Data) -> None:
    wanted = [('user_col', config.user_col), ('item_col', config.item_col)]
    if config.time_col:
        wanted.append(('time_col', config.time_col))
    for (flag, column), (other, same) in itertools.combinations(wanted, 2):
        if column == same:
            raise UserError(f'--{flag} and --{other} both name column {column!r}')
    wanted += [('features', c) for c in columns(config)]
    there = ', '.join(repr(column) for column in header[:30])
    for flag, column in wanted:
        if column not in header and any(field.strip().isdigit() for field in header):
            raise UserError(
                f'{name} has no header line: its first line is {there}; name all its columns with '
                '--columns, e.g. --columns=user,item,timestamp'
            )
        if column not in header:
            hint = f'name it with --{flag}=COLUMN'
            if column in [field.strip() for field in header]:
                hint = f'blanks are part of a name: remove them from the file, or {hint}'
            if flag == 'time_col':
                hint += ', or give --time_col= if the file is in time order'
            raise UserError(f'{name} has no column {column!r}; it has {there}; {hint}')
        if header.count(column) > 1:
            raise UserError(f'{name} has {header.count(column)} columns called {column!r}')
