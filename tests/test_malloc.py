"""What a computation on a CPU frees stays with the process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from jaxrec.malloc import keep_freed, share_one_heap
if sys.argv[1] == 'set':
    share_one_heap()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: (jnp.outer(x, x) @ jnp.outer(x, x)[:, :8]).sum())  # 100 MB in between
x = jnp.arange(5000.0)
keep_freed()
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(faults)[5])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='settings of glibc')
def test_large_results_cost_no_page_faults():
    """Under one heap a large block is not given back; in those of threads it is, every time."""

    def faults(what):
        done = subprocess.run(
            [sys.executable, '-c', FAULTS, what], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults('set') < 1000 < faults('not')
