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
_MOST_SCORES = 1 << 26  # held at once, whatever the number of rows
_GROUP = 32  # rows of the table whose counts and largest score are taken together


def counts_and_top_k(
    queries: jax.Array,
    table: jax.Array,
    num_items: int,
    targets: jax.Array,
    seen: jax.Array,
    filter_seen: bool,
    k: int,
    part: jax.Array | None = None,
    parts: jax.Array | None = None,
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
      part: int32 [B], placed P('data'): only rows of this part of the table are candidates, of
        which the targets are; None = all.
      parts: int32 [rows], placed P('model'), the part of every row; goes with `part`.

    Returns:
      greater, ties: int32 [B, T], placed P('data'). `greater` is UNREACHABLE and `ties` 0 where the
      target is itself filtered, where its score is not a number, and where there is none. Items
      whose score is not a number count as greater: a diverged model never looks good. And the ids
      int32 [B, k] of `top_k`, from the same scores.
    """

    def count(target, target_score, scores, first, least):
        """Of one target int32 [b] per user among the rows from item `least` on, itself left out."""
        row = target - first
        here = (target >= least) & (row < len(scores))
        own = jnp.where(here, _of_row(scores, row, here), -jnp.inf)
        # both counts in one pass over the scores: 2^16 for a greater one, 1 for an equal one
        worth = lambda s: jnp.where(s <= target_score, (s == target_score) * 1, 1 << 16)  # noqa: E731
        both = worth(_in_groups(scores)).sum(1)
        own = jnp.where(here, worth(own), 0)
        return (both >> 16).sum(0) - (own >> 16), (both & 0xFFFF).sum(0) - (own & 0xFFFF)

    def tally(targets, target_scores, scores, first, least):
        """Counts [b, T] of all targets and the `_best` of these rows."""
        each = lambda x: count(*x, scores, first, least)  # noqa: E731
        counts = _over_targets(each, (targets, target_scores))
        return counts, _best(scores, first, k)

    def scored(queries, table, seen, first, least, part, parts):
        scores = _local_scores(queries, table, num_items, seen, first, least)
        return scores if part is None else jnp.where(parts[:, None] == part, scores, -jnp.inf)

    def local(queries, targets, seen, wanted, part, table, parts):
        seen, first = seen if filter_seen else None, _first_item(table)
        if wanted is None:
            scores = scored(queries, table, seen, first, first, part, parts)

            def score(target):  # on one shard the score, elsewhere 0
                row = target - first
                here = (row >= 0) & (row < len(scores))
                return jax.lax.psum(jnp.where(here, _of_row(scores, row, here), 0), 'model')

            target_scores = _over_targets(score, targets)
            found = tally(targets, target_scores, scores, first, first)
        else:
            target_scores = _own_scores(queries, targets, wanted, seen, len(table))

            def work(piece, first, least):
                here = _beside(parts, piece, first, table)
                scores = scored(queries, piece, seen, first, least, part, here)
                return tally(targets, target_scores, scores, first, least)

            found = _by_piece(work, table, queries, k)
        counts, best = found
        greater, ties = jax.lax.psum(counts, 'model')
        hopeless = (targets == 0) | ~jnp.isfinite(target_scores)
        greater, ties = jnp.where(hopeless, UNREACHABLE, greater), jnp.where(hopeless, 0, ties)
        return greater, ties, _of_all_shards(*best, k)[1]

    wanted = lookup(table, targets) if _in_pieces(*queries.shape[:2], len(table)) else None
    by_user, beside = (queries, targets, seen, wanted, part), (parts,)
    return _over_users(local, (P('data'),) * 3, *by_user, table=table, beside=beside)


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
    scores = _item_scores(queries, table, items).max(1)
    target_score, others = scores[:, :1], scores[:, 1:]
    same_item = candidates == targets
    ties = (same_item | (others == target_score)) & (candidates > 0)
    greater = ~(same_item | (others <= target_score)) & (candidates > 0)
    hopeless = (targets == 0) | ~jnp.isfinite(target_score)
    return (
        jnp.where(hopeless, UNREACHABLE, greater.sum(1, keepdims=True, dtype=jnp.int32)),
        jnp.where(hopeless, 0, ties.sum(1, keepdims=True, dtype=jnp.int32)),
    )


def _item_scores(queries, table, items):
    """[B, K, n] of a user's items; scores, each of one shard, move between shards, not vectors."""

    def local(queries, items, table):
        place = items - _first_item(table)
        vectors = table.at[jnp.clip(place, 0, len(table) - 1)].get().astype(jnp.float32)
        scores = _product('bkd,bnd->bkn', queries.astype(jnp.float32), vectors)
        mine = (place >= 0) & (place < len(table))
        return jax.lax.psum(jnp.where(mine[:, None], scores, 0), 'model')

    specs = P('data'), P('data'), TABLE
    return jax.shard_map(local, in_specs=specs, out_specs=P('data'))(queries, items, table)


def top_k(
    queries: jax.Array,
    table: jax.Array,
    num_items: int,
    seen: jax.Array | None,
    k: int,
    allowed: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k best items of each user, exact: top-k on every shard, then top-k of those.

    Args:
      queries: float [B, K, D], placed P('data').
      table: float [rows, D], placed P('model', None).
      num_items: items of the catalogue.
      seen: int32 [B, S] items never to recommend, padded with 0; None excludes nothing.
      k: length of the lists.
      allowed: bool [rows], placed P('model'), the items that may be recommended; None = all.

    Returns:
      scores float32 [B, k], ids int32 [B, k], best first, equal scores by lower item number.
      Places for which no item is left have id 0 and score -inf.
    """

    def local(queries, seen, table, allowed):
        def work(piece, first, least):
            scores = _local_scores(queries, piece, num_items, seen, first, least)
            if allowed is not None:
                here = _beside(allowed, piece, first, table)
                scores = jnp.where(here[:, None], scores, -jnp.inf)
            return (), _best(scores, first, k)

        return _of_all_shards(*_by_piece(work, table, queries, k)[1], k)

    out_specs = P('data'), P('data')
    return _over_users(local, out_specs, queries, seen, table=table, beside=(allowed,))


def winners(queries: jax.Array, table: jax.Array, items: jax.Array) -> jax.Array:
    """Which of each user's vectors scores highest: int32 [B, n] in 0..K-1, the first of equals.

    Args:
      queries: float [B, K, D].
      table: float [rows, D].
      items: int32 [B, n].
    """
    if queries.shape[1] == 1:
        return jnp.zeros_like(items)
    return _item_scores(queries, table, items).argmax(1).astype(jnp.int32)


def _best(scores, first, k):
    """Scores and items, [b, k] or fewer, of the best of scores [rows, b] from item `first` on."""
    if k == 0:
        return jnp.zeros((scores.shape[1], 0), scores.dtype), jnp.zeros((scores.shape[1], 0), int)
    # lax.top_k puts the lower index first among equals, and pieces and shards follow each other in
    # order of their items, so the rule holds for the whole.
    best, row = _best_rows(scores, min(k, len(scores)))
    return best, row + first


def _of_all_shards(best, ids, k):
    """`top_k` from the `_best` of every shard."""
    if k == 0:
        return jnp.zeros(best.shape, best.dtype), jnp.zeros(best.shape, jnp.int32)
    best, ids = (
        jax.lax.all_gather(x, 'model', axis=1, tiled=True, to='invarying') for x in (best, ids)
    )
    best, ids = _first(best, ids, min(k, best.shape[1]))
    missing = ((0, 0), (0, k - best.shape[1]))
    best = jnp.pad(best, missing, constant_values=-jnp.inf)
    ids = jnp.pad(ids, missing)
    return best, jnp.where(best == -jnp.inf, 0, ids).astype(jnp.int32)


def _first(best, ids, k):
    """The k best of scores [b, n] and their items."""
    if k == 0:
        return best, ids
    best, place = jax.lax.top_k(best, k)
    return best, jnp.take_along_axis(ids, place, axis=1)


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


def _over_users(local: Callable, out_specs, *by_user, table, beside=()):
    """Runs `local(*by_user, table, *beside)` on every device, over groups of its users.

    What is `beside` the table, [rows], is split as its rows are.
    """

    def grouped(table, by_user, beside):
        users, vectors = by_user[0].shape[:2]
        group = _group(users, vectors, table.shape[0])
        if group == users:
            return local(*by_user, table, *beside)
        split = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), by_user)
        out = jax.lax.map(lambda xs: local(*xs, table, *beside), split)
        return jax.tree.map(lambda x: x.reshape(users, *x.shape[2:]), out)

    in_specs = TABLE, P('data'), P('model')
    return jax.shard_map(grouped, in_specs=in_specs, out_specs=out_specs)(table, by_user, beside)


def _over_targets(each: Callable, targets):
    """`each` of one target per user, on arrays [b, T]: one result [b, T] for each of its own."""
    if jax.tree.leaves(targets)[0].shape[1] == 1:
        found = each(jax.tree.map(lambda x: x[:, 0], targets))
        return jax.tree.map(lambda x: x[:, None], found)
    found = jax.lax.map(each, jax.tree.map(lambda x: x.T, targets))
    return jax.tree.map(lambda x: x.T, found)


def _by_piece(work: Callable, table: jax.Array, queries: jax.Array, k: int):
    """(counts, best) of this shard's rows, worked through in pieces where the scores are too many.

    Args:
      work: (rows of the table, their first item, the first that no piece before had) -> counts, to
        be added up, and `_best`.
      table: of this shard.
      queries: [b, K, D] of the users.
      k: length of `best` of all pieces together.
    """
    rows, first = len(table), _first_item(table)
    size = _piece_rows(rows, *queries.shape[:2])
    if size >= rows:
        return work(table, first, first)

    def turn(carried, n):
        start = jnp.minimum(n * size, rows - size)
        piece = jax.lax.dynamic_slice_in_dim(table, start, size)
        counts, (best, ids) = work(piece, first + start, first + n * size)
        before, (better, items) = carried
        counts = jax.tree.map(jnp.add, before, counts)
        best = jnp.concatenate([better, best], 1), jnp.concatenate([items, ids], 1)
        return (counts, _first(*best, min(k, rows))), None

    counts, _ = jax.eval_shape(work, table[:size], first, first)
    counts = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), counts)
    shape = (len(queries), min(k, rows))
    nothing = counts, (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    nothing = jax.lax.pcast(nothing, ('data', 'model'), to='varying')
    return jax.lax.scan(turn, nothing, jnp.arange(-(-rows // size)))[0]


def _beside(column, piece, first, table):
    """Of a column [rows] beside this shard's table what is beside a piece from item `first` on."""
    if column is None:
        return None
    return jax.lax.dynamic_slice_in_dim(column, first - _first_item(table), len(piece))


def _own_scores(queries, targets, wanted, seen, rows):
    """Scores [b, T] of targets whose rows [b, T, D] are `wanted`; -inf where they are seen.

    From a product of the same shape as that of a piece of the table, so of the same rounding.
    """

    def score(inputs):
        target, vectors = inputs
        missing = _piece_rows(rows, *queries.shape[:2]) - len(vectors)
        own = jnp.diagonal(_scores(queries, jnp.pad(vectors, ((0, missing), (0, 0)))))
        return own if seen is None else jnp.where((seen == target[:, None]).any(1), -jnp.inf, own)

    by_target = targets, wanted
    if targets.shape[1] == 1:
        return score(jax.tree.map(lambda x: x[:, 0], by_target))[:, None]
    return jax.lax.map(score, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), by_target)).T


def _group(users: int, vectors: int, rows: int) -> int:
    """Users of a device that are scored together."""
    group = users
    while group * vectors * rows > tuning().scores:
        if group % 2 or group // 2 * vectors < _COLUMNS:
            break  # a smaller group would only be padded again
        group //= 2
    return group


def _piece_rows(rows: int, users: int, vectors: int) -> int:
    """Of a shard's rows, those that are scored together for a group of users."""
    columns = -(-users * vectors // _COLUMNS) * _COLUMNS
    return rows if rows * columns <= _MOST_SCORES else max(_MOST_SCORES // columns, users)


def _in_pieces(users: int, vectors: int, rows: int) -> bool:
    """Whether a shard's rows are scored in several pieces, on the current mesh."""
    devices = jax.sharding.get_abstract_mesh().shape
    rows //= devices['model']
    return _piece_rows(rows, _group(users // devices['data'], vectors, rows), vectors) < rows


def _first_item(table: jax.Array) -> jax.Array:
    """Number of this shard's first row, int32 scalar."""
    return jax.lax.axis_index('model') * table.shape[0]


def _local_scores(queries, table, num_items, seen, first, least) -> jax.Array:
    """Scores float32 [rows, b] of rows that begin with item `first`.

    Padding rows, `seen` and rows before item `least` are -inf.
    """
    scores, rows = _scores(queries, table), table.shape[0]
    items = first + jnp.arange(rows)
    if seen is not None:
        scores = _without(scores, seen - first)
    scores = jax.lax.optimization_barrier(scores)  # or XLA lays them out anew for every use
    known = (items > 0) & (items >= least) & (items <= num_items)
    return jnp.where(known[:, None], scores, -jnp.inf)


def _scores(queries, table) -> jax.Array:
    """float32 [rows, b], the largest of a user's K products with each row.

    On a CPU the rounding of a product depends on its number of columns (another kernel takes the
    columns beyond a multiple of 64). Table rows are therefore the product's rows, and its columns,
    the users' vectors, are padded to such a multiple: the scores are the same bits on every mesh.
    """
    (users, vectors, dim), rows = queries.shape, table.shape[0]
    columns = queries.astype(jnp.float32).reshape(users * vectors, dim)
    columns = jnp.pad(columns, ((0, -len(columns) % _COLUMNS), (0, 0)))
    scores = _product('rd,cd->rc', table.astype(jnp.float32), columns)
    return scores[:, : users * vectors].reshape(rows, users, vectors).max(2)


def _of_row(scores, row, here):
    """[b], of each user the score of its row, anything where it is not here."""
    return scores[jnp.where(here, row, 0), jnp.arange(len(row))]


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
