"""What tests of single models share: parameters that matter, and a compiler in a hurry."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

# Half the time to compile; the programs of these tests do not run for long.
jit = functools.partial(
    jax.jit,
    compiler_options={
        'xla_backend_optimization_level': 0,
        'xla_llvm_disable_expensive_passes': True,
    },
)


def slow(names, *some):
    """Names to parametrize with, of which some are run by hand."""
    assert set(some) <= set(names)
    return [pytest.param(n, marks=pytest.mark.slow) if n in some else n for n in names]


def made(build):
    """(graphdef, parameters) of a model, away from initial values, so that every term matters."""
    graphdef, shapes = nnx.split(nnx.eval_shape(build))
    rng = np.random.default_rng(1)

    def draw(path, shape):
        values = 0.4 * rng.normal(size=shape.shape) + (path[-1].key == 'scale')
        return values.astype(np.float32)

    return graphdef, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(shapes))


def softmax(x):
    """Of a vector."""
    e = np.exp(x - x.max())
    return e / e.sum()


def moments(drawn, reference):
    """How far mean and variance of a sample are from a reference's, in standard errors."""
    drawn, reference = (np.ravel(np.asarray(x, np.float64)) for x in (drawn, reference))
    found, mean = [], reference.mean()
    for power in (1, 2):
        one, other = ((x - mean) ** power for x in (drawn, reference))
        error = other.std() * np.sqrt(1 / len(one) + 1 / len(other))
        found.append(abs(one.mean() - other.mean()) / error)
    return np.array(found)


def slow_shares(alpha, count=100_000):
    """max(s, 1 - s) of draws s ~ Beta(alpha, alpha), by numpy."""
    s = np.random.default_rng(0).beta(alpha, alpha, count)
    return np.maximum(s, 1 - s)


def make(config, items):
    """`made` of a model's Config for a catalogue."""
    return made(lambda: config.make({'item': items}, rngs=nnx.Rngs(0)))
