"""Randomness by name: which bits a stream or a key of a step are."""

import jax
import numpy as np
import pytest

from jaxrec import rng


def test_streams_of_the_host():
    """Seed, stream and number alone, as written here: runs of before go on with the same bits."""
    streams = {rng.ORDER: 1, rng.NEGATIVES: 2, rng.CUTS: 3, rng.POSITIVES: 4}
    assert len(streams) == 4
    firsts = []
    for stream, n in streams.items():
        for seed in (0, 7):
            for number in (0, 5):
                drawn = rng.host(seed, stream, number).integers(0, 2**63, 8)
                expected = np.random.default_rng([seed, n, number]).integers(0, 2**63, 8)
                np.testing.assert_array_equal(drawn, expected)
                again = rng.host(seed, stream, number)  # whatever was drawn before
                np.testing.assert_array_equal(again.integers(0, 2**63, 8), expected)
                firsts.append(drawn[0])
    assert len(set(firsts)) == len(firsts)


def test_keys_of_a_step():
    key = jax.random.key(3)
    keys = rng.keys(key, 'encode', 'table', 'negatives')
    assert list(keys) == ['encode', 'table', 'negatives']
    for own, expected in zip(keys.values(), jax.random.split(key, 3), strict=True):
        np.testing.assert_array_equal(jax.random.key_data(own), jax.random.key_data(expected))
    other = rng.keys(key, 'table', 'encode', 'negatives')  # the order is part of the bits
    same = jax.random.key_data(keys['encode']) == jax.random.key_data(other['encode'])
    assert not same.all()
    assert rng.keys(None, 'encode', 'table') == {'encode': None, 'table': None}


@pytest.mark.parametrize('names', [('one',), ('a', 'b')])
def test_keys_inside_a_program(names):
    key = jax.random.key(1)
    inside = jax.jit(lambda key: rng.keys(key, *names))(key)
    for name, own in rng.keys(key, *names).items():
        np.testing.assert_array_equal(jax.random.key_data(inside[name]), jax.random.key_data(own))
