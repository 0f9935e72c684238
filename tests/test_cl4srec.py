"""CL4SRec and its heirs against a reference made of single histories; meshes, resume, the queue."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrec.config import Data, Experiment, Optim, Train
from jaxrec.data.histories import Histories
from jaxrec.data.packed import TrainBatches
from jaxrec.data.splits import leave_one_out
from jaxrec.devices.mesh import TABLE, make_mesh, put_batch
from jaxrec.devices.top_k import counts_and_top_k
from jaxrec.errors import UserError
from jaxrec.experiment import check
from jaxrec.models import cl4srec, sasrec
from jaxrec.objectives import contrast
from jaxrec.objectives.contrast import Contrast
from jaxrec.tasks.next_item import train_batches
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import abstract_state, init_state, split_model, train_step

ITEMS, L, D = 37, 10, 16
VARIANTS = {
    'cl4srec': {},
    'cosine, mean, head': {
        'similarity': 'cosine',
        'temperature': 0.2,
        'pool': 'mean',
        'head': True,
    },
    'duorec': {'first': 'dropout', 'second': 'same_target', 'same_target_negatives': False},
    'simcse': {'first': 'dropout', 'second': 'dropout'},
    'cutoff': {'first': 'cutoff', 'second': 'augment', 'cutoff': 0.3},
    'coserec': {'substitute': 0.2, 'insert': 0.5, 'short': 4},
    'moco': {'momentum': 0.9, 'queue': 128, 'similarity': 'cosine', 'temperature': 0.5},
    'moco, duorec': {
        'first': 'dropout',
        'second': 'same_target',
        'momentum': 0.5,
        'queue': 64,
        'same_target_negatives': False,
    },
}
QUIET = {'dropout': 0.0, 'embedding_dropout': 0.0}


def experiment(settings, batch_rows=8, **options):
    options = {'dim': D, 'max_len': L, 'heads': 2, 'loss': 'bce', 'negatives': 3} | options
    return Experiment(
        model=cl4srec.Config(**options, contrast=Contrast(**settings)),
        data=Data(dataset='synthetic'),
        optim=Optim(learning_rate=1e-2, eps=0.1),  # which does not blow up gradients that are 0
        train=Train(batch_rows=batch_rows),
    )


def histories():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 14, 90)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(1, ITEMS + 1, offsets[-1]).astype(np.int32)
    return Histories(items, offsets, np.arange(90), np.arange(1, ITEMS + 1))


def batches_of(exp):
    data = histories()
    return train_batches(exp, data, leave_one_out(data))


def start(exp, seed=0):
    """graphdef, optimizer, state, away from the initial values."""
    optimizer = make_optimizer(exp.optim, 10)
    graphdef, _ = split_model(exp.model, ITEMS)
    return graphdef, optimizer, init_state(exp.model, ITEMS, optimizer, seed)


def encoder(graphdef):
    """Jitted (params, rows) -> hidden vectors."""

    @jax.jit
    def encode(params, rows):
        model = nnx.merge(graphdef, params)
        return model.encode(rows, model.item_table())

    return encode


def slow_vectors(encode, model, params, rows):
    """User vectors [n, D] of segments that each have a row of their own, right-aligned."""
    rows = {name: np.asarray(value) for name, value in rows.items()}
    own = {name: np.zeros((90, L, *value.shape[2:]), value.dtype) for name, value in rows.items()}
    lengths = []
    for row in range(len(rows['items'])):
        segments = rows['segments'][row]
        for number in range(1, segments.max() + 1):
            here = segments == number
            for name in own:
                own[name][len(lengths), L - here.sum() :] = rows[name][row, here]
            lengths.append(here.sum())
    own['segments'] = (np.arange(L) >= L - np.pad(lengths, (0, 90 - len(lengths)))[:, None]) * 1
    hidden = np.asarray(encode(params, own), np.float64)
    found = []
    for x, length in zip(hidden, lengths, strict=False):
        x = x[L - length :].mean(0) if model.config.contrast.pool == 'mean' else x[-1]
        if model.head is not None:
            inner, outer = (np.asarray(params['head'][i], np.float64) for i in range(2))
            x = np.maximum(x @ inner, 0) @ outer
        found.append(x)
    return np.stack(found)


def slow_term(settings, first, second, batch, queue=None):
    """InfoNCE pair by pair."""

    def unit(x):
        return (
            x / np.linalg.norm(x, axis=-1, keepdims=True) if settings.similarity == 'cosine' else x
        )

    users, targets = np.asarray(batch['users']), np.asarray(batch['user_targets'])
    n, first, second = len(first), unit(first), unit(second)
    others = [(x, users[i], targets[i]) for i, x in enumerate(second)]
    losses = []
    for a, b in ((first, second), (second, first))[: 1 if queue else 2]:
        for i in range(n):
            others = queue or [
                (x, users[j], targets[j]) for view in (a, b) for j, x in enumerate(view) if j != i
            ]
            scores = [
                a[i] @ unit(x) / settings.temperature
                for x, user, target in others
                if user and user != users[i]
                if settings.same_target_negatives or target != targets[i]
            ]
            positive = a[i] @ b[i] / settings.temperature
            losses.append(np.log(np.exp([positive, *scores]).sum()) - positive)
    return np.mean(losses)


@pytest.mark.parametrize('name', VARIANTS)
def test_the_loss_is_the_main_loss_plus_the_term(name):
    exp = experiment(VARIANTS[name], **QUIET)
    settings = exp.model.contrast
    batches = batches_of(exp)
    graphdef, optimizer, state = start(exp)
    step, encode = train_step(graphdef, optimizer, 0), encoder(graphdef)
    for number in range(2):  # the second with a queue that holds something
        batch, before = batches(number), jax.tree.map(jnp.copy, state)
        key = jax.random.fold_in(jax.random.key(0), number)
        model = nnx.merge(graphdef, before['params'])
        rows, _ = model._views(batch, key)
        n = int((batch['users'] > 0).sum())
        first, second = (slow_vectors(encode, model, before['params'], view) for view in rows)
        queue = None
        assert len(first) == len(second) == n
        state, metrics = step(state, jax.tree.map(jnp.asarray, batch))
        if settings.momentum:
            memory = before['memory']
            momentum = jax.tree.map(
                lambda a, b: settings.momentum * a + (1 - settings.momentum) * b,
                memory['momentum'],
                before['params'],
            )
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                momentum,
                state['memory']['momentum'],
            )
            second = slow_vectors(encode, model, momentum, rows[1])
            newest = np.asarray(state['memory']['queue']).reshape(-1, D)[-len(batch['users']) :]
            np.testing.assert_allclose(newest[:n], second, atol=1e-4)
            queue = [
                tuple(entry)
                for entry in zip(
                    np.asarray(memory['queue']).reshape(-1, D),
                    np.asarray(memory['queue.users']).reshape(-1),
                    np.asarray(memory['queue.targets']).reshape(-1),
                    strict=True,
                )
            ]
        expected = slow_term(settings, first, second, batch, queue)
        np.testing.assert_allclose(metrics['contrast'], expected, rtol=2e-4, atol=2e-5)
        if number or not settings.momentum:
            assert expected > 0.05
        main, _ = sasrec.SASRec.loss(model, jax.tree.map(jnp.asarray, batch), key)
        total = main + settings.weight * metrics['contrast']
        np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)
        np.testing.assert_allclose(metrics['bce'], main, rtol=1e-5)


def test_weight_zero_is_sasrec_bit_by_bit():
    exp = experiment({'weight': 0.0})
    plain = Experiment(
        model=sasrec.Config(dim=D, max_len=L, heads=2, loss='bce', negatives=3),
        data=exp.data,
        optim=exp.optim,
        train=exp.train,
    )
    results = []
    for one in (exp, plain):
        batches = batches_of(one)
        graphdef, optimizer, state = start(one)
        assert 'memory' not in state
        step = train_step(graphdef, optimizer, 0)
        for number in range(3):
            state, metrics = step(state, jax.tree.map(jnp.asarray, batches(number)))
        results.append(jax.device_get((state, metrics)))
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize('name', [name for name in VARIANTS if name not in ('simcse', 'moco')])
def test_same_steps_on_any_mesh(mesh, name):
    """Losses, gradients' norms, parameters and memory after two steps, with dropout."""
    results, more = [], ((8, 1), (2, 4)) if name == 'cl4srec' else ()
    for shape in ((1, 1), (4, 2), *more):
        mesh(*shape)
        exp = experiment(VARIANTS[name], blocks=1)
        batches = batches_of(exp)
        graphdef, optimizer, state = start(exp)
        step = train_step(graphdef, optimizer, 0)
        for number in range(2):
            state, metrics = step(state, put_batch(batches(number)))
        if 'momentum' in VARIANTS[name]:
            memory = state['memory']
            assert memory['momentum']['table'].sharding.spec == TABLE
            assert memory['queue'].sharding.spec == jax.P(None, 'data', None)
        results.append(jax.device_get((metrics, state['params'], state.get('memory', {}))))
    for metrics, params, memory in results[1:]:
        for term, value in metrics.items():
            np.testing.assert_allclose(value, results[0][0][term], rtol=2e-5, atol=2e-5)
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5)  # noqa: E731
        jax.tree.map(close, params, results[0][1])
        jax.tree.map(close, memory, results[0][2])


@pytest.mark.parametrize('name', ['cosine, mean, head', 'cutoff'])
def test_views_in_one_pass_or_in_two(mesh, name):
    mesh(4, 2)
    exp = experiment(VARIANTS[name], blocks=1)
    graphdef, _, state = start(exp)
    batch, key = put_batch(batches_of(exp)(0)), jax.random.key(1)

    def vectors(params, stack):
        model = nnx.merge(graphdef, params)
        rows, keys = model._views(batch, key)
        vector = lambda rows, key: model._vectors(rows, key, len(batch['users']))  # noqa: E731
        a, b = contrast.both(vector, rows, keys, stack=stack)
        return (a * jnp.sin(b)).sum(), (a, b)

    both = [
        jax.device_get(
            jax.jit(jax.value_and_grad(vectors, has_aux=True), static_argnums=1)(
                state['params'], stack
            )
        )
        for stack in (False, True)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *both)


@pytest.mark.parametrize('loss', ['softmax', 'in_batch', 'gbce', 'sampled_softmax'])
def test_any_main_loss(loss):
    exp = experiment({}, loss=loss)
    if loss == 'in_batch':
        exp.data.windows, exp.data.cuts = 'cuts', 2
        exp.model.in_batch.logq = 'streaming'
        exp.model.contrast.momentum, exp.model.contrast.queue = 0.9, 64
    check(exp)
    batches = batches_of(exp)
    graphdef, optimizer, state = start(exp)
    step = train_step(graphdef, optimizer, 0)
    for number in range(2):
        state, metrics = step(state, jax.tree.map(jnp.asarray, batches(number)))
    assert loss in metrics
    np.testing.assert_allclose(
        metrics['loss'], metrics[loss] + 0.1 * metrics['contrast'], rtol=1e-5
    )
    if loss == 'in_batch':
        assert {'last', 'gap', 'momentum', 'queue', 'queue.users'} <= state['memory'].keys()


def test_touched_rows_only():
    """The sparse optimisers also update the rows that only views name."""
    results = []
    for table in ('dense', 'sparse_adam'):
        exp = experiment({'substitute': 0.3, 'insert': 0.3, 'second': 'same_target'})
        exp.optim.table = table
        batch = jax.tree.map(jnp.asarray, batches_of(exp)(0))
        graphdef, optimizer, state = start(exp)
        state, metrics = train_step(graphdef, optimizer, 0)(state, batch)
        results.append((state['params']['table'], metrics['loss']))
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-5)


def test_overfits_one_batch():
    exp = experiment({'weight': 1.0, 'temperature': 0.2, 'similarity': 'cosine'}, loss='softmax')
    data = histories()
    ends = leave_one_out(data).train_ends
    batches = TrainBatches(data, ends, max_len=L, rows=2, seed=0)
    batch = jax.tree.map(jnp.asarray, batches(0))
    batch |= {'users': jnp.arange(64) * (jnp.arange(64) < 3), 'user_targets': jnp.zeros(64, int)}
    graphdef, _, state = start(exp)
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, opt, key):
        gradient = jax.value_and_grad(
            lambda p: nnx.merge(graphdef, p).loss(batch, key), has_aux=True
        )
        (_, terms), grads = gradient(params)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, terms

    params, opt, seen = state['params'], tx.init(state['params']), []
    for i in range(250):
        params, opt, terms = step(params, opt, jax.random.key(i))
        seen.append(terms)
    for term in ('softmax', 'contrast'):
        values = [float(terms[term]) for terms in seen]
        assert np.mean(values[-20:]) < 0.3 * np.mean(values[:3]), term


def test_the_mask_is_never_recommended(mesh):
    mesh(1, 1)
    table = np.ones((64, 4), np.float32)
    table[0] = 100
    place = jax.NamedSharding(jax.sharding.get_mesh(), TABLE)
    users = {
        'queries': np.ones((2, 1, 4), np.float32),
        'targets': np.array([1, 2], np.int32),
        'seen': np.zeros((2, 1), np.int32),
    }
    users = put_batch(users)
    greater, _, top = counts_and_top_k(
        users['queries'],
        jax.device_put(table, place),
        ITEMS,
        users['targets'],
        users['seen'],
        True,
        20,
    )
    assert (top > 0).all() and (greater == 0).all()


def test_contrast_and_microbatches_do_not_go_together():
    exp = experiment({})
    exp.train.microbatches = 2
    with pytest.raises(UserError, match='model.contrast.weight > 0 does not go with'):
        check(exp)
    exp.model.contrast.weight = 0.0
    check(exp)


EXPERIMENT = """
from jaxrec.config import Data, Experiment, Optim, Train
from jaxrec.contrast import Contrast
from jaxrec.models import cl4srec

def get_config(arg=''):
    return Experiment(
        model=cl4srec.Config(
            dim=8, blocks=1, max_len=10, contrast=Contrast(momentum=.9, queue=128)
        ),
        data=Data(dataset='synthetic:users=300,items=60,length=12,seed=1', data_dir={data!r}),
        optim=Optim(learning_rate=1e-2),
        train=Train(batch_rows=8, epochs=1, log_every=5),
    )
"""


def test_resume_with_a_queue_is_bit_exact(tmp_path):
    config = tmp_path / 'experiment.py'
    config.write_text(EXPERIMENT.format(data=str(tmp_path / 'data')))

    def train(workdir, steps):
        words = [sys.executable, '-m', 'jaxrec.train', f'--config={config}']
        words += [f'--workdir={tmp_path / workdir}', f'--config.train.steps={steps}']
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    train('whole', 9)
    for steps in (4, 9):
        train('parts', steps)
    states = []
    for workdir in ('whole', 'parts'):
        exp = experiment({'momentum': 0.9, 'queue': 128}, heads=1, dim=8, blocks=1, loss='softmax')
        graphdef, params = split_model(exp.model, 60)
        mesh = make_mesh(exp.mesh)
        with jax.set_mesh(mesh):
            _, params = split_model(exp.model, 60)
            checkpoints = Checkpoints(tmp_path / workdir)
            assert checkpoints.last_step() == 9
            optimizer = make_optimizer(exp.optim, 1)
            state, _ = checkpoints.restore_last(abstract_state(graphdef, params, optimizer))
            checkpoints.close()
        states.append(jax.device_get(state))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert states[0]['memory']['queue.users'].any()
