"""Item vectors of ids and texts, tables that begin with texts, and items known by text alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from flax import nnx
from models import jit

from jaxrec import config, datasets, evaluate
from jaxrec.config import Data, Mesh, Optim, Texts, Train
from jaxrec.data.histories import Histories
from jaxrec.data.item_texts import encoder_of
from jaxrec.data.splits import leave_one_out
from jaxrec.devices.mesh import put_batch, put_whole
from jaxrec.errors import UserError
from jaxrec.evaluation import item_lists, protocols, ranking
from jaxrec.experiment import Experiment, applied, check
from jaxrec.models import comirec, kuaiformer, sasrec, two_tower
from jaxrec.nn.embeddings import Rows
from jaxrec.nn.item_tokens import ItemTokens
from jaxrec.objectives.contrast import Contrast
from jaxrec.serving.recommender import Recommender
from jaxrec.tasks import next_item
from jaxrec.training import warm_start
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

SIZES = {'item': 30, 'user': 12, 'text': 4}
KEY = jax.random.key(3)


def constants(texts=None):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(31, 4)).astype(np.float32)
    vectors[0] = vectors[9] = 0
    known = (np.arange(31) > 0) & (np.arange(31) != 12)
    texts = jnp.asarray(vectors if texts is None else texts)
    return {'items': {'known': jnp.asarray(known), 'codes': {}, 'texts': texts}}


def make(made_of='ids+texts', sizes=SIZES, **settings):
    given = {'dim': 6, 'blocks': 1, 'max_len': 5, 'dropout': 0.0, 'embedding_dropout': 0.0}
    tokens = ItemTokens(made_of, settings.pop('id_dropout', 0.0))
    return sasrec.Config(**given | settings, items=tokens).make(sizes, rngs=nnx.Rngs(0))


def batch():
    rng = np.random.default_rng(1)
    items = rng.integers(1, 31, (4, 5)).astype(np.int32)
    items[1, :3] = 0
    there = items > 0
    return {
        'items': items,
        'segments': there.astype(np.int32),
        'positions': (np.arange(5) * there).astype(np.int32),
        'targets': (rng.integers(1, 31, (4, 5)) * there).astype(np.int32),
        'weights': there.astype(np.float32),
    }


def slow(model, given):
    """float64 [31, D], item by item."""
    ids, kernel = np.asarray(model.table[...], np.float64), np.asarray(model.texts.kernel[...])
    texts, known = (np.asarray(given['items'][name]) for name in ('texts', 'known'))
    own = [ids[n] * known[n] * model.texts.ids for n in range(31)]
    return np.array([own[n] + texts[n].astype(np.float64) @ kernel for n in range(31)])


@pytest.mark.parametrize('made_of', ['ids+texts', 'texts'])
def test_a_vector_is_its_row_and_its_text(made_of):
    """An item that nothing was learnt of is its text; one without either is zero."""
    model, given = make(made_of), constants()
    found = np.asarray(model.catalogue(given)['items'])
    np.testing.assert_allclose(found[:31], slow(model, given), rtol=1e-5, atol=1e-6)
    assert not found[0].any() and (made_of == 'ids+texts') == found[9].any()
    np.testing.assert_allclose(found[12], given['items']['texts'][12] @ model.texts.kernel[...])


def test_another_text_of_a_target_changes_no_history_without_it():
    """Under one encoder: its own vector, and predictions after it, alone."""
    model, one = make(), batch()
    target = int(np.setdiff1d(np.arange(1, 31), one['items'][0])[0])
    texts = np.array(constants()['items']['texts'])
    texts[target] = 1
    before, after = (model.catalogue(given) for given in (constants(), constants(texts)))
    changed = (np.asarray(before['items']) != np.asarray(after['items'])).any(1)
    assert np.flatnonzero(changed).tolist() == [target]
    same = ~(one['items'] == target).any(1)
    queries = [np.asarray(model.queries(one, made)) for made in (before, after)]
    np.testing.assert_array_equal(queries[0][same], queries[1][same])


def test_rows_alone_are_those_of_the_table():
    """Where a step looks few up; ids are left out alike in both, and only in training."""
    model, given = make(id_dropout=0.5), constants()
    wanted = (jnp.array([[3, 0], [12, 3]]), jnp.array([7]))
    rows = model.texts(model.item_table(), given, KEY, wanted)
    assert isinstance(rows, Rows) and rows.ids.tolist() == [0, 3, 3, 7, 12]
    whole = np.asarray(model.texts(model.item_table(), given, KEY))
    np.testing.assert_allclose(rows.values, whole[np.asarray(rows.ids)], rtol=1e-5, atol=1e-7)
    plain = slow(model, given)
    without = (
        plain - np.asarray(model.table[...])[:31] * np.asarray(given['items']['known'])[:, None]
    )
    left_out = np.isclose(whole[:31], without, atol=1e-6).all(1) & ~np.isclose(plain, without).all(
        1
    )
    assert 5 < left_out.sum() < 25
    np.testing.assert_allclose(whole[:31][~left_out], plain[~left_out], rtol=1e-5, atol=1e-6)


def test_texts_of_nothing_are_sasrec():
    """Bit for bit: kernel or texts zero, all items known, and ids are what is left."""
    one, given = batch(), constants(np.zeros((31, 4), np.float32))
    given['items']['known'] = jnp.arange(31) > 0
    found = [m.loss(one, given, {}, KEY)[0] for m in (make('ids'), make('ids+texts'))]
    assert float(found[0]) == float(found[1])


@pytest.mark.parametrize('settings', [{}, {'loss': 'sampled_softmax', 'negatives': 1}])
def test_gradients_reach_texts_and_ids(settings):
    """But no id of an item that nothing is learnt of, target or not."""
    model, given = make(**settings), constants()
    graphdef, params = nnx.split(model)

    def loss(params):
        made = nnx.merge(graphdef, params)
        return made.loss(made.sample(batch(), KEY), given, {}, KEY)[0]

    grads = jit(jax.grad(loss))(params)
    assert np.abs(grads['texts']['kernel'][...]).min() > 0
    assert not grads['table'][...][12].any() and grads['table'][...][batch()['items'][0, 0]].any()


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['softmax', 'bce'])
def test_the_same_on_a_mesh(mesh, loss):
    settings = {'loss': loss, 'negatives': 2, 'negatives_per': 'batch', 'id_dropout': 0.3}
    graphdef = nnx.split(make(**settings))[0]

    def both(params, one, given):
        def value(p):
            model = nnx.merge(graphdef, p)
            return model.loss(model.sample(one, KEY), given, {}, KEY)[0]

        model = nnx.merge(graphdef, params)
        made = model.catalogue(given)
        return jax.value_and_grad(value)(params), made, model.queries(one, made)

    params = nnx.split(make(**settings))[1]
    expected = jax.tree.map(np.asarray, jit(both)(params, batch(), constants()))
    given = jax.tree.map(np.asarray, constants())
    mesh(4, 2)
    params = nnx.split(make(**settings))[1]
    got = jit(both)(params, put_batch(batch()), put_whole(given))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('module', [kuaiformer, comirec])
def test_models_of_cuts_read_them_too(module):
    settings = {'dim': 8, 'max_len': 5, 'interests': 2, 'items': ItemTokens('texts')}
    if module is kuaiformer:
        settings |= {'compress': (2,), 'newest': 3, 'blocks': 1}
    given, one = constants(), batch() | {'features': {}}
    one |= {name: one[name][:, -1:] for name in ('targets', 'weights')}
    one['log_share'] = np.zeros((4, 1), np.float32)
    made = module.Config(**settings)
    model = made.make(SIZES, rngs=nnx.Rngs(0))
    assert made.inputs().texts and made.inputs().items and made.tables() == {}
    np.testing.assert_allclose(
        model.catalogue(given)['items'][:31], slow(model, given), rtol=1e-4, atol=1e-6
    )
    assert np.isfinite(model.loss(one, given, model.carry(), KEY)[0])


def test_the_item_tower_reads_them():
    made = two_tower.Config(dim=6, widths=(7,), max_len=5, item_id=False, texts=True)
    model, given = made.make(SIZES, rngs=nnx.Rngs(0)), constants()
    alike = np.array(given['items']['texts'])
    alike[4] = alike[7]
    found = model.catalogue(constants(alike))['items']
    np.testing.assert_array_equal(found[4], found[7])
    assert (np.asarray(found[4]) != np.asarray(found[5])).any()


# Tables and runs ----------------------------------------------------------------------------------

KINDS = ('red lamp', 'blue chair', 'old game', 'new shoe')


def write_log(folder, users=60, only_text=(40, 44), **extra):
    """A log of users who like one kind each, and the texts of items 0 to 43, 40 and up unheard."""
    rng = np.random.default_rng(0)
    rows = ['user,item,timestamp']
    for user in range(users):
        items = rng.choice(np.arange(user % 4, 40, 4), 8, replace=False)
        rows += [f'{user},i{item},{t}' for t, item in enumerate(items)]
    (folder / 'log.csv').write_text('\n'.join(rows) + '\n')
    texts = {f'i{n}': f'{KINDS[n % 4]} {n % 7}' for n in range(only_text[1])} | extra
    lines = [f'{item},"{text}"' for item, text in texts.items()]
    (folder / 'items.csv').write_text('item,text\n' + '\n'.join(lines) + '\n')
    return Data(
        log=str(folder / 'log.csv'),
        texts=str(folder / 'items.csv'),
        data_dir=str(folder / 'data'),
    )


def experiment(data, made_of='ids+texts', **changes):
    given = Experiment(
        task=next_item.Config(cutoffs=(5, 10), texts=Texts('tfidf', 8)),
        model=sasrec.Config(dim=16, blocks=1, max_len=8, items=ItemTokens(made_of, 0.3)),
        data=data,
        optim=Optim(learning_rate=0.01),
        train=Train(batch_rows=16, epochs=6),
        mesh=Mesh(1, 1),
    )
    return applied(given, changes)


def test_items_of_texts_alone_join_the_catalogue(tmp_path):
    histories, _ = datasets.load(write_log(tmp_path, i7=''))
    plain, _ = datasets.load(dataclasses.replace(write_log(tmp_path, i7=''), texts=''))
    assert (plain.num_items, histories.num_items) == (40, 44)
    ids = [raw.decode() for raw in histories.item_ids]
    assert ids == sorted(f'i{n}' for n in range(44))
    for user in range(60):  # the same raw items, under other numbers
        same = [[h.raw_item(i) for i in h.history(user)] for h in (plain, histories)]
        assert same[0] == same[1]
    assert histories.title(histories.find_item('i41')) == 'blue chair 6'
    assert histories.title(histories.find_item('i7')) == ''


def test_texts_that_nothing_reads_are_told(tmp_path):
    data = write_log(tmp_path)
    for encoder, made_of, told in (('', 'ids', 1), ('tfidf', 'ids+texts', 0)):
        given = experiment(data, made_of, **{'task.texts.encoder': encoder})
        notes = next_item.NextItem(given, *datasets.load(data)).notes
        assert sum('so 4 items without events are ranked' in note for note in notes) == told


@pytest.mark.slow
def test_a_run_serves_items_of_texts_alone(tmp_path):
    """Learnt from others of their kind; by text too; the folder is enough."""
    run = tmp_path / 'run'
    fit(experiment(write_log(tmp_path)), run)
    trained = load_trained(run)
    recommender = Recommender(trained, 44)
    (listed,) = recommender.recommend([['i1', 'i5', 'i9']])  # of the blue chairs
    place = {row['item']: n for n, row in enumerate(listed)}
    assert place['i41'] < min(place[other] for other in ('i40', 'i42', 'i43'))
    (asked,) = recommender.of_texts(['BLUE chair'], 5)
    assert all(int(row['item'][1:]) % 4 == 1 for row in asked)
    with pytest.raises(UserError, match="no word of 'zzz' is in a text of the items"):
        recommender.of_texts(['zzz'])
    told = evaluate(run, 'test', item_lists=True)
    assert told.metrics['HR@10'] > 0.5
    kept = trained.served.catalogue.texts
    np.testing.assert_array_equal(encoder_of(kept)(['x', 'red lamp 0'])[0], np.zeros(8))
    # What follows it has the same words and directions, whatever the new texts are.
    later = write_log(tmp_path, i50='a wholly new word')
    following = experiment(later, **{'train.start_from': str(run), 'train.grow': True})
    fit(following, tmp_path / 'grown')
    grown = load_trained(tmp_path / 'grown').served.catalogue.texts
    np.testing.assert_array_equal(grown['words'], kept['words'])
    np.testing.assert_array_equal(grown['table'], kept['table'])
    other = applied(following, {'task.texts.dim': 9, 'train.grow': False})
    with pytest.raises(UserError, match='tfidf of 8 numbers, centred: True, this .* tfidf of 9'):
        fit(other, tmp_path / 'other')
    other = applied(following, {'task.texts.centred': False, 'train.grow': False})
    with pytest.raises(UserError, match='this command by tfidf of 8 numbers, centred: False'):
        fit(other, tmp_path / 'other')


def test_any_table_begins_with_texts(tmp_path, mesh):
    """Principal components, as large as what would be drawn; without a text the draw remains."""
    mesh(1, 1)
    data = write_log(tmp_path, i7='')
    given = experiment(data, 'ids', **{'task.start_table': True})
    histories, meta = datasets.load(data)
    problem = next_item.NextItem(given, histories, meta)
    from jaxrec.training.state import Program

    program = Program(given, problem, 10)
    drawn = np.asarray(program.init()['params']['table'])
    found = np.asarray(warm_start.rows_from(given, problem, program)['params']['table'])
    vectors = problem.texts.vectors
    seven = histories.find_item('i7')
    changed = (found[1:45] != drawn[1:45]).any(1)
    assert not changed[seven - 1] and changed.sum() == 43
    np.testing.assert_array_equal(found[:, 8:], drawn[:, 8:])  # the texts have 8 numbers
    np.testing.assert_array_equal(found[45:], drawn[45:])
    there = vectors.any(1)
    centred = vectors[there] - vectors[there].mean(0)
    scale = found[:45][there][:, :8].std() / warm_start.principal(vectors, 8)[there].std()
    np.testing.assert_allclose(  # a rotation keeps products
        found[:45][there][:, :8] @ found[:45][there][:, :8].T / scale**2,
        centred @ centred.T,
        atol=1e-4,
    )
    assert found[:45][there][:, :8].std() == pytest.approx(drawn[1:45].std(), rel=0.01)


@pytest.mark.parametrize(
    ('made_of', 'changes', 'message'),
    [
        ('ids+texts', {'task.texts.encoder': ''}, 'this model reads the items. texts: set task.te'),
        ('ids', {}, "task.texts.encoder='tfidf' and nothing reads the texts"),
        ('ids', {'task.texts.encoder': '', 'task.start_table': True}, 'task.start_table reads'),
        ('texts', {'model.contrast': (Contrast(),)}, 'goes with the main loss alone.*model.contr'),
        ('words', {}, 'model.items.made_of=.*not one of ids, ids.texts, texts'),
        ('texts', {'task.texts.encoder': 'bert'}, 'task.texts.encoder=.*not one of'),
        ('ids', {'train.start_from': 'x', 'task.start_table': True}, 'both say how tables begin'),
    ],
)
def test_mistakes_found_before_anything_is_read(made_of, changes, message):
    data = Data(dataset='beauty')
    contrast = changes.pop('model.contrast', ())
    given = applied(experiment(data, made_of), changes)
    given.model.contrast = contrast
    with pytest.raises(UserError, match=message):
        check(given)


@pytest.mark.parametrize(
    ('content', 'settings', 'message'),
    [
        ('item,title\ni1,x\n', {}, "items.csv has no column 'text'.*--config.data.text_col"),
        ('i1,x\ni2,y\n', {}, "has no column 'item'.*--config.data.text_columns"),
        ('item,text\ni1,x\ni1,y\n', {}, "items.csv has item 'i1' with two different texts"),
        ('item,text\nj1,x\n', {}, "no item of the events is in items.csv: its first is 'j1'"),
        ('item,text\ni1,x,y\n', {}, 'cannot read items.csv: CSV parse error'),
        ('a,b,c\n', {'text_columns': 'item,text'}, 'does not split into the 2 fields'),
        (
            'item,text\ni1,x\n',
            {'text_columns': 'item,text'},
            'has a header line .item,text.; leave',
        ),
        ('item,text,text\ni1,x,y\n', {}, "items.csv has 2 columns called 'text'"),
        ('item,text\ri1,x\ri2,y\r', {}, 'lines that end in a carriage return alone'),
        (
            'item,text\ni1,"x\ni2,y\ni3,z"\n',
            {},
            '4 lines and 1 rows: a quotation mark is not closed',
        ),
        ('', {}, 'items.csv is empty'),
        ('item,text\n', {}, 'items.csv has no rows'),
    ],
)
def test_mistakes_of_a_table_of_texts(tmp_path, content, settings, message):
    data = write_log(tmp_path, users=4)
    (tmp_path / 'items.csv').write_text(content)
    with pytest.raises(UserError, match=message) as error:
        datasets.load(dataclasses.replace(data, **settings))
    assert '\n' not in str(error.value)


def test_columns_of_parquet_that_are_no_text(tmp_path):
    data = write_log(tmp_path, users=4)
    for odd in ([['x', 'y']], [b'\xff\xfe']):
        table = pa.table({'item': ['i1'], 'text': odd})
        pa.parquet.write_table(table, tmp_path / 'items.csv')
        with pytest.raises(UserError, match='cannot read items.csv: ') as error:
            datasets.load(data)
        assert '\n' not in str(error.value)
    one = dataclasses.replace(write_log(tmp_path, users=4), text_col='text,text')
    assert datasets.load(one)[0].title(1) == 'red lamp 0'


def test_mistakes_about_the_file(tmp_path, capsys):
    data = write_log(tmp_path, users=4)
    with pytest.raises(UserError, match=r'no such file: .*nowhere.csv \(--data.texts\)'):
        datasets.load(dataclasses.replace(data, texts='nowhere.csv'), flags='--data.')
    with pytest.raises(UserError, match='--texts is of the items of --log, or of a public'):
        datasets.load(dataclasses.replace(data, log='', dataset='synthetic'), flags='--')
    long = 'é' * 2000
    (tmp_path / 'items.csv').write_text(f'item,text\ni0,{long}\n')
    histories, _ = datasets.load(data)
    assert '; 1 longer than 1,000 bytes are cut' in capsys.readouterr().out
    assert histories.title(histories.find_item('i0')) == 'é' * 500  # 1,000 bytes, whole letters
    with pytest.raises(UserError, match='--text_col describes the table of texts'):
        datasets.load(dataclasses.replace(data, texts='', text_col='title'), flags='--')
    assert {f.name for f in dataclasses.fields(config.Data)} >= set(datasets.OF_TEXTS)


# Lists by the last item ---------------------------------------------------------------------------


def test_item_lists_against_loops():
    """Item-CF and TF-IDF scores of the last item, and a mixture, ranked by hand."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(9)[:5] + 1 for _ in range(12)]).astype(np.int32)
    titles = np.array([b'red lamp', b'red', b'lamp', b'', b'shoe', b'red shoe', b'x', b'y', b'x'])
    histories = Histories(items, np.arange(0, 61, 5), np.arange(12), np.arange(9), titles=titles)
    split = leave_one_out(histories)
    how = protocols.Protocol('full', filter_seen=True, cutoffs=(1, 3))
    task = ranking.Ranking(histories, split, 'valid', how, item_lists=True)
    vectors = rng.normal(size=(64, 3)).astype(np.float32)
    found = item_lists.counts(task, vectors)
    assert set(found) == {'item_cf', 'tfidf', 'item_cf+tfidf', 'item_cf+model'}
    train = [set(items[5 * u : 5 * u + 3]) for u in range(12)]
    words = item_lists.tf_idf(titles).toarray()

    def score(a, b):
        both = sum(a in own and b in own for own in train)
        alone = [sum(i in own for own in train) for i in (a, b)]
        near = both / np.sqrt(max(alone[0], 1) * max(alone[1], 1)) * (a != b)
        text = words[a - 1] @ words[b - 1]
        model = np.prod([1 / np.linalg.norm(vectors[i]) for i in (a, b)]) * (
            vectors[a].astype(np.float64) @ vectors[b]
        )
        return {'item_cf': near, 'tfidf': text, 'item_cf+tfidf': near + 0.1 * text} | {
            'item_cf+model': near + 0.1 * model
        }

    for user in range(12):
        history, target = items[5 * user : 5 * user + 3], items[5 * user + 3]
        scores = {j: score(history[-1], j) for j in range(1, 10) if j not in history}
        for name, (greater, ties) in found.items():
            own = scores[target][name]
            others = [x[name] for j, x in scores.items() if j != target]
            least = sum(x > own + 1e-6 for x in others)
            most = sum(x >= own - 1e-6 for x in others)
            assert least <= greater[user] <= greater[user] + ties[user] <= most, name
    assert (found['item_cf'][1] > 0).any()  # zeros are ties
