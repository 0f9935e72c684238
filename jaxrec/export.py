r"""Exports a trained model: a folder that serves without this library, on any machine.

python -m jaxrec.export --workdir=DIR --output=FOLDER [--checkpoint=best]

FOLDER holds the function (of histories to user vectors, or of rows to scores) as StableHLO for
CPUs, CUDA, ROCm and TPUs and batches of any size, its arrays, the items with titles and vectors
(items.parquet), model.json (what it is, what it was measured at), and model.py:

    from model import Model      # in FOLDER; needs jax, numpy, and flatbuffers to read functions
    Model().recommend([['item 1', 'item 2']], k=10)      # or .score(rows) of a click model

With --ann (pip install 'jaxrec[ann]') there is also items.faiss, for many items: faster lists of
which some items may be missing; how many is measured and told.

What was written is loaded again and compared with the model; the folder appears whole or not at
all. JAX reads such functions for half a year at least: keep the work directory to export again.
"""

import pathlib

from absl import flags

from jaxrec import cli
from jaxrec.cli import say
from jaxrec.devices import programs
from jaxrec.errors import UserError
from jaxrec.serving import export
from jaxrec.training.restore import load_trained

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    flags.DEFINE_string('workdir', None, 'Folder of the run.')
    flags.DEFINE_string('output', None, 'Folder to write; an exported model there is replaced.')
    flags.DEFINE_string('checkpoint', 'best', 'best (by validation) or last.')
    flags.DEFINE_bool('ann', False, 'Also an index that finds most of the best items faster.')
    flags.DEFINE_bool(
        'json', False, 'Print the result as one JSON object, the last line of stdout.'
    )


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    programs.keep()
    if not FLAGS.workdir or not FLAGS.output:
        raise UserError('give --workdir=DIR and --output=FOLDER (see --help)')
    output = pathlib.Path(FLAGS.output)
    export.check_output(output, FLAGS.ann)
    about = export.write(load_trained(FLAGS.workdir, FLAGS.checkpoint), output, FLAGS.ann)
    check = about['check']
    equal = f'{check["ids_equal"]:.2%} of the ids equal, ' if 'ids_equal' in check else ''
    compared = f'{check.get("lists", check.get("rows")):,} {about["kind"]}'
    say(f'loaded again: {compared}, {equal}largest score difference {check["difference"]:.2g}')
    if ann := about.get('ann'):
        ann = {name: round(value, 4) for name, value in ann.items()}
        say(f'index: {", ".join(f"{name} {value}" for name, value in ann.items())}')
        if ann['milliseconds'] > ann['exact_milliseconds']:
            say('lists of all items are faster here: leave items.faiss out')
    say(f'written: {output}')
    told = {name: about[name] for name in ('kind', 'step', 'check', 'ann') if name in about}
    cli.emit({'output': str(output), **told})


if __name__ == '__main__':
    define_flags()
    cli.run(main)
