"""The citation graphs of Planetoid (Yang et al. 2016) in their public split.

A file NAME.npz, made from the published `ind.NAME.*` files, holds numpy arrays:

    edges [E, 2]                            node pairs; direction, loops and repeats do not matter
    x_data, x_indices, x_indptr, x_shape    features, CSR
    label [N]                               class from 0, -1 where there is none
    train_idx, val_idx, test_idx            the public split: 20 nodes of a class, 500 and 1,000

Libraries disagree about repeated edges: Cora has 5,429 with and 5,278 without them.
"""

import dataclasses
import pathlib
import zipfile

import numpy as np
import scipy.sparse

from jaxrec.cli import UserError
from jaxrec.data.graph import UNKNOWN, Graph, undirected

HOMEPAGE = 'https://github.com/kimiyoung/planetoid'
CITATION = (
    'Yang, Cohen and Salakhutdinov, Revisiting Semi-Supervised Learning with Graph Embeddings, '
    'ICML 2016, arXiv:1603.08861'
)
LICENCE = 'no licence text comes with the files: ask before redistributing'
ARRAYS = (
    *('edges', 'x_data', 'x_indices', 'x_indptr', 'x_shape', 'label'),
    *('train_idx', 'val_idx', 'test_idx'),
)


@dataclasses.dataclass
class Size:
    """Published numbers of a graph, edges counted once."""

    nodes: int
    edges: int
    features: int
    classes: int


KNOWN = {  # name -> size
    'cora': Size(2_708, 5_278, 1_433, 7),
    'citeseer': Size(3_327, 4_552, 3_703, 6),
    'pubmed': Size(19_717, 44_324, 500, 3),
}


def read(name: str, source: str) -> tuple[Graph, str]:
    """The graph `name`, and the file it was read from.

    Args:
      name: of KNOWN.
      source: NAME.npz under any name, or a folder that holds it, or whose folders do.

    Raises:
      UserError: not found, not in this layout, or not as large as published.
    """
    if not source:
        raise UserError(f'{name} is not downloaded: give --source=FILE, see {HOMEPAGE}')
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        raise UserError(f'no such file or folder: {path} (--source)')
    if path.is_dir():
        found = [p for p in (path / f'{name}.npz', *path.glob(f'*/{name}.npz')) if p.is_file()]
        if not found:
            raise UserError(f'{path} holds no {name}.npz (--source)')
        path = found[0]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            graph = _graph(name, {key: arrays[key] for key in ARRAYS})
    except KeyError as e:
        raise UserError(f'{path} lacks an array of a planetoid graph: {e.args[0]}') from e
    except (EOFError, TypeError, ValueError, zipfile.BadZipFile) as e:
        raise UserError(f'{path} is damaged, or not the .npz file of a planetoid graph: {e}') from e
    found = Size(graph.num_nodes, graph.edges.shape[1], graph.num_features, graph.num_classes)
    if found != KNOWN[name]:
        what = ', '.join(f'{value} {key}' for key, value in vars(found).items())
        wanted = ', '.join(str(value) for value in vars(KNOWN[name]).values())
        raise UserError(f'{path} is not {name} as published: {what} where {wanted} are expected')
    return graph, str(path)


def _graph(name: str, arrays: dict[str, np.ndarray]) -> Graph:
    csr = (arrays['x_data'].astype(np.float32), arrays['x_indices'], arrays['x_indptr'])
    features = scipy.sparse.csr_array(csr, tuple(arrays['x_shape'].tolist()))
    features.sort_indices()
    parts = (np.sort(arrays[f'{part}_idx']).astype(np.int32) for part in ('train', 'val', 'test'))
    labels = np.maximum(arrays['label'].astype(np.int32), UNKNOWN)
    edges = undirected(arrays['edges'].reshape(-1, 2).T)
    return Graph(len(labels), edges, features, labels, *parts, name=name)
