"""Tokens of items and features against numpy; features beside packed and padded histories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit, made, make

from jaxrec.config import Feature
from jaxrec.models import sasrec
from jaxrec.nn import embeddings
from jaxrec.nn.linear import linear_layer

ITEMS, L, D = 37, 10, 8
FEATURES = (
    Feature('action', size=3),
    Feature('tags', 'set', size=5),
    Feature('seconds', 'log', size=4, cap=60.0),
)
SETS = 4  # numbers per set


def make_tokens(features):
    linear = linear_layer(embeddings.INITS['xavier_normal'], jnp.float32, bias=False)
    return made(lambda: embeddings.Tokens(features, D, 3, linear, rngs=nnx.Rngs(0)))


def make_codes(shape, seed=0):
    """Any code of every feature, 0 = missing and size + 1 = beyond, sets with holes and empty."""
    rng = np.random.default_rng(seed)
    codes = {}
    for feature in FEATURES:
        wide = (*shape, SETS) if feature.kind == 'set' else shape
        codes[feature.column] = rng.integers(0, feature.rows, wide).astype(np.int32)
    codes['tags'] *= rng.integers(0, 2, (*shape, SETS)).astype(np.int32)
    codes['tags'][0, 0] = 0
    return codes


def slow_tokens(params, features, items, codes):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    out = np.zeros(items.shape)
    for row in range(items.shape[0]):
        for place in range(items.shape[1]):
            parts = [items[row, place]]
            for number, feature in enumerate(features):
                table, code = p['tables'][number], codes[feature.column][row, place]
                members = [table[c] for c in np.atleast_1d(code) if c > 0]
                parts.append(sum(members) / len(members) if members else np.zeros(3))
            hidden = np.concatenate(parts) @ p['inner']['kernel']
            hidden = hidden / (1 + np.exp(-hidden))
            out[row, place] = parts[0] + hidden @ p['outer']['kernel']
    return out


@pytest.mark.parametrize('count', [0, 1, 2, 3])
def test_tokens(count):
    features = FEATURES[:count]
    graphdef, params = make_tokens(features)
    items = np.random.default_rng(3).normal(size=(4, 6, D))
    codes = make_codes((4, 6))
    used = {feature.column: codes[feature.column] for feature in features}
    call = jax.jit(lambda p, x, codes: nnx.merge(graphdef, p)(x, {'features': codes}))
    got = call(params, items.astype(np.float32), used)
    np.testing.assert_allclose(got, slow_tokens(params, features, items, used), atol=2e-5)
    for number, feature in enumerate(features):
        assert params['tables'][number].shape == (feature.size + 2, 3)
        assert codes[feature.column].max() == feature.size + 1  # the last row was looked up


def test_missing_codes_teach_their_row_nothing():
    graphdef, params = make_tokens(FEATURES)
    items = jnp.ones((4, 6, D))
    codes = make_codes((4, 6))
    loss = lambda p: (nnx.merge(graphdef, p)(items, {'features': codes}) ** 2).sum()  # noqa: E731
    grads = jax.jit(jax.grad(loss))(params)
    for number, feature in enumerate(FEATURES):
        learnt = (np.asarray(grads['tables'][number]) != 0).any(1)
        found = np.isin(np.arange(feature.rows), codes[feature.column])
        assert found[0] and not learnt[0]
        np.testing.assert_array_equal(learnt[1:], found[1:])


def make_sasrec():
    config = sasrec.Config(dim=D, max_len=L, heads=2, features=FEATURES, feature_dim=3)
    graphdef, params = make(config, ITEMS)

    @jit
    def encode(params, batch):
        model = nnx.merge(graphdef, params)
        return model.encode(batch, model.item_table())

    return encode, params


def packed_batch(rows=3):
    """Rows of two users (6 and 3 events) and one place of padding."""
    rng = np.random.default_rng(0)
    segments = np.repeat([[1] * 6 + [2] * 3 + [0]], rows, 0).astype(np.int32)
    real = segments > 0
    positions = np.r_[L - 6 : L, L - 3 : L, 0].astype(np.int32)
    of_events = lambda x: x * (real if x.ndim == 2 else real[..., None])  # noqa: E731
    return {
        'items': rng.integers(1, ITEMS + 1, (rows, L)).astype(np.int32) * real,
        'segments': segments,
        'positions': np.repeat(positions[None], rows, 0),
        'features': jax.tree.map(of_events, make_codes((rows, L))),
    }


def test_packing_and_padding_do_not_change_a_users_vectors():
    encode, params = make_sasrec()
    batch = packed_batch()
    hidden = encode(params, batch)
    for number, length in ((1, 6), (2, 3)):
        for width in (length, L):

            def right_aligned(values, number=number, length=length, width=width):
                own = values[batch['segments'] == number]
                alone = np.zeros((3, width, *values.shape[2:]), np.int32)
                alone[:, width - length :] = own.reshape(3, length, *values.shape[2:])
                return alone

            alone = jax.tree.map(right_aligned, batch)
            alone['segments'] = np.minimum(alone['segments'], 1)
            np.testing.assert_allclose(
                encode(params, alone)[:, -length:],
                hidden[batch['segments'] == number].reshape(3, length, D),
                atol=1e-5,
            )


def test_features_reach_their_own_user_and_only_later_places():
    encode, params = make_sasrec()
    batch = packed_batch()
    before = encode(params, batch)
    for feature in FEATURES:
        codes = batch['features'][feature.column].copy()
        codes[:, 3] = (codes[:, 3] + 1) % feature.rows
        changed = batch | {'features': batch['features'] | {feature.column: codes}}
        change = np.abs(encode(params, changed) - before).max(2)
        assert (change[:, 3:6] > 1e-4).all(), feature
        assert (change[:, :3] == 0).all() and (change[:, 6:] == 0).all()
