"""SASRec against an independent numpy forward pass; packing, padding, meshes and pmap."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import jit, slow

from jaxrec.config import Data
from jaxrec.devices.mesh import put_batch
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, check
from jaxrec.models import sasrec
from jaxrec.nn import embeddings
from jaxrec.objectives import next_item
from jaxrec.objectives.in_batch import InBatch
from jaxrec.objectives.next_item import negative_scores
from jaxrec.tasks import next_item as next_item_task

ITEMS, L, B = 37, 10, 8
CONFIGS = {
    '2018-bce': {'loss': 'bce', 'negatives_per': 'data', 'init': 'xavier_uniform'},
    'pre_ln-softmax': {'variant': 'pre_ln', 'heads': 2, 'ffn': 4},
    'ligr-sampled': {'variant': 'ligr', 'loss': 'sampled_softmax', 'negatives': 6, 'logq': True},
    '2018-gbce-row': {'loss': 'gbce', 'negatives': 5, 'negatives_per': 'row'},
    '2018-sampled-batch': {
        'loss': 'sampled_softmax',
        'negatives': 6,
        'negatives_per': 'batch',
        'table_dropout': 0.3,
    },
}


def make(**options):
    """graphdef, and parameters at their initial values, placed."""
    config = sasrec.Config(**({'dim': 16, 'max_len': L} | options))
    build = lambda key: config.make({'item': ITEMS}, rngs=nnx.Rngs(key))  # noqa: E731
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))
    params = jit(lambda key: nnx.to_pure_dict(nnx.state(build(key), nnx.Param)))(jax.random.key(0))
    return graphdef, params


def loss_of(graphdef, params, batch, key):
    """The scalar of a step: the batch with its draws, and its loss."""
    model = nnx.merge(graphdef, params)
    return model.loss(model.sample(batch, key), {}, {}, key)[0]


def queries_of(graphdef):
    """Jitted (params, history) -> [B, 1, D]."""

    @jit
    def queries(params, history):
        model = nnx.merge(graphdef, params)
        return model.queries(history, model.catalogue({}))

    return queries


NO_DROPOUT = {'dropout': 0.0, 'embedding_dropout': 0.0, 'table_dropout': 0.0}


def encoder(graphdef, params):
    """Jitted batch -> hidden vectors."""

    @jit
    def encode(batch):
        model = nnx.merge(graphdef, params)
        return model.encode(batch, model.item_table())

    return encode


def packed_batch(name='', seed=0, rows=B):
    """Rows of two users (6 and 3 events), one place of padding; negatives if CONFIGS[name] asks."""
    rng = np.random.default_rng(seed)
    segments = np.repeat([[1] * 6 + [2] * 3 + [0]], rows, 0).astype(np.int32)
    items = rng.integers(1, ITEMS + 1, (rows, L + 1)).astype(np.int32)
    positions = np.r_[L - 6 : L, L - 3 : L, 0].astype(np.int32)
    batch = {
        'items': items[:, :-1] * (segments > 0),
        'targets': items[:, 1:] * (segments > 0),
        'segments': segments,
        'positions': np.repeat(positions[None], rows, 0),
        'weights': (segments > 0).astype(np.float32),
    }
    if CONFIGS.get(name, {}).get('negatives_per') == 'data':
        batch['negatives'] = rng.integers(1, ITEMS + 1, (rows, L, 2)).astype(np.int32)
    return batch


def forward_2018(params, items, heads, blocks):
    """The authors' computation for one left-padded sequence, written out in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    d = p['table'].shape[1]

    def norm(x, name):
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-8) * name['scale'] + name['bias']

    def dense(x, name):
        return x @ name['kernel'] + name['bias']

    table = p['table'].copy()
    table[0] = 0
    real = (items > 0)[:, None]
    x = (table[items] * np.sqrt(d) + p['positions']) * real
    for i in range(blocks):
        b = p['blocks'][i]
        q = norm(x, b['norm_query'])
        projected = [dense(y, b['attention'][n]) for y, n in ((q, 'q'), (x, 'k'), (x, 'v'))]
        out = np.zeros_like(x)
        for h in range(heads):
            part = slice(h * d // heads, (h + 1) * d // heads)
            qh, kh, vh = (y[:, part] for y in projected)
            logits = qh @ kh.T / np.sqrt(d // heads)
            logits[:, items == 0] = -(2.0**32) + 1
            logits[np.triu_indices(len(items), 1)] = -(2.0**32) + 1
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[:, part] = (weights * real) @ vh
        y = norm(q + out, b['norm_ffn'])
        x = (y + dense(np.maximum(dense(y, b['inner']), 0), b['outer'])) * real
    return norm(x, p['norm'])


@pytest.mark.parametrize('heads', [1, 2])
def test_variant_2018_is_the_authors_computation(heads):
    graphdef, params = make(heads=heads, blocks=2, init='normal')
    rng = np.random.default_rng(1)
    # away from the initial values, so that every term matters
    params = jax.tree.map(
        lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), x.dtype), params
    )
    encode, queries = encoder(graphdef, params), queries_of(graphdef)
    for length in (1, 4, L):
        items = np.zeros(L, np.int32)
        items[L - length :] = rng.integers(1, ITEMS + 1, length)
        segments = (items > 0).astype(np.int32)
        history = {
            'items': items[None],
            'segments': segments[None],
            'positions': (np.arange(L, dtype=np.int32) * segments)[None],
        }
        hidden = encode(history)[0]
        expected = forward_2018(params, items, heads, blocks=2)
        np.testing.assert_allclose(hidden[-length:], expected[-length:], atol=2e-4)
        np.testing.assert_allclose(queries(params, history)[0, 0], expected[-1], atol=2e-4)


VARIANTS = ('2018', 'pre_ln', 'ligr')


@functools.cache
def encoder_of(variant):
    """One block with two heads."""
    return encoder(*make(variant=variant, heads=2, blocks=1))


@pytest.mark.parametrize('variant', VARIANTS)
def test_packing_and_padding_do_not_change_a_users_vectors(variant):
    encode, batch = encoder_of(variant), packed_batch()
    hidden = encode(batch)
    for number, length in ((1, 6), (2, 3)):
        here = batch['segments'][0] == number  # the same places in every row
        for width in (length, L):
            items = np.zeros((B, width), np.int32)
            items[:, width - length :] = batch['items'][:, here]
            segments = (items > 0).astype(np.int32)
            positions = np.arange(L - width, L, dtype=np.int32)[None] * segments
            alone = encode({'items': items, 'segments': segments, 'positions': positions})
            np.testing.assert_allclose(alone[:, -length:], hidden[:, here], atol=1e-5)


@pytest.mark.parametrize(
    ('variant', 'blocks'), [('2018', 0), ('2018', 1), *((variant, 2) for variant in VARIANTS)]
)
def test_queries_are_the_last_places_vectors(variant, blocks):
    """Although the last block computes nothing else for them."""
    graphdef, params = make(variant=variant, heads=2, blocks=blocks)
    items = np.tril(np.random.default_rng(0).integers(1, ITEMS + 1, (B, L)).astype(np.int32), 2)
    items = items[:, ::-1]  # histories of 3 to 10 events, right-aligned
    segments = (items > 0).astype(np.int32)
    positions = np.arange(L, dtype=np.int32) * segments
    history = {'items': items, 'segments': segments, 'positions': positions}
    queries = queries_of(graphdef)(params, history)
    assert queries.shape == (B, 1, 16)
    np.testing.assert_allclose(queries, encoder(graphdef, params)(history)[:, -1:], atol=1e-5)


def segment_sums(graphdef, weights, key):
    """Jitted (params, batch) -> sum of `weights` times the segments' vectors, and gradients."""

    def total(params, batch):
        model = nnx.merge(graphdef, params)
        return (model.user_vectors(batch, len(weights), 'last', key) * weights).sum()

    return jit(jax.value_and_grad(total))


@pytest.mark.parametrize(
    ('variant', 'blocks'),
    [
        ('2018', 0),
        ('2018', 1),
        *(pytest.param(v, 2, marks=pytest.mark.slow if v != 'ligr' else ()) for v in VARIANTS),
    ],
)
def test_vectors_of_segments_are_those_after_their_newest_events(variant, blocks):
    """Although the last block computes nothing else; so are the gradients."""
    options = NO_DROPOUT if variant == '2018' else {**NO_DROPOUT, 'ffn': 2}
    graphdef, params = make(variant=variant, heads=2, blocks=blocks, **options)
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )
    batch = packed_batch()
    weights = jnp.pad(jax.random.normal(jax.random.key(0), (2 * B, 16)), ((0, 4), (0, 0)))

    def expected(params):
        model = nnx.merge(graphdef, params)
        hidden = model.encode(batch, model.item_table())
        return (hidden[:, np.array([5, 8])].reshape(2 * B, 16) * weights[: 2 * B]).sum()

    value, grads = segment_sums(graphdef, weights, jax.random.key(1))(params, batch)
    wanted = jit(jax.value_and_grad(expected))(params)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), grads, wanted[1])


@pytest.mark.slow
def test_vectors_of_segments_are_the_same_on_any_mesh(mesh):
    """Dropout and all; so are the gradients."""
    results = []
    weights = jax.random.normal(jax.random.key(0), (2 * B, 16))
    for shape in ((1, 1), (4, 2)):
        mesh(*shape)
        graphdef, params = make(variant='ligr', blocks=1, table_dropout=0.3)
        batch = put_batch(packed_batch())
        results.append(
            jax.device_get(segment_sums(graphdef, weights, jax.random.key(1))(params, batch))
        )
    (expected, wanted), (value, grads) = results
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grads, wanted)


@pytest.mark.parametrize('variant', VARIANTS)
def test_no_look_into_the_future(variant):
    encode, batch = encoder_of(variant), packed_batch()
    before = encode(batch)
    batch['items'] = batch['items'].copy()
    batch['items'][:, 4] = batch['items'][:, 4] % ITEMS + 1
    change = np.abs(encode(batch) - before).max((0, 2))
    assert (change[:4] == 0).all() and (change[6:] == 0).all()
    assert (change[4:6] > 1e-4).all()


@pytest.mark.parametrize('name', slow(CONFIGS, '2018-bce', 'ligr-sampled', '2018-gbce-row'))
def test_same_loss_and_gradients_on_any_mesh(mesh, name):
    results = []
    for shape in ((1, 1), (4, 2)):  # (8, 1) is compared with pmap
        mesh(*shape)
        blocks = name not in ('2018-gbce-row', '2018-sampled-batch')  # whose draws alone are new
        graphdef, params = make(blocks=int(blocks), **CONFIGS[name])
        batch = put_batch(packed_batch(name))

        def loss(params, batch, graphdef=graphdef):
            return loss_of(graphdef, params, batch, jax.random.key(5))

        results.append(jax.device_get(jit(jax.value_and_grad(loss))(params, batch)))
    (expected, wanted), (value, grads) = results
    assert round(float(value), 5) == round(float(expected), 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, wanted)


def test_data_parallel_step_equals_pmap(mesh):
    """The sharded step and jax.pmap of the same loss: equal losses and gradients."""
    mesh(8, 1)
    graphdef, params = make(blocks=1, **NO_DROPOUT)
    host = packed_batch()
    loss = lambda params, batch: loss_of(graphdef, params, batch, jax.random.key(0))  # noqa: E731
    value, grads = jax.device_get(jit(jax.value_and_grad(loss))(params, put_batch(host)))
    params = jax.device_get(params)
    jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))

    @functools.partial(jax.pmap, axis_name='data', in_axes=(None, 0))
    def step(params, batch):
        return jax.lax.pmean(jax.value_and_grad(loss)(params, batch), 'data')

    per_device = {k: v.reshape(8, B // 8, *v.shape[1:]) for k, v in host.items()}
    pmap_value, pmap_grads = jax.device_get(step(params, per_device))
    np.testing.assert_allclose(pmap_value[0], value, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-6), pmap_grads, grads)


@pytest.mark.parametrize(
    'name',  # the last two differ from others by their draws, whose gradients test_sparse proves
    [*list(CONFIGS)[:3], *(pytest.param(n, marks=pytest.mark.slow) for n in list(CONFIGS)[3:])],
)
def test_overfits_one_batch(name):
    graphdef, params = make(blocks=1, **(CONFIGS[name] | NO_DROPOUT))
    batch = packed_batch(name, rows=2)
    if 'negatives' in batch:
        batch['negatives'] = batch['targets'][..., None] % ITEMS + 1
    tx = optax.adam(1e-2)

    @jit
    def train(params):
        def step(carry, key):
            params, opt = carry
            value, grads = jax.value_and_grad(lambda p: loss_of(graphdef, p, batch, key))(params)
            updates, opt = tx.update(grads, opt)
            return (optax.apply_updates(params, updates), opt), value

        keys = jax.random.split(jax.random.key(0), 300)
        (params, _), values = jax.lax.scan(step, (params, tx.init(params)), keys)
        return params, values

    params, values = train(params)
    assert values[-1] < 0.2 * values[0]
    scores = encoder(graphdef, params)(batch) @ params['table'].T
    best = np.argmax(scores[..., 1 : ITEMS + 1], -1) + 1
    real = batch['weights'] > 0
    if '2018-bce' not in name:  # bce here only pushes one fixed negative down
        assert (best == batch['targets'])[real].mean() > 0.95


def test_sampled_scores_of_single_positions_in_chunks_equal_those_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(2, 4, 3)), rng.normal(size=(9, 3))
    ids = rng.integers(1, 9, (2, 4, 5))
    expected = np.einsum('bld,blkd->blk', hidden, table[ids])
    f = lambda h, t: negative_scores(h, t, jnp.asarray(ids))  # noqa: E731
    both = []
    for limit in (1, 1 << 24):
        chosen = dataclasses.replace(next_item.tuning(), looked_up=limit)
        monkeypatch.setattr(next_item, 'tuning', lambda chosen=chosen: chosen)
        np.testing.assert_allclose(f(jnp.asarray(hidden), jnp.asarray(table)), expected, atol=1e-5)
        both.append(
            jax.grad(lambda h, t: (f(h, t) ** 2).sum(), argnums=(0, 1))(
                jnp.asarray(hidden), jnp.asarray(table)
            )
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *both)


def test_bf16_stays_close():
    losses = {}
    for bf16 in (False, True):
        graphdef, params = make(bf16=bf16, blocks=1, **NO_DROPOUT)
        assert params['table'].dtype == jnp.float32
        step = jit(functools.partial(loss_of, graphdef))
        value = step(params, packed_batch(), jax.random.key(0))
        assert value.dtype == jnp.float32
        losses[bf16] = float(value)
    assert losses[True] != losses[False]
    assert abs(losses[True] / losses[False] - 1) < 0.02


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'variant': '2019'}, "model.variant='2019' is not one of 2018, pre_ln, ligr"),
        ({'loss': 'hinge'}, 'model.loss'),
        ({'heads': 3}, 'not a multiple of model.heads=3'),
        ({'dropout': 1.0}, 'model.dropout=1.0 is not in'),
        ({'dim': 0}, 'model.dim=0 must be at least 1'),
        ({'in_batch': InBatch(rate=0.0)}, r'model.in_batch.rate=0.0 is not in \(0, 1\)'),
    ],
)
def test_bad_settings(options, message):
    experiment = Experiment(model=sasrec.Config(), data=Data(dataset='synthetic'))
    check(experiment)
    experiment.model = dataclasses.replace(experiment.model, **options)
    with pytest.raises(UserError, match=message):
        check(experiment)


def test_missing_and_unused_negatives():
    """Those of the data go with a loss that takes them, and the other way round."""
    drawn = {'loss': 'bce', 'negatives_per': 'data'}
    for options, unseen in (
        (drawn, 0),
        ({}, 2),
        ({'loss': 'bce', 'negatives_per': 'row'}, 2),
        ({'negatives_per': 'data'}, 2),  # softmax
    ):
        task = next_item_task.Config(unseen_negatives=unseen)
        model, data = sasrec.Config(**options), Data(dataset='synthetic')
        with pytest.raises(UserError, match='task.unseen_negatives goes with a sampled loss'):
            check(Experiment(model=model, task=task, data=data))
    for options, unseen in ((drawn, 2), ({'loss': 'bce', 'negatives_per': 'row'}, 0)):
        task = next_item_task.Config(unseen_negatives=unseen)
        model = sasrec.Config(**options)
        assert model.inputs().negatives == bool(unseen)
        check(Experiment(model=model, task=task, data=Data(dataset='synthetic')))


def test_what_the_model_samples_is_what_its_loss_reads():
    """Shapes of the draws, by the key alone; the batch's own negatives; none for softmax."""
    batch, key = packed_batch('2018-bce'), jax.random.key(0)
    for options, shape in (
        ({'negatives_per': 'batch'}, (1, 1, 7)),
        ({'negatives_per': 'row'}, (B, 1, 7)),
        ({'negatives_per': 'position'}, (B, L, 7)),
        ({'negatives_per': 'data'}, (B, L, 2)),
    ):
        graphdef, params = make(loss='gbce', negatives=7, blocks=0, **options)
        sample = jit(lambda b, key, g=graphdef, p=params: nnx.merge(g, p).sample(b, key)['sampled'])
        drawn = np.asarray(sample(batch, key))
        assert drawn.shape == shape
        assert 1 <= drawn.min() and drawn.max() <= ITEMS
        again, other = sample(batch, key), sample(batch, jax.random.key(1))
        np.testing.assert_array_equal(drawn, again)
        if options['negatives_per'] == 'data':
            np.testing.assert_array_equal(drawn, batch['negatives'])
        else:
            assert (drawn != other).any()
        loss = jit(lambda b, g=graphdef, p=params: nnx.merge(g, p).loss(b, {}, {}, key)[0])
        others = {**batch, 'sampled': drawn % ITEMS + 1}
        assert loss({**batch, 'sampled': drawn}) != loss(others)
    graphdef, params = make(blocks=0)
    assert nnx.merge(graphdef, params).sample(batch, key) is batch


@pytest.mark.parametrize('init', ['xavier_normal', 'xavier_uniform'])
def test_a_large_table_is_drawn_in_parts(mesh, monkeypatch, init):
    """The same numbers on every mesh, no row twice, the scale of the initialiser; each row is drawn
    from its number alone, in parts that do not divide the rows of a device."""
    monkeypatch.setattr(embeddings, '_ROWS_AT_ONCE', 100)
    key = jax.random.key(3)
    mesh(2, 4)
    small, large = (
        jax.jit(embeddings.item_table, static_argnums=(0, 1, 2))('normal', 4, n, key)
        for n in (120, 500)
    )
    np.testing.assert_array_equal(np.asarray(large)[: len(small)], small)
    by_row = [jax.random.normal(jax.random.fold_in(key, n), (4,)) * 0.02 for n in range(len(small))]
    np.testing.assert_allclose(small, by_row, rtol=1e-6)
    tables = []
    for shape in ((1, 1), (2, 4)):
        mesh(*shape)
        model = sasrec.Config(dim=16, init=init)
        build = lambda key, model=model: model.make({'item': 300}, rngs=nnx.Rngs(key)).item_table()  # noqa: E731
        tables.append(np.asarray(jax.jit(build)(jax.random.key(0))))
    table = tables[0]
    assert table.shape == (320, 16)
    np.testing.assert_array_equal(tables[1], table)
    assert len(np.unique(table, axis=0)) == 320
    np.testing.assert_allclose(table.std(), (2 / (301 + 16)) ** 0.5, rtol=0.05)
