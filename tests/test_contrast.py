"""InfoNCE against float64 loops; user vectors, views and the queue."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import losses
from jaxrec.config import Data
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, check
from jaxrec.models import sasrec
from jaxrec.objectives import contrast
from jaxrec.objectives.contrast import Contrast
from jaxrec.objectives.queue import enqueue, start_queue
from jaxrec.objectives.view_objectives import Vectors
from jaxrec.objectives.views import segment_vectors

N, D = 7, 5
RNG = np.random.default_rng(0)
FIRST, SECOND, QUEUE = (RNG.normal(size=(n, D)) for n in (N, N, 12))
WEIGHTS = np.array([1, 0.5, 2, 0, 1, 0, 1])
ALIKE = RNG.random((N, N)) < 0.3
ALIKE_QUEUE = RNG.random((N, 12)) < 0.3
ALIKE_QUEUE[2] = True  # no negative is left


def similarity(a, b, cosine, temperature):
    scale = math.sqrt(a @ a) * math.sqrt(b @ b) if cosine else 1
    return float(a @ b) / scale / temperature


def slow_info_nce(cosine, temperature, alike, first=FIRST, second=SECOND, weights=WEIGHTS):
    total = 0.0
    for views in ((first, second), (second, first)):
        for n in range(N):
            score = lambda x, n=n, views=views: math.exp(  # noqa: E731
                similarity(views[0][n], x, cosine, temperature)
            )
            positive = score(views[1][n])
            negatives = [
                score(view[m])
                for m in range(N)
                for view in views
                if m != n and weights[m] and not (alike is not None and alike[n, m])
            ]
            total -= weights[n] * math.log(positive / (positive + sum(negatives)))
    return total / (2 * weights.sum())


@pytest.mark.parametrize('cosine', [False, True])
@pytest.mark.parametrize('temperature', [1.0, 0.3])
@pytest.mark.parametrize('alike', [None, ALIKE], ids=['all', 'hidden'])
def test_info_nce(cosine, temperature, alike):
    padding = np.broadcast_to(WEIGHTS == 0, (N, N))
    values = losses.info_nce(
        jnp.asarray(FIRST),
        jnp.asarray(SECOND),
        temperature=temperature,
        cosine=cosine,
        hidden=padding if alike is None else padding | alike,
    )
    got = losses.weighted_mean(values, jnp.broadcast_to(WEIGHTS, values.shape))
    np.testing.assert_allclose(got, slow_info_nce(cosine, temperature, alike), rtol=2e-5)


def test_info_nce_learns_through_both_views():
    """Finite differences of the loop by every number of both; no gradient is stopped."""

    def loss(pair):
        values = losses.info_nce(
            *pair, temperature=0.3, cosine=True, hidden=ALIKE | (WEIGHTS == 0)[None]
        )
        return losses.weighted_mean(values, jnp.broadcast_to(WEIGHTS, values.shape))

    pair = np.stack([FIRST, SECOND])
    found, expected, step = jax.jit(jax.grad(loss))(jnp.asarray(pair)), np.zeros(pair.shape), 1e-5
    for at in np.ndindex(pair.shape):
        for sign in (1, -1):
            moved = pair.copy()
            moved[at] += sign * step
            expected[at] += sign * slow_info_nce(True, 0.3, ALIKE, *moved) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert (np.abs(expected).max((1, 2)) > 0.05).all()


@pytest.mark.parametrize('cosine', [False, True])
def test_info_nce_with_a_queue(cosine):
    total = 0.0
    for n in range(N):
        score = lambda x, n=n: math.exp(similarity(FIRST[n], x, cosine, 0.7))  # noqa: E731
        rest = sum(score(x) for m, x in enumerate(QUEUE) if not ALIKE_QUEUE[n, m])
        total -= WEIGHTS[n] * math.log(score(SECOND[n]) / (score(SECOND[n]) + rest))
    arrays = [jnp.asarray(x) for x in (FIRST, SECOND, QUEUE.reshape(3, 4, D))]
    options = {'temperature': 0.7, 'cosine': cosine, 'hidden': ALIKE_QUEUE}
    value, grads = jax.value_and_grad(
        lambda first: losses.weighted_mean(
            losses.info_nce_queue(first, *arrays[1:], **options), jnp.asarray(WEIGHTS)
        )
    )(arrays[0])
    np.testing.assert_allclose(value, total / WEIGHTS.sum(), rtol=2e-5)
    assert np.isfinite(grads).all() and not np.asarray(grads)[[2, 3, 5]].any()


def test_a_pair_alone_costs_nothing_and_has_finite_gradients():
    alone = np.ones((N, N), bool)
    value, grad = jax.value_and_grad(
        lambda first: losses.info_nce(first, jnp.asarray(SECOND), cosine=True, hidden=alone).sum()
    )(jnp.asarray(FIRST))
    assert value == 0 and np.isfinite(grad).all()


def test_alignment_and_uniformity():
    """Wang & Isola 2020, section 4.1.2, worked out pair by pair."""
    users = np.array([4, 2, 9, 0, 1, 0, 5], np.int32)
    vectors = Vectors(*map(jnp.asarray, (FIRST, SECOND, users, users)))
    _, terms, _ = contrast.term(Contrast(), vectors, {}, {})
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (FIRST, SECOND))
    real = np.flatnonzero(users)
    alignment = np.mean([((a[n] - b[n]) ** 2).sum() for n in real])
    apart = [math.exp(-2 * ((a[n] - a[m]) ** 2).sum()) for n in real for m in real if m != n]
    np.testing.assert_allclose(terms['alignment'], alignment, rtol=1e-5)
    np.testing.assert_allclose(terms['uniformity'], math.log(np.mean(apart)), rtol=1e-5)


@pytest.mark.parametrize('same_user', [False, True])
@pytest.mark.parametrize('same_target', [False, True])
def test_which_users_are_negatives(same_user, same_target):
    users, targets = np.array([3, 1, 3, 0, 2, 5, 7]), np.array([8, 8, 1, 0, 2, 1, 3])
    settings = Contrast(same_user_negatives=same_user, same_target_negatives=same_target)
    vectors = Vectors(*map(jnp.asarray, (FIRST, SECOND, users, targets)))
    got, _, _ = contrast.term(settings, vectors, {}, {})
    hidden = np.zeros((N, N), bool)
    for n in range(N):
        for m in range(N):
            hidden[n, m] |= not same_user and users[n] == users[m]
            hidden[n, m] |= not same_target and targets[n] == targets[m]
    np.testing.assert_allclose(got, slow_info_nce(False, 1, hidden, weights=users > 0), rtol=2e-5)


@pytest.mark.parametrize('pool', ['last', 'mean'])
def test_user_vectors(pool, mesh):
    segments = np.array([[1, 1, 2, 0, 3], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 2, 2, 0, 0]] * 2)
    positions = np.array([[3, 4, 4, 0, 4], [0] * 5, [0, 1, 2, 3, 4], [4, 3, 4, 0, 0]] * 2)
    hidden = RNG.normal(size=(8, 5, 3)).astype(np.float32)
    expected = []
    for row in range(8):
        for number in range(1, segments[row].max() + 1):
            vectors = hidden[row][segments[row] == number]
            expected.append(vectors[-1] if pool == 'last' else vectors.mean(0))
    for shape in (None, (1, 1), (8, 1), (2, 4)):
        arrays = {'segments': segments, 'positions': positions, 'hidden': hidden}
        if shape:
            mesh(*shape)
            split = jax.NamedSharding(jax.sharding.get_mesh(), jax.P('data'))
            arrays = {k: jax.device_put(v, split) for k, v in arrays.items()}
        get = jax.jit(lambda rows: segment_vectors(rows['hidden'], rows, 20, pool))
        got = get({k: jnp.asarray(v) for k, v in arrays.items()} if not shape else arrays)
        assert got.shape == (20, 3)
        np.testing.assert_allclose(got[: len(expected)], expected, rtol=1e-5)


def test_the_queue_is_first_in_first_out(mesh):
    settings = Contrast(momentum=0.9, queue=192)
    rng = np.random.default_rng(0)
    steps = [
        (rng.normal(size=(n, 3)).astype(np.float32), rng.integers(0, 9, (2, n)).astype(np.int32))
        for n in (64, 128, 64, 128, 256)
    ]
    for shape in (None, (4, 2), (8, 1)):
        if shape:
            mesh(*shape)
        queue = jax.jit(lambda: start_queue(settings.queue, 3))()
        slow = [(np.zeros(3), 0, 0)] * 192
        for keys, (users, targets) in steps:
            batch = {'users': jnp.asarray(users), 'user_targets': jnp.asarray(targets)}
            queue = jax.jit(enqueue)(queue, jnp.asarray(keys), batch)
            slow = (slow + list(zip(keys, users, targets, strict=True)))[-192:]
            if shape:
                assert queue['vectors'].sharding.spec == jax.P(None, 'data', None)
                assert queue['users'].sharding.spec == jax.P(None, 'data')
            for of, name in enumerate(('vectors', 'users', 'targets')):
                flat = np.asarray(queue[name]).reshape(192, *queue[name].shape[2:])
                np.testing.assert_array_equal(flat, np.stack([entry[of] for entry in slow]))


@pytest.mark.parametrize(
    'wrong',
    [
        {'first': 'crop'},
        {'second': 'main'},
        {'pool': 'max'},
        {'similarity': 'l2'},
        {'crop': 1.5},
        {'cutoff': -0.1},
        {'crop': 0.0, 'mask': 0.0, 'reorder': 0.0},
        {'weight': -1.0},
        {'weight': math.nan},
        {'temperature': 0.0},
        {'momentum': 1.0, 'queue': 64},
        {'momentum': 0.9},
        {'queue': 64},
        {'momentum': 0.9, 'queue': 100},
    ],
    ids=str,
)
def test_settings_that_cannot_be(wrong):
    plain = sasrec.Config(contrast=(Contrast(),))
    check(Experiment(model=plain, data=Data(dataset='synthetic')))
    model = sasrec.Config(contrast=(Contrast(), dataclasses.replace(Contrast(), **wrong)))
    with pytest.raises(UserError, match='model.contrast'):
        check(Experiment(model=model, data=Data(dataset='synthetic')))


def test_padding_after_the_last_user_stays_out_of_the_queue():
    old = {'vectors': jnp.ones((3, 64, 2)), 'users': jnp.full((3, 64), 7)}
    old['targets'] = old['users']
    for last, taken in ((0, 0), (1, 1), (64, 1), (65, 2), (256, 3)):
        users = jnp.arange(1, 257) * (jnp.arange(256) < last)
        batch = {'users': users, 'user_targets': users}
        queue = jax.jit(enqueue)(old, jnp.zeros((256, 2)), batch)
        expected = np.concatenate([np.full(192, 7), users[: 64 * -(-last // 64)]])[-192:]
        np.testing.assert_array_equal(queue['users'].reshape(-1), expected)
        assert queue['vectors'].sum() == 128 * (3 - taken)


def test_a_queue_on_a_mesh_that_does_not_divide_it_is_whole_everywhere(mesh):
    mesh(3, 1)
    queue = jax.jit(lambda: start_queue(64, 3))()
    for _ in range(2):  # and stays so
        assert all(x.sharding.is_fully_replicated for x in queue.values())
        batch = {name: jnp.ones(64, jnp.int32) for name in ('users', 'user_targets')}
        queue = jax.jit(enqueue)(queue, jnp.ones((64, 3)), batch)
    assert all((np.asarray(x) == 1).all() for x in queue.values())


def test_terms_that_take_part():
    """Those of any weight, in their places; each asks the data for what its views need."""
    terms = (
        Contrast(weight=0.0, second='same_target'),
        Contrast(substitute=0.2),
        Contrast(first='dropout', second='dropout'),
        Contrast(first='dropout', second='same_target', insert=0.2),
    )
    assert contrast.active(terms) == ('1', '2', '3')
    for taken, wanted in (
        ((), ()),
        (terms[:1], ()),
        (terms[2:3], ('users',)),
        (terms[1:2], ('similar', 'users')),
        (terms[3:], ('same_target', 'users')),  # nothing is augmented
        (terms, ('same_target', 'similar', 'users')),
    ):
        assert contrast.extras(taken) == wanted
        assert sasrec.Config(contrast=taken).inputs().extras == wanted
