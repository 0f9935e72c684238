"""Dropout's statistics, attention over packed rows, and masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.devices.mesh import TABLE, lookup, put_batch
from jaxrec.nn.attention import SelfAttention, attention, causal_mask
from jaxrec.nn.dropout import dropout, dropout_rows, hash_bits
from jaxrec.nn.linear import linear_layer, product


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_dropout_keeps_the_right_share_and_scale(rate):
    x = jnp.ones((400, 500))
    y = np.asarray(dropout(x, rate, jax.random.key(0)))
    n, kept = y.size, y > 0
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_allclose(y[kept], 1 / (1 - rate), rtol=1e-6)
    # no row, column or neighbour pattern
    for axis in (0, 1):
        spread = kept.mean(axis).std() * np.sqrt(kept.shape[axis])
        assert 0.9 < spread / np.sqrt(rate * (1 - rate)) < 1.1
        a, b = kept[:-1] if axis == 0 else kept[:, :-1], kept[1:] if axis == 0 else kept[:, 1:]
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.012


def test_dropout_masks_of_different_keys_are_independent():
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(6)]
    masks = [np.asarray(dropout(jnp.ones(100_000), 0.5, k)) > 0 for k in keys]
    for i in range(6):
        for j in range(i):
            assert abs(np.corrcoef(masks[i], masks[j])[0, 1]) < 0.016


def test_hash_bits_are_uniform():
    bits = np.asarray(hash_bits(jax.random.key(3), jnp.zeros(1 << 18)))
    assert len(np.unique(bits)) == len(bits)  # the mixer is a bijection of the index
    for shift in range(32):
        assert abs(((bits >> shift) & 1).mean() - 0.5) < 0.005
    counts = np.bincount(bits >> 24, minlength=256)
    assert ((counts - 1024) ** 2 / 1024).sum() < 400  # chi-square, 255 degrees of freedom


def test_dropout_off():
    x = jnp.arange(5.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_dropout_is_the_same_on_any_mesh(mesh):
    key = jax.random.key(1)
    expected = np.asarray(dropout(jnp.ones((8, 6, 4)), 0.3, key))
    for shape in ((8, 1), (2, 4)):
        mesh(*shape)
        x = jax.device_put(
            np.ones((8, 6, 4), np.float32),
            jax.NamedSharding(jax.sharding.get_mesh(), jax.P('data', None, 'model')),
        )
        got = jax.jit(lambda x: dropout(x, 0.3, key))(x)
        np.testing.assert_array_equal(got, expected)


def test_causal_mask():
    segments = jnp.asarray([[1, 1, 2, 2, 0]])
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(causal_mask(segments)[0, 0], np.array(expected, bool))


@pytest.mark.parametrize(('length', 'causal'), [(5, False), (5, True), (70, True)])
def test_attention_against_a_loop(length, causal):
    """Also where causal queries go in groups, which leave out the keys after them."""
    rng = np.random.default_rng(0)
    b, l, h, d = 2, length, 2, 3
    q, k, v = rng.normal(size=(3, b, l, h, d))
    mask = np.tril(np.ones((l, l), bool)) & (rng.random((b, 1, l, l)) < 0.7)
    mask |= np.eye(l, dtype=bool)
    expected = np.zeros((b, l, h, d))
    for i, j, head in np.ndindex(b, l, h):
        keys = [s for s in range(l) if mask[i, 0, j, s]]
        logits = np.array([q[i, j, head] @ k[i, s, head] / np.sqrt(d) for s in keys])
        p = np.exp(logits) / np.exp(logits).sum()
        expected[i, j, head] = sum(
            weight * v[i, s, head] for weight, s in zip(p, keys, strict=True)
        )
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    got = attention(q, k, v, mask, 0.0, None, causal=causal)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(('heads', 'output'), [(1, False), (2, True)])
def test_one_query_against_all_queries(heads, output):
    """The newest event alone, which projects no keys, gets what it gets among all events."""
    kernel = nnx.initializers.normal(0.3)
    linear = functools.partial(linear_layer(kernel, jnp.float32), bias_init=kernel)
    layer = SelfAttention(8, heads, linear, output=output, rngs=nnx.Rngs(0))
    x, query = jax.random.normal(jax.random.key(1), (2, 3, 6, 8))
    mask = causal_mask(jnp.array([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]]))
    whole = layer(query, x, mask, 0.0, None)
    newest = layer(query[:, -1:], x, mask[:, :, -1:], 0.0, None)
    np.testing.assert_allclose(newest, whole[:, -1:], atol=1e-6)


@pytest.mark.parametrize('length', [3, 20])  # below and above the kernel's width
def test_product(length):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(4, length, 5)), rng.normal(size=(5, 7))
    g = rng.normal(size=(4, length, 7))
    with jax.enable_x64():
        value, pull = jax.vjp(product, jnp.asarray(x), jnp.asarray(kernel))
        d_x, d_kernel = pull(jnp.asarray(g))
    np.testing.assert_allclose(value, x @ kernel, atol=1e-12)
    np.testing.assert_allclose(d_x, g @ kernel.T, atol=1e-12)
    np.testing.assert_allclose(d_kernel, sum(x[i].T @ g[i] for i in range(4)), atol=1e-12)


def test_dropout_of_looked_up_rows_is_that_of_the_table(mesh):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(64, 6)), jnp.float32)
    ids = jnp.array([[3, 0, 3, 63], [9, 8, 1, 2]])
    key = jax.random.key(2)
    expected = dropout(table, 0.4, key)[ids]
    assert (expected == 0).mean() > 0.2
    np.testing.assert_array_equal(dropout_rows(table[ids], ids, 0.4, key), expected)
    for off in ((0.0, key), (0.4, None)):
        np.testing.assert_array_equal(dropout_rows(table[ids], ids, *off), table[ids])
    mesh(2, 4)
    placed = jax.device_put(table, jax.NamedSharding(jax.sharding.get_mesh(), TABLE))
    there = put_batch({'ids': np.asarray(ids)})['ids']
    rows = jax.jit(lambda t, i: dropout_rows(lookup(t, i), i, 0.4, key))(placed, there)
    np.testing.assert_array_equal(rows, expected)
