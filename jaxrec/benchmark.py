r"""Measures speed and memory, alone or in turns with another library on the same machine.

python -m jaxrec.benchmark --suite=train --config=experiments/quickstart.py [--json]
python -m jaxrec.benchmark --suite=train --config=experiments/sasrec_beauty.py \
    --config.model.dim=64 --peer=rectools --peer_python=OTHER_VENV/bin/python
python -m jaxrec.benchmark --suite=train --config=experiments/lightgcn_gowalla.py:simgcl \
    --peer=torch-graph --peer_python=OTHER_VENV/bin/python

--suite=train      the training step: targets/s, share of the matrix-product rate
--suite=eval       users/s of ranking all users of the test split, with their top-10 lists
--suite=loss       the exact softmax by itself, value and gradients, up to 25k tokens x 1M items
--suite=catalogue  step time and peak memory from 10k to 10M items, a sampled loss
--suite=data       the training command on 2M and on 200M generated events: targets/s and memory
--suite=lists      jaxrec.load(run).recommend after 256 histories at once and one by one
--suite=serve      the service under 1, 16 and 64 clients: requests/s, and how long an answer takes
--suite=soak       ten minutes of a service that is killed, reloaded and asked wrongly
--suite=ann        the graph of an exported model beside exact lists, 10k to 1M items, and of a run
--suite=bulk       recommend --users=all for 2.5M and 10M generated users: users/s and memory

Suites lists, serve, soak and ann take --workdir=DIR, a run, or make a model of --config (of which
recall means nothing). Compilation and warm-up are left out; figures are medians over --repeats
turns, each of which also times a large matrix product on every device. With --peer every turn also
runs the peer on the same data with the same model size, loss and batch; with
--against=model.contrast.0.weight=0 it also runs the step of the experiment changed like that.
--output=DIR gets benchmark_<suite>.json, .md and .png. Several processes measure train and eval
together, their rates summed; the other suites and a peer are for one.
"""

import pathlib

import jax
from absl import flags
from ml_collections import config_flags

from jaxrec import cli
from jaxrec.benchmarks import (
    ann,
    bulk,
    data,
    evaluation,
    lists,
    measure,
    report,
    service,
    sizes,
    soak,
    training,
)
from jaxrec.benchmarks import peer as peer_lib
from jaxrec.cli import say
from jaxrec.devices import cluster
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, check, parsed
from jaxrec.training import workdir

FLAGS = flags.FLAGS
_PLACES = ('data.source', 'data.data_dir')
_SHARED = ('train', 'eval')  # which several processes measure together
SUITES = ('train', 'eval', 'loss', 'catalogue', 'data', 'lists', 'serve', 'soak', 'ann', 'bulk')
_OF_RUNS = ('lists', 'serve', 'soak', 'ann')  # which take --workdir


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    config_flags.DEFINE_config_file(
        'config', None, 'Experiment file, optionally with an argument: experiments/x.py[:arg].'
    )
    flags.DEFINE_string('workdir', None, 'Suites lists, serve, soak and ann: folder of a run.')
    cluster.define_flags()
    flags.DEFINE_string('suite', None, ', '.join(SUITES) + '.')
    flags.DEFINE_integer('repeats', 5, 'Turns; the figures are medians over them.')
    flags.DEFINE_integer('steps', 0, 'Steps of one turn; 0 = about two seconds of them.')
    flags.DEFINE_integer(
        'users_per_batch',
        None,
        'Suite train: as many rows as hold about so many users (128 with --peer=rectools); 0 = '
        'train.batch_rows.',
    )
    flags.DEFINE_multi_string(
        'against',
        [],
        'Suite train: FIELD=VALUE of a second experiment whose step takes its turns too: the ratio '
        'of the two is what the field costs.',
    )
    flags.DEFINE_integer(
        'matmul_size', 0, 'Rows of the square product; 0 = 2048 on a CPU, 8192 elsewhere.'
    )
    flags.DEFINE_string(
        'peer', None, f'Run in turns with this library: {", ".join(peer_lib.PEERS)}.'
    )
    flags.DEFINE_string('peer_python', None, 'Python of an environment that has the peer.')
    flags.DEFINE_integer(
        'peer_batches', 0, "Suite train: cut the peer's turn after so many batches; 0 = an epoch."
    )
    flags.DEFINE_integer(
        'peer_users', 0, 'Suite eval: the peer serves the first so many users only; 0 = all.'
    )
    flags.DEFINE_list(
        'cases',
        None,
        'Suites loss and catalogue: sizes instead of the usual ones, ascending: 6400x12000x64 '
        '(tokens x items x dim) or 100000 (items). Suite data: events of the small and the large '
        'log, 2000000,200000000; bulk: users of both. Suite serve: clients; soak: seconds; ann: '
        'items.',
    )
    flags.DEFINE_integer('max_items', 10_000_000, 'Suites loss and catalogue: largest catalogue.')
    flags.DEFINE_float(
        'max_seconds',
        30.0,
        'Suites loss and catalogue: leave out a size of which one step would take longer.',
    )
    flags.DEFINE_bool('one_case', False, 'Measure the first of --cases alone, in this process.')
    flags.DEFINE_string('output', None, 'Folder for a JSON file, a Markdown table and a PNG.')
    flags.DEFINE_bool(
        'json', False, 'Print the result as one JSON object, the last line of stdout.'
    )


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    with cluster.joined():
        _main()


def _main() -> None:
    if FLAGS.suite not in SUITES:
        given = f'unknown --suite={FLAGS.suite}' if FLAGS.suite else 'no --suite'
        raise UserError(f'{given}: use one of {", ".join(SUITES)}')
    if FLAGS.repeats < 1 or FLAGS.steps < 0:
        raise UserError('--repeats must be at least 1 and --steps must not be negative')
    if FLAGS.workdir is not None and FLAGS.suite not in _OF_RUNS:
        raise UserError(f'--workdir goes with --suite={", ".join(_OF_RUNS)}, not {FLAGS.suite}')
    if FLAGS.config is None and FLAGS.suite not in ('loss', *_OF_RUNS):
        raise UserError(f'--suite={FLAGS.suite} needs --config=experiments/X.py')
    if FLAGS.config is not None:
        check(FLAGS.config)
        if FLAGS.suite not in ('train', 'serve') and not hasattr(FLAGS.config.task, 'protocol'):
            raise UserError(f'--suite={FLAGS.suite} needs a task that ranks items')
    peer_lib.check(FLAGS.peer, FLAGS.peer_python, FLAGS.suite)
    if cluster.together():
        _check_processes()
    settings = {'repeats': FLAGS.repeats, 'matmul_size': FLAGS.matmul_size}
    if FLAGS.suite in ('loss', 'catalogue') and FLAGS.one_case and FLAGS.cases:
        one = (FLAGS.suite, FLAGS.cases[0], FLAGS.config, FLAGS.steps)
        cli.emit(sizes.measure_one(*one, **settings))
        return
    result = _run(settings)
    say(report.text(result))
    if FLAGS.output and jax.process_index() == 0:
        report.write(result, pathlib.Path(FLAGS.output))
    cli.emit(result)


def _check_processes() -> None:
    """Raises UserError for what one process measures by itself."""
    if FLAGS.suite not in _SHARED:
        raise UserError(
            f'--suite={FLAGS.suite} starts processes of its own, and here are several: start one '
            f'(several measure {" and ".join(_SHARED)} together)'
        )
    if FLAGS.peer:
        raise UserError(
            f'--peer={FLAGS.peer} runs beside one process, here are several: start one, or leave '
            '--peer out'
        )


def _run(settings: dict) -> dict:
    peer = _peer if FLAGS.peer else None
    changed = parsed(FLAGS.against, '--against')
    if changed and FLAGS.suite != 'train':
        raise UserError(f'--against goes with --suite=train, not {FLAGS.suite}')
    if FLAGS.suite == 'train':
        users = FLAGS.users_per_batch
        if users is None:
            users = peer_lib.BATCH_USERS if FLAGS.peer == 'rectools' else 0
        measured = training.measure_training(
            FLAGS.config,
            steps=FLAGS.steps,
            users_per_batch=users,
            peer=peer,
            against=_against(changed) if changed else None,
            **settings,
        )
    elif FLAGS.suite == 'data':
        measured = data.measure_data(
            FLAGS.config, FLAGS.cases, repeats=FLAGS.repeats, steps=FLAGS.steps
        )
    elif FLAGS.suite == 'bulk':
        measured = bulk.measure_bulk(FLAGS.config, FLAGS.cases)
    elif FLAGS.suite in _OF_RUNS:
        run = FLAGS.config, FLAGS.workdir
        if FLAGS.suite == 'lists':
            measured = lists.measure_lists(*run, repeats=FLAGS.repeats, peer=peer)
        elif FLAGS.suite == 'soak':
            measured = soak.measure_soak(*run, FLAGS.cases)
        else:
            suite = {'serve': service.measure_service, 'ann': ann.measure_ann}[FLAGS.suite]
            measured = suite(*run, FLAGS.cases, FLAGS.repeats)
    elif FLAGS.suite in ('loss', 'catalogue'):
        limits = {'max_items': FLAGS.max_items, 'max_seconds': FLAGS.max_seconds}
        measured = sizes.measure_sizes(FLAGS.suite, FLAGS.cases, **limits)
    else:
        measured = evaluation.measure_evaluation(FLAGS.config, peer=peer, **settings)
    return {
        'suite': FLAGS.suite,
        **_configuration(),
        'against': changed or None,
        **measured,
        'device': measure.device(),
        'versions': workdir.versions(),
    }


def _against(changed: dict) -> Experiment:
    """The experiment with these fields changed; on the same data and mesh."""
    experiment = applied(FLAGS.config, changed)
    check(experiment)
    if (experiment.data, experiment.mesh) != (FLAGS.config.data, FLAGS.config.mesh):
        raise UserError('--against changes the model or its training, not data or mesh')
    return experiment


def _peer(experiment, problem, users=None) -> peer_lib.Peer:
    """Starts the peer on the data of the suite; `users` are those of suite lists."""
    if FLAGS.peer == 'torch-rechub':
        spec = peer_lib.click_spec(experiment, FLAGS.peer_batches)
        columns = peer_lib.click_columns(problem.periods[0]().batches)
        return peer_lib.Peer(FLAGS.peer, FLAGS.peer_python, spec, columns)
    histories, split = problem.source, problem.split
    if FLAGS.peer == 'torch-graph':
        spec = peer_lib.graph_spec(experiment, FLAGS.peer_batches)
        columns = peer_lib.train_columns(histories, split)
    elif FLAGS.suite == 'train':
        spec = peer_lib.train_spec(experiment, FLAGS.peer_batches)
        columns = peer_lib.train_columns(histories, split)
    elif FLAGS.suite == 'lists':
        spec = {**peer_lib.eval_spec(experiment, 'lists'), **lists.SIZES}
        columns = peer_lib.lists_columns(histories, split, users)
    else:
        spec = peer_lib.eval_spec(experiment)
        columns = peer_lib.eval_columns(histories, split, FLAGS.peer_users)
    return peer_lib.Peer(FLAGS.peer, FLAGS.peer_python, spec, columns)


def _configuration() -> dict:
    """The experiment file and what the command line changes in it, but for where files are."""
    if FLAGS.config is None:
        return {'config': None, 'overrides': {}}
    changed = config_flags.get_override_values(FLAGS['config'])
    return {
        'config': config_flags.get_config_filename(FLAGS['config']),
        'overrides': {k: v for k, v in changed.items() if k not in _PLACES},
    }


if __name__ == '__main__':
    define_flags()
    cli.run(main)
