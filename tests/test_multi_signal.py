"""Kuaishou's framework, as we read it: rewards, the bank, and its terms against float64 loops."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax import nnx
from models import jit
from test_cl4srec import (
    ITEMS,
    QUIET,
    D,
    experiment,
    histories,
    loss_of,
    places,
    slow_hidden,
    slow_newest,
    start,
    wide,
)

from jaxrec import rng
from jaxrec.config import Rewards, Signal
from jaxrec.data.rewards import Rewarder
from jaxrec.devices.mesh import put_batch
from jaxrec.errors import UserError
from jaxrec.experiment import applied, check
from jaxrec.losses import bce
from jaxrec.nn.dropout import dropout
from jaxrec.objectives import bank as bank_lib
from jaxrec.objectives import multi_signal
from jaxrec.objectives.multi_signal import MultiSignal, user_user
from jaxrec.tasks.next_item import NextItem
from jaxrec.training.state import Program

RNG = np.random.default_rng(0)
N, K = 6, 9
SIGNALS = (
    Signal('like', weight=2.0),
    Signal('view', weight=1.0),
    Signal('watch', weight=3.0, kind='percentile', within='duration', buckets=3),
    Signal('hate', weight=0.5, negative=True),
)
FRAMEWORK = MultiSignal(
    rewards=Rewards(SIGNALS, liked=0.5, disliked=0.1), user_item=0.1, feedback=0.2, bank=20
)
STILL = {f'model.{name}': value for name, value in QUIET.items()}
WORTH = 'weights', 'rewards'


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log():
    """`histories` with signals on events; durations belong to items, a few are missing."""
    made, rng = histories(), np.random.default_rng(3)
    n = len(made.items)
    made.features = {
        'like': (rng.random(n) < 0.3).astype(np.float32),
        'view': (rng.random(n) < 0.6).astype(np.float32),
        'watch': rng.integers(0, 50, n).astype(np.float32),
        'hate': (rng.random(n) < 0.1).astype(np.float32),
    }
    made.features['like'][:5] = np.nan
    duration = rng.uniform(1, 9, ITEMS).astype(np.float32)
    duration[0] = np.nan
    made.item_features = {'duration': duration}
    return made


def slow_place(value, bucket):
    """Share of the other values below, ties for half, of one that is among them."""
    below = sum(x < value for x in bucket) + (sum(x == value for x in bucket) - 1) / 2
    return below / (len(bucket) - 1)


def test_rewards_are_sums_over_signals():
    made = log()
    ends = made.offsets[1:] - 2
    train = np.concatenate([np.arange(a, b) for a, b in zip(made.offsets, ends, strict=False)])
    rewarder = Rewarder(made, FRAMEWORK.rewards, ends)
    f, duration = made.features, made.item_features['duration'][made.items - 1]
    known = duration[train][~np.isnan(duration[train])]
    edges = np.quantile(known, [1 / 3, 2 / 3])
    bucket = np.where(np.isnan(duration), 3, np.searchsorted(edges, duration, side='right'))
    expected, signs = [], []
    for i in train:
        watch = slow_place(f['watch'][i], f['watch'][train[bucket[train] == bucket[i]]])
        parts = [(2, f['like'][i]), (1, f['view'][i]), (3, watch)]
        parts = [(w, g) for w, g in parts if not np.isnan(g)]
        reward = sum(w * g for w, g in parts) / sum(w for w, _ in parts) - 0.5 * f['hate'][i]
        reward = min(max(reward, 0), 1)
        expected.append(reward)
        signs.append(-1 if f['hate'][i] or np.float32(reward) <= np.float32(0.1) else reward >= 0.5)
    np.testing.assert_allclose(rewarder(train), expected, rtol=1e-6)
    np.testing.assert_array_equal(rewarder.feedback(train), np.array(signs, int))
    everything = rewarder(np.arange(len(made.items)))  # of events that no bucket has seen too
    assert everything.min() >= 0 and everything.max() <= 1
    for order in itertools.permutations(SIGNALS):
        other = Rewarder(made, Rewards(order), ends)(train)
        np.testing.assert_allclose(other, expected, rtol=1e-6)


def test_a_reward_is_one_only_if_all_signals_are():
    made = log()
    made.features = {name: np.zeros(len(made.items), np.float32) for name in 'abc'}
    for event, values in enumerate(itertools.product((0, 1), repeat=3)):
        for name, value in zip('abc', values, strict=True):
            made.features[name][event] = value
    made.features['c'][8] = made.features['b'][8] = made.features['a'][8] = np.nan
    signals = tuple(
        Signal(name, weight) for name, weight in zip('abc', (0.2, 0.3, 0.7), strict=True)
    )
    found = Rewarder(made, Rewards(signals), made.offsets[1:])(np.arange(9))
    assert (found == 1).tolist() == [False] * 7 + [True, True]  # of the last nothing is known
    np.testing.assert_allclose(found[[1, 2, 4]].sum(), 1, rtol=1e-6)


def test_the_bank_is_first_in_first_out():
    """Sizes that do not divide, padding anywhere, and more at once than it holds."""
    bank, slow = bank_lib.start_bank(7, 2), []
    push = jax.jit(bank_lib.push)
    for size in (3, 5, 4, 12):
        items = RNG.integers(0, 4, size)
        vectors = RNG.normal(size=(size, 2)).astype(np.float32)
        bank = push(
            bank, jnp.asarray(vectors), jnp.asarray(items, jnp.int32), jnp.asarray(items * 0.5)
        )
        slow = (slow + [(i, v) for i, v in zip(items, vectors, strict=True) if i])[-7:]
        filled = np.asarray(bank['items'])[7 - len(slow) :]
        assert filled.tolist() == [i for i, _ in slow]
        assert not np.asarray(bank['items'])[: 7 - len(slow)].any()
        np.testing.assert_array_equal(
            np.asarray(bank['vectors'])[7 - len(slow) :], [v for _, v in slow]
        )
        np.testing.assert_allclose(np.asarray(bank['log_q'])[7 - len(slow) :], 0.5 * filled)


def users_and_items(count=N):
    return (jnp.asarray(unit(RNG.normal(size=(count, 5)))) for _ in 'ui')


def filled(vectors, items):
    return {
        'vectors': jnp.asarray(vectors),
        'items': jnp.asarray(items),
        'log_q': jnp.zeros(len(items)),
    }


def test_user_item_term():
    """Each user by hand: same items are no negatives, empty places neither, a mean over views."""
    u, v = users_and_items()
    views = jnp.stack([v, jnp.asarray(unit(RNG.normal(size=v.shape)))])
    numbers, banked = np.array([3, 5, 3, 0, 8, 9]), np.array([0, 0, 5, 7, 3, 11, 9, 2, 5])
    bank = filled(unit(RNG.normal(size=(K, 5))), banked)
    expected = []
    for n in range(N):
        rest = [u[n] @ v[j] for j in range(N) if numbers[j] and numbers[j] != numbers[n]]
        rest += [
            u[n] @ bank['vectors'][m] for m in range(K) if banked[m] and banked[m] != numbers[n]
        ]
        rest = np.exp(np.array(rest) / 0.1).sum()
        positives = [float(np.exp(u[n] @ view[n] / 0.1)) for view in views]
        expected.append(np.mean([-np.log(p / (p + rest)) for p in positives]))
    term = functools.partial(multi_signal.user_item, settings=MultiSignal())
    found = term(u, views, v, jnp.asarray(numbers), bank)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # stored vectors are values; those of the batch learn
    grads = jax.grad(
        lambda v, b: term(u, views, v, jnp.asarray(numbers), {**bank, 'vectors': b}).sum(), (0, 1)
    )
    of_batch, of_bank = grads(v, bank['vectors'])
    assert not of_bank.any() and np.asarray(of_batch)[0].any()
    # an empty bank is InfoNCE within the batch
    empty = bank_lib.start_bank(K, 5)
    alone = term(u, views, v, jnp.asarray(numbers), empty)
    without = term(u, views, v, jnp.asarray(numbers), None)
    np.testing.assert_allclose(alone, without, rtol=1e-6)


def test_without_a_bank_it_is_plain_info_nce():
    u, v = users_and_items()
    numbers, settings = jnp.arange(1, N + 1), MultiSignal()
    found = multi_signal.user_item(u, v[None], v, numbers, None, settings)
    scores = np.asarray(u, np.float64) @ np.asarray(v, np.float64).T / 0.1
    own = np.diag(scores)
    np.testing.assert_allclose(found, np.log(np.exp(scores).sum(1)) - own, rtol=1e-5)
    # a bank that repeats the batch: -s0 + log(2 sum e^s - e^s0)
    again = multi_signal.user_item(u, v[None], v, numbers, filled(v, numbers), settings)
    expected = -own + np.log(2 * np.exp(scores).sum(1) - np.exp(own))
    np.testing.assert_allclose(again, expected, rtol=1e-5)
    # nobody else: nothing to tell apart
    alone = multi_signal.user_item(u, v[None], v, numbers * (numbers == 2), None, settings)
    assert alone[1] == 0


def test_feedback_term():
    """Of rows with two users each, whom padding parts."""
    u, _ = users_and_items()
    shape = N, 3
    events = unit(RNG.normal(size=(*shape, 5)))
    views = np.stack([events, unit(RNG.normal(size=events.shape))])
    items = RNG.integers(1, 9, shape)
    signs = np.array([[1, 1, -1], [1, 0, 0], [-1, -1, -1], [0, 0, 0], [1, -1, 1], [1, 1, 1]])
    banked = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])
    bank = filled(unit(RNG.normal(size=(K, 5))), banked)

    def packed(x):
        """[N / 2, 8, ..]: a place of padding before each of both."""
        pads = [(0, 0), (0, 0), (1, 0), *[(0, 0)] * (x.ndim - 2)]
        x = np.pad(x.reshape(N // 2, 2, 3, *x.shape[2:]), pads)
        return jnp.asarray(x.reshape(N // 2, 8, *x.shape[3:]))

    rows = {'items': packed(items), 'feedback': packed(signs)}
    rows['segments'] = packed(np.ones(shape, int) * ([[1], [2]] * (N // 2)))
    given = u, jnp.stack([packed(one) for one in views]), packed(events)
    term = functools.partial(multi_signal.feedback, settings=MultiSignal())
    values, weights = term(*given, rows, bank)
    assert not weights[rows['feedback'] <= 0].any()
    per_user = np.asarray(values * weights).reshape(N, 4).sum(1)
    for n in range(N):
        liked = [w for w in range(3) if signs[n, w] > 0]
        assert weights.reshape(N, 4)[n].sum() == float(bool(liked))
        rest = [u[n] @ events[n, w] for w in range(3) if signs[n, w] < 0]
        rest += [u[n] @ bank['vectors'][m] for m in range(1, K) if banked[m] not in items[n]]
        rest = np.exp(np.array(rest) / 0.1).sum()
        each = [
            -np.log(p / (p + rest))
            for w in liked
            for p in (float(np.exp(u[n] @ view[n, w] / 0.1)) for view in views)
        ]
        np.testing.assert_allclose(per_user[n], np.mean(each) if liked else 0, rtol=1e-5, atol=1e-6)
    # without signals every event was liked
    every = term(*given, {**rows, 'feedback': jnp.ones_like(rows['items'])}, bank)
    alike = term(*given, {n: x for n, x in rows.items() if n != 'feedback'}, bank)
    jax.tree.map(np.testing.assert_array_equal, alike, every)
    # who disliked nothing: no gradient at all through negatives, and without a bank nothing to lose
    none = {**rows, 'feedback': jnp.maximum(rows['feedback'], 0)}

    def total(events, bank):
        return jnp.multiply(*term(u, given[1], events, none, bank)).sum()

    value, grads = jax.value_and_grad(total)(given[2], None)
    assert value == 0 and not grads.any()
    grads = jax.grad(lambda b: total(given[2], {**bank, 'vectors': b}))(bank['vectors'])
    assert not grads.any()


def test_rewards_as_labels():
    s, y = RNG.normal(size=(2, 5)), RNG.random(5)
    none = jnp.zeros((5, 0))
    sigmoid = 1 / (1 + np.exp(-s[0]))
    expected = -y * np.log(sigmoid) - (1 - y) * np.log(1 - sigmoid)
    np.testing.assert_allclose(bce(jnp.asarray(s[0]), none, jnp.asarray(y)), expected, rtol=1e-5)
    np.testing.assert_array_equal(bce(s[0], none, jnp.ones(5)), bce(s[0], none))


def system(framework=None, contrast=(), data=None, **changes):
    """(experiment, problem) of SASRec with the framework."""
    exp = applied(experiment(), {'model.contrast': contrast, **changes})
    exp.model.multi_signal = framework or MultiSignal()
    check(exp)
    return exp, NextItem(exp, data or log(), {'data_hash': '', 'path': ''})


@pytest.mark.parametrize('windows', ['last', 'cuts'])
def test_batches_bring_rewards(windows):
    changes = (
        {}
        if windows == 'last'
        else {'task.windows': 'cuts', 'task.cuts': 2, 'model.loss': 'in_batch'}
    )
    exp, problem = system(FRAMEWORK, **changes)
    batch, made = problem.batches()(0), problem.source
    rewarder = Rewarder(made, exp.model.multi_signal.rewards, problem.split.train_ends)
    of_item = {}  # rewards by (user, item after, item): enough to find each event again
    for user in range(made.num_users):
        for i in range(made.offsets[user], made.offsets[user + 1]):
            of_item.setdefault(int(made.items[i]), []).append(
                (rewarder(np.array([i]))[0], rewarder.feedback(np.array([i]))[0])
            )
    real = batch['targets'] > 0
    assert batch['rewards'].dtype == np.float32 and not batch['rewards'][~real].any()
    assert not batch['feedback'][batch['items'] == 0].any()
    for item, reward in zip(batch['targets'][real], batch['rewards'][real], strict=True):
        assert reward in [r for r, _ in of_item[int(item)]]
    events = batch['items'] > 0
    for item, sign in zip(batch['items'][events], batch['feedback'][events], strict=True):
        assert sign in [s for _, s in of_item[int(item)]]
    if windows == 'last':  # a target is the next place's item
        inside = (batch['segments'][:, :-1] == batch['segments'][:, 1:]) & real[:, :-1]
        liked = (batch['rewards'][:, :-1] >= 0.5) & (batch['feedback'][:, 1:] != -1)
        np.testing.assert_array_equal(batch['feedback'][:, 1:][inside] == 1, liked[inside])
    count = (batch['users'] > 0).sum()
    assert not batch['user_rewards'][count:].any() and batch['user_rewards'][:count].any()


@pytest.mark.parametrize(
    ('main', 'loss'), [('weight', 'bce'), ('weight', 'softmax'), ('label', 'bce')]
)
def test_rewards_in_the_main_loss(main, loss):
    """Weights beside those of the batch, or labels in place of 1: event by event."""
    framework = MultiSignal(rewards=FRAMEWORK.rewards, main=main)
    exp, problem = system(framework, **STILL, **{'model.loss': loss})
    batch, (graphdef, params), key = problem.batches()(0), start(exp), jax.random.key(0)
    batch['weights'] = batch['weights'] * RNG.uniform(0.2, 1, batch['weights'].shape)

    @jit
    def found(params):
        model = nnx.merge(graphdef, params)
        given = model.sample(batch, key)
        return model.loss(given, {}, {}, key)[0], given.get('sampled')

    value, sampled = found(params)
    params, total, weights = wide(params), 0.0, 0.0
    hidden = slow_hidden(params, batch)
    rewards = batch['rewards'][batch['targets'] > 0]
    assert len(rewards) > 30 and rewards.std() > 0.1
    for at in zip(*np.nonzero(batch['targets']), strict=True):
        scores = hidden[at] @ params['table'].T
        own, weight, reward = scores[batch['targets'][at]], *(batch[n][at] for n in WORTH)
        if loss == 'softmax':
            each = np.log(np.exp(scores[1 : ITEMS + 1]).sum()) - own
        else:
            p, label = 1 / (1 + np.exp(-own)), reward if main == 'label' else 1
            each = -label * np.log(p) - (1 - label) * np.log(1 - p)
            each -= np.log(1 - 1 / (1 + np.exp(-scores[sampled[at]]))).sum()
        weight = weight * reward if main == 'weight' else weight
        total, weights = total + weight * each, weights + weight
    np.testing.assert_allclose(value, total / weights, rtol=1e-5)


def test_terms_of_a_model():
    """Three steps by hand: projections, each user's own next item and what that was worth, views,
    and a bank of the steps before, not of this one."""
    framework = dataclasses.replace(FRAMEWORK, view_dropout=0.3)
    exp, problem = system(framework, **STILL)
    batches, (graphdef, params) = problem.batches(), start(exp)
    carry, held = nnx.merge(graphdef, params).carry(), []

    @jit
    def step(params, batch, carry, key):
        """The terms, the carry, and what dropout makes of ones."""
        made = loss_of(graphdef, params, batch, carry, key)[1]
        keys = rng.keys(jax.random.fold_in(key, 0), 'user_item', 'feedback')
        shapes = {'user_item': (len(batch['users']), D), 'feedback': (*batch['items'].shape, D)}
        return *made, {
            name: jnp.stack([dropout(jnp.ones(shape), 0.3, one) for one in pair])
            for name, shape in shapes.items()
            for pair in [jax.random.split(keys[name])]
        }

    def loss_beside(user, views, others):
        rest = sum(np.exp(user @ x / 0.1) for x in others)
        each = [np.exp(user @ view / 0.1) for view in views]
        return np.mean([-np.log(p / (p + rest)) for p in each])

    for number in range(3):
        batch = batches(number)
        terms, carry, kept = jax.device_get(step(params, batch, carry, jax.random.key(number)))
        own = wide(params)

        def project(x, name, own=own):
            inner, outer = own['projections'][name].values()
            return unit(np.maximum(x @ inner, 0) @ outer)

        users, segments = project(slow_newest(own, batch), 'user'), places(batch)
        targets = [batch['targets'][row, at[-1]] for row, at in segments]
        worth = np.array([batch['rewards'][row, at[-1]] for row, at in segments])
        items = project(own['table'][targets], 'item')
        assert len(set(targets)) < len(targets) and worth.std() > 0.1
        user_item, feedback = [], []
        for n, (row, at) in enumerate(segments):
            drawn = [x for i, x in [*zip(targets, items, strict=True), *held] if i != targets[n]]
            views = project(own['table'][targets[n]] * kept['user_item'][:, n], 'item')
            user_item.append(loss_beside(users[n], views, drawn))
            events, signs = own['table'][batch['items'][row, at]], batch['feedback'][row, at]
            others, ones = [*project(events[signs < 0], 'item')], kept['feedback'][:, row, at]
            others += [x for i, x in held if i not in batch['items'][row, at]]
            each = [
                loss_beside(users[n], project(events[e] * ones[:, e], 'item'), others)
                for e in np.flatnonzero(signs > 0)
            ]
            feedback += [np.mean(each)] if each else []
        np.testing.assert_allclose(terms['user_item'], user_item @ worth / worth.sum(), rtol=1e-4)
        np.testing.assert_allclose(terms['feedback'], np.mean(feedback), rtol=1e-4)
        held = [*held, *zip(targets, items, strict=True)][-20:]
        bank = carry['multi_signal']['bank']
        assert bank['items'][20 - len(held) :].tolist() == [i for i, _ in held]
        np.testing.assert_allclose(
            bank['vectors'][20 - len(held) :], [x for _, x in held], rtol=1e-4, atol=1e-5
        )
        params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(7 * x + 1), params)  # as after a step


def test_the_loss_is_the_weighted_main_loss_plus_the_terms():
    """And the user-user term is one of `contrast`; without terms a reward of 1 changes no bit."""
    exp, problem = system(FRAMEWORK, (user_user(0.3, reorder=0.0, sample=0.0),))
    batch, (graphdef, params) = problem.batches()(0), start(exp)
    step = jit(functools.partial(loss_of, graphdef))
    carry = nnx.merge(graphdef, params).carry()
    value, (terms, carry) = step(params, batch, carry, jax.random.key(1))
    assert terms['user_item'] > 0.1 and terms['feedback'] > 0.01 and terms['contrast'] > 0.1
    total = terms['bce'] + 0.1 * terms['user_item'] + 0.2 * terms['feedback']
    np.testing.assert_allclose(value, total + 0.3 * terms['contrast'], rtol=1e-5)
    held = np.asarray(carry['multi_signal']['bank']['items'])
    targets = batch['user_targets'][batch['user_targets'] > 0]
    np.testing.assert_array_equal(held[held > 0], targets[-20:])
    plain, problem = system()
    (graphdef, params), same = start(plain), []
    bare = problem.batches()(0)
    for given in (bare, {**bare, 'rewards': bare['weights']}):
        step = jit(jax.value_and_grad(functools.partial(loss_of, graphdef), has_aux=True))
        same.append(step(params, given, {}, jax.random.key(1)))
    jax.tree.map(np.testing.assert_array_equal, *same)


def test_weights_of_zero_are_the_model_itself():
    results = []
    for framework in (MultiSignal(bank=20), None):
        exp, problem = system(framework)
        batch, (graphdef, params) = problem.batches()(0), start(exp)
        step = jit(functools.partial(loss_of, graphdef))
        results.append((batch, params, step(params, batch, {}, jax.random.key(0))))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_the_same_on_any_mesh(mesh):
    """Negatives and bank are of the whole batch, over all devices; two steps, the bank between."""
    results = []
    for shape in ((1, 1), (2, 2)):
        mesh(*shape)
        exp, problem = system(dataclasses.replace(FRAMEWORK, views=1))
        program, batches = Program(exp, problem, 10), problem.batches()
        state, found = program.init(), []
        step = jit(jax.value_and_grad(functools.partial(loss_of, program.graphdef), has_aux=True))
        carry = state['carry']
        for number in range(2):
            batch = put_batch(batches(number))
            (value, (terms, carry)), grads = step(
                state['params'], batch, carry, jax.random.key(number)
            )
            found.append(jax.device_get((value, terms, carry, grads)))
        results.append(found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5), *results)


@pytest.mark.parametrize(
    ('rewards', 'match'),
    [
        (Rewards((Signal('applause'),)), "no column 'applause' for a signal; it has hate, like"),
        (Rewards((Signal('watch', kind='percentile', within='size'),)), "no column 'size'"),
        (Rewards((Signal('nothing'),)), "'nothing' has no value in the training events"),
    ],
    ids=lambda x: x if isinstance(x, str) else '',
)
def test_signals_that_the_log_lacks(rewards, match):
    """One line, before anything is compiled."""
    made = log()
    made.features['nothing'] = np.full(len(made.items), np.nan, np.float32)
    with pytest.raises(UserError, match=match):
        system(MultiSignal(rewards=rewards), data=made)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'rewards': Rewards((Signal('like', weight=-1.0),))}, 'weight'),
        ({'rewards': Rewards((Signal('like', weight=0.0),))}, 'needs a weight above 0'),
        ({'rewards': Rewards((Signal('hate', negative=True),))}, 'needs a weight above 0'),
        ({'rewards': Rewards((Signal('a'), Signal('a')))}, 'twice'),
        (
            {'rewards': Rewards((Signal('a'), Signal('b', kind='percentile', negative=True)))},
            'binary',
        ),
        ({'rewards': Rewards((Signal('a', within='b'),))}, 'percentile'),
        ({'rewards': Rewards(liked=0.2, disliked=0.3)}, 'disliked must be below'),
        ({'main': 'both'}, 'main'),
        ({'user_item': -0.1}, 'user_item'),
        ({'temperature': 0.0}, 'temperature'),
    ],
    ids=str,
)
def test_settings_that_cannot_be(changes, match):
    exp = experiment()
    exp.model.multi_signal = MultiSignal(**changes)
    with pytest.raises(UserError, match=match):
        check(exp)


def test_labels_are_for_bce():
    exp = experiment(loss='softmax')
    exp.model.multi_signal = MultiSignal(main='label')
    with pytest.raises(UserError, match="for model.loss='bce'"):
        check(exp)


@pytest.mark.slow
def test_a_log_without_signals_trains(tmp_path):
    """Every reward is 1: through the command, stopped and gone on with, the bank in between."""
    changes = {'model.loss': 'bce', 'train.steps': 6, 'train.log_every': 3, 'optim.ema': 0.0}
    exp = runs.small(tmp_path, **changes, **{'train.eval_every': 10.0, 'model.blocks': 0})
    exp.model.multi_signal = MultiSignal(user_item=0.1, feedback=0.1, bank=50, views=1)
    file, logs = runs.write(tmp_path / 'config.py', exp), []
    for name, words in (('run', ('--config.train.steps=3',)), ('run', ()), ('whole', ())):
        done = runs.inside('train', f'--config={file}', f'--workdir={tmp_path / name}', *words)
        assert done.returncode == 0, done.stderr
    for name in ('run', 'whole'):
        lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    kept = [
        {k: v for one in log if one['step'] == 6 for k, v in one.items() if 'second' not in k}
        for log in logs
    ]
    assert kept[0] == kept[1] and {'user_item', 'feedback'} <= kept[0].keys()
