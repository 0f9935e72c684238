"""Two users' events in one view, and the soft identities that it has, event by event."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit, moments, slow_shares

from jaxrec import losses
from jaxrec.devices.mesh import put_batch
from jaxrec.errors import UserError
from jaxrec.experiment import check_fields
from jaxrec.models import sasrec
from jaxrec.objectives import contrast, view_objectives
from jaxrec.objectives.contrast import Contrast
from jaxrec.objectives.views import mixed, views

KEY, N = jax.random.key(1), 8
SETTINGS = Contrast(objective='mixed', first='mixed', second='dropout', temperature=0.3)


def rows():
    """Seven users in four rows: segment 0 is padding; features nested."""
    segments = np.array(
        [[1] * 3 + [2] * 5, [0] * 4 + [1] * 4, [1] * 2 + [2] * 2 + [3] * 4, [0] + [1] * 7], np.int32
    )
    items = 1 + np.arange(32, dtype=np.int32).reshape(4, 8)
    positions = np.tile(np.arange(8, dtype=np.int32), (4, 1))
    there = segments > 0
    return {
        'items': items * there,
        'segments': segments,
        'positions': positions,
        'features': {'kind': items * there + 100, 'set': np.stack([items, -items], -1)},
    }


def users_of(segments):
    """Number of the user at each place, -1 on padding."""
    found, number = np.full(segments.shape, -1), -1
    for row, line in enumerate(segments):
        for place, segment in enumerate(line):
            if segment and (place == 0 or line[place - 1] != segment):
                number += 1
            found[row, place] = number if segment else -1
    return found


def test_events_and_identities():
    given = rows()
    made = jax.tree.map(np.asarray, jit(lambda x, key: mixed(x, key, 1.0, N))(given, KEY))
    owner = users_of(given['segments'])
    want, moved = np.zeros((N, N)), 0
    for row in range(4):
        for place in range(8):
            item = made['items'][row, place]
            if owner[row, place] < 0:
                assert item == 0
                continue
            assert (item - 1) % 8 == place  # of the same place of some row
            of = owner[(item - 1) // 8, place]
            want[owner[row, place], of] += 1
            moved += of != owner[row, place]
            assert made['features']['kind'][row, place] == item + 100
            assert made['features']['set'][row, place].tolist() == [item, -item]
    assert 0 < moved < 14
    count = want.sum(1, keepdims=True)
    want = np.where(count > 0, want / np.maximum(count, 1), np.eye(N))
    np.testing.assert_allclose(made['identities'], want, atol=1e-6)
    np.testing.assert_allclose(made['identities'].sum(1), 1, atol=1e-6)
    for name in ('segments', 'positions'):
        np.testing.assert_array_equal(made[name], given[name])


def test_a_user_alone_stays():
    given = {name: x[1:2] for name, x in rows().items() if name != 'features'}
    made = mixed(jax.tree.map(jnp.asarray, given), KEY, 1.0, 2)
    np.testing.assert_array_equal(made['items'], given['items'])
    np.testing.assert_array_equal(made['identities'], np.eye(2))


@pytest.mark.parametrize('mixing', [0.3, 2.0])
def test_how_many_events_stay(mixing):
    """Each by the chance max(s, 1 - s) of its user, s ~ Beta(mixing, mixing)."""
    users, events = 400, 16
    segments = np.ones((users, events), np.int32)
    items = np.arange(users * events, dtype=np.int32).reshape(segments.shape)
    given = {'items': items, 'segments': segments, 'positions': segments, 'users': segments[:, 0]}
    settings = dataclasses.replace(SETTINGS, mixing=mixing)
    made = jit(lambda given: views(settings, given, KEY, 4)[0])(given)
    stay = (np.asarray(made['items']) == items).mean(1)
    np.testing.assert_allclose(np.diag(made['identities']), stay, atol=1e-6)
    shares = slow_shares(mixing)
    expected = np.random.default_rng(1).binomial(events, shares) / events
    assert moments(stay, expected).max() < 4


@pytest.mark.slow
def test_the_same_on_a_mesh(mesh):
    expected = jax.tree.map(np.asarray, jit(lambda x: mixed(x, KEY, 1.0, N))(rows()))
    mesh(2, 1)
    got = jit(lambda x: mixed(x, KEY, 1.0, N))(put_batch(rows()))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_objective():
    """Minus the shares times log softmax of cosines with the users of the other view."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 4))
    users = np.array([3, 9, 4, 7, 0], np.int32)
    y = rng.random((5, 5)) * (users > 0)
    y /= y.sum(1, keepdims=True)
    given = [jnp.asarray(x, jnp.float32) for x in (first, second)]
    vectors = view_objectives.Vectors(*given, users, users, identities=jnp.asarray(y, jnp.float32))
    values, _, _ = view_objectives.mixed(SETTINGS, vectors, {}, {})
    cos = first @ second.T / np.linalg.norm(first, axis=1)[:, None] / np.linalg.norm(second, axis=1)
    cos = cos[:4, :4] / 0.3
    want = [np.log(np.exp(c).sum()) - y[i, :4] @ c for i, c in enumerate(cos)]
    np.testing.assert_allclose(values[:4], want, rtol=1e-5)
    # whose events are all their own: plain InfoNCE
    plain = dataclasses.replace(vectors, identities=jnp.eye(5))
    own = view_objectives.mixed(SETTINGS, plain, {}, {})[0]
    real = jnp.asarray(users > 0)
    alike = [
        losses.info_nce_among(*given, jnp.arange(5), real, one, temperature=0.3)
        for one in jnp.eye(5)[:4]
    ]
    np.testing.assert_allclose(own[:4], alike, rtol=1e-5)


@pytest.mark.parametrize(
    'changes',
    [{'first': 'dropout'}, {'objective': 'info_nce'}, {'second': 'mixed'}],
)
def test_mistakes(changes):
    with pytest.raises(UserError, match="the view 'mixed' is the first of"):
        dataclasses.replace(SETTINGS, **changes).check('model.contrast.0')
    SETTINGS.check('model.contrast.0')
    with pytest.raises(UserError, match='mixing=0'):
        check_fields(dataclasses.replace(SETTINGS, mixing=0.0), 'model.contrast.0')


def test_a_step_of_a_model(mesh):
    """The term reaches the model's gradient, and is a number."""
    mesh(1, 1)
    config = sasrec.Config(dim=4, blocks=1, max_len=8, contrast=(SETTINGS,))
    model = config.make({'item': 40}, rngs=nnx.Rngs(0))
    batch = {name: x for name, x in rows().items() if name != 'features'}
    batch |= {
        'users': np.arange(1, 9, dtype=np.int32) * (np.arange(8) < 7),
        'user_targets': np.arange(8, dtype=np.int32),
    }
    graphdef, params = nnx.split(model, nnx.Param)

    def value(params):
        return contrast.terms(nnx.merge(graphdef, params), batch, {}, KEY)[0]

    found, grads = jit(jax.value_and_grad(value))(params)
    assert np.isfinite(found) and found > 0
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) > 0
