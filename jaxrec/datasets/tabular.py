"""Tables with named columns (CSV, TSV, Parquet) read in batches: no Python object per event."""

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from jaxrec.datasets.events import Events, encode
from jaxrec.errors import UserError

DELIMITERS = ('\t', ',', ';', '|')
BATCH = 1 << 20  # rows of a Parquet batch
BLOCK = 1 << 24  # bytes of a text block
ID_TYPE = pa.dictionary(pa.int32(), pa.string())


def header_fields(line: str, delimiter: str) -> list[str]:
    """Column names in a header line, quotes understood; [] if the line can be none."""
    try:
        return next(csv.reader(io.StringIO(line), delimiter=delimiter), [])
    except csv.Error:  # e.g. a long history, which has no delimiter within 128 KiB
        return []


def read_csv(
    file: BinaryIO,
    name: str,
    *,
    delimiter: str,
    user_col: str,
    item_col: str,
    time_col: str = '',
    features: tuple[str, ...] = (),
    columns: list[str] | None = None,
) -> Events:
    """Reads delimited text.

    Args:
      file: the text, decompressed.
      name: file name, for messages.
      delimiter: one character.
      user_col: column of the user ids.
      item_col: column of the item ids.
      time_col: column of the times, '' for none.
      features: numeric columns to keep.
      columns: names of all columns of a file without a header line; None = it has one.

    Raises:
      UserError: a row does not parse; its row number (the first below the header is 1) is given.
    """
    text = dict.fromkeys((*features, *([time_col] if time_col else [])), pa.string())
    types = {user_col: ID_TYPE, item_col: ID_TYPE}
    reader = pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(block_size=BLOCK, column_names=columns),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types={**text, **types},
            include_columns=[user_col, item_col, *text],
            strings_can_be_null=False,
        ),
    )
    return _collect(reader, name, user_col, item_col, time_col, features, text=True)


def read_parquet(
    path: str,
    name: str,
    *,
    user_col: str,
    item_col: str,
    time_col: str = '',
    features: tuple[str, ...] = (),
) -> Events:
    """Reads a Parquet file; ids keep the column's type (integers or text). See `read_csv`."""
    columns = [user_col, item_col, *features, *([time_col] if time_col else [])]
    batches = parquet_batches(path, columns)
    return _collect(batches, name, user_col, item_col, time_col, features, text=False)


def parquet_batches(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The columns of a Parquet file, piece by piece."""
    with pa.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BATCH, columns=list(dict.fromkeys(columns)))


def parquet_rows(path: str) -> int:
    """Number of rows of a Parquet file."""
    with pa.parquet.ParquetFile(path) as file:
        return file.metadata.num_rows


def parquet_columns(path: str) -> list[str]:
    """Column names of a Parquet file."""
    with pa.parquet.ParquetFile(path) as file:
        return file.schema_arrow.names


def _collect(
    batches: Iterator[pa.RecordBatch], name, user_col, item_col, time_col, features, text
) -> Events:
    users, items, times = [], [], []
    columns = {feature: [] for feature in features}
    row = 1
    for batch in batches:
        users.append(ids(batch.column(user_col), user_col, name, row))
        items.append(ids(batch.column(item_col), item_col, name, row))
        if time_col:
            times.append(numbers(batch.column(time_col), time_col, name, row, dates=True))
        for feature, chunks in columns.items():
            chunks.append(numbers(batch.column(feature), feature, name, row, dates=False))
        row += len(batch)
    return Events(
        encode(users, text=text),
        encode(items, text=text),
        _join(times, time_col, name) if time_col else None,
        {feature: _join(chunks, feature, name) for feature, chunks in columns.items()},
    )


def ids(column: pa.Array, col: str, name: str, row: int) -> pa.Array:
    """Dictionary-encoded ids; raises UserError on a missing one."""
    column = column.dictionary_encode()
    missing = pc.is_null(column)
    if pa.types.is_string(column.type.value_type):
        empty = pc.index(column.dictionary, '').as_py()
        if empty >= 0:
            missing = pc.or_(missing, pc.fill_null(pc.equal(column.indices, empty), True))
    first = pc.index(missing, True).as_py()
    if first >= 0:
        raise UserError(f'{name} row {row + first} has no id in column {col!r}; remove such rows')
    return column


def numbers(column: pa.Array, col: str, name: str, row: int, *, dates: bool) -> np.ndarray:
    """A piece of a numeric column: int64, float64, or datetime64 where `dates` allows it."""
    if column.null_count:
        row += pc.index(pc.is_null(column), True).as_py()
        raise UserError(f'{name} row {row} has no value in column {col!r}')
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _parse(column, col, name, row, dates)
    if dates and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        unit = 'ns' if pa.types.is_timestamp(kind) and kind.unit == 'ns' else 'us'
        return column.cast(pa.timestamp(unit)).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind):
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if pa.types.is_boolean(kind):
        return column.cast(pa.int8()).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _finite(column.cast(pa.float64()), column, col, name, row)
    raise UserError(f'column {col!r} of {name} is of type {kind}; it must be numeric')


def _parse(column: pa.Array, col: str, name: str, row: int, dates: bool) -> np.ndarray:
    column = pc.utf8_trim_whitespace(column)
    try:
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        pass
    try:
        return _finite(column.cast(pa.float64()), column, col, name, row)
    except pa.ArrowInvalid:
        pass
    if dates:
        for unit in ('us', 'ns'):
            for zone in (None, 'UTC'):
                try:
                    column = column.cast(pa.timestamp(unit, zone))
                    return column.cast(pa.timestamp(unit)).to_numpy(zero_copy_only=False)
                except pa.ArrowInvalid:
                    continue
    at, value = _first_bad(column, dates)
    what = 'a number or an ISO date' if dates else 'a number'
    hint = 'name another column with --time_col' if dates else 'leave it out of --features'
    raise UserError(
        f'{name} row {row + at}: {value!r} in column {col!r} is not {what}; mend the row or {hint}'
    )


def _first_bad(column: pa.Array, dates: bool) -> tuple[int, str]:
    """The first value that does not parse like the first one of the column."""
    tests = [pa.float64()]
    if dates:
        tests += [pa.timestamp('ns'), pa.timestamp('ns', 'UTC')]
    for kind in tests:
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


def _finite(values: pa.Array, column: pa.Array, col: str, name: str, row: int) -> np.ndarray:
    values = values.to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(
            f'{name} row {row + bad[0]}: {column[int(bad[0])].as_py()!r} in column {col!r} is not '
            'a finite number'
        )
    return values


def mixed(col: str, name: str) -> UserError:
    """The complaint about a column of two kinds."""
    return UserError(f'column {col!r} of {name} holds both numbers and dates')


def _join(chunks: list[np.ndarray], col: str, name: str) -> np.ndarray:
    """One column: int64 if every value is whole, else float64; dates become integers.

    Dates count microseconds since 1970 (UTC), or nanoseconds if some date needs them.
    """
    if not chunks:
        return np.zeros(0, np.int64)
    if {'M'} < {c.dtype.kind for c in chunks}:
        raise mixed(col, name)
    column = np.concatenate(chunks)
    if column.dtype.kind == 'M':
        fine = column.astype('datetime64[us]')
        column = fine if (fine == column).all() else column
        return column.astype(np.int64)
    if column.dtype.kind == 'f' and np.abs(column).max() < 2**53 and (column % 1 == 0).all():
        return column.astype(np.int64)
    return column
