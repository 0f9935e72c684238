"""Disentangled seq2seq against float64 loops: cuts, intentions, losses and which of them count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit
from test_cl4srec import ITEMS, QUIET, L, experiment, loss_of, problem_of, start

from jaxrec.devices.mesh import put_batch
from jaxrec.experiment import check
from jaxrec.objectives import seq2seq
from jaxrec.objectives.seq2seq import Seq2Seq
from jaxrec.training.state import Program

RNG = np.random.default_rng(0)
N, W, K, D = 6, 5, 3, 8


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def of_lengths(lengths):
    """Right-aligned rows; items count from 1 in a row."""
    lengths = np.array(lengths)[:, None]
    index = np.arange(W) - (W - lengths)
    real = index >= 0
    items = np.where(real, 10 * np.arange(len(lengths))[:, None] + index + 1, 0)
    return {
        'items': jnp.asarray(items, jnp.int32),
        'segments': jnp.asarray(real, jnp.int32),
        'positions': jnp.asarray(np.where(real, np.arange(W), 0), jnp.int32),
        'features': {'x': jnp.asarray(items + 1000 * real, jnp.int32)},
    }


def test_a_cut_is_the_past_and_the_future_backwards():
    rows, seen = of_lengths([5, 4, 2, 1, 0, 5]), set()
    make = jax.jit(seq2seq.cut)
    for number in range(40):
        past, future = jax.tree.map(np.asarray, make(rows, jax.random.key(number)))
        for n in range(N):
            whole = [i for i in np.asarray(rows['items'])[n] if i]
            parts = [[i for i in part['items'][n] if i] for part in (past, future)]
            assert parts[0] + parts[1][::-1] == whole
            if len(whole) > 1:
                assert min(map(len, parts)) > 0
                seen.add((len(whole), len(parts[0])))
            for part, events in zip((past, future), parts, strict=True):
                assert part['items'][n].tolist() == [0] * (W - len(events)) + events
                inside = part['items'][n] > 0
                np.testing.assert_array_equal(part['segments'][n], inside)
                np.testing.assert_array_equal(part['positions'][n], np.arange(W) * inside)
                np.testing.assert_array_equal(
                    part['features']['x'][n], (part['items'][n] + 1000) * inside
                )
    assert seen == {(5, 1), (5, 2), (5, 3), (5, 4), (4, 1), (4, 2), (4, 3), (2, 1)}


def test_intentions_of_a_history():
    shapes = {'prototypes': (K, D), 'kernel': (D, D), 'places': (W, D), 'bias': (D,)}
    own = {name: RNG.normal(size=shape) for name, shape in shapes.items()}
    beta, hidden = RNG.normal(size=(K, D)), RNG.normal(size=(2, W, D))
    real = np.array([[False, False, True, True, True], [True] * 5])
    phi, shares = seq2seq.intentions(
        {k: jnp.asarray(x) for k, x in own.items()},
        jnp.asarray(beta),
        jnp.asarray(hidden),
        jnp.asarray(real),
    )
    for n in range(2):
        there = np.flatnonzero(real[n])
        z, a = hidden[n][there], own['places'][there]
        query = norm(z[-1] + a[-1] + own['bias'])
        h = norm(z + a)
        said = softmax((h + np.maximum(h @ own['kernel'], 0)) @ query / D**0.5)
        share = np.stack([softmax(norm(own['prototypes']) @ norm(x) / D**0.5) for x in z])
        np.testing.assert_allclose(share.sum(1), 1)
        total = np.einsum('w,wk,wd->kd', said, share, z)
        np.testing.assert_allclose(phi[n], norm(beta + total), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(shares[n], said @ share, rtol=1e-5)
        np.testing.assert_allclose(shares[n].sum(), 1, rtol=1e-6)


def test_losses_and_those_that_count():
    past, future = RNG.normal(size=(2, N, K, D))
    real = np.array([1, 1, 0, 1, 1, 0], bool)
    values = seq2seq.between(*map(jnp.asarray, (past, future, real)))
    expected = np.zeros((N, K))
    for b in range(N):
        for k in range(K):
            scores = [past[b, k] @ x / D**0.5 for c in np.flatnonzero(real) for x in future[c]]
            expected[b, k] = np.log(np.exp(scores).sum()) - past[b, k] @ future[b, k] / D**0.5
    np.testing.assert_allclose(values[real], expected[real], rtol=1e-4)
    ordered = np.sort(expected[real].ravel())  # 12 of the users that are there, not of 18 places
    for share, count in ((1.0, 12), (0.5, 6), (0.3, 3), (0.01, 1)):
        found = seq2seq.confident(values, jnp.asarray(real), share)
        np.testing.assert_allclose(found, ordered[:count].mean(), rtol=1e-5)
        order = RNG.permutation(N)
        moved = seq2seq.confident(values[order], jnp.asarray(real[order]), share)
        np.testing.assert_allclose(moved, found, rtol=1e-6)
    assert seq2seq.confident(values, jnp.zeros(N, bool), 0.5) == 0
    # one intention: InfoNCE of past against future
    one = seq2seq.between(*(jnp.asarray(x[:, :1]) for x in (past, future)), jnp.ones(N, bool))
    scores = past[:, 0] @ future[:, 0].T / D**0.5
    infonce = np.log(np.exp(scores).sum(1)) - np.diag(scores)
    np.testing.assert_allclose(one[:, 0], infonce, rtol=1e-5)


def system(**settings):
    exp = experiment(**QUIET)
    exp.model.seq2seq = Seq2Seq(**settings)
    check(exp)
    return exp


@pytest.mark.slow
def test_a_model_with_it_on_any_mesh(mesh):
    results, exp = [], system(weight=0.5, intentions=3, confidence=0.6)
    for shape in ((1, 1), (2, 2)):
        mesh(*shape)
        problem = problem_of(exp)
        program = Program(exp, problem, 10)
        state, batch = program.init(), put_batch(problem.batches()(0))
        step = jit(jax.value_and_grad(functools.partial(loss_of, program.graphdef), has_aux=True))
        (value, (terms, _)), grads = step(state['params'], batch, {}, jax.random.key(1))
        np.testing.assert_allclose(value, terms['bce'] + 0.5 * terms['seq2seq'], rtol=1e-5)
        assert terms['seq2seq'] > 0.1 and 1 / 3 <= terms['intention_use'] <= 1
        assert all(np.asarray(g).any() for g in jax.tree.leaves(grads['seq2seq']))
        results.append(jax.device_get((value, terms, grads)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-5), *results)


def test_weight_zero_is_the_model_itself():
    plain, none = experiment(**QUIET), system(weight=0.0, intentions=7)
    for exp in (plain, none):
        assert exp.model.inputs().extras == ()
    (graph, params), (_, others) = start(plain), start(none)
    jax.tree.map(np.testing.assert_array_equal, params, others)
    assert not len(nnx.merge(graph, params).seq2seq) and ITEMS and L
