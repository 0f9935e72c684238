"""The Apache Beam path, with its DirectRunner, against the log read on one machine."""

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxrec.config import Data
from jaxrec.data.histories import Histories
from jaxrec.datasets import beam, events, log_file
from jaxrec.errors import UserError

try:
    import apache_beam
except ImportError:
    apache_beam = None
needs_beam = pytest.mark.skipif(apache_beam is None, reason=beam.MISSING)
EVENTS = 900


def log(folder, text, **changed):
    """Three files of a log without equal times of a user, and one file of all of it."""
    rng = np.random.default_rng(3)
    columns = {
        'user': (50 * rng.random(EVENTS) ** 2).astype(np.int64) * 11 - 40,
        'item': (70 * rng.random(EVENTS) ** 2).astype(np.int64),
        'timestamp': rng.permutation(EVENTS) + 10**9,
    } | changed
    if text:
        columns |= {c: pa.array([f'é{n}' for n in columns[c]]) for c in ('user', 'item')}
    table = pa.table(columns)
    folder.mkdir()
    for n in range(3):
        part = table.slice(n * EVENTS // 3, EVENTS // 3)
        pa.parquet.write_table(part, folder / f'part-{n}.parquet', row_group_size=70)
    pa.parquet.write_table(table, folder / 'all')
    return folder


@needs_beam
@pytest.mark.parametrize('text', [False, True])
def test_the_same_histories_as_on_one_machine(tmp_path, text):
    folder = log(tmp_path / 'log', text)
    config = Data(log=f'{folder}/part-*.parquet', data_dir=str(tmp_path / 'data'))
    said = []
    found, meta = beam.prepare(config, 'DirectRunner', (), said.append)
    one = log_file.read(Data(log=str(folder / 'all')))
    expected = events.to_histories(one, 'all')
    assert found.content_hash() == expected.content_hash() == meta['data_hash']
    assert meta['statistics'] == expected.statistics()
    assert said and not list((tmp_path / 'data').rglob('scratch*'))
    # as a TFDS data set, too
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(meta['path']).as_data_source('histories')
    first = source[0]
    raw = first['user'].decode() if text else int(first['user'])
    user = expected.find_user(raw)
    np.testing.assert_array_equal(first['items'], expected.history(user))
    assert len(source) == expected.num_users
    # found again, without Beam doing anything
    again, _ = beam.prepare(config, 'NoSuchRunner', (), said.append)
    assert again.content_hash() == found.content_hash()


@needs_beam
def test_the_command_and_equal_times(tmp_path):
    same = np.full(EVENTS, 5)
    folder = log(tmp_path / 'log', False, timestamp=same)
    words = [sys.executable, '-m', 'jaxrec.prepare', f'--log={folder}/part-*.parquet']
    words += ['--beam_runner=DirectRunner', '--beam_options=--direct_num_workers=1']
    words += [f'--data_dir={tmp_path}/data']
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert 'interactions  900' in done.stdout and 'equal times by item' in done.stdout
    path = next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith('path'))
    h = Histories.load(f'{path}/columns')
    inside = np.ones(EVENTS - 1, bool)
    inside[h.offsets[1:-1] - 1] = False
    assert (np.diff(h.items)[inside] >= 0).all()


@needs_beam
def test_mistakes(tmp_path):
    folder = log(tmp_path / 'log', False)
    (folder / 'text.csv').write_text('user,item\n1,2\n')
    floats = log(tmp_path / 'floats', False, timestamp=np.linspace(0, 1, EVENTS))

    def fails(phrase, **options):
        config = Data(**({'log': f'{folder}/part-*', 'data_dir': str(tmp_path / 'd')} | options))
        with pytest.raises(UserError, match=phrase) as error:
            beam.prepare(config, 'DirectRunner', (), print)
        assert '\n' not in str(error.value)

    fails('no such file', log=f'{folder}/nothing-*')
    fails('text.csv is no Parquet file', log=f'{folder}/text.csv')
    fails('has no column .sku.; it has user, item, timestamp', item_col='sku')
    fails('min_user does not go with', min_user=5)
    fails('needs --time_col', time_col='')
    fails('is of type double', log=f'{floats}/part-*')


@pytest.mark.skipif(apache_beam is not None, reason='Apache Beam is installed')
def test_without_beam_one_line_says_how_to_get_it():
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[beam\]'"):
        beam.prepare(Data(log='x'), 'DirectRunner', (), print)
