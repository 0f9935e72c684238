r"""Top-k lists from a trained model: for a history, for a user, or for any number of them.

python -m jaxrec.recommend --workdir=DIR --history=ID,ID,...       (oldest first)
python -m jaxrec.recommend --workdir=DIR --history_file=FILE [--output=FILE.parquet]
python -m jaxrec.recommend --workdir=DIR --histories=LOG --output=FILE.parquet    (new users)
python -m jaxrec.recommend --workdir=DIR --user=ID
python -m jaxrec.recommend --workdir=DIR --text="WORD WORD .."
python -m jaxrec.recommend --workdir=DIR --users=FILE --output=FILE.parquet
python -m jaxrec.recommend --workdir=DIR --user=ID --rerank=RANKER [--weights=click=1,like=2]

Ids are those of the data, exactly. --history is a line of CSV, in which an id with a comma stands
in double quotes (--history='"shoe, size 1",b'), or a JSON list. A FILE of ids has one per line; one
named .json or .jsonl holds lists, and may hold many histories (see jaxrec/serving/given_ids.py).
--users=all takes every user of the data. --histories is a log of users that may be new, with the
columns of the run's own (see jaxrec/datasets/log_file.py), or a .json or .jsonl file of histories.

--text asks a model that reads the items' texts for what goes with these words.

Histories and texts need the work directory alone, wherever it is. Users need the data that it was
trained on.

--output ends in .parquet or .csv. A bulk run that was killed goes on where it stopped when started
again. Items of the history are left out unless --keep_seen, those of --exclude=FILE always, and
with --allow=FILE all that it does not name. With --domain=NAME lists have items of one domain of
the data alone, also for who has events in another one only. With --explain each row says which of
the user's vectors (interests of a multi-interest model, numbered from 1) found the item.

With --rerank=RANKER, the folder of a click model, the first --candidates items are put in the order
of the sum of weight * probability over its labels, all weights 1 without --weights; the best --k
are shown. --combined=product takes the product of (1 + probability)^weight instead.
--context='{"hour": 20}' has the values of the ranker's fields of a row. With --history the user is
one that the ranker does not know.
"""

import itertools
import pathlib

import numpy as np
from absl import flags

from jaxrec import cli, datasets
from jaxrec.cli import say
from jaxrec.config import Data
from jaxrec.data import domains
from jaxrec.data.catalogue import Items
from jaxrec.data.histories import Histories
from jaxrec.devices import cluster, programs
from jaxrec.errors import UserError
from jaxrec.malloc import keep_freed
from jaxrec.serving import given_ids
from jaxrec.serving.bulk import check_output, write_lists
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.rerank import COMBINED, Reranker, parse_context, parse_weights
from jaxrec.serving.scorer import Scorer
from jaxrec.training.restore import Trained, load_trained

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    cluster.define_flags()
    flags.DEFINE_string('workdir', None, 'Folder of the run.')
    flags.DEFINE_string('history', None, 'Raw item ids, a line of CSV or JSON, oldest first.')
    flags.DEFINE_string('history_file', None, 'File of one history, or of many with --output.')
    flags.DEFINE_string('histories', None, 'Log of new users, or .jsonl of histories; --output.')
    flags.DEFINE_string('text', None, 'Words, of a model that reads the texts of items.')
    flags.DEFINE_string('user', None, 'Raw id of a user of the data; all events are used.')
    flags.DEFINE_string('users', None, "File of raw user ids, or 'all'.")
    flags.DEFINE_string('output', None, 'FILE.parquet or FILE.csv; for --users, --history_file.')
    flags.DEFINE_integer('k', 10, 'Items per list.')
    flags.DEFINE_string('exclude', None, 'File of raw item ids that no list may have.')
    flags.DEFINE_string('allow', None, 'File of the raw item ids that lists may have; else all.')
    flags.DEFINE_string('domain', None, 'Items of this domain only, whatever the history holds.')
    flags.DEFINE_bool('keep_seen', False, 'Also recommend items of the history.')
    flags.DEFINE_bool('explain', False, 'Say which interest of the user found each item.')
    flags.DEFINE_bool('skip_unknown', False, 'Leave out unknown ids instead of stopping.')
    flags.DEFINE_string('rerank', None, 'Folder of the run of a click model, for one list.')
    flags.DEFINE_integer('candidates', 100, 'Items that are ranked again; with --rerank.')
    flags.DEFINE_string('weights', None, 'LABEL=NUMBER,.. of the score; with --rerank.')
    flags.DEFINE_enum('combined', None, list(COMBINED), 'Of the labels; with --rerank: sum.')
    flags.DEFINE_string('context', None, 'JSON object of fields of a row; with --rerank.')
    flags.DEFINE_string('checkpoint', 'best', 'best (by validation) or last.')
    flags.DEFINE_integer('batch_users', 256, 'Users scored at once; with --output.')
    flags.DEFINE_integer('part_users', 20_000, 'Users per finished part; with --output.')
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
    names = ('history', 'history_file', 'histories', 'text', 'user', 'users')
    inputs = {name: getattr(FLAGS, name) for name in names}
    given = [f'--{name}' for name, value in inputs.items() if value is not None]
    if len(given) != 1:
        found = ' and '.join(given) or 'none of them'
        raise UserError(
            'give exactly one of --history, --history_file, --histories, --text, --user and '
            f'--users; here is {found}'
        )
    for name in ('users', 'histories'):
        if inputs[name] is not None and FLAGS.output is None:
            raise UserError(f'--{name} and --output=FILE.parquet go together')
    if FLAGS.output is not None:
        if any(inputs[name] is not None for name in ('history', 'text', 'user')):
            raise UserError('--output goes with --users, --histories and --history_file')
        check_output(pathlib.Path(FLAGS.output))
    if min(FLAGS.k, FLAGS.batch_users, FLAGS.part_users) < 1:
        raise UserError('--k, --batch_users and --part_users must be at least 1')
    if FLAGS.rerank is None:
        for name in ('weights', 'context', 'combined'):
            if getattr(FLAGS, name) is not None:
                raise UserError(f'--{name} goes with --rerank=RANKER')
    elif FLAGS.output is not None:
        raise UserError('--rerank is for one list, not for --output')
    elif FLAGS.candidates < FLAGS.k:
        raise UserError(f'--candidates={FLAGS.candidates} must be at least --k={FLAGS.k}')
    trained = load_trained(FLAGS.workdir, FLAGS.checkpoint)
    keep_freed()
    if FLAGS.output is not None:
        cli.emit(_bulk(trained))
    else:
        cli.emit(_single(trained))


def _single(trained: Trained) -> dict:
    """One list, printed as a table; returns it with raw ids."""
    reranker = _reranker() if FLAGS.rerank is not None else None
    k = FLAGS.candidates if reranker else FLAGS.k
    recommender = _recommender(trained, batch_users=1, k=k)
    catalogue = recommender.catalogue
    if FLAGS.user is not None:
        known = recommender.histories
        user = known.find_user(FLAGS.user)
        if user is None:
            hint = given_ids.near(FLAGS.user, known.find_user)
            raise UserError(f'user {FLAGS.user!r} is not in the data{hint}')
        about = {'user': known.raw_user(user)}
        listed = recommender.user(user)
    elif FLAGS.text is not None:
        about = {'text': FLAGS.text}
        listed = recommender.of_texts([FLAGS.text])[0]
    else:
        items = _one_history(catalogue)
        about = {'history': [catalogue.raw_item(item) for item in items]}
        listed = recommender.after([items])[0]
    if reranker:
        listed = reranker(about.get('user'), listed)[: FLAGS.k]
        about |= {'ranker': FLAGS.rerank, 'weights': reranker.weights}
    _print(listed, titles=catalogue.titles is not None)
    return {**about, 'items': listed, 'step': trained.step, 'workdir': str(trained.workdir)}


def _one_history(items: Items) -> list[int]:
    """Item numbers of --history, or of a --history_file that holds one."""
    if FLAGS.history is not None:
        return parse_history(items, FLAGS.history, FLAGS.skip_unknown)
    histories = read_histories(items, FLAGS.history_file, FLAGS.skip_unknown)
    if len(histories) != 1:
        raise UserError(
            f'{FLAGS.history_file} holds {len(histories):,} histories: give --output=FILE.parquet'
        )
    return histories[0]


def _reranker() -> Reranker:
    ranker = load_trained(FLAGS.rerank, FLAGS.checkpoint)
    weights, context = parse_weights(FLAGS.weights or ''), parse_context(FLAGS.context or '{}')
    return Reranker(Scorer(ranker), weights, context, FLAGS.combined or 'sum')


def _recommender(trained: Trained, batch_users: int, k: int) -> Recommender:
    items = trained.served.catalogue
    masks = {
        name: read_items(items, getattr(FLAGS, name), f'--{name}', FLAGS.skip_unknown)
        for name in ('exclude', 'allow')
        if getattr(FLAGS, name) is not None and items is not None
    }
    if FLAGS.domain is not None and items is not None:
        masks['allow'] = masks.get('allow', True) & domains.within(items, FLAGS.domain)
    return Recommender(
        trained,
        k,
        keep_seen=FLAGS.keep_seen,
        explain=FLAGS.explain,
        batch_users=batch_users,
        **masks,
    )


def read_items(items: Items, file: str, flag: str, skip_unknown: bool) -> np.ndarray:
    """bool [num_items], the items of a file of ids.

    Raises:
      UserError: not a file of ids, or unknown items (unless `skip_unknown`).
    """
    raw = given_ids.ids_of(pathlib.Path(file), flag)
    found = given_ids.numbers(raw, items.find_item, 'item', file, skip_unknown)
    chosen = np.zeros(items.num_items, bool)
    chosen[[number - 1 for number in found if number is not None]] = True
    return chosen


def _print(listed: list[dict], *, titles: bool) -> None:
    if not listed:
        filtered = {FLAGS.allow, FLAGS.exclude, FLAGS.domain} != {None}
        which = 'item that the filters leave' if filtered else 'item'
        say(f'nothing left to recommend: the history holds every {which} (see --keep_seen)')
        return
    ids = [given_ids.as_text(row['item']) for row in listed]
    width = max(4, *map(len, ids))
    title = 'title' if titles else ''
    explained = 'interest' in listed[0]
    interest = f'{"interest":>8}  ' if explained else ''
    say(f'{"rank":>4}  {"item":<{width}}  {"score":>9}  {interest}{title}'.rstrip())
    for rank, (raw, row) in enumerate(zip(ids, listed, strict=True), 1):
        interest = f'{row["interest"]:>8}  ' if explained else ''
        line = f'{rank:>4}  {raw:<{width}}  {row["score"]:9.4f}  {interest}'
        say((line + row['title']).rstrip())


def parse_history(items: Items, text: str, skip_unknown: bool) -> list[int]:
    """Item numbers of --history.

    Raises:
      UserError: it is no list of ids, an unknown id (unless `skip_unknown`), or no known one.
    """
    raw = given_ids.of_text(text, '--history')
    return _numbers_of_items(items, [raw], '--history', skip_unknown)[0]


def read_histories(items: Items, file: str, skip_unknown: bool) -> list[list[int]]:
    """Item numbers of the histories of --history_file; the same errors, and those of a file."""
    raw = given_ids.histories_of(pathlib.Path(file), '--history_file')
    return _numbers_of_items(items, raw, file, skip_unknown)


def read_log(items: Items, file: str, like: Data, skip_unknown: bool) -> Histories:
    """Histories of the users of a log, by the numbers of `items`.

    The prepared log is kept below the run's `data_dir` and memory-mapped; 4 bytes an event are
    read into memory, for a moment 17 where items are left out.

    Args:
      items: of the model.
      file: of the log.
      like: how the log of the run is read; columns of the same names are expected.
      skip_unknown: leave out items that the model does not know.

    Raises:
      UserError: it is no such log, or an item is unknown, or none is known.
    """
    fields = ('layout', 'user_col', 'item_col', 'time_col', 'columns', 'data_dir')
    same = Data(log=file, **{name: getattr(like, name) for name in fields})
    log, _ = datasets.load(same, say, '--')
    raw = [log.raw_item(number) for number in range(1, log.num_items + 1)]
    found = given_ids.numbers(raw, items.find_item, 'item', file, skip_unknown)
    table = np.array([0, *(number or 0 for number in found)], np.int32)
    if not table.any():
        raise UserError(f'{file} names no item of the data')
    numbers, offsets = table[log.items], np.asarray(log.offsets)
    if not table[1:].all():  # unknown items are events that the model does not see
        known = numbers > 0
        before = np.concatenate([[0], np.cumsum(known)])
        numbers, offsets = numbers[known], before[offsets]
    return Histories(numbers, offsets, log.user_ids, items.item_ids)


def _numbers_of_items(items, histories, where, skip_unknown):
    flat = [one for raw in histories for one in raw]
    found = iter(given_ids.numbers(flat, items.find_item, 'item', where, skip_unknown))
    numbers = [[n for n in itertools.islice(found, len(raw)) if n is not None] for raw in histories]
    if not any(numbers):
        raise UserError(f'{where} names no item of the data')
    return numbers


def _bulk(trained: Trained) -> dict:
    """Lists of --users or --history_file, written to --output."""
    recommender = _recommender(trained, FLAGS.batch_users, FLAGS.k)
    if FLAGS.users is not None:
        what, given = 'users', None
        users = read_users(recommender.histories, FLAGS.users, FLAGS.skip_unknown)
    else:
        file = FLAGS.history_file or FLAGS.histories
        if FLAGS.histories is None or pathlib.Path(file).suffix in ('.json', '.jsonl'):
            items = read_histories(recommender.catalogue, file, FLAGS.skip_unknown)
            what, given = 'histories', recommender.given(items)
        else:
            own = trained.experiment.data
            what, given = 'users', read_log(recommender.catalogue, file, own, FLAGS.skip_unknown)
        users = np.arange(given.num_users)
    output, column = pathlib.Path(FLAGS.output), 'user' if what == 'users' else 'history'
    with cli.goes_on():
        write_lists(recommender, users, output, FLAGS.part_users, FLAGS.checkpoint, given, column)
    say(f'written: {output} ({len(users):,} {what})')
    return {'output': str(output), what: len(users), 'k': recommender.k, 'step': trained.step}


def read_users(histories: Histories, source: str, skip_unknown: bool) -> np.ndarray:
    """0-based numbers int64 of the users in file `source`, or of 'all'.

    Raises:
      UserError: not a file of ids, unknown users (unless `skip_unknown`), or no known one.
    """
    if source == 'all':
        return np.arange(histories.num_users)
    raw = given_ids.ids_of(pathlib.Path(source), '--users')
    found = given_ids.numbers(raw, histories.find_user, 'user', source, skip_unknown)
    numbers = [number for number in found if number is not None]
    if not numbers:
        raise UserError(f'{source} names no user of the data')
    return np.array(numbers, np.int64)


if __name__ == '__main__':
    define_flags()
    cli.run(main)
