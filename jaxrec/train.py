r"""Trains an experiment; run again with the same --workdir, it goes on where it stopped.

python -m jaxrec.train --config=experiments/quickstart.py --workdir=runs/quickstart \
    [--config.model.dim=128 --config.train.steps=1000 --config.data.log=events.csv ...]

Every field of the experiment (jaxrec/config.py, and the model's Config) is a flag. The work
directory gets config.json, run.json, metrics.jsonl, checkpoints/last and checkpoints/best, and
curves.png if matplotlib is installed.
"""

import dataclasses
import math
import pathlib
import signal
import time

import jax
from absl import flags
from ml_collections import config_flags

from jaxrec import cli, config, datasets, sharding, splits, workdir
from jaxrec.batches import TrainBatches, prefetch
from jaxrec.checkpoint import Checkpoints
from jaxrec.cli import UserError, say
from jaxrec.logs import Logs, duration
from jaxrec.optim import make_optimizer
from jaxrec.plots import plot_curves
from jaxrec.protocols import protocol_of
from jaxrec.ranking import Ranker
from jaxrec.state import abstract_state, evaluated, init_state, split_model, train_step

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    config_flags.DEFINE_config_file(
        'config', None, 'Experiment file, optionally with an argument: experiments/x.py[:arg].'
    )
    flags.DEFINE_string('workdir', None, 'Folder of the run; an unfinished run there goes on.')
    flags.DEFINE_bool('json', False, 'Print a JSON summary as the last line of standard output.')


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    if FLAGS.config is None or not FLAGS.workdir:
        raise UserError('give --config=experiments/X.py and --workdir=DIR (see --help)')
    cli.emit(train(FLAGS.config, pathlib.Path(FLAGS.workdir)))


def train(experiment: config.Experiment, folder: pathlib.Path) -> dict:
    """Trains until the experiment's end, early stopping, or SIGTERM.

    Args:
      experiment: what to train.
      folder: work directory; a run there is continued bit by bit.

    Returns:
      A summary: steps, the best validation and its step, and why it stopped.

    Raises:
      UserError: anything the user can put right, a non-finite loss among them.
    """
    histories, meta = datasets.load(experiment.data, say=say)
    jax.set_mesh(sharding.make_mesh(experiment.mesh))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / '.writable').touch()
        (folder / '.writable').unlink()
    except OSError as e:
        raise UserError(f'cannot write to --workdir={folder}: {e.strerror}') from e
    workdir.open_run(folder, experiment, meta['data_hash'])
    data, settings = experiment.data, experiment.train
    if settings.batch_rows < 1 or settings.batch_rows % jax.sharding.get_mesh().shape['data']:
        raise UserError(
            f'train.batch_rows={settings.batch_rows} must be a positive multiple of mesh.data='
            f'{jax.sharding.get_mesh().shape["data"]}'
        )
    split = splits.split(histories, data.split, data.valid_share, data.test_share)
    if data.split == 'leave-one-out':
        say(splits.LEAK_WARNING)
    batches = TrainBatches(
        histories,
        split.train_ends,
        max_len=experiment.model.max_len,
        rows=settings.batch_rows,
        seed=settings.seed,
        windows=data.windows,
        unseen_negatives=data.unseen_negatives,
        process=(jax.process_index(), jax.process_count()),
    )
    horizon = max(math.ceil(settings.epochs * batches.steps_per_epoch), 1)
    stop_at = min(settings.steps or horizon, horizon)
    tx = make_optimizer(experiment.optim, horizon)
    graphdef, abstract = split_model(experiment.model, histories.num_items)
    ranker = Ranker(
        graphdef,
        histories,
        split,
        'valid',
        protocol_of(experiment.eval),
        max_len=experiment.model.max_len,
        batch_users=experiment.eval.batch_users,
        max_users=settings.eval_users,
    )

    checkpoints = Checkpoints(folder)
    first = checkpoints.last_step()
    if first is None:
        first, host = 0, dataclasses.asdict(Progress())
        state = init_state(
            experiment.model, histories.num_items, experiment.optim, tx, settings.seed
        )
    else:
        state, host = checkpoints.restore_last(abstract_state(abstract, experiment.optim, tx))
        say(f'going on from step {first} of {stop_at}')
    progress = Progress(**host)
    logs = Logs(folder, first, active=jax.process_index() == 0, say=say)
    logs.line(
        f'{histories.name or "data"}: {histories.num_users:,} users, {histories.num_items:,} items,'
        f' {batches.targets_per_epoch:,} targets an epoch in {batches.steps_per_epoch:,} steps of'
        f' {batches.rows} rows ({batches.fill:.1%} full); {parameters(abstract):,} parameters on'
        f' {jax.device_count()} {jax.default_backend()} device(s)'
    )

    step_fn = train_step(graphdef, experiment.optim, tx, settings.seed)
    evaluate_every = max(round(settings.eval_every * batches.steps_per_epoch), 1)
    watch = Watch(logs, batches, first, stop_at)
    saved_at, stop = time.monotonic(), StopSignal()
    stopped = 'finished' if not progress.done(settings.patience) else 'early stopping'
    feed = prefetch(batches, first)
    step = first
    while step < stop_at and stopped == 'finished':
        state, metrics = step_fn(state, sharding.put_batch(next(feed)))
        step += 1
        watch.add(step, metrics)
        evaluate = step % evaluate_every == 0 or step == stop_at
        late = settings.save_every and time.monotonic() - saved_at > 60 * settings.save_every
        if evaluate or late or stop.received or step % settings.log_every == 0:
            watch.read()  # waits for the device; raises if a loss was not finite
        if evaluate:
            result = ranker(evaluated(state))
            logs.write(step, {f'valid/{name}': v for name, v in result.metrics.items()})
            is_best = progress.update(step, _metric(result.metrics, settings.metric))
            logs.line(_valid_line(step, batches, result, settings.metric, is_best))
            if is_best:
                checkpoints.save_best(step, evaluated(state), dataclasses.asdict(progress))
            if progress.done(settings.patience):
                stopped = 'early stopping'
        if stop.received:
            stopped = 'signal'
        if evaluate or late or stop.received:
            checkpoints.save_last(step, state, dataclasses.asdict(progress))
            saved_at = time.monotonic()
            watch.restart_clock()
    feed.close()
    checkpoints.close()
    logs.close()
    return _finish(folder, step, stop_at, stopped, progress, settings.metric)


@dataclasses.dataclass
class Progress:
    """What the loop remembers besides the train state; saved with every checkpoint."""

    best: float | None = None
    best_step: int = 0
    validations_since_best: int = 0

    def update(self, step: int, value: float) -> bool:
        """Takes in a validation; True if it is the best so far."""
        if self.best is None or value > self.best:
            self.best, self.best_step, self.validations_since_best = value, step, 0
            return True
        self.validations_since_best += 1
        return False

    def done(self, patience: int) -> bool:
        return 0 < patience <= self.validations_since_best


class StopSignal:
    """Notes SIGTERM and SIGINT (preemption, Ctrl-C), for the loop to save and leave."""

    def __init__(self):
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number, frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


class Watch:
    """Reads the metrics of past steps, long after they were dispatched; watches for non-finite."""

    def __init__(self, logs: Logs, batches: TrainBatches, first: int, stop_at: int):
        self._logs, self._batches, self._stop_at = logs, batches, stop_at
        self._waiting, self._since, self._clock = [], first, time.monotonic()

    def add(self, step: int, metrics: dict) -> None:
        self._waiting.append((step, metrics))

    def read(self) -> None:
        """Logs the mean of the waiting metrics; UserError at the first that is not finite."""
        if not self._waiting:
            return
        steps, metrics = zip(*self._waiting, strict=True)
        values = jax.device_get(metrics)
        self._waiting = []
        for step, value in zip(steps, values, strict=True):
            if not all(math.isfinite(value[name]) for name in ('loss', 'grad_norm')):
                self._logs.close()
                raise UserError(
                    f'the loss is not finite at step {step} (loss {value["loss"]}, gradient norm '
                    f'{value["grad_norm"]}); the last checkpoint is from before it. Try a lower '
                    '--config.optim.learning_rate or --config.optim.clip_norm=1'
                )
        now, step = time.monotonic(), steps[-1]
        rate = (step - self._since) / max(now - self._clock, 1e-9)
        self._since, self._clock = step, now
        mean = {name: float(sum(v[name] for v in values) / len(values)) for name in values[0]}
        per_step = 1 / self._batches.steps_per_epoch
        speed = {
            'examples_per_second': rate * self._batches.windows_per_epoch * per_step,
            'tokens_per_second': rate * self._batches.targets_per_epoch * per_step,
        }
        self._logs.write(step, {'epoch': step * per_step, **mean, **speed})
        self._logs.progress(
            f'step {step}/{self._stop_at}  epoch {step * per_step:.2f}  loss {mean["loss"]:.4f}  '
            f'{speed["examples_per_second"]:,.0f} examples/s  '
            f'{speed["tokens_per_second"]:,.0f} real tokens/s  '
            f'{duration((self._stop_at - step) / rate)} left'
        )
        self._clock = time.monotonic()

    def restart_clock(self) -> None:
        """Leaves out the time since `read`, which went into something else than training."""
        self._clock = time.monotonic()


def parameters(abstract: dict) -> int:
    """Number of parameters."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(abstract))


def _metric(metrics: dict, name: str) -> float:
    if name not in metrics:
        raise UserError(f'train.metric={name!r} is not measured; there is {", ".join(metrics)}')
    return metrics[name]


def _valid_line(step, batches, result, metric, is_best):
    shown = {metric: result.metrics[metric], 'HR@10': result.metrics.get('HR@10')}
    text = '  '.join(f'{name} {value:.4f}' for name, value in shown.items() if value is not None)
    epoch = step / batches.steps_per_epoch
    return f'step {step}  epoch {epoch:.2f}  valid {text}{"  best" if is_best else ""}'


def _finish(folder, step, stop_at, stopped, progress, metric):
    if stopped == 'signal':
        say(f'stopped by a signal at step {step} of {stop_at}; all is saved, and the same command')
        say('goes on from here')
    elif progress.best is not None:
        say(
            f'{stopped} at step {step}: best valid {metric} {progress.best:.4f}, step '
            f'{progress.best_step}'
        )
    if plot_curves(folder):
        say(f'training curves: {folder / "curves.png"}')
    else:
        say("no curves.png: matplotlib is not installed (pip install 'jaxrec[plots]')")
    return {
        'workdir': str(folder),
        'stopped': stopped,
        'step': step,
        'best_step': progress.best_step,
        'metric': metric,
        'best': progress.best,
    }


if __name__ == '__main__':
    define_flags()
    cli.run(main)
