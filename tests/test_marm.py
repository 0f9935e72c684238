"""MARM: kept memories against the banded recompute in float64, a loop in numpy, and the past."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from test_click import evaluate, rows  # noqa: F401  (the made-up rows)
from test_click import make as make_click

from jaxrec.data import streams
from jaxrec.devices.mesh import make_mesh, on_mesh, place_whole, put_batch
from jaxrec.errors import UserError
from jaxrec.models import marm
from jaxrec.serving.memories import Memories
from jaxrec.serving.scorer import Scorer
from jaxrec.training.restore import Trained
from jaxrec.training.state import check_model

D, T, B, S = 4, 2, 3, 11
KEY = jax.random.key(0)
SIZES = {
    'table': 20,
    'label': T,
    **{f'label.{name}': n for n, name in enumerate(('click', 'like'))},
    'feature.item': 1,
    'feature.age': 0,
}


SEARCHES = {
    'latest': {},
    'same': {'search': 'same', 'same': 'item', 'searched': 7},
    'dot': {'search': 'dot', 'searched': 7},
}


def made(layers, memory=3, heads=2, **search):
    """The model in float64, under jax.enable_x64."""
    config = marm.Config(
        dim=D,
        tower_widths=(5,),
        layers=layers,
        memory=memory,
        heads=heads,
        cross=('item',),
        **search,
    )
    config.check()
    graphdef, params = models.made(lambda: config.make(SIZES, rngs=nnx.Rngs(0)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params))


def drawn(seed=0):
    """x [B, S, D], labels and mask [B, S, T]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (B, S, T)).astype(np.float64)
    return rng.normal(size=(B, S, D)), labels, (rng.random((B, S, T)) < 0.7).astype(np.float64)


GROUPS = np.random.default_rng(5).integers(0, 2, (B, S)).astype(np.int32)


def found(config, j, layer, own, kept, groups):
    """Events that row j attends to in a layer: of the latest those that its search picks."""
    events = list(range(max(0, j - config.reach), j))
    if config.search == 'same':
        events = [i for i in events if groups[i] == groups[j]]
    if config.search == 'dot':
        events.sort(key=lambda i: own @ kept[i][layer])
    return events[-config.memory :]


def slow(model, x, labels, mask, groups):
    """x^0 .. x^L [S, L + 1, D] of one stream, event by event, head by head."""
    outcomes, kept, out = np.asarray(model.outcomes[...]), [], []
    for j in range(len(x)):
        own = [x[j]]
        for number, layer in enumerate(model.layers):
            q, k, v, o = (np.asarray(p.kernel[...]) for p in (layer.q, layer.k, layer.v, layer.out))
            memories = []
            for i in found(model.config, j, number, own[-1], kept, groups):
                told = sum(mask[i, t] * outcomes[t, int(labels[i, t])] for t in range(T))
                memories.append(kept[i][number] + told)
            if not memories:
                own.append(own[-1])
                continue
            keys, values, heard = np.array(memories) @ k, np.array(memories) @ v, []
            query, width = own[-1] @ q, D // model.config.heads
            for head in range(model.config.heads):
                part = slice(head * width, (head + 1) * width)
                weights = np.exp(keys[:, part] @ query[part] / np.sqrt(width))
                heard.append(weights @ values[:, part] / weights.sum())
            own.append(own[-1] + np.concatenate(heard) @ o)
        kept.append(own[:-1])
        out.append(own)
    return np.array(out)


def outputs(model, x, labels, mask, sees=None):
    sees = np.broadcast_to(np.arange(S), (B, S)) if sees is None else sees
    graphdef, params = nnx.split(model)
    run = lambda p, *args: jnp.stack(nnx.merge(graphdef, p).outputs(*args), axis=2)  # noqa: E731
    return np.asarray(models.jit(run)(params, x, labels, mask, sees, GROUPS))


@pytest.mark.parametrize(
    'layers, search', [(1, 'latest'), (2, 'latest'), (3, 'latest'), (2, 'same'), (2, 'dot')]
)
def test_kept_is_recomputed_is_the_loop(layers, search):
    """One layer is plain target attention: the loop of a single layer is its formula."""
    with jax.enable_x64(True):
        model, (x, labels, mask) = made(layers, **SEARCHES[search]), drawn()
        whole = outputs(model, x, labels, mask)
        for user in range(B):
            np.testing.assert_allclose(
                whole[user],
                slow(model, x[user], labels[user], mask[user], GROUPS[user]),
                rtol=0,
                atol=1e-12,
            )
        n, rng = model.config.reach, np.random.default_rng(1)
        kept = np.full((B, S, layers, D), np.nan)
        graphdef, params = nnx.split(model)
        read = models.jit(lambda p, *args: nnx.merge(graphdef, p).read(*args))
        for j in range(S):  # one event after the other; unused places hold rubbish, order is free
            places = np.arange(n) if search == 'same' else rng.permutation(n)
            slots, there = rng.normal(size=(B, n, layers, D)), np.zeros((B, n), bool)
            came, known = (rng.integers(0, 2, (B, n, T)).astype(np.float64) for _ in range(2))
            groups = rng.integers(0, 2, (B, n)).astype(np.int32)
            for place, i in zip(places, range(max(0, j - n), j), strict=False):
                slots[:, place], there[:, place] = kept[:, i], True
                came[:, place], known[:, place] = labels[:, i], mask[:, i]
                groups[:, place] = GROUPS[:, i]
            own = np.asarray(read(params, x[:, j], slots, came, known, there, GROUPS[:, j], groups))
            np.testing.assert_allclose(own, whole[:, j], rtol=0, atol=1e-12)
            kept[:, j] = own[:, :-1]


def test_the_latest_events_alone_are_not_enough():
    """Two layers hear of 2 n events; of the first n events all is known."""
    with jax.enable_x64(True):
        model, (x, labels, mask) = made(2), drawn()
        n, whole = model.config.memory, outputs(model, x, labels, mask)[0]
        for j in range(S):
            kept = slice(max(0, j - n), j + 1)
            alone = slow(model, x[0, kept], labels[0, kept], mask[0, kept], GROUPS[0, kept])[-1]
            assert np.allclose(alone, whole[j], atol=1e-12) == (j <= n), j


def test_layers_search_by_themselves():
    """A layer's own x decides; padding does not beat a negative product; no gradient chooses."""
    with jax.enable_x64(True):
        model = made(2, **SEARCHES['dot'])
        x = np.array([[[1.0, 0, 0, 0]]])
        events = np.zeros((1, 6, D))
        events[0, :, 0] = [-5, -4, -3, -2, 9, 9]
        past = np.array([True, True, True, True, False, False])[None, None, None]
        picked = model.picked(x, events, past, None, None)
        np.testing.assert_array_equal(picked[0, 0, 0], [False, True, True, True, False, False])
        np.testing.assert_array_equal(
            model.picked(-x, events, past, None, None)[0, 0, 0], [True] * 3 + [False] * 3
        )
        events[0, :3] = events[0, 1]  # ties are all seen
        assert model.picked(x, events, past, None, None).sum() == 4


def test_a_search_among_no_more_than_it_picks_finds_all():
    """Then every search is the latest, but for events that are not alike."""
    with jax.enable_x64(True):
        x, labels, mask = drawn()
        plain = outputs(made(2, memory=S), x, labels, mask)
        dot = made(2, memory=S, search='dot', searched=S + 1)
        np.testing.assert_array_equal(outputs(dot, x, labels, mask), plain)


@pytest.mark.parametrize('search', SEARCHES)
def test_no_past(search):
    """Output = input, and no NaN in a gradient."""
    with jax.enable_x64(True):
        model, (x, labels, mask) = made(2, **SEARCHES[search]), drawn()
        graphdef, params = nnx.split(model)
        sees = jnp.zeros((B, S), jnp.int32)

        def run(params, x):
            outputs = nnx.merge(graphdef, params).outputs(x, labels, mask, sees, GROUPS)
            return jnp.stack(outputs, 2)

        np.testing.assert_array_equal(run(params, x), np.repeat(x[:, :, None], 3, axis=2))
        grads = models.jit(jax.grad(lambda p, x: run(p, x).sum(), argnums=(0, 1)))(params, x)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def windows_of(seed=0):
    _, labels, mask = drawn(seed)
    rng = np.random.default_rng(seed)
    return {
        'features': {
            'item': rng.integers(1, 20, (B, S)).astype(np.int32),
            'age': rng.normal(size=(B, S)),
        },
        'labels': labels,
        'mask': mask,
        'weights': np.ones((B, S)),
        'sees': np.broadcast_to(np.arange(S, dtype=np.int32), (B, S)).copy(),
    }


def logits(model, batch):
    graphdef, params = nnx.split(model)
    run = models.jit(lambda p, batch: nnx.merge(graphdef, p).heard(batch)[0])
    return np.asarray(run(params, batch))


def test_nothing_is_known_too_early():
    """A row does not hear of its own labels nor of later rows; candidates not of each other."""
    with jax.enable_x64(True):
        model, batch, other = made(2), windows_of(0), windows_of(1)
        plain, at = logits(model, batch), 6
        changed = jax.tree.map(np.copy, batch)
        for name in ('labels', 'mask'):
            changed[name][:, at:] = other[name][:, at:]
        for name, column in changed['features'].items():
            column[:, at + 1 :] = other['features'][name][:, at + 1 :]
        np.testing.assert_array_equal(logits(model, changed)[:, : at + 1], plain[:, : at + 1])
        assert (logits(model, changed)[:, at + 1 :] != plain[:, at + 1 :]).all()
        batch['sees'][:, at:] = at  # the rows from here on are candidates
        frozen = logits(model, batch)
        np.testing.assert_array_equal(frozen[:, :at], plain[:, :at])
        for name, column in batch['features'].items():
            column[:, at] = other['features'][name][:, at]
        batch['labels'][:, at:] = 1 - batch['labels'][:, at:]
        again = logits(model, batch)
        assert (again[:, at] != frozen[:, at]).all()
        others = np.arange(S) != at
        np.testing.assert_array_equal(again[:, others], frozen[:, others])


# ---- windows of streams, and the task


@pytest.mark.parametrize('context', [4, 1000])
@pytest.mark.parametrize('frozen', [False, True])
def test_windows(rows, monkeypatch, context, frozen):  # noqa: F811
    """Every row of the part once, with the latest of the rows that it may know."""
    monkeypatch.setattr(streams, '_TARGETS', 3)
    day = np.sort(rows.features['date'])
    encode = lambda index: {'row': index.astype(np.int32) + 1}  # noqa: E731
    made = streams.Streams(rows, encode, ('click', 'like'), day)
    windows = made.windows(7, 9, context=context, frozen=frozen)
    length, seen = windows.longest, []
    for first in range(0, len(windows), 5):
        chosen = np.arange(first, min(first + 5, len(windows)))
        batch = made.batch(windows, chosen, 6, length)
        assert batch['weights'].shape == (6, length) and not batch['weights'][len(chosen) :].any()
        np.testing.assert_array_equal(batch['rows'] >= 0, batch['weights'] > 0)
        for line, column in zip(*np.nonzero(batch['weights']), strict=True):
            row = batch['rows'][line, column]
            own = np.flatnonzero((rows.users == rows.users[row]) & (np.arange(len(day)) < row))
            own = own[day[own] < 7] if frozen else own
            sees = batch['sees'][line, column]
            past = batch['features']['row'][line, :sees] - 1
            np.testing.assert_array_equal(past[-context:], own[-context:])
            assert batch['features']['row'][line, column] - 1 == row
            labels, mask = rows.outcomes(('click', 'like'), np.array([row]))
            np.testing.assert_array_equal(batch['labels'][line, column], labels[0])
            np.testing.assert_array_equal(batch['mask'][line, column], mask[0])
            seen.append(row)
    np.testing.assert_array_equal(np.sort(seen), np.flatnonzero((day >= 7) & (day < 9)))


def test_a_stray_row_is_taken_by_its_day(rows, monkeypatch):  # noqa: F811
    """Around midnight day and time may disagree; more than a few that do are refused."""
    day = np.sort(rows.features['date'])
    own = np.flatnonzero(rows.users == 3)
    day[own[5]], day[own[6]] = 8, 7
    day[own[:5]], day[own[7:]] = 1, 9
    encode = lambda index: {'row': index.astype(np.int32) + 1}  # noqa: E731
    with pytest.raises(UserError, match='must not decrease with time'):
        streams.Streams(rows, encode, ('click',), day)
    monkeypatch.setattr(streams, '_STRAY', 0.01)
    made = streams.Streams(rows, encode, ('click',), day)
    order = made.order[rows.users[made.order] == 3]
    np.testing.assert_array_equal(order, [*own[:5], own[6], own[5], *own[7:]])
    assert made.stray == 1


@pytest.fixture
def in_order(rows, tmp_path):  # noqa: F811
    """Their days ascend, as a model with a past needs it."""
    rows.features['date'] = np.sort(rows.features['date'])
    rows.save(tmp_path / 'columns')
    return rows


def experiment(search='latest', **changes):
    made = make_click(train={'batch_rows': 4}, **{'history': 'frozen', **changes})
    made.model = marm.Config(dim=4, tower_widths=(), layers=2, memory=3, **SEARCHES[search])
    return made


def metrics(name='test', **changes):
    made = experiment(**changes)
    p = made.task.open(made, say=lambda line: None)
    check_model(made.model, p)
    graph, params = models.made(lambda: made.model.make(p.sizes, rngs=nnx.Rngs(0)))
    return evaluate(p, graph, params, name)


@pytest.mark.parametrize('search', ['latest', 'dot'])
def test_pieces_of_a_stream_give_the_same(in_order, monkeypatch, mesh, search):
    whole = metrics(search=search)
    monkeypatch.setattr(streams, '_TARGETS', 2)
    pieces = metrics(search=search, batch_rows=7)
    mesh(2, 2)
    on_a_mesh = metrics(search=search, batch_rows=64)
    for other in (pieces, on_a_mesh):
        assert other.metrics == pytest.approx(whole.metrics, abs=1e-6)
    told = metrics(search=search, history='streaming')
    assert told.metrics['AUC/click'] != pytest.approx(whole.metrics['AUC/click'], abs=1e-6)


def test_a_step_on_any_mesh(in_order, mesh):
    made = experiment()

    def step():
        p = made.task.open(made, say=lambda line: None)
        graph, params = models.made(lambda: made.model.make(p.sizes, rngs=nnx.Rngs(0)))
        batch = p.periods[0]().batches(0)
        loss = lambda params, batch: nnx.merge(graph, params).loss(batch, {}, {}, KEY)[0]  # noqa: E731
        batch = put_batch(batch) if on_mesh() else batch
        return jax.device_get(models.jit(jax.value_and_grad(loss))(params, batch))

    value, grads = step()
    assert all(np.any(g) for g in jax.tree.leaves(grads))
    mesh(2, 2)
    other, other_grads = step()
    assert other == pytest.approx(value, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, other_grads)


@pytest.mark.parametrize('search', ['latest', pytest.param('same', marks=pytest.mark.slow)])
def test_served_as_evaluated(in_order, tmp_path, search):
    """Rows that are shown in order get the scores of the stream; scoring changes nothing."""
    made = experiment(search, history='streaming')
    with jax.set_mesh(make_mesh(made.mesh, jax.devices()[:1])):
        p = made.task.open(made, say=lambda line: None)
        graphdef, params = models.made(lambda: made.model.make(p.sizes, rngs=nnx.Rngs(0)))
        mesh = jax.sharding.get_mesh()
        wanted = np.zeros((len(in_order), 2))
        for name in p.evaluations:
            evaluation = p.evaluations[name]()
            model = nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))
            for places, batch in evaluation.batches():
                real = places >= 0
                scores = np.asarray(model.scores(place_whole(batch), {}))
                wanted[evaluation._index[places[real]]] = scores[real]
        p.catalogue.save(tmp_path / 'catalogue')
        served = made.task.open_catalogue(tmp_path / 'catalogue')
    trained = Trained(made, served, mesh, graphdef, params, {}, 0, tmp_path, 'best')
    with pytest.raises(UserError, match='sees the past of a row'):
        Scorer(trained)
    memories = Memories(trained, batch_rows=16)
    asked = [
        {'user': int(user), 'item': int(item) - 1, 'watch': None, 'age': None}
        for user, item in zip(in_order.users, in_order.items, strict=True)
    ]
    for row in asked:  # fields of users are as in the data
        del row['watch'], row['age']
    begun = int(np.flatnonzero(in_order.features['date'] >= 7)[0])

    def happened(first, last):
        memories.shown(asked[first:last])
        labels, mask = in_order.outcomes(('click', 'like'), np.arange(first, last))
        for row, values, known in zip(asked[first:last], labels, mask, strict=True):
            named = dict(zip(('click', 'like'), values, strict=True))
            came = {n: v for (n, v), k in zip(named.items(), known, strict=True) if k}
            memories.came(row['user'], row['item'], came)

    row = 0
    while row < begun:  # a label of a row is known before the user's next one
        users = in_order.users[row:begun].tolist()
        fresh = next((n for n in range(len(users)) if users[n] in users[:n]), len(users))
        happened(row, row + fresh)
        row += fresh
    first = memories.logits(asked[begun : begun + 30])
    np.testing.assert_array_equal(memories.logits(asked[begun : begun + 30]), first)
    assert len(memories.logits([])) == 0
    for row in range(begun, begun + 25):
        found = memories.logits([asked[row]])[0]
        np.testing.assert_allclose(found, wanted[row], atol=1e-5)
        happened(row, row + 1)
    with pytest.raises(UserError, match='nothing is kept of user 0 and item 99'):
        memories.came(0, 99, {'click': 1})
    alike = Memories(trained, batch_rows=4), Memories(trained, batch_rows=16)
    for one in asked[:9]:  # of a user one after the other, however many are told at once
        alike[0].shown([one])
    alike[1].shown(asked[:9])
    found = [one.logits(asked[9:20]) for one in alike]
    np.testing.assert_allclose(*found, atol=1e-6)
    with pytest.raises(UserError, match='no label'):
        memories.came(asked[begun]['user'], asked[begun]['item'], {'buy': 1})


def test_refusals(in_order, tmp_path):
    made = make_click()
    made.model = marm.Config(layers=1)
    with pytest.raises(UserError, match='task.history=frozen'):
        made.task.check(made)
    in_order.features['date'] = in_order.features['date'][::-1].copy()
    in_order.save(tmp_path / 'columns')
    made = experiment()
    with pytest.raises(UserError, match='task.day must not decrease'):
        made.task.open(made, say=lambda line: None)
    for words, settings in (
        (r'model.heads=3 must divide model.dim=16', {'heads': 3}),
        ('model.searched goes with', {'searched': 99}),
        ('set model.searched above it, which is 50', {'search': 'dot', 'searched': 50}),
        ('goes with model.same', {'search': 'same', 'searched': 99}),
        ('goes with model.same', {'search': 'dot', 'searched': 99, 'same': 'item'}),
    ):
        with pytest.raises(UserError, match=words):
            marm.Config(**settings).check()
    made = experiment('same')
    made.model.same = 'author'
    with pytest.raises(UserError, match="the model wants field 'author'"):
        made.task.check(made)
