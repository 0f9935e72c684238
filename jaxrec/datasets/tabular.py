"""Tables with named columns (CSV, TSV, Parquet) read in batches: no Python object per event."""

import csv
import io
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from jaxrec.datasets import dialect, raw_ids
from jaxrec.datasets.events import Events, Words
from jaxrec.errors import UserError

DELIMITERS = ('\t', ',', ';', '|')
BATCH = 1 << 20  # rows of a Parquet batch
BLOCK = 1 << 24  # bytes of a text block
ID_TYPE = pa.dictionary(pa.int32(), pa.string())
NOT_A_TIME = [raw_ids.LEAST]  # what a missing date turns into as an integer, in ns, us, ms and s
NOT_A_TIME += [sign for k in (3, 6, 9) for sign in (-(2**63 // 10**k), -(2**63 // 10**k) - 1)]


def header_fields(line: str, delimiter: str) -> list[str]:
    """Column names in a header line, quotes understood; [] if the line can be none."""
    try:
        return next(csv.reader(io.StringIO(line), delimiter=delimiter), [])
    except csv.Error:  # e.g. a long history, which has no delimiter within 128 KiB
        return []


class Pieces:
    """The wanted columns of a table, or of several parts of one, taken in piece by piece.

    Args:
      user_col: column of the user ids.
      item_col: column of the item ids.
      time_col: column of the times, '' for none.
      features: columns to keep.
      words: those of `features` that hold words, or several each; the others are numeric.
    """

    def __init__(
        self,
        user_col: str,
        item_col: str,
        time_col: str = '',
        features: tuple[str, ...] = (),
        words: tuple[str, ...] = (),
    ):
        self._ids = {user_col: [], item_col: []}
        self._numbers = {column: [] for column in ([time_col] if time_col else [])}
        self._features = {column: [] for column in features if column not in words}
        self._words = {column: [] for column in words}
        self.user_col, self.item_col, self.time_col = user_col, item_col, time_col
        self.rows = 0

    @property
    def columns(self) -> list[str]:
        """Names of the wanted columns, each once."""
        kept = (self._ids, self._numbers, self._features, self._words)
        return list(dict.fromkeys(column for pieces in kept for column in pieces))

    def add(self, batches: Iterable[pa.RecordBatch], name: str) -> None:
        """Takes in the pieces of a file called `name`; UserError on the first row at fault."""
        row = 1
        for batch in batches:
            ids = {c: checked_ids(batch, c, name, row) for c in self._ids}
            _refuse_header(ids, name, row)
            for column, piece in ids.items():
                self._ids[column].append(piece)
            for kept, dates in ((self._numbers, True), (self._features, False)):
                for column, pieces in kept.items():
                    pieces.append(numbers(batch.column(column), column, name, row, dates=dates))
            for column, pieces in self._words.items():
                pieces.append(words(batch.column(column), column, name, row))
            row += len(batch)
        self.rows += row - 1

    def like(self) -> 'Pieces':
        """An empty object for the same columns."""
        features = (*self._features, *self._words)
        return Pieces(self.user_col, self.item_col, self.time_col, features, tuple(self._words))

    def extend(self, other: 'Pieces') -> None:
        """Takes in all of another object for the same columns."""
        for mine, its in (
            (self._ids, other._ids),
            (self._numbers, other._numbers),
            (self._features, other._features),
            (self._words, other._words),
        ):
            for column, pieces in mine.items():
                pieces += its[column]
        self.rows += other.rows

    def events(self, name: str, *, text: bool) -> Events:
        """All of it; `text` says that the ids come from text, where integers are to be found."""
        times = [_join(pieces, column, name) for column, pieces in self._numbers.items()]
        return Events(
            *(_encode(pieces, column, name, text) for column, pieces in self._ids.items()),
            times[0] if times else None,
            {column: _join(pieces, column, name) for column, pieces in self._features.items()},
            words={
                column: Words(
                    np.concatenate([counts for counts, _ in pieces] or [np.zeros(0, np.int64)]),
                    _encode([coded for _, coded in pieces], column, name, text),
                )
                for column, pieces in self._words.items()
            },
        )


def _encode(pieces, column, name, text):
    with raw_ids.naming(column, name):
        return raw_ids.encode(pieces, text=text)


def checked_ids(batch: pa.RecordBatch, col: str, name: str, row: int) -> pa.DictionaryArray:
    """An id column of a piece whose first row has number `row`, see `raw_ids.checked`."""
    return raw_ids.checked(batch.column(col), col, name, lambda at: f'row {row + at}')


def _refuse_header(ids: dict[str, pa.DictionaryArray], name: str, row: int) -> None:
    """UserError on a row that repeats the header, as where files were put together."""
    same = None
    for column, piece in ids.items():
        if not pa.types.is_large_string(piece.type.value_type):
            return
        code = pc.index(piece.dictionary, pa.scalar(column, pa.large_string())).as_py()
        if code < 0:
            return
        here = pc.equal(piece.indices, code)
        same = here if same is None else pc.and_(same, here)
    first = pc.index(same, True).as_py()
    if first >= 0:
        raise UserError(f'{name} row {row + first} is the header line again; remove it')


def csv_batches(
    file: BinaryIO, wanted: Pieces, *, names: list[str], delimiter: str, quoted: bool
) -> Iterator[pa.RecordBatch]:
    """The wanted columns of delimited text, piece by piece.

    Args:
      file: the rows, decompressed, without a header line.
      wanted: says which columns.
      names: of all columns.
      delimiter: one character.
      quoted: whether quotation marks quote fields, else they are letters.
    """
    types = dict.fromkeys(wanted.columns, pa.string())
    types |= dict.fromkeys((wanted.user_col, wanted.item_col), ID_TYPE)
    try:
        yield from pa.csv.open_csv(
            file,
            read_options=pa.csv.ReadOptions(block_size=BLOCK, column_names=names),
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=types,
                include_columns=wanted.columns,
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as e:
        if 'Empty CSV file' not in str(e):
            raise


def add_text(
    wanted: Pieces,
    opened: Callable[[], BinaryIO],
    name: str,
    *,
    delimiter: str,
    columns: list[str] | None = None,
) -> dict[str, str]:
    """Adds a file of delimited text to `wanted`, written as its bytes say (see `dialect`).

    Args:
      wanted: which columns, and what is to be filled.
      opened: opens the file, decompressed, each time it is called.
      name: the file's name, for messages.
      delimiter: one character.
      columns: names of all columns of a file without a header line; None = it has one.

    Returns:
      What the text is like, for people: {'quotes': .., 'line ends': .., 'columns': ..}.

    Raises:
      UserError: a row does not parse; its row number (the first below the header is 1) is given.
    """
    names, above = columns, 0
    with opened() as file:
        while not names and (line := file.readline()):
            names, above = header_fields(_decoded(line), delimiter), above + 1
        if above and file.read(len(dialect.BOM)) == dialect.BOM:
            raise UserError(f'{name} has a byte order mark below its header line; remove it')

    def rows():
        file = opened()
        for _ in range(above):
            file.readline()
        return file

    def read(quoted):
        pieces = wanted.like()
        with rows() as file:
            watched = dialect.Watched(file)
            options = {'names': names, 'delimiter': delimiter, 'quoted': quoted}
            try:
                pieces.add(csv_batches(watched, pieces, **options), name)
            except (UserError, pa.ArrowException) as e:
                return None, watched, e
        return pieces, watched, None

    def surveyed():
        with rows() as file:
            return dialect.survey(file, delimiter, len(names), above + 1)

    pieces, watched, error = read(quoted=False)
    found, quotes = None, 'none'
    if watched.marks:
        found, quotes = surveyed(), 'are letters'
        if dialect.has_quotes(found, name):
            quotes = 'around fields'
            if found.mixed and not found.inside:
                with rows() as file:
                    _check_one_spelling(file, wanted, name, names, delimiter)
            pieces, watched, error = read(quoted=True)
    elif watched.returns:
        raise UserError(f'{name} {dialect.CARRIAGE}')
    if error:
        raise error
    lines = watched.lines
    if found or pieces.rows != lines:  # some of which may be empty
        found = found or surveyed()
        lines = found.records if quotes == 'around fields' else found.lines
    if pieces.rows != lines:
        raise UserError(
            f'{name} has {lines} rows and {pieces.rows} were read; look for strange line ends or '
            'quotation marks'
        )
    wanted.extend(pieces)
    ends = 'CR LF' if watched.carriages else 'LF'
    return {'quotes': quotes, 'line ends': ends, 'columns': ', '.join(names)}


def _decoded(line: bytes) -> str:
    return line.removeprefix(dialect.BOM).decode(errors='replace').rstrip('\r\n')


def _check_one_spelling(file, wanted, name, names, delimiter) -> None:
    """UserError if quoted text holds an id both with and without marks: it may be two ids."""
    only = Pieces(wanted.user_col, wanted.item_col)
    values = {column: [] for column in only.columns}
    for batch in csv_batches(file, only, names=names, delimiter=delimiter, quoted=False):
        for column, pieces in values.items():
            pieces.append(batch.column(column))
    for column, pieces in values.items():
        raw = set(pa.chunked_array(pieces, ID_TYPE).unique().to_pylist()) if pieces else set()
        for one in raw:
            if len(one) > 1 and one[0] == one[-1] == '"' and one[1:-1].replace('""', '"') in raw:
                raise UserError(
                    f'column {column!r} of {name} holds {one} both with and without quotation '
                    'marks, which may be one id or two; write all with or all without'
                )


def add_parquet(wanted: Pieces, path: pathlib.Path, name: str, most: int | None = None) -> None:
    """Adds a Parquet file to `wanted`; ids keep the column's type (integers or text).

    Args:
      wanted: what is to be filled.
      path: of the file.
      name: of the file, for messages.
      most: stops when `wanted` would hold more rows; None = never.
    """
    pieces = parquet_batches(path, wanted.columns)
    if most is not None:
        pieces = itertools.islice(pieces, max(1, (most - wanted.rows) // BATCH))
    wanted.add(pieces, name)


def parquet_batches(path: pathlib.Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The columns of a Parquet file, piece by piece."""
    with pa.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BATCH, columns=list(dict.fromkeys(columns)))


def parquet_parts(
    paths: list[pathlib.Path], columns: list[str]
) -> Iterator[tuple[str, int, pa.RecordBatch]]:
    """Pieces that are not empty of several Parquet files: file name, number of first row, piece."""
    for path in paths:
        row = 1
        for batch in parquet_batches(path, columns):
            if len(batch):
                yield path.name, row, batch
            row += len(batch)


def parquet_rows(path: pathlib.Path) -> int:
    """Number of rows of a Parquet file."""
    with pa.parquet.ParquetFile(path) as file:
        return file.metadata.num_rows


def category(column: pa.ChunkedArray) -> np.ndarray:
    """int32, 0, 1, .. by the values' order; -1 = missing."""
    values = pc.unique(column.drop_null()).sort()
    return pc.fill_null(pc.index_in(column, values), -1).to_numpy().astype(np.int32)


def number(column: pa.ChunkedArray) -> np.ndarray:
    """float32, NaN = missing."""
    return pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy().astype(np.float32)


def parquet_schema(path: pathlib.Path) -> pa.Schema:
    """Columns and their types of a Parquet file."""
    with pa.parquet.ParquetFile(path) as file:
        return file.schema_arrow


def numbers(column: pa.Array, col: str, name: str, row: int, *, dates: bool) -> np.ndarray:
    """A piece of a numeric column: int64, float64, or datetime64 where `dates` allows it.

    A feature that is missing (null, empty or NaN) is NaN; a time must be there.

    Raises:
      UserError: a value is infinite, no number, or (of a time) missing or rounded by its type; the
        row is named.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if raw_ids.is_text(kind):
        column = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
        if pc.any(pc.equal(column, '')).as_py():
            column = pc.if_else(pc.equal(column, ''), None, column)
    if column.null_count:
        there = pc.is_valid(column)
        if dates:
            row += pc.index(there, False).as_py()
            raise UserError(f'{name} row {row} has no value in column {col!r}; {raw_ids.REMOVE}')
        found = numbers(column.drop_null(), col, name, row, dates=False)
        if found.dtype.kind == 'i':
            check_mixable(np.abs(found).max(initial=0), col, name)
        values = np.full(len(column), np.nan)
        values[np.asarray(there)] = found
        return values
    if raw_ids.is_text(kind):
        values = _parse(column, col, name, row, dates)
    elif dates and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        unit = 'ns' if pa.types.is_timestamp(kind) and kind.unit == 'ns' else 'us'
        values = column.cast(pa.timestamp(unit)).to_numpy(zero_copy_only=False)
    elif pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= 0):
        try:
            values = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as e:
            raise UserError(f'column {col!r} of {name} holds integers beyond 64 bits') from e
    elif pa.types.is_boolean(kind) and not dates:
        values = column.cast(pa.int8()).to_numpy(zero_copy_only=False).astype(np.int64)
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = _finite(column.cast(pa.float64()), column, col, name, row, dates)
        if dates and pa.types.is_floating(kind):
            _check_exact(values, raw_ids.exact(kind), f'{kind} column', col, name, row)
    else:
        raise UserError(f'column {col!r} of {name} is of type {kind}; it must be numeric')
    if dates and values.dtype.kind == 'i' and values.min(initial=0) <= max(NOT_A_TIME):
        missing = np.isin(values, NOT_A_TIME)
        if missing.any():
            at = int(missing.argmax())
            raise UserError(
                f'{name} row {row + at}: {values[at]} in column {col!r} is what a missing time '
                f'turns into, not a time; {raw_ids.REMOVE}'
            )
    return values


def words(column: pa.Array, col: str, name: str, row: int) -> tuple[np.ndarray, pa.DictionaryArray]:
    """A piece of a column of words: how many each row has, and all of them, one after the other.

    A list has as many as it is long, text as many as blanks part it into, a number is one; a row
    without a value (null, empty, blank, NaN) has none.

    Raises:
      UserError: a word that cannot be an id (see `raw_ids`), one that stands for a missing one
        above all; the row is named.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if raw_ids.is_text(kind):
        column = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column.cast(pa.large_string())))
    elif not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        there = pc.fill_null(pc.is_valid(column), False)
        if pa.types.is_floating(kind):
            there = pc.and_(there, pc.invert(pc.fill_null(pc.is_nan(column), True)))
        counts = np.asarray(there).astype(np.int64)
        return counts, _checked_words(column.filter(there), counts, col, name, row)
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    flat = pc.list_flatten(column)
    if raw_ids.is_text(flat.type):
        owner = np.repeat(np.arange(len(counts)), counts)
        kept = pc.not_equal(pc.utf8_trim_whitespace(flat.cast(pa.large_string())), '')
        kept = np.asarray(pc.fill_null(kept, False))
        flat, counts = flat.filter(pa.array(kept)), np.bincount(owner[kept], minlength=len(counts))
    return counts, _checked_words(flat, counts, col, name, row)


def _checked_words(flat, counts, col, name, row):
    owner = np.repeat(np.arange(len(counts)), counts)
    return raw_ids.checked(flat, col, name, lambda at: f'row {row + owner[at]}')


def _check_exact(values, limit, where, col, name, row) -> None:
    large = np.abs(values) >= limit
    if large.any():
        at = int(large.argmax())
        raise UserError(
            f'{name} row {row + at}: {values[at]:.17g} in column {col!r} is too large for a '
            f'{where}, which holds whole numbers up to {limit} exactly; write integers'
        )


def _parse(column: pa.Array, col: str, name: str, row: int, dates: bool) -> np.ndarray:
    if not _has_hexadecimal(column):
        try:
            return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            pass
        try:
            values = _finite(column.cast(pa.float64()), column, col, name, row, dates)
            if dates or _has_long_integer(column):
                _check_exact(values, 2**53, 'number with fractions', col, name, row)
            return values
        except pa.ArrowInvalid:
            pass
    if dates:
        for unit in ('us', 'ns'):
            for zone in (None, 'UTC'):
                try:
                    dated = column.cast(pa.timestamp(unit, zone))
                    return dated.cast(pa.timestamp(unit)).to_numpy(zero_copy_only=False)
                except pa.ArrowInvalid:
                    continue
    at, value = _first_bad(column, dates)
    if dates and _is_date(column[0].as_py()) and _is_date(value):
        raise UserError(
            f'{name} row {row + at}: {value!r} in column {col!r}, others such as '
            f'{column[0].as_py()!r}: some have a time zone and some have none; write all alike'
        )
    what = 'a number or an ISO date' if dates else 'a number'
    hint = 'name another column with --time_col' if dates else 'leave it out of --features'
    raise UserError(
        f'{name} row {row + at}: {value!r} in column {col!r} is not {what}; mend the row or {hint}'
    )


def _has_hexadecimal(column: pa.Array) -> bool:
    """Whether some text is like 0x10, which Arrow takes for the number 16."""
    letters = column.buffers()[2]
    if letters is None or not any(x in letters.to_pybytes() for x in (b'x', b'X')):  # fast
        return False
    return pc.any(pc.match_substring(column, 'x', ignore_case=True)).as_py()


def _has_long_integer(column: pa.Array) -> bool:
    """Whether some number is written as an integer beyond 64 bits."""
    return pc.any(pc.match_substring_regex(column, r'^[+-]?[0-9]{19,}$')).as_py()


def _is_date(value: str) -> bool:
    one = pa.array([value], pa.string())
    return any(_casts(one, pa.timestamp('ns', zone)) for zone in (None, 'UTC'))


def _first_bad(column: pa.Array, dates: bool) -> tuple[int, str]:
    """The first value that does not parse like the first one of the column."""
    for kind in [pa.float64()] + [pa.timestamp('ns', z) for z in (None, 'UTC') if dates]:
        if _casts(column[:1], kind):
            low, high = 1, len(column)  # column[:low] parses, column[:high] does not
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _casts(column[:middle], kind) else (low, middle)
            return low, column[low].as_py()
    return 0, column[0].as_py()


def _casts(column: pa.Array, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _finite(
    values: pa.Array, column: pa.Array, col: str, name: str, row: int, dates: bool
) -> np.ndarray:
    values = values.to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~np.isfinite(values) if dates else np.isinf(values))
    if len(bad):
        raise UserError(
            f'{name} row {row + bad[0]}: {column[int(bad[0])].as_py()!r} in column {col!r} is not '
            'a finite number'
        )
    return values


def mixed(col: str, name: str) -> UserError:
    """The complaint about a column of two kinds."""
    return UserError(f'column {col!r} of {name} holds both numbers and dates')


def check_mixable(most: float, col: str, name: str) -> None:
    """UserError if an integer as large as `most` cannot stand beside numbers with fractions."""
    if most >= 2**53:
        raise UserError(
            f'column {col!r} of {name} holds fractions and integers beyond {2**53}, which cannot '
            'be kept exactly in one column; write integers'
        )


def _join(chunks: list[np.ndarray], col: str, name: str) -> np.ndarray:
    """One column: int64 if every value is whole, else float64; dates become integers.

    Dates count microseconds since 1970 (UTC), or nanoseconds if some date needs them.
    """
    if not chunks:
        return np.zeros(0, np.int64)
    kinds = {c.dtype.kind for c in chunks}
    if {'M'} < kinds:
        raise mixed(col, name)
    if {'i', 'f'} <= kinds:
        whole = [np.abs(c).max(initial=0) for c in chunks if c.dtype.kind == 'i']
        check_mixable(max(whole), col, name)
    column = np.concatenate(chunks)
    if column.dtype.kind == 'M':
        fine = column.astype('datetime64[us]')
        column = fine if (fine == column).all() else column
        return column.astype(np.int64)
    if column.dtype.kind == 'f' and np.abs(column).max() < 2**53 and (column % 1 == 0).all():
        return column.astype(np.int64)
    return column
