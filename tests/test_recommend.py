"""Lists against a full sort, raw ids in and out, and a bulk run that is killed."""

import json
import os
import pathlib
import types

import jax
import numpy as np
import pytest
from flax import nnx
from pyarrow import parquet

from jaxrec import files, recommend
from jaxrec.data.histories import Histories
from jaxrec.devices.mesh import TABLE, lookup, table_rows
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment
from jaxrec.problem import Inputs, Model, ModelConfig
from jaxrec.serving import bulk
from jaxrec.serving.recommender import Recommender
from jaxrec.tasks.next_item import NextItem
from jaxrec.training.restore import Trained

ITEMS, USERS = 40, 33


class LastConfig(ModelConfig):
    def inputs(self):
        return Inputs(max_len=6)


class LastModel(Model):
    """The query is the newest item's row."""

    def __init__(self, table):
        self.table = nnx.Param(table)

    def catalogue(self, constants):
        return {'items': self.table[...]}

    def queries(self, history, catalogue):
        return lookup(catalogue['items'], history['items'][:, -1:])


def make_table():
    rng = np.random.default_rng(1)
    return rng.integers(-3, 4, (table_rows(ITEMS), 5)).astype(np.float32)


def make_trained(folder, text_ids=False, titles=True, table=None):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, USERS)
    user_ids, item_ids = np.arange(USERS) * 7 + 100, np.arange(ITEMS) * 3 + 5
    if text_ids:
        user_ids = np.sort(np.char.encode([f'ü{i}' for i in user_ids], 'utf-8'))
        item_ids = np.sort(np.char.encode([f'i{i}' for i in item_ids], 'utf-8'))
    histories = Histories(
        items=rng.integers(1, ITEMS + 1, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_ids=user_ids,
        item_ids=item_ids,
        titles=np.char.encode([f'Title {i} é' for i in range(ITEMS)], 'utf-8') if titles else None,
    )
    spec = jax.NamedSharding(jax.sharding.get_mesh(), TABLE)
    table = make_table() if table is None else table
    graphdef, state = nnx.split(LastModel(jax.device_put(table, spec)))
    experiment = Experiment(model=LastConfig())
    return Trained(
        experiment=experiment,
        served=NextItem(experiment, histories, {'data_hash': 'abc', 'path': ''}),
        mesh=jax.sharding.get_mesh(),
        graphdef=graphdef,
        params=nnx.to_pure_dict(state),
        constants={},
        step=12,
        workdir=pathlib.Path(folder),
        checkpoint='best',
    )


def slow_list(history, k, keep_seen):
    """Item numbers and scores, best first, equal scores by number."""
    table = make_table().astype(np.float64)
    scores = table @ table[history[-1]]
    allowed = [i for i in range(1, ITEMS + 1) if keep_seen or i not in history]
    best = sorted(allowed, key=lambda i: (-scores[i], i))[:k]
    return best, [scores[i] for i in best]


@pytest.mark.parametrize('keep_seen', [False, True])
@pytest.mark.parametrize('shape', [(1, 1), (2, 4)])
def test_lists(tmp_path, mesh, shape, keep_seen):
    mesh(*shape)
    trained = make_trained(tmp_path)
    recommender = Recommender(trained, 35, keep_seen=keep_seen, batch_users=10)
    users = np.array([3, 30, 3, 0, *range(10, 25)])
    scores, items, _ = recommender(users)
    for row, user in enumerate(users):
        want, want_scores = slow_list(trained.problem.source.history(user), 35, keep_seen)
        left = [0] * (35 - len(want))
        assert items[row].tolist() == want + left
        np.testing.assert_array_equal(scores[row, : len(want)], want_scores)


def flags(**given):
    values = {
        'workdir': 'run',
        'history': None,
        'history_file': None,
        'histories': None,
        'text': None,
        'user': None,
        'users': None,
        'output': None,
        'k': 10,
        'exclude': None,
        'allow': None,
        'domain': None,
        'keep_seen': False,
        'explain': False,
        'skip_unknown': False,
        'rerank': None,
        'weights': None,
        'combined': None,
        'context': None,
        'checkpoint': 'best',
        'batch_users': 16,
        'part_users': 10,
    }
    return types.SimpleNamespace(**{**values, **given})


def command(monkeypatch, trained, **given):
    """Runs `main`; returns what --json would print."""
    results = []
    monkeypatch.setattr(recommend, 'FLAGS', flags(**given))
    monkeypatch.setattr(recommend, 'load_trained', lambda *_: trained)
    monkeypatch.setattr(recommend.cli, 'emit', results.append)
    recommend.main([])
    return json.loads(json.dumps(results[0], allow_nan=False))


def test_history(tmp_path, mesh, monkeypatch, capsys):
    """A history that no user has; raw ids 5, 8, 11 are items 1, 2, 3."""
    mesh(1, 1)
    trained = make_trained(tmp_path)
    result = command(monkeypatch, trained, history='5, 8,11', k=4)
    want, scores = slow_list([1, 2, 3], 4, False)
    assert result['history'] == [5, 8, 11]
    assert [row['item'] for row in result['items']] == [i * 3 + 2 for i in want]
    assert [row['title'] for row in result['items']] == [f'Title {i - 1} é' for i in want]
    assert [row['score'] for row in result['items']] == scores
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['rank', 'item', 'score', 'title'] and len(lines) == 5
    assert lines[1].split()[:2] == ['1', str(want[0] * 3 + 2)]


@pytest.mark.parametrize('text_ids', [False, True])
def test_a_log_of_new_users(tmp_path, mesh, monkeypatch, text_ids):
    """In time order, whatever the order of its lines; an unknown item is an error or left out."""
    mesh(1, 1)
    trained = make_trained(tmp_path, text_ids)
    trained.experiment.data.data_dir = str(tmp_path / 'kept')
    rng, known = np.random.default_rng(3), trained.served.catalogue
    histories = {f'new {n}': rng.integers(1, ITEMS + 1, rng.integers(1, 9)) for n in range(25)}
    lines = [
        f'{user},{known.raw_item(item)},{time}'
        for user, items in histories.items()
        for time, item in enumerate(items)
    ]
    rng.shuffle(lines)
    log, output = tmp_path / 'log.csv', tmp_path / 'lists.parquet'
    log.write_text('\n'.join(['user,item,timestamp', *lines, '']))
    given = {'histories': str(log), 'output': str(output), 'k': 4}
    told = command(monkeypatch, trained, **given)
    assert told['users'] == 25

    def check():
        rows = parquet.read_table(output).to_pylist()
        for user, items in histories.items():
            want, scores = slow_list(items, 4, False)
            found = [(row['item'], row['score']) for row in rows if row['user'] == user]
            assert found == [(known.raw_item(i), s) for i, s in zip(want, scores, strict=True)]
        assert len(rows) == 25 * 4

    check()
    log.write_text('\n'.join(['user,item,timestamp', 'new 3,never seen,99', *lines, '']))
    with pytest.raises(UserError, match=r"item 'never seen' of .*log.csv is not in the data"):
        command(monkeypatch, trained, **given)
    command(monkeypatch, trained, skip_unknown=True, **given)
    check()
    log.write_text('user,item,timestamp\na,b,1\na,c,2\n')
    with pytest.raises(UserError, match='names no item of the data'):
        command(monkeypatch, trained, skip_unknown=True, **given)
    with pytest.raises(UserError, match='--histories and --output=FILE.parquet go together'):
        command(monkeypatch, trained, histories=str(log))


def test_items_of_one_domain(tmp_path, mesh, monkeypatch):
    """For a user of another one too, and with --allow of those it names."""
    mesh(1, 1)
    trained = make_trained(tmp_path)
    with pytest.raises(UserError, match='have no domains'):
        command(monkeypatch, trained, history='5,8,11', domain='food')
    names = np.where(np.arange(ITEMS) < 5, b'food', b'kitchen')
    trained.served.catalogue.features['domain'] = names
    best = [i for i in slow_list([1, 2, 3], ITEMS, False)[0] if i > 5]  # 1 to 3 are food
    result = command(monkeypatch, trained, history='5,8,11', domain='kitchen', k=4)
    assert [row['item'] for row in result['items']] == [i * 3 + 2 for i in best[:4]]
    (tmp_path / 'allow.txt').write_text(f'5\n14\n{best[7] * 3 + 2}\n')
    given = {'allow': str(tmp_path / 'allow.txt'), 'domain': 'kitchen'}
    result = command(monkeypatch, trained, history='5,8,11', **given)
    assert [row['item'] for row in result['items']] == [best[7] * 3 + 2]
    with pytest.raises(UserError, match="no domain 'garden': the data have food, kitchen"):
        command(monkeypatch, trained, history='5', domain='garden')


def test_histories_of_raw_ids(tmp_path, mesh):
    """The function behind `jaxrec.load(..).recommend`: several at once, each as if alone."""
    mesh(2, 2)
    recommender = Recommender(make_trained(tmp_path), 3)
    lists = recommender.recommend([[5, 8, 11], ['119', 5], [5]], k=4)
    for history, rows in zip(([1, 2, 3], [39, 1], [1]), lists, strict=True):
        want, scores = slow_list(history, 4, False)
        assert [row['item'] for row in rows] == [i * 3 + 2 for i in want]
        assert [row['score'] for row in rows] == scores
    assert [len(rows) for rows in recommender.recommend([[], [5]])] == [3, 3]
    assert recommender.recommend([]) == []
    with pytest.raises(UserError, match='item 6 is not in the data'):
        recommender.recommend([[5, 6]])
    with pytest.raises(UserError, match='at least 1'):
        recommender.recommend([[5]], k=0)


@pytest.mark.parametrize('text_ids', [False, True])
def test_user(tmp_path, mesh, monkeypatch, text_ids):
    mesh(2, 1)
    trained = make_trained(tmp_path, text_ids, titles=False)
    raw = trained.problem.source.raw_user(8)
    result = command(monkeypatch, trained, user=str(raw), k=100)
    want, _ = slow_list(trained.problem.source.history(8), 100, False)
    assert result['user'] == raw
    assert [row['item'] for row in result['items']] == [
        trained.problem.source.raw_item(i) for i in want
    ]


@pytest.mark.parametrize(
    'given, text',
    [
        ({}, '--history, --history_file, --histories, --text, --user and --users; here is none'),
        ({'user': '1', 'history': '5'}, 'here is --history and --user'),
        ({'users': 'all'}, '--users and --output'),
        ({'user': '100', 'output': 'x.csv'}, 'goes with --users, --histories and --history_file'),
        ({'user': '100', 'k': 0}, 'at least 1'),
        ({'user': '101'}, "user '101' is not in the data"),
        ({'history': '5,6'}, "item '6' of --history is not in the data; --skip_unknown"),
        ({'history': '5,6,x'}, "2 of 3 items of --history .* the first is '6'"),
        ({'history': '6,x', 'skip_unknown': True}, 'no item of the data'),
        ({'history': ''}, 'no item of the data'),
    ],
)
def test_errors(tmp_path, mesh, monkeypatch, given, text):
    mesh(1, 1)
    with pytest.raises(UserError, match=text):
        command(monkeypatch, make_trained(tmp_path), **given)


@pytest.mark.parametrize('text', ['0_5', '1_1', '+5', '٥', '05', '-0', '5.0', '1' * 40])
def test_only_plain_integers_are_integer_ids(tmp_path, mesh, text):
    mesh(1, 1)
    histories = make_trained(tmp_path).problem.source
    assert histories.find_item(text) is None
    assert histories.find_item('5') == histories.find_item(5) == 1
    assert histories.find_item(np.int64(5)) == 1


def test_an_id_that_is_not_utf8_is_unknown(tmp_path, mesh):
    mesh(1, 1)
    assert make_trained(tmp_path, text_ids=True).problem.source.find_item('i\udcff') is None


def test_nothing_left_to_recommend(tmp_path, mesh, monkeypatch, capsys):
    mesh(1, 1)
    trained = make_trained(tmp_path)
    everything = ','.join(str(trained.problem.source.raw_item(i + 1)) for i in range(ITEMS))
    assert command(monkeypatch, trained, history=everything)['items'] == []
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 1 and 'holds every item (see --keep_seen)' in text
    assert len(command(monkeypatch, trained, history=everything, keep_seen=True)['items']) == 10


def test_sizes_must_be_positive(tmp_path, mesh):
    mesh(1, 1)
    for k, batch_users in ((0, 8), (5, 0), (5, -1)):
        with pytest.raises(UserError, match='at least 1'):
            Recommender(make_trained(tmp_path), k, batch_users=batch_users)


def test_scores_that_are_not_numbers(tmp_path, mesh):
    mesh(1, 1)
    trained = make_trained(tmp_path, table=np.full_like(make_table(), np.nan))
    with pytest.raises(UserError, match='not numbers'):
        Recommender(trained, 3).after([[1]])


def test_read_users(tmp_path, mesh, capsys):
    mesh(1, 1)
    histories = make_trained(tmp_path).problem.source
    file = tmp_path / 'users.txt'
    file.write_text('107\n\n 100 \n107\n')
    assert recommend.read_users(histories, str(file), False).tolist() == [1, 0, 1]
    assert len(recommend.read_users(histories, 'all', False)) == USERS
    file.write_text('100\nnobody\n101\n')
    with pytest.raises(UserError, match=r"2 of 3 users .* the first is 'nobody'"):
        recommend.read_users(histories, str(file), False)
    assert recommend.read_users(histories, str(file), True).tolist() == [0]
    assert 'left out 2' in capsys.readouterr().out
    file.write_bytes('107\r\n'.encode('utf-8-sig'))
    assert recommend.read_users(histories, str(file), False).tolist() == [1]
    file.write_bytes(b'107\n\xff\xfe\n')
    with pytest.raises(UserError, match='users.txt is not UTF-8 text'):
        recommend.read_users(histories, str(file), False)
    file.write_text('nobody\n')
    with pytest.raises(UserError, match='no user'):
        recommend.read_users(histories, str(file), True)


@pytest.mark.parametrize('text_ids', [False, True])
def test_bulk(tmp_path, mesh, monkeypatch, text_ids, capsys):
    mesh(2, 2)
    trained = make_trained(tmp_path, text_ids)
    output = tmp_path / 'lists.parquet'
    result = command(monkeypatch, trained, users='all', output=str(output), k=30)
    assert result['users'] == USERS
    table = parquet.read_table(output)
    rows = table.to_pylist()
    assert str(table.schema.field('item').type) == ('string' if text_ids else 'int64')
    known = trained.problem.source
    at = 0
    for user in range(USERS):
        want, scores = slow_list(known.history(user), 30, False)
        for rank, (item, score) in enumerate(zip(want, scores, strict=True), 1):
            assert rows[at] == {
                'user': known.raw_user(user),
                'rank': rank,
                'item': known.raw_item(item),
                'score': score,
                'title': known.title(item),
            }
            at += 1
    assert at == len(rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['lists.parquet']
    assert 'users/s' in capsys.readouterr().out


def test_bulk_goes_on_after_a_kill(tmp_path, mesh, monkeypatch):
    mesh(1, 1)
    trained = make_trained(tmp_path)
    users, output = np.arange(USERS), tmp_path / 'lists.parquet'
    recommender = Recommender(trained, 5, batch_users=8)
    bulk.write_lists(recommender, users, tmp_path / 'whole.parquet', 10)

    calls = []

    class Dies:
        trained, k, keep_seen, explain = recommender.trained, 5, False, False
        allowed = None
        histories, catalogue = recommender.histories, recommender.catalogue

        def __call__(self, chosen, given):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(chosen.tolist())
            return recommender(chosen)

    with pytest.raises(KeyboardInterrupt):
        bulk.write_lists(Dies(), users, output, 10)
    folder = tmp_path / 'lists.parquet.parts'
    (folder / 'part-000002.parquet.partial').write_bytes(b'torn')
    done = {p: os.stat(p).st_mtime_ns for p in sorted(folder.glob('part-*.parquet'))}
    assert [p.name for p in done] == ['part-000000.parquet', 'part-000001.parquet']
    assert not output.exists()

    other = Recommender(trained, 6, batch_users=8)
    with pytest.raises(UserError, match=r'another command \(its k differ\): delete that folder'):
        bulk.write_lists(other, users, output, 10)
    with pytest.raises(UserError, match='its users differ'):
        bulk.write_lists(recommender, users[:-1], output, 10)
    retrained = Recommender(make_trained(tmp_path, table=make_table() + 1), 5, batch_users=8)
    with pytest.raises(UserError, match='its parameters differ'):
        bulk.write_lists(retrained, users, output, 10)

    kept = {}
    merge = bulk._row_groups

    def look_before_merging(parts):
        kept.update({p: os.stat(p).st_mtime_ns for p in done})
        return merge(parts)

    class Counts(Dies):
        def __call__(self, chosen, given):
            calls.append(chosen.tolist())
            return recommender(chosen)

    monkeypatch.setattr(bulk, '_row_groups', look_before_merging)
    calls.clear()
    bulk.write_lists(Counts(), users, output, 10)
    assert calls == [list(range(20, 30)), list(range(30, 33))]
    assert kept == done  # finished parts were not written again
    assert parquet.read_table(output).equals(parquet.read_table(tmp_path / 'whole.parquet'))
    assert not folder.exists()


def test_digest_does_not_depend_on_the_mesh(tmp_path, mesh):
    found = set()
    for shape in ((1, 1), (2, 4), (4, 2)):
        mesh(*shape)
        found.add(bulk._digest(make_trained(tmp_path).params))
    assert len(found) == 1


def test_one_output_has_one_writer(tmp_path, mesh):
    mesh(1, 1)
    recommender = Recommender(make_trained(tmp_path), 5)
    output = tmp_path / 'lists.parquet'
    with files.lock(tmp_path / 'lists.parquet.lock'):
        with pytest.raises(UserError, match='is being written by another process'):
            bulk.write_lists(recommender, np.arange(3), output, 10)
    bulk.write_lists(recommender, np.arange(3), output, 10)
    assert [p.name for p in tmp_path.iterdir()] == ['lists.parquet']
    with pytest.raises(UserError, match='is a folder'):
        bulk.write_lists(recommender, np.arange(3), tmp_path, 10)


def test_damaged_manifest(tmp_path, mesh):
    mesh(1, 1)
    (tmp_path / 'lists.parquet.parts').mkdir()
    (tmp_path / 'lists.parquet.parts' / 'manifest.json').write_text('{"k"')
    recommender = Recommender(make_trained(tmp_path), 5)
    with pytest.raises(UserError, match='manifest.json is damaged'):
        bulk.write_lists(recommender, np.arange(3), tmp_path / 'lists.parquet', 10)


def test_folder_of_someone_else(tmp_path, mesh):
    mesh(1, 1)
    (tmp_path / 'lists.parquet.parts').mkdir()
    (tmp_path / 'lists.parquet.parts' / 'thesis.tex').write_text('precious')
    recommender = Recommender(make_trained(tmp_path), 5)
    with pytest.raises(UserError, match='in the way'):
        bulk.write_lists(recommender, np.arange(3), tmp_path / 'lists.parquet', 10)
