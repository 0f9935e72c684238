"""Counts and top-k on every mesh, against a plain float64 loop over users and items."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import topologies
from jax import P

from jaxrec.devices import top_k as top_k_lib
from jaxrec.devices.mesh import TABLE, table_rows
from jaxrec.devices.top_k import (
    UNREACHABLE,
    candidate_counts,
    counts_and_top_k,
    top_k,
    winners,
)

MESHES = ((1, 1), (4, 2), (2, 4), (8, 1))
USERS, VECTORS, DIM, ITEMS, TARGETS = 16, 3, 8, 100, 4


@pytest.fixture(scope='module')
def problem():
    """Small integers: scores are exact in float32 and tie often."""
    rng = np.random.default_rng(0)
    queries = rng.integers(-2, 3, (USERS, VECTORS, DIM)).astype(np.float32)
    table = rng.integers(-2, 3, (table_rows(ITEMS), DIM)).astype(np.float32)
    table[0] = table[ITEMS + 1 :] = 9 * np.sign(queries[0, 0])  # padding that would win
    targets = rng.integers(1, ITEMS + 1, (USERS, TARGETS)).astype(np.int32)
    targets[1, 1] = targets[1, 0]  # twice the same
    targets[4, 1:] = 0  # fewer than the others
    seen = rng.integers(0, ITEMS + 1, (USERS, 6)).astype(np.int32)
    seen[:, 1] = seen[:, 0]  # repeats
    seen[3, 4] = targets[3, 0]  # targets among the seen
    seen[5, 2] = targets[5, 2]
    targets[-2:] = 0  # padded users
    seen[-2:] = 0
    everything = np.tile(np.arange(1, ITEMS + 1, dtype=np.int32), (USERS, 1))
    everything[:, 0] = 0
    everything[:-1, :6] = seen[:-1]  # the last user has seen all but item 1
    return queries, table, targets, seen, everything


def slow_scores(queries, table):
    return np.einsum('bkd,nd->bkn', queries.astype(np.float64), table.astype(np.float64)).max(1)


def slow_counts(scores, target, candidates):
    others = [scores[c] for c in candidates if c not in (0, target)]
    same = sum(1 for c in candidates if c == target)
    beat = sum(s > scores[target] for s in others)
    return beat, sum(s == scores[target] for s in others) + same


def place(*arrays):
    split = jax.NamedSharding(jax.sharding.get_mesh(), P('data'))
    return [jax.device_put(a, split) for a in arrays]


def place_table(table):
    return jax.device_put(table, jax.NamedSharding(jax.sharding.get_mesh(), TABLE))


KS = (1, 7, 130)


@pytest.fixture(scope='module', params=[*MESHES, 'pieces (1, 1)', 'pieces (4, 2)'], ids=str)
def found(request, problem):
    """Everything there is to rank, on a mesh, in one program; also in pieces of a large table."""
    queries, table, targets, seen, everything = problem
    shape = request.param
    if isinstance(shape, str):
        shape = {'pieces (1, 1)': (1, 1), 'pieces (4, 2)': (4, 2)}[shape]
        most = pytest.MonkeyPatch()
        request.addfinalizer(most.undo)
        most.setattr(top_k_lib, '_MOST_SCORES', 64 * 27)  # 27 rows, the last piece not whole

    @jax.jit
    def run(q, t, s, every, e):
        return {
            'counts': {
                (hide, n): counts_and_top_k(q, e, ITEMS, t[:, :n], s, hide, 7 if n > 1 else 0)
                for hide in (True, False)
                for n in (1, TARGETS)
            },
            # repeats, 0s, the target itself
            'candidates': candidate_counts(q, e, t[:, :1], jnp.concatenate([s, t[:, :1]], 1)),
            'lists': {
                (name, k): top_k(q, e, ITEMS, hidden, k)
                for name, hidden in (('seen', s), ('nothing', None), ('everything', every))
                for k in KS
            },
        }

    devices = jax.devices()[: shape[0] * shape[1]]
    with jax.set_mesh(jax.make_mesh(shape, ('data', 'model'), devices=devices)):
        return jax.device_get(run(*place(queries, targets, seen, everything), place_table(table)))


@pytest.mark.parametrize('filter_seen', [True, False])
def test_counts(problem, found, filter_seen):
    """Of one target and of several, among all items; with them the lists of the same scores."""
    queries, table, targets, seen, _ = problem
    greater, ties, ids = found['counts'][filter_seen, TARGETS]
    one = found['counts'][filter_seen, 1]
    assert one[2].shape == (USERS, 0)
    for got, whole in zip(one, (greater, ties), strict=False):
        np.testing.assert_array_equal(got[:, 0], whole[:, 0])
    scores = slow_scores(queries, table)
    for user in range(USERS):
        hidden = set(seen[user]) if filter_seen else set()
        allowed = set(range(1, ITEMS + 1)) - hidden
        for target, *got in zip(targets[user], greater[user], ties[user], strict=True):
            if target == 0 or target in hidden:
                assert got == [UNREACHABLE, 0]
            else:
                assert tuple(got) == slow_counts(scores[user], target, allowed - {target})
    assert ties.any()  # the example has some
    listed = found['lists']['seen' if filter_seen else 'nothing', 7]
    np.testing.assert_array_equal(ids, listed[1])


def test_candidate_counts(problem, found):
    queries, table, targets, seen, _ = problem
    greater, ties = found['candidates']
    scores = slow_scores(queries, table)
    for user in range(USERS):
        target, got = targets[user, 0], (greater[user, 0], ties[user, 0])
        if target == 0:
            assert got == (UNREACHABLE, 0)
        else:
            assert got == slow_counts(scores[user], target, [*seen[user], target])


@pytest.mark.parametrize('k', KS)
def test_top_k(problem, found, k):
    queries, table, _, seen, everything = problem
    scores = slow_scores(queries, table)
    for name, hidden in (('seen', seen), ('nothing', None), ('everything', everything)):
        best, ids = found['lists'][name, k]
        for user in range(USERS):
            hide = set() if hidden is None else set(hidden[user])
            allowed = [i for i in range(1, ITEMS + 1) if i not in hide]
            want = sorted(allowed, key=lambda i: (-scores[user, i], i))[:k]
            assert ids[user].tolist() == want + [0] * (k - len(want))
            np.testing.assert_array_equal(best[user, : len(want)], scores[user, want])
            assert (best[user, len(want) :] == -np.inf).all()


def test_same_bits_on_every_mesh(mesh):
    """Random floats, where rounding would show: identical counts and scores everywhere."""
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(8, 1, 50)).astype(np.float32)
    table = rng.normal(size=(table_rows(3000), 50)).astype(np.float32)
    targets = rng.integers(1, 3001, (8, 3)).astype(np.int32)
    seen = rng.integers(1, 3001, (8, 20)).astype(np.int32)

    @jax.jit
    def run(q, t, s, e):
        return counts_and_top_k(q, e, 3000, t, s, True, 20), top_k(q, e, 3000, s, 20)

    found = []
    for shape in MESHES:
        mesh(*shape)
        found.append(jax.device_get(run(*place(queries, targets, seen), place_table(table))))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


def test_groups_of_users_change_nothing(problem, mesh, monkeypatch):
    mesh(2, 2)
    queries, table, targets, seen, _ = problem
    many = [np.tile(x, (8, *[1] * (x.ndim - 1))) for x in (queries, targets, seen)]
    args = *place(*many), place_table(table)

    def run(q, t, s, e):
        return counts_and_top_k(q, e, ITEMS, t, s, True, 9), top_k(q, e, ITEMS, s, 9)

    whole = jax.jit(run).lower(*args)
    few = dataclasses.replace(top_k_lib.tuning(), scores=1000)
    monkeypatch.setattr(top_k_lib, 'tuning', lambda: few)
    in_groups = jax.jit(lambda *a: run(*a)).lower(*args)
    assert in_groups.as_text().count('while') > whole.as_text().count('while')
    whole, in_groups = (lowered.compile()(*args) for lowered in (whole, in_groups))
    jax.tree.map(np.testing.assert_array_equal, whole, in_groups)


def test_constant_scores_all_tie(mesh):
    mesh(2, 2)
    queries = np.zeros((4, 1, 8), np.float32)
    table = np.ones((table_rows(ITEMS), 8), np.float32)
    targets = np.arange(1, 9, dtype=np.int32).reshape(4, 2)  # 7, a target of user 3, is seen
    seen = np.full((4, 2), 7, np.int32)
    greater, ties, ids = jax.jit(lambda q, t, s, e: counts_and_top_k(q, e, ITEMS, t, s, True, 3))(
        *place(queries, targets, seen), place_table(table)
    )
    others = ITEMS - 2  # all but the target and the seen item
    assert np.asarray(greater).tolist() == [[0, 0]] * 3 + [[UNREACHABLE, 0]]
    assert np.asarray(ties).tolist() == [[others, others]] * 3 + [[0, others]]
    assert np.asarray(ids).tolist() == [[1, 2, 3]] * 4


def test_scores_that_are_not_numbers_never_help(mesh):
    mesh(1, 2)
    queries = np.ones((2, 1, 4), np.float32)
    queries[0] = np.nan
    table = np.ones((table_rows(ITEMS), 4), np.float32)
    table[5] = np.nan
    targets, none = np.array([[1, 5], [1, 5]], np.int32), np.zeros((2, 1), np.int32)
    q, t, s, fives, e = *place(queries, targets, none, none + 5), place_table(table)

    @jax.jit
    def run(q, t, s, fives, e):
        few = candidate_counts(q, e, t[:, :1], fives)
        return counts_and_top_k(q, e, ITEMS, t, s, True, 0)[0], few[0]

    greater, among_few = jax.device_get(run(q, t, s, fives, e))
    assert greater.tolist() == [[UNREACHABLE, UNREACHABLE], [1, UNREACHABLE]]
    assert among_few.tolist() == [[UNREACHABLE], [1]]


def test_only_candidates_cross_devices(problem, mesh):
    """No array of the catalogue's size is gathered."""
    mesh(2, 4)
    queries, table, targets, seen, _ = problem

    def run(q, t, s, e):
        return counts_and_top_k(q, e, ITEMS, t, s, True, 3), top_k(q, e, ITEMS, s, 3)

    args = *place(queries, targets, seen), place_table(table)
    text, rows = jax.jit(run).lower(*args).compile().as_text(), table.shape[0]
    gathers = [line for line in text.splitlines() if 'all-gather(' in line or 'all-to-all(' in line]
    assert gathers
    for line in gathers:
        assert f'{rows}' not in line.split('all-gather(')[0], line


def test_top_k_is_the_merge_of_the_vectors_own_lists(mesh):
    """KuaiFormer's serving: top-N of each vector, merged, repeats dropped, cut to N."""
    mesh(2, 4)
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(USERS, VECTORS, DIM)).astype(np.float32)
    table = rng.normal(size=(table_rows(ITEMS), DIM)).astype(np.float32)
    n = 12

    @jax.jit
    def lists(q, e):
        whole = top_k(q, e, ITEMS, None, n)
        each = [top_k(q[:, j : j + 1], e, ITEMS, None, n) for j in range(VECTORS)]
        return whole, each, winners(q, e, whole[1])

    (scores, items), each, won = jax.device_get(lists(*place(queries), place_table(table)))
    for user in range(USERS):
        best = {}
        for j in range(VECTORS):
            for score, item in zip(each[j][0][user], each[j][1][user], strict=True):
                best[item] = max(best.get(item, (-np.inf, j)), (score, j))
        merged = sorted(best, key=lambda item: -best[item][0])[:n]
        assert items[user].tolist() == merged
        assert won[user].tolist() == [best[item][1] for item in merged]
        exact = queries[user].astype(np.float64) @ table[merged].T.astype(np.float64)
        assert won[user].tolist() == exact.argmax(0).tolist()
        np.testing.assert_allclose(scores[user], exact.max(0), rtol=1e-5)


@pytest.mark.parametrize('largest', [10**6, 0])
def test_seen_items_are_left_out(monkeypatch, largest):
    """Also where places have no number in the flat array; repeats, padding and other shards."""
    monkeypatch.setattr(top_k_lib, '_LARGEST_PLACE', largest)
    rng = np.random.default_rng(2)
    scores, row = rng.normal(size=(12, 5)), rng.integers(-4, 20, (5, 9))
    expected = scores.copy()
    for user, rows in enumerate(row):
        for one in rows[(rows >= 0) & (rows < 12)]:
            expected[one, user] = -np.inf
    found = jax.jit(top_k_lib._without)(jnp.asarray(scores), jnp.asarray(row))
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.accelerators
def test_on_a_tpu_the_seen_filter_turns_no_scores_round():
    """Every scatter works in place on the scores as they are: no loop goes over them."""
    with jax.set_mesh(topologies.mesh_of(topologies.tpu('v5e:2x2'), 1)):
        placed = {
            'q': ((64, 1, 64), np.float32, P('data')),
            's': ((64, 64), np.int32, P('data')),
            'e': ((1_000_000, 64), np.float32, TABLE),
        }
        here = jax.sharding.get_mesh()
        arguments = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(here, spec))
            for shape, dtype, spec in placed.values()
        ]
        lists = jax.jit(lambda q, s, e: top_k(q, e, 999_000, s, 100))
        compiled = lists.lower(*arguments).compile()
    loops = [one for one in compiled.as_text().splitlines() if ' while(' in one]
    assert not any('64,1000000]' in one or '[64000000]' in one for one in loops)
