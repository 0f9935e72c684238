r"""Trains in time order, as a service does: each period is predicted before it is learnt.

python -m jaxrec.stream --config=experiments/kuaiformer_kuairand.py --workdir=runs/stream \
    [--periods=12 --config.train.epochs=1 ...]

The events are cut by time into --periods of equally many. The first one (with all events that have
no time) is learnt; then for each one the model ranks every user's first event of the period, from
the events before it, and learns the period's events, train.epochs times. metrics.jsonl gets a line
per period, with popularity (counted over all that came before) beside the model. The checkpoint
'last' is saved after each period: a killed command goes on with the period it was in.
"""

import contextlib
import math
import pathlib

import jax
import numpy as np
from absl import flags

from jaxrec import cli, config, datasets
from jaxrec.cli import say
from jaxrec.data.cuts import CutBatches
from jaxrec.data.histories import Histories
from jaxrec.data.splits import Split, Targets, period_starts
from jaxrec.devices import cluster
from jaxrec.devices.malloc import keep_freed
from jaxrec.devices.mesh import batch_part, make_mesh, put_batch
from jaxrec.errors import UserError
from jaxrec.evaluation import baselines
from jaxrec.evaluation.protocols import protocol_of
from jaxrec.evaluation.ranking import Ranker
from jaxrec.experiment import check, contrasting
from jaxrec.tasks.next_item import feature_codes
from jaxrec.training import workdir
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.logs import Logs
from jaxrec.training.loop import prefetch
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import abstract_state, evaluated, init_state, split_model, train_step

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    cli.define_run_flags()
    flags.DEFINE_integer('periods', 10, 'Parts of the log, with equally many events each.')


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    if found := cluster.detected():
        raise UserError(f'a stream runs in one process, here are several ({found}): start one')
    cli.emit(stream(*cli.given_run(), FLAGS.periods))


def stream(experiment: config.Experiment, folder: pathlib.Path, periods: int) -> dict:
    """Predicts and learns period after period.

    Args:
      experiment: what to train; data.windows must be 'cuts'.
      folder: work directory; a run there is continued from its last finished period.
      periods: number of them, 2 at least.

    Returns:
      A summary: the metrics of model and popularity, means over all predicted targets.

    Raises:
      UserError: anything the user can put right, a non-finite loss among them.
    """
    check(experiment)
    if periods < 2:
        raise UserError(f'--periods={periods} must be at least 2: one to learn, one to predict')
    if experiment.data.grow_vocabulary:
        raise UserError('data.grow_vocabulary is for jaxrec.train, not for a stream')
    if experiment.data.windows != 'cuts':
        raise UserError("streaming trains on cuts: set data.windows='cuts'")
    if contrasting(experiment.model):
        raise UserError('a stream has no contrastive term: set model.contrast.weight=0')
    for feature in getattr(experiment.model, 'features', ()):
        if feature.kind == 'quantile':
            raise UserError(
                f"feature {feature.column!r}: kind='quantile' looks at all training events, and a "
                "stream does not know them yet: take 'log' or 'uniform'"
            )
    if experiment.optim.schedule != 'constant':
        raise UserError("a stream has no end to decay to: set optim.schedule='constant'")
    histories, meta = datasets.load(experiment.data, say=say)
    jax.set_mesh(make_mesh(experiment.mesh))
    with workdir.claimed(folder):
        workdir.compare(folder, experiment, meta)
        return _stream(experiment, folder, histories, meta, periods)


def _stream(experiment, folder, histories, meta, periods) -> dict:
    model, seed = experiment.model, experiment.train.seed
    starts = period_starts(histories, periods)
    codes = feature_codes(model, histories, starts[1])
    graphdef, abstract = split_model(model, histories.num_items)
    optimizer = make_optimizer(experiment.optim, 1)
    step_fn = train_step(graphdef, optimizer, seed)

    with contextlib.ExitStack() as closing:
        checkpoints = closing.enter_context(contextlib.closing(Checkpoints(folder)))
        if checkpoints.last_step() is None:
            state = init_state(model, histories.num_items, optimizer, seed)
            host = {'periods': periods, 'done': 0, 'results': []}
        else:
            state, host = checkpoints.restore_last(abstract_state(graphdef, abstract, optimizer))
            if host.get('periods') != periods:
                raise UserError(
                    f'{folder} holds another run (--periods={host.get("periods", "none")}); use '
                    'another --workdir or the same setting'
                )
            say(f'going on after period {host["done"]} of {periods}')
        step = int(state['step'])
        workdir.record(folder, experiment, meta, step)
        logs = closing.enter_context(
            contextlib.closing(Logs(folder, step, active=jax.process_index() == 0))
        )
        ranker = None
        for period in range(host['done'], periods):
            before, after = starts[period], starts[period + 1]
            targets = _first_events(histories, before, after)
            if period and len(targets):
                split = Split(before, targets, targets)
                if ranker is None:
                    ranker = _ranker(experiment, graphdef, histories, split, codes)
                ranker = ranker.of(split, 'valid', max_users=experiment.train.eval_users)
                host['results'].append(_predict(ranker, evaluated(state)))
                logs.write(step, {'period': period + 1, **_flat(host['results'][-1])})
            state, loss = _learn(experiment, histories, before, after, codes, step_fn, state)
            if not math.isfinite(loss):
                raise UserError(
                    f'the loss is not finite in period {period + 1}; try a lower '
                    '--config.optim.learning_rate or --config.optim.clip_norm=1'
                )
            step = int(state['step'])
            host['done'] = period + 1
            logs.write(step, {'period': period + 1, 'loss': loss})
            logs.line(_line(host, period, periods, len(targets), loss, experiment.train.metric))
            checkpoints.save_last(step, state, host)
    summary = _summary(host['results'])
    say(f'all {periods} periods: ' + _compared(summary, experiment.train.metric))
    return {'workdir': str(folder), 'periods': periods, 'step': step, **summary}


def _first_events(histories: Histories, before: np.ndarray, after: np.ndarray) -> Targets:
    """Each user's first event of a period, of the users that have one and one before it."""
    users = np.flatnonzero((before > histories.offsets[:-1]) & (before < after))
    return Targets(users, before[users])


def _ranker(experiment, graphdef, histories, split, codes) -> Ranker:
    return Ranker(
        graphdef,
        histories,
        split,
        'valid',
        protocol_of(experiment.eval),
        max_len=experiment.model.max_len,
        batch_users=experiment.eval.batch_users,
        codes=codes,
    )


def _predict(ranker: Ranker, params: dict) -> dict:
    """{'users': n, 'model': metrics, 'popularity': metrics}."""
    result = ranker(params)
    popularity = baselines.Scorer(ranker.task.training_counts)
    other = ranker.task.result(*baselines.rank_counts(popularity, ranker.task))
    return {'users': result.users, 'model': result.metrics, 'popularity': other.metrics}


def _learn(experiment, histories, before, after, codes, step_fn, state) -> tuple[dict, float]:
    """The state after the events of a period, and the mean loss."""
    data, settings = experiment.data, experiment.train
    if not (after > np.maximum(before, histories.offsets[:-1] + 1)).any():
        return state, 0.0  # first events only: nothing comes before them
    batches = CutBatches(
        histories,
        after,
        max_len=experiment.model.max_len,
        rows=settings.batch_rows,
        seed=settings.seed,
        windows=data.windows_per_user,
        cuts=data.cuts,
        train_starts=before,
        codes=codes,
        process=batch_part(),
    )
    losses = []
    keep_freed()
    with contextlib.closing(prefetch(batches, 0)) as feed:
        for _ in range(settings.epochs * batches.steps_per_epoch):
            state, metrics = step_fn(state, put_batch(next(feed)))
            losses.append(metrics['loss'])
    return state, float(np.mean(jax.device_get(losses)))


def _summary(results: list[dict]) -> dict:
    """Means over all targets of all periods."""
    users = np.array([result['users'] for result in results])
    if not users.sum():
        raise UserError('no user has an event in two periods: there was nothing to predict')
    return {
        'users': int(users.sum()),
        **{
            who: {
                name: float(np.average([r[who][name] for r in results], weights=users))
                for name in results[0][who]
            }
            for who in ('model', 'popularity')
        },
    }


def _flat(result: dict) -> dict[str, float]:
    return {'users': result['users']} | {
        f'{who}/{name}': value
        for who in ('model', 'popularity')
        for name, value in result[who].items()
    }


def _compared(result: dict, metric: str) -> str:
    return (
        f'{result["users"]:,} targets, {metric} {result["model"][metric]:.4f} '
        f'(popularity {result["popularity"][metric]:.4f})'
    )


def _line(host, period, periods, targets, loss, metric) -> str:
    told = _compared(host['results'][-1], metric) if period and targets else 'not predicted'
    return f'period {period + 1}/{periods}  {told}  then learnt, loss {loss:.4f}'


if __name__ == '__main__':
    define_flags()
    cli.run(main)
