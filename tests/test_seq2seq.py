"""Disentangled seq2seq against float64 loops: cuts, intentions, losses and which of them count."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit, softmax
from test_cl4srec import QUIET, L, experiment, loss_of, problem_of, start

from jaxrec import rng
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


def packed(*rows_of_lengths):
    """Rows of L places with segments of these lengths, right-aligned, and the histories."""
    shape, count = (len(rows_of_lengths), L), 0
    rows = {n: np.zeros(shape, np.int32) for n in ('items', 'segments', 'positions')}
    histories = []
    for row, lengths in enumerate(rows_of_lengths):
        at = L - sum(lengths)
        for number, length in enumerate(lengths, 1):
            items = np.arange(count + 1, count + length + 1)
            where = row, slice(at, at + length)
            rows['items'][where], rows['segments'][where] = items, number
            rows['positions'][where] = np.arange(W - length, W)
            histories.append((where, items.tolist()))
            at, count = at + length, count + length
    rows['features'] = {'x': rows['items'] + 1000 * (rows['items'] > 0)}
    return jax.tree.map(jnp.asarray, rows), histories


def test_a_cut_is_the_past_and_the_future_backwards():
    rows, histories = packed([5, 2], [4, 1], [5], [])
    make, seen = jax.jit(seq2seq.cut, static_argnums=2), set()
    for number in range(60):
        parts = jax.tree.map(np.asarray, make(rows, jax.random.key(number), W))
        inside = np.asarray(rows['segments']) > 0
        np.testing.assert_array_equal(parts['segments'] > 0, inside)
        np.testing.assert_array_equal(parts['features']['x'], (parts['items'] + 1000) * inside)
        for where, whole in histories:
            own, items = parts['segments'][where], parts['items'][where].tolist()
            n = int(rows['segments'][where][0])
            past = int((own == 2 * n - 1).sum())
            future = len(whole) - past
            assert own.tolist() == [2 * n - 1] * past + [2 * n] * future
            assert items == whole[:past] + whole[past:][::-1]
            assert past > 0 and (future > 0 or len(whole) == 1)
            places = [*range(W - past, W), *range(W - future, W)]
            assert parts['positions'][where].tolist() == places
            seen.add((len(whole), past))
    assert seen == {(5, 1), (5, 2), (5, 3), (5, 4), (4, 1), (4, 2), (4, 3), (2, 1), (1, 1)}


def parameters():
    shapes = {'prototypes': (K, D), 'kernel': (D, D), 'places': (W, D), 'bias': (D,)}
    return {name: RNG.normal(size=shape) for name, shape in shapes.items()}


def slow_intentions(own, z):
    """sum_i p(k | i) p(i) z_i and sum_i p(k | i) p(i) of one history [n, D]."""
    a = own['places'][W - len(z) :]
    query = norm(z[-1] + a[-1] + own['bias'])
    h = norm(z + a)
    said = softmax((h + np.maximum(h @ own['kernel'], 0)) @ query / D**0.5)
    share = np.stack([softmax(norm(own['prototypes']) @ norm(x) / D**0.5) for x in z])
    return np.einsum('w,wk,wd->kd', said, share, z), said @ share


def test_intentions_of_histories():
    own, (rows, histories) = parameters(), packed([3, 2], [5, 1])
    hidden = RNG.normal(size=(2, L, D))
    given = {k: jnp.asarray(x) for k, x in own.items()}, jnp.asarray(hidden), rows
    summed, shares = seq2seq.intentions(*given)
    for where, _ in histories:
        total, used = slow_intentions(own, hidden[where])
        for one in summed[where]:  # the same of every event
            np.testing.assert_allclose(one, total, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(shares[where][-1], used, rtol=1e-5)


def test_the_term_of_packed_rows():
    """An encoder that gives an item's vector back: the term of each history by itself."""
    rows, histories = packed([5, 2], [4, 1], [], [3])
    table = RNG.normal(size=(40, D))
    own = {**parameters(), 'past': RNG.normal(size=(K, D)), 'future': RNG.normal(size=(K, D))}
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(seq2seq=Seq2Seq(0.5, K, confidence=0.7)),
        seq2seq={name: nnx.Param(jnp.asarray(x)) for name, x in own.items()},
        max_len=W,
        item_table=lambda: jnp.asarray(table),
        encode=lambda part, table, key, table_key: table[part['items']],
    )
    batch = {**rows, 'users': jnp.zeros(7, jnp.int32)}  # two places more than there are users
    value, told = seq2seq.term(model, batch, jax.random.key(3))
    parts = seq2seq.cut(rows, rng.keys(jax.random.key(3), 'cut', 'encode', 'table')['cut'], W)
    phi, use = {'past': [], 'future': []}, 0.0
    for where, items in histories:
        if len(items) == 1:
            continue
        number = np.asarray(parts['segments'])[where]
        for name, mine in (('past', number % 2 == 1), ('future', number % 2 == 0)):
            total, used = slow_intentions(own, table[np.asarray(parts['items'])[where][mine]])
            phi[name].append(norm(own[name] + total))
        use = use + used  # of the futures
    past, future = (np.stack(x) for x in phi.values())
    scores = np.einsum('nkd,mjd->nkmj', past, future) / D**0.5
    own_scores = np.einsum('nkd,nkd->nk', past, future) / D**0.5
    each = np.sort((np.log(np.exp(scores).sum((2, 3))) - own_scores).ravel())
    assert value == pytest.approx(each[: int(0.7 * each.size)].mean(), rel=1e-4)
    use = use / use.sum()
    assert told['intention_use'] == pytest.approx(np.exp(-(use * np.log(use)).sum()) / K, rel=1e-4)


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
    """Batch, parameters and loss, bit for bit, and nothing beside the main loss."""
    results = []
    for exp in (experiment(**QUIET), system(weight=0.0, intentions=7)):
        batch, (graphdef, params) = problem_of(exp).batches()(0), start(exp)
        step = jit(functools.partial(loss_of, graphdef))
        value, (terms, carry) = step(params, batch, {}, jax.random.key(0))
        assert 'users' not in batch and terms.keys() == {'bce'} and not carry
        results.append((batch, params, value, terms))
    jax.tree.map(np.testing.assert_array_equal, *results)
