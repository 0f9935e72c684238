"""The in-batch softmax against a float64 loop; the frequency estimate against the algorithm."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import jit

from jaxrec.errors import UserError
from jaxrec.losses import in_batch_softmax, scores, weighted_mean
from jaxrec.objectives import in_batch
from jaxrec.objectives.frequency import estimate, start_estimate

B, N, K, D = 5, 7, 3, 4


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    candidates = np.array([3, 8, 3, 0, 5, 9, 8])
    targets = np.array([3, 8, 3, 6, 5])
    history = np.array([[1, 9, 0], [8, 8, 2], [0, 0, 0], [3, 5, 9], [7, 0, 7]])
    weights = np.array([1, 0.5, 2, 0, 1])
    return (
        rng.normal(size=(B, K, D)),
        rng.normal(size=(10, D)),
        candidates,
        targets,
        history,
        weights,
    )


def slow_loss(queries, table, candidates, targets, history, weights, q, options):
    """Row by row and candidate by candidate; q[i] is the expected number of draws of item i."""
    smoothing, refined, own = options
    total = 0.0
    for i, target in enumerate(targets):
        score = lambda item, i=i: max(float(v @ table[item]) for v in queries[i])  # noqa: E731
        hidden = {0, target} | (set() if own else set(history[i]))
        positive = math.exp(score(target)) / (1 if refined else q[target])
        others = [math.exp(score(c)) / q[c] for c in candidates if c not in hidden]
        z = positive + sum(others)
        loss = -math.log(positive / z)
        if smoothing:
            push = sum(-math.log(1 - other / z) for other in others)
            loss = (1 - smoothing) * loss + smoothing / len(candidates) * push
        if refined:
            loss *= 1 - positive / z
        total += weights[i] * loss
    return total / sum(weights)


def loss_of(queries, table, candidates, targets, history, weights, q, options):
    smoothing, refined, own = options
    rows, log_q = jnp.asarray(table), jnp.log(jnp.asarray(q))
    values = in_batch_softmax(
        (queries * rows[targets][:, None]).sum(-1).max(1),
        scores(queries, rows[candidates]),
        in_batch.allowed(candidates, targets[:, None], history, own_history=own)[:, 0],
        log_q_positive=log_q[targets],
        log_q_negatives=log_q[candidates],
        smoothing=smoothing,
        refined=refined,
    )
    return weighted_mean(values, jnp.asarray(weights))


@pytest.mark.parametrize('own', [False, True])
@pytest.mark.parametrize('refined', [False, True])
@pytest.mark.parametrize('smoothing', [0.0, 0.3])
def test_loss(problem, smoothing, refined, own):
    q = np.random.default_rng(1).uniform(0.05, 3, 10)
    expected = slow_loss(*problem, q, (smoothing, refined, own))
    got = loss_of(*map(jnp.asarray, problem), q, (smoothing, refined, own))
    np.testing.assert_allclose(got, expected, rtol=2e-5)


@pytest.mark.parametrize(
    'changes',
    [{'routing': 'target'}, {'softness': 0.7}, {'apart': 0.3}, {'hardness': 0.6}, {}],
    ids=str,
)
def test_several_vectors_against_a_loop(problem, changes):
    """Which of a user's vectors scores a candidate, and how far they are held apart."""
    queries, table, _, targets, history, weights = problem
    config = in_batch.InBatch(logq='none', own_history=True, **changes)
    config.check()

    def score(i, target, item):
        each = queries[i] @ table[item]
        if config.routing == 'target':
            return each[(queries[i] @ table[target]).argmax()]
        if config.softness:
            return config.softness * math.log(np.mean(np.exp(each / config.softness)))
        return each.max()

    total = 0.0
    for i, target in enumerate(targets):
        others = np.array([score(i, target, c) for c in targets if c not in (0, target)])
        weigh = np.exp(config.hardness * others)
        others = np.exp(others) * weigh / weigh.mean()
        positive = math.exp(score(i, target, target))
        unit = [v / np.linalg.norm(v) for v in queries[i]]
        pairs = [(unit[a] @ unit[b]) ** 2 for a in range(K) for b in range(K) if a != b]
        loss = -math.log(positive / (positive + others.sum()))
        total += weights[i] * (loss + config.apart * np.mean(pairs))
    batch = {
        'targets': jnp.asarray(targets[:, None], jnp.int32),
        'weights': jnp.asarray(weights[:, None], jnp.float32),
        'log_share': jnp.zeros((B, 1)),
        'items': jnp.asarray(history, jnp.int32),
    }
    rows = jnp.asarray(table, jnp.float32)
    asked = jnp.asarray(queries[:, None], jnp.float32)
    got, (terms, _) = in_batch.loss(config, asked, rows, batch, {}, 9)
    np.testing.assert_allclose(got, total / weights.sum(), rtol=2e-5)
    assert ('cosine' in terms) == bool(config.apart)


def test_a_constant_logq_changes_nothing(problem):
    """However often, if all are drawn alike: the plain softmax, by hand and as logq='none'."""
    queries, table, _, targets, history, weights = problem
    total = 0.0
    for q, target, weight in zip(queries, targets, weights, strict=True):
        best = (q @ table.T).max(0)
        others = [np.exp(best[c]) for c in targets if c != target]
        total += weight * (np.log(np.exp(best[target]) + sum(others)) - best[target])

    @functools.partial(jax.value_and_grad, has_aux=True)
    def value(rows, log_share, logq):
        config = in_batch.InBatch(logq=logq, own_history=True)
        batch = {
            'targets': jnp.asarray(targets[:, None], jnp.int32),
            'weights': jnp.asarray(weights[:, None], jnp.float32),
            'log_share': jnp.full((B, 1), log_share),
            'items': jnp.asarray(history, jnp.int32),
        }
        asked = jnp.asarray(queries[:, None], jnp.float32)
        found, (terms, _) = in_batch.loss(config, asked, rows, batch, {}, 9)
        return found, terms['accuracy']

    value, rows = jit(value, static_argnums=2), jnp.asarray(table, jnp.float32)
    plain, slope = value(rows, 0.0, 'none')
    np.testing.assert_allclose(plain[0], total / weights.sum(), rtol=1e-5)
    for share in (1.0, 0.1, 1e-6):
        got, other = value(rows, np.log(share), 'counted')
        np.testing.assert_allclose(got[0], total / weights.sum(), rtol=1e-5)
        assert got[1] == plain[1]
        np.testing.assert_allclose(other, slope, rtol=1e-4, atol=1e-6)


def test_two_ways_to_choose_a_vector_are_refused():
    with pytest.raises(UserError, match='set one of them alone'):
        in_batch.InBatch(routing='target', softness=0.1).check()
    with pytest.raises(UserError, match='set one of them alone'):
        in_batch.InBatch(hardness=1.0, smoothing=0.1).check()


@pytest.mark.parametrize('hardness', [0.0, 0.5, 2.0])
def test_hard_negatives_are_weighed_over_the_catalogue(hardness):
    """Draws by q, corrected by logQ, tell what uniform ones of the whole catalogue would."""
    rng = np.random.default_rng(0)
    s, q, positive = rng.normal(size=6), rng.uniform(0.1, 1, 6), 0.3
    weigh = np.exp(hardness * s)
    mean = (weigh / q).sum() / (1 / q).sum()
    z = math.exp(positive) / 0.5 + (np.exp(s) * weigh / mean / q).sum()
    wanted = -math.log(math.exp(positive) / 0.5 / z)
    got = in_batch_softmax(
        jnp.array([positive]),
        jnp.asarray(s)[None],
        jnp.ones((1, 6), bool),
        log_q_positive=jnp.log(0.5),
        log_q_negatives=jnp.log(jnp.asarray(q)),
        hardness=hardness,
    )
    np.testing.assert_allclose(got, [wanted], rtol=1e-5)
    many = jnp.concatenate([jnp.asarray(s)[None], jnp.full((1, 2), 1e4)], axis=1)
    log_q = jnp.pad(jnp.log(jnp.asarray(q)), (0, 2))
    hidden = in_batch_softmax(
        jnp.array([positive]),
        many,
        jnp.arange(8)[None] < 6,
        log_q_positive=jnp.log(0.5),
        log_q_negatives=log_q,
        hardness=hardness,
    )
    np.testing.assert_allclose(hidden, got, rtol=1e-6)


def test_only_the_winning_vector_learns(problem):
    queries, table, *rest = map(jnp.asarray, problem)
    q = jnp.ones(10)
    grads = jax.grad(loss_of)(queries, table, *rest, q, (0.0, False, True))
    for i, target in enumerate(rest[1]):
        won = {int((queries[i] @ table[c]).argmax()) for c in (*rest[0], target) if c}
        for k in range(K):
            assert bool((grads[i, k] != 0).any()) == (k in won and rest[3][i] > 0)


def test_the_refined_weight_passes_no_gradient(problem):
    """d loss / d positive = (1 - p)(p - 1) then, not the derivative of (1 - p)(-log p)."""
    p = 0.2
    grad = jax.grad(
        lambda s: in_batch_softmax(s, jnp.zeros((1, 1)), jnp.ones((1, 1), bool), refined=True).sum()
    )(jnp.log(jnp.array([p / (1 - p)])))
    np.testing.assert_allclose(grad, [(1 - p) * (p - 1)], rtol=1e-5)


def test_nothing_allowed_and_certain_negatives_stay_finite():
    one = jnp.ones(1)
    for hardness in (0.0, 1.0):
        none = in_batch_softmax(
            one, jnp.ones((1, 2)), jnp.zeros((1, 2), bool), hardness=hardness
        ).sum()
        assert none == 0
    value, grad = jax.value_and_grad(
        lambda n: in_batch_softmax(one, n, jnp.ones((1, 2), bool), smoothing=0.1).sum()
    )(jnp.array([[200.0, -200.0]]))
    assert np.isfinite(value) and np.isfinite(grad).all()


follow = jax.jit(estimate)


def test_estimate_follows_the_algorithm():
    rng = np.random.default_rng(0)
    last, gap, rate = np.zeros(6), np.full(6, 100.0), 0.1
    state = start_estimate(5)
    for step in range(1, 40):
        items = rng.choice(6, 4, p=[0.1, 0.3, 0.3, 0.2, 0.05, 0.05])
        state, log_q = follow(state, jnp.asarray(items), rate)
        assert state['step'] == step
        for item in set(items):
            gap[item] = (1 - rate) * gap[item] + rate * (step - last[item])
            last[item] = step
        np.testing.assert_allclose(log_q, -np.log(gap[items]), rtol=1e-5)
    np.testing.assert_allclose(state['gap'], gap, rtol=1e-5)
    np.testing.assert_array_equal(state['last'], last)


def test_estimate_finds_the_frequency():
    """An item in every fifth batch: the gap settles at five steps."""
    state = start_estimate(2)
    for step in range(1, 1001):
        state, _ = follow(state, np.array([1, 2 if step % 5 == 0 else 1]), 0.05)
    np.testing.assert_allclose(state['gap'][1:], [1, 5], rtol=1e-3)
