"""Many small graphs, each of one class, as memory-mappable numpy columns, and batches of them."""

import dataclasses
import os
from typing import ClassVar

import numpy as np

from jaxrec import problem, rng
from jaxrec.data import stored
from jaxrec.data.ragged import part, ranges

ROW_MULTIPLE = 64  # batches are padded to this, so that they split over most meshes


@dataclasses.dataclass
class Graphs:
    """Undirected graphs without loops or multiple edges, one after the other.

    Attributes:
      offsets: int64 [G + 1], where the nodes of each graph begin.
      edges: int32 [2, E]; every edge once with edges[0] < edges[1], ascending, in one graph.
      tags: int32 [N], kind of each node from 0.
      labels: int32 [G], class from 0.
      name: data set name, for messages.
    """

    KIND: ClassVar[str] = 'graphs'

    offsets: np.ndarray
    edges: np.ndarray
    tags: np.ndarray
    labels: np.ndarray
    name: str = ''

    def __post_init__(self):
        if len(self.offsets) != len(self.labels) + 1 or self.offsets[-1] != len(self.tags):
            raise ValueError('offsets, tags and labels do not fit')
        low, high = self.edges
        if len(low):
            order = low.astype(np.int64) * len(self.tags) + high
            if low.min() < 0 or high.max() >= len(self.tags) or (low >= high).any():
                raise ValueError('edges are not pairs of node numbers, the lower one first')
            if (np.diff(order) <= 0).any():
                raise ValueError('edges are not in ascending order, or not each of them once')
            if (self.of_nodes(low) != self.of_nodes(high)).any():
                raise ValueError('an edge joins two graphs')

    @property
    def num_graphs(self) -> int:
        return len(self.labels)

    @property
    def num_tags(self) -> int:
        return int(self.tags.max(initial=-1)) + 1

    @property
    def num_classes(self) -> int:
        return int(self.labels.max(initial=-1)) + 1

    def of_nodes(self, nodes: np.ndarray) -> np.ndarray:
        """int64, the graph of each node."""
        return np.searchsorted(self.offsets, nodes, side='right') - 1

    def content_hash(self) -> str:
        """sha256 over every column; independent of file format and platform."""
        return stored.content_hash(self.KIND, self.columns())

    def statistics(self) -> dict:
        """Graphs, nodes, edges, tags, classes, means per graph and the largest graph."""
        sizes = np.diff(self.offsets)
        return {
            'graphs': self.num_graphs,
            'nodes': len(self.tags),
            'edges': self.edges.shape[1],
            'tags': self.num_tags,
            'classes': self.num_classes,
            'mean_nodes': float(sizes.mean()),
            'mean_edges': self.edges.shape[1] / max(self.num_graphs, 1),
            'largest': int(sizes.max(initial=0)),
        }

    def save(self, folder: str | os.PathLike, about: dict | None = None) -> dict:
        """Writes the columns and meta.json, see `stored.save`; returns what meta.json holds."""
        return stored.save(self, folder, about)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> 'Graphs':
        """Opens a folder written by `save`; columns are memory-mapped, read-only.

        Raises:
          ValueError: the folder holds prepared data of another kind or format.
        """
        columns, name = stored.load(folder, cls.KIND)
        return cls(**columns, name=name)

    def columns(self) -> dict[str, np.ndarray]:
        """Everything that is stored, by the name of its file."""
        names = ('offsets', 'edges', 'tags', 'labels')
        return {name: np.ascontiguousarray(getattr(self, name)) for name in names}


class Packer:
    """Batches of whole graphs, side by side in arrays of one shape.

    Graphs go by size into strata of as many graphs as there are batches, and a batch has one graph
    of each stratum. So all batches are nearly equally large, and the largest one that can come is
    known beforehand: one shape, one program.

    Args:
      graphs: all of them.
      rows: graphs of a batch, at most.
      multiple: what a batch has of graphs, nodes and entries is padded to a multiple of this.

    Attributes:
      steps: batches that hold every graph once.
      rows, nodes, entries: the shape; entries are directions of edges.
    """

    def __init__(self, graphs: Graphs, rows: int, multiple: int = ROW_MULTIPLE):
        self._graphs, count = graphs, graphs.num_graphs
        self.steps = -(-count // rows)
        sizes = np.diff(graphs.offsets)
        rows_of, columns = np.concatenate([graphs.edges, graphs.edges[::-1]], axis=1)
        order = np.lexsort((columns, rows_of))
        self._targets, self._sources = rows_of[order], columns[order]
        self._entries = np.searchsorted(self._targets, graphs.offsets)
        per_graph = np.diff(self._entries)
        self._strata = np.array_split(
            np.lexsort((per_graph, sizes)), np.arange(self.steps, count, self.steps)
        )
        most = lambda x: sum(int(x[s].max()) for s in self._strata)  # noqa: E731
        self.rows, self.nodes, self.entries = (
            -(-n // multiple) * multiple for n in (len(self._strata), most(sizes), most(per_graph))
        )

    def order(self, generator: np.random.Generator | None = None) -> list[np.ndarray]:
        """Graphs of each batch; at random where there is a generator."""
        columns = [s if generator is None else generator.permutation(s) for s in self._strata]
        taken = [[s[n] for s in columns if n < len(s)] for n in range(self.steps)]
        return [np.array(some, np.int64) for some in taken]

    def __call__(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of these graphs.

        Returns:
          graphs, labels int32 and weights float32 [rows], 0 on padding; tags int32 and owner int32
          [nodes], of every node its kind and its graph's place in the batch, -1 on padding; sources
          and targets int32 [entries], the nodes at both ends, targets ascending, and there float32
          [entries], 0 on padding, whose ends are the last node.
        """
        graphs, missing = self._graphs, (0, self.rows - len(chosen))
        first, sizes = graphs.offsets[chosen], np.diff(graphs.offsets)[chosen]
        nodes, starts = ranges(first, sizes), np.cumsum(sizes) - sizes
        entries = np.diff(self._entries)[chosen]
        index = ranges(self._entries[chosen], entries)
        shift = np.repeat(starts - first, entries)
        pad = lambda x, count, value: np.pad(  # noqa: E731
            x.astype(np.int32), (0, count - len(x)), constant_values=value
        )
        return {
            'graphs': np.pad(chosen.astype(np.int32), missing),
            'labels': np.pad(graphs.labels[chosen].astype(np.int32), missing),
            'weights': np.pad(np.ones(len(chosen), np.float32), missing),
            'tags': pad(graphs.tags[nodes], self.nodes, -1),
            'owner': pad(np.repeat(np.arange(len(chosen)), sizes), self.nodes, -1),
            'sources': pad(self._sources[index] + shift, self.entries, self.nodes - 1),
            'targets': pad(self._targets[index] + shift, self.entries, self.nodes - 1),
            'there': np.pad(np.ones(len(index), np.float32), (0, self.entries - len(index))),
        }


class GraphBatches(problem.Batches):
    """Batches of graphs; an epoch has every graph once, in a new order.

    Args:
      packer: lays out the batches.
      graphs: how many there are.
      seed: of the order.
      process: (index, count) of this process; it gets its slice of every array.
    """

    def __init__(self, packer: Packer, graphs: int, seed: int, process: tuple[int, int] = (0, 1)):
        self._packer, self._seed, self._process = packer, seed, process
        self.rows, self.steps_per_epoch = packer.rows, packer.steps
        self.examples_per_epoch = self.targets_per_epoch = graphs
        self.fill = graphs / (packer.rows * packer.steps)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, see `Packer`; labels are not in it."""
        epoch, n = divmod(step, self.steps_per_epoch)
        batch = self._packer(self.of_epoch(epoch, self._order)[n])
        del batch['labels']
        return part(batch, *self._process)

    def _order(self, epoch):
        return self._packer.order(rng.host(self._seed, rng.ORDER, epoch))
