"""How the C library treats the memory of a computation on a CPU."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed() -> None:
    """Tells glibc to keep what is freed from now on for what is allocated next.

    On a CPU a step's intermediate results live in one block. Left to itself glibc gives a large one
    back to the kernel after every step, and the next step waits for as many page faults: almost
    twice the time of a step of CL4SRec on Beauty. To be called when the data have been read, so
    that what reading them took is given back.
    """
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
