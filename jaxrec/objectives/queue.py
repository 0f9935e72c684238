"""A queue of vectors of earlier steps, the negatives of MoCo (He et al. 2020)."""

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.devices.mesh import on_mesh, replicated

BLOCK = 64  # users of a batch come in multiples of it, and so does the queue


def start_queue(size: int, dim: int) -> dict[str, jax.Array]:
    """An empty queue: vectors, and the users and targets they are of; split over 'data'.

    Of 64 vectors that came together every device of the 'data' axis holds its share, so that the
    oldest leave and new ones come without any changing devices; where 64 does not divide over them,
    every device holds all.
    """
    blocks, placed, vectors = size // BLOCK, None, None
    if on_mesh():
        splits = BLOCK % jax.sharding.get_abstract_mesh().shape['data'] == 0
        placed = P(None, 'data' if splits else None)
        vectors = P(*placed, None)
    return {
        'vectors': jnp.zeros((blocks, BLOCK, dim), out_sharding=vectors),
        'users': jnp.zeros((blocks, BLOCK), jnp.int32, out_sharding=placed),
        'targets': jnp.zeros((blocks, BLOCK), jnp.int32, out_sharding=placed),
    }


def enqueue(queue: dict[str, jax.Array], keys: jax.Array, batch: dict) -> dict[str, jax.Array]:
    """The queue after a step: first in, first out.

    Of the N places those after the block of the last user stay out: N also depends on the mesh.

    Args:
      queue: see `start_queue`.
      keys: [N, D] of this step.
      batch: users and user_targets int32 [N], users 0 where there is none.
    """
    new = {'vectors': keys, 'users': batch['users'], 'targets': batch['user_targets']}
    users = replicated(batch['users'])
    blocks = ((users > 0) * (1 + jnp.arange(len(users)) // BLOCK)).max()

    def push(old, new):
        new = replicated(new).reshape(-1, BLOCK, *new.shape[1:])
        if on_mesh():
            new = jax.reshard(new, jax.typeof(old).sharding)
        both = jnp.concatenate([old, new.astype(old.dtype)])
        return jax.lax.dynamic_slice_in_dim(both, blocks, len(old))

    return {name: push(queue[name], value) for name, value in new.items()}
