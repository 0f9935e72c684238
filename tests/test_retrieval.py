"""Counts and top-k on every mesh, against a plain float64 loop over users and items."""

import jax
import numpy as np
import pytest
from jax import P

from jaxrec.devices import top_k as top_k_lib
from jaxrec.devices.mesh import TABLE, table_rows
from jaxrec.devices.top_k import UNREACHABLE, candidate_counts, rank_counts, top_k, winners

MESHES = ((1, 1), (2, 1), (4, 2), (2, 4), (8, 1))
USERS, VECTORS, DIM, ITEMS = 16, 3, 8, 100


@pytest.fixture(scope='module')
def problem():
    """Small integers: scores are exact in float32 and tie often."""
    rng = np.random.default_rng(0)
    queries = rng.integers(-2, 3, (USERS, VECTORS, DIM)).astype(np.float32)
    table = rng.integers(-2, 3, (table_rows(ITEMS), DIM)).astype(np.float32)
    table[0] = table[ITEMS + 1 :] = 9 * np.sign(queries[0, 0])  # padding that would win
    targets = rng.integers(1, ITEMS + 1, USERS).astype(np.int32)
    seen = rng.integers(0, ITEMS + 1, (USERS, 6)).astype(np.int32)
    seen[:, 1] = seen[:, 0]  # repeats
    seen[3, 4] = targets[3]  # target among the seen
    targets[-2:] = 0  # padded users
    seen[-2:] = 0
    return queries, table, targets, seen


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


@pytest.mark.parametrize('filter_seen', [True, False])
@pytest.mark.parametrize('shape', MESHES)
def test_rank_counts(problem, mesh, shape, filter_seen):
    mesh(*shape)
    queries, table, targets, seen = problem
    counts = jax.jit(lambda q, t, s, e: rank_counts(q, e, ITEMS, t, s, filter_seen))(
        *place(queries, targets, seen), place_table(table)
    )
    counts = [np.asarray(c) for c in counts]
    scores = slow_scores(queries, table)
    for user in range(USERS):
        got = tuple(int(c[user]) for c in counts)
        hidden = set(seen[user]) if filter_seen else set()
        if targets[user] == 0 or targets[user] in hidden:
            assert got == (UNREACHABLE, 0)
        else:
            allowed = set(range(1, ITEMS + 1)) - hidden - {targets[user]}
            assert got == slow_counts(scores[user], targets[user], allowed)
    assert counts[1].any()  # the example has ties


@pytest.mark.parametrize('shape', MESHES)
def test_candidate_counts(problem, mesh, shape):
    mesh(*shape)
    queries, table, targets, seen = problem
    candidates = np.concatenate([seen, targets[:, None]], 1)  # repeats, 0s, the target itself
    counts = jax.jit(candidate_counts)(
        place(queries)[0], place_table(table), *place(targets, candidates)
    )
    counts = [np.asarray(c) for c in counts]
    scores = slow_scores(queries, table)
    for user in range(USERS):
        got = tuple(int(c[user]) for c in counts)
        if targets[user] == 0:
            assert got == (UNREACHABLE, 0)
        else:
            assert got == slow_counts(scores[user], targets[user], candidates[user].tolist())


@pytest.mark.parametrize('k', [1, 7, 130])
@pytest.mark.parametrize('shape', MESHES)
def test_top_k(problem, mesh, shape, k):
    mesh(*shape)
    queries, table, _, seen = problem
    everything = np.tile(np.arange(1, ITEMS + 1, dtype=np.int32), (USERS, 1))
    everything[:, 0] = 0
    everything[:-1, :6] = seen[:-1]  # the last user has seen all but item 1
    for hidden in (everything if k == 130 else seen, None):
        run = jax.jit(lambda q, s, e: top_k(q, e, ITEMS, s, k))
        placed = None if hidden is None else place(hidden)[0]
        best, ids = map(np.asarray, run(place(queries)[0], placed, place_table(table)))
        scores = slow_scores(queries, table)
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
    targets = rng.integers(1, 3001, 8).astype(np.int32)
    seen = rng.integers(1, 3001, (8, 20)).astype(np.int32)
    found = []
    for shape in MESHES:
        mesh(*shape)
        run = jax.jit(
            lambda q, t, s, e: (
                rank_counts(q, e, 3000, t, s, True),
                top_k(q, e, 3000, s, 20),
            )
        )
        out = run(*place(queries, targets, seen), place_table(table))
        found.append(jax.tree.map(np.asarray, out))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


def test_groups_of_users_change_nothing(problem, mesh, monkeypatch):
    mesh(2, 2)
    queries, table, targets, seen = problem
    many = [np.tile(x, (8, *[1] * (x.ndim - 1))) for x in (queries, targets, seen)]
    args = *place(*many), place_table(table)

    def run(q, t, s, e):
        return rank_counts(q, e, ITEMS, t, s, True), top_k(q, e, ITEMS, s, 9)

    whole = jax.jit(run)(*args)
    monkeypatch.setattr(top_k_lib, '_scores_at_once', lambda: 1000)
    lowered = jax.jit(lambda *a: run(*a)).lower(*args)
    assert 'while' in lowered.as_text()
    in_groups = lowered.compile()(*args)
    jax.tree.map(np.testing.assert_array_equal, whole, in_groups)


def test_constant_scores_all_tie(mesh):
    mesh(2, 2)
    queries = np.zeros((4, 1, 8), np.float32)
    table = np.ones((table_rows(ITEMS), 8), np.float32)
    targets, seen = np.arange(1, 5, dtype=np.int32), np.full((4, 2), 7, np.int32)
    greater, ties = jax.jit(lambda q, t, s, e: rank_counts(q, e, ITEMS, t, s, True))(
        *place(queries, targets, seen), place_table(table)
    )
    assert np.asarray(greater).tolist() == [0] * 4
    assert np.asarray(ties).tolist() == [ITEMS - 2] * 4  # all but the target and the seen item


def test_scores_that_are_not_numbers_never_help(mesh):
    mesh(1, 2)
    queries = np.ones((2, 1, 4), np.float32)
    queries[0] = np.nan
    table = np.ones((table_rows(ITEMS), 4), np.float32)
    table[5] = np.nan
    targets, none = np.array([1, 1], np.int32), np.zeros((2, 1), np.int32)
    placed = *place(queries, targets, none), place_table(table)
    greater, _ = jax.jit(lambda q, t, s, e: rank_counts(q, e, ITEMS, t, s, True))(*placed)
    assert np.asarray(greater).tolist() == [UNREACHABLE, 1]
    fives = place(np.full((2, 1), 5, np.int32))[0]
    greater, _ = jax.jit(candidate_counts)(placed[0], placed[3], placed[1], fives)
    assert np.asarray(greater).tolist() == [UNREACHABLE, 1]


def test_only_candidates_cross_devices(problem, mesh):
    """No array of the catalogue's size is gathered."""
    mesh(2, 4)
    queries, table, targets, seen = problem
    args = *place(queries, targets, seen), place_table(table)
    text = (
        jax.jit(
            lambda q, t, s, e: (
                rank_counts(q, e, ITEMS, t, s, True),
                top_k(q, e, ITEMS, s, 3),
            )
        )
        .lower(*args)
        .compile()
        .as_text()
    )
    rows = table.shape[0]
    gathers = [line for line in text.splitlines() if 'all-gather(' in line or 'all-to-all(' in line]
    assert gathers
    for line in gathers:
        assert f'{rows}' not in line.split('all-gather(')[0], line


@pytest.mark.parametrize('shape', [(1, 1), (2, 4)])
def test_top_k_is_the_merge_of_the_vectors_own_lists(mesh, shape):
    """KuaiFormer's serving: top-N of each vector, merged, repeats dropped, cut to N."""
    mesh(*shape)
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
