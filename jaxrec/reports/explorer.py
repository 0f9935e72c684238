"""What a model says to some users and after single items, and which items it holds to be alike."""

from typing import Any

import numpy as np

from jaxrec.serving.recommender import Recommender
from jaxrec.training.restore import Trained

LISTED = 10
_SHOWN = 30  # newest events of a history
_SIDE = 9999  # of the map
_AT_ONCE = 512  # items whose neighbours are looked for together


def explorer(
    trained: Trained, users: int, items: int, data: bool, mapped: int = 0
) -> dict[str, Any] | None:
    """Lists of users and items, JSON-ready; None where the model gives none.

    Args:
      trained: the run.
      users: evenly spread, at most so many.
      items: those with the most events, at most so many; the first ones without data.
      data: whether the data of the run are here.
      mapped: items of the map, at most; chosen alike.

    Returns:
      names: {item number: [raw id, title]} of all that are named; users: of each its raw 'id',
      'events' in all, 'history' of its newest items and 'list'; items: of each its 'number', the
      'list' after a history of it alone, and its 'near' items with cosines; interests: vectors of
      a user; 'map': see `plane`, with the items' 'number'. A list has [item number, score, interest
      from 1].
    """
    if 'queries' not in trained.served.verbs:
        return None
    recommender = Recommender(trained, LISTED)
    known, vectors = recommender.catalogue, recommender.vectors()
    order, some = np.arange(1, known.num_items + 1), []
    if data:
        histories = recommender.histories
        counts = np.bincount(histories.items, minlength=known.num_items + 1)[1:]
        order = 1 + np.argsort(-counts, kind='stable')
        numbers = np.unique(np.linspace(0, histories.num_users - 1, users).astype(np.int64))
        for user, listed in zip(numbers, _lists(recommender(numbers)), strict=True):
            history = histories.history(user)
            some.append(
                {
                    'id': histories.raw_user(user),
                    'events': len(history),
                    'history': history[-_SHOWN:].tolist(),
                    'list': listed,
                }
            )
    chosen, on_map = order[:items], order[:mapped]
    given = recommender.given([[number] for number in chosen])
    lists = _lists(recommender(np.arange(len(chosen)), given))
    near = neighbours(vectors, chosen)
    about = [
        {'number': int(number), 'list': listed, 'near': alike}
        for number, listed, alike in zip(chosen, lists, near, strict=True)
    ]
    named = {number for one in some for number in one['history']}
    named |= {row[0] for one in (*some, *about) for row in one['list']}
    named |= (
        {row[0] for one in about for row in one['near']}
        | set(chosen.tolist())
        | set(on_map.tolist())
    )
    return {
        'names': {n: [known.raw_item(n), known.title(n)] for n in sorted(named)},
        'users': some,
        'items': about,
        'interests': recommender.interests,
        'num_items': known.num_items,
        'map': {**plane(vectors[on_map]), 'number': on_map.tolist()} if len(on_map) > 2 else None,
    }


def plane(vectors: np.ndarray) -> dict[str, Any]:
    """Items in the plane of the two directions in which their unit vectors differ most (PCA).

    Args:
      vectors: float32 [n, D].

    Returns:
      x, y: whole numbers from 0 to `_SIDE`; the outermost thousandth lies on the edge. share: of
      the variance that the plane shows.
    """
    unit = _unit(vectors).astype(np.float64)
    unit -= unit.mean(0)
    values, axes = np.linalg.eigh(unit.T @ unit)
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    found = {'share': float(values[::-1][:2].sum() / max(values.sum(), 1e-30))}
    for name, column in zip('xy', (unit @ axes).T, strict=True):
        low, high = np.quantile(column, [0.001, 0.999])
        placed = np.clip((column - low) / max(high - low, 1e-30), 0, 1)
        found[name] = np.round(_SIDE * placed).astype(int).tolist()
    return found


def neighbours(vectors: np.ndarray, numbers: np.ndarray) -> list[list[list]]:
    """The LISTED items nearest to each of some, [number, cosine], equal ones by number.

    Args:
      vectors: float32 [num_items + 1, D] by item number.
      numbers: int [n].
    """
    unit, found = _unit(vectors), []
    for first in range(0, len(numbers), _AT_ONCE):
        some = numbers[first : first + _AT_ONCE]
        cosines = unit[some] @ unit.T
        cosines[:, 0] = cosines[np.arange(len(some)), some] = -np.inf
        best = np.argsort(-cosines, axis=1, kind='stable')[:, : min(LISTED, len(vectors) - 2)]
        values = np.take_along_axis(cosines, best, 1)
        found += [
            [[int(n), round(float(c), 4)] for n, c in zip(*row, strict=True)]
            for row in zip(best, values, strict=True)
        ]
    return found


def _unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def _lists(lists: tuple) -> list[list[list]]:
    """[item number, score, interest] of the rows of a `Recommender`'s answer."""
    return [
        [[int(n), round(float(s), 4), int(i) + 1] for s, n, i in zip(*row, strict=True) if n]
        for row in zip(*lists, strict=True)
    ]
