"""Self-supervision of items: masks, draws, mutual information and the term, against plain loops."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit
from test_two_tower import KEY, PLAIN, SIZES, batch, constants, make

from jaxrec.config import Feature
from jaxrec.data.information import mutual_information
from jaxrec.errors import UserError
from jaxrec.models import two_tower
from jaxrec.objectives import item_views
from jaxrec.objectives.item_views import ItemViews

K = 5
INFORMATION = np.random.default_rng(0).random((K, K)).astype(np.float32)
INFORMATION = (INFORMATION + INFORMATION.T) / 2


def slow_information(a, b):
    """Of single values, counted item by item."""
    n, joint = len(a), collections.Counter(zip(a, b, strict=True))
    of_a, of_b = collections.Counter(a), collections.Counter(b)
    return sum(c / n * np.log(c * n / (of_a[x] * of_b[y])) for (x, y), c in joint.items())


def test_mutual_information():
    """Symmetric; of a column with itself, or with the id, its entropy."""
    rng = np.random.default_rng(1)
    a = rng.integers(0, 4, 200)
    columns = {'a': a, 'b': np.where(rng.random(200) < 0.7, a, rng.integers(0, 3, 200))}
    columns['id'] = np.arange(200) + 1
    found = mutual_information({n: np.r_[0, x].astype(np.int32) for n, x in columns.items()})
    for i, x in enumerate(columns.values()):
        for j, y in enumerate(columns.values()):
            want = slow_information(x.tolist(), y.tolist())
            assert found[i, j] == found[j, i] == pytest.approx(want, rel=1e-5)
    shares = np.bincount(a) / 200
    entropy = -(shares * np.log(shares)).sum()
    assert found[0, 0] == found[0, 2] == pytest.approx(entropy, rel=1e-5)


def test_mutual_information_of_sets():
    """Every member has an equal share of its item, no member at all is a value."""
    sets = np.array([[0, 0], [1, 2], [1, 0], [0, 0]], np.int32)
    single = np.array([0, 1, 1, 2], np.int32)
    joint = {(1, 1): 0.5 / 3 + 1 / 3, (2, 1): 0.5 / 3, (0, 2): 1 / 3}
    left, right = {0: 1 / 3, 1: 0.5, 2: 1 / 6}, {1: 2 / 3, 2: 1 / 3}
    want = sum(p * np.log(p / (left[a] * right[b])) for (a, b), p in joint.items())
    assert mutual_information({'s': sets, 'x': single})[0, 1] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('columns', [1, 4, 5])
@pytest.mark.parametrize('masks', item_views.MASKS)
def test_masks(masks, columns):
    """Of complements every column, and the id, is masked in one view; seeds go with their half."""
    information = jnp.asarray(INFORMATION[:columns, :columns])
    draw = jax.jit(lambda key: item_views.masked(masks, columns, True, information, key))
    seen, ids = collections.Counter(), []
    for key in jax.random.split(KEY, 60):
        (first, second), of_id = map(np.asarray, draw(key))
        ids.append(bool(of_id[0]))
        seen[tuple(np.flatnonzero(first).tolist())] += 1
        if masks == 'independent':
            assert [int(x.sum()) + int(i) for x, i in zip((first, second), of_id, strict=True)] == [
                (columns + 1) // 2
            ] * 2
        else:
            assert (first ^ second).all() and of_id[0] ^ of_id[1]
    assert 0.2 < np.mean(ids) < 0.8
    if masks == 'correlated':
        want = set()
        for seed in range(columns):
            others = sorted(set(range(columns)) - {seed}, key=lambda c: -INFORMATION[seed, c])
            want.add(tuple(sorted([seed, *others[: columns // 2]])))
        assert set(seen) == want
    elif masks == 'complementary':
        assert {len(chosen) for chosen in seen} == {columns // 2}
        assert len(seen) == {1: 1, 4: 6, 5: 10}[columns]
    no_id = item_views.masked(masks, columns, False, information, KEY)[1]
    assert not np.asarray(no_id).any()


def test_items_are_drawn_uniformly_and_once():
    draw = jax.jit(lambda key: item_views.draw(8, 30, key))
    counts = np.zeros(31)
    for key in jax.random.split(KEY, 1500):
        drawn = np.asarray(draw(key))
        assert len(set(drawn.tolist())) == 8
        counts[drawn] += 1
    expected = 1500 * 8 / 30
    assert counts[0] == 0 and np.abs(counts[1:] - expected).max() < 5 * np.sqrt(expected)
    assert sorted(np.asarray(item_views.draw(99, 30, KEY)).tolist()) == list(range(1, 31))


def test_the_same_view_twice_is_a_spread_out_regulariser():
    z, t = np.random.default_rng(2).normal(size=(6, 4)), 0.3
    cos = z @ z.T / np.linalg.norm(z, axis=1)[:, None] / np.linalg.norm(z, axis=1) / t
    want = np.mean(np.log(np.exp(cos).sum(1)) - 1 / t)
    x = jnp.asarray(z, jnp.float32)
    assert float(item_views.term(x, x, t)) == pytest.approx(want, rel=1e-5)


def test_values_of_sets_are_left_out():
    codes = jnp.asarray(np.random.default_rng(3).integers(1, 9, (300, 4)), jnp.int32)
    left = np.asarray(item_views.left_out(codes, 0.3, KEY))
    assert ((left == 0) | (left == codes)).all() and 0.25 < (left == 0).mean() < 0.35
    assert item_views.left_out(codes, 0.0, KEY) is codes


VIEWS = {'weight': 0.5, 'items': 12, 'temperature': 0.2}


def given():
    """Two columns of items, 4 and 7 alike in both."""
    made = constants()
    years = np.random.default_rng(4).integers(0, 4, 31).astype(np.int32)
    years[4] = years[7]
    made['items']['codes']['year'] = jnp.asarray(years)
    codes = {name: np.asarray(made['items']['codes'][name]) for name in ('genres', 'year')}
    made['items']['information'] = jnp.asarray(mutual_information(codes))
    return made


FEATURES = (Feature('genres', 'set', 5), Feature('year', 'category', 4))


def views_model(**settings):
    return make(features=FEATURES, item_views=ItemViews(**VIEWS | settings), **PLAIN)


def one():
    made = batch()
    made['features'] = {'genres': made['features']['genres'], 'year': made['items'] * 0 + 1}
    return made


@pytest.mark.parametrize(
    'masks', [pytest.param('complementary', marks=pytest.mark.slow), 'correlated']
)
def test_loss_with_the_term(masks):
    """Encoded twice by the whole item tower; ids of views are masked by the coin alone."""
    model = views_model(masks=masks, value_dropout=0.0)
    loss, (terms, _) = jit(type(model).loss)(model, one(), given(), {}, KEY)
    plain = make(features=FEATURES, **PLAIN)
    without = jit(type(plain).loss)(plain, one(), given(), {}, KEY)[0]
    assert float(loss) == pytest.approx(float(without) + 0.5 * float(terms['item_views']), rel=1e-5)
    keys = dict(
        zip(two_tower._OF_VIEWS, jax.random.split(jax.random.fold_in(KEY, 1), 4), strict=True)
    )
    items = item_views.draw(12, SIZES['item'], keys['items'])
    information = given()['items']['information']
    hidden, of_id = item_views.masked(masks, 2, True, information, keys['masks'])
    z = []
    for n in range(2):
        changed = given()
        codes = changed['items']['codes']
        for place, name in enumerate(('genres', 'year')):
            codes[name] = jnp.where(hidden[n][place], 0, codes[name])
        known = (jnp.arange(31) > 0) & ~of_id[n]
        changed['items']['known'] = known
        z.append(np.asarray(model.item_vectors(items, changed), np.float64))
    logits = z[0] @ z[1].T / 0.2
    want = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert float(terms['item_views']) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize('masks', ['complementary', 'correlated'])
def test_of_one_column_a_view_has_nothing_left(masks):
    """No id, no other column: its items have one vector, and nothing finds its own among them."""
    views, features = ItemViews(**VIEWS, masks=masks), FEATURES[:1]
    model = make(features=features, item_id=False, item_views=views, **PLAIN)
    one_, made = one(), constants()
    one_['features'] = {'genres': one_['features']['genres']}
    made['items']['information'] = jnp.ones((1, 1))
    graphdef, params = nnx.split(model)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        value, (terms, _) = nnx.merge(graphdef, params).loss(one_, made, {}, KEY)
        return value, terms['item_views']

    (value, term), slopes = jit(loss)(params)
    assert np.isfinite(value) and float(term) == pytest.approx(np.log(VIEWS['items']), rel=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_weight_0_is_the_model_without():
    model, plain = views_model(weight=0.0), make(features=FEATURES, **PLAIN)
    found = [jit(type(m).loss)(m, one(), given(), {}, KEY)[0] for m in (model, plain)]
    assert float(found[0]) == float(found[1])


def test_alike_without_ids():
    """Two items of equal features whose ids are masked have one vector."""
    view = jnp.zeros(2, bool), jnp.array(True)
    model = views_model(value_dropout=0.0)
    vectors = np.asarray(model.item_vectors(jnp.array([4, 7, 9]), given(), KEY, view))
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert not np.allclose(vectors[0], vectors[2])


def test_mistakes():
    with pytest.raises(UserError, match='model.item_views masks features of items'):
        two_tower.Config(item_views=ItemViews(weight=1.0)).check()
    with pytest.raises(UserError, match='masks no texts') as e:
        two_tower.Config(features=FEATURES, texts=True, item_views=ItemViews(weight=1.0)).check()
    assert '\n' not in str(e.value)
