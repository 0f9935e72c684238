"""Touched rows only: the gradients of the dense step, optimisers against dense numpy references."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import topologies
from flax import nnx
from jax.experimental.layout import Layout
from models import jit

from jaxrec.config import Data, Optim
from jaxrec.devices.mesh import TABLE, put_batch, table_rows
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, check
from jaxrec.losses import weighted_mean
from jaxrec.models import sasrec
from jaxrec.nn.embeddings import Rows, dropped, lookup
from jaxrec.objectives.contrast import Contrast
from jaxrec.problem import Model, ModelConfig
from jaxrec.training import sparse
from jaxrec.training.loop import fit
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import Program, init_state, split_model, train_step

KINDS = ('rowwise_adagrad', 'sparse_adam')
ITEMS, L, B = 100, 6, 8
SIZES = {'item': ITEMS}
LOSSES = {
    'bce': {'loss': 'bce', 'negatives': 3},
    'row': {'loss': 'sampled_softmax', 'negatives': 7, 'negatives_per': 'row', 'logq': True},
    'batch': {
        'loss': 'sampled_softmax',
        'negatives': 9,
        'negatives_per': 'batch',
        'table_dropout': 0.3,
    },
    'data': {'loss': 'gbce', 'negatives_per': 'data'},
}


def batch_of(seed=0, low=1, high=ITEMS):
    rng = np.random.default_rng(seed)
    segments = np.repeat([[1] * 3 + [2] * 2 + [0]], B, 0).astype(np.int32)
    items = rng.integers(low, high + 1, (B, L + 1)).astype(np.int32)
    return {
        'items': items[:, :-1] * (segments > 0),
        'targets': items[:, 1:] * (segments > 0),
        'segments': segments,
        'positions': np.repeat([[3, 4, 5, 4, 5, 0]], B, 0).astype(np.int32),
        'weights': (segments > 0).astype(np.float32),
    }


def model_of(**options):
    """Without blocks: what touches the table stands before and after them."""
    plain = {'dim': 8, 'max_len': L, 'blocks': 0, 'dropout': 0.0, 'embedding_dropout': 0.0}
    return sasrec.Config(**(plain | options))


def data_negatives(batch):
    rng = np.random.default_rng(9)
    return {**batch, 'negatives': rng.integers(1, ITEMS + 1, (B, L, 2)).astype(np.int32)}


def test_touched_lists_each_row_once():
    batch = {
        'items': jnp.array([[7, 0, 3], [3, 9, 0]]),
        'targets': jnp.array([[9, 0, 7], [1, 1, 0]]),
        'weights': jnp.ones(2),
        'positive': {'items': jnp.array([[12, 7]]), 'segments': jnp.array([[60, 61]])},
        'features': {'size': {'items': jnp.array([33])}},
    }
    ids = sparse.touched(batch, ('items', 'targets', 'sampled', 'similar'), rows=64)
    assert list(ids) == [0, 1, 3, 7, 9] + [64] * (13 - 5)
    assert ids.dtype == jnp.int32
    ids = sparse.touched(batch, ('items', 'positive/items', 'negatives/items'), rows=64)
    assert list(ids) == [0, 3, 7, 9, 12] + [64] * (9 - 5)
    assert list(sparse.touched(batch, ('features/size/items',), rows=64)) == [0, 33]
    assert list(sparse.touched(batch, ('items/items', 'nothing'), rows=64)) == [0]
    several = {'features': {'user': jnp.array([5, 0]), 'age': jnp.ones(2), 'tags': {'a': ids[:2]}}}
    assert list(sparse.touched(several, ('features',), rows=64)) == [0, 3, 5, 64, 64]


def test_touched_never_lists_more_than_the_table():
    ids = sparse.touched({'items': jnp.arange(64).reshape(8, 8) % 10}, ('items',), rows=10)
    assert list(ids) == list(range(10))


@pytest.mark.parametrize('shape', [None, (2, 4)])
def test_rows_stand_in_for_their_table(mesh, shape):
    """Looked up by the table's numbers, with the bits of its dropout; NaN for any other number."""
    table = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    ids = np.array([0, 3, 7, 40, 63, 64, 64], np.int32)  # the last two places are not used
    named = np.array([[3, 0], [40, 3], [63, 7], [0, 0]], np.int32)
    placed, there = table, named
    if shape:
        mesh(*shape)
        placed = jax.device_put(table, jax.NamedSharding(jax.sharding.get_mesh(), TABLE))
        there = put_batch({'ids': named})['ids']
    key = jax.random.key(1)

    @jax.jit
    def both(table, ids, named, rate):
        dense = dropped(table, rate, key)
        rows = dropped(Rows(ids, sparse.gather(table, ids)), rate, key)
        return lookup(dense, named), lookup(rows, named), lookup(rows[...], named + 1)

    for rate in (0.0, 0.4):
        found = both(placed, jnp.asarray(ids), there, jnp.float32(rate))
        expected, got, other = jax.device_get(found)
        np.testing.assert_array_equal(got, expected)
        assert (expected == 0).any() == bool(rate)
        known = np.isin(named + 1, ids)
        assert known.sum() == 1 and np.isfinite(other[known]).all()
        assert np.isnan(other[~known]).all()
    np.testing.assert_array_equal(both(placed, jnp.asarray(ids), there, 0.0)[1], table[named])
    with pytest.raises(TypeError, match='lookup'):
        Rows(jnp.asarray(ids), jnp.zeros((7, 5)))[3]


@pytest.mark.parametrize(
    ('name', 'shape'), [('bce', None), *((name, (2, 4)) for name in LOSSES)], ids=str
)
def test_loss_and_gradients_equal_the_dense_ones(mesh, name, shape):
    if shape:
        mesh(*shape)
    model = model_of(**LOSSES[name])
    graphdef, _ = split_model(model, SIZES) if shape else (_graphdef(model), None)
    build = lambda: model.make(SIZES, rngs=nnx.Rngs(jax.random.key(0)))  # noqa: E731
    params = jit(lambda: nnx.to_pure_dict(nnx.state(build(), nnx.Param)))()
    batch = data_negatives(batch_of()) if name == 'data' else batch_of()
    batch = put_batch(batch) if shape else batch
    key = jax.random.key(3)

    @jit
    def both(params, batch):
        batch = nnx.merge(graphdef, params).sample(batch, key)

        def loss(params):
            return nnx.merge(graphdef, params).loss(batch, {}, {}, key)

        dense = jax.value_and_grad(loss, has_aux=True)(params)
        found = sparse.value_and_grad(loss, params, batch, model.tables())
        (value, (terms, _)), (tables, rest) = found
        rows = tables['table']
        table = sparse.scatter(jnp.zeros_like(params['table']), rows.ids, rows.values)
        return dense, value, terms, {**rest, 'table': table}

    ((expected, (wanted, _)), dense), value, terms, grads = jax.device_get(both(params, batch))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert terms.keys() == wanted.keys()
    assert dense.keys() == grads.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, dense)
    assert np.abs(dense['table']).max() > 1e-3


def _graphdef(model):
    build = lambda: model.make(SIZES, rngs=nnx.Rngs(jax.random.key(0)))  # noqa: E731
    return nnx.split(nnx.eval_shape(build))[0]


@dataclasses.dataclass
class Two(ModelConfig):
    """Two tables, one of them named from three places of the batch, and a vector."""

    forgotten: str = ''

    def make(self, sizes, *, rngs):
        return TwoTables(sizes, rngs=rngs)

    def tables(self):
        paths = {'people': ('users',), 'things': ('items', 'positive/items', 'sampled')}
        return {
            name: tuple(path for path in own if path != self.forgotten)
            for name, own in paths.items()
        }


class TwoTables(Model):
    def __init__(self, sizes, *, rngs):
        placed = {'out_sharding': TABLE} if not jax.sharding.get_abstract_mesh().empty else {}
        draw = lambda n: jax.random.normal(rngs.params(), (table_rows(n), 3), **placed)  # noqa: E731
        self.people, self.things = nnx.Param(draw(sizes['user'])), nnx.Param(draw(sizes['item']))
        self.scale = nnx.Param(jnp.ones(3))

    def sample(self, batch, key):
        return {**batch, 'sampled': jax.random.randint(key, (5,), 1, 101)}

    def loss(self, batch, constants, carry, key):
        user = lookup(self.people[...], batch['users']) * self.scale[...]
        things = self.things[...]
        apart = user - lookup(things, batch['items']) + lookup(things, batch['positive']['items'])
        push = (lookup(things, batch['sampled']) ** 2).mean()
        return weighted_mean((apart**2).sum(-1), batch['weights']) + push, ({'push': push}, carry)


def test_a_step_with_several_tables_is_the_dense_one(mesh):
    """Adam's first step, clipped; rows that no path names stay as they are."""
    mesh(2, 4)
    rng = np.random.default_rng(0)
    items = rng.integers(0, 60, (2, 8)).astype(np.int32)
    batch = {
        'users': rng.integers(0, 40, 8).astype(np.int32),
        'items': items[0],
        'positive': {'items': items[1]},
        'weights': np.ones(8, np.float32),
    }
    sizes, results = {'user': 70, 'item': 100}, {}
    for table in ('dense', 'sparse_adam'):
        model, optim = Two(), Optim(table=table, learning_rate=0.1, eps=0.1, clip_norm=0.3)
        optimizer = make_optimizer(optim, model, steps=10)
        assert optimizer.sparse == (table != 'dense')
        graphdef, _ = split_model(model, sizes)
        state = init_state(model, sizes, optimizer, seed=0)
        before = jax.device_get(state['params'])
        step = train_step(graphdef, optimizer, seed=0)
        state, metrics = jax.device_get(step(state, put_batch(batch)))
        results[table] = state['params'], metrics
        if optimizer.sparse:
            assert set(state['opt_state']['tables']) == {'people', 'things'}
            named = state['opt_state']['tables']['people']['touched'] > 0
            np.testing.assert_array_equal(np.flatnonzero(named), sorted({0, *batch['users']}))
    assert results['dense'][1]['grad_norm'] > 0.3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *results.values())
    after = results['sparse_adam'][0]
    for name, few in (('people', {*batch['users']}), ('things', {*items.ravel()})):
        moved = set(np.flatnonzero((after[name] != before[name]).any(1)))
        assert few <= moved and len(moved) < len(before[name]) / 2


def test_a_path_that_a_model_forgot_stops_its_first_step(mesh):
    mesh(1, 1)
    batch = {
        'users': jnp.arange(8, dtype=jnp.int32),
        'items': jnp.arange(8, dtype=jnp.int32) + 20,
        'positive': {'items': jnp.arange(8, dtype=jnp.int32) + 40},
        'weights': jnp.ones(8),
    }
    model, sizes = Two(forgotten='positive/items'), {'user': 70, 'item': 100}
    optimizer = make_optimizer(Optim(table='rowwise_adagrad'), model, steps=10)
    state = init_state(model, sizes, optimizer, seed=0)
    _, metrics = train_step(split_model(model, sizes)[0], optimizer, 0)(state, put_batch(batch))
    assert np.isnan(metrics['loss']) and np.isfinite(metrics['push'])


def steps_of_gradients(seed=0, steps=12, rows=20, dim=4, per_step=5):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        ids = np.sort(rng.choice(rows, per_step, replace=False))
        yield ids, rng.normal(size=(per_step, dim)).astype(np.float32)


@pytest.mark.parametrize('kind', KINDS)
def test_row_optimisers_against_dense_numpy(kind):
    optim = Optim(table=kind, b1=0.9, b2=0.95, eps=1e-6)
    rows, dim, rate = 20, 4, 0.1
    start = np.random.default_rng(1).normal(size=(rows, dim)).astype(np.float32)
    table, state = jnp.asarray(start), sparse.init(jnp.asarray(start), kind)
    dense = start.astype(np.float64)
    m, v, total = np.zeros((rows, dim)), np.zeros((rows, dim)), np.zeros(rows)
    for t, (ids, grads) in enumerate(steps_of_gradients(), 1):
        padded = jnp.asarray(np.r_[ids, [rows] * 3], jnp.int32)
        wide = jnp.asarray(np.r_[grads, np.ones((3, dim), np.float32)])  # unused places
        table, state = sparse.update(table, state, padded, wide, jnp.int32(t), rate, optim)
        full = np.zeros((rows, dim))
        full[ids] = grads
        if kind == 'rowwise_adagrad':  # rows without gradient do not move: sparse = dense
            total += (full**2).mean(-1)
            dense -= rate * full / (np.sqrt(total) + optim.eps)[:, None]
            np.testing.assert_allclose(state['sum'], total, rtol=1e-5)
        else:  # dense Adam's moments; only touched rows take a step
            m, v = 0.9 * m + 0.1 * full, 0.95 * v + 0.05 * full**2
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + optim.eps)
            dense[ids] -= rate * step[ids]
            np.testing.assert_allclose(state['m'][ids], m[ids], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(state['v'][ids], v[ids], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(table, dense, atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_training_step_touches_only_the_batchs_rows_and_learns(mesh, kind):
    results = []
    for shape in ((1, 1), (2, 4)):
        mesh(*shape)
        model = model_of(loss='sampled_softmax', negatives=4, negatives_per='batch')
        optim = Optim(table=kind, learning_rate=0.01, clip_norm=1.0)
        optimizer = make_optimizer(optim, model, steps=10)
        graphdef, _ = split_model(model, SIZES)
        state = init_state(model, SIZES, optimizer, seed=0)
        before = np.asarray(state['params']['table'])
        step = train_step(graphdef, optimizer, seed=0)
        batch = put_batch(batch_of(low=1, high=20))
        losses = []
        for _ in range(10 if shape == (1, 1) else 60):
            state, metrics = step(state, batch)
            losses.append(float(metrics['loss']))
        results.append(losses)
        if shape == (1, 1):
            continue
        assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])
        moved = np.abs(np.asarray(state['params']['table']) - before).max(1) > 0
        assert moved[1:21].mean() > 0.9
        assert not moved[ITEMS + 1 :].any()
    np.testing.assert_allclose(results[0], results[1][:10], rtol=1e-3)


def test_a_step_that_needs_the_whole_table_is_refused():
    data, optim = Data(dataset='synthetic'), Optim(table='rowwise_adagrad')
    check(Experiment(model=model_of(loss='bce'), data=data, optim=optim))
    momentum = Contrast(momentum=0.9, queue=64)
    for model in (model_of(loss='softmax'), model_of(loss='bce', contrast=(momentum,))):
        assert not model.tables()
        with pytest.raises(UserError, match='touched rows only need a sampled loss'):
            check(Experiment(model=model, data=data, optim=optim))


@pytest.mark.slow
def test_a_state_laid_out_goes_on_and_is_stored_as_ever(tmp_path, monkeypatch):
    """Column by column, where a CPU lays out row by row: steps, checkpoints and resuming."""
    changes = {
        'optim.table': 'sparse_adam',
        'optim.ema': 0.0,
        'model.loss': 'bce',
        'train.epochs': 1,
        'mesh.data': 2,
        'mesh.model': 2,
    }
    experiment = runs.small(tmp_path, **changes)
    fit(experiment, tmp_path / 'plain')
    monkeypatch.setattr(sparse, 'platform', lambda: 'tpu')
    monkeypatch.setattr(sparse, '_BY_ROW', Layout((1, 0)))
    seen, step = set(), Program.step

    def stepped(self, state, batch):
        state, metrics = step(self, state, batch)
        own = state['opt_state']['tables']['table']
        tables = state['params']['table'], own['m'], own['v']
        seen.update(x.format.layout.major_to_minor for x in tables)
        return state, metrics

    monkeypatch.setattr(Program, 'step', stepped)
    asked = iter([False, False, True])
    fit(experiment, tmp_path / 'laid', stop=lambda: next(asked))
    fit(experiment, tmp_path / 'laid')
    assert seen == {(1, 0)}
    for one, two in zip(*(runs.params_of(tmp_path / n) for n in ('plain', 'laid')), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, two)


@pytest.mark.accelerators
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dim', [50, 64, 192])
def test_on_a_tpu_no_step_copies_a_table(dim, kind, tmp_path):
    experiment = runs.small(tmp_path, **{'model.dim': dim, 'model.loss': 'sampled_softmax'})
    experiment = applied(experiment, {'optim.table': kind, 'optim.ema': 0.0})
    items = 1_000_000
    with jax.set_mesh(topologies.mesh_of(topologies.tpu('v5e:2x2'), 2, 2)):
        problem = experiment.task.generated(experiment, items)
        program = Program(experiment, problem, 10)
        split = jax.NamedSharding(jax.sharding.get_mesh(), jax.P('data'))
        (batch,) = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
            problem.batches().shapes(),
        )
        compiled = program.lowered(batch).compile()
    copied = re.findall(r'= f32\[(\d+),\d+\]\S* (?:copy|copy-done|transpose)\(', compiled.as_text())
    assert max(map(int, copied), default=0) < items / 2
    half = items * dim  # bytes of half a shard
    assert compiled.memory_analysis().temp_size_in_bytes < half
