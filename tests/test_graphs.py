"""Small graphs: reader, batches, GIN, views and soft identities, against dense float64 loops."""

import dataclasses
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit, moments, slow_shares
from real_data import real_data

from jaxrec import evaluate, losses
from jaxrec.config import Data, Optim, Train
from jaxrec.data.graph import Graph, undirected
from jaxrec.data.graphs import GraphBatches, Graphs, Packer
from jaxrec.datasets import load, tu_text
from jaxrec.devices.mesh import put_batch
from jaxrec.errors import UserError
from jaxrec.evaluation import probe, run
from jaxrec.experiment import Experiment, check, check_fields
from jaxrec.models import gcn, graphcl
from jaxrec.problem import STATISTICS
from jaxrec.tasks import graphs as task_lib
from jaxrec.training.loop import fit

TEXT = """2
3 1
0 2 1 2
7 1 0
0 1 0
2 0
7 1 1
7 1 0
"""
KEY = jax.random.key(3)


def made(count=24, seed=0, tags=2):
    """Class 0 has few edges, class 1 many; sorted by class, as TU's files are."""
    rng, offsets, pairs, kinds = np.random.default_rng(seed), [0], [], []
    for n in range(count):
        size = int(rng.integers(4, 9))
        dense = 0.25 if n < count // 2 else 0.8
        ends = np.argwhere(np.triu(rng.random((size, size)) < dense, 1)) + offsets[-1]
        pairs.append(ends)
        kinds.append(rng.integers(0, tags, size))
        offsets.append(offsets[-1] + size)
    edges = undirected(np.concatenate(pairs).T.astype(np.int32))
    labels = (np.arange(count) >= count // 2).astype(np.int32)
    return Graphs(np.array(offsets), edges, np.concatenate(kinds).astype(np.int32), labels, 'made')


GRAPHS = made()
PACKER = Packer(GRAPHS, 8)
CHOSEN = PACKER.order()[1]
BATCH = {name: x for name, x in PACKER(CHOSEN).items() if name != 'labels'}
SIZES = {'tag': 2, 'class': 2}
B = PACKER.rows


def make(**settings):
    return graphcl.Config(dim=4, layers=2, **settings).make(SIZES, rngs=nnx.Rngs(0))


def test_reads_the_text():
    graphs = tu_text.read(TEXT, 'x.txt', 'x')
    assert graphs.offsets.tolist() == [0, 3, 5] and graphs.labels.tolist() == [1, 0]
    assert graphs.edges.tolist() == [[0, 0, 3], [1, 2, 4]] and graphs.tags.tolist() == [
        0,
        1,
        0,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('0 2 1 2', '0 2 1 3', 'line 3: node 0 has a neighbour that is none of the 3 nodes'),
        ('0 2 1 2', '0 2 1 1', 'line 3: node 0 has a neighbour twice'),
        ('0 2 1 2', '0 2 1 0', 'line 3: node 0 is its own neighbour: loops'),
        ('7 1 0\n0', '7 0\n0', 'an edge is told of one of its ends alone'),
        ('3 1', '3 x', 'line 2: 2 whole numbers are expected'),
        ('7 1 1\n7 1 0\n', '7 1 1\n', 'line 8: 2 whole numbers'),
    ],
)
def test_one_line_errors(old, new, message):
    with pytest.raises(UserError, match=message) as e:
        tu_text.read(TEXT.replace(old, new), 'x.txt')
    assert '\n' not in str(e.value)


def test_another_file_is_told(tmp_path):
    file = tmp_path / 'IMDBBINARY.txt.gz'
    file.write_bytes(gzip.compress(TEXT.encode()))
    data = Data(dataset='imdb-binary', source=str(tmp_path), data_dir=str(tmp_path / 'd'))
    with pytest.raises(UserError, match='is not imdb-binary as published: 2 graphs, 5 nodes'):
        load(data, str, kind=Graphs)
    for source, message in (('', 'not downloaded'), (str(tmp_path / 'no'), 'no such file')):
        with pytest.raises(UserError, match=message):
            load(dataclasses.replace(data, source=source), str, kind=Graphs)


def test_saved_and_opened(tmp_path):
    GRAPHS.save(tmp_path / 'columns')
    again, meta = load(Data(log=str(tmp_path)), str, kind=Graphs)
    assert again.content_hash() == GRAPHS.content_hash() == meta['data_hash']
    assert meta['statistics']['largest'] == np.diff(GRAPHS.offsets).max()
    with pytest.raises(UserError, match='holds graphs, and this wants graph'):
        load(Data(log=str(tmp_path)), str, kind=Graph)


def test_batches_hold_every_graph_once_an_epoch():
    batches = GraphBatches(PACKER, GRAPHS.num_graphs, seed=5)
    shapes = {name: x.shape for name, x in batches(0).items()}
    for epoch in range(4):
        seen = []
        for step in range(batches.steps_per_epoch):
            batch = batches(epoch * batches.steps_per_epoch + step)
            assert {name: x.shape for name, x in batch.items()} == shapes
            real = batch['weights'] > 0
            seen += batch['graphs'][real].tolist()
            sizes = np.bincount(batch['owner'][batch['owner'] >= 0], minlength=real.sum())
            of = batch['graphs'][real]
            np.testing.assert_array_equal(sizes[: len(of)], np.diff(GRAPHS.offsets)[of])
        assert sorted(seen) == list(range(GRAPHS.num_graphs))
    half = GraphBatches(PACKER, GRAPHS.num_graphs, 5, process=(1, 2))(0)
    np.testing.assert_array_equal(half['sources'], batches(0)['sources'][PACKER.entries // 2 :])


def dense(graph):
    """Adjacency and one-hot tags of a graph, float64."""
    first, last = GRAPHS.offsets[graph : graph + 2]
    a = np.zeros((last - first,) * 2)
    for u, v in GRAPHS.edges.T:
        if first <= u < last:
            a[u - first, v - first] = a[v - first, u - first] = 1
    return a, np.eye(2)[GRAPHS.tags[first:last]]


def wide(x):
    return np.asarray(x[...], np.float64)


def slow_layer(layer, a, x):
    """Without the norm."""
    y = x + a @ x
    for linear in (layer.inner, layer.outer):
        kernel, bias = (np.asarray(p[...], np.float64) for p in (linear.kernel, linear.bias))
        y = np.maximum(y @ kernel + bias, 0)
    return y


def slow_vectors(model, graphs):
    """Read-outs of graphs, normalised by the statistics that the model has."""
    found = []
    for graph in graphs:
        a, x = dense(graph)
        sums = []
        for layer in model.layers:
            mean, variance = (np.asarray(p[...]) for p in (layer.norm.mean, layer.norm.variance))
            x = (slow_layer(layer, a, x) - mean) / np.sqrt(variance + 1e-5)
            sums.append(x.sum(0))
        found.append(np.concatenate(sums))
    return np.array(found)


def moved(model):
    """The model with running statistics of its own."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.norm.mean[...] = jnp.asarray(rng.normal(size=4), jnp.float32)
        layer.norm.variance[...] = jnp.asarray(rng.random(4) + 0.5, jnp.float32)
    return model


def test_vectors_of_graphs_whatever_their_order():
    """Dense float64; the file's order, by class, tells nothing: no statistics of the batch."""
    model = moved(make())
    embed = jit(type(model).embed_graphs)
    for chosen in (CHOSEN, CHOSEN[::-1], np.array([GRAPHS.num_graphs - 1])):
        batch = {name: x for name, x in PACKER(chosen).items() if name != 'labels'}
        got = np.asarray(embed(model, batch))[: len(chosen)]
        np.testing.assert_allclose(got, slow_vectors(model, chosen), rtol=1e-4, atol=1e-5)


def slow_identities(owner, partners, shares):
    """Node by node; of a graph without nodes its own."""
    found = np.diag(shares)
    for b in range(len(shares)):
        mine = np.flatnonzero(owner == b)
        for node in mine:
            found[b, owner[partners[node]]] += (1 - shares[b]) / len(mine)
        if not len(mine):
            found[b, b] = 1
    return found


def test_soft_identities():
    rng = np.random.default_rng(1)
    owner = np.array([0, 0, 0, 1, 1, 2, -1, -1], np.int32)
    partners = np.array([3, 1, 5, 0, 2, 4, 6, 7], np.int32)
    shares = rng.random(4)
    got = np.asarray(graphcl.identities(owner, partners, jnp.asarray(shares, jnp.float32)))
    np.testing.assert_allclose(got, slow_identities(owner, partners, shares), atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-6)
    inside = np.array([2, 0, 1, 4, 3, 5, 6, 7], np.int32)  # of the own graph
    same = graphcl.identities(owner, inside, jnp.asarray(shares, jnp.float32))
    np.testing.assert_allclose(same, np.eye(4), atol=1e-6)


@pytest.mark.parametrize('positive', [True, False])
def test_loss_of_shares(positive):
    rng = np.random.default_rng(2)
    q, k = rng.normal(size=(2, 5, 3))
    counted, t = np.array([True, True, True, True, False]), 0.3
    y = rng.random((5, 5)) * counted
    y /= y.sum(1, keepdims=True)

    def value(y):
        return np.asarray(
            losses.info_nce_of_shares(
                jnp.asarray(q, jnp.float32),
                jnp.asarray(k, jnp.float32),
                jnp.asarray(y, jnp.float32),
                counted,
                temperature=t,
                positive=positive,
            )
        )

    cos = (q / np.linalg.norm(q, axis=1)[:, None]) @ (k / np.linalg.norm(k, axis=1)[:, None]).T / t
    for i, got in enumerate(value(y)):
        among = [j for j in range(4) if positive or j != i]
        want = sum(y[i, j] * (np.log(np.exp(cos[i, among]).sum()) - cos[i, j]) for j in range(5))
        assert got == pytest.approx(want, rel=1e-5)
    # linear in the shares
    mixed = 0.3 * np.eye(5) + 0.7 * y
    np.testing.assert_allclose(value(mixed), 0.3 * value(np.eye(5)) + 0.7 * value(y), rtol=1e-5)


def test_a_batch_of_one_graph_has_no_contrast():
    """Its own key is left out and no other counts: 0, and no slope, for it alone."""
    q, k = jax.random.normal(KEY, (2, 3, 4))

    def values(q):
        one = jnp.array([True, False, False])
        return losses.info_nce_of_shares(q, k, jnp.eye(3), one, temperature=0.2, positive=False)

    found = np.asarray(values(q))
    assert found[0] == 0 and np.abs(found).max() < 20 and found[1:].all()
    slope = np.asarray(jax.grad(lambda q: values(q)[0])(q))
    np.testing.assert_array_equal(slope, np.zeros_like(slope))


def drawn(**settings):
    return jit(type(make()).sample)(make(positive=True, alpha=1.0, **settings), BATCH, KEY)


def test_partners_are_real_nodes():
    batch = drawn()
    real = BATCH['owner'] >= 0
    partners = np.asarray(batch['partners'])
    assert sorted(partners[real]) == np.flatnonzero(real).tolist()
    np.testing.assert_array_equal(partners[~real], np.flatnonzero(~real))
    assert make().sample(BATCH, KEY) is BATCH


@pytest.mark.parametrize('alpha', [0.3, 2.0])
def test_shares(alpha):
    """max(s, 1 - s) of s ~ Beta(alpha, alpha), of every graph's own."""
    model = make(positive=True, alpha=alpha)
    draw = jit(jax.vmap(lambda key: model.sample(BATCH, key)['shares']))
    shares = np.asarray(draw(jax.random.split(KEY, 60)))
    assert shares.shape == (60, B) and (shares >= 0.5).all()
    assert moments(shares, slow_shares(alpha)).max() < 4


SLOW = pytest.mark.slow


def slow_mix(batch):
    """Of node states, each with its partner's by the share of its graph."""
    partners, owner = np.asarray(batch['partners']), BATCH['owner']
    shares = np.where(owner >= 0, np.asarray(batch['shares'], np.float64)[owner], 1)[:, None]
    return lambda x: shares * x + (1 - shares) * x[partners]


def slow_whole():
    """(features, adjacency, owner) of the batch."""
    a, x = np.zeros((len(BATCH['owner']),) * 2), np.eye(2)[np.maximum(BATCH['tags'], 0)]
    there = BATCH['there'] > 0
    a[BATCH['targets'][there], BATCH['sources'][there]] = 1
    return x, a, BATCH['owner']


def slow_encoded(model, x, a, owner, mix=None, at=-1):
    """Read-outs in float64, normalised by the nodes that have an owner; mixed behind layer `at`."""
    real, found = owner >= 0, np.zeros((B, 8))
    x = x * real[:, None]
    x = mix(x) if at == 0 else x
    for n, layer in enumerate(model.layers, 1):
        x = slow_layer(layer, a, x)
        x = (x - x[real].mean(0)) / np.sqrt(x[real].var(0) + 1e-5)
        x = (x * wide(layer.norm.scale) + wide(layer.norm.bias)) * real[:, None]
        read = mix(x) if n <= at else x
        x = read if n == at else x
        np.add.at(found[:, 4 * n - 4 : 4 * n], owner[real], read[real])
    return found


def slow_head(model, z):
    """W_2 relu(W_1 z)."""
    hidden = np.maximum(z @ wide(model.inner.kernel) + wide(model.inner.bias), 0)
    return hidden @ wide(model.outer.kernel) + wide(model.outer.bias)


@pytest.mark.parametrize(
    'settings',
    [
        {'view': 'node_drop'},
        {'view': 'attribute_mask', 'positive': True, 'alpha': 0.5, 'mix_at': 1},
    ],
    ids=('graphcl', 'id_mixgcl'),
)
def test_loss(settings):
    """Graph by graph: the first view, mixed or not, looks for its graphs in the changed one."""
    model, t, rng = make(temperature=0.3, **settings), 0.3, np.random.default_rng(4)
    graphdef, params = nnx.split(model)
    noise = lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    model = nnx.merge(graphdef, jax.tree.map(noise, params))
    batch = jit(type(model).sample)(model, BATCH, KEY)
    other = jit(lambda: graphcl.changed(graphcl.whole(BATCH, 2), model.config, KEY, B))()
    owner, edges = np.asarray(other['owner']), other['edges']
    a = np.zeros((len(owner),) * 2)
    np.add.at(a, (np.asarray(edges.rows), np.asarray(edges.columns)), wide(edges.values))
    keys = slow_head(model, slow_encoded(model, wide(other['x']), a, owner))
    if 'alpha' in settings:
        first = slow_encoded(model, *slow_whole(), slow_mix(batch), 1)
        wanted = slow_identities(
            BATCH['owner'], np.asarray(batch['partners']), wide(batch['shares'])
        )
    else:
        first, wanted = slow_encoded(model, *slow_whole()), np.eye(B)
    queries, count, each = slow_head(model, first), len(CHOSEN), []
    for i in range(count):
        cos = [q @ k / np.sqrt((q @ q) * (k @ k)) for q, k in ((queries[i], k) for k in keys)]
        logits = np.array(cos)[:count] / t
        among = [j for j in range(count) if model.config.positive or j != i]
        each.append(np.log(np.exp(logits[among]).sum()) - wanted[i, :count] @ logits)
    loss, (terms, _) = jit(type(model).loss)(model, batch, {}, model.carry(), KEY)
    assert float(loss) == float(terms['contrast']) == pytest.approx(np.mean(each), rel=1e-4)


@pytest.mark.parametrize('at', [pytest.param(0, marks=SLOW), 1, pytest.param(2, marks=SLOW)])
def test_mixed_graphs(at):
    """Layer by layer on the whole batch in float64, read-outs before the mixing mixed too."""
    model, batch = make(positive=True, alpha=1.0, mix_at=at), drawn()
    want = slow_encoded(model, *slow_whole(), slow_mix(batch), at)

    def encoded(model, batch):
        view = graphcl.whole(batch, 2)
        of = jnp.where(view['owner'] >= 0, batch['shares'][view['owner']], 1)[:, None]
        how = lambda x: of * x + (1 - of) * x[batch['partners']]  # noqa: E731
        return model.encode(view, B, train=True, mix=how)

    np.testing.assert_allclose(jit(encoded)(model, batch), want, rtol=1e-3, atol=1e-3)


def view_of(kind, key=KEY, **settings):
    config = graphcl.Config(view=kind, **settings)
    view = graphcl.whole(jax.tree.map(jnp.asarray, BATCH), 2)
    return jax.tree.map(np.asarray, jax.jit(lambda k: graphcl.changed(view, config, k, B))(key))


def test_views():
    """What goes and what stays of each; an edge goes in both directions or in none."""
    real = BATCH['owner'] >= 0
    for kind in graphcl.OPERATIONS:
        view = view_of(kind, rate=0.3, walk=0.4)
        stays, edges = view['real'] > 0, view['edges']
        left = edges.values > 0
        pairs = set(zip(edges.rows[left].tolist(), edges.columns[left].tolist(), strict=True))
        assert pairs and all((v, u) in pairs for u, v in pairs)
        assert not (stays & ~real).any() and (view['owner'][~stays] == -1).all()
        assert all(stays[u] and stays[v] for u, v in pairs)  # nothing is added, ends are there
        whole = {(u, v) for u, v, w in zip(*_ends(), strict=True) if w and stays[u] and stays[v]}
        if kind == 'edge_drop':
            assert stays[real].all() and 0.5 < len(pairs) / len(whole) < 0.9
        else:
            assert pairs == whole
        if kind == 'node_drop':
            assert 0.5 < stays[real].mean() < 0.9
        masked = np.abs(view['x'] - np.eye(2)[np.maximum(BATCH['tags'], 0)])[stays].max(1) > 0
        assert (0.1 < masked.mean() < 0.5) if kind == 'attribute_mask' else not masked.any()
        if kind == 'subgraph':
            for b in range(len(CHOSEN)):
                mine = np.flatnonzero(real & (BATCH['owner'] == b))
                kept = {int(n) for n in mine if stays[n]}
                reached = {min(kept)}
                while more := {v for u, v in pairs if u in reached} - reached:
                    reached |= more
                assert reached == kept and len(kept) <= np.ceil(0.4 * len(mine))
    # rate 0: the graph itself
    view = view_of('node_drop', rate=0.0)
    np.testing.assert_array_equal(view['real'], real)
    np.testing.assert_array_equal(view['edges'].values, BATCH['there'])


def _ends():
    return BATCH['targets'].tolist(), BATCH['sources'].tolist(), (BATCH['there'] > 0).tolist()


def gradients(settings, batch):
    model = make(**settings)
    graphdef, params = nnx.split(model, nnx.Param)

    def loss(params, batch):
        model = nnx.merge(graphdef, params)
        value, (_, carry) = model.loss(batch, {}, model.carry(), KEY)
        return value, carry

    (value, carry), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    return [np.asarray(x) for x in (value, *jax.tree.leaves((grads, carry[STATISTICS])))]


@pytest.mark.slow
def test_the_same_on_a_mesh(mesh):
    """Value, gradients and running statistics of a mixed step."""
    settings = {'alpha': 1.0, 'positive': True, 'mix_at': 1}
    batch = jax.tree.map(np.asarray, drawn())
    expected = gradients(settings, batch)
    mesh(2, 2)
    partners, shares = batch.pop('partners'), batch.pop('shares')
    given = {**put_batch(batch), 'partners': jnp.asarray(partners), 'shares': jnp.asarray(shares)}
    for one, other in zip(gradients(settings, given), expected, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_batches_split_over_any_mesh(mesh, monkeypatch):
    """Over three devices too, as over 96 of a pod."""
    mesh(3, 1)
    meta = {'data_hash': '', 'path': ''}
    monkeypatch.setattr(task_lib.datasets, 'load', lambda *args, **kwargs: (GRAPHS, meta))
    experiment = Experiment(graphcl.Config(), task_lib.Config(folds=2), train=Train(batch_rows=9))
    problem = experiment.task.open(experiment)
    _, evaluated = next(problem.evaluations['test']().batches())
    for batch in (problem.periods[0]().batches(0), evaluated):
        np.testing.assert_array_equal(put_batch(batch)['tags'], batch['tags'])


def test_svm_and_folds():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    x[:, 0] += 3 * (labels == 1)
    w = probe.linear_svm(x, labels, 3, 0.5)

    def objective(w, k):
        y = np.where(labels == k, 1, -1)
        return 0.5 * (np.maximum(1 - y * (x @ w[:3] + w[3]), 0) ** 2).sum() + (w[:3] ** 2).sum() / 2

    for k in range(3):  # a minimum of a convex function
        best = objective(w[:, k], k)
        assert all(
            objective(w[:, k] + 1e-2 * rng.normal(size=4), k) >= best - 1e-6 for _ in range(20)
        )
    fold = probe.stratified(labels, 5, rng)
    for k in range(3):
        counts = np.bincount(fold[labels == k], minlength=5)
        assert counts.max() - counts.min() <= 1
    hidden = np.where(np.arange(60) < 40, labels, 0)
    args = (probe.linear_svm, (0.1, 1.0), x)
    one, other = (
        probe.fitted_by_folds(*args, y, np.arange(40), 3, np.random.default_rng(1))
        for y in (labels, hidden)
    )
    np.testing.assert_array_equal(one[0], other[0])  # labels of the test rows are not read


def test_a_run(tmp_path, monkeypatch, capsys):
    """Trains, evaluates with lines of how far it is, and tells what needs no model."""
    monkeypatch.setattr(task_lib, 'STRENGTHS', (0.1, 1.0))
    monkeypatch.setattr(run, 'QUIET', -1)
    GRAPHS.save(tmp_path / 'data' / 'columns')
    experiment = Experiment(
        task=task_lib.Config(folds=3),
        model=graphcl.Config(dim=4, layers=2),
        data=Data(log=str(tmp_path / 'data')),
        optim=Optim(learning_rate=0.01),
        train=Train(batch_rows=8, epochs=1),
    )
    fit(experiment, tmp_path / 'run')
    measured = evaluate(tmp_path / 'run')
    assert measured.metrics['accuracy'] == np.mean(measured.values['accuracy'])
    told = capsys.readouterr().out
    assert 'test: predicting 24 examples' in told and '\n24 rows predicted\n' in told
    check(experiment)
    with pytest.raises(UserError, match='no `embed_graphs`'):
        check(dataclasses.replace(experiment, model=gcn.Config()))
    evaluation = task_lib.GraphEvaluation(experiment.task, GRAPHS, PACKER)
    found = {name: m.metrics['accuracy'] for name, m in evaluation.references().items()}
    assert found['majority'] == 0.5 and found['graph statistics'] > 0.9  # the classes' densities
    assert set(found) == {'majority', 'raw features', 'smoothed features', 'graph statistics'}
    many = task_lib.Config(folds=13)
    with pytest.raises(UserError, match='has 12 graphs, too few for task.folds=13'):
        many.open(dataclasses.replace(experiment, task=many))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'mix_at': 4}, 'model.mix_at=4 is more than'),
        ({'alpha': 1.0}, 'set model.positive'),
        ({'view': 'flip'}, 'model.view=.* none, any, node_drop'),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        check_fields(graphcl.Config(**settings), 'model')
        graphcl.Config(**settings).check()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['imdb-binary', 'proteins'])
def test_real_files(tmp_path, name):
    """Published means; the file's order, by class, matters to who looks at a batch's statistics."""
    source = real_data('tu')
    data = Data(dataset=name, source=str(source), data_dir=str(tmp_path))
    graphs, meta = load(data, str, kind=Graphs)
    wanted = {'imdb-binary': (19.77, 96.53), 'proteins': (39.06, 72.82)}[name]
    found = meta['statistics']['mean_nodes'], meta['statistics']['mean_edges']
    assert found == pytest.approx(wanted, abs=0.005)
    if name == 'proteins':
        return
    packer = Packer(graphs, 128)
    evaluation = task_lib.GraphEvaluation(task_lib.Config(), graphs, packer)
    model = graphcl.Config().make({'tag': 1, 'class': 2}, rngs=nnx.Rngs(0))

    def accuracy(chosen, train):
        encode = jit(lambda m, b: m.encode(graphcl.whole(b, 1), len(b['graphs']), train=train))
        parts = []
        for some in chosen:
            batch = {n: x for n, x in packer(some).items() if n != 'labels'}
            parts.append((some, {'vector': np.asarray(encode(model, batch))[: len(some)]}))
        return evaluation.measure(parts).metrics['accuracy']

    sizes = np.diff(graphs.offsets)
    in_file = np.array_split(np.arange(graphs.num_graphs), 25)  # of one class each
    assert max(sizes[some].sum() for some in in_file) <= packer.nodes
    by_file, by_size = (accuracy(chosen, train=True) for chosen in (in_file, packer.order()))
    assert abs(by_file - by_size) > 0.1
    by_file, by_size = (accuracy(chosen, train=False) for chosen in (in_file, packer.order()))
    assert by_file == pytest.approx(by_size, abs=0.003)
