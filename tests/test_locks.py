"""Locks between processes: one holder, a dead one is followed at once, a silent one in time."""

import json
import os
import subprocess
import sys
import time

import pytest

from jaxrec.paper import locks

HOLD = """
import pathlib, sys, time
from jaxrec.paper import locks
lock = locks.claim(pathlib.Path(sys.argv[1]), 60)
print('held' if lock else 'refused', flush=True)
time.sleep(100)
"""


def hold(path):
    """A process that has tried to take the lock; 'held' or 'refused'."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def end(process):
    process.kill()
    process.stdout.close()
    process.wait()


def test_one_holder_and_a_killed_one_is_followed_at_once(tmp_path):
    path = tmp_path / 'locks' / 'cell.1'  # a name that ends like a number
    process, said = hold(path)
    assert said == 'held'
    assert locks.claim(path) is None
    assert f'process {process.pid}' in locks.holder(path)
    end(process)
    started = time.monotonic()
    with locks.claim(path) as lock:
        assert time.monotonic() - started < 5
        assert not lock.lost
        assert locks.claim(path) is None  # nor a second time in this process
    assert locks.holder(path) == ''
    assert not list(path.parent.iterdir())  # nothing is left behind


def test_a_holder_elsewhere_is_dead_when_it_is_silent(tmp_path):
    path = tmp_path / 'cell'
    elsewhere = tmp_path / 'cell.0'
    elsewhere.write_text(json.dumps({'host': 'far', 'boot': 'x', 'processes': 'y', 'pid': 1}))
    assert locks.claim(path, patience=30) is None
    then = time.time() - 31
    os.utime(elsewhere, (then, then))
    lock = locks.claim(path, patience=30)
    assert lock is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ['cell.0', 'cell.1']
    with lock:
        pass
    assert not list(tmp_path.iterdir())


def test_a_process_of_the_same_number_is_not_the_holder(tmp_path):
    about = {**locks._here(), 'pid': os.getpid(), 'since': 'another time'}
    if not about['processes']:
        pytest.skip('no /proc here: only silence tells')
    (tmp_path / 'cell.0').write_text(json.dumps(about))
    with locks.claim(tmp_path / 'cell') as lock:
        assert lock is not None


def test_a_holder_that_was_taken_for_dead_notices(tmp_path):
    lock = locks.claim(tmp_path / 'cell', patience=0.6)
    (tmp_path / 'cell.1').write_text('{}')  # someone else's, newer
    deadline = time.monotonic() + 10
    while not lock.lost and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lock.lost
    with lock:
        pass
    assert (tmp_path / 'cell.1').exists()  # it does not touch what is another's


def test_a_holder_touches_its_file(tmp_path):
    with locks.claim(tmp_path / 'cell', patience=0.6):
        (file,) = tmp_path.iterdir()
        then = time.time() - 1000
        os.utime(file, (then, then))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime < then + 500 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert file.stat().st_mtime > then + 500


def test_of_many_at_once_one_holds(tmp_path):
    path = tmp_path / 'cell'
    (tmp_path / 'cell.0').write_text('{"host": "far", "pid": 1}')
    os.utime(tmp_path / 'cell.0', (0, 0))  # dead long ago: all of them want to follow it
    started = [
        subprocess.Popen([sys.executable, '-c', HOLD, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.stdout.readline().strip() for process in started]
    for process in started:
        end(process)
    assert said.count('held') <= 1 and set(said) <= {'held', 'refused'}
    with locks.claim(path) as lock:  # where two stood in each other's way, the next one gets it
        assert lock is not None
