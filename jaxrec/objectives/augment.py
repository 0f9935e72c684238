"""Augmented views of packed rows, made on the device: of CL4SRec, CoSeRec, ConSERT and Kuaishou.

Rows hold the events of several users side by side, or of one (see `packed`): `items`, `segments`
and `positions` int32 [B, L], segment 0 = padding, and whatever else there is per event, which may
be nested. Each function changes every segment by itself, keeps the order of segments and, but for
`crop` and `shuffle`, leaves the newest event of each at the newest position. Lengths are those of
segments. A draw is a hash of (key, place), so it is the same on every mesh.

A rate is a decimal: .29 of 100 events are 29. `where` bool [B, L], the same for all events of a
segment, spares the segments where it is False.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxrec.nn.dropout import hashed
from jaxrec.objectives.segments import Rows, Segments, only, take, uniform

MASK = 0  # item number of [mask]: row 0 of the item table, of which padding makes no use
SHORT = ('mask', 'substitute', 'insert')  # what CoSeRec does to short histories


def crop(rows: Rows, key: jax.Array, rate: float, where: jax.Array | None = None) -> Rows:
    """A contiguous part of max(1, floor(rate n)) of n events, each start equally likely.

    CL4SRec (Xie et al. 2022, arXiv 2010.14395), eq. 4. What is cut off becomes padding. The events
    keep their positions, our choice: where the main loss is a mean over the positions of a long
    window and a term is about one vector per user, crops that all ended at the newest position
    would leave that position's vector to the term: on MovieLens 1M, with windows of 200, that was
    three quarters of the harm that the term did.
    """
    span = Segments(rows['segments'])
    count = jnp.maximum(span.share(rate), 1)
    count = count if where is None else jnp.where(where, count, span.length)
    first = span.draw_start(key, count)
    inside = (span.index >= first) & (span.index < first + count)
    return only(rows, inside & (rows['segments'] > 0))


def prefix(rows: Rows, key: jax.Array) -> Rows:
    """The oldest 1 to n of n events, each number equally likely, at their positions.

    Where every prefix of a history is an example, as in DuoRec's code, views are of all of them.
    """
    span = Segments(rows['segments'])
    return only(rows, (span.index <= span.draw_start(key, 1)) & (rows['segments'] > 0))


def mask(rows: Rows, key: jax.Array, rate: float, where: jax.Array | None = None) -> Rows:
    """floor(rate n) of n events become [mask], each set of them equally likely (eq. 5)."""
    span = Segments(rows['segments'])
    chosen = span.draw_places(key, span.share(rate), where)
    hidden = only(rows, ~chosen)
    return {**hidden, 'segments': rows['segments'], 'positions': rows['positions']}


def reorder(rows: Rows, key: jax.Array, rate: float, where: jax.Array | None = None) -> Rows:
    """A span of floor(rate n) of n events in a random order, all spans and orders equally likely.

    CL4SRec, eq. 6. Events move with all that is known of them; positions stay.
    """
    span = Segments(rows['segments'])
    count = span.share(rate) if where is None else span.share(rate) * where
    start_key, order_key = jax.random.split(key)
    first = span.draw_start(start_key, count)
    inside = (span.index >= first) & (span.index < first + count)
    source = jnp.where(inside, span.start + first + span.ranks(order_key, inside), span.place)
    moved = jax.tree.map(lambda x: take(x, source), rows)
    return {**moved, **{name: rows[name] for name in _PLACES}}


def sample(rows: Rows, key: jax.Array, rate: float, where: jax.Array | None = None) -> Rows:
    """max(1, floor(rate n)) of n events in their order, each set of them equally likely.

    Kuaishou's augmentation for recall, our reading of it. What is left out becomes padding before
    the events that stay.
    """
    span = Segments(rows['segments'])
    count = jnp.maximum(span.share(rate), 1)
    count = count if where is None else jnp.where(where, count, span.length)
    stays = span.draw_places(key, count)
    source = jnp.argsort(2 * span.start + stays, axis=1, stable=True)
    moved = jax.tree.map(lambda x: take(x, source), rows)
    kept = {**moved, **{name: rows[name] for name in _PLACES}}
    return only(kept, (span.index >= span.length - count) & (rows['segments'] > 0))


def shuffle(rows: Rows, key: jax.Array) -> Rows:
    """The position numbers of a segment in a random order; events stay (ConSERT, section 3.2)."""
    span = Segments(rows['segments'])
    source = span.start + span.ranks(key, rows['segments'] > 0)
    source = jnp.where(rows['segments'] > 0, source, span.place)
    return {**rows, 'positions': take(rows['positions'], source)}


def substitute(rows: Rows, key: jax.Array, rate: float, where: jax.Array | None = None) -> Rows:
    """max(1, floor(rate n)) of n > 1 events become the item most similar to theirs.

    CoSeRec (Liu et al. 2021, arXiv 2108.06479), section 3.2. Only items that have one take part.

    Args:
      rows: also `similar` int32 [B, L], for every event the item most similar to its own, 0 = none
        (`positives.similar_items`).
    """
    chosen = _with_similar(rows, key, rate, where)
    changed = only(rows, ~chosen)
    items = jnp.where(chosen, rows['similar'], rows['items'])
    return {**changed, **{name: rows[name] for name in _PLACES}, 'items': items}


def insert(rows: Rows, key: jax.Array, rate: float, where: jax.Array | None = None) -> Rows:
    """The item most similar to theirs comes before max(1, floor(rate n)) of n > 1 events.

    CoSeRec, section 3.2. Rows come back wider, by the most that can be inserted into one; a segment
    that grows longer than the model's window loses its oldest events.

    Args:
      rows: also `similar`, see `substitute`.
    """
    chosen = _with_similar(rows, key, rate, where)
    real = rows['segments'] > 0
    length = real.shape[1]
    end = jnp.cumsum(real * (1 + chosen), axis=1)  # one past the new place of each event
    at = jnp.arange(length + max(int(rate * length + 1e-4), length // 2))
    source = (end[:, None] <= at[:, None]).sum(-1)  # the event that stands, or follows, at a place
    taken = source < length
    source = jnp.minimum(source, length - 1)
    new = at != take(end, source) - 1
    grown = jax.tree.map(lambda x: take(x, source), rows)
    event = only(grown, ~new)
    span = Segments(jnp.where(taken, grown['segments'], 0))
    old = Segments(rows['segments'])
    newest = take(rows['positions'] + old.length - 1 - old.index, source)
    positions = newest - (span.length - 1 - span.index)
    event |= {
        'items': jnp.where(new, grown['similar'], grown['items']),
        'segments': grown['segments'],
        'positions': positions,
    }
    return only(event, taken & (positions >= 0))


def draw_dimensions(segments: jax.Array, key: jax.Array, rate: float, dim: int) -> jax.Array:
    """bool [B, L, D], the dimensions to cut, each with probability `rate`, the same in a segment.

    ConSERT's feature cutoff (Yan et al. 2021, section 3.2). Nothing of padding is cut.
    """
    number = Segments(segments).draw(key)[..., None]  # of the segment, at random
    cut = uniform(hashed(key, number + jnp.arange(dim, dtype=jnp.uint32))) < rate
    return cut & (segments > 0)[..., None]


def draw_events(segments: jax.Array, key: jax.Array, rate: float, dim: int) -> jax.Array:
    """bool [B, L, D], floor(rate n) of the n events of a segment, in all dimensions.

    ConSERT's token cutoff: the vectors of these events, positions and all, are to be 0.
    """
    span = Segments(segments)
    chosen = span.draw_places(key, span.share(rate))[..., None]
    return chosen & jnp.ones(dim, bool)


_PLACES = ('segments', 'positions')
OPERATIONS = {
    'crop': crop,
    'mask': mask,
    'reorder': reorder,
    'sample': sample,
    'substitute': substitute,
    'insert': insert,
}


def two_views(
    rows: Rows, key: jax.Array, rates: dict[str, float], short: int = 0
) -> tuple[Rows, Rows]:
    """Two views of every segment by two different operations, each pair equally likely.

    Args:
      rows: packed rows.
      key: jax.random key.
      rates: rate of each operation that takes part, see OPERATIONS; a single one makes both views.
      short: segments of at most so many events only undergo those of SHORT that take part, if any
        do (CoSeRec).

    Returns:
      Views one and two; `insert` among the operations makes both wider.
    """
    span = Segments(rows['segments'])
    names = [name for name in OPERATIONS if name in rates]
    kept = [name in SHORT or not set(SHORT) & set(names) for name in names]
    choice_key, *view_keys = jax.random.split(key, 3)
    scores = []
    for nth, keep in enumerate(kept):
        score = uniform(span.draw(jax.random.fold_in(choice_key, nth))) + 1
        scores.append(score if keep else jnp.where(span.length <= short, 0, score))
    first, second = _two_largest(scores)
    views = []
    for choice, view_key in zip((first, second), view_keys, strict=True):
        view = rows
        for nth, name in enumerate(names):  # `insert` comes last: it moves the segments
            view = OPERATIONS[name](
                view, jax.random.fold_in(view_key, nth), rates[name], choice == nth
            )
        views.append(view)
    return views[0], views[1]


def _two_largest(scores: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Which of the scores is the largest and which comes next; the same where there is one > 0."""
    first, best = jnp.zeros_like(scores[0], jnp.int32), scores[0]
    for nth, score in enumerate(scores[1:], 1):
        first, best = jnp.where(score > best, nth, first), jnp.maximum(score, best)
    second, best = first, jnp.zeros_like(best)
    for nth, score in enumerate(scores):
        next_best = (score > best) & (first != nth)
        second, best = jnp.where(next_best, nth, second), jnp.where(next_best, score, best)
    return first, second


def _with_similar(rows, key, rate, where):
    """bool [B, L]: the events that CoSeRec's operations choose."""
    span = Segments(rows['segments'])
    allowed = (rows['similar'] > 0) & (span.length > 1)
    if where is not None:
        allowed &= where
    return span.draw_places(key, jnp.maximum(span.share(rate), 1), allowed)
