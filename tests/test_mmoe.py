"""MMoE against a numpy forward pass in float64; masks, padding and meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.devices.mesh import BATCH, on_mesh
from jaxrec.errors import UserError
from jaxrec.experiment import check_fields
from jaxrec.models import mmoe

B, T, ROWS = 8, 3, 40
SIZES = {
    'table': ROWS,
    'label': T,
    **{f'label.{name}': n for n, name in enumerate(('click', 'like', 'hate'))},
    'feature.user': 1,
    'feature.item': 1,
    'feature.past': 5,
    'feature.tags': 2,
    'feature.age': 0,
    'feature.income': 0,
}
CONFIG = {
    'dim': 4,
    'experts': 3,
    'expert_widths': (7, 6),
    'tower_widths': (5,),
    'attend': ('past',),
    'cross': ('user', 'past'),
}


def make(sizes=SIZES, **changes):
    config = mmoe.Config(**{**CONFIG, **changes})
    config.check()
    graph, params = nnx.split(config.make(sizes, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    # away from 0, so that every term matters
    draw = lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    return graph, jax.tree.map(draw, params)


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    sets = lambda n: rng.integers(1, ROWS, (B, n)) * rng.integers(0, 2, (B, n))  # noqa: E731
    features = {
        'user': rng.integers(1, ROWS, B),
        'item': rng.integers(1, ROWS, B),
        'past': sets(5),
        'tags': sets(2),
    }
    features['past'][0] = 0  # nothing to attend to
    features = {name: codes.astype(np.int32) for name, codes in features.items()}
    features |= {name: rng.normal(size=B).astype(np.float32) for name in ('age', 'income')}
    return {
        'features': features,
        'labels': rng.integers(0, 2, (B, T)).astype(np.float32),
        'mask': rng.integers(0, 2, (B, T)).astype(np.float32),
        'weights': np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32),
    }


def scores(graph, params, batch):
    return nnx.merge(graph, params).scores(batch, {})


def slow_scores(params, batch, config=CONFIG):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(params))
    relu = lambda x: np.maximum(x, 0)  # noqa: E731

    mixture = p['head']['mixtures'][0]

    def mlp(at, n, x):
        layers = len(at['kernels'])
        for layer in range(layers):
            x = x @ at['kernels'][layer][n] + at['biases'][layer][n]
            x = x if layer == layers - 1 else relu(x)
        return x

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    out = np.zeros((B, T))
    for row in range(B):
        mean, members = {}, {}
        for name in ('item', 'past', 'tags', 'user'):
            codes = np.atleast_1d(batch['features'][name][row])
            members[name] = [p['table'][c] for c in codes if c]
            mean[name] = sum(members[name]) / len(members[name]) if members[name] else np.zeros(4)
        parts = [mean[name] for name in sorted(mean)]
        for n, name in enumerate(config['attend']):
            query = mean['item'] @ p['queries'][n]
            keys = np.array(members[name])
            parts.append(softmax(keys @ query / 2) @ keys if len(keys) else np.zeros(4))
        parts += [mean[name] * mean['item'] for name in config['cross']]
        parts += [[batch['features'][name][row]] for name in ('age', 'income')]
        x = np.concatenate(parts)
        said = [relu(mlp(mixture['experts'], e, x)) for e in range(config['experts'])]
        for task in range(T):
            gate = softmax(mlp(mixture['gates'], task, x))
            seen = sum(g * s for g, s in zip(gate, said, strict=True))
            out[row, task] = mlp(p['towers'], task, seen)[0]
    return out


def loss(graph, params, batch, key=None):
    key = jax.random.key(0) if key is None else key
    return nnx.merge(graph, params).loss(batch, {}, {'kept': 1}, key)


def test_scores():
    graph, params = make()
    batch = make_batch()
    got = jax.jit(lambda p, b: scores(graph, p, b))(params, batch)
    assert got.shape == (B, T) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, slow_scores(params, batch), atol=2e-5)


def test_loss():
    graph, params = make()
    batch = make_batch()
    value, (terms, carry) = loss(graph, params, batch)
    p = 1 / (1 + np.exp(-slow_scores(params, batch)))
    each = -np.log(np.where(batch['labels'] == 1, p, 1 - p))
    weights = batch['mask'] * batch['weights'][:, None]
    means = (each * weights).sum(0) / weights.sum(0)
    assert value == pytest.approx(means.sum(), abs=1e-5) and carry == {'kept': 1}
    for task in range(T):
        assert terms[f'loss_{task}'] == pytest.approx(means[task], abs=1e-5)


def test_what_is_masked_or_padding_teaches_nothing():
    graph, params = make()
    batch = make_batch()
    gradient = jax.jit(jax.grad(lambda p, b: loss(graph, p, b)[0]))
    before = gradient(params, batch)
    other = make_batch(1)
    unknown = batch['mask'] * batch['weights'][:, None] == 0
    changed = {**batch, 'labels': np.where(unknown, 1 - batch['labels'], batch['labels'])}
    changed['features'] = {k: v.copy() for k, v in batch['features'].items()}
    for name, values in changed['features'].items():
        values[6:] = other['features'][name][6:]  # rows of weight 0
    for got, wanted in zip(
        jax.tree.leaves(gradient(params, changed)), jax.tree.leaves(before), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-7)
    nothing = gradient(params, {**batch, 'mask': 0 * batch['mask']})
    assert not any(np.any(x) for x in jax.tree.leaves(nothing))
    one = gradient(params, {**batch, 'mask': batch['mask'] * np.array([1, 0, 1], np.float32)})
    of_task = np.asarray(one['towers']['kernels'][0][...])
    assert not of_task[1].any() and of_task[0].any() and of_task[2].any()
    assert not np.asarray(before['table'][...])[0].any()  # padding


def test_one_expert_is_the_shared_bottom():
    graph, params = make(experts=1)
    assert 'gates' not in nnx.to_pure_dict(params)['head']['mixtures'][0]
    model = nnx.merge(graph, params)
    seen, _ = model.head(model.field_input(make_batch()['features']))
    np.testing.assert_array_equal(seen[:, 0], seen[:, 1])


def test_row_by_row():
    graph, params = make()
    batch = make_batch()
    whole = scores(graph, params, batch)
    for row in range(B):
        alone = {name: codes[row : row + 1] for name, codes in batch['features'].items()}
        one = scores(graph, params, {'features': alone})
        np.testing.assert_allclose(one[0], whole[row], atol=1e-5)


@pytest.mark.parametrize(
    'changes, first, last, length',
    [
        ({}, 2.0068359375, 1.9501266479492188, 9.990273409646981),
        (
            {'dropout': 0.2, 'embedding_dropout': 0.2},
            2.254720449447632,
            1.9944355487823486,
            9.979623357414578,
        ),
        ({'experts': 1}, 2.1885197162628174, 1.9251000881195068, 6.869688190462209),
    ],
)
def test_the_numbers_of_before_all_heads_shared_a_module(changes, first, last, length):
    """Losses of ten steps and the length of the parameters; rounding is the compiler's."""
    config = mmoe.Config(**{**CONFIG, **changes})
    graph, params = nnx.split(config.make(SIZES, rngs=nnx.Rngs(0)))

    @jax.jit
    def step(params, batch, key):
        objective = lambda p: nnx.merge(graph, p).loss(batch, {}, {}, key)[0]  # noqa: E731
        value, grads = jax.value_and_grad(objective)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    losses = []
    for number in range(10):
        params, value = step(params, make_batch(number), jax.random.key(number))
        losses.append(float(value))
    squares = sum(float((np.asarray(x, np.float64) ** 2).sum()) for x in jax.tree.leaves(params))
    assert (losses[0], losses[-1]) == pytest.approx((first, last), rel=1e-6)
    assert squares**0.5 == pytest.approx(length, rel=1e-6)


@pytest.mark.slow
def test_any_mesh(mesh):
    batch = make_batch()
    shapes = ((1, 1), (2, 2), (4, 1))
    config = mmoe.Config(**CONFIG, dropout=0.2, embedding_dropout=0.2)

    def run():
        @jax.jit
        def run(batch):
            graph, params = nnx.split(config.make(SIZES, rngs=nnx.Rngs(0)))
            step = lambda p: loss(graph, p, batch)[0]  # noqa: E731
            value, grads = jax.value_and_grad(step)(params)
            return value, params, grads, scores(graph, params, batch)

        if not on_mesh():
            return jax.tree.leaves(run(batch))
        place = jax.NamedSharding(jax.sharding.get_mesh(), BATCH)
        return jax.tree.leaves(jax.device_get(run(jax.device_put(batch, place))))

    alone = run()
    for shape in shapes:
        mesh(*shape)
        for got, wanted in zip(run(), alone, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_what_it_says_of_itself():
    config = mmoe.Config(**CONFIG)
    assert config.inputs().features == ('past', 'user', 'item')
    assert mmoe.Config().inputs().features == ()
    model = config.make(SIZES, rngs=nnx.Rngs(0))
    assert config.tables() == {'table': ('features',)}
    assert model.table[...].shape == (64, 4) and model.carry() == {}


@pytest.mark.parametrize(
    'field, value',
    [
        ('dim', 0),
        ('experts', 0),
        ('expert_widths', ()),
        ('tower_widths', (4, 0)),
        ('dropout', 1.0),
        ('embedding_dropout', -0.1),
        ('init', 'zeros'),
    ],
)
def test_values_that_cannot_be(field, value):
    with pytest.raises(UserError, match=f'model.{field}'):
        config = mmoe.Config(**{field: value})
        check_fields(config, 'model')
        config.check()
