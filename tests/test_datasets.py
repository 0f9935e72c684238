"""What is kept on disk, and the public and generated sets; logs are in test_log_file.py."""

import functools
import gzip
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from real_data import real_data

from jaxrec import datasets, files
from jaxrec.config import Data
from jaxrec.data import stored
from jaxrec.data.histories import Histories
from jaxrec.data.stored import FORMAT
from jaxrec.datasets import events as events_lib
from jaxrec.datasets import log_file, log_parts, movielens, public, s3rec, store, synthetic, tastes
from jaxrec.errors import UserError

CSV = 'user,item,timestamp\n2,9,5\n1,8,7\n2,7,5\n2,10,4\n1,8,7\n'


def quiet(*_):
    pass


@pytest.fixture
def load(tmp_path):
    """Writes `text` to a file and loads it as a log."""

    def load_log(text, name='log.csv', **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        config = Data(log=str(path), data_dir=str(tmp_path / 'data'), **options)
        return datasets.load(config, say=quiet)[0]

    return load_log


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


def test_error_lines_of_load(tmp_path):
    def load(**options):
        return lambda: datasets.load(Data(data_dir=str(tmp_path / 'd'), **options), say=quiet)

    fails(load(), 'no data', '--config.data.log=FILE', '--config.data.dataset')
    fails(load(log=str(tmp_path / 'no.csv')), 'no such file', 'no.csv')
    (tmp_path / 'empty').mkdir()
    fails(load(log=str(tmp_path / 'empty')), 'a folder without files')
    fails(load(dataset='ml1m'), "unknown data set 'ml1m'", 'nearest first: ml-1m,')
    fails(load(dataset='synthetic:user=3'), "no parameter 'user'", 'users')
    fails(load(dataset='synthetic:users=x'), 'users=x')
    fails(load(dataset='synthetic:items=5'), 'items >= 3 * length')
    fails(load(dataset='beauty', source=str(tmp_path / 'no')), 'no such file or folder')
    fails(load(dataset='beauty', source=str(tmp_path)), 'holds no Beauty.txt')
    fails(load(dataset='beauty', min_user=-1), 'negative')
    graph = 'block-model:nodes=60,valid=5,test=5,train=3'
    fails(load(dataset=graph), f'{graph} holds graph, and this wants histories')
    fails(load(dataset='beauty', features='x'), '--config.data.features', 'goes with')
    (tmp_path / 'Beauty.txt').write_text('1 2 3\n')
    fails(load(dataset='beauty', source=str(tmp_path)), 'not the published Beauty.txt', 'sha256')
    (tmp_path / 'Toys_and_Games.txt').write_text('1 2 3\n')
    fails(load(dataset='toys', source=str(tmp_path)), '1 users, 2 items', '19412, 11924, 167597')
    (tmp_path / 'file').write_text('')
    fails(
        lambda: datasets.load(Data(dataset='synthetic', data_dir=str(tmp_path / 'file'))),
        'cannot write',
        'Not a directory',
        '--config.data.data_dir',
    )


def test_disk_full_is_one_line(tmp_path, monkeypatch):
    config = Data(dataset='synthetic:users=9', data_dir=str(tmp_path))
    usage = store.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as m:
        m.setattr(store.shutil, 'disk_usage', lambda _: usage._replace(free=10))
        fails(lambda: datasets.load(config, say=quiet), 'cannot write', 'MiB free', 'data_dir')

    for error in [
        OSError(28, 'No space left on device'),
        OSError('900 requested and 284 written'),  # numpy
        RuntimeError('write() failed: No space left on device; writing ...'),  # array_record
    ]:

        def no_space(*_, error=error):
            raise error

        with monkeypatch.context() as m:
            m.setattr(Histories, 'save', no_space)
            fails(lambda: datasets.load(config, say=quiet), 'No space left on device', 'data_dir')
    assert not list(tmp_path.glob('synthetic/*/*'))
    assert datasets.load(config, say=quiet)[0].num_users == 9


# What is kept ------------------------------------------------------------------------------------


def test_tfds_examples_equal_the_columns(load, tmp_path):
    import tensorflow_datasets as tfds

    text = 'user,item,timestamp,stars\nb,9,5,4\na,8,7,3\nb,7,4,5\n'
    h = load(text, features='stars')
    folder = next((tmp_path / 'data/log').glob('log-*')) / store.VERSION
    source = tfds.builder_from_directory(folder).as_data_source('histories')
    assert len(source) == h.num_users == 2
    for user, example in enumerate(source):
        part = slice(h.offsets[user], h.offsets[user + 1])
        assert example['user'] == h.raw_user(user).encode()
        np.testing.assert_array_equal(example['items'], h.items[part])
        np.testing.assert_array_equal(example['times'], h.times[part])
        np.testing.assert_array_equal(example['features']['stars'], h.features['stars'][part])
    assert 'tensorflow' not in sys.modules


def test_a_prepared_set_opens_without_tfds_or_its_source(tmp_path):
    log, data_dir = tmp_path / 'log.csv', str(tmp_path / 'data')
    log.write_text(CSV)
    options = [{'log': str(log)}, {'dataset': 'synthetic:users=5'}]
    (h, meta), (generated, _) = (
        datasets.load(Data(**o, data_dir=data_dir), quiet) for o in options
    )
    log_hash, path = h.content_hash(), meta['path']
    options += [{'log': path}, {'log': f'{path}/columns'}]
    code = f"""if True:
        import os, sys
        from jaxrec import datasets, files
        from jaxrec.config import Data
        for options in {options}:
            h, meta = datasets.load(Data(**options, data_dir={data_dir!r}), say=None)
            print(meta['data_hash'], 'tensorflow_datasets' in sys.modules, type(h.items).__name__)
            if 'dataset' in options:
                os.unlink({str(log)!r})  # from here on without its source
    """
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hashes = [log_hash, generated.content_hash(), log_hash, log_hash]
    assert done.stdout.splitlines() == [f'{content} False memmap' for content in hashes]
    assert datasets.load(Data(log=str(pathlib.Path(path).parent)))[1] == meta


def test_second_call_does_not_read_and_a_changed_log_or_option_does(tmp_path):
    log = tmp_path / 'my events.csv'
    log.write_text(CSV)
    said = []

    def load(**options):
        said.clear()
        config = Data(log=str(log), data_dir=str(tmp_path / 'data'), **options)
        h, meta = datasets.load(config, say=said.append)
        return h.content_hash(), meta['path']

    first = load()
    assert said and 'my_events-' in first[1]
    assert load() == first and not said
    assert load(min_user=3) != first and said
    assert load(time_col='') != first and said
    assert load(user_col='item', item_col='user') != first and said
    log.write_text(CSV + '3,3,3\n')
    assert load() != first and said
    log.write_text(CSV)
    os.utime(log, ns=(1, 1))
    assert load() == first and not said


@pytest.mark.parametrize('whole', [log_parts.WHOLE, 0], ids=['read whole', 'known by its times'])
def test_a_log_is_known_by_its_content_not_by_its_times(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(log_parts, 'WHOLE', whole)
    monkeypatch.setattr(log_parts, 'SETTLED', -9)  # so that times are trusted at once
    log = tmp_path / 'log.csv'

    def load(text):
        log.write_text(text)
        os.utime(log, (1e9, 1e9))
        config = Data(log=str(log), data_dir=str(tmp_path / 'data'))
        return datasets.load(config, say=quiet)[0]

    assert load('user,item,timestamp\nu1,a,1\nu1,b,2\nu2,a,3\n').num_users == 2
    assert load('user,item,timestamp\nu1,a,1\nu3,b,2\nu2,c,3\n').num_users == 3
    noted = list((tmp_path / 'data' / 'log' / '.hashes').glob('*'))
    assert bool(noted) == (whole == 0)
    for note in noted:
        note.write_text('{')
    assert load('user,item,timestamp\nu1,a,1\nu3,b,2\nu2,c,3\n').num_users == 3


@pytest.fixture
def prepared(tmp_path):
    """Folder of a small prepared data set."""
    config = Data(dataset='synthetic:users=9', data_dir=str(tmp_path))
    return pathlib.Path(datasets.load(config, say=quiet)[1]['path'])


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def digit(path):
    """Another number of users in the statistics."""
    path.write_text(path.read_text().replace('"users": 9', '"users": 8'))


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    'damage',
    [
        lambda columns: cut(columns / 'items.npy'),
        lambda columns: (columns / 'offsets.npy').write_bytes(b''),
        lambda columns: (columns / 'user_ids.npy').write_bytes(b'something else'),
        lambda columns: (columns / 'items.npy').unlink(),
        lambda columns: cut(columns / 'meta.json'),
        lambda columns: (columns / 'meta.json').write_text('[]'),
        lambda columns: (columns / 'meta.json').write_text(f'{{"format": {FORMAT}}}'),
        lambda columns: flip(columns / 'items.npy', -1),
        lambda columns: flip(columns / 'user_ids.npy', -1),
        lambda columns: digit(columns / 'meta.json'),
    ],
)
def test_a_damaged_set_is_one_line(prepared, damage):
    damage(prepared / store.COLUMNS)
    fails(
        lambda: datasets.load(Data(log=str(prepared)), say=quiet),
        f'the prepared data set {prepared} is damaged (',
        'delete that folder and prepare again',
    )


def test_a_damaged_set_is_made_again_from_its_source(tmp_path):
    config = Data(dataset='synthetic:users=9', data_dir=str(tmp_path))
    before, meta = datasets.load(config, say=quiet)
    before, said = before.content_hash(), []
    flip(pathlib.Path(meta['path']) / store.COLUMNS / 'items.npy', -1)
    again, _ = datasets.load(config, say=said.append)
    assert again.content_hash() == before
    assert 'is damaged (items.npy has changed since it was written): preparing' in said[0]


def test_a_damaged_set_whose_source_is_gone_says_both(tmp_path):
    log = tmp_path / 'log.csv'
    log.write_text(CSV)
    config = Data(log=str(log), data_dir=str(tmp_path / 'data'))
    _, meta = datasets.load(config, say=quiet)
    flip(pathlib.Path(meta['path']) / store.COLUMNS / 'items.npy', -1)
    with pytest.MonkeyPatch.context() as patch:

        def gone(config):
            raise UserError('the log is gone')

        patch.setattr(log_file, 'read', gone)
        fails(lambda: datasets.load(config, say=quiet), 'is damaged (items', 'the log is gone')


def test_large_columns_are_compared_once_and_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, 'ALWAYS', 0)
    config = Data(dataset='synthetic:users=9', data_dir=str(tmp_path))
    _, meta = datasets.load(config, say=quiet)
    columns = pathlib.Path(meta['path']) / store.COLUMNS
    assert (columns / stored.VERIFIED).exists()
    compared = []
    digest = files.digest
    monkeypatch.setattr(files, 'digest', lambda path: compared.append(path) or digest(path))
    store.find(columns.parent)
    assert not compared
    flip(columns / 'items.npy', -1)
    fails(lambda: store.find(columns.parent), 'items.npy has changed')


def test_a_set_of_an_older_version_is_compared_with_its_data_hash(prepared):
    meta = json.loads((prepared / store.COLUMNS / 'meta.json').read_text())
    del meta['files'], meta['meta_hash']
    (prepared / store.COLUMNS / 'meta.json').write_text(json.dumps(meta))
    assert store.find(prepared)[0].num_users == 9
    flip(prepared / store.COLUMNS / 'items.npy', -1)
    fails(lambda: store.find(prepared), 'is damaged', 'data_hash')


def test_a_prepared_set_is_taken_as_it_is(prepared):
    assert datasets.load(Data(log=str(prepared)), say=quiet)[0].num_users == 9
    changed = {
        'layout': 'pairs',
        'user_col': 'u',
        'item_col': 'i',
        'time_col': '',
        'features': 'x',
        'domain_col': 'x',
    }
    for option, value in {**changed, 'min_user': 5, 'min_item': 2}.items():
        config = Data(log=str(prepared), **{option: value})
        fails(
            lambda config=config: datasets.load(config, say=quiet),
            str(prepared),
            f'leave out --config.data.{option},',
        )


def test_a_killed_build_is_never_taken_for_finished(tmp_path, monkeypatch):
    config = Data(dataset='synthetic:users=9', data_dir=str(tmp_path))
    rename = pathlib.Path.rename

    def killed(path, target):
        if 'columns' in path.name:
            shutil.copytree(path, path.with_name('columns.partial0'))  # what a kill leaves
            raise SystemExit
        return rename(path, target)

    with monkeypatch.context() as m:
        m.setattr(pathlib.Path, 'rename', killed)
        with pytest.raises(SystemExit):
            datasets.load(config, say=quiet)
    folder = next(tmp_path.glob('synthetic/*')) / store.VERSION
    assert list(folder.glob('columns.partial*')) and not (folder / 'columns').exists()
    leftover = folder.parent / 'incomplete.ABC123_1.0.0'
    leftover.mkdir()
    assert datasets.load(config, say=quiet)[0].num_users == 9
    assert not leftover.exists() and not list(folder.glob('columns.partial*'))


def test_several_processes_build_once(tmp_path):
    code = (
        'import sys; from jaxrec import datasets; from jaxrec.config import Data\n'
        'data = Data(dataset="synthetic:users=20", data_dir=sys.argv[1])\n'
        'print(datasets.load(data)[1]["data_hash"])'
    )
    command = [sys.executable, '-c', code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    out = [p.communicate()[0].split('\n') for p in running]
    assert sum(line.startswith('writing') for lines in out for line in lines) == 1
    assert len({lines[-2] for lines in out}) == 1


# Public and generated sets -----------------------------------------------------------------------


def test_synthetic_depends_on_its_parameters_only():
    def make(text):
        p = synthetic.parse(text)
        return events_lib.to_histories(synthetic.generate(p), 'synthetic')

    a = make('users=300,items=100,length=10')
    assert a.content_hash() == make('users=300,items=100,length=10').content_hash()
    assert a.content_hash() != make('users=300,items=100,length=10,seed=1').content_hash()
    assert a.num_users == 300 and a.statistics()['repeats'] == 0
    assert 8 < a.statistics()['mean_length'] < 12 and (np.diff(a.offsets) >= 3).all()


def test_tastes_are_what_was_asked_for():
    """Each user's events lie in so many tastes, evenly, rank r of one as often as 1 / r says."""
    p = tastes.parse('interests=2,tastes=10,users=3000,items=300,length=12,seed=1')
    h = events_lib.to_histories(tastes.generate(p), 'synthetic')
    items = h.item_ids[h.items - 1].astype(int).reshape(3000, 12) - 1
    taste = items // 30
    counts = np.array([np.unique(row, return_counts=True)[1] for row in np.sort(taste, axis=1)])
    assert counts.shape == (3000, 2) and abs(counts[:, 0].mean() - 6) < 0.2
    assert all(len(set(row)) == 12 for row in items.tolist())
    assert np.bincount(taste[:, 0], minlength=10).min() > 200
    first = np.bincount(items[:, 0] % 30, minlength=30)
    expected = 1 / np.arange(1, 31)
    np.testing.assert_allclose(first[:8] / 3000, expected[:8] / expected.sum(), atol=0.03)


@pytest.mark.parametrize(
    ('argument', 'line'),
    [
        ('interests=1', 'gives a user 30 items, fewer than length=40'),
        ('interests=4,tastes=3', 'interests from 1 to tastes'),
        ('interests=4,likely=1', "no parameter 'likely'"),
    ],
)
def test_tastes_that_cannot_be(argument, line):
    with pytest.raises(UserError, match=line):
        tastes.parse(argument)


def test_synthetic_next_item_depends_on_the_last_two():
    h = events_lib.to_histories(synthetic.generate(synthetic.parse('users=2000')), 'synthetic')
    half = h.offsets[h.num_users // 2]
    seen = np.ones(len(h.items), bool)
    seen[np.minimum(h.offsets[:-1], len(h.items) - 1)] = False
    seen[np.minimum(h.offsets[:-1] + 1, len(h.items) - 1)] = False

    def accuracy(context):
        """Share of the second half predicted by the commonest follower in the first half."""
        counts = {}
        for n in np.flatnonzero(seen[:half]):
            counts.setdefault(context(n), []).append(h.items[n])
        best = {c: np.bincount(items).argmax() for c, items in counts.items()}
        test = half + np.flatnonzero(seen[half:])
        return np.mean([best.get(context(n)) == h.items[n] for n in test])

    popular = accuracy(lambda n: 0)
    last = accuracy(lambda n: h.items[n - 1])
    last_two = accuracy(lambda n: (h.items[n - 1], h.items[n - 2] % 2))
    assert popular < 0.1 and last > 3 * popular and last_two > last + 0.1


def tiny_movielens(monkeypatch):
    ratings = b'1\t5\t3\t20\n2\t4\t1\t10\n1\t4\t5\t10\n'
    digest = public.hashlib.sha256(ratings).hexdigest()
    monkeypatch.setattr(movielens, 'U_DATA_SHA256', digest)
    monkeypatch.setattr(movielens.ML_100K, 'size', (2, 2, 3))
    return ratings, b'4|Caf\xe9 (1995)|x\n5|Heat (1995)|y\n6|None|z\n'


def test_movielens_sources_give_the_same_histories(tmp_path, monkeypatch):
    ratings, titles = tiny_movielens(monkeypatch)
    plain, zipped, gz, wheel = (tmp_path / n for n in ('plain', 'zip', 'gz', 'wheel'))
    for folder in (plain, zipped, gz, wheel):
        folder.mkdir()
    (plain / 'u.data').write_bytes(ratings)
    (gz / 'u.data.gz').write_bytes(gzip.compress(ratings))
    (gz / 'u.item.gz').write_bytes(gzip.compress(titles))
    with zipfile.ZipFile(zipped / 'ml-100k.zip', 'w') as z:
        z.writestr('ml-100k/u.data', ratings)
        z.writestr('ml-100k/u.item', titles)
    header = b'user_id:token\titem_id:token\trating:float\ttimestamp:float\n'
    (wheel / 'ml-100k.inter').write_bytes(header + ratings)
    sources = [plain, plain / 'u.data', gz, gz / 'u.data.gz', zipped, zipped / 'ml-100k.zip']
    sources.append(wheel / 'ml-100k.inter')
    found = [movielens.ML_100K.read_checked(str(s), quiet) for s in sources]
    all_h = [events_lib.to_histories(e, 'ml-100k') for e, _ in found]
    assert len({h.content_hash() for h in all_h}) == 1
    assert events(all_h[0]) == [(1, 4), (1, 5), (2, 4)]
    np.testing.assert_array_equal(all_h[0].features['rating'], np.float32([5, 3, 1]))
    assert all_h[0].title(1) == '' and all_h[2].title(1) == 'Café (1995)'
    assert [h.title(2) for h in all_h[2:6]] == ['Heat (1995)'] * 4


def test_movielens_1m_has_genres_and_years(tmp_path, monkeypatch):
    ratings = b'1::5::3::20\n2::4::1::10\n1::4::5::10\n1::6::5::30\n'
    monkeypatch.setattr(movielens, 'RATINGS_SHA256', public.hashlib.sha256(ratings).hexdigest())
    monkeypatch.setattr(movielens.ML_1M, 'size', (2, 3, 4))
    (tmp_path / 'ratings.dat').write_bytes(ratings)
    (tmp_path / 'movies.dat').write_bytes(b'4::Heat (1995)::Action|Crime|Thriller\n6::A::Drama\n')
    raw, _ = movielens.ML_1M.read_checked(str(tmp_path), quiet)
    h = events_lib.to_histories(raw, 'ml-1m')
    assert h.item_features['genres'].tolist() == [[1, 6, 16], [0, 0, 0], [8, 0, 0]]  # of 4, 5, 6
    np.testing.assert_array_equal(h.item_features['year'], np.float32([1995, np.nan, np.nan]))
    monkeypatch.setattr(movielens.ML_1M_TEXTS, 'size', (2, 3, 4))
    raw, _ = movielens.ML_1M_TEXTS.read_checked(str(tmp_path), quiet)
    h = events_lib.to_histories(raw, 'ml-1m-texts')
    assert h.titles.tolist() == [b'Heat (1995)|Action|Crime|Thriller', b'', b'A|Drama']
    assert h.item_features['domain'].tolist() == [b'Action', b'', b'Drama']
    assert 'year' not in h.item_features
    (tmp_path / 'movies.dat').unlink()
    with pytest.raises(UserError, match='comes without movies.dat'):
        movielens.ML_1M_TEXTS.read_checked(str(tmp_path), quiet)
    h.save(tmp_path / 'saved')
    again = Histories.load(tmp_path / 'saved')
    assert again.item_features['genres'].tolist() == h.item_features['genres'].tolist()
    assert again.content_hash() == h.content_hash()
    h.item_features['genres'][0, 0] = 2
    assert again.content_hash() != h.content_hash()


def test_movielens_is_downloaded_where_the_host_answers(tmp_path, monkeypatch):
    ratings, titles = tiny_movielens(monkeypatch)
    with zipfile.ZipFile(tmp_path / 'ml-100k.zip', 'w') as z:
        z.writestr('ml-100k/u.data', ratings)
        z.writestr('ml-100k/u.item', titles)
    (tmp_path / 'Beauty.txt').write_text('not the file')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(handler.func, 'log_message', quiet)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            site = f'http://127.0.0.1:{server.server_port}'
            monkeypatch.setattr(movielens, 'SITE', site)
            monkeypatch.setattr(s3rec, 'DATA', site)
            raw, used = movielens.ML_100K.read_checked('', quiet)
            fails(lambda: s3rec.BEAUTY.read_checked('', quiet), 'not the published Beauty.txt')
            fails(lambda: s3rec.YELP.read_checked('', quiet), 'cannot download', 'not found')
            (tmp_path / 'ml-1m.zip').write_bytes(public.ZIP + b'cut')
            fails(lambda: movielens.ML_1M.read_checked('', quiet), 'damaged or truncated')
        finally:
            server.shutdown()
    assert used == f'{site}/ml-100k.zip'
    h = events_lib.to_histories(raw, 'ml-100k')
    assert events(h) == [(1, 4), (1, 5), (2, 4)] and h.title(1) == 'Café (1995)'


def test_movielens_falls_back_to_the_wheel_and_says_so(tmp_path, monkeypatch):
    ratings, _ = tiny_movielens(monkeypatch)

    def unreachable(url, timeout):
        assert timeout <= 10
        raise public.urllib.error.URLError('timed out')

    folder = movielens.WHEEL_FOLDER

    def pip_download(command, **_):
        assert command[1:4] == ['-m', 'pip', 'download'] and 'recbole==1.2.1' in command
        with zipfile.ZipFile(pathlib.Path(command[-1]) / 'recbole-1.2.1.whl', 'w') as z:
            z.writestr(f'{folder}/ml-100k.inter', b'user_id:token\n' + ratings)
            z.writestr(
                f'{folder}/ml-100k.item',
                b'item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n'
                b'4\tHeat\t1995\tx\n5\tunknown\tunkonwn\tx\n',
            )
        return subprocess.CompletedProcess(command, 0, '', '')

    monkeypatch.setattr(public.urllib.request, 'urlopen', unreachable)
    monkeypatch.setattr(movielens.subprocess, 'run', pip_download)
    said = []
    raw, used = movielens.ML_100K.read_checked('', said.append)
    h = events_lib.to_histories(raw, 'ml-100k')
    assert 'recbole' in used and any('timed out' in line for line in said)
    assert h.title(1) == 'Heat (1995)' and h.title(2) == 'unknown'
    fails(lambda: movielens.ML_1M.read_checked('', quiet), 'cannot download', '--source=FILE')

    def hangs(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(movielens.subprocess, 'run', hangs)
    fails(lambda: movielens.ML_100K.read_checked('', quiet), 'PyPI (no answer within 300 seconds)')


@pytest.mark.parametrize('name', datasets.KNOWN)
def test_every_known_set_is_described(name):
    module, attribute, summary = datasets.KNOWN[name]
    data_set = getattr(datasets.importlib.import_module(f'jaxrec.datasets.{module}'), attribute)
    assert data_set.name == name and summary and data_set.description
    assert data_set.citation and data_set.licence and data_set.homepage.startswith('https://')


REAL = {  # name -> where it may lie below JAXREC_TEST_DATA, and the content hash
    'ml-100k': ('ml-100k', '41b71873ba399c21'),
    'ml-1m': ('ml-1m', '94fc454f70daa86f'),
    'ml-1m-sasrec': ('ml-1m', '7a84ecd7093bda19'),
    'beauty': ('beauty/sequences.txt.gz', 'cd9a33b6b48929e6'),
    'sports': ('sports/sequences.txt.gz', 'b9338309aaf62d4e'),
    'yelp': ('yelp/sequences.txt.gz', '3f18685463bbf72d'),
    'games': ('video-sasrec/video.txt.gz', '9332c1fbf1d6b318'),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', REAL)
def test_real_files(tmp_path, name):
    where, content_hash = REAL[name]
    source = real_data(where)
    config = Data(dataset=name, source=str(source), data_dir=str(tmp_path))
    assert datasets.load(config, say=quiet)[1]['data_hash'].startswith(content_hash)
