"""Two towers against slow float64 references, what they do without ids, and whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit
from test_experiments import tiny_histories

from jaxrec import evaluate
from jaxrec.config import Data, Feature, Mesh, Optim, Train
from jaxrec.data.histories import Histories
from jaxrec.devices.mesh import put_batch, put_whole
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, check, check_fields
from jaxrec.models import two_tower
from jaxrec.models.two_tower import Config
from jaxrec.objectives.in_batch import InBatch
from jaxrec.serving.recommender import Recommender
from jaxrec.tasks import next_item
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

FEATURES = (Feature('genres', 'set', 5), Feature('signal', 'uniform', 4, cap=9.0))
SIZES = {'user': 60, 'item': 30}
KEY = jax.random.key(2)
PLAIN = {'dropout': 0.0, 'id_dropout': 0.0}


def make(**settings):
    given = {'dim': 6, 'widths': (7,), 'max_len': 5, 'feature_dim': 3, 'features': FEATURES}
    return Config(**given | settings).make(SIZES, rngs=nnx.Rngs(0))


def constants(known=None):
    rng = np.random.default_rng(0)
    genres = rng.integers(0, 6, (31, 3)).astype(np.int32)
    genres[[0, 9]], genres[4] = 0, genres[7]  # item 9 has none, 4 and 7 are alike
    known = np.arange(31) > 0 if known is None else known
    return {'items': {'known': jnp.asarray(known), 'codes': {'genres': jnp.asarray(genres)}}}


def batch(rows=4, cuts=2):
    rng = np.random.default_rng(1)
    items = rng.integers(1, 31, (rows, 5)).astype(np.int32)
    items[1, :3] = 0
    items[2] = 0
    there = items > 0
    targets = rng.integers(1, 31, (rows, cuts)).astype(np.int32)
    return {
        'items': items,
        'segments': there.astype(np.int32),
        'positions': (np.arange(5) * there).astype(np.int32),
        'features': {
            'genres': np.asarray(constants()['items']['codes']['genres'])[items],
            'signal': (rng.integers(0, 6, items.shape) * there).astype(np.int32),
        },
        'users': np.array([3, 59, 0, 17], np.int32)[:rows],
        'targets': targets,
        'weights': np.ones((rows, cuts), np.float32),
        'log_share': np.log(rng.random((rows, cuts))).astype(np.float32),
    }


def wide(x):
    return np.asarray(x, np.float64)


def slow_attributes(model, codes):
    """Of single codes: {column: int or set}."""
    parts = []
    for column, table in zip(('genres', 'signal'), model.attributes.tables, strict=True):
        rows = [wide(table[...])[c] for c in np.ravel(codes[column]) if c > 0]
        parts.append(np.mean(rows, 0) if rows else np.zeros(3))
    return np.concatenate(parts)


def slow_tower(tower, x):
    for n, layer in enumerate(tower.layers):
        x = np.maximum(x, 0) if n else x
        x = x @ wide(layer.kernel[...]) + wide(layer.bias[...])
    return x / max(np.sqrt((x * x).sum()), 1e-6)


def slow_item(model, item, given):
    known = bool(given['items']['known'][item])
    own = wide(model.items[...])[item] * known
    codes = {'genres': np.asarray(given['items']['codes']['genres'])[item], 'signal': 0}
    return slow_tower(model.item_tower, np.concatenate([own, slow_attributes(model, codes)]))


def slow_user(model, one, row, end, user=True):
    """After the first `end` places of a row."""
    events = [n for n in range(end) if one['items'][row, n] > 0]
    vectors = [
        np.concatenate(
            [
                wide(model.items[...])[one['items'][row, n]],
                slow_attributes(model, {c: x[row, n] for c, x in one['features'].items()}),
            ]
        )
        for n in events
    ]
    pooled = np.mean(vectors, 0) if vectors else np.zeros(12)
    own = wide(model.users[...])[one['users'][row]] if user else np.zeros(6)
    return slow_tower(model.user_tower, np.concatenate([pooled, own]))


def test_item_tower(monkeypatch):
    """All items at once, or in pieces; an item that nothing was learnt of has no id."""
    model, given = make(), constants(known=(np.arange(31) > 0) & (np.arange(31) != 12))
    expected = [slow_item(model, item, given) for item in range(1, 31)]
    whole = model.catalogue(given)['items']
    assert whole.shape == (64, 6)
    np.testing.assert_allclose(whole[1:31], expected, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(two_tower, '_AT_ONCE', 24)
    np.testing.assert_allclose(model.catalogue(given)['items'][:31], whole[:31], rtol=1e-6)


def test_user_tower():
    """The mean up to each of the newest places; without a number a user has no id."""
    model, one = make(**PLAIN), batch()
    got = model.user_vectors(one, last=2)
    for row in range(4):
        expected = [slow_user(model, one, row, end) for end in (4, 5)]
        np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-6)
    unknown = {name: x for name, x in one.items() if name != 'users'}
    got = model.queries(unknown, {})
    expected = [slow_user(model, one, row, 5, user=False) for row in range(4)]
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('uniform', [0, 3])
def test_loss(uniform):
    """Softmax over the items of the batch and the uniform draws, each with its logQ."""
    settings = InBatch(uniform=uniform, own_history=True)
    model = make(temperature=0.2, in_batch=settings, **PLAIN)
    one, given = model.sample(batch(), KEY), constants()
    loss, (terms, carry) = jit(type(model).loss)(model, one, given, {}, KEY)
    candidates = [
        (int(i), float(q))
        for i, q in zip(one['targets'].ravel(), one['log_share'].ravel(), strict=True)
    ]
    candidates += [(int(i), -np.log(30)) for i in one.get('sampled', [])]
    log_n = np.log(len(candidates))
    vectors = {i: slow_item(model, i, given) for i in {i for i, _ in candidates}}
    values = []
    for row in range(4):
        for cut in range(2):
            query = slow_user(model, one, row, 4 + cut) / 0.2
            target = int(one['targets'][row, cut])
            own = query @ vectors[target] - one['log_share'][row, cut] - log_n
            others = [query @ vectors[i] - q - log_n for i, q in candidates if i != target]
            values.append(np.logaddexp.reduce([own, *others]) - own)
    assert float(loss) == pytest.approx(np.mean(values), rel=1e-4)
    assert carry == {} and float(terms['in_batch']) == float(loss)


def test_a_learnt_temperature_moves_and_is_told():
    model = make(temperature=0.2, learnt_temperature=True, **PLAIN)
    graphdef, params = nnx.split(model)
    one, given = batch(), constants()

    def loss(params):
        return nnx.merge(graphdef, params).loss(one, given, {}, KEY)

    (value, (terms, _)), grads = jit(jax.value_and_grad(loss, has_aux=True))(params)
    fixed = make(temperature=0.2, **PLAIN)
    assert float(value) == pytest.approx(float(fixed.loss(one, given, {}, KEY)[0]), rel=1e-5)
    assert float(terms['temperature']) == pytest.approx(0.2) and float(grads['scale'][...]) != 0


def test_items_without_ids_are_what_their_attributes_say():
    """Items 4 and 7 are alike; ids that are left out are the same items in a step's every place."""
    given = constants()
    alone = make(item_id=False).catalogue(given)['items']
    np.testing.assert_array_equal(alone[4], alone[7])
    unseen = make().catalogue(constants(known=np.zeros(31, bool)))['items']
    np.testing.assert_array_equal(unseen[4], unseen[7])
    model = make(id_dropout=0.5, dropout=0.0)
    got = model.item_vectors(jnp.array([4, 7, 4, 9]), given, KEY)
    np.testing.assert_array_equal(got[0], got[2])
    with pytest.raises(UserError, match='model.item_id=False needs model.features'):
        Config(item_id=False).check()


def test_a_transformer_reads_the_history():
    """Events before the window's end only, and the same item table as the item tower."""
    model, one = make(history='transformer', **PLAIN), batch()
    before = model.user_vectors(one, last=2)
    later = {**one, 'items': one['items'].copy()}
    later['items'][0, 4] = 1 + one['items'][0, 4] % 30
    after = model.user_vectors(later, last=2)
    np.testing.assert_array_equal(before[0, 0], after[0, 0])
    assert (np.asarray(before[0, 1]) != np.asarray(after[0, 1])).any()
    names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert 'sequence' in names and 'items' not in names


@pytest.mark.parametrize('shape', [(4, 2)])
def test_the_same_on_a_mesh(mesh, shape):
    settings = {'in_batch': InBatch(uniform=3), **PLAIN}
    graphdef = nnx.split(make(**settings))[0]

    def both(params, one, given):
        def loss(p):
            model = nnx.merge(graphdef, p)
            return model.loss(model.sample(one, KEY), given, {}, KEY)[0]

        model = nnx.merge(graphdef, params)
        made = model.catalogue(given)
        return jax.value_and_grad(loss)(params), made, model.queries(one, made)

    params = nnx.split(make(**settings))[1]
    expected = jax.tree.map(np.asarray, jit(both)(params, batch(), constants()))
    given = jax.tree.map(np.asarray, constants())
    mesh(*shape)
    params = nnx.split(make(**settings))[1]
    got = jit(both)(params, put_batch(batch()), put_whole(given))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# A run --------------------------------------------------------------------------------------------


def save(folder):
    """Users like one genre; the newest items come in the last tenth of the time only."""
    rng = np.random.default_rng(0)
    genres = np.arange(40) % 4
    items, times, lengths = [], [], []
    for user in range(120):
        when = np.sort(rng.integers(0, 1000, 12))
        for t in when:
            known = np.flatnonzero((genres == user % 4) & ((np.arange(40) < 32) == (t < 900)))
            items.append(int(rng.choice(known)) + 1)
        times += when.tolist()
        lengths.append(12)
    Histories(
        items=np.array(items, np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        user_ids=np.arange(120),
        item_ids=np.arange(40),
        times=np.array(times) + 10**9,
        item_features={'genres': (genres[:, None] + 1).astype(np.int32)},
    ).save(folder / 'log' / 'columns')
    return Data(log=str(folder / 'log'))


def test_new_items_are_served_from_their_features(tmp_path):
    given = Experiment(
        task=next_item.Config(
            split='temporal', windows='cuts', cuts=4, targets='all', cutoffs=(5,), filter_seen=False
        ),
        model=Config(
            dim=8, widths=(16,), max_len=8, features=(Feature('genres', 'set', 4),), id_dropout=0.3
        ),
        data=save(tmp_path),
        optim=Optim(learning_rate=0.01),
        train=Train(batch_rows=64, epochs=6, metric='NDCG@5'),
        mesh=Mesh(2, 1),
    )
    fit(given, tmp_path / 'run')
    measured = evaluate(tmp_path / 'run')
    # all test targets are new: 8 of 40 items, 2 of them of the user's genre
    assert measured.details['cold'] == 1
    groups = measured.groups['training events']
    assert set(groups) == {'0'} and groups['0']['HR@5'] > 0.2  # chance is .125
    trained = load_trained(tmp_path / 'run')
    (listed,) = Recommender(trained, 12).recommend([[0, 4, 8]])
    assert sum(row['item'] % 4 == 0 for row in listed) >= 6  # of 7 that are not seen
    (nothing,) = Recommender(trained, 3).recommend([[]])
    assert len(nothing) == 3


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'heads': 5}, 'model.dim=64 is not a multiple of model.heads=5'),
        ({'widths': (0,)}, r'model.widths=\(0,\) must be at least 1'),
        ({'history': 'max'}, 'model.history=.* not one of mean, transformer'),
        ({'temperature': 0.0}, 'model.temperature=0.0 must be above 0'),
        ({'in_batch': InBatch(similarity='cosine')}, 'end in unit vectors: set model.temperature'),
        ({'in_batch': InBatch(temperature=0.05)}, 'end in unit vectors: set model.temperature'),
    ],
)
def test_mistakes(settings, message):
    config = Config(**settings)
    with pytest.raises(UserError, match=message):
        check_fields(config, 'model')
        config.check()


def test_features_of_events_alone_leave_items_alike():
    given = Experiment(
        task=next_item.Config(windows='cuts'),
        model=Config(item_id=False, features=FEATURES[1:]),
        train=Train(batch_rows=8),
    )
    histories = tiny_histories(FEATURES)
    meta = {'data_hash': '', 'path': ''}
    with pytest.raises(UserError, match='features of their own .* all items are alike') as e:
        next_item.NextItem(given, histories, meta)
    assert '\n' not in str(e.value)
    given.model.features = FEATURES
    assert list(next_item.NextItem(given, histories, meta).constants['items']['codes']) == [
        'genres'
    ]


def test_it_trains_on_cuts():
    with pytest.raises(UserError, match="trains on task.windows='cuts'"):
        check(Experiment(model=Config(), data=Data(dataset='ml-1m')))
    assert tiny_histories(FEATURES[:1]).item_features['genres'].shape == (30, 3)
