"""Accelerators that are not here, for which XLA compiles all the same."""

import os

import jax
import numpy as np
import pytest
from jax.experimental import topologies

EXPLICIT = (jax.sharding.AxisType.Explicit,) * 2


def tpu(name: str) -> list[jax.Device]:
    """The devices of a TPU topology such as 'v5e:4x4'; skips where libtpu is not installed."""
    pytest.importorskip('libtpu', reason='compiling for TPUs needs `pip install libtpu`')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # nobody to ask for the machine's own TPU
    return topologies.get_topology_desc(platform='tpu', topology_name=name).devices


def gpus(count: int) -> list[jax.Device]:
    """H100s; skips where the plugin of CUDA is not installed."""
    pytest.importorskip('jax_cuda13_plugin', reason="compiling for GPUs needs 'jax[cuda13]'")
    target = pytest.importorskip('jaxrec.devices.target', reason='there is no description of GPUs')
    return list(target.target_of(f'h100:{count}').devices)


def mesh_of(devices: list[jax.Device], data: int, model: int = 1) -> jax.sharding.Mesh:
    """The ('data', 'model') mesh of devices as they come."""
    chosen = np.array(devices[: data * model]).reshape(data, model)
    return jax.sharding.Mesh(chosen, ('data', 'model'), axis_types=EXPLICIT)
