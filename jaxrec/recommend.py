r"""Top-k lists from a trained model: for a history, for a user, or for any number of users.

python -m jaxrec.recommend --workdir=DIR --history=ID,ID,...       (oldest first)
python -m jaxrec.recommend --workdir=DIR --user=ID
python -m jaxrec.recommend --workdir=DIR --users=FILE --output=FILE.parquet

Ids are those of the data. FILE has one user id per line; --users=all takes every user of the
data. A bulk run that was killed goes on where it stopped when started again. Items of the history
are left out unless --keep_seen. With --explain each row says which of the user's vectors (interests
of a multi-interest model, numbered from 1) found the item.
"""

import pathlib

import numpy as np
from absl import flags

from jaxrec import cli
from jaxrec.cli import say
from jaxrec.data.histories import Histories
from jaxrec.devices import cluster
from jaxrec.devices.malloc import keep_freed
from jaxrec.errors import UserError
from jaxrec.serving.bulk import write_lists
from jaxrec.serving.recommender import Recommender
from jaxrec.training.restore import Trained, load_trained

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    cluster.define_flags()
    flags.DEFINE_string('workdir', None, 'Folder of the run.')
    flags.DEFINE_string('history', None, 'Raw item ids, comma-separated, oldest first.')
    flags.DEFINE_string('user', None, 'Raw id of a user of the data; all events are used.')
    flags.DEFINE_string('users', None, "File with one raw user id per line, or 'all'.")
    flags.DEFINE_string('output', None, 'Parquet file to write; with --users.')
    flags.DEFINE_integer('k', 10, 'Items per list.')
    flags.DEFINE_bool('keep_seen', False, 'Also recommend items of the history.')
    flags.DEFINE_bool('explain', False, 'Say which interest of the user found each item.')
    flags.DEFINE_bool('skip_unknown', False, 'Leave out unknown ids instead of stopping.')
    flags.DEFINE_string('checkpoint', 'best', 'best (by validation) or last.')
    flags.DEFINE_integer('batch_users', 256, 'Users scored at once; with --users.')
    flags.DEFINE_integer('part_users', 20_000, 'Users per finished part; with --users.')
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
    inputs = {'--history': FLAGS.history, '--user': FLAGS.user, '--users': FLAGS.users}
    given = [name for name, value in inputs.items() if value is not None]
    if len(given) != 1:
        found = ' and '.join(given) or 'none of them'
        raise UserError(f'give exactly one of --history, --user and --users; here is {found}')
    if (FLAGS.output is None) == (FLAGS.users is not None):
        raise UserError('--users and --output=FILE.parquet go together')
    if min(FLAGS.k, FLAGS.batch_users, FLAGS.part_users) < 1:
        raise UserError('--k, --batch_users and --part_users must be at least 1')
    trained = load_trained(FLAGS.workdir, FLAGS.checkpoint)
    keep_freed()
    if FLAGS.users is not None:
        cli.emit(_bulk(trained))
    else:
        cli.emit(_single(trained))


def _single(trained: Trained) -> dict:
    """One list, printed as a table; returns it with raw ids."""
    recommender = _recommender(trained, batch_users=1)
    known = recommender.histories
    if FLAGS.user is not None:
        user = known.find_user(FLAGS.user)
        if user is None:
            raise UserError(f'user {FLAGS.user!r} is not in the data')
        about = {'user': known.raw_user(user)}
        listed = recommender.user(user)
    else:
        items = parse_history(known, FLAGS.history, FLAGS.skip_unknown)
        about = {'history': [known.raw_item(item) for item in items]}
        listed = recommender.after([items])[0]
    _print(listed, titles=known.titles is not None)
    return {**about, 'items': listed, 'step': trained.step, 'workdir': str(trained.workdir)}


def _recommender(trained: Trained, batch_users: int) -> Recommender:
    return Recommender(
        trained,
        FLAGS.k,
        keep_seen=FLAGS.keep_seen,
        explain=FLAGS.explain,
        batch_users=batch_users,
    )


def _print(listed: list[dict], *, titles: bool) -> None:
    if not listed:
        say('nothing left to recommend: the history holds every item (see --keep_seen)')
        return
    width = max(4, *(len(str(row['item'])) for row in listed))
    title = 'title' if titles else ''
    explained = 'interest' in listed[0]
    interest = f'{"interest":>8}  ' if explained else ''
    say(f'{"rank":>4}  {"item":<{width}}  {"score":>9}  {interest}{title}'.rstrip())
    for rank, row in enumerate(listed, 1):
        interest = f'{row["interest"]:>8}  ' if explained else ''
        line = f'{rank:>4}  {row["item"]!s:<{width}}  {row["score"]:9.4f}  {interest}'
        say((line + row['title']).rstrip())


def parse_history(histories: Histories, text: str, skip_unknown: bool) -> np.ndarray:
    """Item numbers int32 of comma-separated raw ids.

    Raises:
      UserError: an unknown id (unless `skip_unknown`), or no known one.
    """
    raw = [part.strip() for part in text.split(',') if part.strip()]
    numbers = [histories.find_item(part) for part in raw]
    unknown = [part for part, number in zip(raw, numbers, strict=True) if number is None]
    if unknown and not skip_unknown:
        raise UserError(
            f'item {unknown[0]!r} of --history is not in the data; --skip_unknown leaves it out'
        )
    if len(unknown) == len(raw):
        raise UserError('--history names no item of the data')
    return np.array([number for number in numbers if number is not None], np.int32)


def _bulk(trained: Trained) -> dict:
    recommender = _recommender(trained, FLAGS.batch_users)
    users = read_users(recommender.histories, FLAGS.users, FLAGS.skip_unknown)
    output = pathlib.Path(FLAGS.output)
    with cli.goes_on():
        write_lists(recommender, users, output, FLAGS.part_users, FLAGS.checkpoint)
    say(f'written: {output} ({len(users):,} users)')
    return {'output': str(output), 'users': len(users), 'k': recommender.k, 'step': trained.step}


def read_users(histories: Histories, source: str, skip_unknown: bool) -> np.ndarray:
    """0-based numbers int64 of the users in file `source` (one raw id per line), or of 'all'.

    Raises:
      UserError: not a text file, unknown users (unless `skip_unknown`), or no known one.
    """
    if source == 'all':
        return np.arange(histories.num_users)
    try:
        text = pathlib.Path(source).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as e:
        raise UserError(f'{source} is not UTF-8 text; give one user id per line') from e
    raw = [line.strip() for line in text.splitlines() if line.strip()]
    numbers = [histories.find_user(line) for line in raw]
    unknown = [line for line, number in zip(raw, numbers, strict=True) if number is None]
    if unknown and not skip_unknown:
        raise UserError(
            f'{len(unknown):,} of {len(raw):,} users of {source} are not in the data, the first is '
            f'{unknown[0]!r}; --skip_unknown leaves them out'
        )
    if unknown:
        say(f'left out {len(unknown):,} unknown users, the first is {unknown[0]!r}')
    if len(unknown) == len(raw):
        raise UserError(f'{source} names no user of the data')
    return np.array([number for number in numbers if number is not None], np.int64)


if __name__ == '__main__':
    define_flags()
    cli.run(main)
