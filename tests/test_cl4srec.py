"""SASRec with contrastive terms against a reference made of single histories; meshes, resume."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import jit

from jaxrec import rng
from jaxrec.config import Data, Optim, Train
from jaxrec.data.histories import Histories
from jaxrec.devices.mesh import TABLE, put_batch
from jaxrec.devices.top_k import counts_and_top_k
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, check
from jaxrec.models import sasrec
from jaxrec.objectives import contrast, next_item
from jaxrec.objectives.contrast import Contrast
from jaxrec.objectives.views import views
from jaxrec.tasks.next_item import NextItem
from jaxrec.training import sparse
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.state import Program

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
NONE = {'crop': 0.0, 'mask': 0.0, 'reorder': 0.0}  # operations take long to compile
HEAD = {**VARIANTS['cosine, mean, head'], **NONE, 'mask': 0.3}
CUTOFF = {**VARIANTS['cutoff'], **NONE, 'crop': 0.6}
INSERT = {**NONE, 'insert': 0.5}
QUIET = {'dropout': 0.0, 'embedding_dropout': 0.0}


def experiment(*terms, **options):
    """Terms by their settings; without blocks, see `encoder` for what blocks are to a term."""
    plain = {'dim': D, 'max_len': L, 'heads': 2, 'blocks': 0, 'loss': 'bce', 'negatives': 3}
    return Experiment(
        model=sasrec.Config(
            **(plain | options), contrast=tuple(Contrast(**settings) for settings in terms)
        ),
        data=Data(dataset='synthetic'),
        optim=Optim(learning_rate=1e-2, eps=0.1),  # which does not blow up gradients that are 0
        train=Train(batch_rows=8),
    )


def histories(catalogue=ITEMS):
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 14, 90)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = generator.integers(1, catalogue + 1, offsets[-1]).astype(np.int32)
    return Histories(items, offsets, np.arange(90), np.arange(1, catalogue + 1))


def problem_of(exp, catalogue=ITEMS):
    return NextItem(exp, histories(catalogue), {'data_hash': '', 'path': ''})


def batches_of(exp):
    return problem_of(exp).batches()


def start(exp, catalogue=ITEMS):
    """graphdef, parameters."""
    build = lambda key: exp.model.make({'item': catalogue}, rngs=nnx.Rngs(key))  # noqa: E731
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))
    params = jit(lambda key: nnx.to_pure_dict(nnx.state(build(key), nnx.Param)))
    return graphdef, params(jax.random.key(0))


def loss_of(graphdef, params, batch, carry, key):
    model = nnx.merge(graphdef, params)
    return model.loss(model.sample(batch, key), {}, carry, key)


@functools.cache
def encoder():
    """Jitted (params, rows) -> hidden vectors of one block with two heads."""
    graphdef, _ = start(experiment(blocks=1, **QUIET))

    @jit
    def encode(params, rows):
        model = nnx.merge(graphdef, params)
        return model.encode(rows, model.item_table())

    return encode


def slow_vectors(params, settings, rows):
    """User vectors [n, D] of segments that each have a row of their own, right-aligned."""
    rows = {name: np.asarray(value) for name, value in rows.items() if name != 'features'}
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
    plain = {name: value for name, value in params.items() if name != 'heads'}
    hidden = np.asarray(encoder()({**plain, 'heads': {}}, own), np.float64)
    found = []
    for x, length in zip(hidden, lengths, strict=False):
        x = x[L - length :].mean(0) if settings.pool == 'mean' else x[-1]
        if settings.head:
            inner, outer = (np.asarray(params['heads']['0'][i], np.float64) for i in range(2))
            x = np.maximum(x @ inner, 0) @ outer
        found.append(x)
    return np.stack(found)


def slow_hidden(params, rows):
    """[B, L, D] after every event of a model without blocks: LayerNorm of sqrt(D) e + p."""
    x = params['table'][rows['items']] * D**0.5 + params['positions'][rows['positions']]
    x = np.where(rows['cutoff'], 0, x) if 'cutoff' in rows else x
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8)
    return x * params['norm']['scale'] + params['norm']['bias']


def places(rows):
    """[(row, columns)] of the segments, in their order."""
    return [
        (row, np.flatnonzero(segments == number))
        for row, segments in enumerate(np.asarray(rows['segments']))
        for number in range(1, segments.max() + 1)
    ]


def slow_newest(params, rows):
    """`slow_hidden` after the newest event of every segment, [n, D]."""
    hidden = slow_hidden(params, rows)
    return np.stack([hidden[row, at[-1]] for row, at in places(rows)])


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def slow_term(settings, first, second, batch, queue=None):
    """InfoNCE pair by pair."""

    def unit(x):
        return (
            x / np.linalg.norm(x, axis=-1, keepdims=True) if settings.similarity == 'cosine' else x
        )

    users, targets = np.asarray(batch['users']), np.asarray(batch['user_targets'])
    n, first, second = len(first), unit(first), unit(second)
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
    exp = experiment(VARIANTS[name], blocks=1, **QUIET)
    settings = exp.model.contrast[0]
    batches = batches_of(exp)
    graphdef, params = start(exp)
    carry = nnx.merge(graphdef, params).carry()

    @jit
    def step(params, batch, carry, key):
        """What a step computes, its views, and the main loss."""
        model = nnx.merge(graphdef, params)
        batch = model.sample(batch, key)
        keys = rng.keys(jax.random.fold_in(key, 1), 'views', 'first', 'second')
        rows = views(settings, batch, keys['views'], D)
        hidden = model.encode(batch, model.item_table())
        main, _ = next_item.loss(model.config, hidden, model.item_table(), batch, ITEMS)
        return model.loss(batch, {}, carry, key), main, rows

    for number in range(2):  # the second with a queue that holds something
        batch, before = batches(number), carry
        key = jax.random.fold_in(jax.random.key(0), number)
        (value, (terms, carry)), main, rows = step(params, batch, before, key)
        n = int((batch['users'] > 0).sum())
        first, second = (slow_vectors(params, settings, view) for view in rows)
        queue = None
        assert len(first) == len(second) == n
        if settings.momentum:
            assert carry.keys() == {'0'} and carry['0'].keys() == {'momentum', 'queue'}
            momentum = jax.tree.map(
                lambda a, b: settings.momentum * a + (1 - settings.momentum) * b,
                before['0']['momentum'],
                params,
            )
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                momentum,
                carry['0']['momentum'],
            )
            second = slow_vectors(momentum, settings, rows[1])
            newest = np.asarray(carry['0']['queue']['vectors']).reshape(-1, D)
            newest = newest[-len(batch['users']) :]
            np.testing.assert_allclose(newest[:n], second, atol=1e-4)
            flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), before)
            entries = (flat['0']['queue'][name] for name in ('vectors', 'users', 'targets'))
            queue = list(zip(*entries, strict=True))
        expected = slow_term(settings, first, second, batch, queue)
        np.testing.assert_allclose(terms['contrast'], expected, rtol=2e-4, atol=2e-5)
        if number or not settings.momentum:
            assert expected > 0.05
        np.testing.assert_allclose(value, main + settings.weight * terms['contrast'], rtol=1e-5)
        np.testing.assert_allclose(terms['bce'], main, rtol=1e-5)
        # as after a step
        params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(7 * x + 1), params)


@pytest.mark.parametrize('name', ['simclr', 'moco'])
def test_what_a_term_learns_through(name):
    """Finite differences of loops: both views of SimCLR; of MoCo no keys, and no queue."""
    terms = {'first': 'cutoff', 'second': 'dropout', 'cutoff': 0.3, 'weight': 1.0, 'head': True}
    terms |= {'similarity': 'cosine', 'temperature': 0.5}
    moco = {'momentum': 0.5, 'queue': 64} if name == 'moco' else {}
    exp = experiment({**terms, **moco}, **QUIET)
    settings, key, draw = exp.model.contrast[0], jax.random.key(3), np.random.default_rng(0)
    batch, (graphdef, params) = batches_of(exp)(0), start(exp)
    carry, queue, average = {}, None, None
    if moco:
        carry = nnx.merge(graphdef, params).carry()
        average = jax.tree.map(lambda x: x + 0.1 * jnp.sin(9 * x + 1), params)
        queue = draw.normal(size=(64, D)), draw.integers(0, 90, 64), draw.integers(1, ITEMS, 64)
        carry = {'0': {'momentum': average, 'queue': dict(carry['0']['queue'])}}
        for of, of_queue in zip(('vectors', 'users', 'targets'), queue, strict=True):
            like = carry['0']['queue'][of]
            carry['0']['queue'][of] = jnp.asarray(of_queue, like.dtype).reshape(like.shape)
        queue = list(zip(*queue, strict=True))
        average = jax.tree.map(lambda a, b: (a + b) / 2, wide(average), wide(params))

    @jit
    def found(params):
        keys = rng.keys(jax.random.fold_in(key, 1), 'views', 'first', 'second')

        def loss(params):
            return contrast.terms(nnx.merge(graphdef, params), batch, carry, key)[0]

        return jax.value_and_grad(loss)(params), views(settings, batch, keys['views'], D)

    (value, grads), rows = found(params)
    rows = jax.device_get(rows)

    def slow(params):
        pair = []
        for own, view in zip((params, average or params), rows, strict=True):
            inner, outer = own['heads']['0'].values()
            pair.append(np.maximum(slow_newest(own, view) @ inner, 0) @ outer)
        return slow_term(settings, *pair, batch, queue)

    params = wide(params)
    np.testing.assert_allclose(value, slow(params), rtol=1e-4)
    for _ in range(4):
        way = jax.tree.map(lambda x: draw.normal(size=x.shape), params)
        ends = (jax.tree.map(lambda x, w, s=s: x + s * w, params, way) for s in (1e-5, -1e-5))
        expected = np.subtract(*map(slow, ends)) / 2e-5
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, w: (g * w).sum(), wide(grads), way)))
        np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-4)


def test_weight_zero_is_sasrec_bit_by_bit():
    results = []
    for exp in (experiment({'weight': 0.0, 'momentum': 0.9, 'queue': 64}), experiment()):
        problem = problem_of(exp)
        batches, program = problem.batches(), Program(exp, problem, 10)
        program.start(0)
        state = program.init()
        assert 'carry' not in state
        for number in range(3):
            state, metrics = program.step(state, jax.tree.map(jnp.asarray, batches(number)))
        results.append(jax.device_get((state, metrics, batches(3))))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_terms_add_up():
    """Each has its draws and its place in names and carry; one of weight 0 is not there."""
    settings = (VARIANTS['simcse'], {'weight': 0.0}, CUTOFF, VARIANTS['moco, duorec'])
    exp = experiment(*settings)
    batch, key = batches_of(exp)(0), jax.random.key(4)
    graphdef, params = start(exp)
    carry = nnx.merge(graphdef, params).carry()
    assert carry.keys() == {'3'}
    value, (terms, new) = jit(functools.partial(loss_of, graphdef))(params, batch, carry, key)
    assert new.keys() == {'3'} and new['3']['queue']['users'].any()
    for name in ('contrast', 'alignment', 'uniformity'):
        assert [n for n in '0123' if f'{name}.{n}' in terms] == ['0', '2', '3']
        assert name not in terms
    total = terms['bce'] + 0.1 * sum(terms[f'contrast.{n}'] for n in '023')
    np.testing.assert_allclose(value, total, rtol=1e-6)
    alone = experiment(VARIANTS['simcse'])  # in the same place: the same draws
    graphdef, params = start(alone)
    _, (single, _) = jit(functools.partial(loss_of, graphdef))(params, batch, {}, key)
    np.testing.assert_allclose(single['contrast'], terms['contrast.0'], rtol=1e-5)


@pytest.mark.parametrize(
    'terms',
    [
        pytest.param((HEAD, CUTOFF), id='augmented'),
        pytest.param(
            (VARIANTS['duorec'], VARIANTS['moco, duorec'], INSERT),
            id='of others',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_same_steps_on_any_mesh(mesh, terms):
    """Losses, gradients and carry of two steps, with dropout; several terms in one model.

    That operations are the same on any mesh is in test_augment, and blocks are in test_sasrec.
    """
    exp, results = experiment(*terms, table_dropout=0.1), []
    for shape in ((1, 1), (4, 2)):
        mesh(*shape)
        batches = batches_of(exp)
        program = Program(exp, problem_of(exp), 10)
        state, found = program.init(), []
        carry, params = state.get('carry', {}), state['params']

        @jit
        def step(params, batch, carry, key, graphdef=program.graphdef):
            loss = lambda p: loss_of(graphdef, p, batch, carry, key)  # noqa: E731
            return jax.value_and_grad(loss, has_aux=True)(params)

        for number in range(2):
            key = jax.random.key(number)
            (value, (logged, carry)), grads = step(params, put_batch(batches(number)), carry, key)
            found.append(jax.device_get((value, logged, carry, grads)))
        assert bool(carry) == (VARIANTS['moco, duorec'] in terms)
        for own in carry.values():
            assert own['momentum']['table'].sharding.spec == TABLE
            assert own['queue']['vectors'].sharding.spec == jax.P(None, 'data', None)
        results.append(found)
    for one, other in zip(*results, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-5), one, other
        )


def test_a_queue_on_a_mesh_that_does_not_divide_it(mesh):
    """Each of three devices holds all of it; users are padded otherwise, and nothing changes."""
    results, exp = [], experiment(VARIANTS['moco, duorec'])
    exp.train.batch_rows = 12
    for devices in (1, 3):
        mesh(devices, 1)
        problem = problem_of(exp)
        program, batches = Program(exp, problem, 10), problem.batches()
        state, step, values = program.init(), jit(functools.partial(loss_of, program.graphdef)), []
        carry = state['carry']
        for number in range(2):
            batch, key = program.put([batches(number)]), jax.random.key(number)
            _, (terms, carry) = step(state['params'], batch, carry, key)
            values.append(float(terms['contrast']))
        results.append((values, jax.device_get(carry['0']['queue'])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)
    assert results[0][0][1] > 0.05 and results[0][1]['users'].any()


@pytest.mark.slow
def test_views_in_one_pass_or_in_two(mesh, monkeypatch):
    """The same with dropout, where both views are of one shape."""
    mesh(4, 2)
    cutoff = {'first': 'cutoff', 'second': 'cutoff', 'cutoff': 0.3, 'pool': 'mean', 'head': True}
    exp = experiment(cutoff, blocks=1)
    program = Program(exp, problem_of(exp), 10)
    batch, params = put_batch(batches_of(exp)(0)), program.init()['params']
    results, both = [], contrast.both
    for stacked in (False, True):

        def chosen(function, rows, keys, *, stack, stacked=stacked):
            del stack
            shapes = [jax.tree.map(jnp.shape, view) for view in rows]
            assert shapes[0] == shapes[1]
            return both(function, rows, keys, stack=stacked)

        monkeypatch.setattr(contrast, 'both', chosen)
        loss = lambda p: loss_of(program.graphdef, p, batch, {}, jax.random.key(1))  # noqa: E731
        results.append(jax.device_get(jit(jax.value_and_grad(loss, has_aux=True))(params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *results)


@pytest.mark.parametrize('loss', ['softmax', 'in_batch', 'gbce', 'sampled_softmax'])
def test_any_main_loss(loss):
    exp = experiment({'first': 'dropout', 'second': 'augment', 'crop': 0, 'reorder': 0}, loss=loss)
    if loss == 'in_batch':
        changes = {'task.windows': 'cuts', 'task.cuts': 2, 'model.in_batch.logq': 'streaming'}
        changes |= {'model.contrast.0.momentum': 0.9, 'model.contrast.0.queue': 64}
        exp = applied(exp, changes)
    check(exp)
    batches = batches_of(exp)
    graphdef, params = start(exp)
    carry = nnx.merge(graphdef, params).carry()
    step = jit(jax.value_and_grad(functools.partial(loss_of, graphdef), has_aux=True))
    for number in range(2):
        found = step(params, batches(number), carry, jax.random.key(number))
        (value, (terms, carry)), grads = found
        np.testing.assert_allclose(value, terms[loss] + 0.1 * terms['contrast'], rtol=1e-5)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    if loss == 'in_batch':
        assert carry.keys() == {'frequency', '0'} and carry['0'].keys() == {'momentum', 'queue'}
        assert carry['frequency']['step'] == 2
    else:
        assert not carry


def test_touched_rows_only():
    """Rows that only views name take part too, after the same dropout of the table's entries."""
    settings = {**NONE, 'insert': 0.3, 'second': 'same_target'}
    exp = applied(experiment(settings, table_dropout=0.2), {'optim.table': 'sparse_adam'})
    check(exp)
    catalogue, key = 300, jax.random.key(0)  # of which a batch names a part
    batch = problem_of(exp, catalogue).batches()(0)
    graphdef, params = start(exp, catalogue)
    named = {*batch['items'].ravel(), *batch['targets'].ravel()}
    for others in (batch['similar'], batch['positive']['items']):
        assert {*others.ravel()} - named

    @jit
    def gradients(params, batch):
        batch = nnx.merge(graphdef, params).sample(batch, key)
        loss = lambda p: nnx.merge(graphdef, p).loss(batch, {}, {}, key)  # noqa: E731
        dense = jax.value_and_grad(loss, has_aux=True)(params)
        (value, _), (tables, rest) = sparse.value_and_grad(loss, params, batch, exp.model.tables())
        rows, table = tables['table'], jnp.zeros_like(params['table'])
        return dense, value, {**rest, 'table': sparse.scatter(table, rows.ids, rows.values)}

    ((expected, _), dense), value, grads = gradients(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, dense)


def test_overfits_one_batch():
    terms = {'weight': 1.0, 'temperature': 0.2, 'similarity': 'cosine', 'reorder': 0.0}
    exp = experiment(terms, loss='softmax')
    exp.train.batch_rows = 2
    batch = batches_of(exp)(0)
    graphdef, params = start(exp)
    tx = optax.adam(1e-2)

    @jit
    def train(params):
        def step(state, key):
            params, opt = state
            loss = lambda p: loss_of(graphdef, p, batch, {}, key)  # noqa: E731
            (_, (terms, _)), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, opt = tx.update(grads, opt)
            return (optax.apply_updates(params, updates), opt), terms

        keys = jax.random.split(jax.random.key(0), 250)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[1]

    seen = train(params)
    for term in ('softmax', 'contrast'):
        values = np.asarray(seen[term])
        assert np.mean(values[-20:]) < 0.3 * np.mean(values[:3]), term


def test_the_mask_is_never_recommended(mesh):
    mesh(1, 1)
    table = np.ones((64, 4), np.float32)
    table[0] = 100
    place = jax.NamedSharding(jax.sharding.get_mesh(), TABLE)
    users = {
        'queries': np.ones((2, 1, 4), np.float32),
        'targets': np.array([[1], [2]], np.int32),
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
    exp = applied(experiment({}), {'train.microbatches': 2})
    with pytest.raises(UserError, match='model.contrast with a weight above 0 does not go with'):
        check(exp)
    check(applied(exp, {'model.contrast.0.weight': 0.0}))
    check(dataclasses.replace(exp, model=dataclasses.replace(exp.model, contrast=())))


def test_resume_with_a_queue_is_bit_exact(tmp_path, mesh):
    """The state of step 2, saved and restored into a new program's shapes, then step 3."""
    mesh(4, 2)
    exp = experiment({**VARIANTS['simcse'], 'momentum': 0.9, 'queue': 128, 'head': True})
    problem = problem_of(exp)
    batches = problem.batches()
    program = Program(exp, problem, 10)
    program.start(0)
    state = program.init()
    for number in range(3):
        if number == 2:
            saving = Checkpoints(tmp_path)
            saving.save_last(2, state, {})
            saving.close()
        state, _ = program.step(state, program.put([batches(number)]))
    assert state['carry']['0']['queue']['users'].any()
    restoring = Checkpoints(tmp_path)
    again, _ = restoring.restore_last(Program(exp, problem, 10).abstract())
    restoring.close()
    assert again['carry']['0']['queue']['users'].any()
    again, _ = program.step(again, program.put([batches(2)]))
    jax.tree.map(np.testing.assert_array_equal, again, state)
