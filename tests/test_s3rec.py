"""S3-Rec against slow references in float64: its tasks, draws, prefixes, and fine-tuning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit
from test_cl4srec import histories as some_histories

from jaxrec.config import Data, Feature, Mesh, Optim, Train
from jaxrec.data.packed import TrainBatches
from jaxrec.datasets import s3rec as files
from jaxrec.devices.mesh import put_batch
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, check
from jaxrec.models import s3rec, sasrec
from jaxrec.objectives.augment import MASK
from jaxrec.tasks import next_item
from jaxrec.training.loop import fit
from jaxrec.training.state import Program

ITEMS, L, D, ATTRIBUTES = 40, 8, 8, 5
LOW, HIGH = np.log(1 + np.exp(-1)), np.log(1 + np.e)
QUIET = {'dropout': 0.0, 'embedding_dropout': 0.0}


def histories():
    sets = np.random.default_rng(1).integers(0, ATTRIBUTES + 3, (ITEMS, 3)).astype(np.int32)
    return dataclasses.replace(some_histories(ITEMS), item_features={'attributes': sets})


def experiment_of(data=None, **options):
    attributes = Feature('attributes', 'set', size=ATTRIBUTES)
    plain = {'dim': D, 'blocks': 1, 'heads': 2, 'ffn': 1, 'max_len': L, 'init': 'xavier_normal'}
    return Experiment(
        model=s3rec.Config(**(plain | {'attributes': attributes} | options)),
        task=next_item.Config(windows='prefixes', cutoffs=(5, 10)),
        data=data or Data(dataset='synthetic'),
        train=Train(batch_rows=8, steps=3),
        mesh=Mesh(1, 1),
    )


def problem_of(experiment):
    return next_item.NextItem(experiment, histories(), {'data_hash': '', 'path': ''})


def graphdef_of(experiment):
    def build(key):
        return experiment.model.make({'item': ITEMS}, rngs=nnx.Rngs(key))

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))
    return graphdef, lambda key: nnx.to_pure_dict(nnx.state(build(key), nnx.Param))


def test_every_prefix_of_the_training_events_is_a_row_of_its_own():
    """And nothing else: no event of validation or test, no target."""
    data = some_histories(ITEMS)
    ends = np.maximum(data.offsets[1:] - 2, data.offsets[:-1])
    batches = TrainBatches(data, ends, max_len=5, rows=4, seed=0, windows='prefixes')
    wanted = []
    for first, end in zip(data.offsets[:-1], ends, strict=True):
        newest = data.items[max(first, end - 5) : end].tolist()
        wanted += [newest[: n + 1] for n in range(len(newest))]
    found = []
    for step in range(batches.steps_per_epoch):
        batch = batches(step)
        assert 'targets' not in batch
        for row in range(4):
            for number in range(1, batch['segments'][row].max() + 1):
                here = batch['segments'][row] == number
                found.append(batch['items'][row, here].tolist())
                assert batch['positions'][row, here].tolist() == list(range(5 - here.sum(), 5))
    assert sorted(found) == sorted(wanted)
    assert batches.examples_per_epoch == len(wanted)


def test_negatives_are_uniform_among_the_items_that_a_prefix_lacks():
    own, small = [[3, 1, 3, 7], [2, 2], [1, 2, 3, 4, 5, 6, 7]], 7
    items = np.tile([0, *own[0], *own[1], *own[2]], (600, 1)).astype(np.int32)
    segments = np.tile([0] + [1] * 4 + [2] * 2 + [3] * 7, (600, 1)).astype(np.int32)
    draw = jax.jit(s3rec.unseen, static_argnums=3)
    drawn = np.asarray(draw(items, segments, jax.random.key(0), small))
    for number, there in enumerate(own, 1):
        lacks = sorted({*range(1, small + 1)} - {*there})
        got, counts = np.unique(drawn[segments == number], return_counts=True)
        assert got.tolist() == (lacks or [0])  # who has all has no negative
        if lacks:
            share = counts / counts.sum()
            deviation = np.sqrt((1 / len(lacks)) / counts.sum())
            assert np.abs(share - 1 / len(lacks)).max() < 4.5 * deviation
    assert not drawn[segments == 0].any()


def even(counts):
    """Whether a uniform draw may count so: chi-squared no further than 5 deviations above."""
    counts, free = np.asarray(counts), len(counts) - 1
    mean = counts.mean()
    return ((counts - mean) ** 2 / mean).sum() <= free + 5 * np.sqrt(2 * free)


def test_segments_and_what_takes_their_place():
    """1 to n / 2 events in a row, and as many that follow each other; all equally likely."""
    lengths, rows = [(3, 5), (1, 2, 4), (8,), (7,)], []
    for row in lengths:
        row = np.repeat(np.arange(1, len(row) + 1), row)
        rows.append(np.pad(row, (0, L - len(row))))
    segments, stream = np.array(rows, np.int32), np.arange(1, 31)  # an item tells its place
    items = np.zeros(segments.shape, np.int32)
    items[segments > 0] = np.random.default_rng(0).permutation(stream)
    stream = items[segments > 0].tolist()
    keys = jax.random.split(jax.random.key(0), 600)

    @jit
    def draw(keys):
        rows = {'items': jnp.asarray(items), 'segments': jnp.asarray(segments)}
        hide = lambda key: s3rec.hidden_places(rows['segments'], key, 0.2)  # noqa: E731
        return jax.vmap(lambda key: (*s3rec.segment_views(rows, key), hide(key)))(keys)

    inside, other, chosen = map(np.asarray, draw(keys))
    assert not inside[:, segments == 0].any() and not chosen[:, segments == 0].any()
    runs, starts = {}, {}
    for row, of_row in enumerate(lengths):
        for segment, n in enumerate(of_row, 1):
            here = np.flatnonzero(segments[row] == segment)
            assert chosen[:, row, here[-1]].all()  # the newest always
            assert n == 1 or abs(chosen[:, row, here[:-1]].mean() - 0.2) < 0.05
            for number in range(len(keys)):
                run = np.flatnonzero(inside[number, row, here])
                assert (np.diff(run) == 1).all() and 1 <= len(run) <= max(n // 2, 1)
                first = stream.index(other[number, row, here[run[0]]])
                assert other[number, row, here[run]].tolist() == stream[first : first + len(run)]
                runs.setdefault(n, []).append((len(run), run[0]))
                starts.setdefault(len(run), []).append(first)
    for n, drawn in runs.items():
        counts, firsts = np.array(drawn).T
        assert even(np.bincount(counts, minlength=max(n // 2, 1) + 1)[1:])
        for count in set(counts):
            assert even(np.bincount(firsts[counts == count], minlength=n - count + 1))
    for count, first in starts.items():
        assert even(np.bincount(first, minlength=len(stream) - count + 1))


def test_the_double_sigmoid_has_bounds_and_the_clean_form_none():
    scores = np.array([[0, 0], [50, -50], [-50, 50], [2, 1], [3, 3]], np.float32)
    faithful = np.asarray(s3rec.pairwise(scores[:, 0], scores[:, 1], True), np.float64)
    clean = np.asarray(s3rec.pairwise(scores[:, 0], scores[:, 1], False), np.float64)
    s = 1 / (1 + np.exp(-scores.astype(np.float64)))
    np.testing.assert_allclose(faithful, np.log1p(np.exp(s[:, 1] - s[:, 0])), rtol=1e-6)
    np.testing.assert_allclose(faithful[[0, 4]], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(faithful[1], LOW, rtol=1e-6)
    np.testing.assert_allclose(faithful[2], HIGH, rtol=1e-6)
    assert abs(LOW - 0.3133) < 1e-4 and abs(np.log(2) - 0.6931) < 1e-4
    np.testing.assert_allclose(clean[[0, 3]], [np.log(2), np.log1p(np.exp(-1))], rtol=1e-6)
    assert clean[1] < 1e-20 and clean[2] > 99


@pytest.fixture(scope='module')
def learnt():
    """(experiment, graphdef, parameters, batch after `sample`, key) of a model without dropout."""
    experiment = experiment_of(**QUIET)
    graphdef, params = graphdef_of(experiment)
    batch, key = problem_of(experiment).batches()(0), jax.random.key(5)
    batch = jit(lambda p, b: nnx.merge(graphdef, p).sample(b, key))(
        made := jit(params)(jax.random.key(0)), batch
    )
    return experiment, graphdef, made, jax.device_get(batch), key


@pytest.mark.parametrize('faithful', [False, True])
def test_tasks_of_packed_rows_are_those_of_prefixes_one_by_one(learnt, faithful):
    experiment, graphdef, params, batch, key = learnt
    model = dataclasses.replace(experiment.model, faithful=faithful)
    graphdef = graphdef_of(dataclasses.replace(experiment, model=model))[0]
    loss = jit(lambda p, b: nnx.merge(graphdef, p).loss(b, {}, {}, key))
    value, (terms, _) = loss(params, batch)

    keys = s3rec.rng.keys(key, *s3rec._STREAMS)
    hidden = np.asarray(s3rec.hidden_places(batch['segments'], keys['hidden'], 0.2))
    inside, other = map(np.asarray, s3rec.segment_views(batch, keys['segments']))
    items = batch['items']
    views = [(hidden, MASK), (inside, MASK), (~inside, MASK), (~inside, MASK)]
    views = [np.where(where, mask, items) for where, mask in views]
    views[3] = np.where(inside, other, MASK)
    prefixes = [
        (row, np.flatnonzero(batch['segments'][row] == number))
        for row in range(len(items))
        for number in range(1, batch['segments'][row].max() + 1)
    ]
    alone = np.zeros((4, len(prefixes), L), np.int32)
    real = np.zeros((len(prefixes), L), bool)
    for n, (row, at) in enumerate(prefixes):
        real[n, L - len(at) :] = True
        for view in range(4):
            alone[view, n, L - len(at) :] = views[view][row, at]

    @jit
    def encode(params, items):
        model = nnx.merge(graphdef, params)
        places = {'segments': real.astype(np.int32), 'positions': np.arange(L) * real}
        return model.encode({'items': items, **places}, model.item_table())

    found = [np.asarray(encode(params, x), np.float64) for x in alone]
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    sums, counts = dict.fromkeys(s3rec.TASKS, 0.0), dict.fromkeys(s3rec.TASKS, 0)

    def mapped(name, x):
        return x @ wide['maps'][name]['kernel'] + wide['maps'][name]['bias']

    def pair(name, positive, negative):
        if faithful:
            positive, negative = (1 / (1 + np.exp(-s)) for s in (positive, negative))
        loss = np.log1p(np.exp(negative - positive))
        assert not faithful or LOW <= loss <= HIGH
        sums[name], counts[name] = sums[name] + loss, counts[name] + 1

    for n, (row, at) in enumerate(prefixes):
        for place, column in zip(at, range(L - len(at), L), strict=True):
            x = found[0][n, column]
            name = 'map' if hidden[row, place] else 'aap'
            for attribute in range(1, ATTRIBUTES + 2):  # with one for all that are beyond
                s = 1 / (1 + np.exp(-mapped(name, x) @ wide['attributes'][attribute]))
                has = attribute in batch['features']['attributes'][row, place]
                sums[name] -= np.log(s if has else 1 - s)
            counts[name] += 1
            if hidden[row, place]:
                pair_of = [items[row, place], batch['negatives'][row, place]]
                assert pair_of[1] not in items[row, at]
                pair('mip', *(mapped('mip', x) @ wide['table'][i] for i in pair_of))
        if len(at) > 1:
            query = mapped('sp', found[1][n, -1])
            pair('sp', query @ found[2][n, -1], query @ found[3][n, -1])
    assert all(counts.values())
    expected = {name: sums[name] / (1 if faithful else counts[name]) for name in sums}
    for name in s3rec.TASKS:
        np.testing.assert_allclose(terms[name], expected[name], rtol=2e-5)
    weights = {'aap': 0.2, 'mip': 1.0, 'map': 1.0, 'sp': 0.5}
    total = sum(weights[name] * expected[name] for name in weights)
    np.testing.assert_allclose(value, total, rtol=2e-5)


def test_an_event_sees_later_ones_of_its_own_prefix_alone(learnt):
    experiment, graphdef, params, _, _ = learnt
    items = np.arange(1, L + 1, dtype=np.int32)[None].repeat(3, 0)
    items[1, 3], items[2, 7] = 30, 30  # within the first segment of 4, and of the other
    rows = {'segments': np.repeat([[1] * 4 + [2] * 4], 3, 0).astype(np.int32)}
    rows |= {'items': items, 'positions': np.tile(np.arange(4, 8), 2)[None].repeat(3, 0)}
    rows = jax.tree.map(jnp.asarray, rows)
    causal, _ = graphdef_of(dataclasses.replace(experiment, model=experiment.model.encoder()))

    def encode(graphdef, params):
        model = nnx.merge(graphdef, params)
        return model.encode(rows, model.item_table())

    both = np.asarray(jit(lambda p: encode(graphdef, p))(params))
    kept = {n: x for n, x in params.items() if n not in ('maps', 'attributes')}
    kept |= {n: {} for n in ('heads', 'objectives', 'seq2seq', 'projections') if n in params}
    past = np.asarray(jit(lambda p: encode(causal, p))(kept))
    assert np.abs(both[1, :4] - both[0, :4]).min(0).max() > 1e-4
    assert (np.abs(both[1, :4] - both[0, :4]).max(1) > 1e-4).all()
    np.testing.assert_allclose(both[1, 4:], both[0, 4:], atol=1e-6)
    np.testing.assert_allclose(both[2, :4], both[0, :4], atol=1e-6)
    np.testing.assert_allclose(past[1, :3], past[0, :3], atol=1e-6)


def test_a_history_is_ranked_by_one_more_hidden_event(learnt):
    _, graphdef, params, _, _ = learnt
    full, short = list(range(1, L + 1)), [4, 9]
    rows = {
        'items': np.array([full, [0] * (L - 2) + short], np.int32),
        'segments': np.array([[1] * L, [0] * (L - 2) + [1] * 2], np.int32),
        'positions': np.array([range(L), [0] * (L - 2) + [L - 2, L - 1]], np.int32),
    }
    narrow = {name: jnp.asarray(x[1:, -4:]) for name, x in rows.items()}
    told = {
        'items': np.array([[*full[1:], MASK], [0] * (L - 3) + [*short, MASK]], np.int32),
        'segments': np.array([[1] * L, [0] * (L - 3) + [1] * 3], np.int32),
        'positions': np.array([range(L), [0] * (L - 3) + [L - 3, L - 2, L - 1]], np.int32),
    }

    @jit
    def ranked(params):
        model = nnx.merge(graphdef, params)
        catalogue = model.catalogue({})
        hidden = model.encode(jax.tree.map(jnp.asarray, told), catalogue['items'])
        wanted = model.maps['mip'](hidden)[:, -1]
        found = [model.queries(jax.tree.map(jnp.asarray, x), catalogue) for x in (rows, narrow)]
        return wanted, *found

    wanted, wide, slim = ranked(params)
    np.testing.assert_allclose(wide[:, 0], wanted, atol=1e-5)
    np.testing.assert_allclose(slim[0, 0], wanted[1], atol=1e-5)


def test_loss_is_the_same_on_any_mesh(learnt, mesh):
    _, graphdef, params, batch, key = learnt

    def loss(params, batch):
        model = nnx.merge(graphdef, params)
        return model.loss(model.sample(batch, key), {}, {}, key)[0]

    batch = {name: x for name, x in batch.items() if name != 'negatives'}
    alone = jax.jit(loss)(params, batch)
    mesh(2, 2)
    program = Program(experiment_of(**QUIET), problem_of(experiment_of(**QUIET)), 10)
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract()['params'])
    np.testing.assert_allclose(
        jax.jit(loss)(jax.device_put(params, shardings), put_batch(batch)), alone, rtol=1e-5
    )


@pytest.mark.slow
def test_pre_training_is_fine_tuned(tmp_path, capsys):
    histories().save(tmp_path / 'log' / 'columns')
    data = Data(log=str(tmp_path / 'log'))
    fit(experiment_of(data), tmp_path / 'before')
    shape = {'dim': D, 'blocks': 1, 'heads': 2, 'max_len': L, 'variant': 'pre_ln'}
    after = Experiment(
        model=sasrec.Config(**shape, loss='bce', negatives=1),
        task=next_item.Config(cutoffs=(5, 10)),
        data=data,
        optim=Optim(),
        train=Train(batch_rows=8, steps=2, start_from=str(tmp_path / 'before')),
        mesh=Mesh(1, 1),
    )
    fit(after, tmp_path / 'after')
    out = capsys.readouterr().out
    assert 'taken (blocks, norm, positions, table), 0 new, ' in out
    assert 'left (attributes, maps)' in out


def test_settings_that_cannot_be_are_one_line():
    none = dict.fromkeys(s3rec.TASKS, 0.0)
    bad = {
        r'one of model\.aap, model\.mip': experiment_of(**none),
        'model.heads=3': experiment_of(heads=3),
        "not one of 'set', 'category'": experiment_of(attributes=Feature('price', 'log', cap=9)),
        "trains on task.windows='prefixes'": dataclasses.replace(
            experiment_of(), task=next_item.Config()
        ),
        "trains on task.windows='last'": dataclasses.replace(
            experiment_of(), model=sasrec.Config()
        ),
    }
    for phrase, experiment in bad.items():
        with pytest.raises(UserError, match=phrase):
            check(experiment)


def test_attributes_of_the_published_file():
    ids, sets = files.read_attributes(b'{"4": [1, 2], "83": [5], "7": []}', 'x.json')
    assert ids.tolist() == [4, 83, 7] and sets.tolist() == [[1, 2], [5, 0], [0, 0]]
    for text in (b'{"4": [0]}', b'[1]', b'{}', b'1 2 3', b'{"a": [1]}'):
        with pytest.raises(UserError, match='x.json is not'):
            files.read_attributes(text, 'x.json')
