"""Checkpoints: donated buffers, the wrong model, a full disk."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.errors import UserError
from jaxrec.training.checkpoint import Checkpoints, _one_line


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def test_save_in_the_background_while_the_buffers_are_reused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {'x': jnp.zeros((512, 512)), 'step': jnp.zeros((), jnp.int32)}
    step = jax.jit(lambda s: jax.tree.map(lambda v: v + 1, s), donate_argnums=0)
    for i in range(1, 40):
        state = step(state)
        if i % 10 == 0:
            checkpoints.save_last(i, state, {'i': i})
    checkpoints.close()
    restored, host = Checkpoints(tmp_path).restore_last(abstract(state))
    assert host == {'i': 30} and int(restored['step']) == 30
    np.testing.assert_array_equal(restored['x'], np.full((512, 512), 30))


def test_the_newest_two_are_kept_and_best_stands_beside(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.last_step() is None and checkpoints.best_step() is None
    for i in (1, 2, 3):
        checkpoints.save_last(i, {'x': jnp.full(3, float(i))}, {})
    checkpoints.save_best(2, {'x': jnp.full(3, 20.0)}, {'best': 0.5})
    checkpoints.save_best(2, {'x': jnp.full(3, 20.0)}, {'best': 0.5})  # again after a resume
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert (again.last_step(), again.best_step()) == (3, 2)
    params, host = again.restore_best({'x': jax.ShapeDtypeStruct((3,), jnp.float32)})
    assert host == {'best': 0.5} and float(params['x'][0]) == 20
    assert {p.name for p in (tmp_path / 'checkpoints' / 'last').iterdir()} == {'2', '3'}


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_last(1, {'x': jnp.zeros(3), 'z': jnp.zeros(2)}, {})
    checkpoints.close()
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)  # noqa: E731
    for other in (
        {'y': shape(3), 'z': shape(2)},
        {'x': shape(4), 'z': shape(2)},
        {'x': shape(2), 'z': shape(2)},
        {'x': shape(3, 1), 'z': shape(2)},
        {'x': shape(3)},
        {'x': shape(3), 'z': shape(2), 'y': shape(1)},
        {'x': {'y': shape(3)}, 'z': shape(2)},
    ):
        with pytest.raises(UserError, match='does not fit this model') as error:
            Checkpoints(tmp_path).restore_last(other)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'failure',
    [
        OSError(28, 'No space left on device'),
        RuntimeError('INTERNAL: write failed: [tensorstore] No space left on device\nmore'),
    ],
)
def test_a_full_disk_is_one_line(failure):
    with pytest.raises(UserError, match='No space left; free some space') as error:
        with _one_line(pathlib.Path('runs/x')):
            raise failure
    assert '\n' not in str(error.value)
    with pytest.raises(ZeroDivisionError):  # a bug stays a bug
        with _one_line(pathlib.Path('runs/x')):
            raise ZeroDivisionError
