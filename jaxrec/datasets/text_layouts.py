"""The header-less text layouts, parsed on their bytes with numpy.

`sequences`: `user item item ...`, one line per user, oldest first (S3-Rec and its followers).
`pairs`: `user item`, one line per event, a user's events oldest first (SASRec and its followers).
`train-test`: a folder of train.txt and test.txt, perhaps valid.txt, each `user item item ..` in no
order, whole numbers from 0 (NGCF, LightGCN and their followers).
Fields are separated by any run of spaces and tabs; blank lines are skipped. Quotation marks are
letters; where they seem to hold a field with blanks together, that is an error.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.datasets import dialect, raw_ids
from jaxrec.datasets.events import Events
from jaxrec.datasets.raw_ids import Coded
from jaxrec.errors import UserError

_NODE = re.compile(rb'0|[1-9][0-9]{0,17}')  # an id of layout train-test
BLOCK = 1 << 26  # bytes parsed at a time: bounds the memory beyond the result


@dataclasses.dataclass
class Block:
    """Some whole lines.

    Attributes:
      words: binary [W].
      counts: int64 [lines], the number of words of each line.
      control: number from 1 of the first line with a control character, 0 if none has one.
    """

    words: pa.Array
    counts: np.ndarray
    control: int


def read_pairs(file: BinaryIO, name: str) -> Events:
    """Reads `user item` lines; raises UserError on a line with another number of fields."""
    users, items, line = [], [], 0
    for block in _checked(file, name):
        ragged = np.flatnonzero((block.counts != 2) & (block.counts != 0))
        if len(ragged):
            raise UserError(
                f'{name} line {line + ragged[0] + 1} has {block.counts[ragged[0]]} fields where '
                'layout pairs has 2 (user item); if each line is a user followed by all items, '
                'use --layout=sequences, and a table needs a header line'
            )
        at = np.arange(0, len(block.words), 2)
        where = _lines(line, block.counts, is_word=at)
        users.append(raw_ids.checked(block.words.take(pa.array(at)), 'user', name, where))
        items.append(raw_ids.checked(block.words.take(pa.array(at + 1)), 'item', name, where))
        line += len(block.counts)
    return _events(users, items, name)


def read_sequences(file: BinaryIO, name: str, empty: bool = False) -> Events:
    """Reads `user item item ...` lines; raises UserError on a user given twice.

    And, unless `empty`, on a user without items.
    """
    users, items, counts, lines = [], [], [], []
    line = 0
    for block in _checked(file, name):
        short = np.flatnonzero(block.counts == 1)
        if len(short) and not empty:
            raise UserError(
                f'{name} line {line + short[0] + 1} has 1 field where layout sequences has a user '
                'and at least one item'
            )
        full = np.flatnonzero(block.counts)
        each = block.counts[full]
        starts = np.cumsum(each) - each
        is_item = np.ones(len(block.words), bool)
        is_item[starts] = False
        where = _lines(line, block.counts, starts)
        users.append(raw_ids.checked(block.words.take(pa.array(starts)), 'user', name, where))
        where = _lines(line, block.counts, np.flatnonzero(is_item))
        items.append(raw_ids.checked(block.words.filter(pa.array(is_item)), 'item', name, where))
        counts.append(each - 1)
        lines.append(line + full + 1)
        line += len(block.counts)
    events = _events(users, items, name)
    if lines:
        _check_once(events.users, np.concatenate(lines), name)
        each = np.repeat(events.users.codes, np.concatenate(counts))
        events.users = Coded(each, events.users.values)
    return events


PARTS = ('train', 'valid', 'test')  # files of layout train-test, in the order of `splits.PART`


def read_train_test(files: Mapping[str, BinaryIO], names: Mapping[str, str]) -> Events:
    """The pairs of all parts of layout train-test, user by user; the column `part` says which.

    Args:
      files: by name of the part, of PARTS; train and test at least.
      names: of the files, for messages.

    Raises:
      UserError: a node id that is no whole number from 0, a pair that comes twice, a user in valid
        or test who is not in train.
    """
    found = {part: read_sequences(files[part], names[part], empty=True) for part in files}
    users, items, parts = [], [], []
    for number, part in enumerate(PARTS):
        if part not in found:
            continue
        one = found[part]
        for column, coded in (('user', one.users), ('item', one.items)):
            _check_nodes(coded.values, column, names[part])
        users.append(_raw(one.users))
        items.append(_raw(one.items))
        parts.append(np.full(len(one.users.codes), number, np.int8))
        strange = np.setdiff1d(users[-1], users[0])
        if len(strange):
            raise UserError(
                f'{names[part]} has user {strange[0]}, who is not in {names["train"]} '
                f'({len(strange)} such users): nothing can be learnt of them; remove them'
            )
    users, items, parts = (np.concatenate(column) for column in (users, items, parts))
    order = np.lexsort((items, parts, users))
    users, items, parts = users[order], items[order], parts[order]
    by_pair = np.lexsort((items, users))
    pairs = np.stack([users, items])[:, by_pair]
    again = np.flatnonzero((pairs[:, 1:] == pairs[:, :-1]).all(0))
    if len(again):
        where = [names[PARTS[parts[n]]] for n in by_pair[again[0] : again[0] + 2]]
        raise UserError(
            f'user {pairs[0, again[0]]} has item {pairs[1, again[0]]} twice, in '
            f'{" and ".join(where)} ({len(again)} repeats in all): every edge comes once'
        )
    coded = []
    for column in (users, items):
        values, codes = np.unique(column, return_inverse=True)
        coded.append(Coded(codes.astype(np.int32), values))
    return Events(*coded, features={'part': parts})


def _raw(column: Coded) -> np.ndarray:
    """Raw ids of all rows; int64 where there are none."""
    return column.values[column.codes] if len(column.codes) else np.zeros(0, np.int64)


def _check_nodes(values: np.ndarray, column: str, name: str) -> None:
    """UserError where ids are not whole numbers from 0."""
    if values.dtype.kind == 'S':
        bad = [v.decode() for v in values.tolist() if not _NODE.fullmatch(v)]
    else:
        bad = values[values < 0].tolist()
    if bad:
        raise UserError(
            f'{name} has the {column} {bad[0]!r}: node ids of layout train-test are whole numbers '
            'from 0'
        )


def _events(users: list[pa.Array], items: list[pa.Array], name: str) -> Events:
    coded = []
    for column, pieces in (('user', users), ('item', items)):
        with raw_ids.naming(column, name):
            coded.append(raw_ids.encode(pieces, text=True))
    return Events(*coded)


def _lines(line: int, counts: np.ndarray, is_word: np.ndarray) -> raw_ids.Where:
    """Where the n-th of some words of a block stands, for messages; `line` lines came before."""
    return lambda at: f'line {line + int(np.searchsorted(counts.cumsum(), is_word[at] + 1)) + 1}'


def _checked(file: BinaryIO, name: str) -> Iterator[Block]:
    """`blocks`; UserError where the text is not lines of plain words."""
    watched, line = dialect.Watched(file), 0
    for block in blocks(watched):
        if block.control:
            raise UserError(
                f'{name} line {line + block.control} holds a control character; remove it'
            )
        if watched.returns:
            raise UserError(f'{name} {dialect.CARRIAGE}')
        if watched.marks:
            _check_marks(block, line, name)
        yield block
        line += len(block.counts)


def _check_marks(block: Block, line: int, name: str) -> None:
    """UserError on a line where a word begins with a mark that a later word ends with."""
    first = np.asarray(pc.starts_with(block.words, b'"'))
    last = np.asarray(pc.ends_with(block.words, b'"'))
    alone = np.asarray(pc.equal(block.words, b'"'))
    opens, closes = np.flatnonzero(first & (~last | alone)), np.flatnonzero(last & (~first | alone))
    ends = block.counts.cumsum()
    for word in opens.tolist():
        at = int(np.searchsorted(ends, word + 1))
        later = closes[np.searchsorted(closes, word + 1) :][:1]
        if len(later) and later[0] < ends[at]:
            raise UserError(
                f'{name} line {line + at + 1} seems to hold a quoted field with a blank in it; '
                'fields are split at blanks here: write a table with a header line'
            )


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
    control = ~letter & (data != 32) & ((data < 9) | (data > 10)) & (data != 13)
    bad = int(np.searchsorted(line_ends, control.argmax())) + 1 if control.any() else 0
    return Block(words, counts, bad)


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
