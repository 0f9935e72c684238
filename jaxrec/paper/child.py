"""Runs a command of this package as a process that does not outlive the one that started it.

python -m jaxrec.paper.child PID MODULE ARGUMENTS: PID is the starter's. A killed table command
must not leave trainings behind that nobody waits for; without Linux they end by themselves.
"""

import contextlib
import ctypes
import os
import runpy
import signal
import sys

_SET_SIGNAL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG


def main() -> None:
    parent, module, *arguments = sys.argv[1:]
    if sys.platform == 'linux':
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SET_SIGNAL_OF_PARENTS_DEATH, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before we asked
            sys.exit(1)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    main()
