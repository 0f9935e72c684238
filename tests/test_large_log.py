"""A Parquet log in pieces: bit for bit what reading it at once gives, whatever the pieces."""

import dataclasses
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import datasets
from jaxrec.config import Data
from jaxrec.data import ragged
from jaxrec.datasets import events, large, log_file, tabular
from jaxrec.errors import UserError

EVENTS = 300


def rng():
    return np.random.default_rng(5)


IDS = {
    'integers': lambda draw: draw * 3 - 40,
    'text': lambda draw: pa.array(['é' * int(n % 7) + str(n) for n in draw]),
    'floats': lambda draw: draw.astype(np.float64),
    'dictionary': lambda draw: pa.array([f'x{n}' for n in draw]).dictionary_encode(),
}
TIMES = {
    'whole': lambda t: t,
    'floats, whole': lambda t: t.astype(np.float64),
    'some fractions': lambda t: np.where(np.arange(len(t)) > 280, t + 0.25, t),
    'microseconds': lambda t: pa.array(t, pa.timestamp('us', 'UTC')),
    'nanoseconds': lambda t: pa.array(t * 1000 + (t == t[250]), pa.timestamp('ns')),
    'dates as text': lambda t: pa.array(t * 10**6, pa.timestamp('us')).cast(pa.string()),
    'none': None,
}


def table(ids='integers', times='whole'):
    """Skewed users and items, many equal times."""
    random = rng()
    columns = {
        'user': IDS[ids]((40 * random.random(EVENTS) ** 2).astype(np.int64)),
        'item': IDS[ids]((60 * random.random(EVENTS) ** 2).astype(np.int64)),
        'weight': random.normal(size=EVENTS),
        'count': random.integers(0, 9, EVENTS),
    }
    if TIMES[times]:
        columns['timestamp'] = TIMES[times](random.integers(10**5, 10**5 + 50, EVENTS))
    return columns


@pytest.fixture
def pieces(monkeypatch):
    """Makes every piece tiny: batches of `batch` rows, files of about `size` events."""

    def set_sizes(batch, size):
        monkeypatch.setattr(tabular, 'BATCH', batch)
        monkeypatch.setattr(ragged, 'EVENTS_AT_ONCE', size)
        monkeypatch.setattr(large, 'EVENTS_AT_ONCE', size)
        monkeypatch.setattr(log_file, 'LARGE', -1)
        monkeypatch.setattr(ragged, '_LEAST', 9)

    return set_sizes


def both(path, scratch, **options):
    """(at once, in pieces) of a written table."""
    config = Data(log=str(path), **options)
    whole = events.to_histories(log_file.read(config), path.name, config.min_user, config.min_item)
    scratch.mkdir()
    return whole, log_file.read_large(config, scratch)


def written(path, columns):
    pa.parquet.write_table(pa.table(columns), path, row_group_size=77)
    return path


def same(a, b):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
    assert a.features.keys() == b.features.keys()
    assert a.content_hash() == b.content_hash()
    assert a.statistics() == b.statistics()


@pytest.mark.parametrize('times', TIMES)
@pytest.mark.parametrize('ids', IDS)
def test_the_same_histories(tmp_path, pieces, ids, times):
    path = written(tmp_path / 'log.parquet', table(ids, times))
    options = {'features': 'weight,count', 'time_col': 'timestamp' if TIMES[times] else ''}
    pieces(41, 30)
    same(*both(path, tmp_path / 'scratch', **options))
    left = {file.name.split('.')[0] for file in (tmp_path / 'scratch').iterdir()}
    assert left == {'column'}  # the files in between are gone


@settings(max_examples=15, deadline=None)
@given(st.integers(9, 400), st.integers(9, 400), st.integers(0, 6), st.integers(0, 4))
def test_whatever_the_pieces_and_the_core(tmp_path_factory, batch, size, min_user, min_item):
    folder = tmp_path_factory.mktemp('log')
    path = written(folder / 'log.parquet', table('text'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabular, 'BATCH', batch)
        patch.setattr(ragged, 'EVENTS_AT_ONCE', size)
        patch.setattr(large, 'EVENTS_AT_ONCE', size)
        patch.setattr(log_file, 'LARGE', 0)
        patch.setattr(ragged, '_LEAST', 9)
        same(*both(path, folder / 'scratch', min_user=min_user, min_item=min_item))


def test_the_command_takes_this_way_for_a_large_log(tmp_path, pieces, monkeypatch):
    path = written(tmp_path / 'log.parquet', table())
    at_once, _ = datasets.load(Data(log=str(path), data_dir=str(tmp_path / 'a')), say=str)
    pieces(41, 30)
    monkeypatch.setattr(tabular, 'add_parquet', None)  # not the other way
    in_pieces, _ = datasets.load(Data(log=str(path), data_dir=str(tmp_path / 'b')), say=str)
    same(at_once, in_pieces)
    assert not list((tmp_path / 'b').rglob('scratch*'))


def test_small_logs_and_text_are_read_at_once(tmp_path):
    path = written(tmp_path / 'log.parquet', table())
    assert log_file.read_large(Data(log=str(path)), tmp_path) is None
    (tmp_path / 'log.csv').write_text('user,item,timestamp\n1,2,3\n')
    assert log_file.read_large(Data(log=str(tmp_path / 'log.csv')), tmp_path) is None


def test_the_same_complaints(tmp_path, pieces):
    pieces(10, 10)

    def fails(columns, phrase, **options):
        path, config = written(tmp_path / 'log.parquet', columns), Data(**options)
        config.log = str(path)
        for read in (log_file.read, lambda c: log_file.read_large(c, tmp_path)):
            with pytest.raises(UserError, match=phrase):
                made = read(config)
                events.to_histories(made, 'log.parquet', config.min_user, config.min_item)

    gap = pa.array([None if n == 123 else n for n in range(EVENTS)])
    fails(table() | {'item': gap}, "row 124 has no id in column 'item'")
    fails(table() | {'timestamp': gap}, "row 124 has no value in column 'timestamp'")
    fails(table(), 'has no column', time_col='when')
    fails(table(), 'nothing is left of log.parquet', min_user=200)
    fails({k: pa.array(v)[:0] for k, v in table().items()}, 'no events in log.parquet')


def test_a_full_disk_is_told_before_the_events_are_written(tmp_path, pieces, monkeypatch):
    path = written(tmp_path / 'log.parquet', table())
    pieces(41, 30)
    free = types.SimpleNamespace(free=300 * 2 * 16 - 1)  # user, item and time are 16 bytes
    monkeypatch.setattr(large.shutil, 'disk_usage', lambda folder: free)
    with pytest.raises(UserError, match='cannot write .*No space left .*data_dir'):
        datasets.load(Data(log=str(path), data_dir=str(tmp_path / 'd')), say=str)


def test_no_column_of_the_log_is_held(tmp_path, monkeypatch):
    """2 million events: an int64 column would take 16 MB, ten of them are worked on."""
    import tracemalloc

    users = np.repeat(np.arange(20_000), 100)
    path = tmp_path / 'log.parquet'
    order = rng().permutation(len(users))
    columns = {'user': users[order], 'item': order % 5000, 'timestamp': order}
    pa.parquet.write_table(pa.table(columns), path)
    del users, order, columns
    monkeypatch.setattr(tabular, 'BATCH', 1 << 16)
    monkeypatch.setattr(ragged, 'EVENTS_AT_ONCE', 1 << 16)
    monkeypatch.setattr(large, 'EVENTS_AT_ONCE', 1 << 16)
    monkeypatch.setattr(ragged, '_LEAST', 1 << 16)
    names = ['user', 'item', 'timestamp']
    tracemalloc.start()
    made = large.to_histories(
        lambda: tabular.parquet_parts([path], names),
        'log',
        tmp_path,
        user_col='user',
        item_col='item',
        time_col='timestamp',
    )
    made.statistics()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(made.items) == 2_000_000 and peak < 12e6, peak
