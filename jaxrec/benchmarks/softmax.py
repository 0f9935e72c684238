"""Suite loss: the exact softmax by itself, value and gradients."""

import statistics
import time

import jax
import jax.numpy as jnp
from jax import P

from jaxrec import config, losses
from jaxrec.benchmarks import measure
from jaxrec.benchmarks.flops import softmax_flops
from jaxrec.devices.mesh import TABLE, make_mesh, table_rows

_LONG = 10.0  # seconds; a longer call is measured once


def measure_loss(tokens: int, items: int, dim: int, *, repeats: int, matmul_size: int) -> dict:
    """Time and peak memory of `losses.softmax` with its gradients by queries and table.

    Args:
      tokens: targets; rounded up to a multiple of the devices.
      items, dim: of the table.
      repeats: calls after the compilation, in turns with the matrix product.
      matmul_size: see `measure.Matmul`.
    """
    jax.set_mesh(make_mesh(config.Mesh()))
    tokens += -tokens % jax.device_count()
    start = measure.peak_memory()

    @jax.jit
    def make(key):
        keys = jax.random.split(key, 3)
        rows = table_rows(items)
        table = jax.random.normal(keys[0], (rows, dim), out_sharding=TABLE)
        split = P('data', None, None)
        queries = jax.random.normal(keys[1], (tokens, 1, dim), out_sharding=split)
        targets = jax.random.randint(
            keys[2], (tokens, 1), 1, items + 1, out_sharding=P('data', None)
        )
        weights = jnp.ones((tokens, 1), out_sharding=P('data', None))
        return queries / dim**0.5, table, targets, weights

    arguments = make(jax.random.key(0))

    def loss(queries, table, targets, weights):
        return losses.softmax(queries, table, targets, weights, num_items=items)

    begun = time.perf_counter()
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    compiling = time.perf_counter() - begun
    first = measure.seconds(lambda: jax.block_until_ready(step(*arguments)))
    peak = measure.peak_memory()  # before the matrix product takes its own
    matmul = measure.Matmul(matmul_size)
    milliseconds = []
    if first > _LONG:  # nothing is left to compile: this is a measurement like any other
        milliseconds, repeats = [1e3 * first], 0
    matmul.sample()
    for _ in range(repeats):
        matmul.sample()
        seconds = measure.seconds(lambda: jax.block_until_ready(step(*arguments)))
        milliseconds.append(1e3 * seconds)
    gflops = softmax_flops(tokens, items, dim) / statistics.median(milliseconds) / 1e6
    return {
        'milliseconds': statistics.median(milliseconds),
        'gflops': gflops,
        'matmul_gflops': matmul.gflops,
        'of_matmul': gflops / matmul.gflops,
        'mfu': measure.model_flops_utilisation(gflops * 1e9, 'float32'),
        'peak_memory_mib': peak,
        'above_start_mib': peak - start,
        'memory_limit_mib': measure.memory_limit(),
        'logits_mib': tokens * items * 4 / measure.MIB,  # what a plain softmax would write
        'compile_seconds': compiling,
    }
