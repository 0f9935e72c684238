"""What is set by the kind of device: sizes that fit a CPU's caches only slow accelerators down."""

import dataclasses
import math
import os

import jax

from jaxrec.devices.mesh import platform


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Portions in which a device works: they change rounding, and where said the draws of dropout.

    Attributes:
      turn_tokens: about so many in a turn of a device where train.microbatches=0; 0 = all at once.
        A turn has keys of its own for dropout and negatives.
      turns_at_once: turns of a step that may run side by side.
      lanes: most programs of an evaluation or of lists that run side by side, see `lanes`.
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
    turns_at_once: int
    lanes: int
    queries: int
    logits: int
    looked_up: int
    scores: int
    ranked_tokens: int
    stacked_views: bool


_CPU = Tuning(
    turn_tokens=3200,
    turns_at_once=2,
    lanes=4,
    queries=64,
    logits=1 << 22,
    looked_up=1 << 24,
    scores=1 << 21,
    ranked_tokens=6400,
    stacked_views=False,
)
_ACCELERATOR = Tuning(
    turn_tokens=0,
    turns_at_once=1,
    lanes=1,
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


def lanes() -> int:
    """Programs to run side by side: on a mesh of one device as it likes, up to a CPU's cores.

    Several devices get the programs in one order, or they wait for one another.
    """
    return min(tuning().lanes, cores()) if jax.sharding.get_mesh().size == 1 else 1


def cores() -> int:
    """Of the CPU, as far as this process may use them."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def turns(microbatches: int, rows: int, tokens: int) -> int:
    """In how many turns a step works through a device's rows.

    Args:
      microbatches: train.microbatches; 0 = what comes nearest to `turn_tokens` in ratio.
      rows: of a device.
      tokens: of a row; 0 = it has none.
    """
    most = tuning().turn_tokens
    if microbatches or not (most and tokens):
        return microbatches or 1

    divisors = (n for n in range(1, rows + 1) if rows % n == 0)
    return min(divisors, key=lambda n: abs(math.log(rows // n * tokens / most)))


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
