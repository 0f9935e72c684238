"""Suite bulk: lists for every user of a small and of a large log; the command's own memory.

Both logs are generated, with one catalogue and the same lengths of histories. The command runs as
it does for people, `recommend --users=all`, a process for each log: what it holds must not grow
with the number of users.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from jaxrec.benchmarks import measure
from jaxrec.benchmarks.data import generated
from jaxrec.cli import say
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment

CASES = ('2500000', '10000000')  # users
ITEMS = 10_000
EVENTS = 20  # of a user on average
_PART = 100_000


def measure_bulk(experiment: Experiment, cases: Sequence[str] | None) -> dict:
    """Users per second from start to end of the command, and the most memory it held.

    Args:
      experiment: of the model, which learns one step.
      cases: users of the small and of the large log, as text.
    """
    cases = cases or CASES
    if len(cases) != 2 or not all(case.isdecimal() and int(case) for case in cases):
        raise UserError(f'suite bulk takes two numbers of users, such as --cases={",".join(CASES)}')
    root = pathlib.Path(experiment.data.data_dir).expanduser() / 'benchmark'
    rows = []
    for case in cases:
        log = generated(root / f'users-{case}', int(case) * EVENTS, ITEMS)
        with _run(experiment, log) as folder:
            rows.append({'case': case, **_command(folder)})
        say(
            f'{case} users: {rows[-1]["users_per_second"]:,.0f} users/s, '
            f'{rows[-1]["peak_memory_mib"]:,.0f} MiB at most'
        )
    small, large = rows
    return {
        'unit': 'users/s',
        'ours': large['users_per_second'],
        'peer': None,
        'ratio': None,
        'cases': rows,
        'memory_growth': large['anonymous_mib'] / small['anonymous_mib'],
        'matmul_gflops': None,
        'data_hash': None,
    }


@contextlib.contextmanager
def _run(experiment: Experiment, log: pathlib.Path) -> Iterator[pathlib.Path]:
    """A model that has learnt a step of a log, in a process of its own; validated on few users."""
    with tempfile.TemporaryDirectory(prefix='jaxrec-run-') as folder:
        flags = [arg for arg in sys.argv[1:] if arg.startswith('--config')]
        flags += [f'--config.data.log={log}', f'--workdir={folder}/run']
        flags += ['--config.train.steps=1', '--config.task.valid_users=1000']
        _finished([sys.executable, '-m', 'jaxrec.train', *flags])
        yield pathlib.Path(folder, 'run')


def _command(folder: pathlib.Path) -> dict:
    """Lists for all users of the run's data."""
    output = folder / 'lists.parquet'
    words = [sys.executable, '-m', 'jaxrec.recommend', f'--workdir={folder}', '--users=all']
    words += [f'--output={output}', f'--part_users={_PART}', '--json']
    started = time.perf_counter()
    told, peaks = _finished(words)
    seconds, users = time.perf_counter() - started, json.loads(told.splitlines()[-1])['users']
    return {
        'users': users,
        'seconds': seconds,
        'users_per_second': users / seconds,
        'milliseconds': seconds / users * 1e3,
        **peaks,
        'output_mib': output.stat().st_size / measure.MIB,
    }


def _finished(words: Sequence[str]) -> tuple[str, dict]:
    """Standard output of a command, and the most memory it held, looked at ten times a second.

    Anonymous memory is what it has made; the whole has also those pages of mapped files that the
    kernel keeps for as long as nobody else needs the room.
    """
    peaks = dict.fromkeys(('anonymous_mib', 'peak_memory_mib'), 0.0)
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
        process = subprocess.Popen(words, stdout=out, stderr=err, text=True)
        try:
            while process.poll() is None:
                for name, which in zip(peaks, ('RssAnon', 'VmHWM'), strict=True):
                    peaks[name] = max(peaks[name], measure.resident(process.pid, which))
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        err.seek(0)
        if process.returncode:
            lines = err.read().strip().splitlines()
            raise UserError(f'{words[2]} failed: {lines[-1] if lines else "no word"}')
        return out.read(), peaks
