"""What is set by the kind of device: sizes that fit a CPU's caches only slow accelerators down."""

import dataclasses

import jax

from jaxrec.devices.mesh import platform


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Portions in which a device works: they change rounding, and where said the draws of dropout.

    Attributes:
      turn_tokens: most tokens of a turn of a device where train.microbatches=0; 0 = all at once. A
        turn has keys of its own for dropout and negatives.
      queries: causal attention takes so many queries at a time, each group against the keys up to
        its end; 0 = all at once. The groups have keys of their own for dropout.
      logits: of the exact softmax, held at once.
      looked_up: floats of sampled negatives' vectors, held at once.
      scores: of a ranking, held at once.
      ranked_tokens: of a batch of histories that are ranked or served.
      stacked_views: both views of a contrastive term go through the model at once, where they are
        of one shape.
    """

    turn_tokens: int
    queries: int
    logits: int
    looked_up: int
    scores: int
    ranked_tokens: int
    stacked_views: bool


_CPU = Tuning(
    turn_tokens=3200,
    queries=64,
    logits=1 << 22,
    looked_up=1 << 24,
    scores=1 << 21,
    ranked_tokens=6400,
    stacked_views=False,
)
_ACCELERATOR = Tuning(
    turn_tokens=0,
    queries=0,
    logits=1 << 24,
    looked_up=1 << 26,
    scores=1 << 26,
    ranked_tokens=1 << 18,
    stacked_views=True,
)
TUNINGS = {'cpu': _CPU, 'gpu': _ACCELERATOR, 'tpu': _ACCELERATOR}


def tuning() -> Tuning:
    """Of the current mesh's devices."""
    return TUNINGS[platform()]


def turns(microbatches: int, rows: int, tokens: int) -> int:
    """In how many turns a step works through a device's rows.

    Args:
      microbatches: train.microbatches; 0 = as few as the device's caches ask for.
      rows: of a device.
      tokens: of a row; 0 = it has none.
    """
    most = tuning().turn_tokens
    if microbatches or not most:
        return microbatches or 1
    fits = (n for n in range(1, rows) if rows % n == 0 and rows // n * tokens <= most)
    return next(fits, rows)


def serving_rows(batch_users: int) -> dict[str, int]:
    """Sizes for `history_batches` on the current mesh: batch_users, multiple, tokens.

    Two rows a device at least: JAX 0.12 forgets the placement of a single row in reshapes. On a CPU
    few enough tokens for its caches: half the time at width 200.
    """
    devices = jax.sharding.get_mesh().shape['data']
    return {
        'batch_users': -(-batch_users // (2 * devices)) * 2 * devices,
        'multiple': 2 * devices,
        'tokens': devices * tuning().ranked_tokens,
    }
