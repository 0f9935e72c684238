"""Your own graph as three Parquet files: what is read, and one line for what is wrong."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxrec.config import Data
from jaxrec.data.graph import Graph
from jaxrec.datasets import load
from jaxrec.errors import UserError

NODES = {
    'node': ['d', 'a', 'c', 'b'],
    'x': [4.0, 1.0, 3.0, 2.0],
    'y': [[8, 9], [2, 3], [6, 7], [4, 5]],
}
EDGES = {'source': ['a', 'b', 'b', 'd'], 'target': ['b', 'a', 'c', 'c']}
LABELS = {
    'node': ['a', 'b', 'd'],
    'label': ['old', 'new', 'old'],
    'part': ['train', 'valid', 'test'],
}


def write(folder, **changed):
    folder.mkdir(exist_ok=True)
    for name, columns in {'nodes': NODES, 'edges': EDGES, 'labels': LABELS}.items():
        columns = {**columns, **changed.get(name, {})}
        columns = {name: x for name, x in columns.items() if x is not None}
        pa.parquet.write_table(pa.table(columns), folder / f'{name}.parquet')
    return Data(log=str(folder), data_dir=str(folder.parent / 'prepared'))


def test_reads(tmp_path):
    """By ascending id; an edge told in both directions is one."""
    graph, meta = load(write(tmp_path / 'g'), str, kind=Graph)
    assert graph.edges.tolist() == [[0, 1, 2], [1, 2, 3]] and graph.labels.tolist() == [1, 0, -1, 1]
    np.testing.assert_array_equal(graph.features, [[1, 2, 3], [2, 4, 5], [3, 6, 7], [4, 8, 9]])
    assert [graph.train.tolist(), graph.valid.tolist(), graph.test.tolist()] == [[0], [1], [3]]
    assert meta['statistics']['nodes'] == 4


def test_numbers_and_no_split(tmp_path):
    ids = {'nodes': {'node': [7, 1, 5, 3], 'y': None}, 'labels': {'node': [1, 3, 7], 'part': None}}
    edges = {'source': [1, 3, 7], 'target': [3, 5, 5]}
    graph, _ = load(write(tmp_path / 'g', **ids, edges=edges), str, kind=Graph)
    assert graph.train is None and graph.features.tolist() == [[1], [2], [3], [4]]


@pytest.mark.parametrize(
    ('file', 'columns', 'message'),
    [
        (
            'edges',
            {'target': ['b', 'a', 'x', 'c']},
            r"edges.parquet row 3: 'x' is no node of .*nodes",
        ),
        ('edges', {'target': ['b', 'b', 'c', 'c']}, r"row 2: node 'b' is its own neighbour"),
        ('edges', {'source': ['a', 'a', 'b', 'd'], 'target': ['b', 'b', 'c', 'c']}, 'comes twice'),
        ('edges', {'source': [1, 2, 2, 4]}, "column 'source' is of another type than the nodes"),
        ('edges', {'target': None}, r"no column 'target'; it has source"),
        ('edges', {'target': ['b', 'a', None, 'c']}, "column 'target' has 1 missing values"),
        ('nodes', {'node': ['d', 'a', 'a', 'b']}, "row 3: node .*'a'.* comes twice"),
        ('nodes', {'x': ['1', '2', 'z', '3']}, "feature 'x' is no number"),
        (
            'nodes',
            {'x': [1.0, 2.0, float('nan'), 3.0]},
            "feature 'x' has values that are not finite",
        ),
        ('nodes', {'y': [[1], [2, 3], [4], [5]]}, "lists of column 'y' are of several lengths"),
        ('labels', {'node': ['a', 'q', 'd']}, "labels.parquet row 2: 'q' is no node"),
        ('labels', {'node': ['a', 'a', 'd']}, 'a node has two labels'),
        ('labels', {'part': ['train', 'dev', 'test']}, "the part 'dev', which is none of train"),
    ],
)
def test_one_line_errors(tmp_path, file, columns, message):
    with pytest.raises(UserError, match=message) as e:
        load(write(tmp_path / 'g', **{file: columns}), str, kind=Graph)
    assert '\n' not in str(e.value)


def test_files_that_are_not_there(tmp_path):
    data = write(tmp_path / 'g')
    (tmp_path / 'g' / 'edges.parquet').unlink()
    with pytest.raises(UserError, match='has no edges.parquet: a graph is a folder with'):
        load(data, str, kind=Graph)
    (tmp_path / 'g' / 'edges.parquet').write_text('source,target')
    with pytest.raises(UserError, match='is no Parquet file, or damaged'):
        load(data, str, kind=Graph)
    with pytest.raises(UserError, match='min_user is not for a graph'):
        load(Data(log=data.log, data_dir=data.data_dir, min_user=2), str, kind=Graph)
