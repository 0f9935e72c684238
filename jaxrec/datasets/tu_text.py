"""The graph sets of TU Dortmund in the text layout of DGCNN and GIN (Xu et al., ICLR 2019).

The first line is the number of graphs. Each graph has a line `n label`, then n lines
`tag degree neighbour ..`, neighbours by their number in the graph from 0. The files are sorted by
class: whatever a model computes over a batch in file order tells the class (`nn.batch_norm` has the
running statistics when graphs are embedded).
"""

import dataclasses
import gzip
import pathlib
from collections.abc import Callable

import numpy as np

from jaxrec.data.graph import undirected
from jaxrec.data.graphs import Graphs
from jaxrec.errors import UserError


@dataclasses.dataclass(frozen=True)
class TextGraphs:
    """A set of graphs, its published numbers, and what is told of it."""

    name: str
    file: str
    graphs: int
    nodes: int
    tags: int
    description: str
    citation: str = (
        'Morris et al., TUDataset: A collection of benchmark datasets for learning with graphs, '
        'GRL+ 2020, arXiv:2007.08663'
    )
    homepage: str = 'https://github.com/weihua916/powerful-gnns'
    licence: str = 'no licence text comes with the files: ask before redistributing'

    def read_checked(self, source: str, say: Callable) -> tuple[Graphs, str]:
        """The graphs, and the file they were read from.

        Args:
          source: the text under any name, or a folder that holds `file`; either may be gzipped.
          say: not needed.

        Raises:
          UserError: not found, not in this layout, or not as large as published.
        """
        del say
        if not source:
            raise UserError(f'{self.name} is not downloaded: give --source=FILE, {self.homepage}')
        path = pathlib.Path(source).expanduser()
        if path.is_dir():
            found = [p for p in (path / self.file, path / f'{self.file}.gz') if p.is_file()]
            if not found:
                raise UserError(f'{path} holds no {self.file} (--source)')
            path = found[0]
        if not path.exists():
            raise UserError(f'no such file or folder: {path} (--source)')
        data = path.read_bytes()
        try:
            data = gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
        except (OSError, EOFError) as e:
            raise UserError(f'{path} is damaged: {e}') from e
        graphs = read(data.decode('ascii', 'replace'), str(path), self.name)
        found = graphs.num_graphs, len(graphs.tags), graphs.num_tags
        if found != (self.graphs, self.nodes, self.tags):
            raise UserError(
                f'{path} is not {self.name} as published: {found[0]} graphs, {found[1]} nodes and '
                f'{found[2]} tags where {self.graphs}, {self.nodes} and {self.tags} are expected'
            )
        return graphs, str(path)


IMDB_BINARY = TextGraphs(
    'imdb-binary',
    'IMDBBINARY.txt',
    1_000,
    19_773,
    1,
    'Actors who played together, around an actor: action or romance.',
)
PROTEINS = TextGraphs(
    'proteins',
    'PROTEINS.txt',
    1_113,
    43_471,
    3,
    'Parts of proteins near to each other: enzyme or not.',
)


def read(text: str, path: str, name: str = '') -> Graphs:
    """Graphs of a text; tags and labels are numbered by ascending value.

    Raises:
      UserError: a line that is not as the layout says, a neighbour that is no node of the graph, a
        loop, an edge that comes twice or in one direction alone.
    """
    lines = text.splitlines()
    at, offsets, labels, tags, ends = 0, [0], [], [], []

    def numbers(least):
        nonlocal at
        words = lines[at].split() if at < len(lines) else []
        at += 1
        try:
            found = [int(word) for word in words]
        except ValueError:
            found = []
        if len(found) < least:
            raise UserError(f'{path} line {at}: {least} whole numbers are expected, or more')
        return found

    for _ in range(numbers(1)[0]):
        count, label, *_ = numbers(2)
        labels.append(label)
        for node in range(count):
            tag, degree, *near = numbers(2)
            near = near[:degree]  # real-valued attributes may follow
            where = f'{path} line {at}: node {node}'
            if len(near) < degree or any(not 0 <= other < count for other in near):
                raise UserError(f'{where} has a neighbour that is none of the {count} nodes')
            if node in near:
                raise UserError(f'{where} is its own neighbour: loops are not for this layout')
            if len(set(near)) < degree:
                raise UserError(f'{where} has a neighbour twice: every edge comes once')
            tags.append(tag)
            ends += [(offsets[-1] + node, offsets[-1] + other) for other in near]
        offsets.append(offsets[-1] + count)
    pairs = np.array(ends, np.int64).reshape(-1, 2).T
    edges = undirected(pairs)
    if 2 * edges.shape[1] != pairs.shape[1]:
        raise UserError(f'{path}: an edge is told of one of its ends alone')
    return Graphs(
        np.array(offsets, np.int64),
        edges,
        np.unique(tags, return_inverse=True)[1].astype(np.int32).reshape(-1),
        np.unique(labels, return_inverse=True)[1].astype(np.int32).reshape(-1),
        name,
    )
