"""Files as users have them, by the kind of what is strange: read whole and exactly, or refused."""

import bz2
import datetime
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet
import pytest
import runs

from jaxrec import datasets
from jaxrec.config import Data
from jaxrec.datasets import clean, log_file, log_parts, raw_ids, store
from jaxrec.errors import UserError

HEADER = 'user,item,timestamp\n'
PLAIN = HEADER + 'u1,a,1\nu1,b,2\nu2,a,3\n'


@pytest.fixture
def load(tmp_path):
    """Writes a file and prepares it: {user: [items]}."""

    def loaded(content, name='log.csv', **options):
        path = tmp_path / name
        if isinstance(content, dict):
            pa.parquet.write_table(pa.table(content), path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        config = Data(log=str(path), data_dir=str(tmp_path / 'data'), **options)
        h, _ = datasets.load(config, say=str)
        return {h.raw_user(u): list(map(h.raw_item, h.history(u))) for u in range(h.num_users)}

    return loaded


def refused(call, *phrases):
    with pytest.raises(UserError) as e:
        call()
    assert '\n' not in str(e.value)
    for phrase in phrases:
        assert phrase in str(e.value), str(e.value)


LITERAL = 'user\titem\ttimestamp\nu1\t"Heroes\t1\nu1\tb\t2\nu2\tb\t3\nu3\t"12 inch\t5\nu3\tc\t6\n'
HEROES = {'u1': ['"Heroes', 'b'], 'u2': ['b'], 'u3': ['"12 inch', 'c']}


@pytest.mark.parametrize(
    ('text', 'right'),
    [
        (LITERAL, HEROES),
        (LITERAL.replace('\t', ','), HEROES),
        (HEADER + 'u1,12" disc,1\nu1,5\'11",2\n', {'u1': ['12" disc', '5\'11"']}),
        (HEADER + '"u1","a, b",1\nu1,"say ""x""",2\n', {'u1': ['a, b', 'say "x"']}),
        ('"user","item","timestamp"\nu1,a,1\n', {'u1': ['a']}),
        ('user,item,timestamp,text\nu1,a,1,"two\nlines"\nu1,b,2,"x"\n', {'u1': ['a', 'b']}),
        (HEADER + '"u1","a","1"\r\n"u1","b","2"\r\n', {'u1': ['a', 'b']}),
    ],
)
def test_quotation_marks_are_letters_or_quotes_by_the_whole_file(load, text, right):
    assert load(text) == right


@pytest.mark.parametrize(
    ('text', 'phrases'),
    [
        (HEADER + 'u1,"a,1\nu1,"b,c,2\n', ['do not pair up', 'line 3']),
        (HEADER + 'u1,"a"b,1\nu1,"a,c",2\n', ['do not pair up', 'line 2', 'line 3']),
        (HEADER + 'u1,"say \\"x\\"",1\n', ['line 2', 'after a backslash']),
        (HEADER + 'u1,"x",1\nu1,x,2\n', ['"x" both with and without', "column 'item'"]),
        ('user,item,timestamp,note\nu1,a,1,"\nu2,b,2,"\n', ['line 2', 'both fit']),
        (HEADER + '"u\n1",a,1\n', ['control character', "column 'user'"]),
    ],
)
def test_quotation_marks_that_fit_no_reading_or_two_are_refused(load, text, phrases):
    refused(lambda: load(text), *phrases)


@pytest.mark.parametrize(
    'text',
    [
        PLAIN.replace('\n', '\r'),
        PLAIN.replace('u1,b,2\n', 'u1,b,2\r'),
        'u1 a b\ru2 a\r',
        'u1 a\nu2 a\ru3 c\n',
        PLAIN.replace('u1', '"u1"').replace('\n', '\r'),
    ],
)
def test_lines_that_end_in_a_carriage_return_alone(load, text):
    refused(lambda: load(text), 'log.csv')


@pytest.mark.parametrize(
    'text',
    [
        '1\t5\t881250949\n2\t6\t881250950\n3\t5\t881250951\n',  # user item time
        '1 5 4 881250949\n2 6 3 881250950\n',  # user item rating time
        '1 5 4\n2 6 3\n',
        '1 5 2020-01-01\n2 6 8 2020-01-02\n',
        '1 5 6 7 1700000000\n2 6 1700000001\n',
        'u1 a\nu2 b,c\n',
        'u1 a b\nu2 b|c\n',
    ],
)
def test_tables_without_a_header_are_no_sequences(load, text):
    refused(lambda: load(text), 'cannot tell the layout', '--config.data.columns', 'layout=')


def test_a_table_without_a_header_can_be_named(load, tmp_path):
    text = 'u1\ta\t5\t2\nu1\tb\t4\t1\nu2\ta\t3\t3\n'
    columns = {'columns': 'user,item,rating,timestamp'}
    assert load(text, **columns) == {'u1': ['b', 'a'], 'u2': ['a']}
    assert load(text.replace('\t', ';'), **columns) == {'u1': ['b', 'a'], 'u2': ['a']}
    assert load('\ufeff' + text, **columns) == {'u1': ['b', 'a'], 'u2': ['a']}
    refused(lambda: load(text, columns='user,item,timestamp'), 'into the 3 fields')
    refused(lambda: load(text, columns='user,thing,x,timestamp'), "no column 'item'")
    refused(lambda: load(PLAIN, columns='user,item,timestamp'), 'has a header line', 'leave out')
    refused(lambda: load({'user': [1], 'item': [1], 'timestamp': [1]}, **columns), 'column names')


def archive(kind):
    out = io.BytesIO()
    if kind == 'zip':
        with zipfile.ZipFile(out, 'w') as z:
            z.writestr('log.csv', PLAIN)
    elif kind == 'tar':
        with tarfile.open(fileobj=out, mode='w') as t:
            info = tarfile.TarInfo('log.csv')
            info.size = len(PLAIN)
            t.addfile(info, io.BytesIO(PLAIN.encode()))
    elif kind == 'arrow':
        pa.feather.write_feather(pa.table({'user': [1]}), out)
    elif kind == 'orc':
        pa.orc.write_table(pa.table({'user': [1]}), out)
    elif kind == 'numpy':
        np.save(out, np.zeros(3))
    return out.getvalue()


OTHERS = [
    (archive('zip'), 'zip archive'),
    (archive('tar'), 'tar archive'),
    (gzip.compress(archive('tar')), 'tar archive'),
    (gzip.compress(gzip.compress(PLAIN.encode())), "gzip'd twice"),
    (bz2.compress(PLAIN.encode()), 'bunzip2'),
    (lzma.compress(PLAIN.encode()), 'unxz'),
    (pa.compress(PLAIN.encode(), 'zstd', asbytes=True), 'unzstd'),
    (archive('arrow'), 'Parquet'),
    (archive('orc'), 'Parquet'),
    (archive('numpy'), 'numpy'),
    (PLAIN.encode('utf-16'), 'UTF-16'),
    (b'user,item\n\0\0', 'zero bytes'),
    (json.dumps([{'user': 1, 'item': 2}]), 'JSON'),
    ('{"user": 1, "item": 2}\n', 'JSON'),
    ('<!DOCTYPE html><html>404</html>', 'failed download'),
    (PLAIN.encode().replace(b'u1', b'\xe9'), 'not UTF-8'),
]


@pytest.mark.parametrize(('content', 'what'), OTHERS, ids=[what for _, what in OTHERS])
def test_other_formats_are_named_and_refused(load, content, what):
    refused(lambda: load(content), what)


def parquet(**changed):
    columns = {'user': ['u1', 'u2'], 'item': ['a', 'b'], 'timestamp': [1, 2]}
    return columns | changed


@pytest.mark.parametrize('value', ['', ' ', 'nan', 'NaN', 'NULL', 'None', '<NA>', r'\N'])
@pytest.mark.parametrize(
    'kind',
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.large_string()),
        'csv',
        'csv of integers',
    ],
    ids=str,
)
def test_missing_ids_are_missing_in_every_type(load, kind, value):
    if isinstance(kind, str):
        other = '7' if 'integers' in kind else 'u1'
        refused(lambda: load(f'{HEADER}{other},a,1\n{value},b,2\n'), 'row 2', "column 'user'")
        return
    users = pa.array([b'u1', value.encode()], pa.binary()).cast(pa.string())
    users = users.dictionary_encode() if pa.types.is_dictionary(kind) else users
    table = parquet(user=users.cast(kind))
    refused(lambda: load(table), 'row 2', "column 'user'")


@pytest.mark.parametrize(
    ('column', 'phrases'),
    [
        ({'user': pa.array([1.0, None])}, ['row 2', 'no id']),
        ({'user': pa.array([1.0, float('nan')], from_pandas=False)}, ['row 2', 'no id']),
        ({'user': pa.array([1.0, 2.5])}, ['row 2', 'fraction']),
        ({'user': pa.array([1.0, 2.0**53])}, ['row 2', 'beyond 9007199254740992']),
        ({'user': pa.array([1.0, 2.0**24], pa.float32())}, ['row 2', 'beyond 16777216']),
        ({'user': pa.array([1, 2**63], pa.uint64())}, ['row 2', '64-bit']),
        ({'user': pa.array([1, -(2**63)])}, ['row 2', 'no id']),
        ({'user': pa.array([1, 10**30], pa.decimal128(38, 0))}, ['64-bit', 'text']),
        ({'user': pa.array([True, False])}, ['bool', 'integers or text']),
        ({'user': pa.array([b'a', b'\xff'])}, ['not UTF-8']),
        ({'user': pa.array(['a', 'b\0'])}, ['row 2', 'control']),
        ({'user': pa.array(['a', 'b\x85'])}, ['row 2', 'control']),
        ({'user': pa.array(['a', '\ufeffa'])}, ['row 2', 'control']),
        ({'user': pa.array(['a', 'b\u2028'])}, ['row 2', 'control']),
        ({'user': pa.array(['a', 'x' * 513])}, ['row 2', '512 bytes']),
        ({'timestamp': pa.array([1.5, 1.7e18])}, ['row 2', 'too large', 'exactly']),
        ({'timestamp': pa.array([1, 1.7e9], pa.float32())}, ['row 2', 'too large']),
        ({'timestamp': pa.array([1, 2**63], pa.uint64())}, ['beyond 64 bits']),
        ({'timestamp': pa.array([1, None])}, ['row 2', 'no value']),
        ({'timestamp': pa.array([1, None], pa.timestamp('us'))}, ['row 2', 'no value']),
        ({'timestamp': pa.array([True, False])}, ['bool']),
    ],
)
def test_values_that_a_type_has_lost_or_that_cannot_be_named(load, column, phrases):
    refused(lambda: load(parquet(**column)), *phrases)


@pytest.mark.parametrize(
    'kind',
    [
        pa.decimal128(38, 0),
        pa.decimal256(60, 0),
        pa.int8(),
        pa.uint64(),
        pa.float64(),
        pa.float32(),
        pa.float16(),
        pa.dictionary(pa.int8(), pa.int32()),
    ],
    ids=str,
)
def test_integer_ids_of_every_type(load, kind):
    users = pa.array([7, 9])
    if pa.types.is_dictionary(kind):
        users = users.cast(pa.int32()).dictionary_encode()
    elif pa.types.is_float16(kind):
        users = pa.array(np.array([7, 9], np.float16))
    else:
        users = users.cast(kind)
    assert load(parquet(user=users)) == {7: ['a'], 9: ['b']}


@pytest.mark.parametrize('scale', [1, 10**3, 10**6, 10**9])
def test_what_a_missing_time_turns_into_is_no_time(load, scale):
    for value in {-(2**63 // scale), -(2**63 // scale) - (scale > 1)}:
        refused(lambda value=value: load(f'{HEADER}u,a,1\nu,b,{value}\n'), 'row 2', 'missing time')
        refused(lambda value=value: load(parquet(timestamp=[1, value])), 'row 2', 'missing time')


@pytest.mark.parametrize(
    ('times', 'phrases'),
    [
        (['1', '0x10'], ['row 2', "'0x10'"]),
        (['1', '9223372036854775808'], ['row 2', 'exactly']),
        (['1.5', '1700000000000000001'], ['row 2', 'exactly']),
        (['2024-01-01T10:00:00', '2024-01-01T10:00:00Z'], ['row 2', 'time zone']),
        (['2024-01-01T10:00:00Z', '2024-01-01T10:00:00'], ['row 2', 'time zone']),
        (['2024-01-01', '5'], ['row 2', "'5'"]),
        (['1', 'NaT'], ['row 2', "'NaT'"]),
        (['1', ''], ['row 2', 'no value']),
    ],
)
def test_times_that_are_none_or_inexact(load, times, phrases):
    rows = ''.join(f'u,i{n},{time}\n' for n, time in enumerate(times))
    refused(lambda: load(HEADER + rows), *phrases)


def test_a_time_beyond_exactness_may_stand_far_from_the_fraction(load, monkeypatch):
    monkeypatch.setattr('jaxrec.datasets.tabular.BLOCK', 64)
    rows = ''.join(f'u,i{n},{1700000000000000001 + n}\n' for n in range(9))
    refused(lambda: load(f'{HEADER}{rows}u,x,1.5\n'), 'exactly')


@pytest.mark.parametrize('large', [False, True], ids=['at once', 'in pieces'])
def test_a_feature_that_is_missing_is_nan(tmp_path, monkeypatch, large):
    weights = [1, None, 3, 4]
    table = pa.table(
        {'user': [1, 1, 2, 2], 'item': [1, 2, 1, 2], 'timestamp': [1, 2, 3, 4], 'weight': weights}
    )
    pa.parquet.write_table(table, tmp_path / 'log.parquet', row_group_size=2)
    (tmp_path / 'log.csv').write_text(
        HEADER.replace('\n', ',weight\n') + '1,1,1,1\n1,2,2, \n2,1,3,3\n2,2,4,4.0\n'
    )
    if large:
        monkeypatch.setattr(log_file, 'LARGE', 0)
        monkeypatch.setattr('jaxrec.datasets.tabular.BATCH', 2)
    for name in ('log.csv', 'log.parquet'):
        config = Data(
            log=str(tmp_path / name), features='weight', data_dir=str(tmp_path / f'data{large}')
        )
        h, _ = datasets.load(config, say=str)
        np.testing.assert_array_equal(h.features['weight'], [1, np.nan, 3, 4])
    table = table.set_column(3, 'weight', pa.array([1, None, 2**53, 1]))
    pa.parquet.write_table(table, tmp_path / 'log.parquet')
    refused(lambda: datasets.load(config, say=str), "'weight'", 'exactly')


def test_a_second_header_inside(load):
    again = PLAIN + PLAIN
    refused(lambda: load(again, time_col=''), 'row 4', 'header line again')
    integers = 'user,item\n1,2\nuser,item\n3,4\n'
    refused(lambda: load(integers, time_col=''), 'row 2', 'header line again')
    assert load(HEADER + 'user,a,1\nu,item,2\n') == {'user': ['a'], 'u': ['item']}


def test_a_header_with_blanks(load):
    spaced = 'user, item, timestamp\nu1, a, 1\n'
    refused(lambda: load(spaced), "' item'", 'blanks are part of a name')
    assert load(spaced, item_col=' item', time_col=' timestamp') == {'u1': [' a']}


def test_rows_are_counted_against_lines(load, monkeypatch):
    real = log_file.tabular.csv_batches

    def loses(*args, **options):
        for batch in real(*args, **options):
            yield batch.slice(1)

    monkeypatch.setattr('jaxrec.datasets.tabular.csv_batches', loses)
    refused(lambda: load(PLAIN), '3 rows', '2 were read')
    monkeypatch.undo()
    assert load(PLAIN + '\n\n') == {'u1': ['a', 'b'], 'u2': ['a']}


def test_quoted_cells_with_blanks_are_no_words(load):
    refused(lambda: load('u1 "red shoe" b\nu2 c\n'), 'line 1', 'quoted field')
    assert load('u1 "red shoe b\nu2 c\n') == {'u1': ['"red', 'shoe', 'b'], 'u2': ['c']}
    refused(lambda: load('u1 a\nu1 b\x07\n', layout='pairs'), 'line 2', 'control character')


def test_parts_of_several_kinds_are_refused(tmp_path, load):
    folder = tmp_path / 'parts'
    folder.mkdir()
    config = Data(log=str(folder), data_dir=str(tmp_path / 'data'))
    refused(lambda: datasets.load(config, say=str), 'without files')
    (folder / 'a.csv').write_text(PLAIN)
    (folder / '.b.crc').write_bytes(b'\0')
    (folder / '_SUCCESS').write_bytes(b'')
    assert datasets.load(config, say=str)[0].num_users == 2
    pa.parquet.write_table(pa.table(parquet()), folder / 'c.parquet')
    refused(lambda: datasets.load(config, say=str), 'c.parquet', 'all')
    (folder / 'c.parquet').unlink()
    (folder / 'c.csv').write_text('')
    refused(lambda: datasets.load(config, say=str), 'c.csv is empty')
    (folder / 'c.csv').write_text('u3,a,1\n')
    refused(lambda: datasets.load(config, say=str), 'c.csv', 'column')
    (folder / 'c.csv').write_text('item;timestamp;user\nz;0;u2\n')
    h, _ = datasets.load(config, say=str)
    assert [h.raw_item(i) for i in h.history(1)] == ['z', 'a']
    pattern = Data(log=str(folder / 'nothing*.csv'), data_dir=str(tmp_path / 'data'))
    refused(lambda: datasets.load(pattern, say=str), 'no file matches')


def test_parts_of_parquet_with_ids_of_two_types(tmp_path, monkeypatch):
    for n, users in enumerate([pa.array([1, 2], pa.int32()), pa.array(['x', 'y'])]):
        pa.parquet.write_table(pa.table(parquet(user=users)), tmp_path / f'{n}.parquet')
    config = Data(log=str(tmp_path / '*.parquet'), data_dir=str(tmp_path / 'data'))
    for limit in (log_file.LARGE, 0):  # at once, and in pieces
        monkeypatch.setattr(log_file, 'LARGE', limit)
        refused(lambda: datasets.load(config, say=str), "'user'", 'integers in one part')
    table = pa.table(parquet(user=pa.array([1, 2], pa.int64())))
    pa.parquet.write_table(table, tmp_path / '1.parquet')
    for limit in (log_file.LARGE, 0):
        monkeypatch.setattr(log_file, 'LARGE', limit)
        config.data_dir = str(tmp_path / f'data{limit}')
        assert datasets.load(config, say=str)[0].user_ids.tolist() == [1, 2]


def test_a_dry_run_says_what_was_understood(tmp_path):
    day = datetime.date(2024, 1, 1)
    seconds = 1704067200
    log = tmp_path / 'log.csv'
    rows = [f'7;a ;{seconds};5', f'7;b;{seconds};4', f'8;b;{seconds + 9};1', '']
    log.write_text('\r\n'.join(['user;item;timestamp;rating', *rows]))
    args = [f'--log={log}', '--dry_run', '--features=rating', f'--data_dir={tmp_path / "data"}']
    done = runs.inside('prepare', *args)
    assert done.returncode == 0 and not (tmp_path / 'data').exists()
    for phrase in [
        'delimiter     semicolon',
        'quotes        none',
        'line ends     CR LF',
        'user ids      integers, 2 distinct',
        'item ids      text, 2 distinct',
        f'times         seconds since 1970: {day}T00:00:00 to {day}T00:00:09',
        "row 1         7, 'a ', 1704067200, rating 5",
        'tied times    100.0%',
        "note: column 'item': 1 distinct ids begin or end with a blank",
    ]:
        assert phrase in done.stdout, (phrase, done.stdout)
    result = json.loads(runs.inside('prepare', *args, '--json').stdout)
    assert result['users'] == 2 and result['remarks'] and result['columns'].startswith('user, item')
    refusal = runs.inside('prepare', '--dataset=synthetic', '--dry_run')
    assert '--dry_run says what was understood of --log' in refusal.error


def test_remarks_on_ids_that_are_accepted():
    def remarks(*ids):
        return raw_ids.remarks(np.array([one.encode() for one in ids]), 'item')

    assert (
        remarks('a', 'b c', 'caf\u00e9') == [] and raw_ids.remarks(np.array([1, 2]), 'item') == []
    )
    (twins,) = remarks('caf\u00e9', 'cafe\u0301', 'b')
    assert "'item': 2 distinct ids differ only in how Unicode composes" in twins
    (blank,) = remarks('a', 'a ', 'b')
    assert "1 distinct ids begin or end with a blank, the first is 'a '" in blank
    (other,) = remarks('total', *map(str, range(200)))
    assert "1 distinct ids are not integers, so all are text, the first is 'total'" in other


def test_clean_removes_copies_of_a_log_that_has_changed(tmp_path):
    log, root = tmp_path / 'log.csv', tmp_path / 'data'
    other = tmp_path / 'other.csv'

    def prepare(path, **options):
        config = Data(log=str(path), data_dir=str(root), **options)
        return datasets.load(config, say=str)[1]['path']

    log.write_text(PLAIN)
    other.write_text(PLAIN.replace('u1', 'u9'))
    first, second, elsewhere = prepare(log), prepare(log, min_user=2), prepare(other)
    os.utime(log, (1, 1))
    assert prepare(log) == first  # touched only
    assert not clean.clean(str(root))
    log.write_text(PLAIN + 'u3,c,9\n')
    grown = prepare(log)
    count, size = clean.size(str(root))
    assert count == 4 and size > 1000
    removed = clean.clean(str(root), str(log))
    assert {one.path for one in removed} == {first, second} and all(r.size for r in removed)
    assert 'has changed since' in removed[0].why
    assert store.find(clean.pathlib.Path(grown)) and store.find(clean.pathlib.Path(elsewhere))
    other.unlink()
    assert not clean.clean(str(root))  # its source is gone: the only copy is kept
    (root / 'log' / 'scratch.x').mkdir()
    done = runs.inside('prepare', '--clean', f'--data_dir={root}')
    assert 'removed' in done.stdout and '2 prepared data sets' in done.stdout
    assert not (root / 'log' / 'scratch.x').exists()


def test_a_log_that_changes_while_it_is_read(tmp_path, monkeypatch):
    log = tmp_path / 'log.csv'
    log.write_text(PLAIN)
    real = log_file.read

    def grows(config):
        found = real(config)
        log.write_text(PLAIN + 'u3,c,9\n')
        return found

    monkeypatch.setattr(log_file, 'read', grows)
    config = Data(log=str(log), data_dir=str(tmp_path / 'data'))
    refused(lambda: datasets.load(config, say=str), 'has changed while it was read')


def test_a_log_is_known_by_all_its_parts(tmp_path):
    for n in range(3):
        (tmp_path / f'{n}.csv').write_text(PLAIN)
    before = log_parts.content_hash(str(tmp_path / '*.csv'), tmp_path / 'data')
    (tmp_path / '1.csv').write_text(PLAIN.replace('u1', 'u3'))
    assert log_parts.content_hash(str(tmp_path / '*.csv'), tmp_path / 'data') != before
