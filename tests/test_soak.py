"""Many clients of the service while it is killed, ended and given other checkpoints; by hand.

SOAK_SECONDS=600 python -m pytest -n 0 -s -m slow tests/test_soak.py    (a minute without it)
"""

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import runs

import jaxrec
from jaxrec.benchmarks import clients, measure, service
from jaxrec.training.loop import fit

pytest.importorskip('jaxrec.serving.http', reason="needs '.[serve]'")
SECONDS = float(os.environ.get('SOAK_SECONDS', 60))
CLIENTS, PATIENCE, CLOSE = 64, 2.0, 1e-4
ODD = {  # what should come of it
    b'{"histories": [[': 400,
    b'{"histories": [["nobody knows me"]]}': 422,
    b'{"histories": [[1]], "k": 1000000000}': 422,
    b'{"histories": [[' + b'1,' * 600_000 + b'1]]}': 413,
    b'{"rows": []}': 422,
}


def stages(folder):
    """Folders of one run at three steps, {step: folder}."""
    found, run = {}, folder / 'run'
    for epochs in (1, 2, 3):
        fit(runs.small(folder, **{'train.epochs': epochs, 'train.eval_every': 1.0}), run)
        copy = folder / f'stage{epochs}'
        shutil.copytree(run, copy)
        found[jaxrec.load(copy, 'last').trained.step] = copy
    return found, run


def wanted_of(found, bodies):
    """{step: [list of every body]}, by the library; with the service's shapes, kept compiled."""
    asked, lists = [json.loads(body)['histories'][0] for body in bodies], {}
    for step, folder in found.items():
        recommender = jaxrec.load(folder, 'last', k=100, batch_users=64)
        lists[step] = recommender.recommend(asked, k=10)
    return lists


def publish(stage, run, step):
    """Makes the stage's checkpoint the newest of the served run, whole at every moment."""
    series = run / 'checkpoints' / 'last'
    fresh = series.with_name('fresh')
    shutil.copytree(stage / 'checkpoints' / 'last' / str(step), fresh)
    for old in series.iterdir():
        if old.name == str(step):
            shutil.rmtree(old)
    fresh.rename(series / str(step))
    for old in series.iterdir():
        if old.name != str(step):
            shutil.rmtree(old)


class Service:
    """Its process, started again whenever it has ended; memory by life."""

    def __init__(self, run):
        self.run, self.port, self.lives, self.said = run, 0, [], []
        self.stopped = threading.Event()
        self.ready, self.process = threading.Event(), None
        self._thread = threading.Thread(target=self._supervise)
        self._thread.start()

    def _supervise(self):
        words = ('--renew_seconds=0.5', f'--patience={PATIENCE}', '--checkpoint=last')
        while not self.stopped.is_set():
            line = runs.line('serve', f'--workdir={self.run}', f'--port={self.port}', *words)
            self.process = subprocess.Popen(
                line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            with contextlib.suppress(Exception):
                _, self.port = service.listening(self.process)
                self.lives.append([])
                self.ready.set()
                self.said.append(self.process.stdout.read())  # until it ends
            self.process.wait()
            self.process.stdout.close()

    def remember(self):
        if self.lives and self.process.poll() is None:
            self.lives[-1].append((time.monotonic(), measure.resident(self.process.pid)))

    def end(self):
        self.stopped.set()
        self.process.terminate()
        self._thread.join(120)


def fits(rows, wanted):
    """Whether lists are the same, up to the order of what differs by a rounding."""
    scores, should = ([row['score'] for row in some] for some in (rows, wanted))
    if len(rows) != len(wanted) or not np.allclose(scores, should, atol=CLOSE):
        return False
    by_item = {row['item']: row['score'] for row in wanted}
    return all(abs(by_item.get(r['item'], should[-1]) - r['score']) < CLOSE for r in rows)


async def client(server, number, bodies, wanted, until, told):
    """Asks until it has its answer, whatever becomes of the connection; looks at every answer."""
    rng, connection = np.random.default_rng(number), None
    while time.monotonic() < until:
        at, odd = int(rng.integers(len(bodies))), rng.random() < 0.02
        body = list(ODD)[rng.integers(len(ODD))] if odd else bodies[at]
        asked = time.monotonic()
        while True:
            try:
                if connection is None:
                    connection = await asyncio.open_connection('127.0.0.1', server.port)
                if rng.random() < 0.005:  # gone in the middle of a question
                    connection[1].write(b'POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Le')
                    connection[1].close()
                    raise ConnectionError
                status, found = await clients.exchange(*connection, '/recommend', body)
            except (ConnectionError, OSError):
                told['asked again'] += 1
                connection = None
                await asyncio.sleep(0.05)
                continue
            if status == 503:
                told['full'] += 1
                await asyncio.sleep(0.05)
                continue
            break
        told['slowest'] = max(told['slowest'], time.monotonic() - asked)
        if odd:
            told['odd'] += 1
            told['wrong'] += status != ODD[body]
            if status == 413:
                connection = None
            continue
        answer = json.loads(found)
        right = status == 200 and fits(answer['lists'][0], wanted[answer['step']][at])
        told['answered'] += 1
        told[f'by step {answer.get("step")}'] += 1
        told['wrong'] += not right
        await asyncio.sleep(rng.exponential(0.02))


async def slow(server, until, told):
    """Never sends all of its body: told so, and cut off."""
    while time.monotonic() < until:
        with contextlib.suppress(ConnectionError, OSError):
            reader, writer = await asyncio.open_connection('127.0.0.1', server.port)
            writer.write(b'POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{')
            said = await reader.read(-1)
            told['cut off'] += said.startswith(b'HTTP/1.1 408')
        await asyncio.sleep(0.5)


@pytest.mark.slow
def test_no_wrong_and_no_lost_answer(tmp_path):
    found, run = stages(tmp_path)
    _, bodies = service.questions(run)
    bodies = bodies[:100]
    wanted, told = wanted_of(found, bodies), collections.Counter(slowest=0.0)
    server = Service(run)
    try:
        assert server.ready.wait(300)
        until = time.monotonic() + SECONDS

        def disturb():
            """A checkpoint every 3 s; SIGTERM after a third of the time, kill -9 after two."""
            steps, ends = list(found), [SECONDS / 3, 2 * SECONDS / 3]
            began, nth = time.monotonic(), 0
            while time.monotonic() < until:
                publish(found[steps[nth % 3]], run, steps[nth % 3])
                nth += 1
                for _ in range(6):
                    server.remember()
                    time.sleep(0.5)
                if ends and time.monotonic() - began > ends[0]:
                    ends.pop(0)
                    server.process.send_signal(signal.SIGTERM if ends else signal.SIGKILL)
                    told['ended' if ends else 'killed'] += 1
            told['published'] = nth

        async def all_of_them():
            asking = (client(server, n, bodies, wanted, until, told) for n in range(CLIENTS))
            await asyncio.gather(*asking, *(slow(server, until, told) for _ in range(2)))

        disturbing = threading.Thread(target=disturb)
        disturbing.start()
        asyncio.run(all_of_them())
        disturbing.join()
    finally:
        server.end()
    lives = [[mib for _, mib in life] for life in server.lives if len(life) > 20]
    print(dict(told), [(len(life), round(life[5]), round(life[-1])) for life in lives])
    assert not [text for text in server.said if 'Traceback' in text]
    assert told['wrong'] == 0 and told['answered'] > 10 * CLIENTS
    assert told['ended'] == told['killed'] == 1 and len(server.lives) >= 3
    assert sum(name.startswith('by step') for name in told) == 3 and told['cut off']
    for life in lives:  # after the first checkpoints, of which each has its own two copies at most
        half = len(life) // 2
        assert np.median(life[half:]) < 1.1 * np.median(life[5:half])
    pathlib.Path(tmp_path, 'told.json').write_text(json.dumps(told))
