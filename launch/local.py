r"""Runs one command as several processes of this machine, for trying out what a cluster does.

    python launch/local.py --processes=2 -- --config=experiments/quickstart.py --workdir=runs/two
    python launch/local.py --processes=2 --command=jaxrec.evaluate -- --workdir=runs/two

What follows -- goes to the command. Process i sees GPU i, if there are GPUs; to use all devices of
one machine no second process is needed: `python -m jaxrec.train` does. SIGTERM and Ctrl-C are
passed on. If one process dies the others are ended, and this one says how to go on; its exit code
is theirs (see jaxrec/devices/cluster.py): 75 asks for the same command again.
"""

import os
import signal
import socket
import subprocess
import sys
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer('processes', None, 'How many.', lower_bound=1, required=True)
flags.DEFINE_string('command', 'jaxrec.train', 'Module to run.')
flags.DEFINE_integer('port', 0, 'Of process 0, on the loopback; 0 takes a free one.')

AGAIN = 75  # as in jaxrec.devices.cluster, which would import jax
_PATIENCE = 10  # seconds that the others have to leave by themselves after the first


def main(argv: list[str]) -> None:
    """The launcher."""
    started = start(FLAGS.command, argv[1:], FLAGS.processes, FLAGS.port or free_port())

    def pass_on(number, frame):
        for process in started:
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    sys.exit(wait(started))


def start(command: str, words: list[str], count: int, port: int) -> list[subprocess.Popen]:
    """The processes, each in a group of its own so that Ctrl-C reaches them once, from here."""
    line = [sys.executable, '-m', command, *words]
    line += [f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}']
    return [
        subprocess.Popen(
            [*line, f'--process_id={i}'],
            env={'JAX_LOCAL_DEVICE_IDS': str(i), **os.environ},
            process_group=0,
        )
        for i in range(count)
    ]


def wait(started: list[subprocess.Popen]) -> int:
    """Waits until all have ended, by force if one failed; returns the exit code of the run."""
    failed, until = [], 0.0
    while None in [process.poll() for process in started]:
        if not failed:
            failed = [process for process in started if process.returncode]
            until = time.monotonic() + _PATIENCE
        elif time.monotonic() > until:
            for process in started:
                process.kill()
        time.sleep(0.05)
    failed = failed or [process for process in started if process.returncode]
    if not failed:
        return 0
    killed = next((process for process in failed if process.returncode < 0), None)
    if killed is None:
        return failed[0].returncode
    name = signal.Signals(-killed.returncode).name
    print(
        f'error: process {started.index(killed)} of {len(started)} was ended by {name}, and the '
        'others with it; the same command goes on from the last checkpoint',
        file=sys.stderr,
        flush=True,
    )
    return AGAIN


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


if __name__ == '__main__':
    app.run(main)
