"""Suite serve: the service under load, on this machine, clients and all."""

import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from jaxrec.benchmarks import clients, measure
from jaxrec.benchmarks.runs import served_run
from jaxrec.cli import say
from jaxrec.data.catalogue import Catalogue
from jaxrec.data.row_catalogue import RowCatalogue
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment
from jaxrec.serving.export import drawn_rows
from jaxrec.training import catalogue

CLIENTS = ('1', '16', '64')
_SECONDS = 3.0  # of a turn of each
K = 10
_QUESTIONS, _LENGTH, _CANDIDATES = 500, 20, 20  # events of a history on average; rows of a question


def measure_service(
    experiment: Experiment | None, workdir: str | None, cases: Sequence[str] | None, repeats: int
) -> dict:
    """Requests per second and how long an answer takes, by the number of clients.

    A request is one history of 20 events on average, for 10 items; of a ranker 20 rows. Every
    client has one connection and asks when it was answered.

    Args:
      experiment, workdir: see `served_run`.
      cases: numbers of clients.
      repeats: turns, in each of which every number of clients has its time.
    """
    cases = cases or CLIENTS
    if not all(case.isdecimal() and int(case) for case in cases):
        raise UserError(
            f'suite serve takes numbers of clients, such as --cases={",".join(CLIENTS)}'
        )
    with served_run(experiment, workdir) as folder, started(folder) as (address, process):
        path, bodies = questions(folder)
        clients.check(clients.load(address, path, bodies, 1, 1.0))
        turns = {case: [] for case in cases}
        for number in range(repeats):
            for case, measured in turns.items():
                answers = clients.load(address, path, bodies, int(case), _SECONDS)
                clients.check(answers)
                measured.append(_figures(answers))
                say(f'{number + 1}/{repeats}  {case} clients  {_line(measured[-1])}')
        memory = measure.resident(process.pid)
    rows = [{'case': case, **_medians(measured)} for case, measured in turns.items()]
    return {
        'unit': 'requests/s',
        'ours': rows[-1]['requests_per_second'],
        'peer': None,
        'ratio': None,
        'cases': rows,
        'seconds_of_a_turn': _SECONDS,
        'resident_mib': memory,
        'matmul_gflops': None,
        'data_hash': None,
    }


def start(folder: pathlib.Path, *words: str) -> subprocess.Popen:
    """The serving command of a run; see `listening`."""
    command = [sys.executable, '-u', '-m', 'jaxrec.serve', f'--workdir={folder}', *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@contextlib.contextmanager
def started(
    folder: pathlib.Path, *words: str
) -> Iterator[tuple[tuple[str, int], subprocess.Popen]]:
    """((host, port), process) of the serving command; it ends with the block.

    Raises:
      UserError: it ended before it was ready.
    """
    process = start(folder, '--port=0', *words)
    try:
        yield listening(process), process
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def listening(process: subprocess.Popen) -> tuple[str, int]:
    """(host, port) of a service that has been started, once it says that it answers."""
    line = ''
    for line in process.stdout:
        if ' answers at http://' in line:
            host, port = line.split('http://')[1].split()[0].rsplit(':', 1)
            return host, int(port)
    raise UserError(f'the service did not start: {line.strip() or "no word"}')


def questions(folder: pathlib.Path, seed: int = 0) -> tuple[str, list[bytes]]:
    """(path, bodies) of what is asked of a run, drawn."""
    rng, kept = np.random.default_rng(seed), folder / catalogue.FOLDER
    if json.loads((kept / 'meta.json').read_text()).get('kind') == RowCatalogue.KIND:
        known = RowCatalogue.load(kept)
        rows = [drawn_rows(known, _CANDIDATES, seed + n) for n in range(50)]
        return '/score', [json.dumps({'rows': some}).encode() for some in rows]
    known = Catalogue.load(kept)
    lengths = rng.geometric(1 / _LENGTH, _QUESTIONS)
    drawn = (rng.integers(1, known.num_items + 1, length) for length in lengths)
    asked = ({'histories': [[known.raw_item(n) for n in one]], 'k': K} for one in drawn)
    return '/recommend', [json.dumps(one).encode() for one in asked]


def _figures(answers):
    seconds = sum(one[0] for one in answers)
    return {
        'requests_per_second': len(answers) / _SECONDS,
        'milliseconds': clients.percentile(answers, 0.5),
        'p99_ms': clients.percentile(answers, 0.99),
        'mean_ms': seconds / len(answers) * 1e3,
    }


def _medians(measured):
    return {name: statistics.median(one[name] for one in measured) for name in measured[0]}


def _line(one):
    return (
        f'{one["requests_per_second"]:,.0f} requests/s  half within {one["milliseconds"]:.1f} ms, '
        f'99 % within {one["p99_ms"]:.1f} ms'
    )
