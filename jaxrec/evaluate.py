r"""Evaluates a trained model beside what has nothing to learn, under a recorded protocol.

python -m jaxrec.evaluate --workdir=runs/quickstart [--split=test] [--checkpoint=best] \
    [--task.protocol=uniform --task.negatives=50 ...] [--output=FILE.json] [--json]

--task.FIELD=VALUE changes a field of the run's task, its protocol above all; what differs from the
run is added to the names of the files. Writes evaluation_<split>[_<field>-<value>].json into the
work directory, or FILE.json, and, if matplotlib is installed, pictures beside it: of metrics with
cut-offs, of calibration, of experts. --base=FILE.json,.. tells what is gained over the reports of
other runs: over models of one label each, what learning labels together gains. --kept=FILE.npz also
writes what the values of single users follow from: of a ranking, how many candidates score higher
than each target (`greater`) and the same (`ties`), and who is of which group.
--task.popularity=True also tells, of any model whose items are ranked, how popular those in its
lists are (Gini, mean log-popularity, coverage), and metrics by decile of the target's popularity.
"""

import os
import pathlib
import sys
import tempfile
import types
from typing import Any

import jax
import numpy as np
from absl import flags

from jaxrec import cli, files
from jaxrec.cli import say
from jaxrec.devices import cluster, programs
from jaxrec.errors import UserError
from jaxrec.evaluation import report
from jaxrec.experiment import parsed
from jaxrec.malloc import keep_freed
from jaxrec.problem import Measured, Task
from jaxrec.training.measure import as_json, evaluate
from jaxrec.training.restore import load_trained

FLAGS = flags.FLAGS
REPORT = {  # of what `--base` names
    'metrics': {},
    'protocol': {},
    'data_hash': str,
    'split': str,
    'examples': int,
    'seed': int,
}


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    cluster.define_flags()
    flags.DEFINE_string('workdir', None, 'Folder of the run.')
    flags.DEFINE_string('split', 'test', "Which of the task's evaluations: valid or test.")
    flags.DEFINE_multi_string(
        'task', [], '--task.FIELD=VALUE: fields of the task that differ from the run.'
    )
    flags.DEFINE_string('output', None, 'File of the report (.json), instead of one in --workdir.')
    flags.DEFINE_string('kept', None, "Also write what single users' values follow from (.npz).")
    flags.DEFINE_list(
        'base', [], 'Reports (.json) of other runs on the same rows, to compare with.'
    )
    flags.DEFINE_string('checkpoint', 'best', 'best (by validation) or last.')
    flags.DEFINE_bool(
        'json', False, 'Print the result as one JSON object, the last line of stdout.'
    )


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    programs.keep()
    with cluster.joined():
        _main()


def _main() -> None:
    if not FLAGS.workdir:
        raise UserError('give --workdir=DIR, the folder of a run (see --help)')
    given = parsed([f'task.{word}' for word in FLAGS.task], '--task')
    changed = {name.removeprefix('task.'): value for name, value in given.items()}
    kept, workdir = FLAGS.kept and pathlib.Path(FLAGS.kept), pathlib.Path(FLAGS.workdir)
    name = '_'.join([FLAGS.split, *(f'{n}-{v}' for n, v in changed.items())])
    if FLAGS.checkpoint != 'best':
        name += f'_{FLAGS.checkpoint}'
    output = pathlib.Path(FLAGS.output or workdir / f'evaluation_{name}.json')
    bases = {path: files.read_json(pathlib.Path(path), REPORT) for path in FLAGS.base}
    trained = load_trained(workdir, FLAGS.checkpoint, changed)
    if jax.process_index() == 0:
        _check_writable(output, '--output=FILE.json writes the report elsewhere')
        if kept:
            _check_writable(kept, 'choose another --kept')
    keep_freed()
    evaluation, measured, references = evaluate(trained, FLAGS.split)
    result = as_json(trained, FLAGS.split, evaluation, measured, references)
    if FLAGS.base:
        result['details']['gains'] = gains(trained.experiment.task, result, bases)
    say(report.text(result))
    if jax.process_index() == 0:
        if kept:
            with files.replacing(kept) as partial, open(partial, 'wb') as file:
                np.savez(file, **measured.to_keep())
        report.write(result, output)
    cli.emit(result)


def _check_writable(path: pathlib.Path, advice: str) -> None:
    """Raises UserError, before the work, if a file cannot be written there."""
    if path.is_dir():
        raise UserError(f'{path} is a folder: {advice}')
    try:
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as e:
        raise UserError(f'cannot write {path}: {e.strerror}; {advice}') from e


def gains(task: Task, result: dict, bases: dict[str, dict]) -> dict[str, dict]:
    """`Task.gains` over reports, by metric; of a metric that several have the last one's.

    Args:
      task: of the run.
      result: its report.
      bases: other reports by their path.

    Raises:
      UserError: a report of other examples, or made in another way.
    """
    found = {}
    for path, base in bases.items():
        for name in ('data_hash', 'split', 'examples'):
            if base[name] != result[name]:
                raise UserError(f'--base={path} has {name}={base[name]}, this run {result[name]}')
        try:
            found |= task.gains(result, base)
        except UserError as e:
            raise UserError(f'--base={path}: {e}') from e
    return found


class _Callable(types.ModuleType):
    """This module, which is a command, as the function `jaxrec.evaluate`."""

    def __call__(
        self,
        workdir: str | os.PathLike,
        split: str = 'test',
        *,
        checkpoint: str = 'best',
        **task: Any,
    ) -> Measured:
        """Measures the model of a run.

        Args:
          workdir: folder of the run.
          split: one of the task's evaluations, 'valid' or 'test'.
          checkpoint: 'best' or 'last'.
          task: fields of the task that differ from the run's: protocol='uniform'.
        """
        return evaluate(load_trained(workdir, checkpoint, task), split)[1]


sys.modules[__name__].__class__ = _Callable

if __name__ == '__main__':
    define_flags()
    cli.run(main)
