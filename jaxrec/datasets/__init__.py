"""Data sets: a public one by name, a generated one, or your own log. `load` is all training needs.

A public data set is a `public.DataSet` in one of the files here; KNOWN says which. Prepared data
sets are kept below config.data_dir (see `store`); opening one imports neither TFDS nor the readers.
"""

import difflib
import importlib
import pathlib
import re
from collections.abc import Callable

from jaxrec import config as config_lib
from jaxrec.cli import UserError
from jaxrec.datasets import store
from jaxrec.histories import Histories

VERSION = '1.0.0'  # of what the readers make of a source; a new one makes old folders stale

# name -> file here and the name of its DataSet
KNOWN = {}


def load(
    config: config_lib.Data, say: Callable = print, flags: str = '--config.data.'
) -> tuple[Histories, dict]:
    """Opens the data set that `config` names, after building it if it is not there yet.

    Args:
      config: `log` wins over `dataset`; a log may also be the folder of a prepared data set.
      say: called with lines for people while something is built.
      flags: how the caller's flags for the fields of `config` begin, for messages.

    Returns:
      The histories (memory-mapped), and the meta data: description, citation, homepage, licence,
      source, statistics, data_hash, path.

    Raises:
      UserError: something the user can put right, in one line.
    """
    try:
        return _load(config, say)
    except UserError as e:
        raise UserError(re.sub(r'--(?=[a-z])', flags, str(e))) from e


def _load(config: config_lib.Data, say: Callable) -> tuple[Histories, dict]:
    if config.min_user < 0 or config.min_item < 0:
        raise UserError('--min_user and --min_item must not be negative')
    if config.log:
        return _load_log(config, say)
    if not config.dataset:
        raise UserError(f'no data: give --log=FILE or --dataset=NAME ({names()})')
    name, _, argument = config.dataset.partition(':')
    if name == 'synthetic':
        return store.find_or_build(_synthetic(config, argument), config.data_dir, say)
    if name not in KNOWN or argument:
        near = difflib.get_close_matches(config.dataset, [*KNOWN, 'synthetic'], n=3, cutoff=0.4)
        rest = [n for n in [*KNOWN, 'synthetic'] if n not in near]
        raise UserError(
            f'unknown data set {config.dataset!r}; known, nearest first: {", ".join(near + rest)}; '
            'for your own file use --log=FILE'
        )
    return store.find_or_build(_public(config, name, say), config.data_dir, say)


def names() -> str:
    """Names of the known data sets, for messages."""
    return ', '.join([*KNOWN, 'synthetic'])


def _load_log(config: config_lib.Data, say: Callable) -> tuple[Histories, dict]:
    path = pathlib.Path(config.log).expanduser()
    if path.is_dir():
        found = store.find(path) or store.find(path.parent)
        if not found:
            raise UserError(f'{path} is a folder without a prepared data set; --log is a file')
        return found
    if not path.exists():
        raise UserError(f'no such file: {path} (--log)')
    from jaxrec.datasets import log_file

    def read() -> Histories:
        from jaxrec.datasets.events import to_histories

        say(f'reading {path}')
        events = log_file.read(config)
        return to_histories(
            events, name=path.name, min_user=config.min_user, min_item=config.min_item
        )

    about = _about(f'Interaction log {path.name}.', source=str(path.resolve()))
    recipe = store.Recipe(f'log/{log_file.key(config)}/{VERSION}', read, about)
    return store.find_or_build(recipe, config.data_dir, say)


def _synthetic(config: config_lib.Data, argument: str) -> store.Recipe:
    from jaxrec.datasets import synthetic

    parameters = synthetic.parse(argument)
    variant = '_'.join(f'{k}{v}' for k, v in vars(parameters).items()) + _k_core_name(config, '_')

    def read() -> Histories:
        from jaxrec.datasets.events import to_histories

        events = synthetic.generate(parameters)
        return to_histories(
            events, name=config.dataset, min_user=config.min_user, min_item=config.min_item
        )

    about = _about(f'Generated histories: {parameters}.', source='generated')
    return store.Recipe(f'synthetic/{variant}/{VERSION}', read, about)


def _public(config: config_lib.Data, name: str, say: Callable) -> store.Recipe:
    module, attribute = KNOWN[name]
    data_set = getattr(importlib.import_module(f'jaxrec.datasets.{module}'), attribute)
    raise NotImplementedError(data_set)


def _k_core_name(config: config_lib.Data, prefix: str) -> str:
    if not (config.min_user or config.min_item):
        return ''
    return f'{prefix}user{config.min_user}_item{config.min_item}'


def _about(description: str, *, source: str, citation='', homepage='', licence='') -> dict:
    return {
        'description': description,
        'citation': citation,
        'homepage': homepage,
        'licence': licence,
        'source': source,
    }
