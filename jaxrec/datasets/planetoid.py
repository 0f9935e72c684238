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
from collections.abc import Callable

import numpy as np
import scipy.sparse

from jaxrec.data.graph import UNKNOWN, Graph, undirected
from jaxrec.errors import UserError

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


@dataclasses.dataclass(frozen=True)
class Planetoid:
    """A graph, its published numbers (edges counted once), and what is told of it."""

    name: str
    nodes: int
    edges: int
    features: int
    classes: int
    description: str = 'Documents, their words and citations, in the public split.'
    citation: str = CITATION
    homepage: str = HOMEPAGE
    licence: str = LICENCE

    def read_checked(self, source: str, say: Callable) -> tuple[Graph, str]:
        """The graph, and the file it was read from.

        Args:
          source: NAME.npz under any name, or a folder that holds it, or whose folders do.
          say: not needed.

        Raises:
          UserError: not found, not in this layout, or not as large as published.
        """
        del say
        path = _find(self.name, source)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                graph = _graph(self.name, {key: arrays[key] for key in ARRAYS})
        except KeyError as e:
            raise UserError(f'{path} lacks an array of a planetoid graph: {e.args[0]}') from e
        except (EOFError, TypeError, ValueError, zipfile.BadZipFile) as e:
            raise UserError(
                f'{path} is damaged, or not the .npz file of a planetoid graph: {e}'
            ) from e
        found = {
            'nodes': graph.num_nodes,
            'edges': graph.edges.shape[1],
            'features': graph.num_features,
            'classes': graph.num_classes,
        }
        if any(getattr(self, name) != value for name, value in found.items()):
            what = ', '.join(f'{value} {name}' for name, value in found.items())
            wanted = ', '.join(str(getattr(self, name)) for name in found)
            raise UserError(
                f'{path} is not {self.name} as published: {what} where {wanted} are expected'
            )
        return graph, str(path)


CORA = Planetoid('cora', 2_708, 5_278, 1_433, 7)
CITESEER = Planetoid('citeseer', 3_327, 4_552, 3_703, 6)
PUBMED = Planetoid('pubmed', 19_717, 44_324, 500, 3)


def _find(name: str, source: str) -> pathlib.Path:
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
    return path


def _graph(name: str, arrays: dict[str, np.ndarray]) -> Graph:
    csr = (arrays['x_data'].astype(np.float32), arrays['x_indices'], arrays['x_indptr'])
    features = scipy.sparse.csr_array(csr, tuple(arrays['x_shape'].tolist()))
    features.sort_indices()
    parts = (np.sort(arrays[f'{part}_idx']).astype(np.int32) for part in ('train', 'val', 'test'))
    labels = np.maximum(arrays['label'].astype(np.int32), UNKNOWN)
    edges = undirected(arrays['edges'].reshape(-1, 2).T)
    return Graph(len(labels), edges, features, labels, *parts, name=name)
