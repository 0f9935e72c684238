"""Trains several runs in one program (see `parallel_runs`), each into a folder of its own.

    FOLDER/NAME/                     one run: config.json, run.json, metrics.jsonl, checkpoints/best
    FOLDER/.together/checkpoints/    the stacked train state to go on from

Every run validates, keeps its best checkpoint and stops early on its own; those that have stopped
are stepped along, unseen, until the last one stops.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import math
import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jaxrec import datasets, files
from jaxrec.cli import say
from jaxrec.config import Experiment, Mesh
from jaxrec.data import splits
from jaxrec.devices.malloc import keep_freed
from jaxrec.devices.mesh import make_mesh
from jaxrec.errors import UserError
from jaxrec.evaluation.protocols import protocol_of
from jaxrec.evaluation.ranking import Ranker
from jaxrec.experiment import check
from jaxrec.tasks.next_item import feature_codes, train_batches
from jaxrec.training import workdir
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.logs import Logs, duration
from jaxrec.training.loop import prefetch
from jaxrec.training.parallel_runs import SCALARS, Runs
from jaxrec.training.progress import Progress
from jaxrec.training.state import evaluated, split_model


def expand(experiment: Experiment, seeds: Sequence[str], vary: Sequence[str]) -> dict:
    """{folder name: experiment} of every seed with every combination of values.

    Args:
      experiment: what the runs share.
      seeds: numbers; train.seed where there are none.
      vary: 'FIELD=VALUE,VALUE', e.g. 'optim.learning_rate=1e-3,3e-3', of fields in SCALARS.

    Raises:
      UserError: a field that cannot vary, or a value that is not a number.
    """
    axes = [('train.seed', list(seeds) or [str(experiment.train.seed)])]
    for given in vary:
        name, _, values = given.partition('=')
        if name not in SCALARS:
            raise UserError(f'--vary={given}: give one of {", ".join(SCALARS)} and its values')
        axes.append((name, values.split(',')))
    runs = {}
    for values in itertools.product(*(values for _, values in axes)):
        run, parts = copy.deepcopy(experiment), []
        for (name, _), value in zip(axes, values, strict=True):
            *sections, field = name.split('.')
            try:
                number = int(value) if name == 'train.seed' else float(value)
                section = functools.reduce(getattr, sections, run)
                getattr(section, field)
            except ValueError as e:
                raise UserError(f'{name}={value!r} is not a number') from e
            except AttributeError as e:
                raise UserError(f'--vary={name}: this model has no such field') from e
            setattr(section, field, number)
            parts.append(f'seed{number}' if name == 'train.seed' else f'{name}={value}')
        runs['_'.join(parts)] = run
    return runs


def train_together(experiments: Mapping[str, Experiment], folder: pathlib.Path) -> dict:
    """Trains all runs to their end, or goes on where they were killed.

    Args:
      experiments: by the name of the run's folder; they may differ in the seed and in
        `parallel_runs.SCALARS`.
      folder: holds the runs' folders.

    Returns:
      {name: summary}, each as `train.train` gives it.

    Raises:
      UserError: anything the user can put right, a non-finite loss among them.
    """
    first = next(iter(experiments.values()))
    for experiment in experiments.values():
        check(experiment)
    histories, meta = datasets.load(first.data, say=say)
    with workdir.claimed(folder), contextlib.ExitStack() as closing:
        _claim(folder, list(experiments))
        for name, experiment in experiments.items():
            (folder / name).mkdir(exist_ok=True)
            workdir.compare(folder / name, experiment, meta)
        return _train(dict(experiments), folder, histories, meta, closing)


def _train(experiments, folder, histories, meta, closing) -> dict:
    first = next(iter(experiments.values()))
    data, settings = first.data, first.train
    split = splits.split(histories, data.split, data.valid_share, data.test_share)
    batches = [train_batches(e, histories, split) for e in experiments.values()]
    steps_per_epoch = batches[0].steps_per_epoch
    horizon = settings.epochs * steps_per_epoch
    stop_at = settings.steps or horizon
    evaluate_every = max(round(settings.eval_every * steps_per_epoch), 1)
    program = Runs(list(experiments.values()), histories.num_items, horizon)

    served = make_mesh(Mesh())
    with jax.set_mesh(served):
        graphdef, abstract = split_model(first.model, histories.num_items)
        ranker = Ranker(
            graphdef,
            histories,
            split,
            'valid',
            protocol_of(first.eval),
            max_len=first.model.max_len,
            batch_users=first.eval.batch_users,
            max_users=settings.eval_users,
            codes=feature_codes(first.model, histories, split.train_ends),
        )

    shared = closing.enter_context(contextlib.closing(Checkpoints(folder / '.together')))
    names = list(experiments)
    if shared.last_step() is None:
        step, runs = 0, [Progress() for _ in names]
        state = program.init()
        shared.save_last(0, state, _host(runs))
    else:
        step = shared.last_step()
        state, host = shared.restore_last(program.abstract())
        runs = [Progress(**progress) for progress in host['runs']]
        say(f'going on from step {step} of {stop_at}')
    best, logs = [], []
    with jax.set_mesh(served):
        for name, experiment in experiments.items():
            workdir.record(folder / name, experiment, meta, step)
            place = folder / name
            best.append(closing.enter_context(contextlib.closing(Checkpoints(place))))
            logs.append(closing.enter_context(contextlib.closing(Logs(place, step, active=True))))
    say(
        f'{len(names)} runs in one program on {program.devices} {jax.default_backend()} '
        f'device{"s" if program.devices > 1 else ""}: {", ".join(names)}'
    )

    def validate():
        parameters = jax.device_get(evaluated(state))
        for i, progress in enumerate(runs):
            if done(progress) or progress.validated >= step:
                continue
            own = jax.tree.map(lambda x, i=i: x[i], parameters)
            with jax.set_mesh(served):
                placed = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), own, abstract)
                try:
                    values = ranker(placed).metrics
                except UserError as e:
                    raise _diverged(f'{e} at step {step}', names[i], shared) from e
                logs[i].write(step, {f'valid/{name}': v for name, v in values.items()})
                if progress.update(step, values[settings.metric]):
                    best[i].save_best(step, placed, dataclasses.asdict(progress))
        shown = '  '.join(f'{n} {p.best:.4f}' for n, p in zip(names, runs, strict=True))
        say(f'step {step}/{stop_at}  best valid {settings.metric}: {shown}')

    def done(progress):
        return progress.done(settings.patience)

    def save():
        for one in best:
            one.wait()  # the stacked state speaks of bests that must not be lost
        shared.save_last(step, state, _host(runs))

    def due():
        return step > 0 and (step % evaluate_every == 0 or step >= stop_at)

    keep_freed()
    feed = prefetch(lambda number: [one(number) for one in batches], step)
    closing.enter_context(contextlib.closing(feed))
    if due():  # killed between this step and the end of its validation
        validate()
    saved_at = clock = time.monotonic()
    since = step
    while step < stop_at and not all(map(done, runs)):
        state, metrics = program.step(state, program.put(next(feed)))
        step += 1
        late = settings.save_every and time.monotonic() - saved_at > 60 * settings.save_every
        pause = due() or late
        if pause or step % settings.log_every == 0:
            values = jax.device_get(metrics)
            now = time.monotonic()
            rate = (step - since) / max(now - clock, 1e-9)
            _log(step, values, logs, batches, runs, done, rate, names, shared)
            logs[0].progress(
                f'step {step}/{stop_at}  loss {np.mean(values["loss"]):.4f}  '
                f'{rate * len(names):,.1f} steps/s of all runs  '
                f'{duration((stop_at - step) / rate)} left'
            )
        if due():
            validate()
        if pause:
            save()
            saved_at = time.monotonic()
        if pause or step % settings.log_every == 0:
            since, clock = step, time.monotonic()
    save()
    return {
        name: {
            'workdir': str(folder / name),
            'stopped': 'early stopping' if done(progress) else 'finished',
            'step': progress.validated,
            'best_step': progress.best_step,
            'metric': settings.metric,
            'best': progress.best,
        }
        for name, progress in zip(names, runs, strict=True)
    }


def _log(step, values, logs, batches, runs, done, rate, names, shared) -> None:
    """A line per run that still trains; UserError for a loss that is not finite."""
    for i, one in enumerate(batches):
        if done(runs[i]):
            continue
        own = {name: float(value[i]) for name, value in values.items()}
        if not all(math.isfinite(own[name]) for name in ('loss', 'grad_norm')):
            raise _diverged(f'the loss is not finite at step {step}', names[i], shared)
        per_step = 1 / one.steps_per_epoch
        speed = {'tokens_per_second': rate * one.targets_per_epoch * per_step}
        logs[i].write(step, {'epoch': step * per_step, **own, **speed})


def _diverged(what: str, name: str, shared: Checkpoints) -> UserError:
    return UserError(
        f'{what}, in run {name}; the checkpoint before it, of step {shared.last_step()}, is kept. '
        'Elsewhere, try a lower --config.optim.learning_rate or --config.optim.clip_norm=1'
    )


def _host(runs) -> dict:
    return {'runs': [dataclasses.asdict(progress) for progress in runs]}


def _claim(folder: pathlib.Path, names: list[str]) -> None:
    """Notes which runs share the program; UserError if the folder's are others."""
    path = folder / '.together' / 'runs.json'
    if path.exists():
        there = files.read_json(path)
        if there != names:
            raise UserError(
                f'{folder} holds the runs {", ".join(there)} in one program, this command has '
                f'{", ".join(names)}; use another --workdir'
            )
    path.parent.mkdir(exist_ok=True)
    files.write_json(path, names)
