"""Exact ranking and top-k over an item table whose rows are split over 'model'.

Every function runs under `jax.set_mesh` and inside jit. Scores are float32 products at full
precision (no TF32 or bfloat16 passes), the maximum over a user's K vectors. Each device scores its
own rows of the table; what crosses devices is one number per target (`counts_and_top_k`) or k
candidates per user and shard (`top_k`), never the scores and never the table.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from jaxrec.devices.mesh import TABLE, lookup
from jaxrec.devices.tuning import tuning

_COLUMNS = 64  # users' vectors in one product are padded to a multiple of this
_LARGEST_PLACE = np.iinfo(np.int32).max
_GROUP = 32  # rows of the table whose counts and largest score are taken together


def counts_and_top_k(
    queries: jax.Array,
    table: jax.Array,
    num_items: int,
    targets: jax.Array,
    seen: jax.Array,
    filter_seen: bool,
    k: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Counts the items that score higher than, and the same as, each target; and `top_k`.

    A target's score is taken from the same matrix product as all others, so that items with equal
    rows tie exactly.

    Args:
      queries: float [B, K, D], user vectors, placed P('data').
      table: float [rows, D], placed P('model', None); row 0 and rows > num_items are not items.
      num_items: items of the catalogue.
      targets: int32 [B, T]; 0 = none.
      seen: int32 [B, S], input history padded with 0, repeats allowed.
      filter_seen: score seen items -inf.
      k: length of the lists; 0 = none.

    Returns:
      greater, ties: int32 [B, T], placed P('data'). `greater` is UNREACHABLE and `ties` 0 where the
      target is itself filtered, where its score is not a number, and where there is none. Items
      whose score is not a number count as greater: a diverged model never looks good. And the ids
      int32 [B, k] of `top_k`, from the same scores.
    """

    def count(targets, scores, first):
        """Of one target int32 [b] per user."""
        row = targets - first
        here = (row >= 0) & (row < len(scores))
        mine = jnp.where(here, scores[jnp.where(here, row, 0), jnp.arange(len(row))], 0)
        target_score = jax.lax.psum(mine, 'model')  # on one shard the score, elsewhere 0
        # both counts in one pass over the scores: 2^16 for a greater one, 1 for an equal one
        groups = _in_groups(scores)
        one = jnp.where(groups <= target_score, (groups == target_score).astype(jnp.int32), 1 << 16)
        both = one.sum(1)
        greater, ties = (both >> 16).sum(0), (both & 0xFFFF).sum(0) - here  # no tie with itself
        greater, ties = jax.lax.psum((greater, ties), 'model')
        hopeless = (targets == 0) | ~jnp.isfinite(target_score)
        return jnp.where(hopeless, UNREACHABLE, greater), jnp.where(hopeless, 0, ties)

    def local(queries, targets, seen, table):
        scores = _local_scores(queries, table, num_items, seen if filter_seen else None)
        first = _local_items(table)[0]
        if targets.shape[1] == 1:
            counts = [x[:, None] for x in count(targets[:, 0], scores, first)]
        else:
            counts = [x.T for x in jax.lax.map(lambda t: count(t, scores, first), targets.T)]
        return *counts, _best(scores, first, k)[1]

    return _over_users(local, (P('data'),) * 3, queries, targets, seen, table=table)


def candidate_counts(
    queries: jax.Array, table: jax.Array, targets: jax.Array, candidates: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The counts of `counts_and_top_k` against a few candidates instead of the catalogue.

    Args:
      queries: float [B, K, D].
      table: float [rows, D].
      targets: int32 [B, 1]; 0 = none.
      candidates: int32 [B, n], repeats allowed; 0 = no candidate. A candidate that is the target
        itself ties with it.

    Returns:
      greater, ties: int32 [B, 1].
    """
    items = jnp.concatenate([targets, candidates], axis=1)
    rows = lookup(table, items).astype(jnp.float32)
    scores = _product('bkd,bnd->bkn', queries.astype(jnp.float32), rows).max(1)
    target_score, others = scores[:, :1], scores[:, 1:]
    same_item = candidates == targets
    ties = (same_item | (others == target_score)) & (candidates > 0)
    greater = ~(same_item | (others <= target_score)) & (candidates > 0)
    hopeless = (targets == 0) | ~jnp.isfinite(target_score)
    return (
        jnp.where(hopeless, UNREACHABLE, greater.sum(1, keepdims=True, dtype=jnp.int32)),
        jnp.where(hopeless, 0, ties.sum(1, keepdims=True, dtype=jnp.int32)),
    )


def top_k(
    queries: jax.Array, table: jax.Array, num_items: int, seen: jax.Array | None, k: int
) -> tuple[jax.Array, jax.Array]:
    """The k best items of each user, exact: top-k on every shard, then top-k of those.

    Args:
      queries: float [B, K, D], placed P('data').
      table: float [rows, D], placed P('model', None).
      num_items: items of the catalogue.
      seen: int32 [B, S] items never to recommend, padded with 0; None excludes nothing.
      k: length of the lists.

    Returns:
      scores float32 [B, k], ids int32 [B, k], best first, equal scores by lower item number.
      Places for which no item is left have id 0 and score -inf.
    """

    def local(queries, seen, table):
        scores = _local_scores(queries, table, num_items, seen)
        return _best(scores, _local_items(table)[0], k)

    return _over_users(local, (P('data'), P('data')), queries, seen, table=table)


def winners(queries: jax.Array, table: jax.Array, items: jax.Array) -> jax.Array:
    """Which of each user's vectors scores highest: int32 [B, n] in 0..K-1, the first of equals.

    Args:
      queries: float [B, K, D].
      table: float [rows, D].
      items: int32 [B, n].
    """
    if queries.shape[1] == 1:
        return jnp.zeros_like(items)
    rows = lookup(table, items).astype(jnp.float32)
    scores = _product('bkd,bnd->bkn', queries.astype(jnp.float32), rows)
    return scores.argmax(1).astype(jnp.int32)


def _best(scores, first, k):
    """`top_k` of scores [rows of this shard, b], whose first row is item `first`."""
    if k == 0:
        return jnp.zeros((scores.shape[1], 0), scores.dtype), jnp.zeros((scores.shape[1], 0), int)
    # lax.top_k puts the lower index first among equals, and shards are gathered in order of
    # their items, so the rule holds for the whole.
    best, row = _best_rows(scores, min(k, len(scores)))
    best, ids = (
        jax.lax.all_gather(x, 'model', axis=1, tiled=True, to='invarying')
        for x in (best, row + first)
    )
    best, place = jax.lax.top_k(best, min(k, best.shape[1]))
    ids = jnp.take_along_axis(ids, place, axis=1)
    missing = ((0, 0), (0, k - best.shape[1]))
    best = jnp.pad(best, missing, constant_values=-jnp.inf)
    ids = jnp.pad(ids, missing)
    return best, jnp.where(best == -jnp.inf, 0, ids).astype(jnp.int32)


def _in_groups(scores):
    """Scores [rows, b] as [rows / g, g, b], with g = _GROUP or its part that divides the rows."""
    return scores.reshape(-1, math.gcd(len(scores), _GROUP), scores.shape[1])


def _best_rows(scores, k):
    """The k best of scores [rows, b] and their rows, [b, k], equal scores by lower row.

    They lie in the k groups of rows with the highest maxima (equal ones: the first), so only those
    are sorted: whatever is outside has k groups before it, each with a row that goes before it.
    """
    groups, users = _in_groups(scores), scores.shape[1]
    if len(groups) <= k:
        return jax.lax.top_k(scores.T, k)
    _, chosen = jax.lax.top_k(groups.max(1).T, k)
    width = groups.shape[1]
    members = (jnp.sort(chosen)[:, :, None] * width + jnp.arange(width)).reshape(users, -1)
    best, place = jax.lax.top_k(scores[members, jnp.arange(users)[:, None]], k)
    return best, jnp.take_along_axis(members, place, axis=1)


def _over_users(local: Callable, out_specs, *by_user, table):
    """Runs `local(*by_user, table)` on every device, over groups of its users."""

    def grouped(table, *by_user):
        users, vectors = by_user[0].shape[:2]
        group = users
        while group * vectors * table.shape[0] > tuning().scores:
            if group % 2 or group // 2 * vectors < _COLUMNS:
                break  # a smaller group would only be padded again
            group //= 2
        if group == users:
            return local(*by_user, table)
        split = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), by_user)
        out = jax.lax.map(lambda xs: local(*xs, table), split)
        return jax.tree.map(lambda x: x.reshape(users, *x.shape[2:]), out)

    in_specs = (TABLE, *(P('data') for _ in by_user))
    return jax.shard_map(grouped, in_specs=in_specs, out_specs=out_specs)(table, *by_user)


def _local_items(table: jax.Array) -> jax.Array:
    """Item numbers of this shard's rows, int32 [rows]."""
    return jax.lax.axis_index('model') * table.shape[0] + jnp.arange(table.shape[0])


def _local_scores(queries, table, num_items, seen) -> jax.Array:
    """Scores float32 [rows, b] of this shard's rows; padding rows and `seen` are -inf.

    On a CPU the rounding of a product depends on its number of columns (another kernel takes the
    columns beyond a multiple of 64). Table rows are therefore the product's rows, and its columns,
    the users' vectors, are padded to such a multiple: the scores are the same bits on every mesh.
    """
    (users, vectors, dim), rows = queries.shape, table.shape[0]
    columns = queries.astype(jnp.float32).reshape(users * vectors, dim)
    columns = jnp.pad(columns, ((0, -len(columns) % _COLUMNS), (0, 0)))
    scores = _product('rd,cd->rc', table.astype(jnp.float32), columns)
    scores = scores[:, : users * vectors].reshape(rows, users, vectors).max(2)
    items = _local_items(table)
    if seen is not None:
        scores = _without(scores, seen - items[0])
    scores = jax.lax.optimization_barrier(scores)  # or XLA lays them out anew for every use
    return jnp.where(((items > 0) & (items <= num_items))[:, None], scores, -jnp.inf)


def _without(scores, row):
    """Scores [rows, b] with -inf in rows int32 [b, S] of each user's column, where there are such.

    Places are numbers in the flat array: for pairs of numbers a TPU turns all scores round, twice.
    """
    rows, users = scores.shape
    here, user = (row >= 0) & (row < rows), jnp.arange(users)[:, None]
    if scores.size > _LARGEST_PLACE:
        return scores.at[jnp.where(here, row, rows), user].set(-jnp.inf, mode='drop')
    place = jnp.where(here, row * users + user, scores.size)  # beyond the end: dropped
    return scores.reshape(-1).at[place].set(-jnp.inf, mode='drop').reshape(rows, users)


def _product(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(spec, left, right, precision=jax.lax.Precision.HIGHEST)


# In place of a count of better candidates: the target cannot be recommended at all, a miss.
UNREACHABLE = np.iinfo(np.int32).max
