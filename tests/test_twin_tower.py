"""The twin tower of titles: its negatives by brute force, its losses in float64, its identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from flax import nnx
from models import jit

from jaxrec import evaluate
from jaxrec.config import Data, Mesh, Optim, Texts, Train
from jaxrec.data import item_batches
from jaxrec.data.histories import Histories
from jaxrec.data.item_batches import ItemBatches, co_clicks, unlike
from jaxrec.devices.mesh import put_batch, put_whole
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, check
from jaxrec.models import sasrec
from jaxrec.models.twin_tower import Config, meet
from jaxrec.serving.recommender import Recommender
from jaxrec.tasks import next_item
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

SIZES = {'item': 20, 'user': 5, 'text': 6}
KEY = jax.random.key(1)


def histories(seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, 30)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(1, 21, offsets[-1]).astype(np.int32)
    return Histories(items, offsets, np.arange(30), np.arange(1, 21))


def constants():
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(21, 6)).astype(np.float32)
    texts[0] = texts[9] = 0
    return {'items': {'known': jnp.arange(21) > 0, 'codes': {}, 'texts': jnp.asarray(texts)}}


def batch(rows=4):
    """Item 9 has no text; item 5 has no negative; item 8 none near it; the last row is padding."""
    return {
        'items': np.array([3, 9, 5, 8, 2, 0], np.int32)[:rows],
        'negatives': np.array([5, 3, 0, 3, 3, 0], np.int32)[:rows],
        'near': np.array([7, 3, 2, 0, 5, 0], np.int32)[:rows],
        'titles': np.array([1, 2, 3, 1, 4, 0], np.int32)[:rows],
        'weights': np.array([1, 1, 1, 1, 1, 0], np.float32)[:rows],
    }


def make(**settings):
    given = {'widths': (7, 5), 'hidden': 4, 'dropout': 0.0}
    return Config(**given | settings).make(SIZES, rngs=nnx.Rngs(0))


def wide(x):
    return np.asarray(x, np.float64)


def slow_layer(layer, x):
    return x @ wide(layer.kernel[...]) + wide(layer.bias[...])


def slow_tower(model, t):
    x = t
    for n, layer in enumerate(model.layers):
        x = slow_layer(layer, np.maximum(x, 0) if n else x)
    if model.shortcut is not None:
        x = x + slow_layer(model.shortcut, t)
    return x / max(np.sqrt((x * x).sum()), 1e-6) * bool(t.any())


def slow_reconstructed(model, t):
    return slow_layer(model.decoder, np.maximum(slow_layer(model.encoder, t), 0))


# Negatives ----------------------------------------------------------------------------------------


def slow_clicks(data, train_ends):
    out = np.zeros((21, 21))
    for user in range(data.num_users):
        own = data.items[data.offsets[user] : train_ends[user]]
        for a in range(len(own)):
            for b in range(len(own)):
                if a != b and abs(a - b) <= 3 and own[a] != own[b]:
                    out[own[a], own[b]] += 1
    return out


def test_co_clicks():
    data = histories()
    ends = data.offsets[1:] - 2
    found = co_clicks(data, ends)
    np.testing.assert_array_equal(found.toarray(), slow_clicks(data, ends))


@pytest.mark.parametrize('how', item_batches.HOW)
def test_negatives_by_brute_force(how):
    """The argmin over what is allowed, of equals any; the lowest tenth; or anything allowed."""
    data = histories()
    clicks = co_clicks(data, data.offsets[1:] - 2)
    dense = clicks.toarray().astype(np.float64)
    items, titles = np.arange(1, 21), np.arange(20) // 2  # pairs of equal titles
    chosen = set()
    for seed in range(20):
        places = unlike(clicks, items, titles, np.random.default_rng(seed), how)
        for i, j in enumerate(places):
            allowed = [
                n for n in range(20) if titles[n] != titles[i] and not dense[items[i], items[n]]
            ]
            if not allowed:
                assert j == -1
                continue
            assert j in allowed and j != i
            length = np.linalg.norm(dense, axis=1)
            similar = {
                n: dense[items[i]] @ dense[items[n]] / (length[items[i]] * length[items[n]])
                for n in allowed
            }
            ranked = sorted(similar.values())
            most = {'lowest': 1, 'low': int(np.ceil(0.1 * len(ranked))), 'random': len(ranked)}[how]
            assert similar[j] <= ranked[most - 1] + 1e-5
            chosen.add((i, int(j)))
    assert how != 'random' or len(chosen) > 100


def test_nothing_is_left_to_be_a_negative():
    clicks = scipy.sparse.csr_array((5, 5), dtype=np.float32)
    generator = np.random.default_rng(0)
    assert unlike(clicks, np.array([2]), np.array([1]), generator).tolist() == [-1]
    assert unlike(clicks, np.array([2, 3]), np.array([1, 1]), generator).tolist() == [-1, -1]
    assert unlike(clicks, np.array([2, 3]), np.array([1, 2]), generator).tolist() == [1, 0]


def test_batches():
    """Every item with a text once an epoch; a function of the step; what is near by its count."""
    data = histories()
    clicks = co_clicks(data, data.offsets[1:])
    titles = np.arange(21)
    titles[9] = 0
    made = lambda process=(0, 1): ItemBatches(clicks, titles, rows=6, seed=3, process=process)  # noqa: E731
    batches = made()
    assert batches.steps_per_epoch == 4 and batches.examples_per_epoch == 19
    epoch = [batches(step) for step in range(4)]
    real = np.concatenate([one['items'][one['weights'] > 0] for one in epoch])
    assert sorted(real) == [n for n in range(1, 21) if n != 9]
    for one in epoch:
        for item, near in zip(one['items'], one['near'], strict=True):
            assert clicks[item, near] > 0 or (near == 0 and not clicks[[item]].sum())
    halves = [made((n, 2))(2) for n in range(2)]
    for name, whole in made()(2).items():
        np.testing.assert_array_equal(np.concatenate([h[name] for h in halves]), whole)
    with pytest.raises(UserError, match='does not divide over 2 processes'):
        ItemBatches(clicks, titles, rows=5, seed=3, process=(0, 2))
    with pytest.raises(UserError, match='no item has a text'):
        ItemBatches(clicks, titles * 0, rows=6, seed=3)
    counts = np.zeros((21, 21))
    counts[1, 2], counts[1, 3] = 1, 3
    drawn = ItemBatches(scipy.sparse.csr_array(counts), titles, rows=400, seed=0)
    near = drawn._near(np.full(4000, 1), np.random.default_rng(0))
    assert set(near) == {2, 3} and np.mean(near == 3) == pytest.approx(0.75, abs=0.03)


# Losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('loss', 'positive'),
    [
        ('bce', 'autoencoder'),
        ('info_nce', 'near'),
        pytest.param('bce', 'near', marks=pytest.mark.slow),
        pytest.param('info_nce', 'autoencoder', marks=pytest.mark.slow),
    ],
)
def test_loss(loss, positive):
    model = make(loss=loss, positive=positive, temperature=0.3, residual=positive == 'near')
    one, given = batch(6), constants()
    texts = wide(given['items']['texts'])
    value, (terms, _) = jit(type(model).loss)(model, one, given, {}, KEY)
    t = texts[one['items']]
    weights = one['weights'].copy()
    if positive == 'near':
        other, squared = texts[one['near']], 0
        weights *= one['near'] > 0
    else:
        other = np.array([slow_reconstructed(model, row) for row in t])
        squared = np.average(((other - t) ** 2).sum(1), weights=weights)
    first, second = (np.array([slow_tower(model, row) for row in x]) for x in (t, other))
    third = np.array([slow_tower(model, row) for row in texts[one['negatives']]])
    scale, shift = float(model.scale[...]), float(model.shift[...])
    if loss == 'bce':
        p = 1 / (1 + np.exp(-(scale * (first * second).sum(1) + shift)))
        q = 1 / (1 + np.exp(-(scale * (first * third).sum(1) + shift)))
        values = -np.log(p) - np.log(1 - q) * (one['negatives'] > 0)
    else:
        values = np.zeros(6)
        both = np.concatenate([first, second])
        pairs = [set()] * 6
        if positive == 'near':  # 3 is the first row's item and the second's positive, and so on
            pairs = [{int(one['items'][n]), int(one['near'][n])} - {0} for n in range(6)]
            assert pairs[0] & pairs[1] and pairs[2] == pairs[4]
        for n in range(12):
            scores = both @ both[n] / 0.3
            partner = (n + 6) % 12
            hidden = [
                m
                for m in range(12)
                if m != partner
                and (
                    one['titles'][m % 6] == one['titles'][n % 6]
                    or pairs[m % 6] & pairs[n % 6]
                    or not weights[m % 6]
                )
            ]
            rest = [scores[m] for m in range(12) if m not in hidden]
            values[n % 6] += (np.logaddexp.reduce(rest) - scores[partner]) / 2
    expected = squared + np.average(values, weights=weights)
    assert float(value) == pytest.approx(expected, rel=1e-4)
    assert float(terms[loss]) == pytest.approx(np.average(values, weights=weights), rel=1e-4)


def test_rows_that_meet():
    """By the item of one and the positive of another, or two positives; 0 is no item."""
    found = meet(jnp.array([1, 2, 3, 4, 0]), jnp.array([2, 5, 5, 0, 0]))
    wanted = np.diag([True, True, True, True, False])
    wanted[[0, 1, 1, 2], [1, 0, 2, 1]] = True
    np.testing.assert_array_equal(found, wanted)


def test_both_sides_share_their_layers():
    """p(a, b) == p(b, a), and one tree of gradients."""
    model, texts = make(), constants()['items']['texts']
    a, b = model.tower(texts[1:5]), model.tower(texts[11:15])
    np.testing.assert_array_equal(model.logits(a, b), model.logits(b, a))
    names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert names == {'layers', 'encoder', 'decoder', 'scale', 'shift'}


def test_an_auto_encoder_that_changes_nothing(monkeypatch):
    """The positive is a copy: its cosine is 1, which `near_copies` tells."""
    model = make()
    monkeypatch.setattr(type(model), 'reconstructed', lambda self, texts, key=None: texts)
    one = {name: x[[2]] for name, x in batch().items()}  # without a negative
    _, (terms, _) = model.loss(one, constants(), {}, KEY)
    logit = float(model.scale[...] + model.shift[...])
    assert float(terms['bce']) == pytest.approx(np.log1p(np.exp(-logit)), rel=1e-5)
    one = {name: x[[0, 2]] for name, x in batch().items()}
    _, (terms, _) = model.loss(one, constants(), {}, KEY)
    assert float(terms['near_copies']) == pytest.approx(1, abs=1e-6)
    assert float(terms['reconstruction']) == 0
    first = model.tower(constants()['items']['texts'][one['items']])
    np.testing.assert_allclose((first * first).sum(1), 1, rtol=1e-6)


def test_a_batch_of_one_and_an_empty_title():
    """The positive part alone; a title without words is a zero vector, and nothing is NaN."""
    model, given = make(), constants()
    one = {name: x[[2]] for name, x in batch().items()}
    _, (terms, _) = model.loss(one, given, {}, KEY)
    t = given['items']['texts'][one['items']]
    p = model.logits(model.tower(t), model.tower(model.reconstructed(t)))
    assert float(terms['bce']) == pytest.approx(float(jnp.log1p(jnp.exp(-p[0]))), rel=1e-5)
    for layer in model.layers:
        layer.bias[...] = jnp.ones_like(layer.bias[...])
    assert not model.catalogue(given)['items'][9].any()
    assert model.catalogue(given)['items'][8].any()
    empty = {name: x[[1]] for name, x in batch().items()}
    grads = nnx.grad(lambda m: m.loss(empty, given, {}, KEY)[0])(model)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_dropout_makes_the_positive_differ():
    model = make(dropout=0.5)
    texts = constants()['items']['texts'][1:5]
    plain, other = model.reconstructed(texts), model.reconstructed(texts, KEY)
    assert (np.asarray(plain) != np.asarray(other)).any()
    np.testing.assert_array_equal(plain, make(dropout=0.0).reconstructed(texts, KEY))


def test_the_same_on_a_mesh(mesh):
    settings = {'loss': 'info_nce', 'dropout': 0.3}
    graphdef = nnx.split(make(**settings))[0]

    def both(params, one, given):
        value = lambda p: nnx.merge(graphdef, p).loss(one, given, {}, KEY)[0]  # noqa: E731
        made = nnx.merge(graphdef, params).catalogue(given)
        history = {'items': one['items'][:, None]}
        return (
            jax.value_and_grad(value)(params),
            made,
            nnx.merge(graphdef, params).queries(history, made),
        )

    params = nnx.split(make(**settings))[1]
    expected = jax.tree.map(np.asarray, jit(both)(params, batch(), constants()))
    given = jax.tree.map(np.asarray, constants())
    mesh(4, 2)
    params = nnx.split(make(**settings))[1]
    got = jit(both)(params, put_batch(batch()), put_whole(given))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# A run --------------------------------------------------------------------------------------------


def save(folder):
    """Users keep to one kind of item, and a kind shares a word; the newest items have no events."""
    rng = np.random.default_rng(0)
    kinds = np.arange(40) % 4
    of_kind = [np.flatnonzero(kinds[:36] == kind) for kind in range(4)]
    items = np.concatenate([rng.choice(of_kind[u % 4], 6, replace=False) for u in range(80)])
    words = ('lamp', 'chair', 'game', 'shoe')
    titles = [f'{words[kinds[n]]} {rng.choice(["red", "old", "big"])} no{n}' for n in range(40)]
    Histories(
        items=(items + 1).astype(np.int32),
        offsets=np.arange(0, 481, 6),
        user_ids=np.arange(80),
        item_ids=np.arange(40),
        titles=np.array([title.encode() for title in titles]),
    ).save(folder / 'log' / 'columns')
    return Data(log=str(folder / 'log'))


@pytest.mark.slow
def test_a_run_learns_and_serves(tmp_path):
    given = Experiment(
        task=next_item.Config(windows='items', cutoffs=(5, 10), texts=Texts('tfidf', 16)),
        model=Config(widths=(16, 8), hidden=8, positive='near', loss='info_nce'),
        data=save(tmp_path),
        optim=Optim(learning_rate=0.01),
        train=Train(batch_rows=20, epochs=60, eval_every=20, metric='HR@10'),
        mesh=Mesh(2, 1),
    )
    fit(given, tmp_path / 'run')
    measured = evaluate(tmp_path / 'run', item_lists=True)
    assert measured.metrics['HR@10'] > 0.8  # chance is .3; the kind has 10 items
    recommender = Recommender(load_trained(tmp_path / 'run'), 10)
    (listed,) = recommender.recommend([[37]])  # an item that nobody had
    assert sum(row['item'] % 4 == 1 for row in listed) >= 7
    (asked,) = recommender.of_texts(['any GAME you like'])
    assert sum(row['item'] % 4 == 2 for row in asked) >= 7


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'task.windows': 'last'}, "trains on task.windows='items', not 'last'"),
        ({'task.texts.encoder': ''}, 'set task.texts.encoder'),
        ({'model.widths': ()}, 'model.widths=.*at least'),
        ({'model.loss': 'triplet'}, 'model.loss=.*not one of bce, info_nce'),
        ({'task.protocol': 'uniform', 'task.item_lists': True}, "needs task.protocol='full'"),
    ],
)
def test_mistakes_found_before_anything_is_read(changes, message):
    given = Experiment(
        task=next_item.Config(windows='items', texts=Texts('tfidf')),
        model=Config(),
        data=Data(dataset='games-titles'),
    )
    with pytest.raises(UserError, match=message):
        check(applied(given, changes))


def test_a_sequence_model_has_no_items_by_themselves():
    given = Experiment(
        task=next_item.Config(windows='items'), model=sasrec.Config(), data=Data(dataset='beauty')
    )
    with pytest.raises(UserError, match="trains on task.windows='last', 'all' or 'cuts'"):
        check(given)
