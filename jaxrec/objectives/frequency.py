"""Streaming estimates of how often an item comes (Yi et al. 2019, Algorithm 2).

With time in batches, as in the paper, an item that is in every batch has a gap of 1 however often
it is there: its share of the examples is estimated too low, on catalogues where a batch holds the
popular items many times by a nat and more. With time in examples the gap is 1 / share.
"""

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


def estimate_share(
    state: dict[str, jax.Array], items: jax.Array, rate: float
) -> tuple[dict[str, jax.Array], jax.Array]:
    """`estimate` with time in examples: an item is updated once for every time that it comes.

    Args:
      state: of `start_estimate`; its step counts examples.
      items: int32 [N] items of this batch in order, 0 = none.
      rate: a in (0, 1).

    Returns:
      The new state, and float32 [N] -log gap: the log of the item's share of all examples.
    """
    place = jnp.cumsum((items > 0).astype(jnp.int32))
    order = jnp.argsort(items, stable=True)
    item, time, index = items[order], state['step'] + place[order], jnp.arange(len(items))
    new = jnp.concatenate([jnp.ones(1, bool), item[1:] != item[:-1]])
    before = jnp.where(new, state['last'][item], jnp.roll(time, 1))
    ends = jnp.concatenate([new[1:], jnp.ones(1, bool)])
    last = jax.lax.cummin(jnp.where(ends, index, len(items)), reverse=True)  # of the same item
    weight = jnp.exp((last - index) * jnp.log1p(-rate))  # what later ones leave of this update
    old = jnp.where(new, (1 - rate) * state['gap'][item], 0)  # with the item's first update
    total = jax.ops.segment_sum(
        weight * (old + rate * (time - before)), jnp.cumsum(new) - 1, len(items)
    )
    gap = state['gap'].at[item].set(total[jnp.cumsum(new) - 1])
    state = {
        'step': state['step'] + place[-1],
        'last': state['last'].at[item].set(time[last]),
        'gap': gap,
    }
    return state, -jnp.log(jnp.maximum(gap[items], 1e-6))
