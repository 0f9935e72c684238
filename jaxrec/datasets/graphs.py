"""Graphs by name, prepared once below config.data_dir as memory-mappable columns (see `store`)."""

import json
import pathlib
from collections.abc import Callable

from jaxrec.cli import UserError
from jaxrec.config import Data
from jaxrec.data.graph import FORMAT, KIND, Graph
from jaxrec.datasets import block_model, planetoid, store

VERSION = '1.0.0'  # of what the readers make of a source


def load(config: Data, say: Callable = print) -> tuple[Graph, dict]:
    """Opens the graph that `config` names, after building it if it is not there yet.

    Args:
      config: `log` is the folder of a prepared graph and wins over `dataset`: cora and others, or
        'block-model:nodes=300,..', a generated graph.
      say: called with lines for people while something is built.

    Returns:
      The graph (memory-mapped), and the meta data: description, citation, homepage, licence,
      source, statistics, data_hash, path.

    Raises:
      UserError: something the user can put right, in one line.
    """
    if config.log:
        folder = pathlib.Path(config.log).expanduser()
        found = _find(folder) or _find(folder / store.COLUMNS)
        if not found:
            raise UserError(f'{folder} is not the folder of a prepared graph (--log)')
        return found
    name, _, argument = config.dataset.partition(':')
    if name == block_model.NAME:
        parameters = block_model.parse(argument)
        variant = '_'.join(f'{k}{v}' for k, v in vars(parameters).items())
        about = {'description': f'Generated graph: {parameters}.', 'source': 'generated'}
        return _find_or_build(
            f'{block_model.NAME}/{variant}/{VERSION}',
            config.data_dir,
            say,
            lambda: (block_model.generate(parameters), about),
        )
    if config.dataset not in planetoid.KNOWN:
        names = ', '.join([*planetoid.KNOWN, block_model.NAME])
        raise UserError(f'--dataset={config.dataset} is no graph; known graphs: {names}')

    def build():
        graph, used = planetoid.read(name, config.source)
        return graph, {
            'description': f'{name}: documents, their words and citations, the public split.',
            'source': used,
            'citation': planetoid.CITATION,
            'homepage': planetoid.HOMEPAGE,
            'licence': planetoid.LICENCE,
        }

    return _find_or_build(f'{name}/{VERSION}', config.data_dir, say, build)


def _find_or_build(
    below: str, data_dir: str, say: Callable, build: Callable[[], tuple[Graph, dict]]
) -> tuple[Graph, dict]:
    root = pathlib.Path(data_dir).expanduser().absolute()
    columns = root / below / store.COLUMNS
    found = _find(columns)
    if found:
        return found
    with store.locked(root / below, root):
        if not _find(columns):  # built by another process while this one waited
            graph, about = build()
            say(f'writing {root / below}')
            graph.save(columns, about)
    return _find(columns)


def _find(columns: pathlib.Path) -> tuple[Graph, dict] | None:
    try:
        meta = json.loads((columns / 'meta.json').read_text())
        if meta.get('kind') != KIND or meta['format'] != FORMAT:
            return None
        return Graph.load(columns), {**meta, 'path': str(columns)}
    except (FileNotFoundError, NotADirectoryError):
        if not (columns / 'meta.json').exists():
            return None
        raise UserError(f'the prepared graph {columns} lacks a file: delete the folder') from None
    except (EOFError, KeyError, TypeError, ValueError) as e:
        raise UserError(
            f'the prepared graph {columns} is damaged ({e}): delete that folder and prepare again'
        ) from e
