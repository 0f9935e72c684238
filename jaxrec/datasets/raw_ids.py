"""Raw ids of users and items: one checked way from every column type to int64 or text.

Accepted are integers and text in every form that Arrow has for them (dictionaries, large and view
types, binary, decimals without fraction, floats with whole values that a float holds exactly).
Refused, with the row, are ids that are missing (null, empty, blank, or a word that stands for
missing: MISSING), that a number type has rounded, and that could not be printed on one line and
named again: control characters, line ends, byte order marks, bytes that are not UTF-8, more than
LONGEST bytes.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.errors import UserError

LONGEST = 512  # bytes; ids are kept in a fixed-width column, so one huge id would swell it
MISSING = ('nan', 'NaN', 'NAN', 'null', 'NULL', 'Null', 'none', 'None', 'NONE', 'NaT')
MISSING += ('<NA>', '<null>', '#N/A', r'\N')  # what exports write for a missing value
UNPRINTABLE = '[\\x00-\\x1f\\x7f-\\x{9f}\\x{2028}\\x{2029}\\x{feff}]'
INTEGER = r'^(0|-?[1-9][0-9]{0,17})$'  # '007', '+7' and '-0' are not integers: they stay text
ROUNDED = r'^[+-]?[0-9](\.[0-9]+)?[eE]\+?(1[5-9]|[2-9][0-9])$'  # a large integer, once a float
NUMBER = r'^[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?$'
AS_TEXT = 'store ids as text'
REMOVE = 'remove such rows'
LEAST = -(2**63)  # what a missing integer turns into

Where = Callable[[int], str]


@dataclasses.dataclass
class Coded:
    """A column of raw ids: row n has the id values[codes[n]].

    Attributes:
      codes: int32 [N].
      values: [V] distinct raw ids in any order, int64 or utf-8 bytes ('S').
    """

    codes: np.ndarray
    values: np.ndarray


def checked(column: pa.Array, col: str, name: str, where: Where) -> pa.DictionaryArray:
    """A piece of an id column, with int32 codes of distinct int64 or large_string values.

    Args:
      column: of any type.
      col: the column's name, for messages.
      name: the file's name, for messages.
      where: says for messages where in the file number n of the piece is, such as 'row 7'.

    Raises:
      UserError: see the top of this file.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if column.null_count or pa.types.is_dictionary(column.type):
        _refuse(_nulls(column), 'has no id', col, name, where)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = _whole(_decoded(column), col, name, where)
    elif pa.types.is_integer(kind):
        column = _decoded(column)
        if pa.types.is_uint64(kind):
            large = pc.greater(column, pa.scalar(2**63 - 1, pa.uint64()))
            _refuse(large, 'has an id beyond 64-bit signed integers', col, name, where, AS_TEXT)
        column = column.cast(pa.int64())
    elif not is_text(kind):
        raise UserError(f'column {col!r} of {name} is of type {kind}; ids are integers or text')
    if pa.types.is_integer(column.type) and pc.min(column).as_py() == LEAST:
        _refuse(pc.equal(column, LEAST), f'has the id {LEAST}, no id,', col, name, where)
    column = column.dictionary_encode()
    values = column.dictionary
    if values.null_count:
        column = _decoded(column).dictionary_encode()
        values = column.dictionary
    if not pa.types.is_integer(values.type):
        values = _text(values, column.indices, col, name, where)
    return pa.DictionaryArray.from_arrays(column.indices.cast(pa.int32()), values)


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, as such or as bytes."""
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary)
    tests += (types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _nulls(column: pa.Array) -> pa.Array:
    """Which rows are null, in a dictionary also by their value."""
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        column = column.dictionary_decode()
    return pc.is_null(column)


def exact(kind: pa.DataType) -> int:
    """Up to which number a floating type holds every integer."""
    return 1 << {16: 11, 32: 24, 64: 53}[kind.bit_width]


def _whole(column: pa.Array, col: str, name: str, where: Where) -> pa.Array:
    """Floats or decimals as int64."""
    if pa.types.is_floating(column.type):
        limit = exact(column.type)
        values = column.to_numpy(zero_copy_only=False).astype(np.float64)
        _refuse(np.isnan(values), 'has no id', col, name, where)
        what = f'has an id beyond {limit}, up to which {column.type} holds integers exactly,'
        _refuse(np.abs(values) >= limit, what, col, name, where, 'store ids as integers')
        _refuse(values % 1 != 0, 'has a fraction as its id', col, name, where, AS_TEXT)
        return pa.array(values.astype(np.int64))
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as e:
        raise UserError(
            f'column {col!r} of {name} is of type {column.type} and holds fractions or numbers '
            f'beyond 64-bit integers; {AS_TEXT}'
        ) from e


def _text(values: pa.Array, codes: pa.Array, col: str, name: str, where: Where) -> pa.Array:
    """Distinct text ids as large_string."""
    try:
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            values = values.cast(pa.large_binary())
        values = values.cast(pa.large_string())
    except pa.ArrowInvalid as e:
        raise UserError(
            f'column {col!r} of {name} holds bytes that are not UTF-8 text; convert it, e.g. with '
            'iconv'
        ) from e

    def refuse(bad, what, advice=REMOVE):
        at = pc.index(bad, True).as_py()
        if at >= 0:
            first = where(pc.index(codes, pa.scalar(at, codes.type)).as_py())
            shown = repr(values[at].as_py()[:60])
            raise UserError(f'{name} {first} {what.format(shown)} in column {col!r}; {advice}')

    stripped = pc.utf8_trim_whitespace(values)
    refuse(pc.equal(stripped, ''), 'has no id')
    refuse(
        pc.is_in(stripped, pa.array(MISSING, pa.large_string())),
        'has the id {}, which stands for a missing one,',
        f'{REMOVE}, or rename that id',
    )
    if _letters(values).min(initial=255) < 32 or _letters(values).max(initial=0) >= 127:
        unprintable = pc.match_substring_regex(values, UNPRINTABLE)
        refuse(unprintable, 'has the id {}, which holds a control character,', 'rename that id')
    long = pc.greater(pc.binary_length(values), LONGEST)
    refuse(long, f'has an id of more than {LONGEST} bytes,', 'shorten it')
    return values


def _letters(values: pa.Array) -> np.ndarray:
    """Bytes of large text or binary values, one after the other."""
    offsets = _offsets(values)
    if offsets[-1] == offsets[0]:
        return np.zeros(0, np.uint8)
    return np.frombuffer(values.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]


def _offsets(values: pa.Array) -> np.ndarray:
    return np.frombuffer(values.buffers()[1], np.int64)[values.offset :][: len(values) + 1]


def _refuse(bad, what: str, col: str, name: str, where: Where, advice: str = REMOVE) -> None:
    """UserError on the first place of bool [n] `bad` that is true."""
    bad = np.asarray(bad)
    if bad.any():
        raise UserError(f'{name} {where(int(bad.argmax()))} {what} in column {col!r}; {advice}')


def two_kinds() -> UserError:
    """The complaint about a column that changes its type, for `naming`."""
    return UserError('are integers in one part of it and text in another; write all alike')


@contextlib.contextmanager
def naming(col: str, name: str) -> Iterator[None]:
    """Says of which column of which file the complaints of `encode` and `plain` speak."""
    try:
        yield
    except UserError as e:
        raise UserError(f'ids in column {col!r} of {name} {e}') from e


def encode(chunks: list[pa.Array], *, text: bool) -> Coded:
    """Encodes a whole id column given in pieces.

    Args:
      chunks: of `checked`.
      text: the ids come from a text file, so a column of integers is to be read as integers.

    Raises:
      UserError: some pieces hold integers and some text.
    """
    if not chunks:
        return Coded(np.zeros(0, np.int32), np.zeros(0, np.int64))
    if len({c.type.value_type for c in chunks}) > 1:
        raise two_kinds()
    column = pa.chunked_array(chunks).unify_dictionaries()
    codes = np.concatenate([c.indices.to_numpy(zero_copy_only=False) for c in column.chunks])
    return Coded(codes.astype(np.int32, copy=False), plain(column.chunk(0).dictionary, text))


def plain(values: pa.Array, text: bool) -> np.ndarray:
    """Distinct `checked` values [V] as int64 or 'S'; of a text file int64 if all are integers."""
    if pa.types.is_integer(values.type):
        return values.to_numpy(zero_copy_only=False)
    if text and len(values):
        if pc.all(pc.match_substring_regex(values, INTEGER)).as_py():
            return values.cast(pa.int64()).to_numpy(zero_copy_only=False)
        rounded = pc.match_substring_regex(values, ROUNDED)
        if pc.any(rounded).as_py() and pc.all(pc.match_substring_regex(values, NUMBER)).as_py():
            first = values.filter(rounded)[0].as_py()
            raise UserError(f'were rounded by a float column ({first}); write them as integers')
    return fixed_width(values)


def fixed_width(values: pa.Array) -> np.ndarray:
    """Arrow text [V] as numpy bytes 'S' [V], without a Python object per value."""
    values = values.cast(pa.large_binary())
    lengths = pc.binary_length(values).to_numpy(zero_copy_only=False)
    width = max(int(lengths.max(initial=0)), 1)
    letters, offsets = _letters(values), _offsets(values)
    out = np.zeros((len(values), width), np.uint8)
    rows = np.repeat(np.arange(len(values)), lengths)
    columns = np.arange(len(letters)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    out[rows, columns] = letters
    return out.view(f'S{width}').reshape(-1)


def remarks(values: np.ndarray, col: str) -> list[str]:
    """What may surprise about distinct ids that are accepted, a line each."""
    if values.dtype.kind != 'S' or not len(values):
        return []
    letters = values.view(np.uint8).reshape(len(values), -1)
    offsets = np.concatenate([[0], np.cumsum((letters != 0).sum(1))]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(letters[letters != 0])]
    text = pa.Array.from_buffers(pa.large_string(), len(values), buffers)
    said = []

    def say(chosen, what):
        if count := pc.sum(chosen).as_py():
            first = text.filter(chosen)[0].as_py()
            said.append(f'column {col!r}: {count:,} distinct ids {what}, the first is {first!r}')

    say(pc.not_equal(text, pc.utf8_trim_whitespace(text)), 'begin or end with a blank')
    other = pc.invert(pc.match_substring_regex(text, INTEGER))
    if pc.sum(other).as_py() <= len(text) // 100:
        say(other, 'are not integers, so all are text')
    if (letters >= 128).any():
        normal = pc.utf8_normalize(text, 'NFC')
        twins = pc.value_counts(normal)
        twice = twins.field('values').filter(pc.greater(twins.field('counts'), 1))
        say(pc.is_in(normal, twice), 'differ only in how Unicode composes their letters')
    return said
