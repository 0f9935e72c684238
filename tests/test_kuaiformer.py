"""KuaiFormer against an independent numpy forward pass; its masks, its loss, meshes and carry."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from flax import nnx
from jax import P
from models import jit, slow

from jaxrec.config import Data, Feature, Optim
from jaxrec.devices.mesh import TABLE, put_batch
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, check
from jaxrec.models import comirec, kuaiformer, sasrec
from jaxrec.objectives import in_batch
from jaxrec.objectives.in_batch import InBatch
from jaxrec.tasks import next_item
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import abstract_state, init_state, split_model, train_step

ITEMS, D, K = 40, 8, 3
FEATURES = (Feature('action', size=2), Feature('tags', 'set', size=4))
NO_DROPOUT = {'dropout': 0.0, 'embedding_dropout': 0.0}


def make_config(**options):
    defaults = {'max_len': 11, 'compress': (3, 2, 2), 'newest': 4, 'blocks': 2, 'feature_dim': 3}
    return kuaiformer.Config(**({'dim': D, 'interests': K} | NO_DROPOUT | defaults | options))


def make_small(**options):
    """One group, one block, for what takes long to compile."""
    return make_config(**({'max_len': 7, 'compress': (3,), 'blocks': 1, 'ffn': 2} | options))


CONFIGS = {
    'rope': make_config(features=FEATURES, compress_ffn=3),
    'learned': make_config(positions='learned', dim=6),  # heads of odd width
    'rope, all newest': make_config(compress=(), newest=11, blocks=1),
    'learned, all newest': make_config(compress=(), newest=11, blocks=1, positions='learned'),
    'long': make_config(max_len=140, compress=(70,), newest=70, heads=1, interests=2),
}
make = functools.partial(models.make, items=ITEMS)


@functools.cache
def made(name):
    return make(CONFIGS[name])


@functools.cache
def encoder(name, cuts=1):
    """Jitted batch -> [B, G, K, D]."""
    graphdef, params = made(name)

    def encode(params, batch):
        model = nnx.merge(graphdef, params)
        return model.encode(batch, model.item_table(), cuts=cuts)

    return functools.partial(jit(encode), params)


def make_events(lengths, seed=0):
    """Histories as lists of (item, code of action, codes of tags), oldest first."""
    rng = np.random.default_rng(seed)
    return [
        [
            (
                int(rng.integers(1, ITEMS + 1)),
                int(rng.integers(0, FEATURES[0].rows)),
                (rng.integers(0, FEATURES[1].rows, 3) * rng.integers(0, 2, 3)).tolist(),
            )
            for _ in range(length)
        ]
        for length in lengths
    ]


def right_aligned(histories, width):
    """A batch [B, W] of the newest events of histories."""
    batch = {
        name: np.zeros((len(histories), width), np.int32)
        for name in ('items', 'segments', 'positions')
    }
    action = np.zeros((len(histories), width), np.int32)
    tags = np.zeros((len(histories), width, 3), np.int32)
    for row, events in enumerate(histories):
        for place, (item, *codes) in enumerate(events[-width:], width - len(events[-width:])):
            batch['items'][row, place] = item
            batch['segments'][row, place] = 1
            batch['positions'][row, place] = place
            action[row, place], tags[row, place] = codes
    return batch | {'features': {'action': action, 'tags': tags}}


def float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def slow_block(p, x, places, sees, heads):
    """x + MHA(norm x), then x + SwiGLU(norm x), token by token; rotated unless places is None."""

    def norm(vector, scale):
        return vector / math.sqrt((vector**2).mean() + 1e-6) * scale['scale']

    def rotated(vector, place):
        half = len(vector) // 2
        turn = np.exp(1j * place * 10_000.0 ** (-np.arange(half) / half))
        turned = (vector[:half] + 1j * vector[half:]) * turn
        return np.concatenate([turned.real, turned.imag])

    width, y = len(x[0]) // heads, [norm(token, p['norm_attention']) for token in x]
    out = []
    for i, token in enumerate(x):
        parts = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            q, k, v = (
                [(token @ p['attention'][name]['kernel'])[own] for token in y] for name in 'qkv'
            )
            if places is not None:
                q, k = ([rotated(*pair) for pair in zip(z, places, strict=True)] for z in (q, k))
            seen = [j for j in range(len(x)) if sees[i][j]]
            weights = np.exp([q[i] @ k[j] / math.sqrt(width) for j in seen])
            weights /= weights.sum()
            parts.append(sum(w * v[j] for w, j in zip(weights, seen, strict=True)))
        token = token + np.concatenate(parts) @ p['attention']['out']['kernel']
        z = norm(token, p['norm_ffn'])
        swish = z @ p['swish']['kernel']
        hidden = swish / (1 + np.exp(-swish)) * (z @ p['inner']['kernel'])
        out.append(token + hidden @ p['outer']['kernel'])
    return out


def slow_vectors(params, config, events, cuts=1):
    """User vectors [G, K, D] after the last places of one history, of its real events alone."""
    p, learned = float64(params), config.positions == 'learned'

    def token(event):
        item, *features = event
        parts = [p['table'][item] * math.sqrt(config.dim)]
        if config.features:
            for table, codes in zip(p['tokens']['tables'].values(), features, strict=True):
                members = [table[code] for code in np.atleast_1d(codes) if code]
                parts.append(sum(members) / len(members) if members else np.zeros(3))
        hidden = np.concatenate(parts) @ p['tokens']['inner']['kernel']
        return parts[0] + hidden / (1 + np.exp(-hidden)) @ p['tokens']['outer']['kernel']

    # events stand at the right end of max_len places
    first = config.max_len - len(events)
    standing = {first + n: token(event) for n, event in enumerate(events)}
    x, places, start = [], [], 0
    for number, size in enumerate(config.compress):
        inside = [place for place in range(start, start + size) if place in standing]
        start += size
        if not inside:
            continue
        which = sorted(set(config.compress)).index(size)
        group = [standing[place] for place in inside]
        within = [place - (start - size) for place in inside]
        if learned:
            own = p['group_positions'][which]
            group = [x + own[n] for x, n in zip(group, within, strict=True)]
            within = None
        sees = np.ones((len(group), len(group)), bool)
        group = slow_block(p['compressors'][which], group, within, sees, config.heads)
        x.append(sum(group) / len(group))
        places.append(number)
    for place in range(start, config.max_len):
        if place in standing:
            x.append(standing[place])
            places.append(len(config.compress) + place - start)

    ends = [len(config.compress) + config.newest - (cuts - 1 - g) for g in range(cuts)]
    cut_of = [None] * len(x)
    for g, nth in itertools.product(range(cuts), range(config.interests)):
        x.append(p['query_tokens'][nth])
        places.append(ends[g] + nth)
        cut_of.append(g)

    def sees(i, j):
        if cut_of[j] is None:  # an event
            end = places[i] + 1 if cut_of[i] is None else ends[cut_of[i]]
            return places[j] < end
        return cut_of[i] == cut_of[j] and places[j] <= places[i]

    mask = [[sees(i, j) for j in range(len(x))] for i in range(len(x))]
    if learned:
        x, places = [x + p['positions'][n] for x, n in zip(x, places, strict=True)], None
    for number in range(config.blocks):
        x = slow_block(p['blocks'][number], x, places, mask, config.heads)
    x = np.array(x[-cuts * config.interests :])
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return (x * p['norm']['scale']).reshape(cuts, config.interests, -1)


LENGTHS = (11, 1, 4, 5, 7, 9, 0)  # full, newest only, groups half and wholly full, nothing


@pytest.mark.parametrize('name', ['rope', 'learned'])
def test_vectors(name):
    histories = make_events(LENGTHS)
    got = encoder(name, cuts=3)(right_aligned(histories, 11))
    assert got.shape == (len(LENGTHS), 3, K, CONFIGS[name].dim)
    for row, events in enumerate(histories):
        expected = slow_vectors(made(name)[1], CONFIGS[name], events, cuts=3)
        np.testing.assert_allclose(got[row], expected, atol=1e-4)


def test_vectors_of_long_sequences():
    """Beyond the 64 queries that causal attention takes at once, in a group and after it."""
    histories = make_events((140, 75))
    got = encoder('long')(right_aligned(histories, 140))
    for row, events in enumerate(histories):
        expected = slow_vectors(made('long')[1], CONFIGS['long'], events)
        np.testing.assert_allclose(got[row], expected, atol=1e-4)


@pytest.mark.parametrize(
    ('name', 'widths'), [('rope', (1, 5, 9)), ('learned', (3, 6)), ('rope, all newest', (4,))]
)
def test_width_and_company_do_not_change_a_users_vectors(name, widths):
    """Narrower batches leave out groups; rows of padding beside it are nothing to a user."""
    graphdef, params = made(name)

    @jit
    def queries(params, batch):
        model = nnx.merge(graphdef, params)
        return model.queries(batch, model.catalogue({}))

    for width in widths:
        histories = [[], *make_events((1, width, width - 1)), []]
        got = queries(params, right_aligned(histories, width))
        assert got.shape == (5, K, CONFIGS[name].dim)
        assert np.isfinite(got).all()
        for row in (1, 2, 3):
            expected = slow_vectors(params, CONFIGS[name], histories[row])[0]
            np.testing.assert_allclose(got[row], expected, atol=1e-4)


def slow_groups(compress, newest, width):
    """Sizes of the groups with a place among the newest `width`, and all places from there on."""
    total, reached, start = sum(compress) + newest, [], 0
    for size in compress:
        if start + size > total - width:
            reached.append(size)
        start += size
    return reached, max(sum(reached) + newest if reached else width, width)


@pytest.mark.parametrize('compress', [(), (1,), (3, 2, 2), (2, 2, 3, 3, 2), (5, 4, 4, 4, 1, 1)])
@pytest.mark.parametrize('newest', [1, 4])
def test_groups_within(compress, newest):
    for width in range(1, sum(compress) + newest + 1):
        runs, missing = kuaiformer.groups_within(compress, newest, width)
        sizes, places = slow_groups(compress, newest, width)
        assert [size for size, count in runs for _ in range(count)] == sizes
        assert all(a[0] != b[0] for a, b in itertools.pairwise(runs))
        assert missing == places - width


@pytest.mark.parametrize(('width', 'groups'), [(11, 3), (8, 2)])
def test_short_histories_fill_the_newest_places_first(width, groups):
    """Then the newest group, and a group without any event is masked out."""
    graphdef, params = made('rope')
    lengths = np.arange(width + 1)
    real = np.arange(width) >= width - lengths[:, None]
    x = np.random.default_rng(0).normal(size=(width + 1, width, D)).astype(np.float32)
    compress = jit(lambda p, x, real: nnx.merge(graphdef, p).compress(x, real))
    tokens, present = compress(params, x, real)
    assert tokens.shape == (width + 1, groups + 4, D)
    assert np.isfinite(tokens).all()
    np.testing.assert_array_equal(tokens[:, groups:], x[:, -4:])
    for row, length in enumerate(lengths):
        newest = [place >= 4 - length for place in range(4)]
        reached = [length > 8, length > 6, length > 4][-groups:]
        assert present[row].tolist() == reached + newest


@pytest.mark.parametrize(
    ('length', 'cuts', 'interests'), [(1, 1, 1), (5, 1, 4), (5, 3, 2), (6, 6, 1), (4, 2, 3)]
)
def test_mask_and_places(length, cuts, interests):
    rng = np.random.default_rng(length)
    real = rng.random((6, length)) < 0.6
    real[0], real[1] = True, False
    mask, places = jit(kuaiformer.mask_and_places, static_argnums=(1, 2))(real, cuts, interests)
    mask, places = np.asarray(mask), np.asarray(places)
    total = length + cuts * interests
    assert mask.shape == (6, 1, total, total) and places.shape == (total,)
    ends = [length - (cuts - 1 - g) for g in range(cuts)]
    tokens = [(None, place) for place in range(length)]
    tokens += [(g, nth) for g in range(cuts) for nth in range(interests)]
    for i, (cut, nth) in enumerate(tokens):
        assert places[i] == (nth if cut is None else ends[cut] + nth)
        for row, (j, (other, place)) in itertools.product(range(6), enumerate(tokens)):
            if cut is None and other is None:  # padding sees padding, which no one reads
                sees = place <= nth and real[row, i] == real[row, j]
            elif other is None:
                sees = real[row, j] and place < ends[cut]
            else:
                sees = cut == other and place <= nth
            assert mask[row, 0, i, j] == sees, (row, tokens[i], tokens[j])
    assert mask.any(-1).all()  # no softmax over nothing


@pytest.mark.parametrize(
    ('name', 'equal'),
    [
        ('rope, all newest', (0, 1, 2)),
        ('learned, all newest', (2,)),
        ('rope', (2,)),
        ('learned', (2,)),
    ],
)
def test_a_cut_is_the_history_that_ends_there(name, equal):
    """Every cut where neither groups nor learned places shift; the last one anyway."""
    params = made(name)[1]
    histories = make_events((11, 6, 3))
    together = encoder(name, cuts=3)(right_aligned(histories, 11))
    for row, events in enumerate(histories):
        # with rotary places a history that reaches no group has nothing that shifts either
        for g in (0, 1, 2) if name == 'rope' and len(events) <= 4 else equal:
            ended = events[: len(events) - (2 - g)]
            expected = slow_vectors(params, CONFIGS[name], ended)[0]
            np.testing.assert_allclose(together[row, g], expected, atol=1e-4)


def make_cuts(rows=8, width=7, seed=0, cuts=2):
    """A batch as of `cuts.CutBatches`, the earlier targets in the last places of the row.

    Some targets repeat, two rows lack their first, the last row is padding.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(cuts, width + 1, rows)
    lengths[0] = width
    batch = right_aligned(make_events(lengths, seed), width)
    last = rng.integers(1, ITEMS + 1, (rows, 1))
    last[3] = batch['items'][3, -1]  # bought again: the target is in the history
    last[4] = last[5] = last[6]
    targets = np.concatenate([batch['items'][:, width - cuts + 1 :], last], axis=1)
    targets[1:3, 0] = 0
    for values in jax.tree.leaves((batch, targets)):
        values[-1] = 0
    shares = np.log(rng.uniform(0.01, 0.2, ITEMS + 1))
    return batch | {
        'targets': targets.astype(np.int32),
        'weights': (targets > 0).astype(np.float32),
        'log_share': np.where(targets > 0, shares[targets], 0).astype(np.float32),
    }


def with_negatives(batch, count=9, seed=3):
    drawn = np.random.default_rng(seed).integers(1, ITEMS + 1, count)
    return batch | {'sampled': drawn.astype(np.int32)}


def vectors_of(params, config, batch):
    """Slow vectors [B, G, K, D] of a batch."""
    rows = []
    for row in range(len(batch['items'])):
        here = np.flatnonzero(batch['segments'][row])
        columns = [x[row, here] for x in (batch['items'], *batch['features'].values())]
        events = list(zip(*columns, strict=True))
        rows.append(slow_vectors(params, config, events, batch['targets'].shape[1]))
    return np.array(rows)


def slow_loss(settings, vectors, table, batch, log_share):
    """Loss, accuracy and largest win, target by target and candidate by candidate.

    Args:
      settings: InBatch.
      vectors: [B, G, K, D].
      table: [rows, D].
      batch: items, targets, weights; sampled.
      log_share: [B, G] of the targets.
    """
    table = np.asarray(table, np.float64)
    places = list(zip(*np.nonzero(batch['targets']), strict=True))
    candidates = [(int(batch['targets'][at]), float(log_share[at])) for at in places]
    if settings.uniform:
        candidates += [(int(item), -math.log(ITEMS)) for item in batch['sampled']]
    losses, right, winners, weights = [], [], [], []
    for row, cut in places:

        def score(item, share, row=row, cut=cut):
            corrected = settings.logq != 'none'
            drawn = share + math.log(len(candidates)) if corrected else 0.0
            return max(float(v @ table[item]) for v in vectors[row, cut]) - drawn

        target = int(batch['targets'][row, cut])
        own = {target}
        if not settings.own_history:
            own |= {*batch['items'][row].tolist(), *batch['targets'][row].tolist()}
        positive = score(target, float(log_share[row, cut]))
        others = [score(item, share) for item, share in candidates if item not in own]
        right.append(positive > max(others))
        if settings.refined:  # whose own score is not corrected
            positive = max(float(v @ table[target]) for v in vectors[row, cut])
        loss = math.log(sum(math.exp(s) for s in [positive, *others])) - positive
        losses.append(loss * (1 - math.exp(-loss)) if settings.refined else loss)
        winners.append(int(np.argmax([v @ table[target] for v in vectors[row, cut]])))
        weights.append(batch['weights'][row, cut])
    mean = functools.partial(np.average, weights=weights)
    wins = max(mean([winner == k for winner in winners]) for k in range(K))
    return mean(losses), mean(right), wins


SETTINGS = {
    'counted': InBatch(),
    'own history': InBatch(own_history=True),
    'uniform': InBatch(uniform=9),
    'uncorrected': InBatch(logq='none', uniform=9, own_history=True),
    'refined': InBatch(refined=True, uniform=9),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_loss_of_cuts(name):
    settings = SETTINGS[name]
    config = make_small(features=FEATURES, in_batch=settings)
    graphdef, params = make(config)
    batch = make_cuts()
    params['table'] /= 3  # so that the corrections matter
    params['table'][batch['targets'][5, 1]] *= 3  # and some targets score highest
    batch['weights'] = batch['weights'] * np.linspace(0.5, 1.5, 8, dtype=np.float32)[:, None]
    if settings.uniform:
        batch = with_negatives(batch)
    loss = jit(lambda p, b: nnx.merge(graphdef, p).loss(b, {}, {}, jax.random.key(0)))
    value, (terms, carry) = loss(params, batch)
    assert carry == {}
    vectors = vectors_of(params, config, batch)
    expected = slow_loss(settings, vectors, params['table'], batch, batch['log_share'])
    got = (value, terms['accuracy'], terms['largest_win'])
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert 0 < expected[1] < 1 and 1 / K < expected[2] < 1  # something to be wrong about
    assert terms['in_batch'] == value


def test_a_rows_own_items_are_no_negatives():
    """Window or target: no vector of the row is pushed away from them, unless own_history."""
    rng = np.random.default_rng(0)
    vectors, table = rng.normal(size=(8, 2, K, D)), rng.normal(size=(ITEMS + 1, D))
    batch = make_cuts()
    bystander = (
        {*range(1, ITEMS + 1)} - {*batch['items'].ravel(), *batch['targets'].ravel()}
    ).pop()
    drawn = [batch['items'][0, 0], batch['targets'][0, 1], bystander]
    batch['sampled'] = np.array(drawn, np.int32)
    batch['weights'] = np.zeros_like(batch['weights'])
    batch['weights'][0, 0] = 1  # the first row's first cut alone
    target = batch['targets'][0, 0]
    candidates = {*batch['targets'].ravel(), *batch['sampled']} - {0}
    own = {*batch['items'][0], *batch['targets'][0]}
    for own_history in (False, True):
        settings = InBatch(uniform=3, own_history=own_history)
        of_table = functools.partial(in_batch.loss, settings, vectors)
        loss = lambda t, f=of_table: f(t, batch, {}, ITEMS)[0]  # noqa: E731
        grads = jit(jax.grad(loss))(jnp.asarray(table, jnp.float32))
        moved = {*np.flatnonzero(np.abs(grads).sum(1))}
        assert moved == (candidates if own_history else candidates - own | {target})
    assert len(candidates & own) > 2


def test_uniform_negatives_are_drawn_by_sample():
    graphdef, params = make(make_small(in_batch=InBatch(uniform=400)))
    batch = make_cuts()
    sample = jit(lambda p, b, key: nnx.merge(graphdef, p).sample(b, key))
    drawn = [np.asarray(sample(params, batch, jax.random.key(n))['sampled']) for n in (0, 0, 1)]
    assert drawn[0].shape == (400,) and set(drawn[0].tolist()) == {*range(1, ITEMS + 1)}
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    loss = jit(lambda p, b: nnx.merge(graphdef, p).loss(b, {}, {}, jax.random.key(0))[0])
    losses = [loss(params, batch | {'sampled': items}) for items in drawn]
    assert losses[0] == losses[1] != losses[2]
    graphdef, params = make(make_small())
    assert nnx.merge(graphdef, params).sample(batch, jax.random.key(0)) is batch


def test_overfits_one_batch():
    config = make_small(features=FEATURES)
    graphdef, params = make(config)
    batch = make_cuts()
    tx = optax.adam(1e-2)

    @jit
    def train(params):
        def step(carry, _):
            params, opt = carry
            loss = lambda p: nnx.merge(graphdef, p).loss(batch, {}, {}, jax.random.key(0))  # noqa: E731
            (value, (terms, _)), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, opt = tx.update(grads, opt)
            return (optax.apply_updates(params, updates), opt), (value, terms['accuracy'])

        return jax.lax.scan(step, (params, tx.init(params)), length=200)[1]

    values, accuracies = train(params)
    assert accuracies[0] < 0.5
    assert (accuracies[-20:] == 1).all()
    assert values[-1] < 0.2 * values[0]


BOTH = {'dropout': 0.3, 'embedding_dropout': 0.2}
COMMON = {'dim': D, 'max_len': 7, 'features': FEATURES, 'feature_dim': 3}
MODELS = {
    'kuaiformer': make_small(
        features=FEATURES, in_batch=InBatch(logq='streaming', uniform=9), **BOTH
    ),
    'kuaiformer-learned': make_small(
        positions='learned', in_batch=InBatch(own_history=True), **BOTH
    ),
    'comirec': comirec.Config(interests=K, in_batch=InBatch(uniform=9), **COMMON),
    'sasrec': sasrec.Config(
        loss='in_batch',
        blocks=1,
        table_dropout=0.2,
        in_batch=InBatch(logq='streaming', uniform=9),
        **COMMON,
        **BOTH,
    ),
}


def placed(batch):
    """On the mesh, the uniform negatives on every device."""
    replicated = jax.NamedSharding(jax.sharding.get_mesh(), P())
    drawn = {'sampled': batch['sampled']} if 'sampled' in batch else {}
    rest = {name: value for name, value in batch.items() if name != 'sampled'}
    return put_batch(rest) | jax.device_put(drawn, replicated)


@pytest.mark.parametrize('name', slow(MODELS, 'kuaiformer-learned', 'sasrec'))
def test_same_loss_gradients_and_carry_on_any_mesh(mesh, name):
    config = MODELS[name]
    graphdef, values = make(config)
    results = []
    for shape in ((1, 1), (4, 2)):
        mesh(*shape)
        specs = {key: P() for key in values} | {'table': TABLE}
        params = {
            key: jax.device_put(value, jax.NamedSharding(jax.sharding.get_mesh(), specs[key]))
            for key, value in values.items()
        }

        @jit
        def step(params, batch, key):
            def loss(params):
                model = nnx.merge(graphdef, params)
                return model.loss(batch, {}, model.carry(), key)

            return jax.value_and_grad(loss, has_aux=True)(params)

        batch = placed(with_negatives(make_cuts()))
        results.append(jax.device_get(step(params, batch, jax.random.key(5))))
        if shape == (1, 1):  # the dropout that the meshes have to agree on is there
            (other, _), _ = step(params, batch, jax.random.key(6))
            assert abs(other - results[0][0][0]) > 1e-3
    (_, (_, carry)), _ = results[0]
    assert bool(carry) == (config.in_batch.logq == 'streaming')
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)


def test_streaming_estimate_follows_the_algorithm_in_training(mesh):
    """Gaps, and the loss that they correct, step by step; restored into the same structure."""
    mesh(1, 1)
    rate, sizes = 0.1, {'item': ITEMS}
    config = make_small(in_batch=InBatch(logq='streaming', rate=rate, uniform=9))
    optimizer = make_optimizer(Optim(learning_rate=0.01), config, 10)
    graphdef, shapes = split_model(config, sizes)
    state = init_state(config, sizes, optimizer, 0)
    empty = abstract_state(graphdef, shapes, optimizer)
    assert jax.tree.structure(empty) == jax.tree.structure(state)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), empty, state)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), empty, state)
    assert set(state['carry']) == {'frequency'}
    step = train_step(graphdef, optimizer, 0)
    last, gap = np.zeros(ITEMS + 1), np.full(ITEMS + 1, 100.0)
    for number in range(1, 5):
        batch = make_cuts(seed=number)
        batch['log_share'][:] = 1  # counted by the data, not to be used
        params = jax.device_get(state['params'])
        key = jax.random.fold_in(jax.random.key(0), number - 1)  # of a step
        drawn = nnx.merge(graphdef, params).sample(batch, key)
        state, metrics = step(state, placed(batch))
        for item in set(batch['targets'].ravel().tolist()):
            gap[item] = (1 - rate) * gap[item] + rate * (number - last[item])
            last[item] = number
        frequency = state['carry']['frequency']
        np.testing.assert_allclose(frequency['gap'], gap, rtol=1e-5)
        np.testing.assert_array_equal(frequency['last'], last)
        assert frequency['step'] == number
        share = -np.log(gap[batch['targets']]) - math.log((batch['targets'] > 0).sum())
        vectors = vectors_of(params, config, batch)
        expected = slow_loss(config.in_batch, vectors, params['table'], drawn, share)[0]
        np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-4)
    assert state['step'] == 4


def test_no_carry_without_an_estimate():
    streaming = InBatch(logq='streaming')
    for config, names in (
        (make_config(in_batch=streaming), {'frequency'}),
        (make_config(), set()),
        (make_config(in_batch=InBatch(logq='none')), set()),
        (sasrec.Config(in_batch=streaming), set()),  # whose loss is another one
    ):
        graphdef, params = make(config)
        assert set(nnx.merge(graphdef, params).carry()) == names


def test_bf16_stays_close():
    config = make_small(features=FEATURES, bf16=True)
    graphdef, params = make(config)
    batch = make_cuts()
    loss = jit(lambda p, b: nnx.merge(graphdef, p).loss(b, {}, {}, jax.random.key(0))[0])
    value = loss(params, batch)
    vectors = vectors_of(params, config, batch)
    expected = slow_loss(config.in_batch, vectors, params['table'], batch, batch['log_share'])[0]
    assert value.dtype == jnp.float32
    assert 1e-5 < abs(value / expected - 1) < 0.03


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'newest': 5}, r'newest=5 must add up to model.max_len=11, not 12'),
        ({'max_len': 12}, r'compress=\(3, 2, 2\) and model.newest=4 must add up to .*=12, not 11'),
        ({'newest': 0, 'max_len': 7}, 'model.newest=0 must be at least 1'),
        ({'compress': (7, 0)}, 'must be at least 1 each'),
        ({'heads': 3}, 'model.dim=8 must be a multiple of model.heads=3'),
        ({'heads': 8}, "with model.positions='rope' of twice that"),
        ({'positions': 'sine'}, "model.positions='sine' is not one of rope, learned"),
        ({'init': 'zeros'}, "model.init='zeros' is not one of xavier_uniform"),
        ({'blocks': 0}, 'model.blocks=0 must be at least 1'),
        ({'interests': 0}, 'model.interests=0 must be at least 1'),
        ({'compress_ffn': 0}, 'model.compress_ffn=0 must be at least 1'),
        ({'feature_dim': 0}, 'model.feature_dim=0 must be at least 1'),
        ({'dropout': 1.0}, r'model.dropout=1.0 is not in \[0, 1\)'),
        ({'embedding_dropout': -0.1}, r'model.embedding_dropout=-0.1 is not in \[0, 1\)'),
        ({'features': (Feature('a'), Feature('a'))}, "feature 'a' is given twice"),
        ({'in_batch': InBatch(logq='both')}, "in_batch.logq='both' is not one of counted"),
        ({'in_batch': InBatch(smoothing=1.0)}, r'in_batch.smoothing=1.0 is not in \[0, 1\)'),
        ({'in_batch': InBatch(uniform=-1)}, 'in_batch.uniform=-1 must be at least 0'),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(UserError, match=message):
        check(experiment(make_config(**options)))


def experiment(config, **task):
    task = next_item.Config(**({'windows': 'cuts', 'cuts': 4} | task))
    return Experiment(model=config, task=task, data=Data(dataset='synthetic'))


def test_windows_that_a_model_does_not_train_on_are_refused():
    check(experiment(make_config()))
    check(experiment(MODELS['sasrec'], cuts=7))
    check(experiment(sasrec.Config(), windows='last'))
    wants_cuts = "this model trains on task.windows='cuts', not"
    for config, task, message in (
        (make_config(), {'windows': 'last'}, f"{wants_cuts} 'last'"),
        (make_config(), {'cuts': 5}, 'task.cuts=5 is more than the 4 newest events'),
        (MODELS['sasrec'], {'cuts': 8}, 'task.cuts=8 is more than the 7 newest events'),
        (MODELS['sasrec'], {'windows': 'all'}, f"{wants_cuts} 'all'"),
        (sasrec.Config(), {}, "trains on task.windows='last' or 'all', not 'cuts'"),
    ):
        with pytest.raises(UserError, match=message):
            check(experiment(config, **task))
