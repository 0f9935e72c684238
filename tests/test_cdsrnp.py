"""CDSRNP: its neural process, reductions to SASRec, and what support users lend to whom."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit, made, make, softmax
from test_domains import log

from jaxrec import losses, rng
from jaxrec.config import Data, Train
from jaxrec.data import domains
from jaxrec.devices.mesh import put_batch, put_whole
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, check
from jaxrec.models import cdsrnp, sasrec
from jaxrec.nn.embeddings import lookup
from jaxrec.tasks import next_item

ITEMS, LENGTH, DIM = 50, 8, 6
ROWS = 8
SMALL = {
    'dim': DIM,
    'max_len': LENGTH,
    'latent': 4,
    'support': 5,
    'served': 7,
    'dropout': 0.0,
}


def problem_of(histories, support_seed=0, **model):
    experiment = Experiment(
        model=cdsrnp.Config(**{**SMALL, **model}),
        task=next_item.Config(in_domain=True, cutoffs=(1, 10), support_seed=support_seed),
        data=Data(),
        train=Train(batch_rows=ROWS),
    )
    check(experiment)
    return next_item.NextItem(experiment, histories, {'data_hash': '', 'path': ''})


def built():
    """(constants, parameters, batch of training rows)."""
    problem = problem_of(log())
    batch = jax.tree.map(jnp.asarray, problem.batches()(0))
    constants = jax.tree.map(jnp.asarray, problem.constants)
    _, params = make(cdsrnp.Config(**SMALL), ITEMS)
    return constants, jax.tree.map(jnp.asarray, params), batch


def closed(params):
    """Parameters whose gates are shut: a sigmoid of exactly 0."""
    gates = jax.tree.map(jnp.zeros_like, params['gates'])
    for gate in gates.values():
        gate['bias'] = gate['bias'] - 1e4
    return {**params, 'gates': gates}


def rows_of(items, users=None):
    """Histories [ROWS, LENGTH] of users that are in no support, unless said."""
    items = np.asarray(items, np.int32)
    items = np.concatenate([items, np.ones((ROWS - len(items), LENGTH), np.int32)])
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), items.shape)
    named = np.full(ROWS, 999, np.int32)
    named[: len(users or ())] = users or ()
    found = {'items': items, 'segments': (items > 0).astype(np.int32), 'positions': places}
    return jax.tree.map(jnp.asarray, {**found, 'users': named})


@functools.cache
def program(verb, **model):
    """A function of a model, compiled once for all tests."""
    graphdef, _ = make(cdsrnp.Config(**{**SMALL, **model}), ITEMS)
    return jit(lambda params, *args: verb(nnx.merge(graphdef, params), *args))


def lists(*args):
    """Scores [B, rows] after histories, and what they came of."""
    return program(_lists)(*args)


def _lists(model, constants, batch):
    catalogue = model.catalogue(constants)
    queries = model.queries(batch, catalogue)[:, 0]
    read = model._read(batch, batch['users'][:, None], catalogue)
    support = model._support(constants, jnp.arange(SMALL['served']))
    z, _ = model.process.distribution(*model._summed(support, support['weights']))
    return {
        'queries': queries,
        'scores': queries @ catalogue['items'].T,
        'read': read,
        'support': catalogue['support'],
        'lent': model._borrowed(read, catalogue['support']),
        'all': model._vectors(read, catalogue['support'], catalogue['film']),
        'z': z,
    }


@functools.cache
def learning():
    graphdef, _ = make(cdsrnp.Config(**SMALL), ITEMS)

    def loss(params, constants, batch, steps):
        model = nnx.merge(graphdef, params)
        return model.loss(batch, constants, {'steps': steps}, jax.random.key(0))

    return jit(jax.value_and_grad(loss, has_aux=True))


def learnt(*args):
    """((loss, (terms, carry)), gradient)."""
    return learning()(*args)


# ---- the neural process


def gaussian(seed, width=4):
    return tuple(np.random.default_rng(seed).normal(size=(2, width)))


def test_divergence():
    """Check 2.4.1: against the formula of two Gaussians one by one; never below 0; 0 at itself."""
    q, p = gaussian(0), gaussian(1)
    want = 0
    for m, v, a, b in zip(*q, *p, strict=True):
        want += np.log(np.exp(b / 2) / np.exp(v / 2))
        want += (np.exp(v) + (m - a) ** 2) / (2 * np.exp(b)) - 0.5
    np.testing.assert_allclose(losses.gaussian_kl(q, p), want / 4, rtol=1e-5)
    found = [losses.gaussian_kl(gaussian(n), gaussian(n + 50)) for n in range(50)]
    assert min(found) > 0
    assert float(losses.gaussian_kl(q, q)) == 0


def _summed(model, constants, chosen, weights):
    support = model._support(constants, chosen)
    return model._summed(support, support['weights'] * weights)


def _inferred(model, total, count):
    return model.process.distribution(total, count)


def test_no_query_or_the_support_itself_leaves_the_prior():
    """Check 2.4.1: KL is exactly 0 there; the order of the support is nothing."""
    constants, params, _ = built()

    summed = functools.partial(program(_summed), params, constants)
    inferred = functools.partial(program(_inferred), params)
    first = jnp.arange(5)
    total, count = summed(first, 1.0)
    prior = inferred(total, count)
    for others in (summed(first, 0.0), (total, count)):
        posterior = inferred(total + others[0], count + others[1])
        assert float(losses.gaussian_kl(posterior, prior)) == 0
    turned = inferred(*summed(jnp.array([3, 0, 4, 1, 2]), 1.0))
    for a, b in zip(prior, turned, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    more = summed(first + 5, 1.0)
    posterior = inferred(total + more[0], count + more[1])
    assert float(losses.gaussian_kl(posterior, prior)) > 0


def _step_parts(model, constants, batch, chosen):
    """States of support users, and of every place of a batch, with the vectors of targets."""
    given = {'table': model.table[...], 'domains': constants['domains']}
    query = model._read(batch, batch['users'], given)
    query['target'] = lookup(given['table'], batch['targets'])
    return model._support(constants, chosen), query


def apart(params):
    """Parameters by which prior and posterior differ by more than rounding."""
    process = params['process']
    outer = jax.tree.map(lambda x: 4 * x, process['outer'])
    return {**params, 'process': {**process, 'outer': outer}}


def step_of(constants, params, batch):
    """(prior, posterior, support, query) of a step with the key 0; Gaussians by loops.

    The prior is of the drawn support, the posterior of it and of every user's newest target.
    """
    key = rng.keys(jax.random.key(0), *cdsrnp._STREAMS)['drawn']
    count = len(constants['support']['users'])
    chosen = jax.random.permutation(key, count)[: SMALL['support']]
    support, query = program(_step_parts)(params, constants, batch, chosen)
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params['process'])

    def linear(name, x):
        return x @ w[name]['kernel'] + w[name]['bias']

    def gaussian_of(pairs):
        r = [linear('outer', np.maximum(linear('inner', np.float64(x)), 0)) for x in pairs]
        hidden = np.maximum(linear('hidden', np.mean(r, axis=0)), 0)
        return linear('mean', hidden), linear('log_variance', hidden)

    def pair(read, *at):
        parts = [read['merged'], *read['own'], *read['there'], read['target']]
        return np.concatenate([np.atleast_1d(x[at]) for x in parts])

    segments, weights = np.asarray(batch['segments']), np.asarray(batch['weights'])
    newest = []
    for row in range(len(segments)):
        for user in range(1, segments[row].max() + 1):
            place = np.flatnonzero(segments[row] == user)[-1]
            assert weights[row, place] == 1
            newest.append(pair(query, row, place))
    assert len(newest) > ROWS
    prior = [pair(support, n, 0) for n in range(SMALL['support'])]
    return gaussian_of(prior), gaussian_of([*prior, *newest]), support, query


def test_the_divergence_of_a_step():
    constants, params, batch = built()
    params = apart(params)
    prior, posterior, _, _ = step_of(constants, params, batch)
    want = 0
    for m, v, a, b in zip(*posterior, *prior, strict=True):
        want += 0.5 * (np.exp(v - b) + (m - a) ** 2 / np.exp(b) - 1 + b - v)
    (_, (terms, _)), _ = learnt(params, constants, batch, 0)
    np.testing.assert_allclose(terms['kl'], want / SMALL['latent'], rtol=1e-3)


def slow_vectors(w, z, m, own, states, support, others):
    """Bridge, interests, z and gate of one user after one event, in float64: of X and of Y.

    Args:
      w: parameters.
      z: of the process.
      m: the merged state.
      own: {domain: state}, of domains that the user has.
      states: of the user's events so far, each of its own domain.
      support: of both domains the states [K, D] of support users.
      others: which of them are not the user.
    """
    scale, shift = (np.tanh(z @ w['process'][n]) for n in ('scale', 'shift'))
    keys, found = list(states), []
    for n in (2, 1):  # x~ of Y, then y~ of X
        if n in own:
            logits = support[n - 1][others] @ (own[n] @ w['bridges'][n - 1])
            keys.append(softmax(logits / DIM**0.5) @ support[2 - n][others])
    for n in (1, 2):
        alone = own.get(n, w['missing'][n - 1])
        query = m @ w['interests'][n - 1]
        weights = softmax(np.array([query @ key for key in keys]) / DIM**0.5)
        s = m + sum(a * key for a, key in zip(weights, keys, strict=True))
        gate = w['gates'][n - 1]
        logit = np.concatenate([m, alone, s]) @ gate['kernel'] + gate['bias']
        opened = 1 / (1 + np.exp(-logit))
        found.append(alone + opened * ((1 + scale) * s + shift - alone))
    return found


def test_a_step_learns_by_a_draw_of_the_posterior():
    """Every next item among those of its domain, and the divergence with a weight that rises.

    The bridge of a step leaves the user out, too.
    """
    constants, params, batch = built()
    params = apart(params)
    _, (mean, log_variance), support, query = step_of(constants, params, batch)
    key = rng.keys(jax.random.key(0), *cdsrnp._STREAMS)['latent']
    noise = np.float64(jax.random.normal(key, mean.shape))
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    z, of_items = mean + np.exp(log_variance / 2) * noise, np.asarray(constants['domains'])
    lent = [np.float64(x)[:, 0] for x in support['own']]
    items, segments, users, targets = (
        np.asarray(batch[n]) for n in ('items', 'segments', 'users', 'targets')
    )
    merged, events, values = np.float64(query['merged']), np.float64(query['events']), []
    themselves = 0
    for row, place in zip(*np.nonzero(segments), strict=True):
        so_far = np.flatnonzero(segments[row, : place + 1] == segments[row, place])
        own = {of_items[items[row, at]]: events[row, at] for at in so_far}  # the last one is left
        others = np.asarray(support['users']) != users[row, place]
        themselves += not others.all()
        target, n = targets[row, place], of_items[targets[row, place]]
        vector = slow_vectors(w, z, merged[row, place], own, events[row, so_far], lent, others)
        scores = w['table'] @ vector[n - 1]
        among = scores[np.flatnonzero(of_items == n)]
        values.append(np.log(np.exp(among).sum()) - scores[target])
    assert 0 < themselves < len(values)
    for steps, weight in ((0, 0), (500, 0.05), (1000, 0.1), (9999, 0.1)):
        (value, (terms, new)), _ = learnt(params, constants, batch, steps)
        np.testing.assert_allclose(terms['softmax'], np.mean(values), rtol=1e-4)
        assert terms['kl'] > 0.05 and new['steps'] == steps + 1
        np.testing.assert_allclose(value, terms['softmax'] + weight * terms['kl'], rtol=1e-5)


# ---- reductions


@pytest.mark.parametrize('n', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_closed_gate_is_sasrec_on_a_domain(n):
    """Check 2.4.2, loss and gradients, on users of one domain.

    Bit for bit whatever the process, the bridge and the other encoders are, by one program; beside
    SASRec's own program up to how XLA fuses their sums.
    """
    constants, params, _ = built()
    params = closed(params)
    mine = np.flatnonzero(np.asarray(constants['domains']) == n)
    items = np.random.default_rng(n).choice(mine, (ROWS, LENGTH + 1)).astype(np.int32)
    batch = rows_of(items[:, :-1])
    extra = {'targets': jnp.asarray(items[:, 1:]), 'weights': jnp.ones((ROWS, LENGTH))}
    extra['users'] = jnp.full((ROWS, LENGTH), 999)

    config = sasrec.Config(
        variant='2018',
        dim=DIM,
        blocks=1,
        max_len=LENGTH,
        dropout=0.0,
        embedding_dropout=0.0,
    )
    other, theirs = made(lambda: config.make({'item': ITEMS}, rngs=nnx.Rngs(0)))
    copied = {k: params['encoders'][n][k] for k in ('positions', 'blocks', 'norm')}
    theirs = {**jax.tree.map(jnp.asarray, theirs), **copied, 'table': params['table']}

    def of_sasrec(params):
        model = nnx.merge(other, params)
        for norm in (model.norm, *(m for b in model.blocks for m in (b.norm_query, b.norm_ffn))):
            norm.epsilon = 1e-6
        hidden = model.encode(batch, params['table'])
        value = losses.in_domain(
            hidden,
            params['table'],
            extra['targets'],
            extra['weights'],
            domain=jnp.full((ROWS, LENGTH), n),
            of_domain=constants['of_domain'],
        )
        return value, hidden

    (got, _), d_got = learnt(params, constants, {**batch, **extra}, 0)
    (want, states), d_want = jit(jax.value_and_grad(of_sasrec, has_aux=True))(theirs)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(d_got['table'], d_want['table'], rtol=1e-4, atol=1e-6)
    for name in copied:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            d_got['encoders'][n][name],
            d_want[name],
        )
        assert any(np.any(x) for x in jax.tree.leaves(d_want[name])), name
    rest = {**d_got, 'encoders': [d_got['encoders'][m] for m in (0, 3 - n)], 'table': 0}
    assert not any(np.any(x) for x in jax.tree.leaves(rest))

    changed = jax.tree.map(lambda x: 1.7 * x + 0.1, params)
    mine_alone = {m: (params if m == n else changed)['encoders'][m] for m in range(3)}
    kept = {'encoders': mine_alone, **{name: params[name] for name in ('table', 'gates')}}
    rows = {name: x[::-1] for name, x in constants['support'].items()}
    given = {**constants, 'support': rows}
    (again, _), d_again = learnt({**changed, **kept}, given, {**batch, **extra}, 0)
    assert again == got
    jax.tree.map(np.testing.assert_array_equal, d_again, d_got)

    # and it is the softmax over a catalogue of that domain alone
    logits = np.asarray(states, np.float64) @ np.asarray(params['table'], np.float64)[mine].T
    place = np.searchsorted(mine, items[:, 1:])
    chosen = np.take_along_axis(logits, place[..., None], axis=-1)[..., 0]
    slow = (np.log(np.exp(logits).sum(-1)) - chosen).mean()
    np.testing.assert_allclose(got, slow, rtol=1e-5)

    scores = lists(params, constants, batch)['scores']
    np.testing.assert_allclose(scores[:, mine], logits[:, -1], rtol=1e-4, atol=1e-5)


def test_a_closed_gate_reads_a_domain_as_if_the_other_were_not_there():
    constants, params, _ = built()
    of_items, params = np.asarray(constants['domains']), closed(params)
    items = np.random.default_rng(0).integers(1, ITEMS + 1, (4, LENGTH))
    got = lists(params, constants, rows_of(items))['scores']
    for n in (1, 2):
        alone = np.zeros_like(items)
        for row, events in enumerate(items):
            mine = events[of_items[events] == n]
            alone[row, LENGTH - len(mine) :] = mine
        want = lists(params, constants, rows_of(alone))['scores']
        here = of_items == n
        np.testing.assert_allclose(got[:4, here], want[:4, here], rtol=1e-4, atol=1e-5)


def test_the_support_of_lists_is_drawn_by_its_seed(tmp_path):
    """Another one moves scores, of a run's kept catalogue too; which it was is of the protocol."""
    _, params, _ = built()
    items = np.random.default_rng(0).integers(1, ITEMS + 1, (4, LENGTH))
    problem_of(log()).catalogue.save(tmp_path)
    found = []
    for seed in (0, 1):
        opened = problem_of(log(), support_seed=seed)
        kept = opened._task.open_catalogue(tmp_path)
        for problem in (opened, kept):
            constants = jax.tree.map(jnp.asarray, problem.constants)
            found.append(lists(params, constants, rows_of(items))['scores'])
        assert opened._task.protocol_fields().get('support_seed', 0) == seed
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], found[3])
    assert np.abs(found[0] - found[2]).max() > 1e-4


def test_steps_know_nothing_of_the_seed_of_the_support():
    """It is of how a model is measured: a step of training is the same."""
    constants, params, batch = built()
    other = jax.tree.map(jnp.asarray, problem_of(log(), support_seed=1).constants)
    assert (other['support']['order'] != constants['support']['order']).any()
    one, two = (learnt(params, given, batch, 1000) for given in (constants, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


# ---- against loops


def test_vectors_against_loops():
    """Of lists, for users of both domains and of one, in the support and not."""
    constants, params, _ = built()
    of_items = np.asarray(constants['domains'])
    items = np.random.default_rng(0).integers(1, ITEMS + 1, (4, LENGTH))
    items[0], items[1, :3] = np.flatnonzero(of_items == 1)[:LENGTH], 0
    users = [99, 98, int(constants['support']['users'][2]), 97]
    found = lists(params, constants, rows_of(items, users))
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    hidden = [np.asarray(found['read'][n], np.float64) for n in ('merged', 'events')]
    support = [np.asarray(x, np.float64)[:, 0] for x in found['support']['own']]
    names, z = np.asarray(found['support']['users']), np.asarray(found['z'], np.float64)
    assert len(names) == SMALL['served']
    for row in range(4):
        real = np.flatnonzero(items[row])
        own = {of_items[items[row, at]]: hidden[1][row, at] for at in real}  # the last one is left
        assert (2 in own) == (row > 0)
        others = names != users[row]
        assert others.all() == (row != 2)
        m, states = hidden[0][row, -1], hidden[1][row, real]
        want = slow_vectors(w, z, m, own, states, support, others)
        mine = found['queries'][row].reshape(2, DIM)
        np.testing.assert_allclose(mine, want, rtol=2e-4, atol=2e-5)


def test_a_support_of_one_lends_its_state():
    """Check 2.4.2, K = 1: of the one stranger who is left."""
    constants, params, _ = built()
    items = np.random.default_rng(0).integers(1, ITEMS + 1, (4, LENGTH))
    rows = {name: x[:1].repeat(7, axis=0) for name, x in constants['support'].items()}
    found = lists(params, {**constants, 'support': rows}, rows_of(items))
    for (state, there), own in zip(found['lent'], found['support']['own'], strict=True):
        shown = np.asarray(there)[:4]
        assert shown.any()
        want = np.broadcast_to(own[0, 0], state.shape)[:4]
        np.testing.assert_allclose(np.asarray(state)[:4][shown], want[shown], rtol=1e-5)
    user = int(rows['users'][0])
    found = lists(params, {**constants, 'support': rows}, rows_of(items, [user] * ROWS))
    assert np.isfinite(found['scores']).all()
    assert not any(np.any(x) for x in jax.tree.leaves(found['lent']))


def test_who_has_a_domain_need_not_borrow_it():
    constants, params, _ = built()
    of_items = np.asarray(constants['domains'])
    items = np.random.default_rng(0).integers(1, ITEMS + 1, (4, LENGTH))
    items[0] = np.flatnonzero(of_items == 1)[:LENGTH]
    both = [len(np.unique(of_items[row])) == 2 for row in items]
    assert both == [False, True, True, True]
    everybody = lists(params, constants, rows_of(items))['lent']
    graphdef, _ = make(cdsrnp.Config(**SMALL, borrow='missing'), ITEMS)

    def borrowed(params, constants, batch):
        model = nnx.merge(graphdef, params)
        catalogue = model.catalogue(constants)
        read = model._read(batch, batch['users'][:, None], catalogue)
        return model._borrowed(read, catalogue['support'])

    (_, has_x), (y, has_y) = jit(borrowed)(params, constants, rows_of(items))
    assert not has_x[:4, -1].any() and has_y[:4, -1].tolist() == [True, False, False, False]
    np.testing.assert_allclose(y[0, -1], everybody[1][0][0, -1], rtol=1e-6)
    assert everybody[0][1][1:4, -1].all() and everybody[1][1][:4, -1].all()


def _scores(model, constants, batch):
    catalogue = model.catalogue(constants)
    return model.queries(batch, catalogue)[:, 0] @ catalogue['items'].T


def test_users_borrow_nothing_of_themselves():
    """Check 2.4.3: events of Y of a user in the support change nothing of what X alone predicts.

    So it is without z. With it what is lent stays, but z is of everybody in the support, this user
    too, and with z all scores change.
    """
    constants, params, _ = built()
    without = {name: x for name, x in params.items() if name != 'process'}
    of_items = np.asarray(constants['domains'])
    rows, users = (np.asarray(constants['support'][n]).copy() for n in ('items', 'users'))
    mine = rows[0, :-1][of_items[rows[0, :-1]] == 1]
    alone = np.concatenate([np.zeros(LENGTH - len(mine), int), mine])[None]
    other, second = rows.copy(), np.flatnonzero(of_items == 2)
    changed = of_items[rows[0]] == 2
    other[0, changed] = second[np.searchsorted(second, rows[0, changed]) - 1]
    assert (other != rows).any() and constants['support']['order'][: SMALL['served']].min() == 0
    given = [
        {**constants, 'support': {**constants['support'], 'items': jnp.asarray(items)}}
        for items in (rows, other)
    ]
    itself, stranger = (rows_of(alone, [user]) for user in (int(users[0]), 999))
    run = functools.partial(program(_scores, latent=0), without)
    one, two = (np.asarray(run(constants, itself))[0] for constants in given)
    np.testing.assert_array_equal(one, two)
    one, two = (np.asarray(run(constants, stranger))[0] for constants in given)
    assert np.abs(one - two).max() > 1e-4

    one, two = (lists(params, constants, itself) for constants in given)
    for before, after in zip(one['lent'], two['lent'], strict=True):
        for x, y in zip(before, after, strict=True):
            np.testing.assert_array_equal(x[0], y[0])
    assert np.abs(one['scores'][0] - two['scores'][0]).max() > 1e-4


def test_lists_know_no_label_and_are_the_same_again():
    """Check 2.4.4."""
    constants, params, _ = built()
    histories = rows_of(np.random.default_rng(0).integers(1, ITEMS + 1, (4, LENGTH)))
    again = jax.tree.map(jnp.asarray, problem_of(log()).constants)
    labels = {'targets': histories['items'], 'weights': histories['items']}
    for batch, given in ((histories, again), ({**histories, **labels}, constants)):
        got = lists(params, given, batch)['scores']
        want = lists(params, constants, histories)['scores']
        np.testing.assert_array_equal(got, want)


def test_a_run_keeps_its_support(tmp_path):
    problem = problem_of(log())
    problem.catalogue.save(tmp_path / 'catalogue')
    kept = problem._task.open_catalogue(tmp_path / 'catalogue').constants
    assert set(kept) == {'domains', 'support'} == set(problem.constants) - {'of_domain'}
    for name, column in problem.constants['support'].items():
        np.testing.assert_array_equal(kept['support'][name], column)


# ---- rows of training


def test_rows_say_whose_they_are():
    histories = log()
    problem = problem_of(histories)
    seen = 0
    for step in range(problem.batches().steps_per_epoch):
        batch = problem.batches()(step)
        for row, place in zip(*np.nonzero(batch['segments']), strict=True):
            user = int(batch['users'][row, place])
            pair = [int(batch[n][row, place]) for n in ('items', 'targets')]
            events = histories.history(user).tolist()
            assert pair in [list(x) for x in itertools.pairwise(events)]
            seen += 1
    assert seen == problem.batches().targets_per_epoch


def test_later_events_change_nothing():
    """Vectors after an event, whatever comes behind it; z as it is."""
    constants, params, _ = built()
    items = np.random.default_rng(0).integers(1, ITEMS + 1, (3, LENGTH))
    other = items.copy()
    other[:, -1] = other[:, -1] % ITEMS + 1
    found = [lists(params, constants, rows_of(x))['all'] for x in (items, other)]
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one[:, :-1], two[:, :-1])
        assert np.abs(one[:3, -1] - two[:3, -1]).max() > 1e-4


@pytest.mark.parametrize('n', [1, 2])
def test_a_batch_without_a_domain_is_finite(n):
    constants, params, batch = built()
    mine = np.flatnonzero(np.asarray(constants['domains']) == n)
    alone = {name: mine[np.asarray(batch[name]) % len(mine)] for name in ('items', 'targets')}
    real = np.asarray(batch['segments']) > 0
    alone = {name: jnp.asarray(np.where(real, x, 0).astype(np.int32)) for name, x in alone.items()}

    (loss, _), gradient = learnt(params, constants, {**batch, **alone}, 1000)
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    nothing = rows_of(np.zeros((2, LENGTH), int))
    assert np.isfinite(lists(params, constants, nothing)['scores']).all()


def test_shuffled_is_another_support_and_nothing_else():
    plain, shuffled = problem_of(log()).constants, problem_of(log(), shuffled=True).constants
    of_items = domains.find(log()).of_items
    a, b = plain['support']['items'], shuffled['support']['items']
    np.testing.assert_array_equal(of_items[a], of_items[b])
    np.testing.assert_array_equal(a[of_items[a] == 1], b[of_items[a] == 1])
    assert (a != b).any()
    for name in set(plain) - {'support'}:
        jax.tree.map(np.testing.assert_array_equal, plain[name], shuffled[name])


@pytest.mark.slow
def test_the_same_on_any_mesh(mesh):
    """Loss and its gradient on one device and on four."""
    found = []
    for shape in ((1, 1), (2, 2)):
        mesh(*shape)
        problem = problem_of(log())
        graphdef, params = make(problem._experiment.model, ITEMS)
        batch, constants = put_batch(problem.batches()(0)), put_whole(problem.constants)
        place = {'table': jax.P('model', None)}
        placed = {
            name: jax.device_put(
                x, jax.NamedSharding(jax.sharding.get_mesh(), place.get(name, jax.P()))
            )
            for name, x in params.items()
        }

        def loss(params, batch, constants, graphdef=graphdef):
            model = nnx.merge(graphdef, params)
            carry = {'steps': jnp.int32(1000)}
            return model.loss(batch, constants, carry, jax.random.key(0))[0]

        found.append(jax.device_get(jit(jax.value_and_grad(loss))(placed, batch, constants)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), *(f[1] for f in found)
    )


def test_what_does_not_go_together():
    with pytest.raises(UserError, match='the most there can be'):
        cdsrnp.Config(pool=100).check()
    with pytest.raises(UserError, match='nothing is borrowed'):
        cdsrnp.Config(bridge=False, borrow='missing').check()
    with pytest.raises(UserError, match='not a multiple of model.heads'):
        cdsrnp.Config(dim=10, heads=4).check()
    with pytest.raises(UserError, match='one domain at a time: set task.in_domain'):
        check(Experiment(model=cdsrnp.Config(), task=next_item.Config(), data=Data()))
    with pytest.raises(UserError, match='learns two domains together'):
        problem_of(log(names=np.array([b'a', b'b', b'c'])))
