"""How delimited text is written, told from all its bytes instead of assumed.

Text without quotation marks needs no telling: what was read through `Watched` says so. With marks,
`survey` reads the file once more, as both kinds of writers would have written it:

- quoted (RFC 4180): a field that begins with a mark ends with one, marks inside it are doubled, and
  it may hold delimiters and line ends;
- literal (exports of databases): a mark is a letter like any other.

A file is read as the kind whose rules all its lines keep. If it breaks both, or keeps both but with
other rows, that is an error.
"""

import dataclasses
import io
from typing import BinaryIO

import numpy as np

from jaxrec.errors import UserError

BLOCK = 1 << 22
MARK, CR, LF = b'"\r\n'
BOM = b'\xef\xbb\xbf'
CARRIAGE = "has lines that end in a carriage return alone; convert them, e.g. with tr '\\r' '\\n'"


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
    """What a file with quotation marks looks like; lines are numbered from 1, 0 = none.

    Attributes:
      quoted: the first line that breaks the rules of quoted text.
      literal: the first line that has another number of delimiters than the first.
      inside: the first line with a delimiter or line end in a quoted field.
      escaped: the first line with a backslash before a mark.
      records: records of quoted text that are not empty.
      lines: lines that are not empty.
    """

    quoted: int = 0
    literal: int = 0
    inside: int = 0
    escaped: int = 0
    records: int = 0
    lines: int = 0


def survey(file: BinaryIO, delimiter: str) -> Survey:
    """Reads a text file once, a block of lines at a time, as quoted and as literal text."""
    found, width, line, is_inside = Survey(), None, 1, 0
    for text in _blocks(file):
        data = np.frombuffer(text, np.uint8)
        before = np.concatenate([[LF], data[:-1]])
        after = np.concatenate([data[1:], [LF]])
        ends = np.flatnonzero(data == LF)
        split = data == ord(delimiter)
        mark = data == MARK
        inside = (np.cumsum(mark) + is_inside) % 2 == 1  # at a mark: it opens

        def at(where, line=line, ends=ends):
            """Line of the first true place, 0 if there is none."""
            return line + int(np.searchsorted(ends, where.argmax())) if where.any() else 0

        edge = (LF, CR, MARK, ord(delimiter))
        opens, closes = mark & inside, mark & ~inside
        bad = opens & ~np.isin(before, edge) | closes & ~np.isin(after, edge)
        bad |= ~inside & (data == CR) & (after != LF)
        found.quoted = found.quoted or at(bad)
        found.inside = found.inside or at(inside & (split | (data == LF)))
        found.escaped = found.escaped or at(mark & (before == ord('\\')))
        lengths = np.diff(ends, prepend=-1) - 1
        lengths -= (lengths > 0) & (data[np.maximum(ends - 1, 0)] == CR)
        full = lengths > 0
        fields = np.diff(np.searchsorted(np.flatnonzero(split), ends), prepend=0)
        width = int(fields[full][0]) if width is None and full.any() else width
        ragged = np.flatnonzero(full & (fields != width))
        lone = (data == CR) & (after != LF)
        found.literal = found.literal or (line + int(ragged[0]) if len(ragged) else at(lone))
        found.lines += int(full.sum())
        outside = ~inside[ends]
        starts = np.concatenate([[not is_inside], outside[:-1]])  # a record begins with the line
        found.records += int((outside & (full | ~starts)).sum())
        line += len(ends)
        is_inside = int(inside[-1])
    if is_inside:
        found.quoted = found.quoted or line - 1
    return found


def _blocks(file: BinaryIO):
    """Whole lines, each with its end; without a byte order mark."""
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
