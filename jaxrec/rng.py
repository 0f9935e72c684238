"""Randomness by name: streams of the host, and keys of a step.

A seed is any of 0 .. config.LARGEST_SEED, and no two of them share a stream or a key.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Streams of the host. A number that is given here is never given again.
ORDER, NEGATIVES, CUTS, POSITIVES = 1, 2, 3, 4


def host(seed: int, stream: int, number: int) -> np.random.Generator:
    """The generator of a stream for one epoch or step, whatever was drawn before.

    numpy cuts its entropy into words of 32 bits and takes missing ones for 0: the high word of a
    seed comes last, where no stream and no number can be taken for it.
    """
    high, low = (int(word) for word in words(seed))
    return np.random.default_rng([low, stream, number, *([high] if high else [])])


def words(seed: int) -> np.ndarray:
    """uint32 [2], a seed's high and low word: it fits no number of a program without 64 bits."""
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def key(seed: int | jax.Array) -> jax.Array:
    """The key of a seed, or of its `words` where it differs between runs of one program.

    Below 2^32 it is jax.random.key(seed), which leaves out the high word of a larger one.
    """
    halves = jnp.asarray(words(seed) if isinstance(seed, int) else seed)
    size = jax.random.key_data(jax.random.key(0)).size  # 2, of some generators 4: both words twice
    return jax.random.wrap_key_data(jnp.tile(halves, size // 2))


def keys(key: jax.Array | None, *names: str) -> dict[str, jax.Array | None]:
    """A key for each name; all None without a key. The names' order is part of the bits."""
    if key is None:
        return dict.fromkeys(names)
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))
