"""Randomness by name: streams of the host, and keys of a step."""

import jax
import numpy as np

# Streams of the host. A number that is given here is never given again.
ORDER, NEGATIVES, CUTS, POSITIVES = 1, 2, 3, 4


def host(seed: int, stream: int, number: int) -> np.random.Generator:
    """The generator of a stream for one epoch or step, whatever was drawn before."""
    return np.random.default_rng([seed, stream, number])


def keys(key: jax.Array | None, *names: str) -> dict[str, jax.Array | None]:
    """A key for each name; all None without a key. The names' order is part of the bits."""
    if key is None:
        return dict.fromkeys(names)
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))
