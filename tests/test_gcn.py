"""The GCN's forward pass and loss against dense float64 matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrec.data.graph import row_normalised
from jaxrec.data.node_batches import NodeBatches
from jaxrec.datasets import block_model
from jaxrec.errors import UserError
from jaxrec.experiment import check_fields
from jaxrec.models import gcn
from jaxrec.nn import propagate
from jaxrec.tasks import nodes

GRAPH = block_model.generate(block_model.Parameters(nodes=120, valid=20, test=20))
GRAPH.features = row_normalised(GRAPH.features)
SIZES = {'node': 120, 'feature': 60, 'class': 3}
CONSTANTS = jax.tree.map(jnp.asarray, nodes.constants(GRAPH))
BATCH = {
    'nodes': np.array([5, 0, 7, 7, 100, 3, 0, 0], np.int32),
    'labels': np.array([2, 0, 1, 1, -1, 2, 0, -1], np.int32),
    'weights': np.array([1, 1, 1, 0.5, 1, 2, 0, 0], np.float32),
}


def slow_scores(kernels):
    a = GRAPH.normalised_adjacency().toarray().astype(np.float64)
    x = GRAPH.features.toarray().astype(np.float64)
    first, second = (np.asarray(k[...], np.float64) for k in kernels)
    hidden = np.maximum(a @ (x @ first), 0)
    return a @ (hidden @ second), hidden


def slow_loss(logits, kernels, batch, decay):
    total = weight = 0.0
    for node, label, w in zip(batch['nodes'], batch['labels'], batch['weights'], strict=True):
        if label >= 0:
            row = logits[node]
            total += w * (np.log(np.exp(row).sum()) - row[label])
            weight += w
    return total / weight + decay / 2 * (np.asarray(kernels[0][...], np.float64) ** 2).sum()


def make(**settings):
    return gcn.Config(**settings).make(SIZES, rngs=nnx.Rngs(0))


def test_scores_and_vectors():
    model = make()
    logits, hidden = slow_scores(model.encoder.kernels)
    everyone = {'nodes': np.arange(120)}
    np.testing.assert_allclose(model.scores(everyone, CONSTANTS), logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.embed(everyone, CONSTANTS), hidden, rtol=1e-4, atol=1e-6)
    some = model.scores(BATCH, CONSTANTS)
    np.testing.assert_allclose(some, logits[BATCH['nodes']], rtol=1e-4, atol=1e-6)
    dense = {**CONSTANTS, 'features': jnp.asarray(GRAPH.features.toarray())}
    np.testing.assert_allclose(model.scores(BATCH, dense), some, rtol=1e-4, atol=1e-6)


def test_loss():
    model = make(dropout=0.0, weight_decay=0.1)
    logits, _ = slow_scores(model.encoder.kernels)
    expected = slow_loss(logits, model.encoder.kernels, BATCH, 0.1)
    loss, (terms, carry) = model.loss(BATCH, CONSTANTS, {}, jax.random.key(0))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(terms['cross_entropy'] + terms['decay']) == pytest.approx(float(loss), rel=1e-6)
    assert carry == {}


def gradients(model, batch, constants):
    graphdef, params = nnx.split(model)

    def loss(params, batch, constants):
        return nnx.merge(graphdef, params).loss(batch, constants, {}, jax.random.key(3))[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params, batch, constants)
    return value, nnx.to_pure_dict(grads)['encoder']['kernels']


def test_only_the_first_layer_decays():
    plain = gradients(make(weight_decay=0.0), BATCH, CONSTANTS)[1]
    model = make(weight_decay=0.1)
    decayed = gradients(model, BATCH, CONSTANTS)[1]
    first = 0.1 * np.asarray(model.encoder.kernels[0][...])
    np.testing.assert_allclose(decayed[0], plain[0] + first, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(decayed[1], plain[1])


def test_dropout_is_of_training_alone():
    model = make(dropout=0.5)
    losses = [
        float(model.loss(BATCH, CONSTANTS, {}, jax.random.key(seed))[0]) for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]
    model.config.dropout = 0.0
    without = float(model.loss(BATCH, CONSTANTS, {}, jax.random.key(0))[0])
    assert without != losses[0]


@pytest.mark.parametrize('shape', [(2, 2)])
def test_the_same_on_any_mesh(mesh, shape):
    expected = jax.tree.map(np.asarray, gradients(make(), BATCH, CONSTANTS))
    mesh(*shape)
    here = jax.sharding.get_mesh()
    batch = jax.device_put(BATCH, jax.NamedSharding(here, jax.P('data')))
    constants = jax.device_put(CONSTANTS, jax.NamedSharding(here, jax.P()))
    value, kernels = gradients(make(), batch, constants)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    for n in range(2):
        np.testing.assert_allclose(kernels[n], expected[1][n], rtol=1e-5, atol=1e-8)


def test_it_learns_more_than_its_features_tell():
    graph = block_model.generate(block_model.Parameters(nodes=400, words=3, own=0.3, seed=1))
    constants = jax.tree.map(jnp.asarray, nodes.constants(graph))
    sizes = {'node': 400, 'feature': 60, 'class': 3}
    model = gcn.Config().make(sizes, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    batch = NodeBatches(graph.train, graph.labels, 99, 0)(0)
    tx = optax.adam(0.01)

    @jax.jit
    def step(params, state, n):
        loss = lambda p: nnx.merge(graphdef, p).loss(batch, constants, {}, jax.random.key(n))[0]  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for n in range(100):
        params, state = step(params, state, n)
    model = nnx.merge(graphdef, params)
    found = np.asarray(model.scores({'nodes': graph.test}, constants)).argmax(1)
    accuracy = (found == graph.labels[graph.test]).mean()
    alone = {**constants, 'adjacency': propagate_nothing(400)}
    found = np.asarray(model.scores({'nodes': graph.test}, alone)).argmax(1)
    assert accuracy > 0.75
    assert (found == graph.labels[graph.test]).mean() < accuracy - 0.1


def propagate_nothing(n):
    rows = np.arange(n, dtype=np.int32)
    return propagate.Sparse(rows, rows, np.ones(n, np.float32))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'hidden': 0}, 'model.hidden=0'),
        ({'dropout': 1.0}, 'model.dropout=1.0'),
        ({'weight_decay': -1.0}, 'model.weight_decay=-1.0'),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        check_fields(gcn.Config(**settings), 'model')
