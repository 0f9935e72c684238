"""Touched rows only: the gradients of the dense step, optimisers against dense numpy references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec import config
from jaxrec.devices.mesh import put_batch
from jaxrec.errors import UserError
from jaxrec.models import sasrec
from jaxrec.training import sparse
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import init_state, split_model, train_step

ITEMS, L, B = 100, 6, 8
LOSSES = {
    'bce': {'loss': 'bce', 'negatives': 3},
    'row': {'loss': 'sampled_softmax', 'negatives': 7, 'negatives_per': 'row', 'logq': True},
    'batch': {'loss': 'sampled_softmax', 'negatives': 9, 'negatives_per': 'batch'},
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
    plain = {'dim': 8, 'max_len': L, 'blocks': 1, 'dropout': 0.0, 'embedding_dropout': 0.0}
    return sasrec.Config(**(plain | options))


def data_negatives(batch):
    rng = np.random.default_rng(9)
    return {**batch, 'negatives': rng.integers(1, ITEMS + 1, (B, L, 2)).astype(np.int32)}


def test_touched_lists_each_item_once_and_renumbers():
    batch = {
        'items': jnp.array([[7, 0, 3], [3, 9, 0]]),
        'targets': jnp.array([[9, 0, 7], [1, 1, 0]]),
    }
    ids, small = sparse.touched({**batch, 'weights': jnp.ones(2)}, rows=64)
    assert list(ids) == [0, 1, 3, 7, 9] + [64] * (13 - 5)
    for name in ('items', 'targets'):
        np.testing.assert_array_equal(ids[small[name]], batch[name])
        assert small[name].dtype == jnp.int32
    assert list(small['weights']) == [1, 1]


def test_touched_never_lists_more_than_the_table():
    ids, small = sparse.touched({'items': jnp.arange(64).reshape(8, 8) % 10}, rows=10)
    assert list(ids) == list(range(10))
    np.testing.assert_array_equal(small['items'], jnp.arange(64).reshape(8, 8) % 10)


@pytest.mark.parametrize('shape', [None, (2, 4)])
@pytest.mark.parametrize('name', LOSSES)
def test_loss_and_gradients_equal_the_dense_ones(mesh, name, shape):
    if shape:
        mesh(*shape)
    model = model_of(**LOSSES[name])
    graphdef, _ = split_model(model, ITEMS) if shape else (_graphdef(model), None)
    params = jax.jit(
        lambda: nnx.to_pure_dict(
            nnx.state(model.make(ITEMS, rngs=nnx.Rngs(jax.random.key(0))), nnx.Param)
        )
    )()
    batch = data_negatives(batch_of()) if name == 'data' else batch_of()
    batch = put_batch(batch) if shape else batch
    key = jax.random.key(3)

    @jax.jit
    def both(params, batch):
        def loss(params, batch):
            return nnx.merge(graphdef, params).loss(batch, key)

        drawn = nnx.merge(graphdef, params).sample(batch, key)
        dense = jax.value_and_grad(loss, has_aux=True)(params, batch)
        (value, _), (ids, rows, rest) = sparse.value_and_grad(loss, params, drawn)
        table = jnp.zeros_like(params['table'])
        return dense, value, {**rest, 'table': sparse.scatter(table, ids, rows)}

    ((expected, _), dense), value, grads = jax.device_get(both(params, batch))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert dense.keys() == grads.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, dense)
    assert np.abs(dense['table']).max() > 1e-3


def _graphdef(model):
    build = lambda: model.make(ITEMS, rngs=nnx.Rngs(jax.random.key(0)))  # noqa: E731
    return nnx.split(nnx.eval_shape(build))[0]


def steps_of_gradients(seed=0, steps=12, rows=20, dim=4, per_step=5):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        ids = np.sort(rng.choice(rows, per_step, replace=False))
        yield ids, rng.normal(size=(per_step, dim)).astype(np.float32)


@pytest.mark.parametrize('kind', sparse.KINDS)
def test_row_optimisers_against_dense_numpy(kind):
    optim = config.Optim(table=kind, b1=0.9, b2=0.95, eps=1e-6)
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


@pytest.mark.parametrize('kind', sparse.KINDS)
def test_training_step_touches_only_the_batchs_rows_and_learns(mesh, kind):
    results = []
    for shape in ((1, 1), (2, 4)):
        mesh(*shape)
        model = model_of(loss='sampled_softmax', negatives=4, negatives_per='batch')
        optimizer = make_optimizer(
            config.Optim(table=kind, learning_rate=0.01, clip_norm=1.0), steps=10
        )
        graphdef, _ = split_model(model, ITEMS)
        state = init_state(model, ITEMS, optimizer, seed=0)
        before = np.asarray(state['params']['table'])
        step = train_step(graphdef, optimizer, seed=0)
        batch = put_batch(batch_of(low=1, high=20))
        losses = []
        for _ in range(60):
            state, metrics = step(state, batch)
            losses.append(float(metrics['loss']))
        assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])
        moved = np.abs(np.asarray(state['params']['table']) - before).max(1) > 0
        assert moved[1:21].mean() > 0.9
        assert not moved[ITEMS + 1 :].any()
        results.append(losses)
    np.testing.assert_allclose(results[0][:10], results[1][:10], rtol=1e-3)


def test_exact_softmax_is_refused():
    optimizer = make_optimizer(config.Optim(table='rowwise_adagrad'), steps=10)
    model = model_of(loss='softmax')
    step = train_step(_graphdef(model), optimizer, seed=0)
    with pytest.raises(UserError, match='sampled loss'):
        step(init_state(model, ITEMS, optimizer, 0), batch_of())
