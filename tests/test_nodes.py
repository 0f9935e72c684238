"""The task of nodes: what it checks, batches, measures, and a whole run on a generated graph."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from real_data import real_data

from jaxrec.config import Data, Optim, Train
from jaxrec.data.graph import Graph
from jaxrec.data.node_batches import NodeBatches
from jaxrec.datasets import block_model
from jaxrec.errors import UserError
from jaxrec.evaluation import probe
from jaxrec.experiment import Experiment, check
from jaxrec.models import gcn, mixgcl, sasrec
from jaxrec.tasks import nodes

GENERATED = 'block-model:nodes=300,words=3,own=0.3,seed=1'


def quiet(line):
    del line


def experiment(tmp_path, model=None, dataset=GENERATED, **train):
    return Experiment(
        model=model or gcn.Config(),
        data=Data(dataset=dataset, data_dir=str(tmp_path)),
        train=Train(**{'batch_rows': 1024, **train}),
        task=nodes.Config(),
    )


@pytest.mark.parametrize(
    ('task', 'changes', 'message'),
    [
        ({'split': 'folds'}, {}, 'task.split=.* not one of public, random'),
        ({'split': 'random'}, {}, "task.split='random' judges vectors learnt without labels"),
        ({'probe': 'svm'}, {}, 'task.probe=.* scores, linear'),
        ({'nodes': 'some'}, {}, 'task.nodes=.* labelled, all'),
        ({}, {'model': mixgcl.Config()}, 'needs a model that has `scores`'),
        ({'probe': 'linear'}, {'model': sasrec.Config()}, 'needs a model that has `embed`'),
        ({'probe': 'linear'}, {'model': mixgcl.Config()}, "set task.nodes='all'"),
        ({}, {'optim': Optim(table='sparse_adam')}, 'optim.table'),
        ({}, {'train': Train(batch_rows=0)}, 'train.batch_rows=0'),
    ],
)
def test_mistakes_found_before_anything_is_read(tmp_path, task, changes, message):
    with pytest.raises(UserError, match=message):
        check(dataclasses.replace(experiment(tmp_path), task=nodes.Config(**task), **changes))


@pytest.mark.parametrize(
    ('model', 'probe', 'learnt'),
    [
        (gcn, 'scores', 'labelled'),
        (gcn, 'scores', 'all'),
        (gcn, 'linear', 'labelled'),
        (mixgcl, 'linear', 'all'),
    ],
)
def test_what_goes_together(tmp_path, model, probe, learnt):
    given = experiment(tmp_path, model.Config())
    check(dataclasses.replace(given, task=nodes.Config(probe=probe, nodes=learnt)))


@pytest.mark.parametrize('name', ['features', 'labels', 'train', 'valid', 'test'])
def test_a_graph_that_lacks_something(tmp_path, name):
    graph = block_model.generate(block_model.Parameters())
    dataclasses.replace(graph, **{name: None}).save(tmp_path / 'graph' / 'columns')
    given = experiment(tmp_path, dataset='')
    given.data.log = str(tmp_path / 'graph')
    with pytest.raises(UserError, match=f'has no {name}'):
        nodes.Config().open(given, quiet)


def test_open(tmp_path):
    problem = nodes.Config().open(experiment(tmp_path), quiet)
    assert problem.sizes == {'node': 300, 'feature': 60, 'class': 3}
    assert '15 train, 60 valid, 120 test' in problem.about
    assert pathlib.Path(problem.data_path).is_relative_to(tmp_path)
    sums = np.zeros(300)
    np.add.at(sums, problem.constants['features'].rows, problem.constants['features'].values)
    np.testing.assert_allclose(sums, 1, rtol=1e-6)
    as_given = nodes.Config(normalise_features=False).open(experiment(tmp_path), quiet)
    assert (as_given.constants['features'].values == 1).all()
    assert as_given.data_hash == problem.data_hash


# Batches ------------------------------------------------------------------------------------------


def test_one_batch_of_the_train_nodes(tmp_path):
    problem = nodes.Config().open(experiment(tmp_path), quiet)
    batches = problem.periods[0]().batches
    graph = problem.source
    assert (batches.rows, batches.steps_per_epoch, batches.targets_per_epoch) == (64, 1, 15)
    assert batches.fill == 15 / 64
    batch = batches(7)
    np.testing.assert_array_equal(batch['nodes'][:15], graph.train)
    np.testing.assert_array_equal(batch['labels'][:15], graph.labels[graph.train])
    assert (batch['labels'][15:] == -1).all() and (batch['nodes'][15:] == 0).all()
    assert batch['weights'].tolist() == [1] * 15 + [0] * 49
    dtypes = {name: column.dtype for name, column in batch.items()}
    assert dtypes == {'nodes': np.int32, 'labels': np.int32, 'weights': np.float32}


def test_all_nodes_in_several_steps_without_the_labels_to_find(tmp_path):
    given = experiment(tmp_path, batch_rows=128, seed=3)
    problem = nodes.Config(nodes='all').open(given, quiet)
    graph, batches = problem.source, problem.periods[0]().batches
    assert (batches.rows, batches.steps_per_epoch) == (128, 3)
    epochs = []
    for epoch in range(2):
        steps = [batches(3 * epoch + n) for n in range(3)]
        real = [batch['weights'] > 0 for batch in steps]
        assert [int(r.sum()) for r in real] == [100] * 3
        seen = np.concatenate([b['nodes'][r] for b, r in zip(steps, real, strict=True)])
        labels = np.concatenate([b['labels'][r] for b, r in zip(steps, real, strict=True)])
        assert sorted(seen) == list(range(300))
        known = np.isin(seen, graph.train)
        np.testing.assert_array_equal(labels[known], graph.labels[seen[known]])
        assert (labels[~known] == -1).all()
        epochs.append(seen)
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(batches(4)['nodes'], problem.periods[0]().batches(4)['nodes'])


def test_processes_share_a_batch():
    labels = np.arange(300, dtype=np.int32) % 3

    def make(process):
        return NodeBatches(np.arange(300), labels, 128, 0, process=process)

    whole, parts = make((0, 1))(1), [make((n, 4))(1) for n in range(4)]
    for name, column in whole.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), column)


# Measuring ----------------------------------------------------------------------------------------


def passed(problem, model, part, shape=None):
    """One evaluation as a pass does it."""
    constants = jax.tree.map(jnp.asarray, problem.constants)
    evaluation = problem.evaluations[part]()
    place = lambda batch: batch  # noqa: E731
    if shape:
        here = jax.sharding.get_mesh()
        constants = jax.device_put(constants, jax.NamedSharding(here, jax.P()))
        place = lambda batch: jax.device_put(batch, jax.NamedSharding(here, jax.P('data')))  # noqa: E731
    graphdef, params = nnx.split(model)
    begin = jax.jit(lambda p, c: problem.begin(nnx.merge(graphdef, p), c))
    predict = jax.jit(lambda p, c, b: problem.predict(nnx.merge(graphdef, p), c, b, False))
    carried = begin(params, constants)
    parts = []
    for places, batch in evaluation.batches():
        assert (batch['labels'] == -1).all()
        columns = predict(params, carried, place(batch))
        columns = {name: np.asarray(x)[: len(places)] for name, x in columns.items()}
        parts.append((places, columns))
    assert len(np.concatenate([places for places, _ in parts])) == evaluation.examples
    return evaluation.measure(parts[::-1])


@pytest.mark.parametrize('part', ['valid', 'test'])
def test_accuracy_of_scores(tmp_path, part):
    problem = nodes.Config().open(experiment(tmp_path), quiet)
    graph = problem.source
    model = gcn.Config().make(problem.sizes, rngs=nnx.Rngs(0))
    measured = passed(problem, model, part)
    everyone = {'nodes': np.arange(300)}
    logits = model.scores(everyone, jax.tree.map(jnp.asarray, problem.constants))
    who = getattr(graph, part)
    right = np.asarray(logits).argmax(1)[who] == graph.labels[who]
    np.testing.assert_array_equal(measured.values['accuracy'], right)
    assert measured.metrics['accuracy'] == np.average(measured.values['accuracy'])
    assert measured.unit == 'row'
    groups = measured.groups['class'].values()
    assert sum(g['examples'] for g in groups) == len(who)
    total = sum(g['examples'] * g['accuracy'] for g in groups)
    assert total / len(who) == pytest.approx(measured.metrics['accuracy'])


@pytest.mark.parametrize('shape', [(1, 1), (2, 2)])
@pytest.mark.parametrize('probed', ['scores', pytest.param('linear', marks=pytest.mark.slow)])
def test_the_same_on_any_mesh(tmp_path, mesh, shape, probed):
    problem = nodes.Config(probe=probed).open(experiment(tmp_path), quiet)
    alone = passed(problem, gcn.Config().make(problem.sizes, rngs=nnx.Rngs(0)), 'test')
    mesh(*shape)
    problem = nodes.Config(probe=probed).open(experiment(tmp_path), quiet)
    model = gcn.Config().make(problem.sizes, rngs=nnx.Rngs(0))
    measured = passed(problem, model, 'test', shape)
    np.testing.assert_array_equal(measured.values['accuracy'], alone.values['accuracy'])


def test_nodes_without_a_label_are_not_evaluated(tmp_path):
    graph = block_model.generate(block_model.Parameters())
    graph.labels[graph.test[:7]] = -1
    graph.labels[graph.train[:2]] = -1
    graph.save(tmp_path / 'graph' / 'columns')
    given = experiment(tmp_path, dataset='')
    given.data.log = str(tmp_path / 'graph')
    problem = nodes.Config().open(given, quiet)
    assert problem.evaluations['test']().examples == len(graph.test) - 7
    assert problem.periods[0]().batches.targets_per_epoch == len(graph.train) - 2


def test_linear_probe_reads_no_labels_but_those_of_train_and_valid(tmp_path):
    problem = nodes.Config(probe='linear').open(experiment(tmp_path), quiet)
    graph = problem.source
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)) + 2 * np.eye(5)[graph.labels]
    predicted, details = probe.linear_probe(x, graph.labels, graph.train, graph.valid, 3)
    assert details['valid_accuracy'] == (predicted[graph.valid] == graph.labels[graph.valid]).mean()
    assert (predicted[graph.test] == graph.labels[graph.test]).mean() > 0.7
    other = graph.labels.copy()
    other[graph.test] = 0
    again, _ = probe.linear_probe(x, other, graph.train, graph.valid, 3)
    np.testing.assert_array_equal(again, predicted)
    # the evaluation finds train, valid and test among its places
    evaluation = problem.evaluations['test']()
    nodes_of = np.concatenate([b['nodes'][: len(places)] for places, b in evaluation.batches()])
    measured = evaluation.measure([(np.arange(len(nodes_of)), {'vector': x[nodes_of]})])
    right = predicted[graph.test] == graph.labels[graph.test]
    np.testing.assert_array_equal(measured.values['accuracy'], right)
    assert measured.details['probe'] == details


def test_logistic_regression_is_at_the_minimum():
    """The gradient, by central differences of the loss as written in the docstring, is 0."""
    rng = np.random.default_rng(1)
    x, labels, c = rng.normal(size=(40, 3)), rng.integers(0, 4, 40), 0.7
    w = probe.logistic_regression(x, labels, 4, c)

    def objective(w):
        total = 0.0
        for row, label in zip(x, labels, strict=True):
            logits = row @ w[:-1] + w[-1]
            total += np.log(np.exp(logits).sum()) - logits[label]
        return c * total + (w[:-1] ** 2).sum() / 2

    for place in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[place] = 1e-4
        assert abs(objective(w + step) - objective(w - step)) / 2e-4 < 1e-3


def test_wide_features_are_probed_in_the_span_of_the_train_rows():
    rng = np.random.default_rng(2)
    x, labels = rng.normal(size=(30, 50)), rng.integers(0, 3, 30)
    train = np.arange(12)
    short = x @ np.linalg.qr(x[train].T)[0]
    wide = probe.logistic_regression(x[train], labels[train], 3, 2.0)
    narrow = probe.logistic_regression(short[train], labels[train], 3, 2.0)
    expected = x @ wide[:-1] + wide[-1]
    np.testing.assert_allclose(short @ narrow[:-1] + narrow[-1], expected, atol=1e-3)


def test_references(tmp_path):
    problem = nodes.Config().open(experiment(tmp_path), quiet)
    graph = problem.source
    found = problem.evaluations['test']().references()
    known = graph.labels[np.concatenate([graph.train, graph.valid])]
    most = np.bincount(known).argmax()
    share = (graph.labels[graph.test] == most).mean()
    assert found['majority'].metrics['accuracy'] == share
    accuracies = {name: measured.metrics['accuracy'] for name, measured in found.items()}
    assert accuracies['smoothed features'] > accuracies['raw features'] + 0.05
    # a linear probe has the same ones
    linear = nodes.Config(probe='linear').open(experiment(tmp_path), quiet)
    for name, measured in linear.evaluations['test']().references().items():
        np.testing.assert_array_equal(measured.values['accuracy'], found[name].values['accuracy'])


# Whole runs ---------------------------------------------------------------------------------------


def trained(problem, model, settings, steps, seed=0):
    """The model after some steps of Adam, and its test accuracy."""
    constants = jax.tree.map(jnp.asarray, problem.constants)
    batches = problem.periods[0]().batches
    graphdef, params = nnx.split(model.make(problem.sizes, rngs=nnx.Rngs(seed)))
    tx = optax.adam(settings)

    @jax.jit
    def step(params, state, batch, constants, n):
        key = jax.random.fold_in(jax.random.key(seed), n)
        batch = nnx.merge(graphdef, params).sample(batch, key)

        def loss(params):
            return nnx.merge(graphdef, params).loss(batch, constants, {}, key)[0]

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for n in range(steps):
        params, state = step(params, state, batches(n), constants, n)
    return passed(problem, nnx.merge(graphdef, params), 'test').metrics['accuracy']


def test_gcn_beats_smoothed_features(tmp_path):
    problem = nodes.Config().open(experiment(tmp_path), quiet)
    references = problem.evaluations['test']().references()
    accuracy = trained(problem, gcn.Config(), 0.01, 100)
    assert accuracy > references['raw features'].metrics['accuracy'] + 0.1


@pytest.mark.slow
def test_mixgcl_learns_without_labels(tmp_path):
    given = experiment(tmp_path, mixgcl.Config(dim=16, head=16))
    problem = nodes.Config(probe='linear', nodes='all').open(given, quiet)
    before = trained(problem, given.model, 0.0, 0)
    assert trained(problem, given.model, 5e-3, 60) > before + 0.03


@pytest.mark.slow
def test_gcn_on_cora(tmp_path):
    source = real_data('planetoid', 'cora.npz').parent
    given = experiment(tmp_path, dataset='cora')
    given.data.source = str(source)
    problem = nodes.Config().open(given, quiet)
    assert isinstance(problem.source, Graph)
    references = problem.evaluations['test']().references()
    rounded = {name: round(m.metrics['accuracy'], 3) for name, m in references.items()}
    assert rounded == {'majority': 0.319, 'raw features': 0.603, 'smoothed features': 0.805}
    scores = [trained(problem, gcn.Config(), 0.01, 200, seed) for seed in range(5)]
    assert np.mean(scores) >= 0.81


def test_random_splits(tmp_path, monkeypatch):
    """Every split is probed by itself; a node has its mean over the splits that test it."""
    monkeypatch.setattr(nodes, 'STRENGTHS', (1.0, 8.0))
    task = nodes.Config(split='random', probe='linear', nodes='all', splits=2, train_share=0.2)
    given = dataclasses.replace(experiment(tmp_path, mixgcl.Config(dim=4, head=4)), task=task)
    check(given)
    opened = task.open(given, quiet)
    evaluation, valid = (opened.evaluations[name]() for name in ('test', 'valid'))
    graph = opened.source
    vectors = graph.features.toarray()
    (batch,) = [places for places, _ in evaluation.batches()]
    measured = evaluation.measure([(batch, {'vector': vectors})])
    x = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    right = []
    for seed, c in enumerate(measured.details['probe']['c']):
        order = np.random.default_rng(seed).permutation(300)
        train, test = order[:60], order[60:]
        w = probe.logistic_regression(x[train], graph.labels[train], 3, c)
        right.append(((x[test] @ w[:-1] + w[-1]).argmax(1) == graph.labels[test]).mean())
    assert measured.metrics['accuracy'] == pytest.approx(np.mean(right), abs=0.01)
    values, weights = measured.values['accuracy'], measured.weights['accuracy']
    assert measured.metrics['accuracy'] == np.average(values, weights=weights)
    assert weights.sum() == 2 * 240
    found = valid.measure([(batch, {'vector': vectors})])
    assert found.metrics['accuracy'] == np.mean(found.values['accuracy'])
    assert set(evaluation.references()) == {'raw features', 'smoothed features'}
    assert evaluation.protocol != nodes.Config(probe='linear').protocol_fields()
    few = dataclasses.replace(task, train_share=0.01)
    with pytest.raises(UserError, match='300 labelled nodes, of which task.train_share=0.01'):
        few.open(dataclasses.replace(given, task=few), quiet).evaluations['test']()
