"""Several runs in one program: each of them is what it would be alone."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.config import Data, Experiment, Optim, Train
from jaxrec.data.splits import leave_one_out
from jaxrec.datasets import load
from jaxrec.devices.mesh import put_batch
from jaxrec.errors import UserError
from jaxrec.models import cl4srec, kuaiformer, sasrec
from jaxrec.objectives.contrast import Contrast
from jaxrec.objectives.in_batch import InBatch
from jaxrec.tasks.next_item import train_batches
from jaxrec.training.optim import make_optimizer
from jaxrec.training.parallel_runs import Runs
from jaxrec.training.state import init_state, split_model, train_step

HORIZON = 100
SMALL = {'dim': 8, 'blocks': 1, 'max_len': 8}


@pytest.fixture(scope='module')
def histories(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    data = Data(dataset='synthetic:users=120,items=40,length=6', data_dir=str(folder))
    return load(data, say=lambda *_: None)[0]


def experiment(model=None, *, data=None, seed=0, microbatches=1, **optim):
    return Experiment(
        model=model or sasrec.Config(**SMALL),
        data=data or Data(),
        optim=Optim(**{'learning_rate': 1e-2, **optim}),
        train=Train(batch_rows=8, microbatches=microbatches, seed=seed),
    )


def batches_of(run, histories):
    return train_batches(run, histories, leave_one_out(histories))


def alone(run, histories, steps):
    """(params, losses) of one run as `train` makes it."""
    batches = batches_of(run, histories)
    optimizer = make_optimizer(run.optim, HORIZON)
    graphdef, _ = split_model(run.model, histories.num_items)
    state = init_state(run.model, histories.num_items, optimizer, run.train.seed)
    step = train_step(graphdef, optimizer, run.train.seed, run.train.microbatches)
    losses = []
    for number in range(steps):
        state, metrics = step(state, put_batch(batches(number)))
        losses.append(float(metrics['loss']))
    return jax.device_get(state.get('ema', state['params'])), losses


def together(runs, histories, steps):
    """The same of several runs in one program."""
    batches = [batches_of(run, histories) for run in runs]
    program = Runs(runs, histories.num_items, HORIZON)
    state, losses = program.init(), []
    for number in range(steps):
        state, metrics = program.step(state, program.put([b(number) for b in batches]))
        losses.append(jax.device_get(metrics['loss']))
    stacked = jax.device_get(state.get('ema', state['params']))
    each = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(runs))]
    return each, np.array(losses).T


def same_as_alone(runs, histories, mesh, steps, tolerance=2e-4):
    params, losses = together(runs, histories, steps)
    mesh(1, 1)
    for run, found, curve in zip(runs, params, losses, strict=True):
        expected, expected_curve = alone(run, histories, steps)
        np.testing.assert_allclose(curve, expected_curve, rtol=tolerance, atol=tolerance)
        named = jax.tree_util.tree_flatten_with_path(found)[0]
        for (path, value), wanted in zip(named, jax.tree.leaves(expected), strict=True):
            name = jax.tree_util.keystr(path)
            # softmax does not see the keys' bias: its gradient is rounding, blown up by Adam
            if not name.endswith("['k']['bias']"):
                np.testing.assert_allclose(
                    value, wanted, rtol=tolerance, atol=tolerance, err_msg=name
                )
    assert not np.allclose(losses[0], losses[1], rtol=1e-2)  # they are different runs


def test_seeds_equal_single_runs_after_100_steps(histories, mesh):
    """With dropout, weight decay, warm-up, clipping and averaged parameters; on two devices."""
    optim = {'weight_decay': 1e-3, 'warmup_steps': 5, 'clip_norm': 1.0, 'ema': 0.9}
    runs = [experiment(seed=seed, schedule='cosine', **optim) for seed in (0, 7)]
    assert Runs(runs, histories.num_items, HORIZON).devices == 2
    same_as_alone(runs, histories, mesh, steps=100)


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['bce', 'gbce', 'sampled_softmax'])
def test_sampled_losses(histories, mesh, loss):
    model = sasrec.Config(**SMALL, loss=loss, negatives=4)
    same_as_alone([experiment(model, seed=s) for s in (0, 1)], histories, mesh, steps=10)


@pytest.mark.slow
def test_negatives_of_the_data_and_microbatches(histories, mesh):
    model = sasrec.Config(**SMALL, loss='bce', negatives_per='data')
    data = Data(unseen_negatives=2)
    runs = [experiment(model, data=data, seed=s, microbatches=2) for s in (0, 1)]
    same_as_alone(runs, histories, mesh, steps=10)


@pytest.mark.slow
def test_touched_rows_and_memory(histories, mesh):
    """Sparse updates of the table; a model that remembers more than parameters."""
    model = sasrec.Config(**SMALL, loss='bce', negatives=4)
    runs = [experiment(model, seed=s, table='rowwise_adagrad') for s in (0, 1)]
    same_as_alone(runs, histories, mesh, steps=10)
    small = {'dim': 8, 'blocks': 1, 'heads': 2, 'ffn': 2, 'interests': 2, 'max_len': 8}
    models = [
        kuaiformer.Config(
            **small, compress=(), newest=8, in_batch=InBatch(logq='streaming', rate=rate)
        )
        for rate in (0.01, 0.3)
    ]
    data = Data(windows='cuts', cuts=2)
    runs = [experiment(model, data=data, seed=s) for s, model in enumerate(models)]
    same_as_alone(runs, histories, mesh, steps=10)


def test_scalars_ride_the_axis(histories, mesh):
    """Learning rate, moments, dropout and the calibration of gBCE; a sweep in one program."""
    runs = [
        experiment(
            sasrec.Config(
                **SMALL,
                loss='gbce',
                negatives=4,
                gbce_t=t,
                embedding_dropout=rate,
                table_dropout=rate / 2,
            ),
            learning_rate=rate / 20,
            b1=0.9 - rate / 10,
            b2=0.99 - rate / 10,
            eps=1e-8 * (1 + t),
            schedule='linear',
        )
        for t, rate in ((0.2, 0.1), (0.9, 0.5))
    ]
    same_as_alone(runs, histories, mesh, steps=30)


@pytest.mark.slow
@pytest.mark.slow
def test_contrastive_terms(histories, mesh):
    """Also where the batches of the seeds hold different numbers of users and positives."""
    terms = (
        Contrast(second='same_target', temperature=0.5, similarity='cosine'),
        Contrast(second='same_target', temperature=0.7, similarity='cosine', weight=0.3),
    )
    runs = [
        experiment(cl4srec.Config(**SMALL, contrast=term), seed=seed)
        for seed, term in enumerate(terms)
    ]
    same_as_alone(runs, histories, mesh, 20)


def test_several_runs_on_each_device(histories, mesh):
    runs = [experiment(seed=seed) for seed in range(10)]  # on 8 devices: 5 of them, 2 runs each
    program = Runs(runs, histories.num_items, HORIZON)
    assert program.devices == max(n for n in (1, 2, 5, 10) if n <= jax.device_count())
    same_as_alone(runs, histories, mesh, steps=5)


def test_what_cannot_differ_is_named(histories):
    runs = [experiment(), experiment(sasrec.Config(**{**SMALL, 'dim': 16}))]
    with pytest.raises(UserError, match=r'model\.dim differs'):
        Runs(runs, histories.num_items, HORIZON)
    runs = [experiment(), experiment(sasrec.Config(**SMALL, embedding_dropout=0.0))]
    with pytest.raises(UserError, match=r'model\.embedding_dropout is 0 in some'):
        Runs(runs, histories.num_items, HORIZON)
    split = dataclasses.replace(experiment())
    split.mesh.model = 2
    with pytest.raises(UserError, match=r'mesh\.model must be 1'):
        Runs([split], histories.num_items, HORIZON)
