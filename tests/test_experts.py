"""Experts and gates against numpy, their identities, and the same numbers on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.devices.mesh import on_mesh, put_batch
from jaxrec.nn import experts
from jaxrec.problem import Level

B, I, E, T, D = 8, 5, 3, 2, 4


def level(count=E, tasks=T):
    """All hear all."""
    return Level(tuple('ab'[:tasks]), ('',) * count, (('',),) * tasks)


def make(count=E, dropout=0.0, seed=0):
    rngs = nnx.Rngs(seed)
    return experts.Mixture(level(count), (I, 6, D), dropout=dropout, rngs=rngs)


def randomised(module):
    """The module with all parameters away from 0."""
    graph, params = nnx.split(module)
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(draw, params))


def inputs(*shape):
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def numbers(param):
    return np.asarray(param[...], np.float64)


def slow_mlp(mlps, n, x, hidden, last):
    depth = len(mlps.kernels)
    for layer in range(depth):
        x = x @ numbers(mlps.kernels[layer])[n] + numbers(mlps.biases[layer])[n]
        x = (last if layer == depth - 1 else hidden)(x)
    return x


def slow_mixture(mixture, x):
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    out = np.zeros((len(x), len(mixture.level.listeners), D))
    for row, v in enumerate(x.astype(np.float64)):
        said = [slow_mlp(mixture.experts, e, v, relu, relu) for e in range(mixture.experts.count)]
        for task in range(len(mixture.level.listeners)):
            gate = np.zeros(1)
            if mixture.gates is not None:
                gate = slow_mlp(mixture.gates, task, v, relu, lambda x: x)
            share = np.exp(gate) / np.exp(gate).sum()
            out[row, task] = sum(g * s for g, s in zip(share, said, strict=True))
    return out


@pytest.mark.parametrize('count', [1, 3])
def test_mixture(count):
    mixture, x = randomised(make(count)), inputs(B, I)
    np.testing.assert_allclose(mixture(x).out, slow_mixture(mixture, x), atol=1e-5)
    weights = np.asarray(mixture.weights(x))
    assert weights.shape == (B, T, count)
    np.testing.assert_allclose(weights.sum(2), 1, atol=1e-6)


@pytest.mark.parametrize('hidden', experts.ACTIVATIONS)
@pytest.mark.parametrize('each', [False, True])
def test_mlps(hidden, each):
    slow = {
        'relu': lambda x: np.maximum(x, 0),
        'swish': lambda x: x / (1 + np.exp(-x)),
        'sigmoid': lambda x: 1 / (1 + np.exp(-x)),
        'none': lambda x: x,
    }
    mlps = randomised(experts.MLPs(E, (I, 6, D), hidden=hidden, rngs=nnx.Rngs(0)))
    x = inputs(B, E, I) if each else inputs(B, I)
    got = mlps(x)
    assert got.shape == (B, E, D)
    for n in range(E):
        own = (x[:, n] if each else x).astype(np.float64)
        np.testing.assert_allclose(
            got[:, n], slow_mlp(mlps, n, own, slow[hidden], slow['none']), atol=1e-4
        )


def test_one_expert_is_the_shared_bottom():
    mixture, x = randomised(make(1)), inputs(B, I)
    assert mixture.gates is None
    alone = mixture.experts(x)[:, 0]
    for task in range(T):
        np.testing.assert_array_equal(mixture(x).out[:, task], alone)


def test_experts_have_no_order():
    mixture, x = randomised(make()), inputs(B, I)
    before = mixture(x).out
    order = np.array([2, 0, 1])
    for params in (mixture.experts.kernels, mixture.experts.biases):
        for param in params:
            param[...] = param[...][order]
    mixture.gates.kernels[0][...] = mixture.gates.kernels[0][...][..., order]
    mixture.gates.biases[0][...] = mixture.gates.biases[0][...][..., order]
    np.testing.assert_allclose(mixture(x).out, before, atol=1e-5)


def test_init_is_a_function_of_the_seed():
    leaves = lambda seed: jax.tree.leaves(nnx.state(make(seed=seed)))  # noqa: E731
    for one, same, other in zip(leaves(0), leaves(0), leaves(1), strict=True):
        np.testing.assert_array_equal(one, same)
        assert not one.any() or (np.asarray(one) != np.asarray(other)).all()
    kernel = np.asarray(make().experts.kernels[0][...])
    limit = (6 / (I + 6)) ** 0.5  # Xavier within each expert, whatever their number
    assert 0.8 * limit < np.abs(kernel).max() <= limit
    assert len(np.unique(kernel)) == kernel.size  # experts start apart


def test_dropout():
    mixture, x = make(dropout=0.5), inputs(B, I)
    still = make(dropout=0.0)
    np.testing.assert_array_equal(mixture(x).out, still(x).out)
    one, two = (mixture(x, key=jax.random.key(seed)).out for seed in (0, 1))
    np.testing.assert_array_equal(one, mixture(x, key=jax.random.key(0)).out)
    assert not np.array_equal(one, two) and not np.array_equal(one, still(x).out)
    np.testing.assert_array_equal(still(x, key=jax.random.key(0)).out, still(x).out)


def test_product_has_the_gradient_of_einsum():
    for x, spec in ((inputs(B, I), 'bi,nio->bno'), (inputs(B, E, I), 'bni,nio->bno')):
        kernels = inputs(E, I, D)
        weights = jnp.asarray(inputs(B, E, D))
        ours = lambda x, k, w=weights: (experts.stacked_product(x, k) * w).sum()  # noqa: E731
        plain = lambda x, k, w=weights, s=spec: (jnp.einsum(s, x, k) * w).sum()  # noqa: E731
        for got, wanted in zip(
            jax.grad(ours, (0, 1))(x, kernels), jax.grad(plain, (0, 1))(x, kernels), strict=True
        ):
            np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_any_mesh(mesh):
    x = inputs(B, I)

    def gradients():
        @jax.jit
        def run(key, x):
            graph, params = nnx.split(
                experts.Mixture(level(), (I, 6, D), dropout=0.3, rngs=nnx.Rngs(key))
            )
            loss = lambda p: (nnx.merge(graph, p)(x, key=key).out ** 2).mean()  # noqa: E731
            return jax.value_and_grad(loss)(params)

        placed = put_batch({'x': x})['x'] if on_mesh() else x
        return jax.tree.leaves(jax.device_get(run(jax.random.key(3), placed)))

    alone = gradients()
    for shape in ((1, 1), (2, 2), (8, 1)):
        mesh(*shape)
        for got, wanted in zip(gradients(), alone, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-6)
