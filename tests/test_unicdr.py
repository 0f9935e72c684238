"""UniCDR: reductions, its critic and aggregators, batches of two domains, and what is measured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit, made, softmax

from jaxrec import datasets, evaluate, rng
from jaxrec.config import Data, Feature, Mesh, Train
from jaxrec.data.pairs import DomainPairBatches
from jaxrec.datasets import pair_domains
from jaxrec.devices.mesh import put_batch, put_whole
from jaxrec.errors import UserError
from jaxrec.evaluation import baselines, report
from jaxrec.experiment import Experiment, applied, check
from jaxrec.models import lightgcn, unicdr
from jaxrec.serving.recommender import Recommender
from jaxrec.tasks import next_item
from jaxrec.training import sparse
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

USERS, DIM = 30, 4
OWN = 'users_first', 'users_second'
SIZES = {'a': 12, 'b': 15}


def quiet(line):
    del line


def write(folder, seed=0):
    """Two folders as DisenCDR has them: six train items and one test item a user and domain."""
    rng = np.random.default_rng(seed)
    for name, other in (('a', 'b'), ('b', 'a')):
        path = folder / f'{name}_{other}'
        path.mkdir(parents=True)
        train, test = [], []
        for user in range(USERS):
            items = rng.permutation(SIZES[name])[:7]
            train += [f'{user}\t{item}\t1' for item in items[:6]]
            test += [f'{user}\t{items[6]}\t1']
        (path / 'train.txt').write_text('\n'.join(train))
        (path / 'test.txt').write_text('\n'.join(test) + '\n')
    return folder / 'a_b'


def write_cold(folder):
    """Two folders as CDRIB has them: users 0..9 common, 0..5 known in both, 6, 7 cold in b."""
    rng = np.random.default_rng(1)
    cold = {'a': (8, 9), 'b': (6, 7)}
    for name, other in (('a', 'b'), ('b', 'a')):
        path = folder / f'{name}_{other}'
        path.mkdir(parents=True)
        users = [u for u in range(20) if u not in cold[name]]
        train = [f'{u}\t{i}' for u in users for i in rng.permutation(SIZES[name])[:5]]
        (path / 'train.txt').write_text('\n'.join(train))
        held = {u: rng.permutation(SIZES[name])[:6].tolist() for u in cold[name]}
        for part, some in (('valid', slice(0, 3)), ('test', slice(3, 6))):
            rows = [f'{u}\t{i}' for u, items in held.items() for i in items[some]]
            (path / f'{part}.txt').write_text('\n'.join(rows))
        (path / f'{name}_{other}_data_info.txt').write_text(
            'common user num 10\nafter filter_data1 info : 20 1\nafter filter_data2 info : 20 1\n'
        )
    return folder / 'a_b'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp('pairs'))


def experiment(source, folder, model=None, dataset='disencdr', **changes):
    given = Experiment(
        model=model or unicdr.Config(dim=DIM, context=3, max_len=20, dropout=0.0),
        task=next_item.Config(
            split='given',
            valid_share=0.2,
            targets='each',
            windows='pairs',
            unseen_negatives=2,
            protocol='uniform',
            negatives=4,
            in_domain=True,
            cutoffs=(1, 3),
        ),
        data=Data(dataset=dataset, source=str(source), data_dir=str(folder)),
        train=Train(batch_rows=16, epochs=2),
        mesh=Mesh(1, 1),
    )
    return applied(given, changes)


@pytest.fixture(scope='module')
def problem(source, tmp_path_factory):
    one = experiment(source, tmp_path_factory.mktemp('data'))
    return one.task.open(one, say=quiet)


def built(problem, **model):
    """(constants, batch, graphdef, parameters)."""
    config = unicdr.Config(**{'dim': DIM, 'context': 3, 'dropout': 0.0, **model})
    graphdef, params = made(lambda: config.make(problem.sizes, rngs=nnx.Rngs(0)))
    batch = jax.tree.map(jnp.asarray, problem.periods[0]().batches(0))
    constants = jax.tree.map(jnp.asarray, problem.constants)
    return constants, batch, graphdef, jax.tree.map(jnp.asarray, params)


def lost(graphdef, params, batch, constants):
    def loss(params, batch):
        model = nnx.merge(graphdef, params)
        return model.loss(batch, constants, {}, jax.random.key(0))

    return jit(jax.value_and_grad(loss, has_aux=True))(params, batch)


def softplus(x):
    return np.log1p(np.exp(x))


def test_one_domain_by_itself_is_matrix_factorisation(problem):
    """Check 3.5.1: a = 1, no critic, no shared vector: BCE of P^k[u] . q_i, and its gradient."""
    constants, batch, graphdef, params = built(problem, own=1.0, critic=0.0, shared=False)
    (value, _), gradient = lost(graphdef, params, batch, constants)

    def plain(tables, items):
        total = 0.0
        for n, table in enumerate(tables, 1):
            mine = np.flatnonzero(np.asarray(batch['domain']) == n)
            user = table[batch['users'][mine]]
            score = (user * items[batch['targets'][mine]]).sum(-1)
            wrong = jnp.einsum('bd,bkd->bk', user, items[batch['negatives'][mine]])
            values = jax.nn.softplus(-score) + jax.nn.softplus(wrong).mean(-1)
            total = total + values.mean()
        return total

    wanted, theirs = jax.value_and_grad(plain, (0, 1))(
        [params[name] for name in OWN], params['items']
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient['items'], theirs[1], atol=1e-6)
    for n in (0, 1):
        np.testing.assert_allclose(gradient[OWN[n]], theirs[0][n], atol=1e-6)


@pytest.mark.parametrize('bias', [False, True])
def test_scores(problem, mesh, bias):
    """Check 3.5.1: (P^k[u] + P^s[u]) . q_i at a = 1, and b_i where there is one."""
    constants, _, graphdef, params = built(problem, own=1.0, bias=bias)
    own = np.zeros(problem.sizes['item'] + 1)
    if bias:
        own[1:] = np.random.default_rng(0).normal(size=problem.sizes['item'])
        rows = np.zeros(params['biases'].shape, np.float32)
        rows[: len(own), 0] = own
        params = {**params, 'biases': jnp.asarray(rows)}
    mesh(1, 1)
    model = nnx.merge(graphdef, params)
    places, batch = next(problem.evaluations['test']().batches())
    batch = {n: jnp.asarray(batch[n]) for n in ('items', 'users', 'segments')}
    catalogue = model.catalogue(constants)
    found = jit(model.queries)(batch, catalogue)[:, 0] @ catalogue['items'].T
    domain = np.asarray(constants['domains'])
    for row in range(len(places)):
        user = batch['users'][row]
        for item in range(1, problem.sizes['item'] + 1):
            vector = params[OWN[domain[item] - 1]][user] + params['users_shared'][user]
            wanted = vector @ params['items'][item] + own[item]
            np.testing.assert_allclose(found[row, item], wanted, atol=1e-4)


@pytest.mark.parametrize('sees', ['other', 'all'])
def test_what_lists_are_made_of(problem, sees, mesh):
    """u^k of the domain's items, u^s of the other domain's as in training, or of all items."""
    constants, _, graphdef, params = built(problem, sees=sees)
    mesh(1, 1)
    model = nnx.merge(graphdef, params)
    _, batch = next(problem.evaluations['test']().batches())
    batch = {n: jnp.asarray(batch[n]) for n in ('items', 'users', 'segments')}
    found = jit(model.queries)(batch, model.catalogue(constants))[:, 0]
    known, of_items = jax.tree.map(np.float64, params), np.asarray(constants['domains'])
    for row, user in enumerate(np.asarray(batch['users'])):
        items = np.asarray(batch['items'][row])
        for n in (1, 2):
            own = items[of_items[items] == n]
            wide = items[(items > 0) & ((of_items[items] != n) | (sees == 'all'))]
            p = known[OWN[n - 1]][user] * bool(len(own))
            wanted = aggregated(known['aggregators'][n - 1], p, known['items'][own])
            p = known['users_shared'][user]
            wanted += aggregated(known['aggregator_shared'], p, known['items'][wide])
            np.testing.assert_allclose(found[row, DIM * (n - 1) : DIM * n], wanted, atol=1e-5)


def aggregator(**model):
    """An aggregator as a compiled function of (p, vectors, which are real), and its parameters."""
    config = unicdr.Config(dim=DIM, dropout=0.0, **model)
    graphdef, params = made(lambda: unicdr.Aggregator(config, rngs=nnx.Rngs(0)))
    params = jax.tree.map(jnp.asarray, params)
    return jit(lambda *args: nnx.merge(graphdef, params)(*args)), params


def read(w, items):
    """The newest item's state after the block of SASRec's authors; positions from the end."""

    def linear(w, x):
        return x @ w['kernel'] + w['bias']

    def normed(w, x):
        x = x - x.mean()
        return x / np.sqrt((x**2).mean() + 1e-6) * w['scale'] + w['bias']

    later = np.arange(len(items))[::-1]
    x = items + w['positions'][np.minimum(later, len(w['positions']) - 1)]
    block, attention = w['block'], w['block']['attention']
    query = normed(block['norm_query'], x[-1])
    weights = softmax(linear(attention['k'], x) @ linear(attention['q'], query) / DIM**0.5)
    z = normed(block['norm_ffn'], query + weights @ linear(attention['v'], x))
    return normed(w['norm'], z + linear(block['outer'], np.maximum(linear(block['inner'], z), 0)))


def aggregated(w, p, items, kind='mean', own=0.5):
    """A(p, {q_j}) of the items that there are, in float64."""
    if not len(items):
        return own * p
    if kind == 'mean':
        agg = items.mean(0)
    elif kind == 'attention':
        agg = softmax(np.tanh(items @ w['weigh'] + w['bias']) @ p) @ items
    else:
        agg = read(w, items)
    return own * p + (1 - own) * agg @ w['out']


@pytest.mark.parametrize('kind', unicdr.AGGREGATORS)
def test_aggregators(kind):
    """Check 3.5.3: of the items that count alone, a p exactly of none; an order has the sequence.

    Weights in attention add up to 1, which those of the authors do not.
    """
    rng = np.random.default_rng(0)
    p, items = (rng.normal(size=n).astype(np.float32) for n in ((4, DIM), (4, 7, DIM)))
    real = np.zeros((4, 7), bool)
    real[0], real[1, [0, 3, 4]], real[2, -1] = True, True, True
    run, params = aggregator(aggregator=kind, own=0.25, context=4)  # the oldest share a position
    found, order = run(p, items, real), rng.permutation(7)
    w = jax.tree.map(np.float64, params)
    for row in range(3):
        mine = np.float64(items[row, real[row]])
        wanted = aggregated(w, np.float64(p[row]), mine, kind, own=0.25)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[3], p[3] / 4)
    changed = np.abs(run(p, items[:, order], real[:, order]) - found).max(1)
    assert (changed[2:] < 1e-5).all() and ((changed[:2] > 1e-3) == (kind == 'sequence')).all()


def test_the_critic(problem):
    """Check 3.5.2: 2 log 2 a domain at D = 0, nobody to compare with in a single row: 0."""
    constants, batch, graphdef, params = built(problem)
    zero = {**params, 'critics': jax.tree.map(jnp.zeros_like, params['critics'])}
    (_, (terms, _)), _ = lost(graphdef, zero, batch, constants)
    np.testing.assert_allclose(terms['critic'], 4 * np.log(2), rtol=1e-6)
    few = {name: column[:2] for name, column in batch.items()}
    (_, (terms, _)), _ = lost(graphdef, params, few, constants)
    assert terms['critic'] == 0


def contrast(u, shared, temperature):
    """Mean cross entropy of rows, labels by u^s and logits by u^k, both beside u^s."""
    near, like = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, shared))
    labels, logits = (
        [softmax(row @ like.T / temperature) for row in rows] for rows in (like, near)
    )
    return -np.mean([(a * np.log(b)).sum() for a, b in zip(labels, logits, strict=True)])


def test_soft_contrast():
    """Only rows with weight are compared."""
    rng = np.random.default_rng(0)
    u, shared = rng.normal(size=(2, 6, DIM)).astype(np.float32)
    weights = np.array([1, 0, 1, 1, 0, 1], np.float32)
    wanted = contrast(u[weights > 0], shared[weights > 0], 0.5)
    found = unicdr.soft_contrast(u, shared, weights, 0.5)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_what_is_of_all_others_does_not_see_the_own_domain(problem):
    """Check 3.5.4: u^s of a pair stays when the user's items of the pair's domain change."""
    constants, batch, graphdef, params = built(problem, aggregator='attention')
    model, domains = nnx.merge(graphdef, params), constants['domains']
    run = jit(lambda batch: model.users_of(batch, model.vectors(constants), domains))
    found = run(batch)
    own = domains[batch['items']] == batch['domain'][:, None]
    first = jnp.where(batch['domain'][:, None] == 1, 1, problem.sizes['item'])
    changed = run({**batch, 'items': jnp.where(own, first, batch['items'])})
    np.testing.assert_array_equal(found[1], changed[1])
    assert np.abs(found[0] - changed[0]).max() > 1e-3


def propagated(problem, domains, x):
    """The mean of item vectors and of R^T R of them, in each domain over roots of whole degrees."""
    histories, ends = problem.source, problem.split.train_ends
    r = np.zeros((problem.sizes['user'], len(x)))
    for user in range(len(r)):
        r[user, histories.items[histories.offsets[user] : ends[user]]] = 1
    scaled = r / np.sqrt(np.maximum(r.sum(1, keepdims=True), 1) * np.maximum(r.sum(0), 1))
    found = np.zeros_like(x)
    for n in (1, 2):
        mine = domains == n
        found[mine] = (x[mine] + scaled[:, mine].T @ scaled[:, mine] @ x[mine]) / 2
    return found


def test_propagation_is_of_each_domain(problem):
    """R^T R of the items of a domain over the roots of both degrees, against dense matrices."""
    constants, _, graphdef, params = built(problem, layers=1)
    found = jit(lambda: nnx.merge(graphdef, params).vectors(constants))()
    x, domains = np.float64(params['items']), np.asarray(constants['domains'])
    wanted = propagated(problem, domains, x)
    np.testing.assert_allclose(found[domains > 0], wanted[domains > 0], atol=1e-4)


def test_decay_of_what_a_pair_looks_up(problem):
    """Half the squared lengths of its user's two rows, its item and the mean of its negatives."""
    constants, batch, graphdef, params = built(problem, decay=0.3)
    (value, (terms, _)), _ = lost(graphdef, params, batch, constants)
    _, _, plain, _ = built(problem)
    wanted, known = 0.0, jax.tree.map(np.float64, params)
    for n in (1, 2):
        lengths = []
        for row in np.flatnonzero(np.asarray(batch['domain']) == n):
            user, item = batch['users'][row], batch['targets'][row]
            rows = known[OWN[n - 1]][user], known['users_shared'][user], known['items'][item]
            others = known['items'][batch['negatives'][row]]
            lengths.append(sum(x @ x for x in rows) + np.mean([x @ x for x in others]))
        wanted += np.mean(lengths) / 2
    np.testing.assert_allclose(terms['decay'], wanted, rtol=1e-5)
    without = lost(plain, params, batch, constants)[0][0]
    np.testing.assert_allclose(value, without + 0.3 * wanted, rtol=1e-5)


def test_weights_may_differ_between_runs_of_one_program(problem):
    weights = {'critic': 0.6, 'soft': 0.1, 'decay': 0.3}
    constants, batch, graphdef, params = built(problem, **weights)

    def traced(weights):
        model = nnx.merge(graphdef, params)
        model.config = dataclasses.replace(model.config, **weights)
        return model.loss(batch, constants, {}, jax.random.key(0))[0]

    wanted = lost(graphdef, params, batch, constants)[0][0]
    np.testing.assert_allclose(jit(traced)(weights), wanted, rtol=1e-6)
    assert abs(jit(traced)({**weights, 'soft': 0.2}) - wanted) > 1e-4


@pytest.mark.parametrize(('shared', 'bias'), [(True, False), (False, False), (True, True)])
def test_gradients_of_touched_rows_are_those_of_whole_tables(problem, shared, bias):
    settings = {'shared': shared, 'critic': 0.6 * shared, 'decay': 0.1, 'bias': bias}
    constants, batch, graphdef, params = built(problem, **settings)
    config = unicdr.Config(dim=DIM, context=3, dropout=0.0, **settings)

    def loss(params):
        return nnx.merge(graphdef, params).loss(batch, constants, {}, jax.random.key(0))

    tables = config.tables()
    assert set(tables) == {
        'items',
        *OWN,
        *(['users_shared'] if shared else []),
        *(['biases'] if bias else []),
    }
    (value, _), (rows, rest) = jit(lambda p: sparse.value_and_grad(loss, p, batch, tables))(params)
    (wanted, _), whole = lost(graphdef, params, batch, constants)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for name, found in rows.items():
        dense = np.zeros_like(whole[name])
        used = np.asarray(found.ids) < len(dense)
        dense[np.asarray(found.ids)[used]] = np.asarray(found.values)[used]
        np.testing.assert_allclose(dense, whole[name], atol=1e-6)
    for name, found in rest.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, whole[name])


def test_a_bias_learns_what_its_item_is_asked_for(problem):
    """d loss / d b_i of one item: -sigmoid(-s) as target, +sigmoid(s) as negative."""
    constants, batch, graphdef, params = built(problem, critic=0.0, bias=True)
    (_, _), gradient = lost(graphdef, params, batch, constants)
    model = nnx.merge(graphdef, params)
    u, shared = model.users_of(batch, model.vectors(constants), constants['domains'])
    scores = np.float64(u + shared) @ np.float64(params['items']).T
    scores += np.float64(params['biases'])[:, 0]
    wanted = np.zeros(scores.shape[1])
    for n in (1, 2):
        rows = np.flatnonzero(np.asarray(batch['domain']) == n)
        for row in rows:
            target, drawn = int(batch['targets'][row]), np.asarray(batch['negatives'][row])
            wanted[target] -= 1 / (1 + np.exp(scores[row, target])) / len(rows)
            for item in drawn:
                wanted[item] += 1 / (1 + np.exp(-scores[row, item])) / len(drawn) / len(rows)
    np.testing.assert_allclose(gradient['biases'][:, 0], wanted, atol=1e-6)


PLUS = {
    'aggregator': 'sequence',
    'features': (Feature('kind', size=3),),
    'layers': 1,
    'soft': 0.3,
    'temperature': 0.5,
}
OTHER = {'own': 0.3, 'critic': 0.4, 'bias': True, 'decay': 0.2}


@pytest.mark.parametrize('model', [{}, {**PLUS, **OTHER}], ids=['unicdr', 'plus'])
def test_losses_against_loops(problem, model):
    """Check 3.5.5: UniCDR where nothing is added, and UniCDR+ with all; users, terms and the whole.

    Contexts may be empty; a row without weight counts only as somebody else's other user.
    """
    constants, batch, graphdef, params = built(problem, **model)
    items = np.array(batch['items'])
    items[:2, :3] = items[2:4, 3:] = 0  # nothing of the own domain, or of the other
    weights = np.ones(len(items), np.float32)
    weights[[5, 8, 9]] = 0
    batch |= {'items': jnp.asarray(items), 'weights': jnp.asarray(weights)}
    w, of_items = jax.tree.map(np.float64, params), np.asarray(constants['domains'])
    vectors = w['items']
    if model:
        codes = np.arange(problem.sizes['item'] + 1) % 4  # 0 is missing
        constants['items'] = {'codes': {'kind': jnp.asarray(codes)}, 'known': None}
        added = w['attributes']['tables'][0][codes] * (codes > 0)[:, None]
        vectors = vectors + np.pad(added, ((0, len(vectors) - len(added)), (0, 0)))
        vectors = propagated(problem, of_items, vectors)

    def run(params):
        model = nnx.merge(graphdef, params)
        u, shared = model.users_of(batch, model.vectors(constants), constants['domains'])
        return u, shared, model.loss(batch, constants, {}, jax.random.key(0))

    *found, (value, (terms, _)) = jit(run)(params)
    users, targets, negatives, domain = (
        np.asarray(batch[n]) for n in ('users', 'targets', 'negatives', 'domain')
    )
    how = {'kind': model.get('aggregator', 'mean'), 'own': model.get('own', 0.5)}
    u, shared = np.zeros((2, len(users), DIM))
    for row, (user, n) in enumerate(zip(users, domain, strict=True)):
        own = items[row][of_items[items[row]] == n]
        other = items[row][of_items[items[row]] == 3 - n]
        u[row] = aggregated(w['aggregators'][n - 1], w[OWN[n - 1]][user], vectors[own], **how)
        p = w['users_shared'][user]
        shared[row] = aggregated(w['aggregator_shared'], p, vectors[other], **how)
    np.testing.assert_allclose(found, [u, shared], atol=1e-4)

    score = (u + shared) @ vectors.T + (w['biases'][:, 0] if model else 0)
    shift = rng.keys(jax.random.key(0), *unicdr._STREAMS)['shift']
    other = np.roll(u, -2 * int(jax.random.randint(shift, (), 1, len(u) // 2)), axis=0)
    wanted = {'bce': 0.0, 'critic': 0.0, **({'soft': 0.0} if model else {})}
    for n in (1, 2):
        rows = np.flatnonzero((domain == n) & (weights > 0))
        for row in rows:
            right = w['critics'][n - 1] @ shared[row]
            pair = softplus(-score[row, targets[row]])
            pair += np.mean([softplus(score[row, item]) for item in negatives[row]])
            wanted['bce'] += pair / len(rows)
            critic = softplus(-u[row] @ right) + softplus(other[row] @ right)
            wanted['critic'] += critic / len(rows)
        if model:
            wanted['soft'] += contrast(u[rows], shared[rows], 0.5)
    decay = terms.pop('decay') if model else 0.0  # has a test of its own
    assert set(terms) == set(wanted)
    for name, term in wanted.items():
        np.testing.assert_allclose(terms[name], term, rtol=1e-4)
    shares = (0.6, 0.4, 0.3, 0.2) if model else (0.4, 0.6, 0, 0)
    parts = wanted['bce'], wanted['critic'], wanted.get('soft', 0.0), decay
    np.testing.assert_allclose(value, np.dot(shares, parts), rtol=1e-4)


def test_batches(problem):
    """Every pair once; of the other rows' domain the negatives, and no pair's item beside it."""
    histories, of = problem.source, problem._domains.of_items
    ends = problem.split.train_ends
    batches = problem.batches()
    owner = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    train = np.arange(len(owner)) < ends[owner]
    pairs = set(zip(owner[train].tolist(), histories.items[train].tolist(), strict=True))
    seen = {1: [], 2: []}
    for step in range(batches.steps_per_epoch):
        batch = batches(step)
        assert batch['domain'].tolist() == [1, 2] * 8
        for row in range(16):
            user, item, d = (int(batch[n][row]) for n in ('users', 'targets', 'domain'))
            assert of[item] == d and (user, item) in pairs
            seen[d].append((user, item))
            assert all(of[i] == d and (user, i) not in pairs for i in batch['negatives'][row])
            for domain, some in ((1, slice(0, 3)), (2, slice(3, 6))):
                context = batch['items'][row, some]
                context = context[context > 0].tolist()
                others = [i for u, i in pairs if u == user and of[i] == domain and i != item]
                assert len(context) == min(3, -(-9 * len(others) // 10))
                assert set(context) <= set(others) and len(set(context)) == len(context)
    for d, found in seen.items():
        mine = [p for p in pairs if of[p[1]] == d]
        assert set(found[: len(mine)]) == set(mine)
    again = batches(3)
    for process in range(2):
        half = DomainPairBatches(
            histories, ends, of, rows=16, seed=0, negatives=2, context=3, process=(process, 2)
        )(3)
        for name, column in half.items():
            np.testing.assert_array_equal(column, again[name][8 * process : 8 * process + 8])
    with pytest.raises(UserError, match='multiple of 2'):
        DomainPairBatches(histories, ends, of, rows=7, seed=0, negatives=2, context=3)


@pytest.mark.parametrize('protocol', ['uniform', 'full'])
def test_every_target_is_a_row_among_its_domain(source, tmp_path, protocol, mesh):
    """Counts of a model and of neighbours, against loops; no candidate is an item of the user."""
    mesh(1, 1)
    one = experiment(source, tmp_path, **{'task.protocol': protocol})
    problem = one.task.open(one, say=quiet)
    histories, of = problem.source, problem._domains.of_items
    ranking = problem.evaluations['test']()
    assert len(ranking.items) == 2 * USERS == sum(len(p) for p, _ in ranking.batches())
    train, given = {}, {}
    for user in range(USERS):
        start, end = histories.offsets[user], problem.split.train_ends[user]
        train[user] = set(histories.items[start:end].tolist())
        given[user] = histories.items[start : problem.split.test.inputs[user]].tolist()
    popular = np.bincount([i for items in train.values() for i in items], minlength=len(of))
    counts = np.zeros((len(of), len(of)), int)
    for items in given.values():
        for i in items:
            counts[i, [j for j in items if j != i]] += 1
    degree = np.maximum(np.bincount(np.concatenate(list(given.values())), minlength=len(of)), 1)
    found = baselines.counts(ranking, ('items_other', 'items_own', 'popularity'))
    for target in range(len(ranking.items)):
        user, item = ranking.targets.users[ranking.owner[target]], ranking.items[target]
        if protocol == 'uniform':
            against = ranking.candidates(np.array([target]))[0]
            own = histories.items[histories.offsets[user] : histories.offsets[user + 1]]
            assert not set(against) & set(own.tolist()) and (of[against] == of[item]).all()
        else:
            against = [i for i in np.flatnonzero(of == of[item]) if i not in given[user]]
            against = np.array([i for i in against if i != item])
        scores = {'popularity': popular}
        for name, mine in (('items_other', False), ('items_own', True)):
            items = [i for i in given[user] if (of[i] == of[item]) == mine]
            scores[name] = counts[items].sum(0) ** 2 / degree  # in the order of those over roots
        for name, values in scores.items():
            ranks = [
                (values[against] > values[item]).sum(),
                (values[against] == values[item]).sum(),
            ]
            assert [column[target] for column in found[name]] == ranks, (name, target)
    measured = ranking.references()['popularity']
    assert measured.unit == 'row' and len(measured.values['HR@3']) == 2 * USERS
    assert measured.metrics['HR@3'] == pytest.approx(measured.values['HR@3'].mean())
    assert set(measured.groups['domain']) == {'a', 'b'}


def test_a_cold_user_has_nothing_in_the_domain(tmp_path, mesh):
    """Shared users have one number, others are people of their own; no validation event is seen."""
    mesh(1, 1)
    source = write_cold(tmp_path / 'cold')
    one = experiment(
        source, tmp_path, dataset='cdrib', **{'task.valid_seen': False, 'task.negatives': 2}
    )
    problem = one.task.open(one, say=quiet)
    histories, of = problem.source, problem._domains.of_items
    assert histories.num_users == 30  # 10 of both, 10 of each
    ranking = problem.evaluations['test']()
    assert len(ranking.items) == 12
    rows = 0
    for _, batch in ranking.batches():
        for row in np.flatnonzero(batch['targets'][:, 0]):
            there = batch['items'][row][batch['items'][row] > 0]
            assert len(there) == 5 and (of[there] != of[batch['targets'][row, 0]]).all()
            rows += 1
    assert rows == 12
    groups = ranking.references()['popularity'].groups['history of']
    assert list(groups) == ['the other alone']
    seen = dataclasses.replace(one.task, valid_seen=True)
    problem = seen.open(applied(one, {'task.valid_seen': True}), say=quiet)
    assert (
        'both domains'
        in problem.evaluations['test']().references()['popularity'].groups['history of']
    )


def test_mistakes(source, tmp_path):
    """Traps: validation that is the test, pairs learnt and tested, ids of nobody, and settings."""

    def read(function, path):
        with pytest.raises(UserError) as e:
            function(str(path), quiet)
        assert '\n' not in str(e.value)
        return str(e.value)

    assert 'FOLDER/A_B' in read(pair_domains.read_disencdr, tmp_path)
    bad = write(tmp_path / 'bad')
    train = bad / 'train.txt'
    (bad / 'test.txt').write_text(train.read_text().splitlines()[0] + '\n')
    assert 'learnt and tested' in read(pair_domains.read_disencdr, bad)
    train.write_text('1\tx\t1\n')
    assert 'line 1 is not' in read(pair_domains.read_disencdr, bad)
    cold = write_cold(tmp_path / 'cold')
    (cold / 'valid.txt').write_text((cold / 'test.txt').read_text())
    assert 'valid.txt is test.txt' in read(pair_domains.read_cdrib, cold)
    cold = write_cold(tmp_path / 'warm')
    (cold / 'test.txt').write_text('0\t11\n')
    assert 'not cold' in read(pair_domains.read_cdrib, cold)
    cold = write_cold(tmp_path / 'unknown')
    for file in cold.parent.glob('*/*info.txt'):
        file.write_text('common user num 10\n')
    assert 'same person' in read(pair_domains.read_cdrib, cold)
    for change, says in (
        ({'task.in_domain': False}, 'one domain at a time'),
        ({'task.targets': 'all', 'task.protocol': 'full'}, 'ranks one target'),
        ({'task.protocol': 'sasrec-2018'}, 'may draw items'),
        ({'task.split': 'leave-one-out'}, 'in no order'),
        ({'model.shared': False}, 'nothing to compare'),
    ):
        with pytest.raises(UserError, match=says):
            check(applied(experiment(source, tmp_path), change))


BIASED = unicdr.Config(dim=DIM, context=3, max_len=20, dropout=0.0, bias=True)


@pytest.mark.parametrize(
    ('model', 'table'),
    [(None, 'dense'), (BIASED, 'sparse_adam'), (lightgcn.Config(dim=DIM, layers=0), 'dense')],
    ids=['own', 'biased', 'mf'],
)
def test_a_run(source, tmp_path, model, table):
    """It trains, is measured again alike, and lists items of one domain; so does one of others."""
    one = experiment(source, tmp_path / 'data', model, **{'optim.table': table})
    summary = fit(one, tmp_path / 'run')
    trained = load_trained(tmp_path / 'run')
    found = evaluate.evaluate(trained, 'valid')
    result = evaluate.as_json(trained, 'valid', *found)
    assert result['metrics'][summary['metric']] == summary['best']
    told = [line.split() for line in report.text(result).splitlines()]
    main = summary['metric'].removesuffix(' macro')
    assert main != summary['metric']
    by_domain = [f'{result["groups"]["domain"][name][main]:.4f}' for name in 'ab']
    place = told.index([main, 'by', 'domain', 'a', 'b'])
    assert told[place + 1] == ['model', *by_domain]
    histories, _ = datasets.load(one.data, quiet)
    allow = histories.item_features['domain'] == b'b'
    lists = Recommender(trained, 3, allow=allow)(np.arange(5))[1]
    assert (allow[lists - 1]).all()


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(source, tmp_path):
    one, asked = experiment(source, tmp_path / 'data'), iter([False, True])
    summary = fit(one, tmp_path / 'run')
    asked = iter([False, True])
    assert fit(one, tmp_path / 'two', stop=lambda: next(asked))['stopped'] == 'signal'
    assert {**fit(one, tmp_path / 'two'), 'workdir': ''} == {**summary, 'workdir': ''}


def test_meshes_agree(source, tmp_path, mesh):
    """The loss of a batch, with everything on that looks at other rows."""
    found = []
    for shape in ((1, 1), (2, 2)):
        mesh(*shape)
        one = experiment(source, tmp_path)
        problem = one.task.open(one, say=quiet)  # the graph is in pieces, one a device or more
        _, _, graphdef, params = built(problem, layers=1, soft=0.1, aggregator='attention')
        constants, batch = put_whole(problem.constants), problem.batches()(0)

        def loss(params, batch, graphdef=graphdef, constants=constants):
            model = nnx.merge(graphdef, params)
            return model.loss(batch, constants, {}, jax.random.key(0))[0]

        placed = jax.tree.map(lambda x: jax.device_put(x, jax.P()), params)
        found.append(float(jit(loss)(placed, put_batch(batch))))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
