"""Streaming estimate of how often an item comes (Yi et al. 2019, Algorithm 2)."""

import jax
import jax.numpy as jnp


def start_estimate(num_items: int, gap: float = 100.0) -> dict[str, jax.Array]:
    """State of `estimate`: every item last seen at step 0, and about every `gap` steps."""
    return {
        'step': jnp.zeros((), jnp.int32),
        'last': jnp.zeros(num_items + 1, jnp.int32),
        'gap': jnp.full(num_items + 1, gap, jnp.float32),
    }


def estimate(
    state: dict[str, jax.Array], items: jax.Array, rate: float
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Streaming frequency estimation (Yi et al. 2019, Algorithm 2), a counter per item.

    gap <- (1 - rate) gap + rate (step - last), last <- step, for every item of the batch, once.

    Args:
      state: of `start_estimate`.
      items: int32 [N] items of this batch, repeats allowed, 0 = none.
      rate: a in (0, 1).

    Returns:
      The new state, and float32 [N] log Q = -log gap: the log of the share of batches that hold
      the item.
    """
    step, last, gap = state['step'] + 1, state['last'], state['gap']
    new = (1 - rate) * gap[items] + rate * (step - last[items])  # the same for repeats
    state = {'step': step, 'last': last.at[items].set(step), 'gap': gap.at[items].set(new)}
    return state, -jnp.log(jnp.maximum(new, 1e-6))
