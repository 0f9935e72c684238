"""Cross: searches and attention by loops in float64, alignment, and a category of members."""

import dataclasses

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from test_click import make as make_click
from test_click import rows  # noqa: F401  (the made-up rows)

from jaxrec.data.fields import Encoder, Field
from jaxrec.devices.mesh import on_mesh, put_batch
from jaxrec.errors import UserError
from jaxrec.models import cross

D, B, N = 4, 6, 5
SEQUENCES = (
    cross.Sequence('short', 'watch', most=2),
    cross.Sequence('long', 'watch', 'dot', most=2),
    cross.Sequence('author', 'watch', 'same', most=1, same='author'),
    cross.Sequence('mixed', 'liked', most=3),
)
SETTINGS = {
    'dim': D,
    'expert_widths': (8, 4),
    'tower_widths': (),
    'sequences': SEQUENCES,
    'anchor': 'mixed',
}
SIZES = {
    'table': 30,
    'label': 1,
    'label.click': 0,
    **{f'feature.{n}': 1 for n in ('user', 'item', 'author')},
    **{f'feature.{n}': N for n in ('watch', 'liked', 'watch.author')},
}


def made(**changes):
    """The model in float64, under jax.enable_x64."""
    config = cross.Config(**{**SETTINGS, **changes})
    config.check()
    graphdef, params = models.made(lambda: config.make(SIZES, rngs=nnx.Rngs(0)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params))


def drawn():
    """Rows of which the first liked nothing, the second watched nothing, two are of one user."""
    rng = np.random.default_rng(0)
    codes = lambda low, high, *shape: rng.integers(low, high, shape).astype(np.int32)  # noqa: E731
    # no member twice: ties are all found
    watch, liked = (
        np.stack([rng.permutation(np.arange(5, 25))[:N] for _ in range(B)]).astype(np.int32)
        for _ in range(2)
    )
    watch[:, 4], liked[2:, 3:] = 0, 0  # oldest first, padded at the end
    liked[0], watch[1] = 0, 0
    features = {
        'user': np.array([1, 2, 3, 3, 4, 1], np.int32),
        'item': codes(5, 25, B),
        'author': np.array([27, 27, 28, 28, 27, 28], np.int32),
        'watch': watch,
        'liked': liked,
        'watch.author': np.where(watch > 0, codes(27, 29, B, N), 0).astype(np.int32),
    }
    features['watch.author'][3] = np.where(watch[3] > 0, 27, 0)  # none of the candidate's author
    return features


def slow_found(one, table, features, row):
    """Places of the members that a search finds."""
    members = features[one.field][row]
    places = [n for n in range(N) if members[n] > 0]
    if one.search == 'dot':
        query = table[features['item'][row]]
        places.sort(key=lambda n: query @ table[members[n]])
    if one.search == 'same':
        own, of = features[one.same][row], features[f'{one.field}.{one.same}'][row]
        places = [n for n in places if of[n] == own]
    return [members[n] for n in places[-one.most :]]


def test_sequences_are_the_loop():
    """Attention in softmax(q k / sqrt(D)) v over what was found, and its mean; zeros of nothing."""
    with jax.enable_x64(True):
        model, features = made(heads=2), drawn()
        vectors = model.vectors(features)
        got = np.asarray(jnp.stack(model.pooled(vectors, features), 1))
        assert got.shape == (B, 8, D)
        table = np.asarray(model.table[...])
        for row in range(B):
            for nth, one in enumerate(SEQUENCES):
                found = slow_found(one, table, features, row)
                heard, mean = np.zeros(D), np.zeros(D)
                if found:
                    layer = model.heard_by[nth]
                    q, k, v = (np.asarray(p.kernel[...]) for p in (layer.q, layer.k, layer.v))
                    members, query = table[found], table[features['item'][row]]
                    for part in (slice(0, 2), slice(2, 4)):
                        weights = np.exp((members @ k)[:, part] @ (query @ q)[part] / np.sqrt(2))
                        heard[part] = weights @ (members @ v)[:, part] / weights.sum()
                    mean = members.mean(0)
                np.testing.assert_allclose(got[row, 2 * nth], heard, atol=1e-12)
                np.testing.assert_allclose(got[row, 2 * nth + 1], mean, atol=1e-12)


def slow_aligned(model, features, weights):
    table, total = np.asarray(model.table[...]), 0.0
    config = model.config
    means = {
        one.name: [
            table[found].mean(0) if (found := slow_found(one, table, features, row)) else None
            for row in range(B)
        ]
        for one in config.sequences
    }
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    for one in config.sequences[:-1]:
        losses = []
        for b in range(B):
            anchor, own = means['mixed'][b], means[one.name][b]
            if anchor is None or own is None or not weights[b]:
                continue
            terms = {b: cosine(anchor, own)}
            for j in range(B):
                other = means[one.name][j]
                alike = config.apart and features[config.apart][j] == features[config.apart][b]
                if j != b and other is not None and weights[j] and not alike:
                    terms[j] = cosine(anchor, other)
            exps = {j: np.exp(c / config.temperature) for j, c in terms.items()}
            losses.append(-np.log(exps[b] / sum(exps.values())))
        total += np.mean(losses)
    return total


@pytest.mark.parametrize('apart', ['user', ''])
def test_the_alignment_is_the_loop(apart):
    """Anchored at the mixed sequence; the empty are left out, padding and the same user too."""
    with jax.enable_x64(True):
        model, features = made(apart=apart, temperature=0.3), drawn()
        for weights in (np.ones(B), np.array([1.0, 1, 1, 1, 1, 0])):
            wanted = slow_aligned(model, features, weights)
            assert float(model.aligned(features, weights)) == pytest.approx(wanted, rel=1e-12)
        assert float(model.aligned(features, np.eye(B)[2])) == pytest.approx(0)  # nobody else
        graphdef, params = nnx.split(model)
        loss = lambda p, f: nnx.merge(graphdef, p).aligned(f, np.ones(B))  # noqa: E731
        nothing = {**features, 'watch': 0 * features['watch']}
        for given in (features, nothing):
            grads = models.jit(jax.grad(loss))(params, given)
            assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
        assert not any(np.any(g) for g in jax.tree.leaves(grads))  # no sequence, no gradient


def batch_of(features):
    rng = np.random.default_rng(1)
    return {
        'features': features,
        'labels': rng.integers(0, 2, (B, 1)).astype(np.float64),
        'mask': np.ones((B, 1)),
        'weights': np.ones(B),
    }


def test_without_weight_it_is_the_plain_model():
    """Bit for bit, the same parameters too."""
    with jax.enable_x64(True):
        batch, key = batch_of(drawn()), jax.random.key(0)
        with_it, without = made(weight=0.5), made(weight=0.0)
        assert jax.tree.structure(nnx.split(with_it)[1]) == jax.tree.structure(
            nnx.split(without)[1]
        )
        value, (terms, _) = with_it.loss(batch, {}, {}, key)
        plain, (plain_terms, _) = without.loss(batch, {}, {}, key)
        assert 'aligned' not in plain_terms and plain == plain_terms['loss_0'] == terms['loss_0']
        assert float(value) == pytest.approx(float(plain + 0.5 * terms['aligned']), rel=1e-12)


# ---- a category of a set's members, and the task


def test_a_category_of_members(rows):  # noqa: F811
    """Codes are those of the items themselves, of an unknown item that of others, of padding 0."""
    rows.item_features['author'] = np.array([3, 0, -1, 3, 7, 0, 2, 2, 5], np.int32)
    rows.user_features['watch'][0, 0] = rows.num_items + 1
    fields = (Field('watch.author', 'set', of='author'), Field('author'), Field('item'))
    encode = Encoder(rows, fields, np.arange(300))
    index = np.arange(len(rows))
    got, watch = encode(index), rows.user_features['watch'][rows.users]
    author = {item: code for item, code in zip(rows.items, got['author'], strict=True)}
    assert len(author) == rows.num_items
    for row in index:
        for place, item in enumerate(watch[row]):
            code = got['watch.author'][row, place]
            if item == 0:
                assert code == 0
            elif item > rows.num_items:
                assert code == encode.codes['author'].missing
            else:
                assert code == author[item]
    assert encode.sizes['feature.watch.author'] == 3 and encode.units['watch.author'] == 'user'
    rows.features['author2'] = rows.users
    with pytest.raises(UserError, match='must be a field of items'):
        Encoder(rows, (Field('watch.author2', 'set', of='author2'), Field('author2')), index)


def experiment(**changes):
    made = make_click(train={'batch_rows': 16})
    sequences = (
        cross.Sequence('short', 'watch', most=2),
        cross.Sequence('author', 'watch', 'same', most=1, same='author'),
    )
    settings = {'sequences': sequences, 'anchor': 'short', **changes}
    made.model = cross.Config(dim=4, expert_widths=(8, 4), tower_widths=(), **settings)
    fields = (*made.task.fields, Field('author'), Field('watch.author', 'set', of='author'))
    made.task = dataclasses.replace(made.task, fields=fields)
    return made


def test_a_step_on_any_mesh(rows, tmp_path, mesh):  # noqa: F811
    rows.item_features['author'] = (np.arange(rows.num_items) % 3).astype(np.int32)
    rows.save(tmp_path / 'columns')
    made = experiment()
    made.task.check(made)

    def step():
        p = made.task.open(made, say=lambda line: None)
        graph, params = models.made(lambda: made.model.make(p.sizes, rngs=nnx.Rngs(0)))
        batch = p.periods[0]().batches(0)
        batch = put_batch(batch) if on_mesh() else batch
        key = jax.random.key(0)
        loss = lambda params, batch: nnx.merge(graph, params).loss(batch, {}, {}, key)[0]  # noqa: E731
        return jax.device_get(models.jit(jax.value_and_grad(loss))(params, batch))

    value, grads = step()
    mesh(2, 2)
    other, other_grads = step()
    assert other == pytest.approx(value, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, other_grads)


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'sequences': ()}, 'at least one'),
        ({'sequences': SEQUENCES[:1] * 2}, 'different names'),
        ({'sequences': (cross.Sequence('a', 'watch', 'same'),), 'weight': 0.0}, 'same=CATEGORY'),
        ({'anchor': 'all'}, "model.anchor='all' must be one of"),
        ({'heads': 3}, 'model.heads=3 must divide'),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(UserError, match=words):
        cross.Config(**{**SETTINGS, **changes}).check()
