r"""Evaluates a trained model beside the baselines, under a recorded protocol.

python -m jaxrec.evaluate --workdir=runs/quickstart [--split=test] [--protocol=full] \
    [--nofilter_seen] [--checkpoint=best] [--json]

Writes evaluation_<split>_<protocol>.json into the work directory, and metric_at_k_... .png beside
it if matplotlib is installed; what differs from the defaults is added to both names
(evaluation_test_full_keep-seen_last.json). --ranks=FILE.npz also writes the rank of every target:
its user, and how many candidates score higher (`greater`) and the same (`ties`).
"""

import dataclasses
import pathlib

import jax
import numpy as np
from absl import flags

from jaxrec import baselines, cli, cluster, config, files, protocols
from jaxrec.cli import UserError, say
from jaxrec.feed import feature_codes
from jaxrec.plots import plot_metric_at_k
from jaxrec.ranking import LISTED, Ranker
from jaxrec.workdir import Trained, load_trained

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    cluster.define_flags()
    flags.DEFINE_string('workdir', None, 'Folder of the run.')
    flags.DEFINE_string('split', 'test', 'valid or test.')
    flags.DEFINE_string(
        'protocol', None, f"{', '.join(protocols.NAMES)}; by default the run's own."
    )
    flags.DEFINE_bool(
        'filter_seen',
        None,
        "Protocol full: score seen items -inf; by default as in the run's config.",
    )
    flags.DEFINE_integer(
        'negatives',
        None,
        "Candidates of the protocols uniform and popularity; by default the run's.",
    )
    flags.DEFINE_string('ranks', None, 'Also write the rank of every target to this .npz file.')
    flags.DEFINE_string('checkpoint', 'best', 'best (by validation) or last.')
    flags.DEFINE_bool(
        'json', False, 'Print the result as one JSON object, the last line of stdout.'
    )


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    with cluster.joined():
        _main()


def _main() -> None:
    if not FLAGS.workdir:
        raise UserError('give --workdir=DIR, the folder of a run (see --help)')
    if FLAGS.split not in ('valid', 'test'):
        raise UserError(f"unknown --split={FLAGS.split}: use 'valid' or 'test'")
    if FLAGS.protocol is not None and FLAGS.protocol not in protocols.NAMES:
        raise UserError(
            f'unknown --protocol={FLAGS.protocol}: use one of {", ".join(protocols.NAMES)}'
        )
    trained = load_trained(FLAGS.workdir, FLAGS.checkpoint)
    given = {
        'protocol': FLAGS.protocol,
        'filter_seen': FLAGS.filter_seen,
        'negatives': FLAGS.negatives,
    }
    settings = dataclasses.replace(
        trained.experiment.eval, **{k: v for k, v in given.items() if v is not None}
    )
    protocol = protocols.protocol_of(settings)
    if FLAGS.negatives is not None and protocol.name not in protocols.SIZED:
        raise UserError(
            f'--negatives goes with --protocol={" or ".join(protocols.SIZED)}, not {protocol.name}'
        )
    if FLAGS.filter_seen is not None and protocol.candidates != 'all':
        raise UserError(f'--filter_seen goes with --protocol=full, not {protocol.name}')
    ranks = FLAGS.ranks and pathlib.Path(FLAGS.ranks)
    result = evaluate(trained, FLAGS.split, protocol, FLAGS.checkpoint, ranks)
    say(report(result))
    if jax.process_index() == 0:
        write(result, trained.workdir)
    cli.emit(result)


def evaluate(
    trained: Trained,
    which: str,
    protocol: protocols.Protocol,
    checkpoint: str = 'best',
    ranks: pathlib.Path | None = None,
) -> dict:
    """Ranks the targets of split `which` with the model and with the baselines.

    Args:
      trained: the model and its data.
      which: 'valid' or 'test'.
      protocol: how to rank.
      checkpoint: that `trained` is of, to be noted.
      ranks: file to write the rank of every target to.

    Returns:
      JSON-ready: split, metrics, buckets and interests of the model, baselines {name: metrics},
      protocol, users, unreachable, cold (see `ranking.Result`), too_few_candidates (users),
      data_hash, data_split, seed (of training), checkpoint, step, workdir.
    """
    ranker = Ranker(
        trained.graphdef,
        trained.histories,
        trained.split,
        which,
        protocol,
        max_len=trained.experiment.model.max_len,
        batch_users=trained.experiment.eval.batch_users,
        codes=feature_codes(trained.experiment.model, trained.histories, trained.split.train_ends),
        coverage=True,
    )
    result = ranker(trained.params)
    if ranks is not None and jax.process_index() == 0:
        with files.replacing(ranks) as partial, open(partial, 'wb') as file:
            np.savez(file, users=result.targets.users, greater=result.greater, ties=result.ties)
    others = baselines.evaluate(ranker.task)
    return {
        'split': which,
        'metrics': result.metrics,
        'baselines': {name: other.metrics for name, other in others.items()},
        'buckets': result.buckets,
        'interests': result.interests,
        'protocol': result.protocol,
        'data_hash': trained.data_hash,
        'data_split': trained.experiment.data.split,
        'seed': trained.experiment.train.seed,
        'users': result.users,
        'unreachable': result.unreachable,
        'cold': result.cold,
        'too_few_candidates': ranker.task.too_few_candidates(),
        'checkpoint': checkpoint,
        'step': trained.step,
        'workdir': str(trained.workdir),
    }


def report(result: dict) -> str:
    """The result as text: metrics by scorer, popularity buckets, and what they were taken under."""
    scorers = {'model': result['metrics'], **result['baselines']}
    names = [n for n in result['metrics'] if not n.startswith('Recall')]  # equal to HR
    rows = [['', *(s.replace('_', ' ') for s in scorers)]]
    rows += [[name, *(_number(values.get(name)) for values in scorers.values())] for name in names]

    deepest = 10 if 10 in result['protocol']['cutoffs'] else max(result['protocol']['cutoffs'])
    shown = (f'HR@{deepest}', f'NDCG@{deepest}')
    buckets = [['target is', 'users', *shown]]
    for name, values in result['buckets'].items():
        buckets.append([name, f'{values["users"]:,}', *(_number(values.get(s)) for s in shown)])

    protocol = ', '.join(f'{k}={_plain(v)}' for k, v in result['protocol'].items())
    about = [
        f'{result["workdir"]}: {result["checkpoint"]} checkpoint, step {result["step"]}, '
        f'training seed {result["seed"]}',
        f'{result["split"]} split ({result["data_split"]}), {result["users"]:,} users; '
        f'unreachable targets {result["unreachable"]:.2%}, cold targets {result["cold"]:.2%}',
        f'protocol: {protocol}',
        f'data hash: {result["data_hash"]}',
    ]
    if result['too_few_candidates']:
        about.append(
            f'warning: for {result["too_few_candidates"]:,} users the catalogue has fewer than '
            f'{result["protocol"]["negatives"]} candidates: they are ranked against what there is'
        )
    lines = [*about, '', *_aligned(rows), '', *_aligned(buckets)]
    if result['interests']:
        lines += ['', *_interests(**result['interests'])]
    return '\n'.join(lines)


def _interests(target_wins: list[float], list_wins: list[float], similarity: float) -> list[str]:
    numbers = [str(n + 1) for n in range(len(target_wins))]
    rows = [
        ['interest', *numbers],
        ['wins of targets', *map(_number, target_wins)],
        [f'wins of top {LISTED}', *map(_number, list_wins)],
    ]
    return [*_aligned(rows), f"mean cosine between two of a user's interests: {similarity:.3f}"]


def write(result: dict, workdir: pathlib.Path) -> None:
    """Writes the result and, if matplotlib is there, its picture into `workdir`."""
    kind = _kind(result)
    path = workdir / f'evaluation_{kind}.json'
    files.write_json(path, result)
    say(f'\nwritten: {path}')
    picture = workdir / f'metric_at_k_{kind}.png'
    missing = plot_metric_at_k(picture, {'model': result['metrics'], **result['baselines']})
    say(f'no {picture.name}: {missing}' if missing else f'written: {picture}')


def _kind(result: dict) -> str:
    """Part of the file names: the split, the protocol, and what differs from the defaults."""
    protocol = result['protocol']
    parts = [result['split'], protocol['name']]
    if protocol['name'] == 'full' and not protocol['filter_seen']:
        parts.append('keep-seen')
    if protocol['name'] in protocols.SIZED and protocol['negatives'] != config.Eval.negatives:
        parts.append(f'{protocol["negatives"]}-negatives')
    if result['checkpoint'] != 'best':
        parts.append(result['checkpoint'])
    return '_'.join(parts)


def _aligned(rows: list[list[str]]) -> list[str]:
    """First column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        '  '.join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.4f}'


def _plain(value) -> str:
    return ','.join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == '__main__':
    define_flags()
    cli.run(main)
