"""Runs the cells of a table that are not finished, beside any other process doing the same.

A cell is taken under its lock; its seeds are trained and evaluated by the commands themselves, as
processes that die with this one. A killed cell goes on from its runs' checkpoints.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec import files
from jaxrec.cli import say
from jaxrec.errors import AGAIN, UserError
from jaxrec.experiment import metric
from jaxrec.paper import cells as cells_lib
from jaxrec.paper import hashes, locks
from jaxrec.paper.spec import Cell

_LOOK = 2.0  # seconds between looks at cells that others hold
_STOPPED = (AGAIN, 128 + signal.SIGTERM, 128 + signal.SIGINT)  # exit codes of commands


@dataclasses.dataclass
class Runner:
    """Settings of one call of the command.

    Attributes:
      folder: of the table; holds cells/, locks/ and runs/.
      seeds: of every cell.
      together: train the seeds of a cell in one program.
      accept: differences that leave a finished cell valid, see `cells.to_run`.
      patience: see `locks.claim`.
      others: folders of other tables; what they have of a cell's config is not run again.
    """

    folder: pathlib.Path
    seeds: Sequence[int]
    together: bool = False
    accept: Sequence[str] = ()
    patience: float = 120.0
    others: Sequence[pathlib.Path] = ()

    def __post_init__(self):
        self.stopping = threading.Event()
        self._children, self._guard = set(), threading.RLock()
        self._known = {}

    def run(self, cells: Sequence[Cell], processes: int = 1) -> dict[str, str]:
        """Returns when no cell is left to run, here or elsewhere.

        Returns:
          {cell's name: what went wrong} of those that failed.
        """
        failed = {}
        if processes == 1:
            self._work(list(cells), failed)
            return failed
        with concurrent.futures.ThreadPoolExecutor(processes) as pool:
            for one in [pool.submit(self._work, list(cells), failed) for _ in range(processes)]:
                one.result()
        return failed

    def stop(self) -> None:
        """Asks the running commands to save and leave, and starts no more."""
        self.stopping.set()
        with self._guard:
            for child in self._children:
                child.terminate()

    def _work(self, waiting: list[Cell], failed: dict[str, str]) -> None:
        told = set()
        while waiting and not self.stopping.is_set():
            before = len(waiting)
            for cell in list(waiting):
                if self.stopping.is_set():
                    return
                name = f'{cell.row} / {cell.column}'
                try:
                    finished = name in failed or not self._why(cell)[0]
                except UserError as e:  # its data cannot be had, or its file is damaged
                    self._fail(name, e, failed)
                    finished = True
                if finished:
                    waiting.remove(cell)
                    continue
                path = self.folder / 'locks' / cell.key
                lock = locks.claim(path, self.patience)
                if lock is None:
                    if name not in told:
                        say(f'{name}: being run by {locks.holder(path) or "another process"}')
                        told.add(name)
                    continue
                with lock:
                    self._take_over(cell)
                    seeds, why = self._why(cell)  # it may have been finished before we held it
                    try:
                        if seeds:
                            say(f'{name}: {why}')
                            self._run(cell, seeds, lock)
                    except UserError as e:
                        if lock.lost:
                            say(f'{name}: left to the process that took it over')
                            continue
                        if not self.stopping.is_set():
                            self._fail(name, e, failed)
                waiting.remove(cell)
            if len(waiting) == before:
                self.stopping.wait(_LOOK)

    def _fail(self, name: str, error: UserError, failed: dict[str, str]) -> None:
        with self._guard:
            if name not in failed:
                say(f'{name}: failed: {error}')
            failed[name] = str(error)

    def _why(self, cell: Cell) -> tuple[list[int], str]:
        record = cells_lib.read(self.folder, cell)
        return cells_lib.to_run(record, self._wanted(cell), self.seeds, self.accept, cell)

    def _take_over(self, cell: Cell) -> None:
        """Stores the seeds that are missing and that another row or table has."""
        now, folders = self._wanted(cell), [self.folder, *self.others]
        for path, record in cells_lib.same_runs(folders, now, self.accept, cell):
            missing, _ = self._why(cell)
            taken = {s: run for s, run in record['seeds'].items() if int(s) in missing}
            if taken:
                say(f'{cell.row} / {cell.column}: seeds {", ".join(taken)} are those of {path}')
                old = cells_lib.read(self.folder, cell) if len(missing) < len(self.seeds) else None
                record = cells_lib.merged(old, {**record, 'seeds': taken})
                cells_lib.write(self.folder, cell, record)

    def _wanted(self, cell: Cell) -> cells_lib.Wanted:
        with self._guard:
            if cell.key not in self._known:
                self._known[cell.key] = cells_lib.wanted(cell, say)
            return self._known[cell.key]

    def _run(self, cell: Cell, seeds: Sequence[int], lock: locks.Lock) -> None:
        now = self._wanted(cell)
        made_of = hashes.of_text(''.join(dataclasses.astuple(now)))[:12]  # other code: other runs
        folder = self.folder / 'runs' / cell.key / made_of
        folder.mkdir(parents=True, exist_ok=True)
        words = ['jaxrec.train', *_flags(cell.config, cell.overrides)]
        if self.together and len(seeds) > 1:
            place = folder / f'together_{"-".join(map(str, seeds))}'
            places = {seed: place / f'seed{seed}' for seed in seeds}
            if not all((p / 'trained.json').exists() for p in places.values()):
                flag = f'--seeds_in_parallel={",".join(map(str, seeds))}'
                code = hashes.code_hash(cell.experiment)
                summary = self._command([*words, f'--workdir={place}', flag], place, lock)
                for seed, place in places.items():
                    about = {**summary['runs'][f'seed{seed}'], 'code': code}
                    files.write_json(place / 'trained.json', about)
        else:
            places = {seed: folder / f'seed{seed}' for seed in seeds}
            for seed, place in places.items():
                if not (place / 'trained.json').exists():
                    flag = f'--config.train.seed={seed}'
                    code = hashes.code_hash(cell.experiment)
                    summary = self._command([*words, flag, f'--workdir={place}'], place, lock)
                    files.write_json(place / 'trained.json', {**summary, 'code': code})
        for place in places.values():
            self._evaluate(place, lock)
        record = cells_lib.assemble(cell, now, places, shlex.join(shown_command(cell)))
        old = cells_lib.read(self.folder, cell)
        kept = old if old and len(seeds) < len(self.seeds) else None  # the others' seeds stay
        cells_lib.write(self.folder, cell, cells_lib.merged(kept, record))
        best = record['seeds'][str(seeds[0])]['metrics']
        shown = metric(cell.experiment)
        say(f'{cell.row} / {cell.column}: done, {shown} {best[shown]:.4f} with seed {seeds[0]}')

    def _evaluate(self, place: pathlib.Path, lock: locks.Lock) -> None:
        if (place / 'evaluation.json').exists():
            return
        words = ['jaxrec.evaluate', f'--workdir={place}', f'--kept={place / "kept.npz"}']
        files.write_json(place / 'evaluation.json', self._command(words, place, lock))

    def _command(self, words: list[str], place: pathlib.Path, lock: locks.Lock) -> dict:
        """Runs `python -m WORDS --json`, and gives the JSON; its text goes to PLACE.log."""
        log = place.with_name(f'{place.name}.log')
        say(f'  {words[0]} {place}')
        with open(log, 'a') as file:
            starter = [sys.executable, '-m', 'jaxrec.paper.child', str(os.getpid())]
            child = subprocess.Popen(
                [*starter, *words, '--json'], stdout=subprocess.PIPE, stderr=file, text=True
            )
        with self._guard:
            self._children.add(child)
        try:
            if self.stopping.is_set():
                child.terminate()
            watch = threading.Thread(target=_end_if_lost, args=(child, lock), daemon=True)
            watch.start()
            output = child.stdout.read()
            child.wait()
        finally:
            with self._guard:
                self._children.discard(child)
            child.stdout.close()
        if child.returncode in _STOPPED:  # all are, where a scheduler ends a job
            self.stop()
        if child.returncode:
            last = (log.read_text(errors='replace').strip().splitlines() or ['no output'])[-1]
            raise UserError(f'{last.removeprefix("error: ")[:400]} (see {log})')
        return json.loads(output.strip().splitlines()[-1])


def shown_command(cell: Cell) -> list[str]:
    """The command that trains a cell, for people: without what does not matter."""
    known = cell.experiment
    told = {n: value for n, value in cell.overrides.items() if hashes.matters(n, known)}
    return ['python', '-m', 'jaxrec.train', *_flags(cell.shown, told)]


def _flags(config: str, overrides: Mapping[str, Any]) -> list[str]:
    given = [f'--config.{name}={value}' for name, value in overrides.items()]
    return [f'--config={config}', *given]


def _end_if_lost(child: subprocess.Popen, lock: locks.Lock) -> None:
    while child.poll() is None:
        if lock.lost:
            child.kill()
        time.sleep(1)
