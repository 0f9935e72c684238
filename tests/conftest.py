"""Eight virtual CPU devices, and a compile cache that the tests and their subprocesses share."""

import gc
import os
import pathlib
import signal
import tempfile

import jax
import numpy as np
import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so it is in a shell's background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)
_CACHE = pathlib.Path(tempfile.gettempdir()) / 'jaxrec-test-compile-cache'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(_CACHE)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# a machine that stands still for a while is not a deadlock; what is one, pytest-timeout ends
os.environ['XLA_FLAGS'] = ' '.join(
    [
        os.environ.get('XLA_FLAGS', ''),
        '--xla_cpu_collective_call_warn_stuck_timeout_seconds=120',
        '--xla_cpu_collective_call_terminate_timeout_seconds=480',
    ]
).strip()
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_compilation_cache_dir', str(_CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def pytest_configure(config):
    """What is not run by hand is short: compiling it is most of the time, a third of which LLVM's
    passes would take."""
    if config.getoption('markexpr') == 'not slow and not accelerators':
        os.environ['XLA_FLAGS'] += ' --xla_backend_optimization_level=0'


def pytest_collection_modifyitems(items):
    """What is run by hand may take its time."""
    for item in items:
        if item.get_closest_marker('slow') or item.get_closest_marker('accelerators'):
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope='module', autouse=True)
def a_module_of_its_own():
    """Begins without a mesh, whatever ran before; lets go of its programs, gigabytes in the end."""
    jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def mesh():
    """Sets a ('data', 'model') mesh of the shape given: `mesh(4, 2)`."""
    before = jax.sharding.get_mesh()

    def make(data, model):
        devices = jax.devices()[: data * model]
        jax.set_mesh(jax.make_mesh((data, model), ('data', 'model'), devices=devices))

    yield make
    jax.set_mesh(before)
