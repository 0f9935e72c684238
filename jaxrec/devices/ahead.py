"""A program's results for one batch after the other, the next ones begun before one is read."""

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxrec.devices.tuning import lanes

_IN_FLIGHT = 4  # batches given to the device before the results of the first are read


def ahead(call: Callable[[Any], Any], batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple]:
    """(key, call(batch)) of every (key, batch), in their order.

    A device works through what it is given by itself. A CPU takes up a thread's next program when
    the last one is done, and one batch's small products leave it idle: there threads call, under
    the mesh and the precision of this one, and only a batch of new shapes, which compiles, is not
    theirs. Results are the same to the bit.

    Args:
      call: of a batch, a jitted program inside; may be called by several threads.
      batches: a key to tell which, and a tree of arrays.
    """
    waiting, known = collections.deque(), set()
    mesh, precision = jax.sharding.get_mesh(), jax.config.jax_default_matmul_precision
    threads = lanes()

    def in_thread(batch):
        with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
            return jax.block_until_ready(call(batch))

    def oldest():
        key, result = waiting.popleft()
        return key, result()

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:  # which starts no idle thread
        for key, batch in batches:
            shapes = tuple((np.shape(x), x.dtype) for x in jax.tree.leaves(batch))
            if threads > 1 and shapes in known:
                waiting.append((key, pool.submit(in_thread, batch).result))
            else:
                known.add(shapes)
                waiting.append((key, functools.partial(lambda out: out, call(batch))))
            if len(waiting) > _IN_FLIGHT:
                yield oldest()
        while waiting:
            yield oldest()
