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

from jaxrec import cli, files
from jaxrec.cli import say
from jaxrec.devices import cluster
from jaxrec.errors import UserError
from jaxrec.evaluation import baselines, protocols
from jaxrec.evaluation.ranking import Ranker
from jaxrec.evaluation.report import report, write
from jaxrec.tasks.next_item import feature_codes
from jaxrec.training.restore import Trained, load_trained

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


if __name__ == '__main__':
    define_flags()
    cli.run(main)
