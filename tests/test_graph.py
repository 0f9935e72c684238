"""Graphs as columns, the normalised adjacency, planetoid files, and generated graphs."""

import json

import numpy as np
import pytest
import scipy.sparse
from real_data import real_data

from jaxrec import datasets
from jaxrec.config import Data
from jaxrec.data.graph import Graph, row_normalised, undirected
from jaxrec.datasets import block_model, planetoid
from jaxrec.errors import UserError

COLUMNS = ('edges', 'labels', 'train', 'valid', 'test')


def quiet(line):
    del line


def load(config, say):
    return datasets.load(config, say, kind=Graph)


def small(**changes):
    """Five nodes: a triangle 0-1-2, 2-3, and 4 alone, without label and features."""
    columns = {
        'num_nodes': 5,
        'edges': np.array([[0, 0, 1, 2], [1, 2, 2, 3]], np.int32),
        'features': scipy.sparse.csr_array(np.diag([1, 2, 3, 4, 0]).astype(np.float32)),
        'labels': np.array([0, 0, 1, 1, -1], np.int32),
        'train': np.array([0, 3], np.int32),
        'valid': np.array([1], np.int32),
        'test': np.array([2, 4], np.int32),
        'name': 'small',
    }
    return Graph(**{**columns, **changes})


def dense(x):
    return x.toarray() if scipy.sparse.issparse(x) else np.asarray(x)


def dense_adjacency(graph):
    """D^-1/2 (A + I) D^-1/2 in float64, entry by entry."""
    a = np.eye(graph.num_nodes)
    for u, v in graph.edges.T:
        a[u, v] = a[v, u] = 1
    degrees = a.sum(1)
    for u in range(len(a)):
        for v in range(len(a)):
            a[u, v] /= np.sqrt(degrees[u] * degrees[v])
    return a


def test_undirected():
    pairs = np.array([[3, 0, 1, 2, 2, 1], [2, 1, 0, 2, 3, 4]])
    assert undirected(pairs).tolist() == [[0, 1, 2], [1, 4, 3]]
    assert undirected(pairs).dtype == np.int32
    assert undirected(np.zeros((2, 0), np.int64)).shape == (2, 0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'edges': np.array([[1], [0]])}, 'lower one first'),
        ({'edges': np.array([[1], [1]])}, 'lower one first'),
        ({'edges': np.array([[1], [5]])}, 'lower one first'),
        ({'edges': np.array([[1, 0], [2, 1]])}, 'ascending'),
        ({'edges': np.array([[0, 0], [1, 1]])}, 'each of them once'),
        ({'labels': np.zeros(4, np.int32)}, '4 rows for 5 nodes'),
        ({'train': np.array([3, 0])}, 'train is not'),
        ({'test': np.array([5])}, 'test is not'),
    ],
)
def test_a_graph_checks_its_columns(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize('graph', [small(), block_model.generate(block_model.Parameters())])
def test_normalised_adjacency(graph):
    matrix = graph.normalised_adjacency()
    np.testing.assert_allclose(matrix.toarray(), dense_adjacency(graph), rtol=1e-6)
    assert matrix.dtype == np.float32 and matrix.nnz == 2 * graph.edges.shape[1] + graph.num_nodes
    assert matrix.has_sorted_indices
    assert (matrix != matrix.T).nnz == 0


def test_a_graph_without_edges():
    graph = Graph(3, np.zeros((2, 0), np.int32))
    np.testing.assert_array_equal(graph.normalised_adjacency().toarray(), np.eye(3))
    assert graph.num_classes == graph.num_features == 0
    assert graph.statistics()['isolated'] == 3


def test_statistics():
    assert small().statistics() == {
        'nodes': 5,
        'edges': 4,
        'features': 5,
        'classes': 2,
        'mean_degree': 8 / 5,
        'isolated': 1,
        'labelled': 4,
        'homophily': 0.5,
        'train': 2,
        'valid': 1,
        'test': 2,
    }


@pytest.mark.parametrize('is_sparse', [True, False])
def test_save_and_load(tmp_path, is_sparse):
    features = small().features
    graph = small(features=features if is_sparse else features.toarray())
    meta = graph.save(tmp_path / 'graph', {'source': 'here'})
    assert meta['kind'] == 'graph' and meta['source'] == 'here'
    again = Graph.load(tmp_path / 'graph')
    assert scipy.sparse.issparse(again.features) == is_sparse
    np.testing.assert_array_equal(dense(again.features), features.toarray())
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(again, name), getattr(graph, name))
    assert again.name == 'small'
    assert again.content_hash() == graph.content_hash() == meta['data_hash']
    graph.save(tmp_path / 'graph')  # over the old one
    assert sorted(p.name for p in tmp_path.iterdir()) == ['graph']


def test_the_hash_is_of_every_column():
    wide = scipy.sparse.csr_array(
        (small().features.data, small().features.indices, small().features.indptr), (5, 6)
    )
    others = [
        small(edges=small().edges[:, :3]),
        small(labels=np.array([0, 0, 1, 0, -1], np.int32)),
        small(features=small().features * 2),
        small(features=wide),
        small(train=None),
        small(valid=np.array([2], np.int32), test=np.array([1, 4], np.int32)),
    ]
    hashes = {graph.content_hash() for graph in [small(), *others]}
    assert len(hashes) == 1 + len(others)
    assert small(name='other').content_hash() == small().content_hash()


def test_load_takes_graphs_only(tmp_path):
    small().save(tmp_path / 'graph')
    meta = tmp_path / 'graph' / 'meta.json'
    other = json.loads(meta.read_text()) | {'kind': 'rows'}
    del other['meta_hash']
    meta.write_text(json.dumps(other))
    with pytest.raises(ValueError, match='holds rows, not graph'):
        Graph.load(tmp_path / 'graph')


def test_row_normalised():
    x = np.array([[1, 3, 0], [0, 0, 0], [-2, 2, 0]], np.float32)
    expected = [[0.25, 0.75, 0], [0, 0, 0], [-0.5, 0.5, 0]]
    for features in (x, scipy.sparse.csr_array(x)):
        np.testing.assert_allclose(dense(row_normalised(features)), expected)
        np.testing.assert_array_equal(dense(features), x)


# Planetoid files ----------------------------------------------------------------------------------


def arrays_of(graph):
    x = graph.features
    return {
        'x_data': x.data,
        'x_indices': x.indices,
        'x_indptr': x.indptr,
        'x_shape': np.array(x.shape),
        'edges': graph.edges.T[::-1, ::-1],
        'label': graph.labels.astype(np.int8),
        'train_idx': graph.train,
        'val_idx': graph.valid,
        'test_idx': graph.test[::-1],
    }


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder with a small cora.npz, which is as published."""
    monkeypatch.setattr(planetoid, 'CORA', planetoid.Planetoid('cora', 5, 4, 5, 2))
    (tmp_path / 'files' / 'planetoid').mkdir(parents=True)
    np.savez(tmp_path / 'files' / 'planetoid' / 'cora.npz', **arrays_of(small()))
    return tmp_path / 'files'


def test_planetoid(published, tmp_path):
    file = published / 'planetoid' / 'cora.npz'
    for source in (published, published / 'planetoid', file):
        graph, used = planetoid.CORA.read_checked(str(source), quiet)
        assert graph.content_hash() == small().content_hash()
        assert used == str(file)
    config = Data(dataset='cora', source=str(published), data_dir=str(tmp_path / 'data'))
    lines = []
    graph, meta = load(config, lines.append)
    assert (
        [line[:8] for line in lines] == ['writing ']
        and meta['citation']
        and meta['licence']
        and meta['source'] == str(file)
    )
    assert meta['data_hash'] == graph.content_hash() == small().content_hash()
    # a second time needs no source, and the folder may be given instead
    again, _ = load(Data(dataset='cora', data_dir=str(tmp_path / 'data')), lines.append)
    prepared, _ = load(Data(log=meta['path']), lines.append)
    assert len(lines) == 1
    assert again.content_hash() == prepared.content_hash() == meta['data_hash']


def test_mistakes_with_planetoid_files(published, tmp_path, monkeypatch):
    def message(source):
        with pytest.raises(UserError) as e:
            planetoid.CORA.read_checked(str(source), quiet)
        assert '\n' not in str(e.value)
        return str(e.value)

    file = published / 'planetoid' / 'cora.npz'
    assert 'give --source=FILE' in message('')
    assert 'no such file or folder' in message(published / 'nothing')
    (tmp_path / 'empty').mkdir()
    assert 'holds no cora.npz' in message(tmp_path / 'empty')
    monkeypatch.setattr(planetoid, 'CORA', planetoid.Planetoid('cora', 5, 3, 5, 2))
    assert 'is not cora as published: 5 nodes, 4 edges, 5 features, 2 classes where 5, 3' in (
        message(file)
    )
    arrays = arrays_of(small())
    np.savez(file, **{**arrays, 'edges': np.array([[0, 7]])})
    assert 'damaged, or not the .npz' in message(file)
    np.savez(file, **{k: v for k, v in arrays.items() if k != 'val_idx'})
    assert 'lacks an array' in message(file) and 'val_idx' in message(file)
    file.write_bytes(file.read_bytes()[:500])
    assert 'damaged' in message(file)
    file.write_bytes(b'no zip at all')
    assert 'damaged' in message(file)


def test_mistakes_with_names_and_folders(tmp_path):
    def message(**options):
        with pytest.raises(UserError) as e:
            load(Data(data_dir=str(tmp_path / 'data'), **options), quiet)
        return str(e.value)

    generated = 'synthetic:users=5,items=20,length=3'
    assert 'holds histories, and this wants graph' in message(dataset=generated)
    assert 'a folder without a prepared data set' in message(log=str(tmp_path / 'data'))
    small().save(tmp_path / 'graph' / 'columns')
    labels = tmp_path / 'graph' / 'columns' / 'labels.npy'
    labels.unlink()
    assert 'is damaged' in message(log=str(tmp_path / 'graph'))
    labels.write_bytes(b'nothing')
    assert 'damaged' in message(log=str(tmp_path / 'graph'))
    for argument in ('colour=1', 'nodes=many', 'classes=1', 'within=2', 'nodes=100', 'valid=0'):
        assert 'block-model' in message(dataset=f'block-model:{argument}')


def test_block_model(tmp_path):
    config = Data(dataset='block-model:nodes=400,classes=4,seed=3', data_dir=str(tmp_path))
    graph, meta = load(config, quiet)
    found = meta['statistics']
    assert (found['nodes'], found['classes'], found['train']) == (400, 4, 20)
    assert 0.75 < found['homophily'] < 0.92
    assert 4.5 < found['mean_degree'] <= 5
    assert np.bincount(graph.labels[graph.train]).tolist() == [5] * 4
    parts = np.concatenate([graph.train, graph.valid, graph.test])
    assert len(np.unique(parts)) == len(parts) == 200
    other = block_model.generate(block_model.parse('nodes=400,classes=4,seed=4'))
    assert other.content_hash() != meta['data_hash']


@pytest.mark.slow
def test_real_cora(tmp_path):
    source = real_data('planetoid', 'cora.npz').parent
    config = Data(dataset='cora', source=str(source), data_dir=str(tmp_path))
    graph, meta = load(config, quiet)
    assert meta['data_hash'].startswith('c6e9284adaf50af5')
    assert [len(p) for p in (graph.train, graph.valid, graph.test)] == [140, 500, 1000]
    assert meta['statistics']['homophily'] == pytest.approx(0.81, abs=0.001)
