"""What crosses devices: never the item table, never users x items, in the compiled programs.

Bounds are on every array that a collective of the compiled training step or ranking yields on one
device. The one that grows with the catalogue is the sum over 'data' of a dense table's gradient: a
shard of it, [rows / model, D], which is data parallelism itself.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec import config
from jaxrec.devices import hlo
from jaxrec.evaluation import ranking
from jaxrec.models import sasrec
from jaxrec.serving import recommender
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import abstract_state, split_model, train_step

ITEMS, DIM, B, L = 60_000, 8, 16, 6
SIZES = {'item': ITEMS}
MESHES = ((8, 1), (4, 2), (2, 4))
SAMPLED = {'loss': 'sampled_softmax', 'negatives': 5}
IN_BATCH = sasrec.InBatch(logq='streaming', uniform=7)
STEPS = {  # model, optim.table
    'softmax': ({'loss': 'softmax', 'label_smoothing': 0.1, 'blocks': 1}, 'dense'),
    'per batch': ({**SAMPLED, 'negatives_per': 'batch'}, 'dense'),
    'per position': (SAMPLED, 'dense'),
    'in batch': ({'loss': 'in_batch', 'in_batch': IN_BATCH}, 'dense'),
    'per batch, rowwise_adagrad': ({**SAMPLED, 'negatives_per': 'batch'}, 'rowwise_adagrad'),
    'per position, sparse_adam': (SAMPLED, 'sparse_adam'),
    'in batch, rowwise_adagrad': ({'loss': 'in_batch', 'in_batch': IN_BATCH}, 'rowwise_adagrad'),
}
DENSE = ('per batch', 'per position', 'in batch')


def model_of(**options):
    plain = {'dim': DIM, 'max_len': L, 'blocks': 0, 'dropout': 0.0, 'embedding_dropout': 0.0}
    return sasrec.Config(**(plain | options))


def placed(**arrays):
    mesh = jax.sharding.get_mesh()
    rows = jax.NamedSharding(mesh, jax.P('data'))
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in arrays.items()
    }


def training_batch(loss):
    ids, width = ((B, L), np.int32), 2 if loss == 'in_batch' else L
    batch = dict.fromkeys(('items', 'segments', 'positions'), ids)
    batch |= {'targets': ((B, width), np.int32), 'weights': ((B, width), np.float32)}
    return placed(**batch)


def arrays(compiled):
    """(kind, shape) of everything that the program moves between devices."""
    found = hlo.collectives(compiled.as_text())
    return [(one.kind, shape) for one in found for _, shape in one.arrays]


def too_large(moved, limit):
    """Those with an axis, or altogether, as long as `limit` rows of the table."""
    return [(k, s) for k, s in moved if max(s, default=0) >= limit or math.prod(s) >= limit * DIM]


def cases(names, always=()):
    """Every name on every mesh; by default all on (2, 4), and those of `always` on the others.

    Sampled losses by default with the sparse updates, which move the least.
    """
    for name in names:
        for shape in MESHES:
            slow = (shape != (2, 4) and name not in always) or name in DENSE
            yield pytest.param(name, shape, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(('name', 'shape'), cases(STEPS, always=('softmax',)))
def test_a_training_step_moves_no_table(mesh, name, shape):
    mesh(*shape)
    options, table = STEPS[name]
    optimizer = make_optimizer(config.Optim(table=table, clip_norm=1.0), model_of(**options), 10)
    graphdef, params = split_model(model_of(**options), SIZES)
    state = abstract_state(graphdef, params, optimizer)
    step = train_step(graphdef, optimizer, 0)
    compiled = step.lower(state, training_batch(options['loss'])).compile()
    shard = len_of(params) // shape[1]
    large = too_large(arrays(compiled), shard)
    if table == 'dense':  # the sum of a shard's gradient over 'data'
        assert large and all(kind == 'all-reduce' for kind, _ in large)
        assert all(sorted(s) == [DIM, shard] for _, s in large)
    else:
        assert not large
    trained = {name: state[name] for name in ('params', 'opt_state')}
    by_row = [x for x in jax.tree.leaves(trained) if len_of(params) in x.shape]
    slots = {'dense': 2, 'sparse_adam': 3, 'rowwise_adagrad': 1}[table]
    assert len(by_row) == 1 + slots and all(x.sharding.spec[0] == 'model' for x in by_row)
    stored = sum(shard_bytes(x) for x in jax.tree.leaves((state, training_batch(options['loss']))))
    assert compiled.memory_analysis().argument_size_in_bytes == stored  # the program agrees


def len_of(params):
    return params['table'].shape[0]


def shard_bytes(x):
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


@pytest.mark.parametrize(('what', 'shape'), cases(('ranking', 'candidates', 'lists')))
def test_evaluation_and_lists_move_no_table_and_no_scores(mesh, what, shape):
    mesh(*shape)
    graphdef, params = split_model(model_of(blocks=1), SIZES)
    ids = ((B, L), np.int32)
    batch = placed(
        **dict.fromkeys(('items', 'segments', 'positions', 'seen'), ids),
        targets=((B, 1), np.int32),
        **({'candidates': ((B, 20), np.int32)} if what == 'candidates' else {}),
    )

    def call(params, catalogue, batch):
        if what == 'lists':
            return recommender._top_k(graphdef, ITEMS, False, params, catalogue, batch, k=10)
        depth = 0 if what == 'candidates' else 10
        queries = nnx.merge(graphdef, params).queries(batch, catalogue)
        options = {'num_items': ITEMS, 'filter_seen': True, 'depth': depth}
        return ranking.score(queries, catalogue['items'], batch, **options)

    catalogue = {'items': params['table']}
    moved = arrays(jax.jit(call).lower(params, catalogue, batch).compile())
    assert not too_large(moved, len_of(params) // shape[1])
    # what does move: counts, lists and, of given items, vectors
    assert max(math.prod(s) for _, s in moved) <= B * max(10 * shape[1], 21 * DIM, L * DIM)


def test_a_gathered_table_would_be_found(mesh):
    mesh(4, 2)
    _, params = split_model(model_of(), SIZES)

    def gathers(params, x):
        table = jax.reshard(params['table'], jax.P())
        return jnp.einsum('bd,vd->bv', x, table, out_sharding=jax.P('data', None)).sum(1)

    x = placed(x=((B, DIM), np.float32))['x']
    moved = arrays(jax.jit(gathers).lower(params, x).compile())
    assert ('all-gather', (len_of(params), DIM)) in too_large(moved, len_of(params) // 2)


def test_loops_count_as_often_as_they_run_and_products_by_hand(mesh):
    mesh(4, 2)

    def summed(x, w):  # 5 turns, each with a product [2, 8] x [8, 8] and a sum over 'model'
        def turn(x, _):
            return jax.lax.psum(x @ w, 'model'), None

        return jax.lax.scan(turn, x, None, length=5)[0]

    split = jax.P('data', 'model'), jax.P('model', None)
    call = jax.shard_map(summed, in_specs=split, out_specs=split[0], check_vma=False)
    arguments = jnp.zeros((8, 16)), jnp.zeros((16, 8))
    mesh_ = jax.sharding.get_mesh()
    arguments = [
        jax.device_put(x, jax.NamedSharding(mesh_, s))
        for x, s in zip(arguments, split, strict=True)
    ]
    text = jax.jit(call).lower(*arguments).compile().as_text()
    (one,) = hlo.collectives(text)
    assert (one.kind, one.times, one.bytes) == ('all-reduce', 5, 5 * 2 * 8 * 4)
    assert hlo.matmul_flops(text) == 5 * 2 * 2 * 8 * 8


def test_no_new_kind_of_collective_is_overlooked(mesh):
    """Every line that names a channel is one of the kinds that `hlo` knows."""
    mesh(2, 4)
    options, table = STEPS['softmax']
    optimizer = make_optimizer(config.Optim(table=table), model_of(**options), 10)
    graphdef, params = split_model(model_of(**options), SIZES)
    state = abstract_state(graphdef, params, optimizer)
    step = train_step(graphdef, optimizer, 0)
    text = step.lower(state, training_batch('softmax')).compile().as_text()
    assert len(hlo.collectives(text)) == len(re.findall(r'channel_id=\d+', text))
