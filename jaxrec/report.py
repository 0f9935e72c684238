r"""A run as one HTML page that needs nothing else: curves, metrics, groups, what it recommends.

python -m jaxrec.report --workdir=DIR [--output=DIR/report.html] [--split=test]

Metrics stand beside those of what has nothing to learn, with 95 % intervals over users (rows,
graphs). Of a model that gives lists the page has an explorer: a user's history and list, what each
of several interests found, the list after a single item, the items nearest to it, and all of these
on a map of the items: the plane in which their vectors differ most. All of it is in the file, for
--users, --items and --map_items of them; it opens without a server, and is used by mouse, finger or
keys.

Without the data that the run was trained on the page has no metrics and no users, and says so.
"""

import pathlib

from absl import flags

from jaxrec import cli, files
from jaxrec.cli import say
from jaxrec.devices import programs
from jaxrec.errors import UserError
from jaxrec.malloc import keep_freed
from jaxrec.reports import run
from jaxrec.training.restore import load_trained

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    flags.DEFINE_string('workdir', None, 'Folder of the run.')
    flags.DEFINE_string('output', None, 'File of the page (.html), instead of one in --workdir.')
    flags.DEFINE_string('split', 'test', "Which of the task's evaluations: valid or test.")
    flags.DEFINE_string('checkpoint', 'best', 'best (by validation) or last.')
    flags.DEFINE_integer('users', 100, 'Users in the explorer, at most.', 1)
    flags.DEFINE_integer('items', 2000, 'Items in the explorer, at most; the most popular.', 1)
    flags.DEFINE_integer('map_items', 100_000, 'Items on the map, at most; the most popular.', 0)
    flags.DEFINE_bool(
        'json', False, 'Print the result as one JSON object, the last line of stdout.'
    )


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    programs.keep()
    if not FLAGS.workdir:
        raise UserError('give --workdir=DIR, the folder of a run (see --help)')
    output = pathlib.Path(FLAGS.output or pathlib.Path(FLAGS.workdir) / 'report.html')
    if output.is_dir():
        raise UserError(f'{output} is a folder: --output=FILE.html is the page to write')
    trained = load_trained(FLAGS.workdir, FLAGS.checkpoint)
    keep_freed()
    files.write_text(
        output, run.page(trained, FLAGS.split, FLAGS.users, FLAGS.items, FLAGS.map_items)
    )
    say(f'written: {output} ({output.stat().st_size / 1e6:.1f} MB)')
    cli.emit({'output': str(output), 'step': trained.step, 'bytes': output.stat().st_size})


if __name__ == '__main__':
    define_flags()
    cli.run(main)
