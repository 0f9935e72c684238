"""Every loss against the obvious float64 numpy form, gradients against differences or jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import losses

ROWS, ITEMS, DIM = 16, 11, 5


@pytest.fixture
def x64():
    with jax.enable_x64():
        yield


def example(seed=0, b=4, l=6):
    rng = np.random.default_rng(seed)
    return {
        'queries': rng.normal(size=(b, l, DIM)),
        'table': rng.normal(size=(ROWS, DIM)),
        'targets': rng.integers(1, ITEMS + 1, (b, l)).astype(np.int32),
        'weights': rng.choice([0.0, 1.0, 0.5], (b, l)),
    }


def naive_softmax(queries, table, targets, weights, smoothing=0.0):
    """Writes every logit out; the judge."""
    total = 0.0
    for b, l in np.ndindex(targets.shape):
        logits = table[1 : ITEMS + 1] @ queries[b, l]
        log_p = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        goal = np.full(ITEMS, smoothing / ITEMS)
        goal[targets[b, l] - 1] += 1 - smoothing
        total -= weights[b, l] * (goal * log_p).sum()
    return total / weights.sum()


@pytest.mark.parametrize('chunk', [0, 1, 5, 7, 100])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_softmax_value(x64, chunk, smoothing):
    x = example()
    got = losses.softmax(
        **{k: jnp.asarray(v) for k, v in x.items()},
        num_items=ITEMS,
        chunk=chunk,
        label_smoothing=smoothing,
    )
    np.testing.assert_allclose(got, naive_softmax(**x, smoothing=smoothing), rtol=1e-12)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_softmax_gradients_against_differences(x64, smoothing):
    x = example(1)

    def f(queries, table):
        return losses.softmax(
            queries,
            table,
            jnp.asarray(x['targets']),
            jnp.asarray(x['weights']),
            num_items=ITEMS,
            chunk=5,
            label_smoothing=smoothing,
        )

    grads = jax.grad(f, argnums=(0, 1))(jnp.asarray(x['queries']), jnp.asarray(x['table']))
    for name, grad in zip(('queries', 'table'), grads, strict=True):
        expected = np.zeros_like(x[name])
        for index in np.ndindex(x[name].shape):
            ends = []
            for h in (1e-5, -1e-5):
                moved = {**x, name: x[name].copy()}
                moved[name][index] += h
                ends.append(naive_softmax(**moved, smoothing=smoothing))
            expected[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(grad, expected, atol=1e-9)
        assert np.abs(expected).max() > 1e-2


def test_softmax_scales_cotangents_and_masks(x64):
    x = {k: jnp.asarray(v) for k, v in example(2).items()}

    def f(queries, scale):
        return scale * losses.softmax(
            queries, x['table'], x['targets'], x['weights'], num_items=ITEMS
        )

    np.testing.assert_allclose(
        jax.grad(f)(x['queries'], 3.0), 3 * jax.grad(f)(x['queries'], 1.0), rtol=1e-12
    )
    grad = jax.grad(f)(x['queries'], 1.0)
    assert np.all(np.asarray(grad)[np.asarray(x['weights']) == 0] == 0)


def test_softmax_float32_extreme_logits_stay_finite():
    x = example(3)
    queries = jnp.asarray(x['queries'] * 1e3, jnp.float32)
    table = jnp.asarray(x['table'], jnp.float32)
    loss, grad = jax.value_and_grad(
        lambda q: losses.softmax(
            q, table, jnp.asarray(x['targets']), jnp.asarray(x['weights']), num_items=ITEMS
        )
    )(queries)
    np.testing.assert_allclose(
        loss, naive_softmax(x['queries'] * 1e3, x['table'], x['targets'], x['weights']), rtol=1e-5
    )
    assert np.isfinite(grad).all()


@pytest.mark.parametrize('shape', [(1, 1), (4, 1), (2, 4), (1, 8)])
def test_softmax_same_on_any_mesh(mesh, shape):
    x = example(4)
    single = {k: jnp.asarray(v, jnp.int32 if k == 'targets' else jnp.float32) for k, v in x.items()}

    def f(queries, table, targets, weights):
        return losses.softmax(queries, table, targets, weights, num_items=ITEMS, chunk=3)

    expected = jax.value_and_grad(f, argnums=(0, 1))(*single.values())
    expected = jax.device_get(expected)
    mesh(*shape)
    p = jax.P
    placed = [
        jax.device_put(v, jax.NamedSharding(jax.sharding.get_mesh(), spec))
        for v, spec in zip(
            jax.device_get(single).values(),
            (p('data'), p('model'), p('data'), p('data')),
            strict=True,
        )
    ]
    got = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def scores(seed=0, k=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(4, 6)), rng.normal(size=(4, 6, k)), rng.choice([0.0, 1.0], (4, 6))


def test_bce(x64):
    positive, negatives, weights = scores()
    per = -np.log(sigmoid(positive)) - np.log(1 - sigmoid(negatives)).sum(-1)
    got = losses.bce(jnp.asarray(positive), jnp.asarray(negatives))
    np.testing.assert_allclose(got, per, rtol=1e-12)
    mean = losses.weighted_mean(got, jnp.asarray(weights))
    np.testing.assert_allclose(mean, (per * weights).sum() / weights.sum(), rtol=1e-12)


@pytest.mark.parametrize('t', [0.0, 0.75, 1.0])
def test_gbce_equals_the_papers_form(x64, t):
    positive, negatives, _ = scores(1)
    k, items = 3, 50
    alpha = k / (items - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    per = -(np.log(sigmoid(positive) ** beta) + np.log(1 - sigmoid(negatives)).sum(-1)) / (k + 1)
    got = losses.gbce(jnp.asarray(positive), jnp.asarray(negatives), num_items=items, t=t)
    np.testing.assert_allclose(got, per, rtol=1e-12)


def test_gbce_is_stable_in_float32():
    positive = jnp.asarray([[-200.0, 200.0]])
    negatives = jnp.asarray([[[200.0], [-200.0]]])
    f = lambda p, n: losses.gbce(p, n, num_items=1000, t=0.75).mean()  # noqa: E731
    value, grads = jax.value_and_grad(f, argnums=(0, 1))(positive, negatives)
    beta = 1 / 999 * (0.75 * (1 - 999) + 999)
    np.testing.assert_allclose(value, (beta * 200 + 200) / 2 / 2, rtol=1e-6)
    assert all(np.isfinite(g).all() for g in grads)


def test_sampled_softmax_with_hits_and_logq(x64):
    positive, negatives, _ = scores(2)
    rng = np.random.default_rng(3)
    hits, log_q = rng.random(negatives.shape) < 0.3, rng.normal(size=negatives.shape)
    expected = np.zeros(positive.shape)
    for b, l in np.ndindex(positive.shape):
        kept = [
            s - q for s, q, h in zip(negatives[b, l], log_q[b, l], hits[b, l], strict=True) if not h
        ]
        p = np.exp(positive[b, l] - 0.7)
        expected[b, l] = -np.log(p / (p + np.exp(kept).sum()))
    got = losses.sampled_softmax(
        jnp.asarray(positive),
        jnp.asarray(negatives),
        hits=jnp.asarray(hits),
        log_q_positive=0.7,
        log_q_negatives=jnp.asarray(log_q),
    )
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_sampled_softmax_all_negatives_are_hits(x64):
    f = lambda p: losses.sampled_softmax(  # noqa: E731
        p, jnp.ones((1, 1, 2)), hits=jnp.ones((1, 1, 2), bool)
    ).sum()
    value, grad = jax.value_and_grad(f)(jnp.ones((1, 1)))
    assert value == 0 and np.isfinite(grad).all()


def test_sampled_softmax_logq_estimates_the_exact_softmax(x64):
    """log(k q) on the negatives: many uniform negatives give the exact loss."""
    rng = np.random.default_rng(5)
    table, query, target, k = rng.normal(size=(ITEMS, DIM)), rng.normal(size=DIM), 4, 200_000
    logits = table @ query
    exact = np.log(np.exp(logits).sum()) - logits[target]
    drawn = rng.integers(0, ITEMS, k)
    got = losses.sampled_softmax(
        jnp.asarray(logits[target])[None],
        jnp.asarray(logits[drawn])[None],
        hits=jnp.asarray(drawn == target)[None],
        log_q_negatives=np.log(k / ITEMS),
    )
    np.testing.assert_allclose(got, [exact], atol=0.01)


def test_weighted_mean_ignores_infinite_padding():
    assert losses.weighted_mean(jnp.asarray([2.0, jnp.inf]), jnp.asarray([1.0, 0.0])) == 2
    assert losses.weighted_mean(jnp.asarray([jnp.nan]), jnp.asarray([0.0])) == 0


@pytest.mark.parametrize('shape', [None, (4, 1), (2, 4)])
@pytest.mark.parametrize('scale', [0.1, 20.0])
def test_softmax_in_domain(scale, shape, mesh):
    """Among the items of the target's domain alone, short vectors and long ones; gradients too.

    More tokens than a chunk has of both domains, and of a device none of the second.
    """
    rng = np.random.default_rng(0)
    h, table = scale * rng.normal(size=(4, 50, 4)), scale * rng.normal(size=(64, 4))
    of_items = np.array([0, *rng.integers(1, 3, 60)])
    targets = rng.integers(1, 61, (4, 50))
    targets[:2] = rng.choice(np.flatnonzero(of_items == 1), (2, 50))
    weights = (rng.random((4, 50)) < 0.7).astype(float)
    targets[:, -3:], weights[:, -3:] = 0, 0  # padding

    def slow(h, table):
        logits = (h @ table.T)[..., :61]
        same = of_items == of_items[targets][..., None]
        values = jax.nn.logsumexp(jnp.where(same, logits, -jnp.inf), -1)
        values -= jnp.take_along_axis(logits, targets[..., None], -1).squeeze(-1)
        return (weights * values).sum() / weights.sum()

    def fast(h, table, *given):
        of_domain = [jnp.asarray(np.flatnonzero(of_items == n)) for n in (1, 2)]
        targets, weights, domain = given
        rest = {'domain': domain, 'of_domain': of_domain, 'chunk': 8}
        return losses.in_domain(h, table, targets, weights, **rest)

    expected = jax.value_and_grad(slow, (0, 1))(jnp.asarray(h), jnp.asarray(table))
    args = [jnp.asarray(x, jnp.float32) for x in (h, table)]
    args += [jnp.asarray(targets), jnp.asarray(weights, jnp.float32), of_items[targets]]
    if shape:
        mesh(*shape)
        specs = [jax.P('model', None) if n == 1 else jax.P('data') for n in range(len(args))]
        on_mesh = jax.sharding.get_mesh()
        args = [
            jax.device_put(x, jax.NamedSharding(on_mesh, s))
            for x, s in zip(args, specs, strict=True)
        ]
    got = jax.jit(jax.value_and_grad(fast, (0, 1)))(*args)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
