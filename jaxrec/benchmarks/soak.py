"""Suite soak: a service that is killed, reloaded and asked wrongly, for minutes; every answer read.

Of a copy of the run. Each new checkpoint has the parameters of the last training or their
negatives, by turns, so that it is known what every step must answer; the wanted lists are made by
`jaxrec.load` in this process.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxrec.benchmarks import clients, measure, service
from jaxrec.benchmarks.runs import served_run
from jaxrec.cli import say
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment
from jaxrec.serving.recommender import Recommender
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.restore import load_trained
from jaxrec.training.workdir import read_run

SECONDS = '600'
CLIENTS = 64
_KILLS = 5  # in the first half; the second half is one life, of which memory is told
_RENEWALS = 60  # new checkpoints in all
_PARTS = 10  # of the time, each told by itself
_WRONG_EVERY = 50  # questions of a client, of which one is wrong
_LOST = 60.0  # seconds after which a question counts as such
_PATIENCE = 2.0  # seconds that a slow client gets
_TOLERANCE = 1e-4  # of a score, by how many questions go to the device together
WRONG = {  # body: what it must be answered with
    b'{"histories": [[': 400,
    b'{"histories": [["no such item"]], "k": 10}': 422,
    b'{"histories": [[]], "k": 1000000}': 422,
    b'{"histories": 5}': 422,
    b'x' * (2 << 20): 413,
}


def measure_soak(
    experiment: Experiment | None, workdir: str | None, cases: Sequence[str] | None
) -> dict:
    """What 64 clients, some of them slow or wrong, were answered while the service was killed.

    A client whose connection closes asks the same again until it is answered. The cases are the
    tenths of the time; the last half is one life of the service, and `memory_growth` what it holds
    in the last tenth over what it held in the second of that half.

    Args:
      experiment, workdir: see `served_run`.
      cases: one number of seconds.

    Raises:
      UserError: the run gives no lists.
    """
    cases = cases or (SECONDS,)
    if len(cases) != 1 or not cases[0].isdecimal() or not int(cases[0]):
        raise UserError(f'suite soak takes a number of seconds, such as --cases={SECONDS}')
    seconds = int(cases[0])
    with served_run(experiment, workdir) as given, tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch, 'run')
        shutil.copytree(given, folder)
        path, bodies = service.questions(folder)
        if path != '/recommend':
            raise UserError('suite soak asks for lists: give the run of a model that makes them')
        trained = load_trained(folder)
        wanted = _wanted(trained, bodies)
        with _Kept(folder) as kept, concurrent.futures.ThreadPoolExecutor() as pool:
            kept.began = time.perf_counter()
            until = kept.began + seconds
            beside = [
                pool.submit(kept.killed, until, seconds),
                pool.submit(kept.watched, until),
                pool.submit(_renewed, trained, kept, until, seconds),
            ]
            told = asyncio.run(
                _asked(kept, bodies, lambda step: wanted[(step - trained.step) % 2], until)
            )
            for one in beside:
                one.result()
    counts = kept.counts + told
    counts = {name: counts[name] for name in _NAMES}
    cases = [_case(n, kept, seconds) for n in range(_PARTS)]
    return {
        'unit': 'right answers/s',
        'ours': counts['right'] / seconds,
        'peer': None,
        'ratio': None,
        **counts,
        'clients': CLIENTS,
        'seconds': seconds,
        'memory_growth': cases[-1]['resident_mib'] / cases[_PARTS // 2 + 1]['resident_mib'],
        'cases': cases,
        'matmul_gflops': None,
        'data_hash': None,
    }


_NAMES = (
    'asked',
    'right',
    'wrong',
    'lost',  # not answered in a minute
    'refused',  # wrong questions, told so
    'slow',  # clients that were cut off with a 408
    'asked_again',  # after a connection had closed
    'kills',
    'checkpoints',  # written
    'steps_seen',  # that answered somebody
)


class _Kept:
    """A service that is started anew whenever it was killed, at the same address."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.counts, self.steps, self.began = folder, Counter(), set(), 0.0
        self.memory, self.answers = [], []  # (when, MiB), (when, seconds)

    def __enter__(self):
        self._start(0)
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(60)
        self.process.stdout.close()

    def _start(self, port):
        words = [f'--port={port}', f'--patience={_PATIENCE}', '--renew_seconds=0.5']
        self.process = service.start(self.folder, *words)
        self.address = service.listening(self.process)
        threading.Thread(target=_drained, args=(self.process.stdout,), daemon=True).start()

    def killed(self, until: float, seconds: float) -> None:
        for left in range(_KILLS, 0, -1):
            _sleep(until - seconds / 2 * (1 + (left - 1) / _KILLS))
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(60)
            self.counts['kills'] += 1
            self._start(self.address[1])
            say(f'killed {self.counts["kills"]} times, and up again')

    def watched(self, until: float) -> None:
        while time.perf_counter() < until:
            self.memory.append((time.perf_counter(), measure.resident(self.process.pid)))
            time.sleep(0.2)


def _case(number: int, kept: _Kept, seconds: float) -> dict:
    """Of one tenth of the time."""

    def within(rows):
        at, values = np.array(rows, float).reshape(-1, 2).T
        return values[((at - kept.began) * _PARTS // seconds).astype(int) == number]

    took, memory = within(kept.answers) * 1e3, within(kept.memory)
    half, most = np.quantile(took, [0.5, 0.99]) if len(took) else (None, None)
    held = float(np.median(memory[memory > 0])) if (memory > 0).any() else None
    case = f'{number + 1}/{_PARTS}'
    return {
        'case': case,
        'right': len(took),
        'milliseconds': half,
        'p99_ms': most,
        'resident_mib': held,
    }


def _drained(lines) -> None:
    """Reads what the service says, so that it never waits for a reader."""
    with contextlib.suppress(ValueError):  # closed
        for _ in lines:
            pass


def _sleep(until: float) -> None:
    time.sleep(max(until - time.perf_counter(), 0))


def _variant(params: dict, number: int) -> dict:
    """The parameters of the number-th checkpoint: the run's, negated by turns."""
    return jax.tree.map(lambda x: -x, params) if number % 2 else params


def _renewed(trained, kept: _Kept, until: float, seconds: float) -> None:
    """Newer and newer checkpoints of the run."""
    saved, host = Checkpoints(kept.folder), {'run': read_run(kept.folder).get('id')}
    for number in range(1, _RENEWALS):
        _sleep(until - seconds * (1 - number / _RENEWALS))
        with jax.set_mesh(trained.mesh):
            saved.save_best(trained.step + number, _variant(trained.params, number), host)
        saved.wait()
        kept.counts['checkpoints'] += 1
    saved.close()


def _wanted(trained, bodies: Sequence[bytes]) -> list[list[list[dict]]]:
    """The lists of every question, of both variants."""
    asked = [json.loads(body) for body in bodies]
    histories = [one['histories'][0] for one in asked]
    variants = (_variant(trained.params, number) for number in (0, 1))
    models = (dataclasses.replace(trained, params=params) for params in variants)
    return [Recommender(model, k=service.K + 1).recommend(histories) for model in models]


def right(answer: dict, wanted: Sequence[dict], k: int) -> bool:
    """Whether a list is the wanted one, which may have an item more; near-equal scores may change
    places."""
    found = answer['lists'][0]
    have, want = (np.array([row['score'] for row in rows]) for rows in (found, wanted))
    close = _TOLERANCE * np.abs(want).max(initial=1.0)
    same = len(have) == min(k, len(want)) and np.allclose(have, want[: len(have)], 0, close)
    places = {row['item']: n for n, row in enumerate(wanted)}
    return same and all(
        row['item'] in places and abs(want[places[row['item']]] - want[n]) <= close
        for n, row in enumerate(found)
    )


async def _asked(
    kept: _Kept, bodies: Sequence[bytes], wanted: Callable[[int], list], until: float
) -> Counter:
    """What all clients saw; `wanted` gives the lists of a step."""
    asking = (_client(kept, bodies, wanted, until, seed) for seed in range(CLIENTS))
    found = await asyncio.gather(*asking, _slow(kept, until))
    told = sum(found, Counter())
    told['steps_seen'] = len(kept.steps)
    return told


async def _client(kept: _Kept, bodies, wanted, until: float, seed: int) -> Counter:
    counts, rng, wrong = Counter(), np.random.default_rng(seed), list(WRONG)
    connection = None
    while time.perf_counter() < until:
        number, status = int(rng.integers(len(bodies))), 200
        body = bodies[number]
        if not rng.integers(_WRONG_EVERY):
            body = wrong[rng.integers(len(wrong))]
            status = WRONG[body]
        counts['asked'], asked = counts['asked'] + 1, time.perf_counter()
        told = None
        try:
            async with asyncio.timeout(_LOST):
                while told is None:
                    try:
                        connection = connection or await asyncio.open_connection(*kept.address)
                        told, found = await clients.exchange(*connection, '/recommend', body)
                    except ConnectionError:
                        counts['asked_again'] += 1
                        connection = _closed(connection)
                        await asyncio.sleep(0.1)
        except TimeoutError:
            counts['lost'] += 1
            connection = _closed(connection)
            continue
        if status != 200 or told != 200:
            counts['refused' if told == status else 'wrong'] += 1
            if told == 413:  # the service closes after it
                connection = _closed(connection)
            continue
        answer = json.loads(found)
        kept.steps.add(answer['step'])
        fits = right(answer, wanted(answer['step'])[number], service.K)
        counts['right' if fits else 'wrong'] += 1
        if fits:
            kept.answers.append((asked, time.perf_counter() - asked))
    _closed(connection)
    return counts


def _closed(connection) -> None:
    if connection:
        connection[1].close()


async def _slow(kept: _Kept, until: float) -> Counter:
    """A client of which half a body comes."""
    counts = Counter()
    while time.perf_counter() < until - 2 * _PATIENCE:
        try:
            reader, writer = await asyncio.open_connection(*kept.address)
            writer.write(b'POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"h')
            line = await asyncio.wait_for(reader.readline(), 10 * _PATIENCE)
            counts['slow'] += b' 408 ' in line
            writer.close()
        except ConnectionError:
            await asyncio.sleep(0.1)
    return counts
