r"""Trains an experiment; run again with the same --workdir, it goes on where it stopped.

python -m jaxrec.train --config=experiments/quickstart.py --workdir=runs/quickstart \
    [--config.model.dim=128 --config.train.steps=1000 --config.data.log=events.csv ...]

With --seeds_in_parallel=0,1,2 these seeds are trained in one program, into DIR/seed0, DIR/seed1 ..;
with --vary=optim.learning_rate=1e-3,3e-3 (also several times) every seed with every value. Of
several processes each trains equally many of these runs.

The work directory gets config.json, run.json, catalogue, metrics.jsonl, checkpoints/last,
checkpoints/best, and curves.png if matplotlib is installed.

python -m jaxrec.train --dry_run --config=experiments/sasrec_beauty.py --mesh=64,8 [--items=N]

trains nothing: it compiles the step for 64 x 8 devices, which need not be here, and prints the
memory of a device, its operations and what crosses devices. --items=N plans for a catalogue of
that size instead of the data set's. --target=v5e:4x4 (or v5p:2x2x2, v6e:16x16, h100:8) compiles for
that machine, if its compiler is installed: also the first state, evaluation and lists, whether all
of it fits, the costliest operations and the time at best. --target=all compares machines.

--config.train.start_from=runs/before takes the parameters of that run's best checkpoint, as far as
the model has them by the same name, to begin with: a pre-training, or the same model with another
loss (see jaxrec/training/warm_start.py). With --config.train.grow it goes on from a run on an
earlier state of the log: items keep what was learnt, new ones are added, those that are gone are
left behind.

--config.task.periods=12 trains in time order, as a service does: the events are cut by time into
periods of equally many, and each is predicted before it is learnt.

Every field of the experiment is a flag, with these defaults where the experiment file says nothing
(the model's own fields are in jaxrec/models/):

FIELDS
"""

import dataclasses
import sys

import jax
from absl import flags

from jaxrec import cli, experiment
from jaxrec.cli import say
from jaxrec.devices import cluster, programs, target
from jaxrec.errors import AGAIN, UserError
from jaxrec.malloc import keep_freed
from jaxrec.serving import recommender
from jaxrec.training import plan, plan_text
from jaxrec.training.loop import fit, fit_together
from jaxrec.training.parallel_runs import expand

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    cli.define_run_flags()
    flags.DEFINE_bool('dry_run', False, 'Train nothing; print what a step costs on --mesh.')
    flags.DEFINE_string('mesh', '', 'DATA,MODEL: devices of a --dry_run, which need not be here.')
    flags.DEFINE_string('target', '', 'v5e:4x4, h100:8, ..: compile a --dry_run for it; or all.')
    flags.DEFINE_integer('items', 0, 'Catalogue of a --dry_run; 0 = that of the data set.')
    flags.DEFINE_list('seeds_in_parallel', [], 'Seeds to train in one program, into DIR/seedN.')
    flags.DEFINE_multi_string('vary', [], 'FIELD=VALUE,VALUE: values to train in one program.')
    cluster.define_flags()


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    programs.keep()
    if FLAGS.dry_run:
        cli.emit(_plan(cli.given_experiment()))
        return
    if FLAGS.mesh or FLAGS.items or FLAGS.target:
        raise UserError(
            '--mesh, --items and --target go with --dry_run; to train, --config.mesh.model=N'
        )
    with cluster.joined():
        given, folder = cli.given_run()
        asked = cluster.StopSignal()
        options = {'stop': lambda: asked.received, 'ready': keep_freed}
        if FLAGS.seeds_in_parallel or FLAGS.vary:
            experiment.check(given)
            runs = fit_together(
                expand(given, FLAGS.seeds_in_parallel, FLAGS.vary), folder, **options
            )
            summary = {'runs': runs}
        else:
            summary = fit(given, folder, **options)
            runs = {'': summary}
        stopped = any(run['stopped'] == 'signal' for run in runs.values())
        cli.emit({**summary, 'stopped': 'signal', 'exit': AGAIN} if stopped else summary)
    if stopped:
        sys.exit(AGAIN)


def _plan(given: experiment.Experiment) -> dict:
    """Prints the plan of --dry_run."""
    mesh = plan.parse_mesh(FLAGS.mesh) if FLAGS.mesh or not FLAGS.target else None
    if FLAGS.items < 0:
        raise UserError(f'--items={FLAGS.items} must not be negative')
    if FLAGS.target == 'all' and mesh:
        raise UserError('--target=all chooses the mesh of each target: leave --mesh out')
    experiment.check(given)
    # This process is to see the mesh's devices, or no more than it must, before it asks for one.
    jax.config.update('jax_platforms', 'cpu')
    if FLAGS.target == 'all':
        plans = plan.compare(given, target.ALL, FLAGS.items, recommender.planned)
        say(plan_text.table(plans))
        return {'plans': plans}
    if FLAGS.target:
        there = target.target_of(FLAGS.target)
        found = plan.plan(given, mesh, FLAGS.items, there, recommender.planned)
    else:
        jax.config.update('jax_num_cpu_devices', mesh.data * mesh.model)
        found = plan.plan(given, mesh, FLAGS.items)
    say(plan_text.text(found, given.train.batch_rows))
    return found


def fields() -> str:
    """The flags of an experiment's fields and their defaults, for --help."""
    default = experiment.Experiment()
    return '\n'.join(
        f'  --config.{section}.{field.name}={getattr(getattr(default, section), field.name)}'
        for section in experiment.SECTIONS
        if section != 'model'
        for field in dataclasses.fields(getattr(default, section))
    )


if __name__ == '__main__':
    sys.modules['__main__'].__doc__ = __doc__.replace('FIELDS', fields())
    define_flags()
    cli.run(main)
