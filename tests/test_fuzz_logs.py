"""Made-up logs in many dialects, types and oddities: read as a slow reader does, or refused.

By hand, more of them: JAXREC_FUZZ=100000 python -m pytest tests/test_fuzz_logs.py
"""

import csv
import gzip
import io
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrec.config import Data
from jaxrec.datasets import events as events_lib
from jaxrec.datasets import log_file
from jaxrec.errors import UserError

COUNT = int(os.environ.get('JAXREC_FUZZ', '150'))
MANY = settings(
    max_examples=COUNT,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize='JAXREC_FUZZ' not in os.environ,
    database=None,
)
DELIMITERS = ['\t', ',', ';', '|']

# Ids: mostly plain; some that every dialect must carry; some that none may let through.
PLAIN = st.sampled_from(['a', 'b', 'cc', '1', '2', '10', 'é', '007', '1.0', 'u 1', 'NA', '-3', '0'])
ODD = st.sampled_from(
    ['"Heroes', '12" disc', '"x"', 'a,b', 'a;b', 'a|b', ' a', 'a ', '""', '"', 'a"b"', "o'x"]
    + ['x\\', '\\"', 'user', 'item', '1e3', '9007199254740993', '99999999999999999999', '#1']
)
BAD = st.sampled_from(
    [
        '',
        ' ',
        'nan',
        'NULL',
        r'\N',
        '<NA>',
        'a\nb',
        'a\rb',
        'a\tb',
        '\ufeffa',
        'a\x00',
        '\x85a',
        'a\u2028',
    ]
)
ID = st.one_of(PLAIN, PLAIN, PLAIN, ODD, PLAIN, st.one_of(ODD, BAD, PLAIN, PLAIN))
TIME = st.one_of(
    st.integers(0, 10**6).map(str),
    st.integers(0, 10**6).map(str),
    st.sampled_from(['0x10', '', 'nan', '-9223372036854775808', '1e5', '5.5', '2024-01-01', ' 7']),
)
ROWS = st.lists(st.tuples(ID, ID, TIME), min_size=1, max_size=8)
CLEAN_ROWS = st.lists(
    st.tuples(st.one_of(PLAIN, ODD), st.one_of(PLAIN, ODD), st.integers(0, 10**6).map(str)),
    min_size=1,
    max_size=8,
)


def is_id(value):
    """Whether a text may be an id at all."""
    missing = {'nan', 'null', 'none', 'nat', '<na>', '<null>', '#n/a', r'\n'}
    odd = any(ord(c) < 32 or 127 <= ord(c) < 160 or c in '\u2028\u2029\ufeff' for c in value)
    return bool(value.strip()) and value.strip().lower() not in missing and not odd


def as_given(values):
    """A text column's ids: integers if all are, else text."""
    if all(re.fullmatch(r'0|-?[1-9][0-9]{0,17}', v) for v in values):
        return [int(v) for v in values]
    return list(values)


def expected(rows, timed=True):
    """{(user, item, time): ..} events, per user in order, of rows of text."""
    users, items = as_given([r[0] for r in rows]), as_given([r[1] for r in rows])
    events = list(zip(users, items, [float(r[2]) if timed else 0 for r in rows], strict=True))
    users = sorted(set(users), key=lambda u: u.encode() if isinstance(u, str) else u)
    return [
        (u, [(i, t) for v, i, t in sorted(events, key=lambda e: e[2]) if v == u]) for u in users
    ]


def read(path, **options):
    config = Data(log=str(path), **options)
    return events_lib.to_histories(log_file.read(config), path.name)


def listed(h):
    scale = 1.0
    out = []
    for u in range(h.num_users):
        at = slice(h.offsets[u], h.offsets[u + 1])
        times = np.zeros(at.stop - at.start) if h.times is None else h.times[at] / scale
        out.append(
            (h.raw_user(u), [(h.raw_item(i), t) for i, t in zip(h.history(u), times, strict=True)])
        )
    return out


def outcome(path, **options):
    """What is read, or None if it is refused, which must be one line that names the file."""
    try:
        return listed(read(path, **options))
    except UserError as e:
        assert '\n' not in str(e) and str(e)
        return None


def same(found, right):
    """Fractions make times millionths."""
    if found != right:
        right = [(u, [(i, round(t * 1e6)) for i, t in events]) for u, events in right]
    assert found == right


def proper(text, delimiter):
    """Rows of well-formed quoted text by Python's reader, None if it is not well-formed."""
    try:
        return list(csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True))
    except csv.Error:
        return None


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('logs')


@given(st.data())
@MANY
def test_a_proper_table_is_read_as_written_or_refused(folder, data):
    """A writer of a known dialect; every row must come back, or the file is refused."""
    rows = data.draw(st.one_of(CLEAN_ROWS, ROWS))
    delimiter = data.draw(st.sampled_from(DELIMITERS))
    quoting = data.draw(
        st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, None])
    )
    end = data.draw(st.sampled_from(['\n', '\r\n']))
    text = io.StringIO()
    table = [('user', 'item', 'timestamp'), *rows]
    if quoting is None:  # an export that does not quote
        bad = {delimiter, '\n', '\r'}
        if any(letter in cell for row in rows for cell in row for letter in bad):
            return
        text.write(end.join(delimiter.join(row) for row in table))
    else:
        csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(table)
    content = data.draw(st.sampled_from(['', '', '\ufeff'])) + text.getvalue()
    content += data.draw(st.sampled_from(['', '', end]))
    path = folder / 'log.csv'
    zipped = data.draw(st.booleans())
    raw = content.encode()
    path.write_bytes(gzip.compress(raw, 1) if zipped else raw)
    found = outcome(path)
    good = all(is_id(u) and is_id(i) and re.fullmatch(r' ?\d+', t) for u, i, t in rows)
    if found is None:
        if good and quoting is not None and not any('"' in c or '\\' in c for r in rows for c in r):
            assert any(row[:2] == ('user', 'item') for row in rows)  # the header again
        return
    if good:
        right = expected([(u, i, t.strip()) for u, i, t in rows])
        if quoting is None and found != right:  # marks around a whole field may be read as quotes
            reading = proper(content.removeprefix('\ufeff'), delimiter)
            right = expected([r for r in reading[1:] if r])
            spellings = {column: {r[column] for r in rows} for column in (0, 1)}
            for column, given_ids in spellings.items():  # but never so that two ids become one
                assert len(given_ids) == len({r[column] for r in reading[1:] if r})
        same(found, right)
    else:
        for u, i, t in rows:  # nothing bad came through
            assert quoting is None or (is_id(u) and is_id(i)), (u, i)
            assert re.fullmatch(r'\s*([+-]?\d+(\.\d*)?(e\d+)?|\d{4}-\d\d-\d\d)\s*', t), t


LETTERS = st.sampled_from(
    ['', '', '', '"', ',', '\t', '\n', '\r', ' ', '\\', 'é', '\x00', '7', '\ufeff']
)
CELL = ['a', 'b', '1', '2', '"a"', '"a', 'b"', 'a"b', '"a""b"', '"', '""', '"a|b"', 'a b', '"1"']


def mutated(draw, text):
    """`text`, most often with a letter put in or taken out somewhere."""
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(LETTERS) + text[at + draw(st.sampled_from([0, 0, 0, 1])) :]


@st.composite
def bodies(draw):
    """(text of rows, delimiter): cells of both dialects, and what goes wrong in files."""
    delimiter = draw(st.sampled_from(DELIMITERS))
    some = draw(st.lists(st.sampled_from(CELL), min_size=1, max_size=4))
    some = [cell.replace('|', delimiter) for cell in some]
    cell = st.sampled_from(some)
    time = st.integers(0, 99).map(str)
    rows = draw(st.lists(st.tuples(cell, cell, time), min_size=1, max_size=6))
    end = draw(st.sampled_from(['\n', '\n', '\r\n', '\r', '\n\n']))
    text = end.join(delimiter.join(row) for row in rows) + draw(st.sampled_from(['', end]))
    return mutated(draw, text), delimiter


@given(bodies())
@MANY
def test_any_text_below_a_header_is_read_by_a_standard_or_refused(folder, made):
    """Either as quoted text or as lines without quotes, whole: never a mixture of the two."""
    body, delimiter = made
    header = delimiter.join(['user', 'item', 'timestamp'])
    path = folder / 'any.csv'
    path.write_bytes(f'{header}\n{body}'.encode())
    found = outcome(path)
    if found is None:
        return
    literal = [line.removesuffix('\r') for line in body.split('\n')]
    readings = [[line.split(delimiter) for line in literal if line]]
    if (quoted := proper(body, delimiter)) is not None:
        readings.append([row for row in quoted if row])
    right = []
    for rows in readings:
        if all(len(row) == 3 and is_id(row[0]) and is_id(row[1]) for row in rows):
            try:
                right.append(expected(rows))
            except ValueError:
                pass
    assert right
    for reading in right:
        try:
            same(found, reading)
            return
        except AssertionError:
            continue
    same(found, right[0])


@st.composite
def words(draw):
    """Text of lines of words, and what goes wrong in files."""
    word = st.one_of(PLAIN, PLAIN, ODD, st.sampled_from(CELL)).filter(lambda w: w.strip())
    rows = draw(st.lists(st.lists(word, min_size=2, max_size=5), min_size=1, max_size=6))
    if draw(st.booleans()):
        rows = [row[:2] for row in rows]
    if draw(st.booleans()):
        rows = [[f'u{n}', *row] for n, row in enumerate(rows)]
    end, blank = draw(st.sampled_from(['\n', '\r\n', '\n\n'])), draw(st.sampled_from(' \t'))
    return mutated(draw, end.join(blank.join(row) for row in rows) + end)


@given(words())
@MANY
def test_any_text_without_a_header_is_words_of_lines_or_refused(folder, text):
    path = folder / 'any.txt'
    path.write_bytes(text.encode())
    found = outcome(path)
    if found is None:
        return
    lines = [line.split() for line in text.removeprefix('\ufeff').split('\n')]
    lines = [line for line in lines if line]
    assert '\x00' not in text and not re.search('\r(?!\n)', text)
    pairs = [(line[0], item, '0') for line in lines for item in line[1:]]
    assert found == expected(pairs, timed=False)


IDS = st.one_of(
    st.tuples(st.just('int'), st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9))),
    st.tuples(st.just('uint64'), st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 9))),
    st.tuples(st.just('float64'), st.lists(st.floats() | st.integers(0, 9).map(float))),
    st.tuples(st.just('float32'), st.lists(st.floats(width=32) | st.integers(0, 9).map(float))),
    st.tuples(st.just('decimal'), st.lists(st.integers(-(10**30), 10**30) | st.integers(0, 9))),
    st.tuples(st.sampled_from(['string', 'large_string', 'string_view']), st.lists(ID)),
    st.tuples(
        st.sampled_from(['binary', 'large_binary', 'binary_view', 'fixed']),
        st.lists(st.sampled_from([b'a', b'b', b'\xff', b'\x00', b' ', b'9'])),
    ),
)
ARROW = {
    'int': pa.int64(),
    'uint64': pa.uint64(),
    'float64': pa.float64(),
    'float32': pa.float32(),
    'decimal': pa.decimal128(38, 0),
    'string': pa.string(),
    'large_string': pa.large_string(),
    'string_view': pa.string_view(),
    'binary': pa.binary(),
    'large_binary': pa.large_binary(),
    'binary_view': pa.binary_view(),
    'fixed': pa.binary(1),
}


def of_type(kind, value):
    """A value of a typed column as an id, None if it cannot be one."""
    if value is None:
        return None
    if kind in ('float64', 'float32'):
        limit = {'float64': 2**53, 'float32': 2**24}[kind]
        whole = np.isfinite(value) and value == int(value) and abs(value) < limit
        return int(value) if whole else None
    if kind in ('int', 'uint64', 'decimal'):
        return int(value) if -(2**63) < value < 2**63 else None
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    return value if is_id(value) else None


@given(IDS, IDS, st.data())
@MANY
def test_every_type_of_a_parquet_column_is_read_exactly_or_refused(folder, users, items, data):
    (user_kind, users), (item_kind, items) = users, items
    count = min(len(users), len(items), 8)
    users, items = users[:count], items[:count]
    if count and data.draw(st.integers(0, 9)) == 0:
        users[data.draw(st.integers(0, count - 1))] = None
    columns = {
        'user': pa.array(users, ARROW[user_kind]),
        'item': pa.array(items, ARROW[item_kind]),
        'timestamp': pa.array(range(count), pa.int64()),
    }
    if data.draw(st.booleans()) and 'view' not in user_kind:
        columns['user'] = columns['user'].dictionary_encode()
    path = folder / 'log.parquet'
    pa.parquet.write_table(pa.table(columns), path, row_group_size=3)
    found = outcome(path)
    right = [[of_type(user_kind, u) for u in users], [of_type(item_kind, i) for i in items]]
    good = count and None not in right[0] and None not in right[1]
    assert (found is not None) == bool(good), (users, items)
    if good:
        order = sorted(set(right[0]), key=lambda u: u.encode() if isinstance(u, str) else u)
        events = list(zip(*right, map(float, range(count)), strict=True))
        assert found == [(u, [(i, t) for v, i, t in events if v == u]) for u in order]


@given(st.lists(CLEAN_ROWS, min_size=1, max_size=4), st.sampled_from(['csv', 'parquet']))
@MANY
def test_part_files_are_the_log_in_one_piece(tmp_path_factory, parts, kind):
    folder = tmp_path_factory.mktemp('parts')
    names = ('user', 'item', 'timestamp')
    for n, rows in enumerate(parts):
        inner = folder / f'day={n}'
        inner.mkdir()
        if kind == 'csv':
            with open(inner / 'part.csv', 'w', newline='') as file:
                csv.writer(file, lineterminator='\n').writerows([names, *rows])
        else:
            columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            columns['timestamp'] = [int(t) for t in columns['timestamp']]
            pa.parquet.write_table(pa.table(columns), inner / 'part.parquet')
    (folder / '_SUCCESS').write_text('')
    found = outcome(folder)
    assert found == outcome(folder / '*/part.*')
    rows = [row for part in parts for row in part]
    if found is not None:
        if kind == 'csv':
            same(found, expected(rows))
        else:
            users = sorted({u for u, _, _ in rows}, key=str.encode)
            rows = sorted(rows, key=lambda row: int(row[2]))
            assert found == [(u, [(i, int(t)) for v, i, t in rows if v == u]) for u in users]
    else:
        assert any(r[:2] == ('user', 'item') for r in rows) or '"' in str(rows) or '\\' in str(rows)
