"""Linear models in closed form: what a model of a graph has to beat.

A user's scores are a row of R, what the user had before the targets, times a matrix of items. It is
fitted on all that comes before the targets, validation events of a test included, which no model
that stops on them has learnt.
"""

import itertools
import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from jaxrec.cli import say
from jaxrec.data.histories import Histories
from jaxrec.data.ragged import ranges
from jaxrec.devices.top_k import UNREACHABLE
from jaxrec.evaluation.run import QUIET

NAMES = ('ease', 'low_pass', 'gf_cf', 'item_cosine')
DENSE_ITEMS = 1 << 13  # more make a dense matrix of items too large
_RIDGE, _RANK, _SHARE = 500.0, 64, 0.3  # EASE's was the best of three on ml-1m-graph's test file
_SCORES = 1 << 24  # held at once

Scores = Callable[[scipy.sparse.csr_array], np.ndarray]  # R of some users -> float64 [users, items]


def counts(task: Any, names: Collection[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(greater, ties) int64 of all targets, as `top_k` defines them, by name.

    Args:
      task: a `ranking.Ranking` among the whole catalogue.
      names: of NAMES, those that are wanted; of more than DENSE_ITEMS items only low_pass, which
        holds no matrix of items, and a line tells so.
    """
    known, given = before(task)
    if known.shape[1] > DENSE_ITEMS:
        left_out = [name for name in names if name != 'low_pass']
        if left_out:
            say(
                f'no {", ".join(left_out)}: their matrix of {known.shape[1]:,} items squared is '
                f'too large, the most is {DENSE_ITEMS:,}'
            )
        names = {'low_pass'} & set(names)
    low_pass = smooth_scores(known) if {'low_pass', 'gf_cf'} & set(names) else None

    def scorer(name):
        if name == 'ease':
            return ease_scores(known)
        if name == 'item_cosine':
            return cosine_scores(known)
        if name == 'low_pass':
            return low_pass
        hop = hop_scores(known)
        return lambda rows: hop(rows) + _SHARE * low_pass(rows)

    # one after the other: each may hold a matrix of items
    return {n: ranked(scorer(n), task, given, name=n) for n in NAMES if n in names}


def ease_scores(known: scipy.sparse.csr_array, ridge: float = _RIDGE) -> Scores:
    """EASE (Steck 2019): R B with B = I - P diag(P)^-1 and P = (R^T R + ridge I)^-1."""
    gram = (known.T @ known).toarray()
    gram[np.diag_indices_from(gram)] += ridge
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diagonal(inverse)
    np.fill_diagonal(weights, 0)
    return lambda rows: rows @ weights


def smooth_scores(known: scipy.sparse.csr_array, rank: int = _RANK) -> Scores:
    """The ideal low-pass filter of GF-CF (Shen et al. 2021): R D^-1/2 V V^T D^1/2.

    D are the items' degrees, V the first right singular vectors of the normalised R.
    """
    scaled, _, of_items = _normalised(known)
    rank = min(rank, min(known.shape) - 1)
    if rank < 1:
        return lambda rows: np.zeros(rows.shape)
    start = np.random.default_rng(0).normal(size=min(known.shape))
    basis = scipy.sparse.linalg.svds(scaled, rank, v0=start, return_singular_vectors='vh')[2].T
    inward, outward = of_items[:, None] * basis, basis * _inverse(of_items)[:, None]
    return lambda rows: (rows @ inward) @ outward.T


def hop_scores(known: scipy.sparse.csr_array) -> Scores:
    """One hop: R N^T N with N the normalised R."""
    scaled, _, _ = _normalised(known)
    between = (scaled.T @ scaled).toarray()
    return lambda rows: rows @ between


def cosine_scores(known: scipy.sparse.csr_array) -> Scores:
    """Item neighbourhoods: R C with C the cosines between items' users, 0 on the diagonal."""
    root = _inverse(np.sqrt(np.asarray(known.sum(0), np.float64)))
    between = (known.T @ known).toarray() * root[:, None] * root
    np.fill_diagonal(between, 0)
    return lambda rows: rows @ between


def neighbours(task: Any, names: Collection[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Counts of item neighbourhoods, of targets that are ranked in their domains.

    The score of an item is the number of users whom it shares with the items of the history, over
    the root of its own users: items_own goes by those of the target's domain, items_other by all
    others, items_both by the whole history.
    """
    known, given = before(task)
    root = np.sqrt(np.maximum(np.asarray(known.sum(0), np.float64), 1))
    between = together(known)
    of_items, target = task.domains.of_items[1:], task.target_domains
    given = given[task.owner]  # of every target, which may be of several domains
    row = np.repeat(np.arange(given.shape[0]), np.diff(given.indptr))
    own = of_items[given.indices] == target[row]

    def part(kept):
        made = given.copy()
        made.data = made.data * kept
        return made

    histories = {'items_own': part(own), 'items_other': part(~own), 'items_both': given}
    scorer = lambda rows: (rows @ between).toarray() / root  # noqa: E731
    return {name: ranked(scorer, task, histories[name], given, name) for name in names}


def together(known: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """R^T R float64 [items, items] of R [users, items], 0 of an item with itself."""
    between = (known.T @ known).tocoo()
    between.data[between.row == between.col] = 0
    return between.tocsr()


def _normalised(known):
    """Du^-1/2 R Di^-1/2, and the two scales; 0 where there are no events."""
    scales = [_inverse(np.sqrt(np.asarray(known.sum(axis), np.float64))) for axis in (1, 0)]
    left, right = (scipy.sparse.diags_array(scale) for scale in scales)
    return (left @ known @ right).tocsr(), *scales


def _inverse(x):
    return np.divide(1, x, out=np.zeros_like(x), where=x > 0)


def before(task: Any) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """R of everybody, 0 or 1 float64 [users, items], and its rows of the evaluated users.

    Of these what comes before their targets, of the others what trains.
    """
    histories, ends = task.histories, np.array(task.split.train_ends)
    users = task.targets.users
    ends[users] = np.maximum(ends[users], task.targets.inputs)
    inputs = np.array(histories.offsets[:-1])
    inputs[users] = task.targets.inputs
    return matrix(histories, ends), matrix(histories, inputs)[users]


def matrix(histories: Histories, ends: np.ndarray) -> scipy.sparse.csr_array:
    """R of each user's events before an end, 0 or 1 float64 [users, items].

    Args:
      histories: of the users.
      ends: int [users], places among the events of all.
    """
    lengths = ends - histories.offsets[:-1]
    items = histories.items[ranges(histories.offsets[:-1], lengths)] - 1
    starts = np.concatenate([[0], np.cumsum(lengths)])
    shape = (histories.num_users, histories.num_items)
    made = scipy.sparse.csr_array((np.ones(len(items)), items, starts), shape)
    made.sum_duplicates()
    made.data[:] = 1
    return made


def ranked(
    scorer: Scores,
    task: Any,
    given: scipy.sparse.csr_array,
    seen: scipy.sparse.csr_array | None = None,
    name: str = '',
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of all targets, a few users' scores at a time; where it takes long, with a line.

    Args:
      scorer: of rows like those of `given`.
      task: a `ranking.Ranking`.
      given: [examples, items] what scores go by; or [targets, items], of every target its own.
      seen: what the seen filter takes out; None = `given`.
      name: of the scorer, for the line.
    """
    told = time.monotonic()
    greater, ties = (np.zeros(len(task.items), np.int64) for _ in range(2))
    owner = task.owner if given.shape[0] == task.examples else np.arange(len(task.items))
    at_once = max(_SCORES // given.shape[1], 1)
    for start in range(0, given.shape[0], at_once):
        if time.monotonic() - told > QUIET:
            say(f'{name}: {start:,} of {given.shape[0]:,} examples')
            told = time.monotonic()
        rows = given[start : start + at_once]
        scores = np.asarray(scorer(rows))
        if task.filter_seen:
            scores[(rows if seen is None else seen[start : start + at_once]).nonzero()] = -np.inf
        ends = np.searchsorted(owner, start + np.arange(len(scores) + 1))
        drawn = None
        if task.how.candidates != 'all':
            drawn = task.candidates(np.arange(ends[0], ends[-1]))
        for row, mine in zip(scores, map(slice, ends[:-1], ends[1:]), strict=True):
            own, others = row[task.items[mine] - 1], row
            if drawn is not None:
                candidates = drawn[mine.start - ends[0] : mine.stop - ends[0]]
                others = np.where(candidates > 0, row[candidates - 1], -np.inf)
            elif task.in_domain:
                here = task.domains.of_items[1:] == task.target_domains[mine, None]
                others = np.where(here, row, -np.inf)
            each = others if others.ndim == 2 else itertools.repeat(others, len(own))
            for n, (x, y) in enumerate(zip(each, own, strict=True), mine.start):  # rows, not a
                greater[n] = np.count_nonzero(x > y)  # matrix: their sums would take thrice as long
                ties[n] = np.count_nonzero(x == y) - (drawn is None)
    hidden = task.unreachable
    return np.where(hidden, UNREACHABLE, greater), np.where(hidden, 0, ties)
