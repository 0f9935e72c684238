"""Prepares a data set: reads its source once and leaves what training opens.

    python -m jaxrec.prepare --dataset=ml-100k
    python -m jaxrec.prepare --dataset=beauty --source=Beauty.txt
    python -m jaxrec.prepare --dataset=synthetic:users=1000,items=200,seed=3
    python -m jaxrec.prepare --log=events.csv --user_col=uid --item_col=sku --time_col=ts

Public data sets (--dataset):
{known}

A log (--log) is a CSV, TSV or Parquet table with named columns, or text without a header: `user
item item ...` (sequences) or `user item` (pairs); plain or gzip'd. A table may be a folder or a
pattern ('day=*/*.csv') of part files. --layout=train-test is a folder of train.txt and test.txt,
perhaps valid.txt, of `user item item ...` lines. How --layout=auto tells layouts apart, and what
becomes of ids and times, is written at the top of jaxrec/datasets/log_file.py. --dry_run reads the
log and prints what was understood: columns, types, the first rows, ties, the unit of time; nothing
is written.

--texts is a table `item,text` (columns --item_col and --text_col) of the items of --log or
--dataset; items that it alone names join the catalogue.

A Parquet log of more than 16 million events is read in pieces, in little memory. One that is too
large for a machine: --log='FOLDER/*.parquet' --beam_runner=RUNNER --beam_options=OPTION,OPTION
(see jaxrec/datasets/beam.py; pip install 'jaxrec[beam]').

The result is a TFDS data set (array_record, one example = one user's time-ordered history) below
--data_dir, with the same events beside it as memory-mapped columns, which is all that training
reads. Preparing the same content again finds it finished; --clean removes copies of logs that have
changed since, and prints how large --data_dir is. Started by several processes, the first
of each file system builds, the others wait and find it.
"""

import sys
import textwrap

from absl import flags

from jaxrec import cli, datasets
from jaxrec import config as config_lib
from jaxrec.data.histories import Histories
from jaxrec.datasets import beam, clean, store, understood
from jaxrec.errors import UserError

_WIDTH = max(len(name) for name in datasets.NAMES)
_LINES = [f'  {name:{_WIDTH}}  {summary}' for name, (_, _, summary) in datasets.KNOWN.items()]
_LINES += [
    f'  {datasets.SYNTHETIC:{_WIDTH}}  generated; users, items, length, seed can be set',
    *(f'  {name:{_WIDTH}}  {summary}' for name, (_, summary) in datasets.GENERATED.items()),
]
__doc__ = (__doc__ or '').format(known='\n'.join(_LINES))

DEFAULT = config_lib.Data()
TIES = 'sorted by user and time; equal times keep the order of the source'

TIES_OF_BEAM = 'sorted by user and time; equal times by item'

FLAGS = flags.FLAGS
FIELDS = (*datasets.OF_A_LOG, *datasets.OF_TEXTS)
FIELDS += ('dataset', 'source', 'log', 'min_user', 'min_item', 'data_dir')


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    names = ', '.join(datasets.NAMES)
    flags.DEFINE_string('dataset', DEFAULT.dataset, f'Public data set: {names}.')
    flags.DEFINE_string(
        'source',
        DEFAULT.source,
        'File, zip or folder to read --dataset from instead of downloading it.',
    )
    flags.DEFINE_string('log', DEFAULT.log, 'Your own interaction log, instead of --dataset.')
    layouts = ['auto', 'table', 'sequences', 'pairs', 'train-test']
    flags.DEFINE_enum('layout', DEFAULT.layout, layouts, 'Layout of --log.')
    flags.DEFINE_string('user_col', DEFAULT.user_col, 'Column of user ids in a table.')
    flags.DEFINE_string('item_col', DEFAULT.item_col, 'Column of item ids in a table.')
    flags.DEFINE_string(
        'time_col',
        DEFAULT.time_col,
        'Column of times in a table: numbers or ISO dates; --time_col= if the file is in time '
        'order.',
    )
    flags.DEFINE_string(
        'columns',
        DEFAULT.columns,
        'COL,COL: names of all columns of a text table without a header line.',
    )
    flags.DEFINE_string(
        'features',
        DEFAULT.features,
        'COL,COL: numeric columns of a table to keep with every event.',
    )
    flags.DEFINE_string(
        'domain_col',
        DEFAULT.domain_col,
        'Column of a table that says which of several catalogues the item is of, e.g. food.',
    )
    flags.DEFINE_string(
        'texts', DEFAULT.texts, 'Table of items and their texts; items may be new to the events.'
    )
    flags.DEFINE_string('text_col', DEFAULT.text_col, 'Column of --texts, or several: COL,COL.')
    flags.DEFINE_string(
        'text_columns',
        DEFAULT.text_columns,
        'COL,COL: names of all columns of --texts without a header line.',
    )
    flags.DEFINE_integer(
        'min_user', DEFAULT.min_user, 'k-core: least events of a user, iterated with --min_item.'
    )
    flags.DEFINE_integer('min_item', DEFAULT.min_item, 'k-core: least events of an item.')
    flags.DEFINE_string('data_dir', DEFAULT.data_dir, 'Where prepared data sets are kept.')
    flags.DEFINE_string(
        'beam_runner',
        '',
        'Apache Beam runner that reads --log, Parquet files, e.g. FlinkRunner.',
    )
    flags.DEFINE_list('beam_options', None, "Beam's pipeline options, e.g. --region=x,--project=y.")
    flags.DEFINE_bool('dry_run', False, 'Print what was understood of --log; write nothing.')
    flags.DEFINE_bool(
        'clean', False, 'Remove prepared copies of --log, or of all logs, that have changed since.'
    )
    flags.DEFINE_bool('json', False, 'Print the result as JSON, the last line of stdout.')


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    if FLAGS.log and (FLAGS.dataset or FLAGS.source):
        raise UserError('--log is your own file, --dataset and --source a public set: not both')
    config = config_lib.Data(**{name: FLAGS[name].value for name in FIELDS})
    if FLAGS.dry_run:
        if not FLAGS.log or FLAGS.beam_runner or FLAGS.clean:
            raise UserError('--dry_run says what was understood of --log, and goes with it alone')
        lines, remarks, statistics = understood.describe(config)
        print_lines({**lines, **of_statistics(statistics)})
        for remark in remarks:
            cli.say(f'note: {remark}')
        cli.emit({**lines, **statistics, 'remarks': remarks})
        return
    if FLAGS.clean and not (FLAGS.log or FLAGS.dataset):
        cli.emit(tidy(config.data_dir))
        return
    built = []

    def say(line: str) -> None:
        built.append(line)
        cli.say(line)

    if FLAGS.beam_runner:
        if not FLAGS.log:
            raise UserError('--beam_runner reads your own files: give --log=PATTERN')
        if FLAGS.texts:
            raise UserError('--beam_runner reads events alone: leave out --texts')
        options = tuple(FLAGS.beam_options or ())
        data, meta = beam.prepare(config, FLAGS.beam_runner, options, say)
    else:
        kind = Histories if config.log else store.Stored
        data, meta = datasets.load(config, say, flags='--', kind=kind)
    ties = TIES_OF_BEAM if FLAGS.beam_runner else TIES
    report(data, meta, found=not built, ties=ties)
    if FLAGS.clean:
        tidy(config.data_dir, FLAGS.log)


def tidy(data_dir: str, log: str = '') -> dict:
    """Removes what `clean.clean` does, and says so and how large the folder is."""
    removed = clean.clean(data_dir, log)
    for one in removed:
        cli.say(f'removed {one.path} ({one.size / 2**20:,.1f} MiB): {one.why}')
    count, size = clean.size(data_dir)
    cli.say(f'{data_dir} holds {count:,} prepared data sets, {size / 2**20:,.1f} MiB')
    return {'removed': [one.path for one in removed], 'data_sets': count, 'bytes': size}


def print_lines(lines: dict[str, str], width: int = 12) -> None:
    """Prints names and values, a line each."""
    for name, value in lines.items():
        cli.say(f'{name:{width}}  {value}')


def of_statistics(s: dict) -> dict[str, str]:
    """The statistics of histories, for people."""
    tied = s['tied_timestamps']
    return {
        'users': f'{s["users"]:,}',
        'items': f'{s["items"]:,}',
        'interactions': f'{s["interactions"]:,}',
        'mean length': f'{s["mean_length"]:.2f}',
        'density': f'{s["density"]:.3%}',
        'tied times': 'no times' if tied is None else f'{tied:.1%} of consecutive pairs of a user',
        'repeats': f'{s["repeats"]:,} events on an item the user had before',
    }


def of_others(s: dict) -> dict[str, str]:
    """The statistics of rows or graphs, for people."""
    flat = {name.replace('_', ' '): value for name, value in s.items() if name != 'labels'}
    flat |= {f'mean {label}': value for label, value in s.get('labels', {}).items()}
    return {name: _number(value) for name, value in flat.items()}


def _number(value: int | float | None) -> str:
    if value is None:
        return 'none'
    return f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'


def report(data: store.Stored, meta: dict, *, found: bool, ties: str = TIES) -> None:
    """Prints what was prepared."""
    s = meta['statistics']
    if isinstance(data, Histories):
        timed = data.times is not None
        order = ties if timed else 'in the order of the source, which has no times'
        about = {**of_statistics(s), 'order': order}
    else:
        about = of_others(s)
    lines = {
        'data set': meta['name'],
        'source': meta['source'],
        **about,
        'hash': meta['data_hash'],
        'path': meta['path'] + (' (was already prepared)' if found else ''),
    }
    print_lines(lines, max(12, *map(len, lines)))
    if meta['licence']:
        cli.say(textwrap.fill(f'licence: {meta["licence"]}', 100))
    cli.emit({'dataset': meta['name'], **s, 'data_hash': meta['data_hash'], 'path': meta['path']})


if __name__ == '__main__':
    sys.modules['__main__'].__doc__ = __doc__  # absl prints it for --help
    define_flags()
    cli.run(main)
