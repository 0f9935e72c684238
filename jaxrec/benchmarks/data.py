"""Suite data: training on a small log and on one of many events.

Both are generated, with the same catalogue and lengths of histories, so that a step does the same
work; what may differ is where its events lie. Speed is taken in short turns of one process that
trains on both; memory from the training command itself, validation included, in a process per log.
"""

import dataclasses
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np

from jaxrec import config
from jaxrec.benchmarks import measure
from jaxrec.benchmarks.training import Loop, opened
from jaxrec.cli import say
from jaxrec.data.histories import Histories
from jaxrec.datasets.store import COLUMNS
from jaxrec.devices.mesh import make_mesh
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment

CASES = ('2000000', '200000000')  # events
ITEMS = 100_000
_LENGTHS = (5, 36)  # events of a user, uniform, the second one excluded: 20 on average
_USERS_AT_ONCE = 1 << 18
_STEPS = 30  # of the training command


def measure_data(
    experiment: Experiment, cases: Sequence[str] | None, *, repeats: int, steps: int
) -> dict:
    """Targets per second and resident memory (VmHWM) on the two logs.

    Args:
      experiment: the config of the command, whose flags the training processes get too.
      cases: events of the small and of the large log, as text.
      repeats: turns, each of both.
      steps: of one turn; 0 takes 20.
    """
    cases = cases or CASES
    if len(cases) != 2 or not all(case.isdecimal() for case in cases):
        example = ','.join(CASES)
        raise UserError(f'suite data takes two numbers of events, such as --cases={example}')
    root = pathlib.Path(experiment.data.data_dir).expanduser() / 'benchmark'
    logs = [generated(root / f'events-{case}', int(case)) for case in cases]
    commands = [_command(log) for log in logs]  # before this process touches the device

    jax.set_mesh(make_mesh(experiment.mesh))
    loops = [_loop(experiment, log) for log in logs]
    turns = []
    for number in range(repeats):
        order = (0, 1) if number % 2 else (1, 0)
        small, large = (rates for _, rates in sorted((n, _rates(loops[n], steps)) for n in order))
        turns.append(
            {
                'ours': large[0],
                'peer': None,
                'small': small[0],
                'ratio': large[0] / small[0],
                'cpu_ratio': large[1] / small[1],
            }
        )
        say(f'{number + 1}/{repeats}  {large[0]:,.0f} targets/s, on the small log {small[0]:,.0f}')
    for loop in loops:
        loop.close()
    names = ('ours', 'small', 'ratio', 'cpu_ratio')
    middle = {name: statistics.median(turn[name] for turn in turns) for name in names}
    return {
        'unit': 'targets/s',
        **middle,
        'peer': None,
        'events': [int(case) for case in cases],
        'log_mib': [_mib(log) for log in logs],
        **{name: [command[name] for command in commands] for name in commands[0]},
        'turns': turns,
        'data_hash': None,  # generated
    }


def _rates(loop: Loop, steps: int) -> tuple[float, float]:
    """Targets per second of wall time, and of this process's CPU time: others do not disturb it."""
    start = time.process_time()
    done = loop.run(steps or 20)
    return done['targets'] / done['seconds'], done['targets'] / (time.process_time() - start)


def _loop(experiment: Experiment, log: pathlib.Path) -> Loop:
    experiment = dataclasses.replace(experiment, data=config.Data(log=str(log)))
    return Loop(experiment, opened(experiment))


def _mib(log: pathlib.Path) -> float:
    return sum(file.stat().st_size for file in log.rglob('*.npy')) / measure.MIB


def generated(folder: pathlib.Path, events: int, num_items: int = ITEMS) -> pathlib.Path:
    """A prepared data set of about so many events in `folder`; made if it is not there."""
    if (folder / COLUMNS / 'meta.json').exists():
        return folder
    say(f'generating {folder}')
    rng = np.random.default_rng(0)
    lengths = rng.integers(*_LENGTHS, max(round(events / np.mean(range(*_LENGTHS))), 1))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    with tempfile.TemporaryDirectory(dir=_made(folder)) as scratch:
        columns = {
            name: np.memmap(f'{scratch}/{name}', dtype, 'w+', shape=(int(offsets[-1]),))
            for name, dtype in (('items', np.int32), ('times', np.int64))
        }
        for first in range(0, len(lengths), _USERS_AT_ONCE):
            part = offsets[first : first + _USERS_AT_ONCE + 1]
            place, count = slice(part[0], part[-1]), int(part[-1] - part[0])
            columns['items'][place] = 1 + (num_items * rng.random(count) ** 2).astype(np.int32)
            columns['times'][place] = 1_500_000_000 + np.arange(count) % 100_000_000
        users, items = np.arange(1, len(offsets)), np.arange(1, num_items + 1)
        histories = Histories(
            columns['items'], offsets, users, items, columns['times'], name='events'
        )
        about = {'description': 'Generated by jaxrec.benchmark.', 'source': '', 'licence': ''}
        histories.save(folder / COLUMNS, about)
    return folder


def _made(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _command(log: pathlib.Path) -> dict:
    """Runs the training command for a few steps and a validation; its memory, time to step 1."""
    with tempfile.TemporaryDirectory() as scratch:
        flags = [arg for arg in sys.argv[1:] if arg.startswith('--config')]
        flags += [f'--config.data.log={log}', f'--workdir={scratch}/run']
        flags += [f'--config.train.steps={_STEPS}', '--config.train.log_every=1']
        said, metrics = (pathlib.Path(scratch, name) for name in ('said', 'run/metrics.jsonl'))
        with open(said, 'w') as out:
            process = subprocess.Popen(
                [sys.executable, '-m', 'jaxrec.train', *flags], stdout=out, stderr=subprocess.STDOUT
            )
            start, peak, ready = time.monotonic(), 0.0, None
            try:
                while process.poll() is None:
                    peak = max(peak, measure.resident(process.pid, 'VmHWM'))
                    if ready is None and metrics.exists() and metrics.stat().st_size:
                        ready = time.monotonic() - start
                    time.sleep(0.05)
            finally:
                process.kill()
                process.wait()
        if process.returncode:
            lines = said.read_text().strip().splitlines()
            raise UserError(f'training on {log} failed: {lines[-1] if lines else "no word"}')
    return {'vm_hwm_mib': peak, 'seconds_to_first_step': ready}
