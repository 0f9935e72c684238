"""The ranker against a loop over users, with a model whose scores are easy to follow."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxrec import config
from jaxrec.data.histories import Histories
from jaxrec.data.splits import leave_one_out
from jaxrec.devices.mesh import TABLE, lookup, table_rows
from jaxrec.devices.top_k import UNREACHABLE
from jaxrec.errors import UserError
from jaxrec.evaluation import protocols, rank_metrics, ranking

ITEMS, USERS, MAX_LEN = 50, 37, 6


class MeanModel(nnx.Module):
    """Two user vectors: the mean of the newest events' rows, and the newest row."""

    def __init__(self, table):
        self.table = nnx.Param(table)
        self.max_len = MAX_LEN

    def queries(self, history):
        rows = lookup(self.item_table(), history['items'])
        real = (history['segments'] > 0)[..., None]
        mean = (rows * real).sum(1) / jax.numpy.maximum(real.sum(1), 1)
        return jax.numpy.stack([mean, rows[:, -1]], axis=1)

    def item_table(self):
        return self.table[...]


@pytest.fixture(scope='module')
def histories():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, USERS)  # repeats happen, some users have no targets
    return Histories(
        items=rng.integers(1, ITEMS + 1, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_ids=np.arange(USERS),
        item_ids=np.arange(ITEMS),
    )


def make_table(kind='random'):
    """Multiples of 60, so that means of up to six rows are exact."""
    rng = np.random.default_rng(1)
    table = 60 * rng.integers(-2, 3, (table_rows(ITEMS), 4)).astype(np.float32)
    return np.zeros_like(table) if kind == 'constant' else table


def build(table):
    spec = jax.NamedSharding(jax.sharding.get_mesh(), TABLE)
    model = MeanModel(jax.device_put(table, spec))
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def slow(histories, table, which, filter_seen):
    """(user, greater, ties) of every target, one user at a time in float64."""
    out = []
    table = table.astype(np.float64)
    for user in range(USERS):
        history = histories.history(user)
        if len(history) < 3:
            continue
        cut = len(history) - (1 if which == 'test' else 2)
        target, seen = history[cut], set(history[:cut])
        newest = table[history[max(cut - MAX_LEN, 0) : cut]]
        scores = np.maximum(table @ newest.mean(0), table @ newest[-1])
        others = [
            scores[i]
            for i in range(1, ITEMS + 1)
            if i != target and not (filter_seen and i in seen)
        ]
        if filter_seen and target in seen:
            out.append((user, UNREACHABLE, 0))
        else:
            beat = sum(s > scores[target] for s in others)
            out.append((user, beat, sum(s == scores[target] for s in others)))
    return np.array(out)


@pytest.mark.parametrize('filter_seen', [True, False])
@pytest.mark.parametrize('which', ['valid', 'test'])
@pytest.mark.parametrize('shape, batch_users', [((1, 1), 64), ((4, 2), 6), ((2, 4), 16)])
def test_full(histories, mesh, shape, batch_users, which, filter_seen):
    mesh(*shape)
    graphdef, params = build(make_table())
    protocol = protocols.protocol_of(config.Eval(filter_seen=filter_seen, cutoffs=(1, 10)))
    ranker = ranking.Ranker(
        graphdef,
        histories,
        leave_one_out(histories),
        which,
        protocol,
        max_len=MAX_LEN,
        batch_users=batch_users,
    )
    result = ranker(params)
    want = slow(histories, make_table(), which, filter_seen)
    np.testing.assert_array_equal(result.targets.users, want[:, 0])
    np.testing.assert_array_equal(result.greater, want[:, 1])
    np.testing.assert_array_equal(result.ties, want[:, 2])
    values = rank_metrics.per_example(want[:, 1], want[:, 2], (1, 10))
    assert result.metrics == rank_metrics.mean(values)
    assert result.users == len(want) == sum(b['users'] for b in result.buckets.values())
    assert result.unreachable == np.mean(want[:, 1] == UNREACHABLE)
    assert (result.unreachable > 0) == filter_seen
    assert result.protocol == protocols.asdict(protocol)


def test_coverage(histories, mesh):
    mesh(2, 2)
    graphdef, params = build(make_table())
    protocol = protocols.protocol_of(config.Eval(cutoffs=(1, 60)))
    run = ranking.Ranker(
        graphdef,
        histories,
        leave_one_out(histories),
        'test',
        protocol,
        max_len=MAX_LEN,
        coverage=True,
    )
    result = run(params)
    assert result.metrics['Coverage@60'] == 1.0  # every user's list is the whole catalogue
    assert 0 < result.metrics['Coverage@1'] < 0.7


def test_interests(histories, mesh):
    """Shares of wins and cosines of the two vectors, user by user in float64."""
    mesh(2, 2)
    table = make_table() + np.random.default_rng(5).normal(size=make_table().shape)
    graphdef, params = build(table.astype(np.float32))
    protocol = protocols.protocol_of(config.Eval(cutoffs=(1, 60), filter_seen=False))
    split = leave_one_out(histories)
    run = ranking.Ranker(
        graphdef, histories, split, 'test', protocol, max_len=MAX_LEN, coverage=True
    )
    interests = run(params).interests
    wins, listed, cosines = np.zeros(2), np.zeros(2), []
    for user, end in zip(split.test.users, split.test.ends, strict=True):
        history = histories.items[histories.offsets[user] : end]
        newest = table[history[-MAX_LEN:]]
        vectors = np.stack([newest.mean(0), newest[-1]])
        scores = table[: ITEMS + 1] @ vectors.T
        wins[scores[histories.items[end]].argmax()] += 1
        for item in 1 + np.argsort(-scores[1:].max(1))[: ranking.LISTED]:
            listed[scores[item].argmax()] += 1
        a, b = vectors
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert min(wins) > 0 and min(listed) > 0
    np.testing.assert_allclose(interests['target_wins'], wins / wins.sum(), atol=1e-6)
    np.testing.assert_allclose(interests['list_wins'], listed / listed.sum(), atol=1e-6)
    np.testing.assert_allclose(interests['similarity'], np.mean(cosines), rtol=1e-4)


def test_of_another_split_shares_what_is_compiled(histories, mesh):
    mesh(1, 1)
    graphdef, params = build(make_table())
    protocol = protocols.protocol_of(config.Eval(cutoffs=(1, 10)))
    split = leave_one_out(histories)
    valid = ranking.Ranker(graphdef, histories, split, 'valid', protocol, max_len=MAX_LEN)
    test = ranking.Ranker(graphdef, histories, split, 'test', protocol, max_len=MAX_LEN)
    assert valid.of(split, 'test')(params).metrics == test(params).metrics
    assert valid(params).metrics != test(params).metrics
    assert valid.of(split, 'test')._score is valid._score


@pytest.mark.parametrize('name', protocols.NAMES)
def test_constant_scorer_is_at_chance(mesh, name):
    """Among n candidates, HR@k of a scorer that knows nothing is k / n."""
    mesh(2, 1)
    rng = np.random.default_rng(2)
    users, items = 24, 300
    events = np.stack([rng.permutation(items)[:12] + 1 for _ in range(users)])
    histories = Histories(
        events.reshape(-1).astype(np.int32),
        np.arange(users + 1) * 12,
        np.arange(users),
        np.arange(items),
    )
    spec = jax.NamedSharding(jax.sharding.get_mesh(), TABLE)
    table = np.zeros((table_rows(items), 4), np.float32)
    graphdef, state = nnx.split(MeanModel(jax.device_put(table, spec)))
    protocol = protocols.protocol_of(config.Eval(protocol=name, negatives=30))
    run = ranking.Ranker(
        graphdef, histories, leave_one_out(histories), 'test', protocol, max_len=MAX_LEN
    )
    result = run(nnx.to_pure_dict(state))
    candidates = items - 11 if name == 'full' else protocol.negatives + 1
    np.testing.assert_allclose(result.metrics['HR@10'], 10 / candidates, rtol=1e-12)
    np.testing.assert_allclose(result.metrics['HR@1'], 1 / candidates, rtol=1e-12)
    assert result.unreachable == 0


def test_sampled_counts(histories, mesh):
    """Against the task's own candidates, the same on two meshes and batch sizes."""
    table = make_table()
    split = leave_one_out(histories)
    protocol = protocols.protocol_of(config.Eval(protocol='sasrec-2018'))
    found = []
    for shape, batch_users in (((1, 1), 64), ((4, 2), 8)):
        mesh(*shape)
        graphdef, params = build(table)
        run = ranking.Ranker(
            graphdef,
            histories,
            split,
            'test',
            protocol,
            max_len=MAX_LEN,
            batch_users=batch_users,
        )
        found.append(run(params))
    for i, (user, end) in enumerate(zip(split.test.users, split.test.ends, strict=True)):
        target = histories.items[end]
        newest = table[histories.items[max(end - MAX_LEN, histories.offsets[user]) : end]]
        scores = np.maximum(table @ newest.mean(0), table @ newest[-1])
        candidates = run.task.candidates(np.array([i]))[0]
        for result in found:
            assert result.greater[i] == (scores[candidates] > scores[target]).sum()
            assert result.ties[i] == (scores[candidates] == scores[target]).sum()


def test_max_users_and_reuse(histories, mesh):
    mesh(1, 1)
    graphdef, params = build(make_table())
    split = leave_one_out(histories)
    protocol = protocols.protocol_of(config.Eval())
    everyone = ranking.Ranker(graphdef, histories, split, 'valid', protocol, max_len=MAX_LEN)
    some = ranking.Ranker(
        graphdef, histories, split, 'valid', protocol, max_len=MAX_LEN, max_users=9
    )
    all_of_them, subset = everyone(params), some(params)
    assert subset.users == 9
    where = np.searchsorted(all_of_them.targets.users, subset.targets.users)
    np.testing.assert_array_equal(all_of_them.greater[where], subset.greater)
    compiled = some._score._cache_size()
    some(params)
    assert some._score._cache_size() == compiled  # compiled once per shape


def test_cold_targets(mesh):
    mesh(1, 1)
    items = np.array([1, 2, 3, 4, 1, 2, 1, 2], np.int32)  # item 4 is nobody's training item
    histories = Histories(items, np.array([0, 4, 8]), np.arange(2), np.arange(4))
    protocol = protocols.protocol_of(config.Eval(filter_seen=False))
    task = ranking.Task(histories, leave_one_out(histories), 'test', protocol)
    result = task.result(np.zeros(2, int), np.zeros(2, int))
    assert result.cold == 0.5 and result.unreachable == 0
    assert result.buckets['tail']['users'] == 1


def test_errors(histories, mesh):
    mesh(1, 1)
    split, protocol = leave_one_out(histories), protocols.protocol_of(config.Eval())
    graphdef, params = build(np.full_like(make_table(), np.nan))
    run = ranking.Ranker(graphdef, histories, split, 'test', protocol, max_len=MAX_LEN)
    with pytest.raises(UserError, match='not finite'):
        run(params)
    with pytest.raises(UserError, match='eval.batch_users=0 must be at least 1'):
        ranking.Ranker(graphdef, histories, split, 'test', protocol, max_len=MAX_LEN, batch_users=0)
    short = Histories(np.array([1, 2], np.int32), np.array([0, 2]), np.arange(1), np.arange(2))
    with pytest.raises(UserError, match='no targets'):
        ranking.Task(short, leave_one_out(short), 'test', protocol)
    with pytest.raises(UserError, match='unknown split'):
        ranking.Task(histories, split, 'train', protocol)
