"""One graph: its nodes' features and labels and its edges, as memory-mappable numpy columns."""

import dataclasses
import os
from typing import ClassVar

import numpy as np
import scipy.sparse

from jaxrec.data import stored

UNKNOWN = -1  # label of a node that has none
PARTS = ('train', 'valid', 'test')

Features = np.ndarray | scipy.sparse.csr_array


@dataclasses.dataclass
class Graph:
    """An undirected graph without loops or multiple edges.

    Attributes:
      num_nodes: N; nodes are numbered from 0.
      edges: int32 [2, E]; every edge once with edges[0] < edges[1], ascending; see `undirected`.
      features: float32 [N, F], dense or CSR with sorted columns; None if there are none.
      labels: int32 [N], class from 0 or UNKNOWN; None if there are none.
      train, valid, test: int32, ascending node numbers of the split that comes with the graph;
        None if none does.
      name: data set name, for messages.
    """

    KIND: ClassVar[str] = 'graph'

    num_nodes: int
    edges: np.ndarray
    features: Features | None = None
    labels: np.ndarray | None = None
    train: np.ndarray | None = None
    valid: np.ndarray | None = None
    test: np.ndarray | None = None
    name: str = ''

    def __post_init__(self):
        low, high = self.edges
        order = low.astype(np.int64) * self.num_nodes + high
        if len(low) and (low.min() < 0 or high.max() >= self.num_nodes or (low >= high).any()):
            raise ValueError('edges are not pairs of node numbers, the lower one first')
        if (np.diff(order) <= 0).any():
            raise ValueError('edges are not in ascending order, or not each of them once')
        for column in (self.features, self.labels):
            if column is not None and column.shape[0] != self.num_nodes:
                raise ValueError(f'{column.shape[0]} rows for {self.num_nodes} nodes')
        for name in PARTS:
            part = getattr(self, name)
            if part is not None and len(part):
                if part[0] < 0 or part[-1] >= self.num_nodes or (np.diff(part) <= 0).any():
                    raise ValueError(f'{name} is not ascending node numbers')

    @property
    def num_features(self) -> int:
        return 0 if self.features is None else self.features.shape[1]

    @property
    def num_classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max(initial=UNKNOWN)) + 1

    def normalised_adjacency(self) -> scipy.sparse.csr_array:
        """D^-1/2 (A + I) D^-1/2 with D the degrees of A + I (Kipf & Welling 2017, eq. 2).

        Returns:
          float32 [N, N], CSR with sorted columns, 2 E + N entries.
        """
        low, high = self.edges
        loops = np.arange(self.num_nodes, dtype=np.int32)
        rows = np.concatenate([low, high, loops])
        columns = np.concatenate([high, low, loops])
        scale = np.bincount(rows, minlength=self.num_nodes) ** -0.5  # float64; a loop each, so >= 1
        values = (scale[rows] * scale[columns]).astype(np.float32)
        shape = (self.num_nodes, self.num_nodes)
        matrix = scipy.sparse.coo_array((values, (rows, columns)), shape).tocsr()
        matrix.sort_indices()
        return matrix

    def content_hash(self) -> str:
        """sha256 over every column and the sizes; independent of file format and platform."""
        return stored.content_hash(self.KIND, self.columns())

    def statistics(self) -> dict:
        """Nodes, edges, features, classes, mean degree, isolated nodes, labelled nodes, homophily.

        Homophily is the share of edges between equal labels, of those between labelled nodes.
        """
        degrees = np.bincount(self.edges.reshape(-1), minlength=self.num_nodes)
        labels = np.full(self.num_nodes, UNKNOWN) if self.labels is None else self.labels
        low, high = labels[self.edges]
        known = (low != UNKNOWN) & (high != UNKNOWN)
        return {
            'nodes': self.num_nodes,
            'edges': self.edges.shape[1],
            'features': self.num_features,
            'classes': self.num_classes,
            'mean_degree': float(degrees.mean()) if self.num_nodes else 0.0,
            'isolated': int((degrees == 0).sum()),
            'labelled': int((labels != UNKNOWN).sum()),
            'homophily': float((low == high)[known].mean()) if known.any() else None,
            **{p: len(getattr(self, p)) for p in PARTS if getattr(self, p) is not None},
        }

    def save(self, folder: str | os.PathLike, about: dict | None = None) -> dict:
        """Writes the columns and meta.json, see `stored.save`; returns what meta.json holds."""
        return stored.save(self, folder, about)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> 'Graph':
        """Opens a folder written by `save`; columns are memory-mapped, read-only.

        Raises:
          ValueError: the folder holds prepared data of another kind or format.
        """
        columns, name = stored.load(folder, cls.KIND)
        nodes, features = columns.pop('shape').tolist()
        if 'features.values' in columns:
            parts = [columns.pop(f'features.{part}') for part in ('values', 'columns', 'offsets')]
            columns['features'] = scipy.sparse.csr_array(tuple(parts), (nodes, features))
        return cls(num_nodes=nodes, name=name, **columns)

    def columns(self) -> dict[str, np.ndarray]:
        """Everything that is stored, by the name of its file."""
        columns = {'shape': np.array([self.num_nodes, self.num_features]), 'edges': self.edges}
        if scipy.sparse.issparse(self.features):
            columns['features.offsets'] = self.features.indptr.astype(np.int64)
            columns['features.columns'] = self.features.indices.astype(np.int32)
            columns['features.values'] = self.features.data
        else:
            columns['features'] = self.features
        columns |= {name: getattr(self, name) for name in ('labels', *PARTS)}
        return {name: np.ascontiguousarray(c) for name, c in columns.items() if c is not None}


def undirected(pairs: np.ndarray) -> np.ndarray:
    """int32 [2, E] edges of a `Graph` from node pairs [2, P] in any order and direction.

    Loops are left out, and an edge that comes twice is taken once.
    """
    low, high = np.sort(pairs, axis=0)
    return np.unique(np.stack([low, high])[:, low < high].astype(np.int32), axis=1)


def row_normalised(features: Features) -> Features:
    """float32 features divided by the sum of their row's sizes; rows of zeros stay."""
    sums = np.asarray(abs(features).sum(axis=1), np.float64).reshape(-1)
    scale = (1 / np.where(sums > 0, sums, 1)).astype(np.float32)
    if not scipy.sparse.issparse(features):
        return features * scale[:, None]
    values = features.data * np.repeat(scale, np.diff(features.indptr))
    return scipy.sparse.csr_array((values, features.indices, features.indptr), features.shape)
