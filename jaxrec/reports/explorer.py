"""What a model says to some users and after single items, and which items it holds to be alike."""

from typing import Any

import numpy as np

from jaxrec.serving.recommender import Recommender
from jaxrec.training.restore import Trained

LISTED = 10
_SHOWN = 30  # newest events of a history
_AT_ONCE = 512  # items whose neighbours are looked for together


def explorer(trained: Trained, users: int, items: int, data: bool) -> dict[str, Any] | None:
    """Lists of users and items, JSON-ready; None where the model gives none.

    Args:
      trained: the run.
      users: evenly spread, at most so many.
      items: those with the most events, at most so many; the first ones without data.
      data: whether the data of the run are here.

    Returns:
      names: {item number: [raw id, title]} of all that are named; users: of each its raw 'id',
      'events' in all, 'history' of its newest items and 'list'; items: of each its 'number', the
      'list' after a history of it alone, and its 'near' items with cosines; interests: vectors of
      a user. A list has [item number, score, interest from 1].
    """
    if 'queries' not in trained.served.verbs:
        return None
    recommender = Recommender(trained, LISTED)
    known, vectors = recommender.catalogue, recommender.vectors()
    chosen = np.arange(1, min(items, known.num_items) + 1)
    some = []
    if data:
        histories = recommender.histories
        counts = np.bincount(histories.items, minlength=known.num_items + 1)[1:]
        chosen = 1 + np.argsort(-counts, kind='stable')[:items]
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
    given = recommender.given([[number] for number in chosen])
    lists = _lists(recommender(np.arange(len(chosen)), given))
    near = neighbours(vectors, chosen)
    about = [
        {'number': int(number), 'list': listed, 'near': alike}
        for number, listed, alike in zip(chosen, lists, near, strict=True)
    ]
    named = {number for one in some for number in one['history']}
    named |= {row[0] for one in (*some, *about) for row in one['list']}
    named |= {row[0] for one in about for row in one['near']} | set(chosen.tolist())
    return {
        'names': {n: [known.raw_item(n), known.title(n)] for n in sorted(named)},
        'users': some,
        'items': about,
        'interests': recommender.interests,
        'num_items': known.num_items,
    }


def neighbours(vectors: np.ndarray, numbers: np.ndarray) -> list[list[list]]:
    """The LISTED items nearest to each of some, [number, cosine], equal ones by number.

    Args:
      vectors: float32 [num_items + 1, D] by item number.
      numbers: int [n].
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    found = []
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


def _lists(lists: tuple) -> list[list[list]]:
    """[item number, score, interest] of the rows of a `Recommender`'s answer."""
    return [
        [[int(n), round(float(s), 4), int(i) + 1] for s, n, i in zip(*row, strict=True) if n]
        for row in zip(*lists, strict=True)
    ]
