r"""Trains an experiment; run again with the same --workdir, it goes on where it stopped.

python -m jaxrec.train --config=experiments/quickstart.py --workdir=runs/quickstart \
    [--config.model.dim=128 --config.train.steps=1000 --config.data.log=events.csv ...]

With --seeds_in_parallel=0,1,2 these seeds are trained in one program, into DIR/seed0, DIR/seed1 ..;
with --vary=optim.learning_rate=1e-3,3e-3 (also several times) every seed with every value.

The work directory gets config.json, run.json, metrics.jsonl, checkpoints/last, checkpoints/best,
and curves.png if matplotlib is installed.

python -m jaxrec.train --dry_run --config=experiments/sasrec_beauty.py --mesh=64,8 [--items=N]

trains nothing: it compiles the step for 64 x 8 devices, which need not be here, and prints the
memory of a device, its operations and what crosses devices. --items=N plans for a catalogue of
that size instead of the data set's.

--config.data.grow_vocabulary=runs/before goes on, in a new work directory, from a run on an earlier
state of the log: items keep what was learnt, new ones are added
(see jaxrec/training/warm_start.py).

Every field of the experiment is a flag, with these defaults where the experiment file says nothing
(the model's own fields are in jaxrec/models/):

FIELDS
"""

import contextlib
import dataclasses
import math
import pathlib
import sys
import time

import jax
from absl import flags

from jaxrec import cli, config, datasets
from jaxrec.cli import say
from jaxrec.data import splits
from jaxrec.devices import cluster
from jaxrec.devices.malloc import keep_freed
from jaxrec.devices.mesh import batch_part, make_mesh, put_batch
from jaxrec.errors import UserError
from jaxrec.evaluation.plots import plot_curves
from jaxrec.evaluation.protocols import protocol_of
from jaxrec.evaluation.ranking import Ranker
from jaxrec.experiment import check
from jaxrec.tasks.next_item import feature_codes, train_batches
from jaxrec.training import plan, workdir
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.logs import Logs, duration
from jaxrec.training.loop import prefetch
from jaxrec.training.optim import make_optimizer
from jaxrec.training.progress import Progress
from jaxrec.training.state import abstract_state, evaluated, init_state, split_model, train_step
from jaxrec.training.together import expand, train_together
from jaxrec.training.warm_start import grown_state

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    cli.define_run_flags()
    flags.DEFINE_bool('dry_run', False, 'Train nothing; print what a step costs on --mesh.')
    flags.DEFINE_string('mesh', '', 'DATA,MODEL: devices of a --dry_run, which need not be here.')
    flags.DEFINE_integer('items', 0, 'Catalogue of a --dry_run; 0 = that of the data set.')
    flags.DEFINE_list('seeds_in_parallel', [], 'Seeds to train in one program, into DIR/seedN.')
    flags.DEFINE_multi_string('vary', [], 'FIELD=VALUE,VALUE: values to train in one program.')
    cluster.define_flags()


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    if FLAGS.dry_run:
        cli.emit(_plan(cli.given_experiment()))
        return
    if FLAGS.mesh or FLAGS.items:
        raise UserError('--mesh and --items go with --dry_run; to train, --config.mesh.model=N')
    with cluster.joined():
        experiment, folder = cli.given_run()
        if FLAGS.seeds_in_parallel or FLAGS.vary:
            if jax.process_count() > 1:
                raise UserError('--seeds_in_parallel and --vary run in one process only')
            runs = expand(experiment, FLAGS.seeds_in_parallel, FLAGS.vary)
            cli.emit({'runs': train_together(runs, folder)})
            return
        summary = train(experiment, folder)
        cli.emit(summary)
    if summary['stopped'] == 'signal' and cluster.requeued():
        sys.exit(cluster.AGAIN)


def _plan(experiment: config.Experiment) -> dict:
    """Prints the plan of --dry_run."""
    mesh = plan.parse_mesh(FLAGS.mesh)
    if FLAGS.items < 0:
        raise UserError(f'--items={FLAGS.items} must not be negative')
    check(experiment)
    plan.pretend(mesh)
    found = plan.plan(experiment, mesh, FLAGS.items)
    say(plan.text(found, experiment.train.batch_rows))
    return found


def train(experiment: config.Experiment, folder: pathlib.Path) -> dict:
    """Trains until the experiment's end, early stopping, or a signal.

    Args:
      experiment: what to train.
      folder: work directory; a run there is continued bit by bit.

    Returns:
      A summary: why and at which step it stopped, and the best validation.

    Raises:
      UserError: anything the user can put right, a non-finite loss among them.
    """
    stop = cluster.StopSignal()
    check(experiment)
    histories, meta = datasets.load(experiment.data, say=say)
    mesh = make_mesh(experiment.mesh)
    rows, turns = experiment.train.batch_rows, experiment.train.microbatches
    if rows % (mesh.shape['data'] * turns):
        raise UserError(
            f'train.batch_rows={rows} is not a multiple of the {mesh.shape["data"]} devices of the '
            f'data axis times train.microbatches={turns}'
        )
    jax.set_mesh(mesh)
    workdir.check_processes(experiment, meta)
    with workdir.claimed(folder):
        workdir.compare(folder, experiment, meta)
        summary = _train(experiment, folder, histories, meta, stop)
        if jax.process_index():
            return summary
    why_not = plot_curves(folder, experiment.train.metric)
    say(f'no curves.png: {why_not}' if why_not else f'training curves: {folder / "curves.png"}')
    return summary


def _train(experiment, folder, histories, meta, stop) -> dict:
    data, settings, model = experiment.data, experiment.train, experiment.model
    graphdef, abstract = split_model(model, histories.num_items)  # checks the model's settings
    split = splits.split(histories, data.split, data.valid_share, data.test_share)
    batches = train_batches(experiment, histories, split, process=batch_part())
    horizon = settings.epochs * batches.steps_per_epoch
    stop_at = settings.steps or horizon
    optimizer = make_optimizer(experiment.optim, horizon)
    ranker = Ranker(
        graphdef,
        histories,
        split,
        'valid',
        protocol_of(experiment.eval),
        max_len=model.max_len,
        batch_users=experiment.eval.batch_users,
        max_users=settings.eval_users,
        codes=feature_codes(model, histories, split.train_ends),
    )
    evaluate_every = max(round(settings.eval_every * batches.steps_per_epoch), 1)

    with contextlib.ExitStack() as closing:
        checkpoints = closing.enter_context(contextlib.closing(Checkpoints(folder)))
        if checkpoints.last_step() is None:
            step, progress = 0, Progress()
            if data.grow_vocabulary:
                state = grown_state(experiment, histories, optimizer)
            else:
                state = init_state(model, histories.num_items, optimizer, settings.seed)
            checkpoints.save_last(0, state, dataclasses.asdict(progress))
        else:
            step = checkpoints.last_step()
            state, host = checkpoints.restore_last(abstract_state(graphdef, abstract, optimizer))
            if 'periods' in host:
                raise UserError(f'{folder} holds a run of jaxrec.stream; use another --workdir')
            progress = Progress(**host)
            say(f'going on from step {step} of {stop_at}')
        begun = int(state['step']) - step  # steps of the run that this one has grown from
        optimizer = make_optimizer(experiment.optim, horizon, begun)
        step_fn = train_step(graphdef, optimizer, settings.seed, settings.microbatches)
        workdir.record(folder, experiment, meta, step)
        logs = closing.enter_context(
            contextlib.closing(Logs(folder, step, active=jax.process_index() == 0))
        )
        if data.split == 'leave-one-out':
            logs.line(splits.LEAK_WARNING)
        logs.line(_about(histories, batches, abstract))
        keep_freed()
        feed = closing.enter_context(contextlib.closing(prefetch(batches, step)))
        watch = Watch(logs, batches, checkpoints, step, stop_at)
        saved_at = time.monotonic()
        poll, stopping = cluster.Poll(), False

        def validate():
            with watch.naming(step):
                result = ranker(evaluated(state))
            logs.write(step, {f'valid/{name}': v for name, v in result.metrics.items()})
            is_best = progress.update(step, result.metrics[settings.metric])
            logs.line(_valid_line(step, batches, result.metrics, settings.metric, is_best))
            if is_best:
                checkpoints.save_best(step, evaluated(state), dataclasses.asdict(progress))

        def due():
            return step > 0 and (step % evaluate_every == 0 or step >= stop_at)

        def late():
            age = time.monotonic() - saved_at
            return settings.save_every > 0 and age > 60 * settings.save_every

        if due() and progress.validated < step:  # the signal came before this validation
            validate()
        while step < stop_at and not stopping and not progress.done(settings.patience):
            state, metrics = step_fn(state, put_batch(next(feed)))
            step += 1
            watch.add(step, metrics)
            stopping, unsaved = poll(stop.received, late())
            pause = due() or unsaved or stopping
            if pause or step % settings.log_every == 0:
                watch.read()  # waits for the device; raises if a loss was not finite
            if due() and not stopping:
                validate()
            if pause:
                checkpoints.save_last(step, state, dataclasses.asdict(progress))
                saved_at = time.monotonic()
                poll.forget()
                watch.restart_clock()

    stopped = 'finished'
    if progress.done(settings.patience):
        stopped = 'early stopping'
    elif stopping and (step < stop_at or progress.validated < step):
        stopped = 'signal'
    _say_end(stopped, step, stop_at, progress, settings.metric)
    return {
        'workdir': str(folder),
        'stopped': stopped,
        'step': step,
        'best_step': progress.best_step,
        'metric': settings.metric,
        'best': progress.best,
    }


class Watch:
    """Reads the metrics of past steps, long after they were dispatched; watches for divergence."""

    def __init__(self, logs, batches, checkpoints, first: int, stop_at: int):
        self._logs, self._batches, self._checkpoints = logs, batches, checkpoints
        self._stop_at, self._since, self._clock = stop_at, first, time.monotonic()
        self._waiting = []

    def add(self, step: int, metrics: dict) -> None:
        self._waiting.append((step, metrics))

    @contextlib.contextmanager
    def naming(self, step: int):
        """Adds step, checkpoint and advice to the complaint of a diverged model's validation."""
        try:
            yield
        except UserError as e:
            raise self._diverged(f'{e} at step {step}') from e

    def _diverged(self, what: str) -> UserError:
        return UserError(
            f'{what}; the checkpoint before it, of step {self._checkpoints.last_step()}, is kept. '
            'In another --workdir, try a lower --config.optim.learning_rate or '
            '--config.optim.clip_norm=1'
        )

    def read(self) -> None:
        """Logs the mean of the waiting metrics; UserError at the first that is not finite."""
        if not self._waiting:
            return
        steps, metrics = zip(*self._waiting, strict=True)
        values = jax.device_get(metrics)
        self._waiting = []
        for step, value in zip(steps, values, strict=True):
            if not all(math.isfinite(value[name]) for name in ('loss', 'grad_norm')):
                raise self._diverged(
                    f'the loss is not finite at step {step} (loss {value["loss"]}, gradient norm '
                    f'{value["grad_norm"]})'
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
            f'{speed["tokens_per_second"]:,.0f} targets/s  '
            f'{duration((self._stop_at - step) / rate)} left'
        )
        self._clock = time.monotonic()

    def restart_clock(self) -> None:
        """Leaves out the time since `read`, which went into something else than training."""
        self._clock = time.monotonic()


def _about(histories, batches, abstract) -> str:
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract))
    mesh = jax.sharding.get_mesh()
    return (
        f'{histories.name or "data"}: {histories.num_users:,} users, {histories.num_items:,} items,'
        f' {batches.targets_per_epoch:,} targets an epoch in {batches.steps_per_epoch:,} steps of'
        f' {batches.rows} rows ({batches.fill:.1%} full); {parameters:,} parameters on'
        f' {mesh.size} {jax.default_backend()} device{"s" if mesh.size > 1 else ""}'
    )


def _valid_line(step, batches, metrics, metric, is_best) -> str:
    shown = dict.fromkeys((metric, 'NDCG@10', 'HR@10'))
    text = '  '.join(f'{name} {metrics[name]:.4f}' for name in shown if name in metrics)
    epoch = step / batches.steps_per_epoch
    return f'step {step}  epoch {epoch:.2f}  valid {text}{"  best" if is_best else ""}'


def _say_end(stopped, step, stop_at, progress, metric) -> None:
    if stopped == 'signal':
        say(f'stopped by a signal at step {step} of {stop_at}; all is saved: the same command goes')
        say('on from here')
    elif progress.best is None:
        say(f'{stopped} at step {step}')
    else:
        best = f'best valid {metric} {progress.best:.4f} at step {progress.best_step}'
        say(f'{stopped} at step {step}: {best}')


def fields() -> str:
    """The flags of an experiment's fields and their defaults, for --help."""
    lines = []
    for section in dataclasses.fields(config.Experiment):
        if section.name != 'model':
            for field in dataclasses.fields(section.type):
                lines.append(f'  --config.{section.name}.{field.name}={field.default}')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.modules['__main__'].__doc__ = __doc__.replace('FIELDS', fields())
    define_flags()
    cli.run(main)
