"""Data sets: a public one by name, a generated one, or your own log. `load` is all training needs.

Prepared data sets are kept below config.data_dir (see `store`); opening one again needs neither its
source nor TFDS. A new public data set is a `public.DataSet` in a file here and a line in KNOWN.
"""

import difflib
import importlib
import pathlib
import re
from collections.abc import Callable

from jaxrec import config as config_lib
from jaxrec.data.graph import Graph
from jaxrec.data.histories import Histories
from jaxrec.data.rows import Columns
from jaxrec.datasets import store
from jaxrec.errors import UserError

# name -> file here, its DataSet, and a summary for --help
KNOWN = {
    'ml-100k': ('movielens', 'ML_100K', 'MovieLens-100K: ratings, times and titles'),
    'ml-1m': ('movielens', 'ML_1M', 'MovieLens-1M: ratings, times and titles'),
    'ml-1m-sasrec': ('sasrec_text', 'ML_1M', 'MovieLens-1M in the order SASRec published'),
    'games': ('sasrec_text', 'GAMES', 'Amazon Video Games as SASRec published it'),
    'beauty': ('s3rec', 'BEAUTY', 'Amazon Beauty, the 5-core of S3-Rec'),
    'sports': ('s3rec', 'SPORTS', 'Amazon Sports and Outdoors, the 5-core of S3-Rec'),
    'toys': ('s3rec', 'TOYS', 'Amazon Toys and Games, the 5-core of S3-Rec'),
    'yelp': ('s3rec', 'YELP', 'Yelp 2019, the 5-core of S3-Rec'),
    'kuairand-pure': ('kuairand', 'PURE', 'KuaiRand-Pure: exposures of two weeks, with signals'),
    'kuairand-pure-watched': ('kuairand', 'WATCHED', 'of these the watched (long_view) ones'),
    'kuairand-pure-history': ('kuairand', 'HISTORY', 'kuairand-pure after 50 older events a user'),
    'kuairand-pure-watched-history': ('kuairand', 'WATCHED_HISTORY', 'the same of watched ones'),
    'kuairand-pure-rows': ('kuairand_rows', 'PURE', 'KuaiRand-Pure: a row per exposure, for click'),
    'kuairand-27k-explicit-rows': (
        'kuairand_explicit',
        'EXPLICIT',
        'KuaiRand-27K: likes and hates, a row each, for click',
    ),
    'ml-1m-rows': ('movielens_rows', 'ML_1M', 'MovieLens-1M: last 100 ratings a user, for click'),
    'census-income-rows': (
        'census_rows',
        'TEST_HALF',
        'Census-Income: a row per person, for click',
    ),
}
KNOWN |= {  # with item attributes, for pre-training
    'beauty-attributes': ('s3rec', 'BEAUTY_ATTRIBUTES', 'beauty with attributes of its items'),
    'sports-attributes': ('s3rec', 'SPORTS_ATTRIBUTES', 'sports with attributes of its items'),
    'yelp-attributes': ('s3rec', 'YELP_ATTRIBUTES', 'yelp with attributes of its items'),
}
KNOWN |= {  # with titles of all items
    'games-titles': ('llmrank', 'GAMES', 'Amazon Video Games of 2018 with titles'),
    'ml-1m-texts': ('movielens', 'ML_1M_TEXTS', 'ml-1m with genres in the titles, and as domains'),
}
KNOWN |= {  # two domains whose users are shared
    'food-kitchen': ('two_domains', 'ABXI', 'Amazon Food and Kitchen, as ABXI published them'),
    'food-kitchen-llmcdsr': ('two_domains', 'LLMCDSR', 'the same, most users in one of them'),
    'food-kitchen-llmcdsr-alone': (
        'two_domains',
        'LLMCDSR_ALONE',
        'and last events of a fifth of these',
    ),
}
KNOWN |= {  # pairs of two domains that share users, for task.split='given'
    'disencdr': ('pair_domains', 'DISENCDR', 'Amazon pairs of two domains, as DisenCDR has them'),
    'cdrib': ('pair_domains', 'CDRIB', 'Amazon pairs of two domains, users cold in one of them'),
}
KNOWN |= {  # ratings of the same users in two domains, for users who are cold in one
    'douban-ratings': ('rating_domains', 'DOUBAN', 'Douban: ratings of books and of music'),
    'ml-1m-drama-comedy': ('rating_domains', 'DRAMA_COMEDY', 'MovieLens-1M: dramas and comedies'),
}
KNOWN |= {  # a train and a test file of pairs in no order, for task.split='given'
    'gowalla': ('train_test_text', 'GOWALLA', 'Gowalla check-ins as NGCF and LightGCN split them'),
    'ml-1m-graph': ('train_test_text', 'ML_1M', 'MovieLens-1M as LCFN and UltraGCN split it'),
}
KNOWN |= {  # graphs
    'cora': ('planetoid', 'CORA', 'Cora: a citation graph, classes of its documents'),
    'citeseer': ('planetoid', 'CITESEER', 'Citeseer, the same'),
    'pubmed': ('planetoid', 'PUBMED', 'Pubmed, the same'),
}
KNOWN |= {  # many small graphs, each of a class
    'imdb-binary': ('tu_text', 'IMDB_BINARY', 'IMDB-BINARY: who played with whom, by genre'),
    'proteins': ('tu_text', 'PROTEINS', 'PROTEINS: enzymes and others'),
}
SYNTHETIC = 'synthetic'
GENERATED = {  # name -> file here with `parse` and `generate`, and a summary; not histories
    'block-model': ('block_model', 'a generated graph; nodes, classes, seed .. can be set'),
    'live-rooms': (
        'live_rooms',
        'generated visits to live rooms; hours, rooms, seed .. can be set',
    ),
}
OF_A_LOG = ('layout', 'user_col', 'item_col', 'time_col', 'columns', 'features', 'domain_col')
OF_TEXTS = ('texts', 'text_col', 'text_columns')
NAMES = (*KNOWN, SYNTHETIC, *GENERATED)
_FLAG = re.compile(r'--(?=(?:' + '|'.join(config_lib.Data.__dataclass_fields__) + r')\b)')


def load(
    config: config_lib.Data,
    say: Callable = print,
    flags: str = '--config.data.',
    kind: type = Histories,
    columns: Columns | None = None,
) -> tuple[store.Stored, dict]:
    """Opens the data set that `config` names, after building it if it is not there yet.

    Args:
      config: `log` wins over `dataset`; a log may also be the folder of a prepared data set.
      say: called with lines for people while something is built.
      flags: how the caller's flags for the fields of `config` begin, for messages.
      kind: what the caller can use: Histories, another of `store.KINDS`, or `store.Stored`, any.
      columns: of a log of rows, which ones there are to read; None = it is read as histories.

    Returns:
      The data (memory-mapped), and the meta data: description, citation, homepage, licence,
      source, statistics, data_hash, path.

    Raises:
      UserError: something the user can put right, in one line.
    """
    try:
        data, meta = _load(config, say, columns, kind)
        if not isinstance(data, kind):
            named = config.log or config.dataset
            raise UserError(f'{named} holds {data.KIND}, and this wants {kind.KIND}')
        return data, meta
    except UserError as e:
        raise UserError(_FLAG.sub(flags, str(e))) from e


def _load(
    config: config_lib.Data, say: Callable, columns: Columns | None, kind: type
) -> tuple[store.Stored, dict]:
    if config.min_user < 0 or config.min_item < 0:
        raise UserError('--min_user and --min_item must not be negative')
    if config.log and config.source:
        raise UserError('--source is where --dataset is read from, and --log is read: not both')
    if config.log:
        prepared = _open_prepared(config)
        if prepared:
            return prepared
        if config.texts and columns is not None:
            raise UserError('--texts is for histories, and this task reads rows: leave it out')
        if kind is Graph:
            recipe = _graph_log(config, say)
        elif columns is None:
            recipe = _log(config, say)
        else:
            recipe = _rows_log(config, say, columns)
        return store.find_or_build(recipe, config.data_dir, say)
    for option in _set(config, OF_A_LOG):
        raise UserError(f'--{option} describes your own file: it goes with --log')
    if not config.dataset:
        raise UserError(f'no data: give --log=FILE or --dataset=NAME ({", ".join(NAMES)})')
    if config.texts and config.dataset not in KNOWN:
        raise UserError('--texts is of the items of --log, or of a public --dataset')
    if config.dataset.partition(':')[0] == SYNTHETIC:
        recipe = _synthetic(config)
    elif config.dataset.partition(':')[0] in GENERATED:
        recipe = _generated(config)
    elif config.dataset in KNOWN:
        recipe = _public(config, say)
    else:
        raise UserError(_unknown(config.dataset))
    return store.find_or_build(recipe, config.data_dir, say)


def _set(config: config_lib.Data, options: tuple[str, ...]) -> list[str]:
    """Those of `options` that are not at their default."""
    return [o for o in options if getattr(config, o) != getattr(config_lib.Data, o)]


def _open_prepared(config: config_lib.Data) -> tuple[store.Stored, dict] | None:
    """The prepared data set that config.log is the folder of; None if it is something else."""
    path = pathlib.Path(config.log).expanduser()
    for folder in (path, path / store.VERSION, path.parent if path.name == store.COLUMNS else path):
        found = store.find(folder)
        if not found:
            continue
        for option in _set(config, (*OF_A_LOG, *OF_TEXTS, 'min_user', 'min_item')):
            raise UserError(
                f'--log={path} is the folder of a prepared data set, which is taken as it is: '
                f'leave out --{option}, or give the file it was made from'
            )
        return found
    if path.is_dir() and next(path.rglob('*.npy'), None):
        raise UserError(
            f'{path} is a folder without a prepared data set, or an unfinished one; --log is a '
            'file, a folder of part files, or the folder of a prepared data set'
        )
    return None


def _log(config: config_lib.Data, say: Callable) -> store.Recipe:
    from jaxrec.datasets import events, log_file, log_parts, raw_ids, texts_file

    root = pathlib.Path(config.data_dir).expanduser().absolute()
    name, texts = pathlib.Path(config.log).name, texts_file.key(config, root)
    content = log_parts.content_hash(config.log, root)

    def read(scratch: pathlib.Path) -> store.Source:
        say(f'reading {config.log}')
        histories = None if config.domain_col else log_file.read_large(config, scratch)
        if histories is None:
            raw = log_file.read_domains(config) if config.domain_col else log_file.read(config)
            histories = events.to_histories(raw, name, config.min_user, config.min_item)
        if texts:
            histories = _with_texts(histories, config, root, texts, say)
        for column, ids in (('user', histories.user_ids), ('item', histories.item_ids)):
            for remark in raw_ids.remarks(ids, getattr(config, f'{column}_col')):
                say(f'note: {remark}')
        if log_parts.content_hash(config.log, root) != content:
            raise UserError(f'{config.log} has changed while it was read; start again')
        about = f'Interaction log {name}.'
        return store.Source(histories, about, store.log_source(config.log), content)

    folder = log_file.key(config, f'{content} {texts}' if texts else content)
    return store.Recipe(f'log/{folder}/{store.VERSION}', read)


def _with_texts(
    histories: Histories, config: config_lib.Data, root: pathlib.Path, key: str, say: Callable
) -> Histories:
    """The histories with the texts of their items, see `texts_file.joined`."""
    from jaxrec.datasets import texts_file

    say(f'reading {config.texts}')
    histories, about = texts_file.joined(histories, config)
    if texts_file.key(config, root) != key:
        raise UserError(f'{config.texts} has changed while it was read; start again')
    say(about)
    return histories


def _rows_log(config: config_lib.Data, say: Callable, columns: Columns) -> store.Recipe:
    from jaxrec.datasets import log_file, log_parts, rows_file

    root = pathlib.Path(config.data_dir).expanduser().absolute()
    content = log_parts.content_hash(config.log, root)

    def read(scratch: pathlib.Path) -> store.Source:
        del scratch
        say(f'reading {config.log}')
        rows = rows_file.read(config, columns)
        if log_parts.content_hash(config.log, root) != content:
            raise UserError(f'{config.log} has changed while it was read; start again')
        return store.Source(rows, f'Rows {rows.name}.', store.log_source(config.log), content)

    folder = log_file.key(config, f'{content} {columns}')
    return store.Recipe(f'log/{folder}/{store.VERSION}', read)


def _graph_log(config: config_lib.Data, say: Callable) -> store.Recipe:
    from jaxrec.datasets import graph_files

    for option in _set(config, (*OF_A_LOG, 'min_user', 'min_item')):
        raise UserError(f'--{option} is not for a graph: leave it out')
    folder = pathlib.Path(config.log).expanduser()
    content = graph_files.content_hash(folder)

    def read(scratch: pathlib.Path) -> store.Source:
        del scratch
        say(f'reading {folder}')
        graph = graph_files.read(folder)
        return store.Source(graph, f'Graph {graph.name}.', store.log_source(config.log), content)

    return store.Recipe(f'graph/{content[:16]}/{store.VERSION}', read)


def _synthetic(config: config_lib.Data) -> store.Recipe:
    from jaxrec.datasets import events, synthetic, tastes

    argument = config.dataset.partition(':')[2]
    kind = tastes if 'interests=' in argument else synthetic
    parameters = kind.parse(argument)

    def read(scratch: pathlib.Path) -> store.Source:
        del scratch
        generated = kind.generate(parameters)
        return store.Source(
            events.to_histories(generated, config.dataset, config.min_user, config.min_item),
            f'Generated histories: {parameters}.',
            'generated',
        )

    variant = '_'.join(f'{k}{v}' for k, v in vars(parameters).items()) + _k_core(config, '_')
    return store.Recipe(f'synthetic/{variant}/{store.VERSION}', read)


def _generated(config: config_lib.Data) -> store.Recipe:
    name, _, argument = config.dataset.partition(':')
    if config.min_user or config.min_item:
        raise UserError(f'--min_user and --min_item are for histories, not {name}')
    module = importlib.import_module(f'jaxrec.datasets.{GENERATED[name][0]}')
    parameters = module.parse(argument)

    def read(scratch: pathlib.Path) -> store.Source:
        del scratch
        made = module.generate(parameters)
        return store.Source(made, f'Generated {made.KIND}: {parameters}.', 'generated')

    variant = '_'.join(f'{k}{v}' for k, v in vars(parameters).items())
    return store.Recipe(f'{name.replace("-", "_")}/{variant}/{store.VERSION}', read)


def _public(config: config_lib.Data, say: Callable) -> store.Recipe:
    from jaxrec.datasets import texts_file

    module, attribute, _ = KNOWN[config.dataset]
    data_set = getattr(importlib.import_module(f'jaxrec.datasets.{module}'), attribute)
    root = pathlib.Path(config.data_dir).expanduser().absolute()
    texts = texts_file.key(config, root)

    def read(scratch: pathlib.Path) -> store.Source:
        del scratch
        from jaxrec.datasets import events

        raw, used = data_set.read_checked(config.source, say)
        if isinstance(raw, events.Events):
            raw = events.to_histories(raw, config.dataset, config.min_user, config.min_item)
        elif config.min_user or config.min_item:
            raise UserError(f'--min_user and --min_item are for histories, not {raw.KIND}')
        if texts and not isinstance(raw, Histories):
            raise UserError(f'--texts is for histories, not {raw.KIND}')
        if texts:
            raw = _with_texts(raw, config, root, texts, say)
        return store.Source(
            raw,
            data_set.description,
            used,
            citation=data_set.citation,
            homepage=data_set.homepage,
            licence=data_set.licence,
        )

    name = config.dataset.replace('-', '_')  # TFDS allows no dash
    of = getattr(data_set, 'variant', None)  # of one layout that several data sets have
    if of and config.source:
        name = f'{name}/{of(config.source)}'
    variant = _k_core(config, '/')
    if texts:
        variant = f'{variant or "/"}{"_" * bool(variant)}texts_{texts}'
    return store.Recipe(f'{name}{variant}/{store.VERSION}', read)


def _k_core(config: config_lib.Data, prefix: str) -> str:
    if not (config.min_user or config.min_item):
        return ''
    return f'{prefix}user{config.min_user}_item{config.min_item}'


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.4)
    names = ', '.join([*near, *(n for n in NAMES if n not in near)])
    return f'unknown data set {name!r}; known, nearest first: {names}; own files: --log=FILE'
