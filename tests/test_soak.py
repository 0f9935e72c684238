"""Many clients of the service while it is killed, ended and given other checkpoints; by hand.

SOAK_SECONDS=600 python -m pytest -n 0 -s -m slow tests/test_soak.py    (a minute without it)

A third of the time before SIGTERM, a third before kill -9, a third after; starting is extra.
"""

import asyncio
import collections
import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.request

import numpy as np
import pytest
import runs

import jaxrec
from jaxrec.benchmarks import clients, measure, service
from jaxrec.errors import UserError
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
        self.stopped, self.ready, self.process = threading.Event(), threading.Event(), None
        self._thread = threading.Thread(target=self._supervise)
        self._thread.start()

    def _supervise(self):
        words = ('--renew_seconds=0.5', f'--patience={PATIENCE}', '--checkpoint=last')
        while not self.stopped.is_set():
            line = runs.line('serve', f'--workdir={self.run}', f'--port={self.port}', *words)
            self.process = subprocess.Popen(
                line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            with contextlib.suppress(UserError):
                _, self.port = service.listening(self.process)
                self.lives.append([])
                self.ready.set()
                self.said.append(self.process.stdout.read())  # until it ends
            self.process.wait()
            self.process.stdout.close()

    def step(self):
        """Of the model that answers now."""
        with urllib.request.urlopen(f'http://127.0.0.1:{self.port}/health', timeout=60) as told:
            return json.load(told)['step']

    def disturb(self, number):
        """Ends it, and waits until another one answers."""
        self.ready.clear()
        self.process.send_signal(number)
        assert self.ready.wait(900)

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


async def client(server, number, bodies, wanted, done, told):
    """Asks until it has its answer, whatever becomes of the connection; looks at every answer."""
    rng, connection = np.random.default_rng(number), None
    while not done.is_set():
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


async def slow(server, done, told):
    """Never sends all of its body: told so, and cut off."""
    while not done.is_set():
        with contextlib.suppress(ConnectionError, OSError):
            reader, writer = await asyncio.open_connection('127.0.0.1', server.port)
            writer.write(b'POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{')
            said = await reader.read(-1)
            told['cut off'] += said.startswith(b'HTTP/1.1 408')
        await asyncio.sleep(0.5)


def third(server, found, run, told):
    """A third of the time: one checkpoint after the other, each taken before the next one comes."""
    began, nth = time.monotonic(), 0
    while nth < 2 * len(found) or time.monotonic() - began < SECONDS / 3:
        step = list(found)[nth % len(found)]
        publish(found[step], run, step)
        due = time.monotonic() + 300
        while server.step() != step:
            assert time.monotonic() < due, f'step {step} is not taken'
            time.sleep(0.2)
        time.sleep(1)
        server.lives[-1].append(measure.resident(server.process.pid))
        nth += 1
    told['taken'] += nth


@pytest.mark.slow
def test_no_wrong_and_no_lost_answer(tmp_path):
    found, run = stages(tmp_path)
    _, bodies = service.questions(run)
    bodies = bodies[:100]
    wanted, told = wanted_of(found, bodies), collections.Counter(slowest=0.0)
    server, done = Service(run), threading.Event()
    try:
        assert server.ready.wait(900)

        async def all_of_them():
            asking = (client(server, n, bodies, wanted, done, told) for n in range(CLIENTS))
            await asyncio.gather(*asking, *(slow(server, done, told) for _ in range(2)))

        def asked():
            try:
                asyncio.run(all_of_them())
            except Exception as e:
                failed.append(e)

        clients_, failed = threading.Thread(target=asked), []
        clients_.start()
        try:
            third(server, found, run, told)
            server.disturb(signal.SIGTERM)
            third(server, found, run, told)
            server.disturb(signal.SIGKILL)
            third(server, found, run, told)
        finally:
            done.set()
            clients_.join(300)
    finally:
        server.end()
    print(dict(told), [[round(mib) for mib in life] for life in server.lives])
    assert not [text for text in server.said if 'Traceback' in text]
    assert not failed and not clients_.is_alive()
    assert told['wrong'] == 0 and told['answered'] > 10 * CLIENTS
    assert len(server.lives) == 3 and told['odd'] and told['cut off']
    assert sum(name.startswith('by step') for name in told) == 3
    for life in server.lives:  # each checkpoint before the last third of them and after
        assert max(life[-len(life) // 3 :]) < 1.1 * max(life[: 2 * len(life) // 3])
