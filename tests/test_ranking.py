"""The ranking against a loop over users, with a model whose scores are easy to follow."""

import jax
import numpy as np
import pytest
from flax import nnx
from runs import check_members
from test_metrics import of_list

from jaxrec.config import Data
from jaxrec.data.histories import Histories
from jaxrec.data.splits import leave_one_out
from jaxrec.devices.mesh import TABLE, lookup, table_rows
from jaxrec.devices.top_k import UNREACHABLE
from jaxrec.errors import UserError
from jaxrec.evaluation import baselines, protocols, rank_metrics, ranking
from jaxrec.evaluation.ranking import Ranking
from jaxrec.evaluation.run import Pass
from jaxrec.experiment import Experiment, check
from jaxrec.models import sasrec
from jaxrec.tasks import next_item

ITEMS, USERS, MAX_LEN = 50, 37, 6


class MeanModel(nnx.Module):
    """Two user vectors: the mean of the newest events' rows, and the newest row."""

    def __init__(self, table):
        self.table = nnx.Param(table)

    def catalogue(self, constants):
        del constants
        return {'items': self.table[...]}

    def queries(self, batch, catalogue):
        rows = lookup(catalogue['items'], batch['items'])
        real = (batch['segments'] > 0)[..., None]
        mean = (rows * real).sum(1) / jax.numpy.maximum(real.sum(1), 1)
        return jax.numpy.stack([mean, rows[:, -1]], axis=1)


def make(lengths, seed=0):
    """Histories of these lengths with repeats, a day between any two events of the log."""
    rng = np.random.default_rng(seed)
    return Histories(
        items=rng.integers(1, ITEMS + 1, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_ids=np.arange(len(lengths)),
        item_ids=np.arange(ITEMS),
        times=1_500_000_000
        + 86_400 * np.concatenate([np.sort(rng.integers(0, 99, n)) for n in lengths]),
    )


@pytest.fixture(scope='module')
def histories():
    """Short ones and long ones, as two shapes are compiled faster; some have no targets."""
    rng = np.random.default_rng(0)
    return make(rng.choice(np.r_[1:6, 19:31], USERS))


def make_table():
    """Multiples of 60, so that means of up to six rows are exact, and many scores tie."""
    rng = np.random.default_rng(1)
    return 60 * rng.integers(-2, 3, (table_rows(ITEMS), 4)).astype(np.float32)


def build(table):
    spec = jax.NamedSharding(jax.sharding.get_mesh(), TABLE)
    graphdef, state = nnx.split(MeanModel(jax.device_put(table, spec)))
    return graphdef, nnx.to_pure_dict(state)


def problem_of(histories, **task):
    """The task's problem on these histories; it is another's model that is evaluated."""
    task = next_item.Config(**{'cutoffs': (1, 10), **task})
    experiment = Experiment(model=sasrec.Config(max_len=MAX_LEN), task=task, data=Data())
    check(experiment)
    return next_item.NextItem(experiment, histories, {'data_hash': '', 'path': ''})


def evaluator(problem, table):
    """(evaluation, full=False) -> Measured, compiled once."""
    graphdef, params = build(table)
    run = Pass(graphdef, problem, {})
    return lambda evaluation, **options: run(params, evaluation, **options)


def check_kept(problem, evaluation, measured):
    """What a table's cell keeps gives the values again."""
    task = problem._task
    for name, values in measured.values.items():
        got, weights = task.values(measured.to_keep(), name, evaluation.protocol)
        np.testing.assert_array_equal(got, values)
        assert np.average(got, weights=weights) == pytest.approx(measured.metrics[name])
    with pytest.raises(KeyError):
        task.values(measured.to_keep(), 'Coverage@10', evaluation.protocol)


def slow_scores(table, histories, start, end):
    """[2, rows] float64 of a history's two vectors."""
    newest = histories.items[max(end - MAX_LEN, start) : end]
    rows = table.astype(np.float64)[newest]
    return np.stack([table.astype(np.float64) @ rows.mean(0), table @ rows[-1]])


def slow(histories, targets, table, filter_seen):
    """[(user, item, greater, ties)] of every distinct target, one at a time in float64."""
    out = []
    for user, end, stop in zip(targets.users, targets.ends, targets.stops, strict=True):
        start = histories.offsets[user]
        seen = set(histories.items[start:end].tolist()) if filter_seen else set()
        scores = slow_scores(table, histories, start, end).max(0)
        for target in sorted(set(histories.items[end:stop].tolist())):
            others = [scores[i] for i in range(1, ITEMS + 1) if i != target and i not in seen]
            if target in seen:
                out.append((user, target, UNREACHABLE, 0))
            else:
                beat = sum(s > scores[target] for s in others)
                same = sum(s == scores[target] for s in others)
                out.append((user, target, beat, same))
    return np.array(out)


@pytest.mark.parametrize('filter_seen', [True, False])
@pytest.mark.parametrize('shape, batch_users', [((1, 1), 64), ((4, 2), 6)])
def test_full(histories, mesh, shape, batch_users, filter_seen):
    mesh(*shape)
    problem = problem_of(histories, filter_seen=filter_seen, batch_users=batch_users)
    evaluate, table = evaluator(problem, make_table()), make_table()
    for which in ('valid', 'test'):
        evaluation = problem.evaluations[which]()
        measured = evaluate(evaluation)
        want = slow(histories, problem.split.targets(which), table, filter_seen)
        np.testing.assert_array_equal(evaluation.targets.users, want[:, 0])
        np.testing.assert_array_equal(evaluation.items, want[:, 1])
        np.testing.assert_array_equal(measured.kept['greater'], want[:, 2])
        np.testing.assert_array_equal(measured.kept['ties'], want[:, 3])
        assert want[:, 3].any()
        values = rank_metrics.per_example(want[:, 2], want[:, 3], (1, 10))
        assert measured.metrics == rank_metrics.mean(values) and measured.unit == 'user'
        jax.tree.map(np.testing.assert_array_equal, measured.values, values)
        check_members(measured)
        buckets = measured.groups['popularity']
        assert evaluation.examples == len(want) == sum(b['examples'] for b in buckets.values())
        unreachable = measured.details['unreachable']
        assert unreachable == np.mean(want[:, 2] == UNREACHABLE)
        assert (unreachable > 0) == filter_seen
        assert evaluation.protocol['filter_seen'] == filter_seen
        assert evaluation.protocol['data_split'] == 'leave-one-out'
        check_kept(problem, evaluation, measured)


# ---- several targets of a user


@pytest.fixture(scope='module')
def long_histories():
    """Half the events of some users are more targets than fit into a row; many are repeats."""
    rng = np.random.default_rng(3)
    return make(np.r_[rng.integers(1, 9, 15), 64, 70, 60], seed=4)


SEVERAL = {
    'temporal': {'split': 'temporal', 'valid_share': 0.2, 'test_share': 0.5},
    'users': {'split': 'users', 'valid_share': 0.4, 'test_share': 0.5, 'prefix_share': 0.4},
}


@pytest.mark.parametrize('shape', [(1, 1), (2, 2)])
@pytest.mark.parametrize('kind', SEVERAL)
def test_several_targets_of_a_user(long_histories, mesh, kind, shape):
    """Counts, metrics and baselines against the ranking of every user by itself."""
    mesh(*shape)
    h, most, hidden = long_histories, 0, 0
    for filter_seen in (True, False):
        problem = problem_of(
            h, targets='all', filter_seen=filter_seen, batch_users=8, **SEVERAL[kind]
        )
        evaluate, table = evaluator(problem, make_table()), make_table()
        for which in ('valid', 'test'):
            evaluation, targets = problem.evaluations[which](), problem.split.targets(which)
            measured = evaluate(evaluation)
            want = slow(h, targets, table, filter_seen)
            assert len(want) < (targets.stops - targets.ends).sum()  # an item counts once
            np.testing.assert_array_equal(targets.users[evaluation.owner], want[:, 0])
            np.testing.assert_array_equal(evaluation.items, want[:, 1])
            np.testing.assert_array_equal(measured.kept['greater'], want[:, 2])
            np.testing.assert_array_equal(measured.kept['ties'], want[:, 3])
            np.testing.assert_array_equal(measured.kept['owner'], evaluation.owner)
            values = rank_metrics.per_user(want[:, 2], want[:, 3], evaluation.owner, (1, 10))
            jax.tree.map(np.testing.assert_array_equal, measured.values, values)
            assert measured.metrics == rank_metrics.mean(values)
            assert set(measured.metrics) == {
                name for name in problem._task.metrics() if 'Coverage' not in name
            }
            assert measured.details['targets'] == len(want)
            assert evaluation.examples == len(targets) == len(measured.values['MAP@10'])
            assert evaluation.protocol['targets'] == 'all'
            most = max(most, np.bincount(evaluation.owner).max())
            hidden += (want[:, 2] == UNREACHABLE).sum() * filter_seen
            assert filter_seen or measured.details['unreachable'] == 0
            check_kept(problem, evaluation, measured)
    assert most > ranking._TARGETS and hidden


def test_metrics_of_several_targets_are_those_of_the_sorted_catalogue(long_histories, mesh):
    """No ties: every user's list is sorted whole, and measured by the definitions."""
    mesh(2, 2)
    h = long_histories
    table = np.random.default_rng(5).normal(size=(table_rows(ITEMS), 4)).astype(np.float32)
    problem = problem_of(h, targets='all', **SEVERAL['users'])
    measured = evaluator(problem, table)(problem.evaluations['test'](), full=True)
    parts, shown = problem.split.test, set()
    for n, (user, end, stop) in enumerate(zip(parts.users, parts.ends, parts.stops, strict=True)):
        start = h.offsets[user]
        scores = slow_scores(table, h, start, end).max(0)[1 : ITEMS + 1]
        seen = set(h.items[start:end].tolist())
        ranked = [i for i in (1 + np.argsort(-scores)).tolist() if i not in seen]
        targets = set(h.items[end:stop].tolist())
        for name, value in of_list([i in targets for i in ranked], len(targets), (1, 10)).items():
            np.testing.assert_allclose(measured.values[name][n], value, rtol=1e-12, err_msg=name)
        shown |= set(ranked[:10])
    assert measured.metrics['Coverage@10'] == len(shown) / ITEMS
    for name, values in measured.values.items():
        assert measured.metrics[name] == np.average(values)


def test_all_targets_are_measured_as_such_where_nobody_has_two(mesh):
    """Which metrics there are is the task's choice, not the data's."""
    mesh(1, 1)
    h = make(np.full(30, 2))
    problem = problem_of(h, targets='all', filter_seen=False, **SEVERAL['users'])
    table = make_table()
    measured = evaluator(problem, table)(problem.evaluations['test']())
    want = slow(h, problem.split.test, table, False)
    one = rank_metrics.per_example(want[:, 2], want[:, 3], (1, 10))
    for name, values in one.items():
        np.testing.assert_array_equal(measured.values[name], values)
    np.testing.assert_array_equal(measured.values['Recall@10'], one['HR@10'])
    check_kept(problem, problem.evaluations['test'](), measured)


# ---- lists and interests


@pytest.mark.parametrize('several', [False, True])
def test_interests(histories, long_histories, mesh, several):
    """Shares of wins and cosines of the two vectors, user by user in float64."""
    mesh(2, 2)
    table = make_table() + np.random.default_rng(5).normal(size=make_table().shape)
    table = table.astype(np.float32)
    h, task = (
        (long_histories, SEVERAL['users'] | {'targets': 'all'}) if several else (histories, {})
    )
    problem = problem_of(h, cutoffs=(1, 60), filter_seen=False, **task)
    evaluation = problem.evaluations['test']()
    measured = evaluator(problem, table)(evaluation, full=True)
    interests = measured.details['interests']
    assert measured.metrics['Coverage@60'] == 1  # every list is the whole catalogue
    wins, listed, cosines = np.zeros(2), np.zeros(2), []
    for n, (user, end) in enumerate(
        zip(evaluation.targets.users, evaluation.targets.ends, strict=True)
    ):
        newest = table[h.items[max(end - MAX_LEN, h.offsets[user]) : end]]
        a, b = vectors = np.stack([newest.mean(0), newest[-1]])
        scores = table[: ITEMS + 1] @ vectors.T
        for target in evaluation.items[evaluation.owner == n]:
            wins[scores[target].argmax()] += 1
        for item in 1 + np.argsort(-scores[1:].max(1))[: ranking.LISTED]:
            listed[scores[item].argmax()] += 1  # once a user, however many targets
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert min(wins) > 0 and min(listed) > 0
    np.testing.assert_allclose(interests['target_wins'], wins / wins.sum(), atol=1e-6)
    np.testing.assert_allclose(interests['list_wins'], listed / listed.sum(), atol=1e-6)
    np.testing.assert_allclose(interests['similarity'], np.mean(cosines), rtol=1e-4)


# ---- the pass


def test_a_pass_compiles_once_for_all_its_evaluations(histories, mesh):
    mesh(1, 1)
    problem, table = problem_of(histories), make_table()
    graphdef, params = build(table)
    run = Pass(graphdef, problem, {})
    shapes, found = set(), {}
    for _ in range(2):
        for which in ('valid', 'test'):
            evaluation = problem.evaluations[which]()
            shapes |= {batch['seen'].shape for _, batch in evaluation.batches()}
            measured = run(params, evaluation)
            assert found.setdefault(which, measured.metrics) == measured.metrics
    assert found['valid'] != found['test']
    assert run._predict[False]._cache_size() == len(shapes) <= 4


def test_of_some_users(histories, mesh):
    mesh(1, 1)
    problem = problem_of(histories, valid_users=9)
    evaluate = evaluator(problem, make_table())
    some, everyone = problem.evaluations['valid'](), problem.ranking('valid')
    assert some.examples == 9 < everyone.examples == len(problem.split.valid)
    where = np.searchsorted(everyone.targets.users, some.targets.users)
    whole = evaluate(everyone).kept['greater']
    np.testing.assert_array_equal(whole[where], evaluate(some).kept['greater'])
    assert problem.evaluations['test']().examples == len(problem.split.test)  # of all, always


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
    problem = problem_of(histories, protocol=name, negatives=30)
    table = np.zeros((table_rows(items), 4), np.float32)
    evaluation = problem.evaluations['test']()
    measured = evaluator(problem, table)(evaluation)
    candidates = items - 11 if name == 'full' else evaluation.how.negatives + 1
    np.testing.assert_allclose(measured.metrics['HR@10'], 10 / candidates, rtol=1e-12)
    np.testing.assert_allclose(measured.metrics['HR@1'], 1 / candidates, rtol=1e-12)
    assert measured.details['unreachable'] == measured.details['too_few_candidates'] == 0


def test_sampled_counts(histories, mesh):
    """Against the task's own candidates, the same on two meshes and batch sizes."""
    table, found = make_table(), []
    for shape, batch_users in (((1, 1), 64), ((4, 2), 8)):
        mesh(*shape)
        problem = problem_of(histories, protocol='sasrec-2018', batch_users=batch_users)
        evaluation = problem.evaluations['test']()
        found.append(evaluator(problem, table)(evaluation).kept)
    targets = problem.split.test
    for i, (user, end) in enumerate(zip(targets.users, targets.ends, strict=True)):
        scores = slow_scores(table, histories, histories.offsets[user], end).max(0)
        target, candidates = histories.items[end], evaluation.candidates(np.array([i]))[0]
        for kept in found:
            assert kept['greater'][i] == (scores[candidates] > scores[target]).sum()
            assert kept['ties'][i] == (scores[candidates] == scores[target]).sum()


def test_cold_targets(mesh):
    mesh(1, 1)
    items = np.array([1, 2, 3, 4, 1, 2, 1, 2], np.int32)  # item 4 is nobody's training item
    histories = Histories(items, np.array([0, 4, 8]), np.arange(2), np.arange(4))
    evaluation = problem_of(histories, filter_seen=False).evaluations['test']()
    measured = evaluation.result(np.zeros(2, int), np.zeros(2, int))
    assert measured.details['cold'] == 0.5 and measured.details['unreachable'] == 0
    assert measured.groups['popularity']['tail']['examples'] == 1


def test_references_are_the_baselines_that_are_asked_for(histories):
    problem = problem_of(histories)
    counts = baselines.counts(problem.ranking('test'))
    assert tuple(counts) == baselines.NAMES
    for names in (baselines.NAMES, ('popularity',), ()):
        evaluation = problem.ranking('test', references=names)
        found = evaluation.references()
        assert tuple(found) == names
        for name, measured in found.items():
            np.testing.assert_array_equal(measured.kept['greater'], counts[name][0])
            assert measured.metrics == evaluation.result(*counts[name]).metrics


def test_errors(histories, mesh):
    mesh(1, 1)
    problem = problem_of(histories)
    evaluate = evaluator(problem, np.full_like(make_table(), np.nan))
    with pytest.raises(UserError, match=r'not finite for \d\d users'):
        evaluate(problem.evaluations['test']())
    with pytest.raises(UserError, match='task.batch_users=0 must be at least 1'):
        problem_of(histories, batch_users=0)
    short = Histories(np.array([1, 2], np.int32), np.array([0, 2]), np.arange(1), np.arange(2))
    protocol = protocols.protocol_of(next_item.Config())
    with pytest.raises(UserError, match='no targets'):
        Ranking(short, leave_one_out(short), 'test', protocol)
    with pytest.raises(UserError, match='unknown split'):
        problem.ranking('train')
