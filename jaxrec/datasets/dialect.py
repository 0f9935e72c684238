"""How delimited text is written, told from all its bytes instead of assumed.

Rows without quotation marks need no telling: what was read through `Watched` says so. With marks,
`survey` reads them once more, as both kinds of writers would have written it:

- quoted (RFC 4180): a field that begins with a mark ends with one, marks inside it are doubled, and
  it may hold delimiters and line ends;
- literal (exports of databases): a mark is a letter like any other.

A file is read as the kind whose rules all its lines keep. If it breaks both, or keeps both but with
other rows, that is an error.
"""

import dataclasses
import io
import re
from typing import BinaryIO

import numpy as np

from jaxrec.errors import UserError

BLOCK = 1 << 22
MARK, CR, LF, BACKSLASH = b'"\r\n\\'
BOM = b'\xef\xbb\xbf'
CARRIAGE = "has lines that end in a carriage return alone; convert them, e.g. with tr '\\r' '\\n'"


def check_returns(sample: bytes, name: str) -> None:
    """UserError if lines of the first bytes of a file end in a carriage return alone."""
    if b'"' not in sample and re.search(rb'\r(?!\n|$)', sample):
        raise UserError(f'{name} {CARRIAGE}')


class Watched(io.RawIOBase):
    """A text file that counts what is read through it.

    Attributes:
      marks: quotation marks.
      lines: lines, the last one too if it is not ended.
      returns: carriage returns that no line feed follows.
      carriages: carriage returns.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._last = file, b'\n'
        self.marks = self.carriages = self._feeds = self._pairs = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if data:
            self.marks += data.count(b'"')
            self._feeds += data.count(b'\n')
            self.carriages += data.count(b'\r')
            if self.carriages:
                self._pairs += data.count(b'\r\n') + (self._last + data[:1] == b'\r\n')
            self._last = data[-1:]
        return data

    @property
    def lines(self) -> int:
        return self._feeds + (self._last != b'\n')

    @property
    def returns(self) -> int:
        return self.carriages - self._pairs


@dataclasses.dataclass
class Survey:
    """What text with quotation marks looks like; lines are numbered from 1, 0 = none.

    Attributes:
      quoted: the first line that breaks the rules of quoted text.
      literal: the first line with another number of fields.
      inside: the first line with a delimiter or line end in a quoted field.
      escaped: the first line with a backslash before a mark.
      mixed: whether some column has fields with and without marks.
      records: records of quoted text that are not empty.
      lines: lines that are not empty.
    """

    quoted: int = 0
    literal: int = 0
    inside: int = 0
    escaped: int = 0
    mixed: bool = False
    records: int = 0
    lines: int = 0


def survey(file: BinaryIO, delimiter: str, fields: int, line: int = 1) -> Survey:
    """Reads text once, a block of lines at a time, as quoted and as literal.

    Args:
      file: the rows, without the header.
      delimiter: one character.
      fields: of a row.
      line: number of the first line.
    """
    found, is_inside = Survey(), False
    edge = np.zeros(256, bool)
    edge[[LF, CR, MARK, ord(delimiter)]] = True
    for text in _blocks(file):
        data = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(data == LF)
        split = np.flatnonzero(data == ord(delimiter))
        marks = np.flatnonzero(data == MARK)
        returns = np.flatnonzero(data == CR)
        returns = returns[data[returns + 1] != LF]  # a block ends in LF

        def first(places, line=line, ends=ends):
            """Line of the first place, 0 if there is none."""
            return line + int(np.searchsorted(ends, places.min())) if len(places) else 0

        def inside(places, marks=marks, flip=is_inside):
            """Whether places that are no marks are in quoted fields."""
            return (np.searchsorted(marks, places) + flip) % 2 == 1

        opens, closes = marks[int(is_inside) :: 2], marks[1 - int(is_inside) :: 2]
        bad = [opens[(opens > 0) & ~edge[data[opens - 1]]], closes[~edge[data[closes + 1]]]]
        found.quoted = found.quoted or first(np.concatenate([*bad, returns[~inside(returns)]]))
        held = [split[inside(split)], ends[inside(ends)]]
        found.inside = found.inside or first(np.concatenate(held))
        escaped = marks[(marks > 0) & (data[marks - 1] == BACKSLASH)]
        found.escaped = found.escaped or first(escaped)
        lengths = np.diff(ends, prepend=-1) - 1
        full = lengths > (data[np.maximum(ends - 1, 0)] == CR)
        widths = np.diff(np.searchsorted(split, ends), prepend=0) + 1
        ragged = ends[full & (widths != fields)]
        found.literal = found.literal or first(np.concatenate([ragged, returns]))
        begins = opens[(opens == 0) | (data[opens - 1] != MARK)]
        column = np.searchsorted(split, begins)
        column -= np.concatenate([[0], np.searchsorted(split, ends)])[np.searchsorted(ends, begins)]
        counts = np.bincount(column)
        found.mixed |= bool(((counts > 0) & (counts != full.sum())).any())
        found.lines += int(full.sum())
        outside = ~inside(ends)
        starts = np.concatenate([[not is_inside], outside[:-1]])  # a record begins with the line
        found.records += int((outside & (full | ~starts)).sum())
        line += len(ends)
        is_inside ^= bool(len(marks) % 2)
    if is_inside:
        found.quoted = found.quoted or line - 1
    return found


def _blocks(file: BinaryIO):
    """Whole lines, each with its end."""
    rest = file.read(len(BOM)).removeprefix(BOM)
    while data := file.read(BLOCK):
        cut = data.rfind(b'\n') + 1
        if cut:
            yield rest + data[:cut]
            rest = data[cut:]
        else:
            rest += data
    if rest:
        yield rest + b'\n'


def has_quotes(found: Survey, name: str) -> bool:
    """Whether the marks of a surveyed file quote fields, or are letters.

    Raises:
      UserError: it cannot be told.
    """
    if not found.quoted:
        if not found.literal and found.inside:
            raise UserError(
                f'{name} line {found.inside} has a quotation mark that may begin a field over '
                'several lines or be a letter of an id: both fit the file; write it without marks'
            )
        return True
    if found.escaped:
        raise UserError(
            f'{name} line {found.escaped} has a quotation mark after a backslash; write marks in '
            'quoted fields twice ("")'
        )
    if found.literal:
        raise UserError(
            f'{name} has quotation marks that do not pair up: line {found.quoted} breaks the rules '
            f'of quoted text, and taken as letters they leave line {found.literal} with another '
            'number of fields than the first'
        )
    return False
