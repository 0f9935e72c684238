"""The estimate of an item's share with time in examples, against a loop and on known streams."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.objectives import in_batch
from jaxrec.objectives.frequency import estimate, estimate_share, start_estimate

shares = jax.jit(estimate_share, static_argnums=2)


def test_against_a_loop():
    """Whatever the batches: repeats and padding, each example by itself."""
    rng = np.random.default_rng(0)
    items = rng.integers(0, 7, 96).astype(np.int32)
    gap, last, time, want = np.full(7, 50.0), np.zeros(7), 0, []
    for item in items:
        if item:
            time += 1
            gap[item] = 0.9 * gap[item] + 0.1 * (time - last[item])
            last[item] = time
        want.append(gap.copy())
    for size in (1, 8, 96):
        state = start_estimate(6, gap=50.0)
        for n, batch in enumerate(items.reshape(-1, size)):
            state, log_share = shares(state, jnp.asarray(batch), 0.1)
            real = batch > 0
            expected = -np.log(want[(n + 1) * size - 1][batch[real]])
            np.testing.assert_allclose(log_share[real], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state['gap'][1:], gap[1:], rtol=1e-5)
        assert int(state['step']) == time


def test_a_periodic_stream_converges_to_its_gap():
    """Every item comes each 5 examples; what is left of the start is (1 - a)^k after k of them."""
    state = start_estimate(5, gap=100.0)
    batch = jnp.asarray(np.tile(np.arange(1, 6), 4).astype(np.int32))
    for _ in range(10):
        state, _ = shares(state, batch, 0.1)
    first = np.arange(1, 6)  # the first gap is from the beginning
    left = 0.9**40 * 100 + 0.9**39 * 0.1 * first + (1 - 0.9**39) * 5
    np.testing.assert_allclose(state['gap'][1:], left, rtol=1e-5)


def test_popular_items_keep_their_share():
    """An item of a fifth of all examples is in every batch: in batch time its share saturates."""
    rng = np.random.default_rng(1)
    chance = np.r_[0.2, np.full(40, 0.02)]
    by_example, by_batch = start_estimate(41, gap=41.0), start_estimate(41)
    batches = jax.jit(estimate, static_argnums=2)
    for _ in range(300):
        batch = jnp.asarray(rng.choice(41, 64, p=chance).astype(np.int32) + 1)
        by_example, _ = shares(by_example, batch, 0.01)
        by_batch, _ = batches(by_batch, batch, 0.01)
    error = np.log(chance) + np.log(np.asarray(by_example['gap'])[1:])
    assert abs(error[0]) < 0.25 and abs(error[1:].mean()) < 0.1
    share = 1 / np.asarray(by_batch['gap'])[1:] / 64
    assert np.log(chance[0] / share[0]) > 2  # log(64 * .2) nats too low


def test_the_loss_reads_it():
    settings = in_batch.InBatch(logq='examples', rate=0.1)
    carry = in_batch.start(settings, 9, 4)
    targets = np.array([[3], [3], [7], [0]], np.int32)
    batch = {'targets': jnp.asarray(targets), 'log_share': jnp.zeros((4, 1))}
    found, new = in_batch._estimated(settings, batch, carry['frequency'])
    _, expected = estimate_share(start_estimate(9, gap=9.0), jnp.asarray(targets[:, 0]), 0.1)
    np.testing.assert_array_equal(found['log_share'][:, 0], expected)
    assert int(new['step']) == 3
