"""Several processes that run one command together: how they find each other, stop and end.

The processes are found by JAX (Slurm, Open MPI, Kubernetes, TPU pods) or named by three flags. They
take the same steps, so whatever one of them decides alone (a clock, a signal, a file that is only
there) must be agreed upon before it changes what is computed, and an error of one ends all: each
process leaves with the same exit code, and one of them says why.

The exit codes are those of `cli`; AGAIN is also for another process that was lost: the same command
goes on from the last checkpoint.
"""

import collections
import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import re
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from jaxrec import cli
from jaxrec.devices.mesh import any_process
from jaxrec.errors import AGAIN, BUG, Stopped, UserError

_JOIN_SECONDS = 600  # pods of one job may start minutes apart
_HEARTBEAT_SECONDS = 60  # without a sign of life: a process is lost
_FINISH_SECONDS = 24 * 3600  # the first to finish waits for the last, which may be writing files
_ENDED = 'jaxrec/ended'  # where the processes tell each other their exit code
_TOLD = _ENDED + '/told'  # set once its process has said why
_LOST = re.compile(  # how the loss of another process shows in an exception
    '[Gg]loo|NCCL|[Cc]oordination|[Hh]eartbeat|[Bb]arrier|UNAVAILABLE|DEADLINE_EXCEEDED'
)
_leaving: list[int] = []  # the exit code, once this process has begun to leave
_FLAGS = ('coordinator', 'num_processes', 'process_id')


def define_flags() -> None:
    """Flags of a command that several processes can run together."""
    about = 'Of a run by several processes, where no cluster is detected: '
    flags.DEFINE_string('coordinator', None, about + 'HOST:PORT of process 0, a free port.')
    flags.DEFINE_integer('num_processes', None, about + 'how many; 1 ignores a detected cluster.')
    flags.DEFINE_integer('process_id', None, about + 'which one this is, from 0.')


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Runs a command's body together with the other processes, if there are any.

    Only process 0 speaks. An exception in one process ends all of them, with one exit code and
    one line.

    Raises:
      UserError: flags that do not go together, or the others cannot be reached.
    """
    known = [name for name in _FLAGS if name in flags.FLAGS]  # none if a program calls a command
    _start({name: flags.FLAGS[name].value if name in known else None for name in _FLAGS})
    if not together():
        yield
        return
    if jax.process_index():
        cli.be_silent()
    # What libraries write to standard output (Gloo does) is none of the command's.
    sys.stdout = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    _die_with_a_word()
    follower = threading.Thread(target=_follow, daemon=True)
    follower.start()
    try:
        yield
        jax.distributed.shutdown()  # waits for the others
    except BaseException as e:
        end_all(e)
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    follower.join()


class StopSignal:
    """Notes SIGTERM and SIGINT (preemption, Ctrl-C), for the loop to save and leave."""

    def __init__(self):
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number, frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


class Poll:
    """`poll(*flags)`, once a step: which flags are set in any process, the same answer in all.

    Between processes an answer is that of the call two steps ago, so that none has to wait; alone
    it is `flags`. `forget` drops the answers that are still to come.
    """

    _LAG = 2

    def __init__(self):
        self._alone, self._coming = jax.process_count() == 1, collections.deque()

    def __call__(self, *flags: bool) -> tuple[bool, ...]:
        if self._alone:
            return flags
        self._coming.append(any_process(flags))
        if len(self._coming) <= self._LAG:
            return (False,) * len(flags)
        return tuple(np.asarray(self._coming.popleft()).tolist())

    def forget(self) -> None:
        self._coming.clear()


def together() -> bool:
    """Whether several processes run this command, found without touching a device."""
    return _state().num_processes > 1


def check_same(what: dict[str, Any]) -> None:
    """Raises UserError, naming the entry, unless all processes have equal (JSON-able) values."""
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(json.dumps(value).encode()).digest()[:16] for value in what.values()]
    mine = np.frombuffer(b''.join(digests), np.uint8).reshape(len(what), -1)
    same = (multihost_utils.process_allgather(mine) == mine).all((0, 2))
    if not same.all():
        name = list(what)[int(np.argmin(same))]
        raise UserError(
            f'the processes of this run differ in {name}: give all of them the same flags and data'
        )


def check_shared(folder: pathlib.Path) -> None:
    """Raises UserError unless all processes see the same `folder`, which exists on process 0."""
    if jax.process_count() == 1:
        return
    path, token = folder / '.processes', np.frombuffer(secrets.token_bytes(16), np.uint8)
    if jax.process_index() == 0:
        path.write_bytes(token.tobytes())
    token = multihost_utils.broadcast_one_to_all(token).tobytes()
    until = time.monotonic() + 30  # network file systems may be late
    while not (path.exists() and path.read_bytes() == token):
        if time.monotonic() > until:
            raise UserError(
                f'{folder.absolute()} is not the same folder on all machines: --workdir must be on '
                'a file system that all of them share'
            )
        time.sleep(0.1)
    meet('shared')  # nobody goes on, and writes the next token, before all have seen this one


def meet(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def whole(tree: Any) -> Any:
    """Nested arrays as they are on the host, also where other processes hold parts of them.

    All must call it alike; an array that lies elsewhere is sent to all.
    """

    def everywhere(x):
        elsewhere = isinstance(x, jax.Array) and not (
            x.is_fully_addressable or x.is_fully_replicated
        )
        return multihost_utils.process_allgather(x, tiled=True) if elsewhere else x

    return jax.device_get(jax.tree.map(everywhere, tree))


def total(counts: Sequence[float]) -> list[float]:
    """Sums of float64 numbers over all processes."""
    mine = np.frombuffer(np.array(counts, np.float64).tobytes(), np.uint8)
    everyone = np.reshape(multihost_utils.process_allgather(mine), (-1, len(mine)))
    return everyone.view(np.float64).sum(0).tolist()


def agreed(number: int) -> int:
    """That of process 0, in all: of a clock, say."""
    return int(of_first(lambda: str(number)))


def of_first(look: Callable[[], str]) -> str:
    """What process 0 finds, the same in all: at most 500 bytes of it where there are others."""
    if jax.process_count() == 1:
        return look()
    found = look().encode()[:500] if jax.process_index() == 0 else b''
    padded = np.frombuffer(found.ljust(500, b'\0'), np.uint8)
    told = multihost_utils.broadcast_one_to_all(padded).tobytes()
    return told.rstrip(b'\0').decode(errors='replace')


def detected(environment: dict[str, str] | os._Environ = os.environ) -> str | None:
    """The cluster that started several processes of this command, None if it runs on its own."""
    if int(environment.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
        return 'Open MPI'
    if 'SLURM_STEP_NODELIST' in environment and int(environment.get('SLURM_NTASKS', 1)) > 1:
        return 'Slurm'
    if environment.get('TPU_ML_PLATFORM') == 'JAX':  # set by `import jax` where it finds a TPU
        return None if environment.get('JAX_PLATFORMS') == 'cpu' else 'TPU'
    if 'KUBERNETES_SERVICE_HOST' in environment and 'JOB_COMPLETION_INDEX' in environment:
        return 'Kubernetes'
    return None


def _start(given: dict[str, Any]) -> None:
    if given['num_processes'] == 1:
        return
    missing = [f'--{name}' for name, value in given.items() if value is None]
    if len(missing) not in (0, len(given)):
        raise UserError(
            f'--coordinator, --num_processes and --process_id go together; {missing[0]} is missing'
        )
    cluster = None if not missing else detected()
    if missing and cluster is None:
        return
    if not missing:
        if not re.fullmatch(r'.+:\d+', given['coordinator']):
            raise UserError(f'--coordinator={given["coordinator"]} is not HOST:PORT')
        if not 0 <= given['process_id'] < given['num_processes']:
            raise UserError(
                f'--process_id={given["process_id"]} is not one of the {given["num_processes"]} '
                'of --num_processes, counted from 0'
            )
        arguments = {'coordinator_address': given['coordinator'], **given}
        del arguments['coordinator']
        if detected() == 'Kubernetes':  # the flags are there to do without its API
            arguments['cluster_detection_method'] = 'deactivate'
    jax.config.update('jax_enable_preemption_service', False)  # `Poll` also knows Ctrl-C
    try:
        jax.distributed.initialize(
            **({} if missing else arguments),
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_FINISH_SECONDS,
        )
    except Exception as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        found = f'of {cluster}' if cluster else f'at {given["coordinator"]}'
        raise UserError(
            f'cannot join the other processes {found}: {reason}; --num_processes=1 runs alone'
            + (f', {" ".join(missing)} name them (see launch/README.md)' if cluster else '')
        ) from e


def _state():
    """What JAX knows of the other processes; it has no public name for it."""
    from jax._src import distributed

    return distributed.global_state


def _client():
    """JAX's connection to the process that coordinates."""
    return _state().client


def _follow() -> None:
    """Waits until one process ends in an error, then ends this one with the same exit code."""
    try:
        told = _client().blocking_key_value_get(_ENDED, 1000 * 365 * 24 * 3600)
    except Exception:  # the run is over, or process 0 is gone: the main thread notices itself
        return
    if jax.process_index() == 0:  # without process 0 the others are aborted, said or not
        with contextlib.suppress(Exception):
            _client().blocking_key_value_get(_TOLD, 5000)
    if not _leaving:
        _exit_as_told(told)


def end_all(error: BaseException) -> None:
    """Ends this process, and the others, because of `error`; from any thread."""
    place = f'process {jax.process_index()} of {jax.process_count()}'
    cause = error.__cause__ if isinstance(error, UserError) else error
    text, code = cli.verdict(error)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else BUG
    elif _LOST.search(str(cause)) and not (isinstance(error, OSError) and error.filename):
        text, code = _lost(str(cause).strip().splitlines()[0]), AGAIN
    kind = 'stopped' if isinstance(error, (KeyboardInterrupt, Stopped)) else 'error'
    line = ' '.join((text or f'{type(error).__name__}: {error}').split())
    if jax.process_index():
        time.sleep(0.3)  # where all have the same error process 0 tells it
    _leaving.append(code)
    try:
        _client().key_value_set(_ENDED, json.dumps({kind: f'{place}: {line}', 'exit': code}))
    except Exception as e:
        if 'ALREADY_EXISTS' in str(e):  # another process has told why
            _exit_as_told(_client().blocking_key_value_get(_ENDED, 1000))
    if text:
        cli.tell(f'{place}: {line}' if jax.process_index() else line, code, kind)
    elif not isinstance(error, SystemExit):
        print(f'{place}:', file=sys.stderr)
        traceback.print_exception(error)
        cli.emit({kind: line, 'exit': code})
    with contextlib.suppress(Exception):
        _client().key_value_set(_TOLD, '')
    time.sleep(1)  # for the others to read the code; with process 0 it is gone
    _exit(code)


def _lost(reason: str) -> str:
    return (
        f'another process of this run was lost ({reason[:200]}); the same command goes on from the '
        'last checkpoint'
    )


def _exit_as_told(told: str) -> None:
    """Leaves with the code of the process that ended first, which has said why."""
    end = json.loads(told)
    cli.emit(end)
    _exit(end['exit'])


def _exit(code: int) -> None:
    """Leaves at once: the usual way out would wait for the other processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _die_with_a_word() -> None:
    """Makes JAX's abort, when process 0 or its heartbeat is lost, an exit like all others.

    JAX aborts from a thread of its own; only a C handler gets to run then.
    """

    def aborted(number):
        if _leaving:  # it has been said why, and process 0 was faster
            os._exit(_leaving[0])
        text = _lost('see above') if _client() is not None else 'aborted'
        os.write(2, f'error: process {process}: {text}\n'.encode())
        os._exit(AGAIN)

    process = f'{jax.process_index()} of {jax.process_count()}'
    _die_with_a_word.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)  # kept alive
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    set_handler(signal.SIGABRT, ctypes.cast(_die_with_a_word.handler, ctypes.c_void_p))
