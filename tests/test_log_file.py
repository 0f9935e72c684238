"""Own logs: every layout, every trap, every error line; the k-core against a slow reference."""

import gzip
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.config import Data
from jaxrec.datasets import events as events_lib
from jaxrec.datasets import log_file, raw_ids, text_layouts
from jaxrec.errors import UserError

CSV = 'user,item,timestamp\n2,9,5\n1,8,7\n2,7,5\n2,10,4\n1,8,7\n'
DAY = '2020-01-01'


@pytest.fixture
def read(tmp_path):
    """Writes `text` to a file and reads it as a log, without keeping the result."""

    def read_log(text, name='log.csv', **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        config = Data(log=str(path), **options)
        return events_lib.to_histories(
            log_file.read(config), name, config.min_user, config.min_item
        )

    return read_log


@pytest.fixture
def read_table(tmp_path):
    def read_parquet(columns, **options):
        path = tmp_path / 'log.parquet'
        pa.parquet.write_table(pa.table(columns), path, row_group_size=2)
        return events_lib.to_histories(log_file.read(Data(log=str(path), **options)), 'log')

    return read_parquet


def events(h):
    """(raw user, raw item) of every event, in order."""
    return [(h.raw_user(u), h.raw_item(i)) for u in range(h.num_users) for i in h.history(u)]


def fails(call, *phrases):
    with pytest.raises(UserError) as e:
        call()
    message = str(e.value)
    assert '\n' not in message
    for phrase in phrases:
        assert phrase in message, message


# Layouts -----------------------------------------------------------------------------------------


def test_csv_sorted_by_user_and_time_ties_in_file_order(read):
    h = read(CSV)
    assert events(h) == [(1, 8), (1, 8), (2, 10), (2, 9), (2, 7)]
    np.testing.assert_array_equal(h.times, [7, 7, 4, 5, 5])
    np.testing.assert_array_equal(h.item_ids, [7, 8, 9, 10])
    np.testing.assert_array_equal(h.items, [2, 2, 4, 3, 1])
    np.testing.assert_array_equal(h.offsets, [0, 2, 5])
    assert (h.items.dtype, h.offsets.dtype, h.times.dtype) == (np.int32, np.int64, np.int64)
    assert h.statistics()['repeats'] == 1
    assert h.statistics()['tied_timestamps'] == 2 / 3


@pytest.mark.parametrize('delimiter', [',', '\t', ';', '|'])
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_delimiters_gzip_bom_and_windows_line_ends(read, delimiter, pack):
    text = '\ufeff' + CSV.replace(',', delimiter).replace('\n', '\r\n')
    assert events(read(pack(text.encode()), 'no-suffix')) == events(read(CSV))


def test_quoted_fields(read):
    h = read('"user","item","timestamp"\n"a","x, y",1\n"a","z",0\n')
    assert events(h) == [('a', 'z'), ('a', 'x, y')]


def test_quoted_line_breaks_in_other_columns(read):
    h = read('user,text,item,timestamp\na,"one\ntwo, three",x,1\na,"",y,2\n')
    assert events(h) == [('a', 'x'), ('a', 'y')]


def test_other_columns_are_ignored_and_order_is_free(read):
    h = read('sku,x,ts,who\n9,?,2,1\n8,?,1,1\n', user_col='who', item_col='sku', time_col='ts')
    assert events(h) == [(1, 8), (1, 9)]


def test_empty_time_col_means_file_order(read):
    h = read(CSV, time_col='')
    assert events(h) == [(1, 8), (1, 8), (2, 9), (2, 7), (2, 10)]
    assert h.times is None


@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_sequences_and_pairs_give_the_same_histories(read, pack):
    a = read(pack(b'b 3 1\n\na\t 2 \n'), 'a.txt')
    b = read(pack(b'b 3\na 2\nb 1'), 'b.txt')
    assert events(a) == events(b) == [('a', 2), ('b', 3), ('b', 1)]
    assert a.content_hash() == b.content_hash()


def test_text_layouts_in_small_blocks(monkeypatch):
    monkeypatch.setattr(text_layouts.blocks, '__defaults__', (7,))
    rng = np.random.default_rng(0)
    pairs = [(f'u{u}', f'{i}') for u, i in rng.integers(0, 1200, (300, 2))]
    text = '\n'.join(' '.join(p) for p in pairs).encode()
    e = text_layouts.read_pairs(io.BytesIO(text), 'x')
    users, items = e.users.values[e.users.codes], e.items.values[e.items.codes]
    assert [(u.decode(), str(i)) for u, i in zip(users, items, strict=True)] == pairs
    lines = {}
    for u, i in pairs:
        lines.setdefault(u, []).append(i)
    text = '\n'.join(' '.join([u, *items]) for u, items in lines.items()).encode() + b'\n'
    e = text_layouts.read_sequences(io.BytesIO(text), 'x')
    users, items = e.users.values[e.users.codes], e.items.values[e.items.codes]
    expected = [(u, i) for u, items in lines.items() for i in items]
    assert [(u.decode(), str(i)) for u, i in zip(users, items, strict=True)] == expected


def test_a_history_longer_than_the_sample(read):
    items = np.arange(200_000) + 10**6
    h = read('é ' + ' '.join(map(str, items)) + '\nb 5\n', 'x.txt')
    np.testing.assert_array_equal(h.item_ids[h.history(1) - 1], items)


def test_parquet_integers_text_and_dates(read_table):
    when = np.array(['2020-01-02', '2020-01-01', '2020-01-03'], 'datetime64[ns]')
    h = read_table({'user': ['b', 'b', 'a'], 'item': [30, 7, 7], 'timestamp': when})
    assert events(h) == [('a', 7), ('b', 7), ('b', 30)]
    assert h.times[0] == 1_578_009_600_000_000  # 2020-01-03 in microseconds
    assert events(read_table({'user': ['1', '2'], 'item': ['3', '4'], 'timestamp': [1, 2]})) == [
        ('1', '3'),
        ('2', '4'),
    ]  # typed as text, so text


def test_parquet_categories_and_integers_stored_as_floats(read_table):
    users = pa.array(['b', 'a', 'b']).dictionary_encode()
    h = read_table({'user': users, 'item': [1.0, 2.0, 3.0], 'timestamp': [1, 2, 3]})
    assert events(h) == [('a', 2), ('b', 1), ('b', 3)]


# Ids and times -----------------------------------------------------------------------------------


def test_ids_come_back_as_given(read):
    h = read('user,item,timestamp\n10,007,1\n9,7,2\n-1,é x,3\n')
    assert events(h) == [(-1, 'é x'), (9, '7'), (10, '007')]
    assert h.item_ids.dtype.kind == 'S' and h.user_ids.dtype == np.int64
    np.testing.assert_array_equal(h.user_ids, [-1, 9, 10])  # by value, not by text
    assert h.find_item('007') == 1 and h.find_item('7') == 2 and h.find_item('8') is None
    assert h.find_user(10) == h.find_user('10') == 2


@pytest.mark.parametrize('value', ['007', '+7', '-0', '1e3', '7.0', '99999999999999999999', 'NA'])
def test_not_quite_integers_stay_text(read, value):
    h = read(f'1 {value}\n2 3\n', 'log.txt')
    assert h.raw_item(h.history(0)[0]) == value


def test_text_ids_are_ordered_by_utf8_bytes(read):
    h = read('u é\nu z\nu a\nu 10\n', 'x.txt')
    assert h.item_ids.tolist() == sorted(x.encode() for x in ['é', 'z', 'a', '10'])


@pytest.mark.parametrize(
    ('given_times', 'kept', 'order'),
    [
        (['3', '1', '2'], [1, 2, 3], 'bca'),
        (['3.0', '1', '2e0'], [1, 2, 3], 'bca'),
        (['3.5', '1', '2'], [1_000_000, 2_000_000, 3_500_000], 'bca'),
        (['1600000000.000002', '1600000000.000001', '1600000000'], None, 'cba'),
        (['2020-01-01T00:00:01', DAY, '2019-12-31 23:59:59.5'], None, 'cba'),
        (
            ['2020-01-01T02:00:00+02:00', '2020-01-01T00:00:01Z', '2019-12-31T23:59:59Z'],
            None,
            'cab',
        ),
        (
            ['2020-01-01T00:00:00.000000002', '2020-01-01T00:00:00.000000001', '2020-01-01'],
            None,
            'cba',
        ),
    ],
)
def test_times(read, given_times, kept, order):
    rows = ''.join(f'1,{item},{t}\n' for item, t in zip('abc', given_times, strict=True))
    h = read('user,item,timestamp\n' + rows)
    assert ''.join(i for _, i in events(h)) == order
    if kept:
        np.testing.assert_array_equal(h.times, kept)
    assert h.times.dtype == np.int64


def test_fractions_closer_than_a_millionth_keep_their_order(read):
    h = read('user,item,timestamp\n1,a,0.50000002\n1,b,0.50000001\n')
    assert [i for _, i in events(h)] == ['b', 'a']


def test_features_follow_their_events(read):
    text = 'user,item,timestamp,stars,w\n2,9,5,4,0.5\n1,8,7,3,1\n2,7,4,5,2\n'
    h = read(text, features='stars, w')
    assert events(h) == [(1, 8), (2, 7), (2, 9)]
    np.testing.assert_array_equal(h.features['stars'], [3, 5, 4])
    np.testing.assert_array_equal(h.features['w'], [1.0, 2.0, 0.5])
    assert h.features['stars'].dtype == np.int64 and h.features['w'].dtype == np.float64


# k-core ------------------------------------------------------------------------------------------


def slow_k_core(pairs, min_user, min_item):
    while True:
        users = [u for u, _ in pairs]
        items = [i for _, i in pairs]
        kept = [
            (u, i) for u, i in pairs if users.count(u) >= min_user and items.count(i) >= min_item
        ]
        if kept == pairs:
            return kept
        pairs = kept


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_k_core_matches_the_slow_one(pairs, min_user, min_item):
    users, items = np.array(pairs).T
    kept = events_lib.k_core(users, items, min_user, min_item)
    kept = range(len(pairs)) if kept is None else kept
    assert [pairs[n] for n in kept] == slow_k_core(pairs, min_user, min_item)


def test_k_core_renumbers_what_is_left(read):
    h = read('1 5 6\n2 5 6 9\n3 7\n', 'x.txt', min_user=2, min_item=2)
    assert events(h) == [(1, 5), (1, 6), (2, 5), (2, 6)]
    assert h.item_ids.tolist() == [5, 6] and h.user_ids.tolist() == [1, 2]


# Error lines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'options', 'phrases'),
    [
        ('', {}, ['log.csv is empty']),
        ('user,item,timestamp\n', {}, ['no events in log.csv']),
        (
            'uid,item,timestamp\n1,2,3\n',
            {},
            ["no column 'user'", "'uid', 'item'", '--user_col'],
        ),
        ('user,item\n1,2\n', {}, ["no column 'timestamp'", '--time_col=']),
        ('uid\titem\tts\n1\t2\t3\n', {}, ["no column 'user'", '--user_col']),
        ('1,2,3\n1,3,4\n', {}, ['no header line', "'1', '2', '3'", '--columns']),
        (CSV, {'features': 'stars'}, ["no column 'stars'", '--features']),
        (CSV, {'item_col': 'user'}, ["--user_col and --item_col both name column 'user'"]),
        (CSV, {'time_col': 'item'}, ["--item_col and --time_col both name column 'item'"]),
        (CSV, {'features': 'a/b'}, ["'a/b' must be renamed"]),
        ('user,user,item,timestamp\n1,1,2,3\n', {}, ["2 columns called 'user'"]),
        ('user,item,timestamp\n1,2,3\n1,2,soon\n', {}, ['row 2', "'soon'", "'timestamp'"]),
        ('user,item,timestamp\n1,2,3.5\n1,2,\n', {}, ['row 2', 'no value', "'timestamp'"]),
        ('user,item,timestamp\n1,2,3\n1,2,nan\n', {}, ['row 2', "'nan'", 'finite']),
        ('user,item,timestamp\n1,2,2020-01-01\n1,2,2020-13-01\n', {}, ['row 2', "'2020-13-01'"]),
        ('user,item,timestamp\n1,2,3\n,2,4\n', {}, ['row 2', 'no id', "'user'"]),
        ('user,item,timestamp\n1,,3\n', {}, ['row 1', 'no id', "'item'"]),
        ('user,item,timestamp\n1,2,3\n1,2\n', {}, ['cannot read log.csv', '3 columns']),
        ('1 2 3\n1 2 4\n', {}, ['cannot tell the layout', '--layout']),
        ('user item\n1 2\n', {}, ['cannot tell the layout', 'header', '--layout']),
        ('1\n2\n', {}, ['cannot tell the layout', 'line 1 has a single field']),
        ('1 2\n1 2 3\n', {'layout': 'pairs'}, ['line 2 has 3 fields', '--layout=sequences']),
        ('1 2\n\n3\n', {'layout': 'sequences'}, ['line 3 has 1 field']),
        ('1 2\n2 2\n1 3\n', {'layout': 'sequences'}, ['user 1 on lines 1 and 3']),
        ('1 2\n', {'layout': 'lines'}, ['--layout=lines', 'sequences']),
        ('1 2\n', {'features': 'x'}, ['--features needs a table']),
        (b'\xff\xfe1\x00 \x002\x00\n', {}, ['UTF-16', 'iconv']),
        (b'user,item,timestamp\n\xe9,2,3\n', {}, ['not UTF-8']),
        (b'\xe9 2\n', {}, ['not UTF-8']),
        (CSV, {'min_user': 4}, ['nothing is left', '--min_user']),
        (CSV, {'layout': 'pairs'}, ['line 1 has 1 fields']),
        (f'{"x" * 600} 1\n', {}, ['line 1', 'more than 512 bytes']),
        (gzip.compress(CSV.encode() * 9, mtime=0)[:-12], {}, ['truncated gzip']),
        (gzip.compress(b'', mtime=0), {}, ['empty']),
    ],
)
def test_error_lines_of_logs(read, text, options, phrases):
    fails(lambda: read(text, **options), *phrases)


def test_a_large_gzip_cut_short_is_an_error(read):
    rng = np.random.default_rng(0)
    text = '\n'.join(f'{u} {i}' for u, i in rng.integers(0, 10**9, (150_000, 2))).encode()
    assert len(text) > log_file.SAMPLE
    fails(lambda: read(gzip.compress(text, 1)[:-100_000], 'x.txt'), 'truncated gzip')
    rows = b'user,item,timestamp\n' + text.replace(b' ', b',').replace(b'\n', b',1\n') + b',1\n'
    fails(lambda: read(gzip.compress(rows, 1)[:-100_000], 'x.csv'), 'truncated gzip')


def test_a_parquet_file_cut_short_is_an_error(read):
    fails(lambda: read(b'PAR1 and not much more', 'x.parquet'), 'cannot read x.parquet')


def test_error_lines_of_parquet(read_table):
    def table(**columns):
        return lambda: read_table({'user': [1, 2], 'item': [1, 2], 'timestamp': [1, 2], **columns})

    fails(table(user=[1, None]), 'row 2', 'no id', "'user'")
    fails(table(item=['a', '']), 'row 2', 'no id', "'item'")
    fails(table(item=[0.5, 1.0]), 'row 1', 'fraction', "column 'item'")
    fails(table(item=[True, False]), 'type bool')
    fails(table(timestamp=[None, 1]), 'row 1', "'timestamp'")
    fails(table(timestamp=['1', 'x']), 'row 2', "'x'")
    fails(table(timestamp=[1.0, float('nan')]), 'row 2', 'finite')
    fails(table(timestamp=[[1], [2]]), 'type list')
    fails(
        lambda: read_table({'u': [1], 'item': [1], 'timestamp': [1]}),
        "no column 'user'",
        "'u', 'item'",
    )


def test_dictionaries_with_nulls_and_repeats_among_their_values():
    values = pa.array(['a', None, 'b', 'a'])

    def checked(codes):
        users = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), values)
        return raw_ids.checked(users, 'user', 'log', lambda at: f'row {at + 1}')

    coded = raw_ids.encode([checked([0, 2, 3, 0])], text=False)
    assert coded.values[coded.codes].tolist() == [b'a', b'b', b'a', b'a']
    assert len(set(coded.values)) == len(coded.values)
    fails(lambda: checked([0, 2, 1, 0]), 'row 3', 'no id', "column 'user'")
