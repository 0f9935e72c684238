"""How the C library treats the memory of a computation on a CPU.

A step's intermediate results live in one block. Left to itself glibc gives a large one back to the
kernel after every step, and the next step waits for as many page faults: half the time of a step of
CL4SRec on Beauty, or of UniCDR.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h


def share_one_heap() -> None:
    """Tells glibc that threads which start from now on allocate where the first one does.

    Elsewhere it gives back whatever is larger than 64 MB, whatever `keep_freed` says. To be called
    before JAX is asked for a device, which starts its threads.
    """
    _set(_M_ARENA_MAX, 1)


def keep_freed() -> None:
    """Tells glibc to keep what is freed from now on for what is allocated next.

    To be called when the data have been read, so that what reading them took is given back.
    """
    _set(_M_MMAP_MAX, 0)
    _set(_M_TRIM_THRESHOLD, -1)


def _set(parameter: int, value: int) -> None:
    if platform.libc_ver()[0] == 'glibc':
        ctypes.CDLL(None).mallopt(parameter, value)
