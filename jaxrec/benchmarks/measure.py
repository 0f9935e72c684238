"""Yardsticks: the rate of a large matrix product, peak memory, and what the machine is."""

import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrec.devices import cluster, tuning

MIB = 1 << 20

# Dense peaks of the data sheets in TFLOP/s (float32: TF32), by part of the device kind, first fit.
PEAKS = {
    'H100 PCIe': {'bfloat16': 756, 'float32': 378},
    'H100': {'bfloat16': 989, 'float32': 495},
    'H200': {'bfloat16': 989, 'float32': 495},
    'A100': {'bfloat16': 312, 'float32': 156},
}


class Matmul:
    """The rate of a square product, sampled between the other measurements of a run.

    Every device of the current mesh does the whole product: the rate is that of all together.

    Args:
      size: rows of the square; 0 takes 2048 on a CPU and 8192 elsewhere.
      dtype: of the operands; float32 runs at JAX's default precision (TF32 on a GPU).
    """

    def __init__(self, size: int = 0, dtype: str = 'float32'):
        self.size = size or (2048 if jax.default_backend() == 'cpu' else 8192)
        self.dtype = dtype
        key = jax.random.key(0)
        self._square = jax.random.normal(key, (self.size, self.size), jnp.float32).astype(dtype)
        self._product = jax.jit(jnp.matmul)
        self.samples: list[float] = []
        seconds(self._once)  # compiles
        self._times = cluster.agreed(max(1, int(0.1 / seconds(self._once))))
        self._devices = self._square.sharding.num_devices

    def sample(self) -> float:
        """One measurement, in GFLOP/s; kept in `samples`."""

        def several():
            out = [self._product(self._square, self._square) for _ in range(self._times)]
            jax.block_until_ready(out)

        products = self._times * self._devices
        self.samples.append(products * 2 * self.size**3 / seconds(several) / 1e9)
        return self.samples[-1]

    @property
    def gflops(self) -> float:
        """Median of the samples, GFLOP/s."""
        return statistics.median(self.samples)

    def warning(self) -> str:
        """A line for people if other work disturbed the run, else ''."""
        low, high = min(self.samples), max(self.samples)
        if high < 1.3 * low:
            return ''
        return (
            f'note: the matrix product ran at {low:.0f} to {high:.0f} GFLOP/s: other work on this '
            'machine disturbs the figures'
        )

    def _once(self):
        jax.block_until_ready(self._product(self._square, self._square))


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call; the call itself waits for the device."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_memory() -> float:
    """Most memory held so far, MiB: of this process on a CPU, of its first device elsewhere."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        return stats['peak_bytes_in_use'] / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == 'darwin' else peak / 1024


def resident(pid: int, which: str = 'VmRSS') -> float:
    """Memory of another process, MiB (Linux): what it holds, or 'VmHWM', the most it has held."""
    try:
        found = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        return 0.0
    sizes = [int(line.split()[1]) for line in found if line.startswith(which)]
    return sizes[0] / 1024 if sizes else 0.0


def memory_limit() -> float:
    """Memory that there is for a run, MiB: free on the host for a CPU, else the device's share."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'bytes_limit' in stats:
        return stats['bytes_limit'] / MIB
    try:
        with open('/proc/meminfo') as lines:
            found = dict(line.split(':') for line in lines)
        return int(found['MemAvailable'].split()[0]) / 1024
    except (OSError, KeyError):
        return float(1 << 40)


def model_flops_utilisation(flops_per_second: float, dtype: str) -> float | None:
    """Share of the data sheet's dense peak, None for an unknown device."""
    kind = jax.devices()[0].device_kind
    peak = next((PEAKS[name][dtype] for name in PEAKS if name in kind), None)
    return peak and flops_per_second / (peak * 1e12 * jax.device_count())


def device() -> str:
    """The machine in words."""
    if jax.default_backend() != 'cpu':
        return f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    name = platform.processor() or platform.machine()
    try:
        with open('/proc/cpuinfo') as lines:
            name = next(
                (line.split(':')[1].strip() for line in lines if line.startswith('model name')),
                name,
            )
    except OSError:
        pass
    several = f'{jax.process_count()} processes, ' if jax.process_count() > 1 else ''
    return f'{several}CPU {name}, {tuning.cores()} cores'
