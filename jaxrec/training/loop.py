"""The training loop: of one run on a mesh, or of several in one program; of one period, or many.

For every period of a problem: predict what comes `before` it, then learn its batches, validating on
the way. Everything that a killed run needs to go on bit for bit is in the last checkpoint.

    FOLDER/                          one run: config.json, run.json, metrics.jsonl, checkpoints/
    FOLDER/predicted/                of a stream, what each period was predicted (`predicted`)
    FOLDER/NAME/                     each of several runs, with its best checkpoint
    FOLDER/.together/checkpoints/    the stacked train state of these
"""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrec import experiment as experiment_lib
from jaxrec import files
from jaxrec.cli import say
from jaxrec.config import Mesh
from jaxrec.devices import cluster
from jaxrec.devices.mesh import batch_part, make_mesh
from jaxrec.errors import UserError
from jaxrec.evaluation.plots import plot_curves
from jaxrec.evaluation.run import Pass
from jaxrec.experiment import Experiment
from jaxrec.problem import Batches
from jaxrec.training import predicted, summary, warm_start, workdir
from jaxrec.training.checkpoint import Checkpoints, check_begun, clear_unfinished
from jaxrec.training.logs import LOG, Logs, read_series
from jaxrec.training.parallel_runs import Runs, devices_of
from jaxrec.training.places import Patience, Place, Progress, Watch
from jaxrec.training.state import Program

_STACKED = '.together'  # folder of the state of several runs


def fit(
    experiment: Experiment,
    folder: pathlib.Path,
    *,
    stop: Callable[[], bool] = lambda: False,
    ready: Callable[[], None] = lambda: None,
) -> dict:
    """Trains until the experiment's end, early stopping, or until `stop` says so.

    Args:
      experiment: what to train.
      folder: work directory; a run there is continued bit for bit.
      stop: asked once a step; True = save and leave.
      ready: called when the data have been read.

    Returns:
      A summary: why and at which step it stopped, the best validation, and of a problem in periods
      how well each was predicted.

    Raises:
      UserError: anything the user can put right, a non-finite loss among them.
    """
    experiment_lib.check(experiment)
    with jax.set_mesh(make_mesh(experiment.mesh)):
        return _fit({'': experiment}, folder, folder, stop, ready)['']


def fit_together(
    experiments: Mapping[str, Experiment],
    folder: pathlib.Path,
    *,
    stop: Callable[[], bool] = lambda: False,
    ready: Callable[[], None] = lambda: None,
) -> dict[str, dict]:
    """Trains several runs in one program (`parallel_runs`), each as `fit` does.

    Every run validates, keeps its best checkpoint and stops early on its own; those that have
    stopped are stepped along, unseen, until the last one stops.

    Args:
      experiments: by the name of the run's folder; they differ in the seed and in traced fields.
      folder: holds the runs' folders.
      stop, ready: see `fit`.

    Returns:
      {name: summary}.
    """
    for experiment in experiments.values():
        experiment_lib.check(experiment)
    devices_of(len(experiments))  # complains before anything is read
    with jax.set_mesh(make_mesh(Mesh())):
        return _fit(experiments, folder, folder / _STACKED, stop, ready)


def _fit(experiments, folder, state_folder, stop, ready) -> dict[str, dict]:
    """`fit` of runs that lie in `folder` by their names, their state in `state_folder`."""
    together, process = state_folder != folder, (0, 1)
    if not together:
        _check_rows(next(iter(experiments.values())))
        process = batch_part()
    by_seed = {e.train.seed: e for e in experiments.values()}  # all that a problem may differ in
    if len(by_seed) > 1 and not all(e.task.one_split() for e in by_seed.values()):
        raise UserError(
            'runs of which each holds out examples by its own seed (task.split_seed=-1) do not '
            'train in one program: leave out --seeds_in_parallel'
        )
    opened = {seed: e.task.open(e, say, process) for seed, e in by_seed.items()}
    problems = [opened[e.train.seed] for e in experiments.values()]
    if together and len(problems[0].periods) > 1:
        raise UserError('several runs in one program learn one period, not many one by one')
    with contextlib.ExitStack() as closing:
        for experiment, problem in zip(experiments.values(), problems, strict=True):
            workdir.check_processes(experiment, problem)
        closing.enter_context(workdir.claimed(folder))
        if together:
            workdir.claim_runs(state_folder, list(experiments))
        for place in {state_folder, *(folder / name for name in experiments)}:
            if jax.process_index() == 0:
                clear_unfinished(place)
        for (name, experiment), problem in zip(experiments.items(), problems, strict=True):
            (folder / name).mkdir(exist_ok=True)
            workdir.compare(folder / name, experiment, problem)
        checkpoints = closing.enter_context(contextlib.closing(Checkpoints(state_folder)))
        run = _Run(experiments, problems, folder, checkpoints, closing)
        ready()
        run.learn(stop)
    for name in experiments:
        if jax.process_index() == 0:
            picture = folder / name / 'curves.png'
            why_not = plot_curves(picture, read_series(folder / name / LOG), run.metric)
            say(f'no curves.png: {why_not}' if why_not else f'training curves: {picture}')
    return run.summaries()


class _Run:
    """The loop's state besides the train state; `learn` is the loop."""

    def __init__(self, experiments, problems, folder, checkpoints, closing):
        self.experiment, self.problem = next(iter(experiments.values())), problems[0]
        self._settings, self._problems = self.experiment.train, problems
        self.metric = experiment_lib.metric(self.experiment)
        self._higher = self.experiment.task.metrics()[self.metric].higher
        self._checkpoints, names = checkpoints, list(experiments)
        self._host = {'period': 0, 'since': 0, 'predicted': 0, 'before': []}
        self._ids = [
            workdir.run_id(folder / name, experiment, problem)
            for (name, experiment), problem in zip(experiments.items(), problems, strict=True)
        ]
        last = checkpoints.last_step()
        first = self._period(0)
        first_batches = first[0].batches
        horizon = self._settings.epochs * (first_batches.steps_per_epoch if first_batches else 1)
        make = Runs if names != [''] else Program
        given = list(experiments.values()) if make is Runs else self.experiment
        self.program = make(given, self.problem, horizon)
        self.step, progress, started = 0, [Progress() for _ in names], None
        if last is None:
            for name in names:
                check_begun(folder / name)
            self.state, started = self._first_state()
        else:
            self.state, host = checkpoints.restore_last(self.program.abstract())
            self.step, progress = checkpoints.last_step(), self._taken_up(host, folder)
            checkpoints.put_aside()
            say(f'going on from step {self.step}')
        begun = int(np.ravel(cluster.whole(self.state['step']))[0]) - self.step
        self.program.start(begun)
        self.places = []
        for (name, experiment), one, problem in zip(
            experiments.items(), progress, problems, strict=True
        ):
            place = folder / name
            workdir.record(place, experiment, problem, self.step, started)
            active, predicted = jax.process_index() == 0, self._host['predicted']
            logs = Logs(place, self.step, active, predicted)
            closing.enter_context(contextlib.closing(logs))
            best = checkpoints
            if make is Runs:
                best = closing.enter_context(contextlib.closing(Checkpoints(place)))
            self.places.append(Place(name, place, logs, best, one))
        if last is None:
            self._save()
        else:
            self._mend_best()
        self._pass = Pass(self.program.graphdef, self.problem, self.program.constants)
        self._first, valid = first, self.problem.evaluations.get('valid')
        self._valid = valid() if valid and len(self.problem.periods) == 1 else None
        patience, floor = self._settings.patience, None
        if self._valid is not None and patience:
            floor = self._valid.floor(self.metric)
        self._patience = Patience(patience, floor, self._higher)
        self._poll, self._stopping = cluster.Poll(), False
        self._unsaved, self._saved_at = False, time.monotonic()

    def learn(self, stop: Callable[[], bool]) -> None:
        """Period after period, from where the last checkpoint was."""
        for note in self.problem.notes:
            self.places[0].logs.line(note)
        while self._host['period'] < len(self.problem.periods) and not self._ended():
            number = self._host['period']
            periods = self._first if number == 0 else self._period(number)
            if self._host['predicted'] <= number:
                self._predict(number, periods[0].before)
            if periods[0].batches is not None:
                self._learn_period([period.batches for period in periods], stop, periods[0].saved)
                if self.step < self._stop_at or not self._validated():
                    break  # to go on from here another time
            self._host |= {'period': number + 1, 'since': self.step}
        if self._unsaved:
            self._save()
        if self._valid is None:  # the newest parameters are the ones to serve
            for place, params in self._runs():
                self._save_best(place, params)
        for name, found in self.summaries().items():
            say(summary.text(name, found, len(self.problem.periods)))

    def _learn_period(
        self, batches: Sequence[Batches], stop: Callable[[], bool], saved: bool
    ) -> None:
        """All epochs of a period, at whose end it is `saved`; leaves early when it is to stop."""
        settings, since = self._settings, self._host['since']
        self._batches, alone = batches[0], len(self.problem.periods) == 1
        self._stop_at = since + settings.epochs * self._batches.steps_per_epoch
        if settings.steps:
            self._stop_at = settings.steps if alone else min(self._stop_at, settings.steps)
        every = round(settings.eval_every * self._batches.steps_per_epoch)
        self._every = max(every, settings.eval_steps, 1)
        self.places[0].logs.line(self._about())
        if self._due() and not self._validated():
            self._validate()  # a signal, or a kill, came before this validation
        if self.step >= self._stop_at or self._ended():
            return
        watch = Watch(
            self.places,
            self._batches,
            since,
            self.step,
            self._stop_at,
            self._patience,
            self._diverged,
        )

        def late():
            age = time.monotonic() - self._saved_at
            return settings.save_every > 0 and age > 60 * settings.save_every

        feed = prefetch(lambda step: [one(step) for one in batches], self.step - since)
        with contextlib.closing(feed):
            for state, metrics in steps(self.program, self.state, feed):
                self.state, self.step, self._unsaved = state, self.step + 1, True
                watch.add(self.step, metrics)
                self._stopping, is_late = self._poll(stop(), late())
                ends = self.step >= self._stop_at
                save = self._due() or is_late or self._stopping or (ends and saved)
                if save or ends or self.step % settings.log_every == 0:
                    watch.read()  # waits for the device; raises if a loss was not finite
                if self._due() and not self._stopping:
                    self._validate()
                if save:
                    self._save()
                    self._poll.forget()
                    watch.restart_clock()
                if ends or self._ended():
                    return

    def _validate(self) -> None:
        """Every run that still trains, on the problem's 'valid'."""
        for place, params in self._runs():
            progress = place.progress
            if self._patience.over(progress) or progress.validated >= self.step:
                continue
            metrics = self._measured(params, self._valid, place).metrics
            place.logs.write(self.step, {f'valid/{name}': v for name, v in metrics.items()})
            best = progress.update(self.step, metrics[self.metric], self._higher)
            if best:
                self._save_best(place, params)
            kind = self.metric.partition('@')[2]
            shown = [self.metric, *(n for n in metrics if n.partition('@')[2] == kind)]
            text = '  '.join(f'{name} {metrics[name]:.4f}' for name in dict.fromkeys(shown[:4]))
            name, star = f'{place.name}  ' if place.name else '', '  best' if best else ''
            epoch = (self.step - self._host['since']) / self._batches.steps_per_epoch
            place.logs.line(f'{name}step {self.step}  epoch {epoch:.2f}  valid {text}{star}')

    def _predict(self, number, before) -> None:
        """What comes before a period, by the model as it is, beside what has nothing to learn."""
        for name, evaluation in before.items():
            place, params = next(self._runs())
            measured = self._measured(params, evaluation, place)
            if self.problem.keeps and jax.process_index() == 0:
                predicted.write(place.folder, number, measured.kept)
            scorers = {'model': measured, **evaluation.references()}
            found = {'period': number + 1, 'name': name, 'examples': evaluation.examples}
            found['metrics'] = {who: one.metrics for who, one in scorers.items()}
            self._host['before'].append(found)
            values = {
                f'{who}/{metric}': value
                for who, metrics in found['metrics'].items()
                for metric, value in metrics.items()
            }
            logged = {'period': number + 1, 'examples': evaluation.examples, **values}
            place.logs.write(self.step, logged)
            told = summary.compared(found, self.metric)
            place.logs.line(f'period {number + 1}/{len(self.problem.periods)}  {told}')
        self._host['predicted'] = number + 1

    def _measured(self, params, evaluation, place):
        try:
            return self._pass(params, evaluation)
        except UserError as e:
            raise self._diverged(f'{e} at step {self.step}', place) from e

    def _due(self) -> bool:
        since = self._host['since']
        after = self.step > since
        on_time = (self.step - since) % self._every == 0 or self.step >= self._stop_at
        return self._valid is not None and after and on_time

    def _ended(self) -> bool:
        limit = self._settings.steps
        if self._stopping or (limit and self.step >= limit and len(self.problem.periods) > 1):
            return True
        return all(self._patience.over(place.progress) for place in self.places)

    def _validated(self) -> bool:
        """Whether every run has been validated where it stands, or need not be."""
        if self._valid is None:
            return True
        return all(
            self._patience.over(place.progress) or place.progress.validated >= self.step
            for place in self.places
        )

    def _runs(self) -> Iterator[tuple[Place, dict]]:
        """The places, each with the parameters to evaluate."""
        return zip(self.places, self.program.parameters(self.state), strict=True)

    def _period(self, number):
        return [problem.periods[number]() for problem in self._problems]

    def _first_state(self):
        """The train state before the first step, and what run.json tells of where it is from."""
        if self._settings.start_from:
            return warm_start.state_from(self.experiment, self.problem, self.program)
        if self.problem.starts:
            return warm_start.rows_from(self.experiment, self.problem, self.program), None
        return self.program.init(), None

    def _save(self) -> None:
        """The last checkpoint; what it says of bests must be on disk before."""
        self._wait()
        progress = [dataclasses.asdict(place.progress) for place in self.places]
        host = {**self._host, 'runs': progress, 'run': ' '.join(self._ids)}
        self._checkpoints.save_last(self.step, self.state, host)
        self._unsaved, self._saved_at = False, time.monotonic()

    def _save_best(self, place, params) -> None:
        self._wait()
        host = {**dataclasses.asdict(place.progress), 'run': self._ids[self.places.index(place)]}
        place.checkpoints.save_best(self.step, params, host)

    def _wait(self) -> None:
        """For what is being saved: processes would mix up the barriers of two saves at once."""
        for checkpoints in (self._checkpoints, *(place.checkpoints for place in self.places)):
            checkpoints.wait()

    def _taken_up(self, host, folder) -> list[Progress]:
        """What the host's part of the last checkpoint says; UserError if it is another run's."""
        shape = {name: type(value) for name, value in self._host.items()}
        progress = {f.name: int for f in dataclasses.fields(Progress)}
        shape |= {'runs': [{**progress, 'best': float | int | None}]}
        if wrong := files.misfit(host, shape, 'its state'):
            raise UserError(
                f'{folder} was made by another version of jaxrec ({wrong}): go on with that one, '
                'or use another --workdir'
            )
        workdir.check_owner(host, ' '.join(self._ids), folder)
        if len(host['runs']) != len(self._ids):
            raise UserError(f'{folder} holds another kind of run; use another --workdir')
        self._host = {name: host[name] for name in self._host}
        return [Progress(**{name: one[name] for name in shape['runs'][0]}) for one in host['runs']]

    def _mend_best(self) -> None:
        """Makes best checkpoints that are gone again where the last one has them; else says so."""
        for place, params in self._runs():
            progress, found = place.progress, place.checkpoints.best_step()
            place.checkpoints.put_aside()
            if progress.best is None or found is not None:
                continue
            gone = f'the best checkpoint of {place.folder}, of step {progress.best_step}, is gone'
            if progress.best_step == self.step:
                self._save_best(place, params)
                say(f'{gone}: made again from the last one')
            else:
                say(f'{gone}: evaluate and recommend with --checkpoint=last until a better one')

    def _diverged(self, what: str, place: Place) -> UserError:
        where = f', in run {place.name}' if place.name else ''
        return UserError(
            f'{what}{where}; the checkpoint before it, of step {self._checkpoints.last_step()}, is '
            'kept. In another --workdir, try a lower --config.optim.learning_rate or '
            '--config.optim.clip_norm=1'
        )

    def _about(self) -> str:
        batches = self._batches
        return (
            f'{self.problem.about}, {batches.targets_per_epoch:,} targets an epoch in '
            f'{batches.steps_per_epoch:,} steps of {batches.rows} rows ({batches.fill:.1%} full); '
            f'{self.program.about()}'
        )

    def summaries(self) -> dict[str, dict]:
        """Of every run by its name, JSON-ready, see `summary.summary`."""
        unfinished = self._host['period'] < len(self.problem.periods)
        return {
            place.name: summary.summary(
                place,
                self.step,
                self.metric,
                stopped=self._stopping and unfinished,
                patience=self._patience,
                before=self._host['before'],
            )
            for place in self.places
        }


def steps(program: Program | Runs, state: dict, feed: Iterator) -> Iterator[tuple[dict, dict]]:
    """(state, metrics) after each batch of a `prefetch`; what benchmarks time."""
    for batches in feed:
        state, metrics = program.step(state, program.put(batches))
        yield state, metrics


def prefetch(make: Callable[[int], Any], start: int, ahead: int = 2) -> Iterator[Any]:
    """Yields make(start), make(start + 1), ... made by a background thread `ahead` of time."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting = [thread.submit(make, start + i) for i in range(ahead)]
        step = start + ahead
        while True:
            batch = waiting.pop(0).result()
            waiting.append(thread.submit(make, step))
            step += 1
            yield batch


def _check_rows(experiment: Experiment) -> None:
    rows, turns = experiment.train.batch_rows, max(experiment.train.microbatches, 1)
    devices = jax.sharding.get_mesh().shape['data']
    if rows % (devices * turns):
        raise UserError(
            f'train.batch_rows={rows} is not a multiple of the {devices} devices of the data axis '
            f'times train.microbatches={turns}'
        )
