"""The training step: microbatches."""

import dataclasses

import jax
import numpy as np

from jaxrec import config
from jaxrec.devices.mesh import put_batch
from jaxrec.models import sasrec
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import init_state, split_model, train_step

ITEMS, ROWS, L = 37, 16, 10
SIZES = {'item': ITEMS}
MODEL = sasrec.Config(dim=8, blocks=1, max_len=L, dropout=0.0, embedding_dropout=0.0)


def batch(seed=0):
    """Rows of one to ten events, some without a single target."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, L + 1, ROWS)
    real = np.arange(L) < lengths[:, None]
    items = rng.integers(1, ITEMS + 1, (2, ROWS, L)) * real
    return {
        'items': items[0].astype(np.int32),
        'targets': items[1].astype(np.int32),
        'segments': real.astype(np.int32),
        'positions': (np.arange(L) * real).astype(np.int32),
        'weights': real * rng.uniform(0.5, 1.5, (ROWS, L)).astype(np.float32),
    }


def steps(model, microbatches, count=3):
    """Parameters and metrics after `count` steps on the current mesh."""
    # with so large an eps Adam is as good as linear, and rounding is not blown up to a step
    settings = config.Optim(learning_rate=0.1, eps=1.0, clip_norm=0.5)
    optimizer = make_optimizer(settings, model, 10)
    graphdef, _ = split_model(model, SIZES)
    state = init_state(model, SIZES, optimizer, 0)
    step = train_step(graphdef, optimizer, 0, microbatches)
    for number in range(count):
        state, metrics = step(state, put_batch(batch(number)))
    return jax.device_get((state['params'], metrics))


def test_microbatches_take_the_same_step(mesh):
    """Weighted means of unequal parts: the sum of their gradients is the whole batch's."""
    mesh(1, 1)
    whole, parts = steps(MODEL, 1), steps(MODEL, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts, whole)


def test_microbatches_on_any_mesh(mesh):
    """The rows of a turn do not depend on the mesh, nor does their dropout."""
    model = dataclasses.replace(MODEL, blocks=0, embedding_dropout=0.3)
    results = []
    for shape in ((1, 1), (8, 1), (2, 2)):
        mesh(*shape)
        results.append(steps(model, 2))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), other, results[0])
