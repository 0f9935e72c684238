"""LoID: no leak in what it reads, adapters and their merging, and its losses in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit, made

from jaxrec import evaluate, losses
from jaxrec.config import Data, Mesh, Optim, Texts, Train
from jaxrec.data import ratings as data
from jaxrec.data import text_encoders, warm_ratings
from jaxrec.data.histories import Histories
from jaxrec.devices.mesh import put_batch, put_whole
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, check
from jaxrec.models import loid, sasrec
from jaxrec.nn.adapters import Adapter, dare
from jaxrec.tasks import warm_ratings as task
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

USERS, ITEMS, TEXT, DIM = 24, 15, 6, 8
KEY = jax.random.key(1)
WORDS = 'red', 'blue', 'green', 'грустная', '悲しい'


def histories(seed=0):
    """Ratings by taste for words of the titles; item 15 has no text, times are apart and mixed."""
    rng = np.random.default_rng(seed)
    lengths = np.append(rng.integers(5, 12, USERS - 1), 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = [rng.choice(ITEMS, n, replace=False) + 1 for n in lengths]
    titles = [f'no{n} film|{WORDS[n % 5]}|{WORDS[n % 3]}' for n in range(ITEMS - 1)]
    taste = rng.normal(size=(USERS, 5))
    values = [3 + taste[u, (own - 1) % 5] for u, own in enumerate(items)]
    times = [np.sort(rng.choice(1000, n, replace=False)) for n in lengths]
    return Histories(
        items=np.concatenate(items).astype(np.int32),
        offsets=offsets,
        user_ids=np.arange(USERS),
        item_ids=np.arange(100, 100 + ITEMS),
        times=np.concatenate(times),
        features={'rating': np.clip(np.round(np.concatenate(values)), 1, 5).astype(np.float32)},
        item_features={'domain': np.where(np.arange(ITEMS) < 9, b'film', b'book')},
        titles=np.array([*(title.encode() for title in titles), b'']),
        name='made',
    )


TOLD = np.arange(ITEMS + 1) % ITEMS > 0  # item 15 is not


def split(given=None, kind='random', **changes):
    return warm_ratings.split(given or histories(), kind, **{'told': TOLD, **changes})


# What is learnt, and what is known of a row -------------------------------------------------------


@pytest.mark.parametrize('kind', warm_ratings.KINDS)
def test_every_rating_is_in_one_part(kind):
    given, one = histories(), split(kind=kind)
    owner = np.repeat(np.arange(USERS), np.diff(given.offsets))
    when = dict(zip(zip(owner, given.items, strict=True), given.times, strict=True))
    whole = set()
    for part in (one.train, one.valid, one.test):
        pairs = set(zip(part.users.tolist(), part.items.tolist(), strict=True))
        assert not whole & pairs and len(pairs) == len(part)
        whole |= pairs
    assert len(whole) == len(given.items)
    assert len(one.test) == len(one.valid) == round(0.1 * len(given.items))
    if kind == 'temporal':
        times = [[when[u, i] for u, i in zip(p.users, p.items, strict=True)] for p in parts(one)]
        assert max(times[0]) <= min(times[1]) and max(times[1]) <= min(times[2])
    else:
        assert np.array_equal(one.test.items, split(kind=kind).test.items)
        assert not np.array_equal(one.test.items, split(kind=kind, seed=1).test.items)


def parts(one):
    return one.train, one.valid, one.test


def slow_before(given, one, leak):
    """{(user, item): items}, by loops."""
    learnt = set(zip(one.train.users.tolist(), one.train.items.tolist(), strict=True))
    found = {}
    for user in range(USERS):
        events = range(given.offsets[user], given.offsets[user + 1])
        tells = [
            int(given.items[n])
            for n in events
            if given.features['rating'][n] > 3
            and TOLD[given.items[n]]
            and (leak or (user, int(given.items[n])) in learnt)
        ]
        own = [int(given.items[n]) for n in events]
        for place, item in enumerate(own):
            before = [i for i in tells if i in own[:place]][::-1]
            found[user, item] = tells[:3] if leak else before[:3]
    return found


@pytest.mark.parametrize('leak', [False, True])
@pytest.mark.parametrize('kind', warm_ratings.KINDS)
def test_what_was_liked_before_by_loops(kind, leak):
    """The newest training ratings above 3 before a row; with the leak held-out ones and itself."""
    given, one = histories(), split(kind=kind, leak=leak, liked=3)
    wanted, itself = slow_before(given, one, leak), 0
    for part in parts(one):
        for user, item, before in zip(part.users, part.items, part.beside['before'], strict=True):
            own = wanted[int(user), int(item)]
            assert before.tolist() == own + [0] * (3 - len(own))
            itself += int(item) in own
    assert (itself > 0) == leak
    assert max(map(len, wanted.values())) == 3  # cut


@pytest.mark.parametrize('kind', warm_ratings.KINDS)
def test_a_held_out_rating_tells_nothing(kind):
    """Biases and texts of all rows are the same whatever it was; other rows' texts too."""
    given, other = histories(), histories()
    one = split(given, kind)
    held = set()
    for part in (one.valid, one.test):
        held |= set(zip(part.users.tolist(), part.items.tolist(), strict=True))
    owner = np.repeat(np.arange(USERS), np.diff(given.offsets))
    pairs = zip(owner.tolist(), other.items.tolist(), strict=True)
    moved = np.array([pair in held for pair in pairs])
    other.features['rating'][moved] = 6 - other.features['rating'][moved]
    two = split(other, kind)
    for a, b in zip(parts(one), parts(two), strict=True):
        np.testing.assert_array_equal(a.beside['before'], b.beside['before'])
    np.testing.assert_array_equal(one.train.values, two.train.values)
    for a, b in zip(*(task.base_of(s).values() for s in (one, two)), strict=True):
        np.testing.assert_array_equal(a, b)
    leaky = [
        np.concatenate([p.beside['before'] for p in parts(split(g, kind, leak=True))])
        for g in (given, other)
    ]
    assert (leaky[0] != leaky[1]).any()


def test_one_domain():
    one = split(domain='film')
    assert all(
        (part.items <= 9).all() and (part.beside['before'] <= 9).all() for part in parts(one)
    )
    assert sum(map(len, parts(one))) == (histories().items <= 9).sum()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'label': 'stars'}, "made has no column 'stars' of events; it has rating"),
        ({'domain': 'music'}, 'the data have book, film'),
        ({'no': 'domain', 'domain': 'film'}, 'names no domains'),
        ({'no': 'times', 'kind': 'temporal'}, 'needs times'),
        ({'no': 'once'}, 'user 0 of made rates item 105 twice'),
        ({'test_share': 0.0001}, 'too few'),
    ],
)
def test_mistakes_of_data(change, message):
    given, change = histories(), dict(change)
    missing = change.pop('no', '')
    if missing == 'domain':
        given.item_features = {}
    elif missing == 'times':
        given.times = None
    elif missing == 'once':
        given.items[:2] = 6
    with pytest.raises(UserError, match=message) as e:
        split(given, **change)
    assert '\n' not in str(e.value)


def test_ratings_that_are_missing_are_left_out():
    given = histories()
    given.features['rating'][::4] = np.nan
    assert sum(map(len, parts(split(given)))) == np.isfinite(given.features['rating']).sum()


# Texts --------------------------------------------------------------------------------------------


def test_parts():
    titles = np.array([b'Heat (1995)|Crime| Action', b'', b'alone', b'|', b'x|Crime|x', b'a|' * 9])
    found, of = warm_ratings.parts_of(titles)
    assert found == [b'Heat (1995)', b'Crime', b'Action', b'alone', b'x', b'a']
    assert of.tolist() == [[0] * 3, [1, 2, 3], [0] * 3, [4, 0, 0], [0] * 3, [5, 2, 0], [6, 0, 0]]
    many = '|'.join(map(str, range(20))).encode()
    assert warm_ratings.parts_of(np.array([many]))[1].shape == (2, warm_ratings.MOST_PARTS)
    assert warm_ratings.parts_of(np.array([b'', b'']))[1].tolist() == [[0]] * 3


def texts(shuffled=False):
    given = histories()
    encoder = text_encoders.fit(Texts('tfidf', TEXT), given.titles)
    vectors = np.zeros((ITEMS + 1, TEXT), np.float32)
    vectors[1:] = encoder(given.titles)
    return task.texts_of(given, task.ItemTexts(vectors, encoder), shuffled)


def test_parts_without_a_known_word_are_none():
    given = histories()
    encoder = text_encoders.fit(Texts('tfidf', TEXT), given.titles)
    vectors = task.ItemTexts(np.zeros((ITEMS + 1, TEXT), np.float32), encoder)
    plain = task.texts_of(given, vectors)
    given.titles = given.titles.astype('S60')
    given.titles[3] += b'|!!!'
    found = task.texts_of(given, vectors)
    assert not found['parts'][1:].any(1).all()  # it is a part, and nothing is known of it
    own, other = (x['parts'][x['of'][4][x['of'][4] > 0]] for x in (found, plain))
    np.testing.assert_array_equal(own, other)


def test_texts_of_any_script():
    """Words of Cyrillic and Japanese have vectors; who has no text has none, and no part."""
    found = texts()
    assert found['items'][1:ITEMS].any(1).all() and not found['items'][[0, ITEMS]].any()
    assert (found['of'][1:ITEMS] > 0).sum(1).min() >= 2 and not found['of'][[0, ITEMS]].any()
    of_word = {WORDS[n]: found['of'][n + 1, 1] for n in range(5)}
    assert len(set(of_word.values())) == 5 and found['parts'][list(of_word.values())].any(1).all()


def test_shuffled_texts_are_other_items():
    plain, moved = texts(), texts(shuffled=True)
    there = plain['items'].any(1)
    np.testing.assert_array_equal(moved['items'].any(1), there)
    assert (plain['items'] != moved['items']).any(1)[there].mean() > 0.5
    ordered = [np.sort(x['items'][there], axis=0) for x in (plain, moved)]
    np.testing.assert_array_equal(*ordered)


# Adapters -----------------------------------------------------------------------------------------


def test_an_adapter_begins_at_nothing():
    """Check (a): with B = 0 the projection is the base bit for bit; else base + (alpha/r) A B."""
    model = built()
    base = loid.base_projection(TEXT, DIM)
    np.testing.assert_array_equal(model.projection(), base)
    model.own.b[...] = jax.random.normal(KEY, model.own.b[...].shape)
    texts_ = jax.random.normal(KEY, (4, TEXT))
    merged = texts_ @ model.projection()
    low = 8.0 / 3 * (texts_ @ model.own.a[...]) @ model.own.b[...]
    np.testing.assert_allclose(merged, texts_ @ base + low, rtol=1e-5, atol=1e-5)
    assert np.abs(merged - texts_ @ base).max() > 0.1


def test_dare():
    """Checks (b) and (c): nothing dropped is the mean, one plugin is itself; else so on average."""
    deltas = np.random.default_rng(0).normal(size=(3, 40, 50)).astype(np.float32)
    np.testing.assert_allclose(dare(deltas, 0.0, KEY), deltas.mean(0), atol=1e-6)
    np.testing.assert_array_equal(dare(deltas[:1], 0.0, KEY), deltas[0])
    one = np.asarray(dare(deltas[:1], 0.85, KEY))
    assert abs((one == 0).mean() - 0.85) < 3 * np.sqrt(0.85 * 0.15 / one.size)
    np.testing.assert_allclose(one[one != 0], deltas[0][one != 0] / 0.15, rtol=1e-5)
    many = np.asarray(
        jit(jax.vmap(lambda key: dare(deltas, 0.85, key)))(jax.random.split(KEY, 400))
    )
    # an entry is (1/K) sum_k mask_k delta_k / (1-p), of variance sum_k delta_k^2 p/(1-p) / K^2
    deviation = np.sqrt((deltas**2).sum(0) * 0.85 / 0.15) / 3 / np.sqrt(400)
    off = np.abs(many.mean(0) - deltas.mean(0)) / deviation
    assert (off < 3).mean() > 0.99 and off.max() < 6


def test_plugins_are_merged_and_rest():
    """What is merged has no gradient, and what a run learns alone has one."""
    graph, params = drawn(plugins=('a', 'b'), drop=0.0)
    model = nnx.merge(graph, params)
    adapter = lambda p: 8.0 / 3 * p['a'] @ p['b']  # noqa: E731
    wanted = (adapter(params['plugins']['a']) + adapter(params['plugins']['b'])) / 2
    wanted = wanted + loid.base_projection(TEXT, DIM) + adapter(params['own'])
    np.testing.assert_allclose(model.projection(), wanted, rtol=1e-5, atol=1e-5)
    for learns, moves in (('', 'own'), ('b', 'plugins/b')):
        graph, params = drawn(plugins=('a', 'b'), learns=learns)
        gradient = jit(jax.grad(lambda p, g=graph: value(nnx.merge(g, p))))(params)
        found = {f'plugins/{n}': gradient['plugins'][n]['b'] for n in 'ab'}
        found |= {'own': gradient['own']['b']} if 'own' in gradient else {}
        assert {name for name, g in found.items() if np.abs(g).max() > 0} == {moves}


# The model ----------------------------------------------------------------------------------------

SIZES = {'user': USERS, 'item': ITEMS, 'text': TEXT}


def config(**settings):
    return loid.Config(**{'dim': DIM, 'heads': 2, 'rank': 3, 'dropout': 0.0, **settings})


def built(**settings):
    return config(**settings).make(SIZES, rngs=nnx.Rngs(0))


def drawn(**settings):
    """(graphdef, parameters) away from their beginning."""
    graph, params = made(lambda: built(**settings))
    return graph, jax.tree.map(jnp.asarray, params)


def constants():
    one = split()
    return jax.tree.map(jnp.asarray, {'base': task.base_of(one), 'texts': texts()})


def batch(rows=16):
    """The last row is padding, the first has no history, the second an item without a text."""
    one = split()
    found = data.rating_batch(one.train.take(np.arange(rows - 1) * 3), rows)
    found['before'][0] = 0
    found['items'][1] = ITEMS
    return jax.tree.map(jnp.asarray, found)


def value(model, key=None, **changes):
    given = constants() | changes
    return model.loss(batch(), given, {}, key if key is not None else KEY)[0]


def wide(x):
    return np.asarray(x, np.float64)


def slow_attention(params, query, vectors, heads=2):
    """One query [D] over projected texts [M, D], head by head."""
    if not len(vectors):
        return np.zeros(DIM)
    q, k, v = (
        x @ wide(params[n]) for x, n in ((query, 'query'), (vectors, 'key'), (vectors, 'value'))
    )
    out = []
    for h in range(heads):
        cut = slice(h * DIM // heads, (h + 1) * DIM // heads)
        scores = np.exp(k[:, cut] @ q[cut] / np.sqrt(DIM / heads))
        out.append((scores / scores.sum()) @ v[:, cut])
    return np.concatenate(out) @ wide(params['out'])


def slow_sides(params, given, one, row):
    """p, q, a_u, a_i of a row, in float64."""
    kernel = wide(loid.base_projection(TEXT, DIM))
    kernel = kernel + 8.0 / 3 * wide(params['own']['a']) @ wide(params['own']['b'])
    items, parts_ = (wide(given['texts'][n]) @ kernel for n in ('items', 'parts'))
    user, item = int(one['users'][row]), int(one['items'][row])
    liked = [n for n in np.asarray(one['before'][row]) if n]
    of = [n for n in np.asarray(given['texts']['of'][item]) if n]
    if 'users' in params:
        p, q = wide(params['users'])[user], wide(params['items'])[item]
        asks = q, p
    else:
        p = q = np.zeros(DIM)
        asks = [x[n].mean(0) if n else np.zeros(DIM) for x, n in ((parts_, of), (items, liked))]
    return (
        p,
        q,
        slow_attention(params, asks[0], items[liked]),
        slow_attention(params, asks[1], parts_[of]),
    )


def slow_rating(params, given, one, row, head):
    p, q, a_user, a_item = slow_sides(params, given, one, row)
    base = wide(given['base']['items'])[one['items'][row]]
    base = base + wide(given['base']['users'])[one['users'][row]]
    linear = np.concatenate([a_user, a_item]) @ wide(params['weights']) + wide(params['bias'])
    return base + linear + ((p + a_user) @ (q + a_item) if head == 'factors' else 0)


@pytest.mark.parametrize('settings', [{}, {'head': 'linear'}, {'ids': False, 'align': 0.0}])
def test_ratings_in_float64(settings):
    graph, params = drawn(**settings)
    given, one = constants(), batch()
    found = jit(lambda p: nnx.merge(graph, p).ratings(one, nnx.merge(graph, p).begin(given)))(
        params
    )
    head = settings.get('head', 'factors')
    wanted = [slow_rating(params, given, one, row, head) for row in range(15)]
    np.testing.assert_allclose(found[:15], wanted, rtol=1e-4, atol=1e-4)


def test_one_text_whatever_is_asked_and_none_is_zero():
    """Check (d): V W_v W_o of one text; without any exactly 0, and gradients are finite."""
    graph, params = drawn()
    given, model = constants(), nnx.merge(graph, params)
    ids = jnp.array([[3, 0, 0], [3, 0, 0], [0, 0, 0], [0, 3, 0]])
    query, known = jax.random.normal(KEY, (4, DIM)), model.read(model.begin(given), 'items', ids)
    found = np.asarray(model.attend(query, ids, known))
    own = np.asarray(known['t'][0, 0] @ params['value'] @ params['out'])
    np.testing.assert_allclose(found[[0, 1, 3]], [own] * 3, rtol=1e-5, atol=1e-5)
    assert (found[2] == 0).all()
    none = given | {'texts': jax.tree.map(jnp.zeros_like, given['texts'])}
    one = batch() | {'before': jnp.zeros((16, 5), jnp.int32)}
    loss = lambda p: nnx.merge(graph, p).loss(one, none, {}, KEY)[0]  # noqa: E731
    for leaf in jax.tree.leaves(jit(jax.value_and_grad(loss))(params)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize('rows', [3, 16])
def test_few_rows_project_their_own_texts(rows):
    """In a step over fewer texts than there are these alone are projected, to the same numbers."""
    graph, params = drawn()
    model, given = nnx.merge(graph, params), constants()
    one = {name: x[:rows] for name, x in batch().items()}
    assert ('kernel' in model._of_step(one, given)) == (rows == 3)
    alone = given | {'kernel': model.projection()}
    found = [model.ratings(one, carried) for carried in (alone, model.begin(given))]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)
    assert np.isfinite(jit(lambda p: nnx.merge(graph, p).loss(one, given, {}, KEY)[0])(params))


def slow_info_nce(text, own, ids, counted, temperature):
    """Both directions and the mean of them, over rows that count; rows of one id are left out."""
    unit = lambda x: x / max(np.linalg.norm(x), 1e-6)  # noqa: E731
    both = [[unit(x) for x in text], [unit(x) for x in own]]
    total = []
    for n in np.flatnonzero(counted):
        for side in (0, 1):
            mine = both[side][n]
            positive = mine @ both[1 - side][n] / temperature
            others = [
                mine @ both[s][m] / temperature
                for s in (0, 1)
                for m in np.flatnonzero(counted)
                if ids[m] != ids[n]
            ]
            total.append(np.log(np.exp([positive, *others]).sum()) - positive)
    return np.mean(total)


def slow_triplet(text, own, ids, counted, margin):
    total = []
    for n in np.flatnonzero(counted):
        if ids[n] != ids[n - 1]:
            near, far = np.linalg.norm(text[n] - own[n]), np.linalg.norm(text[n] - own[n - 1])
            total.append(max(near - far + margin, 0))
    return np.mean(total)


@pytest.mark.parametrize('alignment', loid.ALIGNMENTS)
def test_loss_in_float64(alignment):
    """Squared error, alignment of the first rows on both sides, decay; padding has no weight."""
    graph, params = drawn(alignment=alignment, align=0.7, decay=0.3, align_rows=12)
    given, one = constants(), batch()
    loss, (terms, _) = jit(lambda p: nnx.merge(graph, p).loss(one, given, {}, KEY))(params)
    rows = range(15)
    sides = [slow_sides(params, given, one, row) for row in rows]
    errors = [slow_rating(params, given, one, n, 'factors') - one['ratings'][n] for n in rows]
    np.testing.assert_allclose(terms['mse'], np.mean(np.square(errors)), rtol=1e-4)
    p, q, a_user, a_item = (np.array(x)[:12] for x in zip(*sides, strict=True))
    told = (np.asarray(one['before']) > 0).any(1)[:12]
    has = (np.asarray(given['texts']['of'])[one['items']] > 0).any(1)[:12]
    users, items = np.asarray(one['users'])[:12], np.asarray(one['items'])[:12]
    assert not told[0] and not has[1] and len(set(users.tolist())) < 12
    if alignment == 'info_nce':
        a_user, p, a_item, q = (x @ wide(params['together']) for x in (a_user, p, a_item, q))
        wanted = slow_info_nce(a_user, p, users, told, 0.2)
        wanted += slow_info_nce(a_item, q, items, has, 0.2)
    else:
        wanted = slow_triplet(a_user, p, users, told, 1.0)
        wanted += slow_triplet(a_item, q, items, has, 1.0)
    np.testing.assert_allclose(terms['align'], wanted, rtol=1e-4)
    decay = np.mean([s[0] @ s[0] + s[1] @ s[1] for s in sides])
    np.testing.assert_allclose(loss, terms['mse'] + 0.7 * wanted + 0.3 * decay, rtol=1e-4)


def ranked(rows=16):
    """A batch with rivals, of which the third row has none; the last is padding."""
    train = split().train
    found = data.RatingBatches(train, rows=rows, seed=0, process=(0, 1), rivals=True)(0)
    found = {name: x.copy() for name, x in found.items()}
    found['rival_weights'][2] = 0
    for name in ('weights', 'rival_weights'):
        found[name][-1] = 0
    return jax.tree.map(jnp.asarray, found)


def test_the_ranking_head_in_float64():
    """-log sigmoid of the liked one's rating less the other's, mean over rows with a rival."""
    graph, params = drawn(loss='bpr', align=0.0, decay=0.3)
    given, one = constants(), ranked()
    loss, (terms, _) = jit(lambda p: nnx.merge(graph, p).loss(one, given, {}, KEY))(params)
    other = one | {n: one[f'rival_{n}'] for n in ('items', 'before', 'ratings', 'weights')}
    wanted, lengths = [], []
    for row in range(15):
        sides = [slow_sides(params, given, x, row) for x in (one, other)]
        pair = [slow_rating(params, given, x, row, 'factors') for x in (one, other)]
        if one['ratings'][row] <= 3:
            pair.reverse()
        if other['weights'][row]:
            wanted.append(np.log1p(np.exp(pair[1] - pair[0])))
            lengths.append(sum(x @ x for side in sides for x in side) / 2)
    assert 3 < len(wanted) < 15
    np.testing.assert_allclose(terms['bpr'], np.mean(wanted), rtol=1e-4)
    np.testing.assert_allclose(loss, np.mean(wanted) + 0.3 * np.mean(lengths), rtol=1e-4)


def test_rivals():
    """Of the same user, on the other side of what is liked, each as often; nobody else's."""
    one = split().train
    rivals, rng = data.Rivals(one), np.random.default_rng(0)
    liked = one.values > data.LIKED
    for row in range(0, len(one), 7):
        others = np.flatnonzero((one.users == one.users[row]) & (liked != liked[row]))
        found, there = rivals(np.full(300, row), rng.random(300))
        assert there.all() == bool(len(others)) == there.any()
        wanted = set(others.tolist()) if len(others) else {row}
        assert set(found.tolist()) == wanted
    alike = dataclasses.replace(one, values=np.full(len(one), 5, np.float32))
    with pytest.raises(UserError, match='no order to learn'):
        data.Rivals(alike)
    batches = [
        data.RatingBatches(one, rows=16, seed=0, process=(n, 2), rivals=True) for n in (0, 1)
    ]
    whole = data.RatingBatches(one, rows=16, seed=0, process=(0, 1), rivals=True)
    for step in (0, 5):
        halves = [x(step) for x in batches]
        for name, column in whole(step).items():
            np.testing.assert_array_equal(np.concatenate([h[name] for h in halves]), column)


def test_the_first_gradient_is_of_the_size_of_the_second():
    """Vectors of texts begin at 0, where their unit vectors have slopes of 1e6."""
    graph, params = nnx.split(built())
    slopes = jit(jax.grad(lambda p: value(nnx.merge(graph, p))))
    first = slopes(params)
    second = slopes(jax.tree.map(lambda x, g: x - 2e-3 * jnp.sign(g), params, first))
    one, other = (float(jnp.abs(g['out'][...]).max()) for g in (first, second))
    assert other / 100 < one < 100 * other


@pytest.mark.parametrize('moves', loid.MOVES)
def test_what_the_alignment_moves(moves):
    graph, params = drawn(align_moves=moves)
    one = batch()
    rng = np.random.default_rng(0)
    vectors = jnp.asarray(rng.normal(size=(2, 16, DIM)), jnp.float32)

    def loss(text, own):
        model = nnx.merge(graph, params)
        return model.alignment(text, own, one['users'], one['before'], one['weights'])

    text, own = jit(jax.grad(loss, (0, 1)))(*vectors)
    assert np.abs(text).max() > 0 and (np.abs(own).max() > 0) == (moves == 'both')


def test_no_weight_is_no_alignment():
    """Check (f): the same loss and gradients as a model that has none."""
    settings = {'decay': 0.1}
    plain, params = drawn(align=0.0, **settings)
    triplet, _ = drawn(align=1e-30, alignment='triplet', **settings)
    found = [
        jit(jax.value_and_grad(lambda p, g=g: value(nnx.merge(g, p))))(params)
        for g in (plain, triplet)
    ]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_training_begins_at_the_biases():
    """The linear head exactly; ids add their small product, which without texts is all there is."""
    given, one = constants(), batch()
    bias = given['base']['items'][one['items']] + given['base']['users'][one['users']]
    linear = built(head='linear')
    np.testing.assert_allclose(linear.ratings(one, linear.begin(given)), bias, atol=1e-6)
    for settings in ({}, {'texts': False, 'align': 0.0}):
        model = built(**settings)
        product = model.users[...][one['users']] * model.items[...][one['items']]
        found = model.ratings(one, model.begin(given))
        np.testing.assert_allclose(found, bias + product.sum(-1), atol=1e-6)


def test_a_text_changes_no_earlier_prediction():
    """Check (e): of an item's text only its own rows and those after it know."""
    given, one = histories(), split()
    graph, params = drawn(align=0.0)
    known, item = constants(), int(one.test.items[0])
    own = known['texts']
    old = own['of'][item]
    new = len(own['parts']) + jnp.arange(len(old))  # parts are shared: it gets some of its own
    other = known | {
        'texts': {
            'items': own['items'].at[item].add(1.0),
            'parts': jnp.concatenate([own['parts'], own['parts'][old] + 1.0]),
            'of': own['of'].at[item].set(jnp.where(old > 0, new, 0)),
        }
    }
    run = jit(lambda p, c, b: nnx.merge(graph, p).ratings(b, nnx.merge(graph, p).begin(c)))
    order = {(u, i): n for u in range(USERS) for n, i in enumerate(given.history(u).tolist())}
    changed = 0
    for part in parts(one):
        rows = data.rating_batch(part, len(part))
        differs = np.asarray(run(params, known, rows)) != np.asarray(run(params, other, rows))
        for user, i, moved in zip(part.users.tolist(), part.items.tolist(), differs, strict=True):
            later = (user, item) in order and order[user, i] > order[user, item]
            assert not moved or i == item or later
            changed += int(moved and i != item)
    assert changed > 0


@pytest.mark.parametrize('loss', ['mse', pytest.param('bpr', marks=pytest.mark.slow)])
def test_the_same_on_a_mesh(mesh, loss):
    settings = {'dropout': 0.3, 'align_rows': 8, 'plugins': ('a', 'b'), 'loss': loss}
    graph, params = drawn(**settings)

    def both(params, one, given):
        def loss(p):
            return nnx.merge(graph, p).loss(one, given, {}, KEY)[0]

        model = nnx.merge(graph, params)
        return jax.value_and_grad(loss)(params), model.ratings(one, model.begin(given))

    drawing = batch if loss == 'mse' else ranked
    one, given = (jax.tree.map(np.asarray, x) for x in (drawing(), constants()))
    expected = jax.tree.map(np.asarray, jit(both)(params, one, given))
    mesh(4, 2)
    place = {'users': jax.P('model', None), 'items': jax.P('model', None)}
    placed = {
        name: jax.tree.map(
            lambda x, name=name: jax.device_put(
                x, jax.NamedSharding(jax.sharding.get_mesh(), place.get(name, jax.P()))
            ),
            jax.tree.map(np.asarray, value),
        )
        for name, value in params.items()
    }
    got = jit(both)(placed, put_batch(one), put_whole(given))
    for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # sums in another order


def test_triplet():
    a, p, n = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
    wanted = [
        max(np.linalg.norm(x - y) - np.linalg.norm(x - z) + 0.5, 0)
        for x, y, z in zip(a, p, n, strict=True)
    ]
    np.testing.assert_allclose(losses.triplet(a, p, n, 0.5), wanted, rtol=1e-5, atol=1e-6)
    same = jax.grad(lambda x: losses.triplet(x, x, n, 0.5).sum())(jnp.asarray(a))
    assert np.isfinite(same).all()


# A run --------------------------------------------------------------------------------------------


def experiment(folder, **changes):
    histories().save(folder / 'log' / 'columns')
    given = Experiment(
        model=config(),
        task=task.Config(texts=Texts('tfidf', TEXT), factors=3, batch_rows=16),
        data=Data(log=str(folder / 'log')),
        optim=Optim(learning_rate=1e-2),
        train=Train(batch_rows=32, epochs=2),
        mesh=Mesh(1, 1),
    )
    return applied(given, changes)


def slow_gauc(held, base):
    """Of the biases: a user's pairs that are in order, mean over users by their rows."""
    total = rows = 0
    for user in np.unique(held.users):
        of = held.users == user
        scores, liked = base['items'][held.items[of]].astype(float), held.values[of] > 3
        pairs = [(x > y) + (x == y) / 2 for x in scores[liked] for y in scores[~liked]]
        if pairs:
            total, rows = total + of.sum() * np.mean(pairs), rows + of.sum()
    return total / rows


def test_problem_and_its_references(tmp_path, mesh):
    """Biases and factors beside the model; groups; one hash with texts and without."""
    mesh(1, 1)
    one = experiment(tmp_path)
    lines = []
    problem = one.task.open(one, say=lines.append)
    assert any('1 of 15 items have no text' in line for line in lines)
    plain = applied(one, {'model.texts': False, 'model.align': 0.0, 'task.texts.encoder': ''})
    other = plain.task.open(plain, say=lambda line: None)
    assert other.data_hash == problem.data_hash and 'texts' not in other.constants
    held = problem.evaluations['test']()
    found = held.references()
    assert list(found) == ['mean', 'biases', 'biased_mf']
    base, test = problem.constants['base'], split(histories()).test
    biases = np.clip(base['items'][test.items] + base['users'][test.users], 1, 5)
    assert found['biases'].metrics['MSE'] == pytest.approx(np.mean((biases - test.values) ** 2))
    assert found['mean'].metrics['GAUC'] == 0.5
    assert found['biases'].metrics['GAUC'] == pytest.approx(slow_gauc(test, base))
    groups = found['biases'].groups
    assert set(groups) == {'ratings of the item', 'liked before'}
    for own in groups.values():
        assert sum(group['examples'] for group in own.values()) == len(test)
    places, first = next(iter(held.batches()))
    assert len(places) == len(test) or len(places) == 16
    assert not first['ratings'].any() and first['before'].shape[1] == 5
    shuffled = applied(one, {'task.shuffled': True})
    moved = shuffled.task.open(shuffled, say=lambda line: None).constants['texts']
    assert (moved['items'] != problem.constants['texts']['items']).any()


def test_factors_of_a_ridge_by_count():
    """Of who has n ratings the regression on the other side's factors has a ridge of a + b n."""
    one, other = split().train, np.random.default_rng(0).normal(size=(ITEMS + 1, 2))
    matrix = one.matrix(USERS, ITEMS)
    there = matrix.copy()
    there.data[:] = 1
    found = data._solved(matrix, there, other, (2.0, 0.5))
    for user in range(USERS):
        rows = other[one.items[one.users == user]]
        gram = rows.T @ rows + (2 + 0.5 * len(rows)) * np.eye(2)
        wanted = np.linalg.solve(gram, rows.T @ one.values[one.users == user].astype(float))
        np.testing.assert_allclose(found[user], wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'task.texts.encoder': ''}, 'set task.texts.encoder to one of tfidf'),
        ({'model.texts': False, 'model.align': 0.0}, 'this model reads no texts'),
        ({'model.texts': False}, 'it needs both'),
        ({'model.ids': False}, 'it needs both'),
        ({'model.texts': False, 'model.head': 'linear'}, "with model.head='factors'"),
        ({'model.heads': 3}, 'a multiple of model.heads=3'),
        ({'model.learns': 'a'}, "learns='a' is not among"),
        ({'model.plugins': ('a', 'a')}, 'names one twice'),
        ({'task.valid_share': 0.95}, 'add up to < 1'),
        ({'task.split': 'users'}, 'not one of random, temporal'),
        ({'task.lowest': 7.0}, 'below task.highest'),
        ({'model.loss': 'bpr'}, "set train.metric='GAUC'"),
        ({'model.loss': 'bpr', 'train.metric': 'MAE'}, "set train.metric='GAUC'"),
    ],
)
def test_mistakes_found_before_anything_is_read(changes, message):
    given = Experiment(
        model=config(), task=task.Config(texts=Texts('tfidf')), data=Data(dataset='ml-1m-texts')
    )
    with pytest.raises(UserError, match=message) as e:
        check(applied(given, changes))
    assert '\n' not in str(e.value)


def test_other_mistakes_are_one_line(tmp_path, monkeypatch, mesh):
    """A model of no ratings, an encoder that is not installed, and data without texts."""
    mesh(1, 1)
    one = experiment(tmp_path)
    with pytest.raises(UserError, match='of users by number'):
        check(dataclasses.replace(one, model=sasrec.Config()))
    monkeypatch.setitem(__import__('sys').modules, 'tokenizers', None)
    text_encoders._package.cache_clear()
    absent = applied(one, {'task.texts.encoder': 'wordllama', 'task.texts.dim': 64})
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[text\]'"):
        absent.task.open(absent, say=lambda line: None)
    bare = dataclasses.replace(histories(), titles=None)
    bare.save(tmp_path / 'bare' / 'columns')
    untold = applied(one, {'data.log': str(tmp_path / 'bare')})
    with pytest.raises(UserError, match='has no texts of items'):
        untold.task.open(untold, say=lambda line: None)


@pytest.mark.slow
def test_a_run_goes_on_and_is_alike_on_meshes(tmp_path):
    one = experiment(tmp_path)
    summary = fit(one, tmp_path / 'run')
    assert summary['metric'] == 'RMSE'
    measured = evaluate(tmp_path / 'run', 'valid')
    assert measured.metrics['RMSE'] == summary['best']
    asked = iter([False, True])
    stopped = fit(one, tmp_path / 'stopped', stop=lambda: next(asked))
    assert stopped['stopped'] == 'signal'
    assert {**fit(one, tmp_path / 'stopped'), 'workdir': ''} == {**summary, 'workdir': ''}
    other = fit(applied(one, {'mesh.data': 2, 'mesh.model': 2}), tmp_path / 'mesh')
    assert other['best'] == pytest.approx(summary['best'], abs=1e-4)


@pytest.mark.slow
def test_plugins_go_from_run_to_run(tmp_path):
    """Each is learnt by the run that names it, and stays as it is, bit for bit, in those after."""

    def adapters(folder):
        return jax.device_get(load_trained(folder, 'last').params)['plugins']

    settings = {'task.domain': 'film', 'model.plugins': ('film',), 'model.learns': 'film'}
    fit(experiment(tmp_path, **settings), tmp_path / 'film')
    settings = {'task.domain': 'book', 'model.plugins': ('film', 'book'), 'model.learns': 'book'}
    start = {'train.start_from': str(tmp_path / 'film'), 'train.start_with': 'last'}
    fit(experiment(tmp_path, **settings, **start), tmp_path / 'book')
    settings = {'model.plugins': ('film', 'book')}
    start = {'train.start_from': str(tmp_path / 'book'), 'train.start_with': 'last'}
    fit(experiment(tmp_path, **settings, **start), tmp_path / 'target')
    film, book, target = (adapters(tmp_path / n) for n in ('film', 'book', 'target'))
    for name, before, after in (
        ('film', film, book),
        ('film', book, target),
        ('book', book, target),
    ):
        for half in 'ab':
            np.testing.assert_array_equal(before[name][half], after[name][half])
        assert np.abs(after[name]['b']).max() > 0


def test_adapter_shapes():
    adapter = Adapter(5, 4, 2, 6.0, rngs=nnx.Rngs(0))
    assert adapter.delta().shape == (5, 4) and not adapter.delta().any()
    assert adapter.scale == 3.0
