"""Machines that are not here: what compiles for them, and the best that they can do.

JAX compiles whole programs for a TPU topology or an NVIDIA GPU on a computer that has neither, if
the compiler is installed: it comes with `pip install 'jax[tpu]'` or `pip install 'jax[cuda13]'`.
Nothing of it runs.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from jaxrec.devices import hlo
from jaxrec.errors import UserError


@dataclasses.dataclass(frozen=True)
class Machine:
    """One device, as its vendor describes it.

    TPU: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e): peak of bfloat16, memory, its bandwidth, and
    the interconnect of a chip; float32 products take 1 pass by default, 3 at high and 6 at highest
    precision. The clock is what the peak says of the matrix units. H100: NVIDIA's data sheet of the
    SXM5 card, without sparsity: TF32 by default for float32, NVLink in one direction; between hosts
    of eight, a 400 Gb/s port a GPU.

    Attributes:
      flops: per second of matrix products, by the names of `hlo.Cost.flops`.
      memory: bytes.
      bandwidth: of the memory, bytes a second.
      network: bytes a second that leave a device.
      clock: Hz, in which the compiler counts cycles; 0 = it does not.
    """

    name: str
    flops: dict[str, float]
    memory: int
    bandwidth: float
    network: float
    clock: float = 0


def _tpu(name, teraflops, gib, gigabytes, network, gigahertz):
    peak = teraflops * 1e12
    passes = {'bfloat16': 1, 'default': 1, 'high': 3, 'highest': 6}
    rates = {precision: peak / count for precision, count in passes.items()}
    return Machine(name, rates, gib << 30, gigabytes * 1e9, network * 1e9, gigahertz * 1e9)


_TPUS = {
    'v4': _tpu('TPU v4', 275, 32, 1228, 300, 1.05),
    'v5e': _tpu('TPU v5e', 197, 16, 819, 200, 1.5),
    'v5p': _tpu('TPU v5p', 459, 95, 2765, 600, 1.75),
    'v6e': _tpu('TPU v6e', 918, 32, 1640, 448, 1.75),
}
_H100_FLOPS = {'bfloat16': 989.4e12, 'default': 494.7e12, 'high': 494.7e12, 'highest': 66.9e12}
_H100 = Machine('H100 SXM', _H100_FLOPS, 80 << 30, 3.35e12, 450e9)
_ETHERNET = 50e9  # bytes a second of a GPU to other hosts
_GPUS_A_HOST = 8
_H100_LIMITS = """
platform_name: "CUDA"
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: 3350000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 85899345920
  cuda_compute_capability { major: 9 minor: 0 }
}
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# The search for the fastest Triton product needs the card; cuBLAS has one for every shape.
_GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False}
ALL = (  # what a table of `--target=all` compares
    'v5e:1x1 v5e:2x4 v5e:4x4 v5e:8x8 v6e:1x1 v6e:2x4 v6e:4x4 v5p:2x2x1 v5p:2x2x2 h100:1 h100:8'
).split()


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine or a pod of them to compile for.

    Attributes:
      name: as it was asked for, 'v5e:4x4'.
      machine: what one device is.
      devices: as JAX lists them; they can be put in a mesh, and nothing can be put on them.
      options: for the compiler.
    """

    name: str
    machine: Machine
    devices: tuple[jax.Device, ...]
    options: dict[str, Any] | None


def target_of(name: str) -> Target:
    """The target that 'v5e:4x4', 'v5p:2x2x1' or 'h100:8' names.

    Raises:
      UserError: no such target, or its compiler is not installed.
    """
    kind, _, size = name.partition(':')
    tpu = kind in _TPUS and re.fullmatch(r'\d+(x\d+){1,2}', size)
    gpu = kind == 'h100' and size.isdecimal() and int(size)
    if not (tpu or gpu):
        raise UserError(
            f'--target={name} is none of {", ".join(_TPUS)} with a topology (v5e:4x4, v5p:2x2x2), '
            'h100 with a number of GPUs (h100:8), and all'
        )
    packages = ['libtpu'] if tpu else ['jax_cuda13_plugin', 'jax_cuda12_plugin']
    if not any(importlib.util.find_spec(package) for package in packages):
        extra = 'tpu' if tpu else 'cuda13'
        raise UserError(f"--target={name} needs its compiler: pip install 'jax[{extra}]'")
    try:
        return _tpu_target(name) if tpu else _gpu_target(name, int(size))
    except Exception as e:  # whatever the plugin raises for a topology that it does not have
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(f'--target={name}: the compiler has no such topology: {reason}') from e


def _tpu_target(name: str) -> Target:
    for variable, value in {
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # nothing runs, so several may compile at once
        'TPU_SKIP_MDS_QUERY': '1',  # this is no TPU's host, and these only keep it quiet
        'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_WORKER_ID': '0',
    }.items():
        os.environ.setdefault(variable, value)
    kind, _, size = name.partition(':')
    options = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
    if math.prod(map(int, size.split('x'))) == 1:
        options['chips_per_host_bounds'] = [1, 1, 1]
    found = topologies.get_topology_desc(platform='tpu', topology_name=name, **options)
    return Target(name, _TPUS[kind], tuple(found.devices), None)


def _gpu_target(name: str, count: int) -> Target:
    machine, hosts = _H100, 1
    if count > _GPUS_A_HOST:
        hosts = count // _GPUS_A_HOST
        if count % _GPUS_A_HOST:
            raise UserError(f'beyond {_GPUS_A_HOST} GPUs, whole hosts of {_GPUS_A_HOST}')
        machine = dataclasses.replace(machine, network=_ETHERNET)
    topology = f'1x{hosts}x{count // hosts}'
    found = topologies.get_topology_desc(
        'h100', 'cuda', target_config=_H100_LIMITS, topology=topology
    )
    return Target(name, machine, tuple(found.devices), _GPU_OPTIONS)


def seconds(machine: Machine, cost: hlo.Cost) -> float:
    """At best, of one instruction: the longest of its products, its memory and its cycles."""
    products = sum(flops / machine.flops[kind] for kind, flops in cost.flops.items())
    cycles = cost.cycles / machine.clock if machine.clock else 0
    return max(products, cost.bytes / machine.bandwidth, cycles)


def network_seconds(machine: Machine, collective: hlo.Collective) -> float:
    """At best, of one collective: all links of a device busy, a sum sent twice."""
    passes = 2 if collective.kind == 'all-reduce' else 1
    return passes * collective.bytes / machine.network
