"""The two header-less text layouts, parsed on their bytes with numpy.

`sequences`: `user item item ...`, one line per user, oldest first (S3-Rec and its followers).
`pairs`: `user item`, one line per event, a user's events oldest first (SASRec and its followers).
Fields are separated by any run of spaces and tabs; blank lines are skipped.
"""

import dataclasses
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from jaxrec.datasets.events import Coded, Events, encode
from jaxrec.errors import UserError

BLOCK = 1 << 26  # bytes parsed at a time: bounds the memory beyond the result


@dataclasses.dataclass
class Block:
    """Some whole lines: words (binary [W]) and the number of words of each line (int64 [lines])."""

    words: pa.Array
    counts: np.ndarray


def read_pairs(file: BinaryIO, name: str) -> Events:
    """Reads `user item` lines; raises UserError on a line with another number of fields."""
    users, items, line = [], [], 0
    for block in blocks(file):
        ragged = np.flatnonzero((block.counts != 2) & (block.counts != 0))
        if len(ragged):
            raise UserError(
                f'{name} line {line + ragged[0] + 1} has {block.counts[ragged[0]]} fields where '
                'layout pairs has 2 (user item); if each line is a user followed by all items, '
                'use --layout=sequences, and a table needs a header line'
            )
        at = np.arange(0, len(block.words), 2)
        users.append(block.words.take(pa.array(at)).dictionary_encode())
        items.append(block.words.take(pa.array(at + 1)).dictionary_encode())
        line += len(block.counts)
    return Events(encode(users, text=True), encode(items, text=True))


def read_sequences(file: BinaryIO, name: str) -> Events:
    """Reads `user item item ...` lines; raises UserError on a user without items or given twice."""
    users, items, counts, lines = [], [], [], []
    line = 0
    for block in blocks(file):
        short = np.flatnonzero(block.counts == 1)
        if len(short):
            raise UserError(
                f'{name} line {line + short[0] + 1} has 1 field where layout sequences has a user '
                'and at least one item'
            )
        full = np.flatnonzero(block.counts)
        each = block.counts[full]
        starts = np.cumsum(each) - each
        is_item = np.ones(len(block.words), bool)
        is_item[starts] = False
        users.append(block.words.take(pa.array(starts)).dictionary_encode())
        items.append(block.words.filter(pa.array(is_item)).dictionary_encode())
        counts.append(each - 1)
        lines.append(line + full + 1)
        line += len(block.counts)
    if not users:
        return Events(encode([], text=True), encode([], text=True))
    users = encode(users, text=True)
    _check_once(users, np.concatenate(lines), name)
    users = Coded(np.repeat(users.codes, np.concatenate(counts)), users.values)
    return Events(users, encode(items, text=True))


def blocks(file: BinaryIO, size: int = BLOCK) -> Iterator[Block]:
    """Splits a file into blocks of whole lines."""
    rest = b''
    while True:
        data = file.read(size)
        text = rest + data
        if data:
            cut = text.rfind(b'\n') + 1
            if not cut:
                rest = text
                continue
            text, rest = text[:cut], text[cut:]
        if text:
            yield split_words(text)
        if not data:
            return


def split_words(text: bytes) -> Block:
    """Words of `text` (less than 2 GiB) and how many stand in each line, without a Python loop."""
    data = np.frombuffer(text, np.uint8)
    letter = data > 32
    edges = np.flatnonzero(np.diff(letter.view(np.int8), prepend=0, append=0))
    starts, ends = edges[0::2], edges[1::2]
    offsets = np.zeros(len(starts) + 1, np.int32)
    np.cumsum(ends - starts, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data[letter]))]
    words = pa.Array.from_buffers(pa.binary(), len(starts), buffers)
    line_ends = np.flatnonzero(data == 10)
    if not len(data) or data[-1] != 10:
        line_ends = np.append(line_ends, len(data))
    counts = np.diff(np.searchsorted(starts, line_ends), prepend=0)
    return Block(words, counts)


def _check_once(users: Coded, lines: np.ndarray, name: str) -> None:
    if len(users.values) == len(users.codes):
        return
    order = np.argsort(users.codes, kind='stable')
    again = np.flatnonzero(users.codes[order][1:] == users.codes[order][:-1])[0]
    user = users.values[users.codes[order[again]]]
    user = user.decode() if isinstance(user, bytes) else user
    first, second = lines[order[again]], lines[order[again + 1]]
    raise UserError(
        f'{name} has user {user} on lines {first} and {second} where layout sequences has one line '
        'per user; a table needs a header line, and `user item` lines --layout=pairs'
    )
