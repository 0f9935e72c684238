"""Scorers without parameters to learn: what a model has to beat.

Popularity, popularity in the last week, and an item-to-item Markov chain, under the protocol, the
seen filter and the tie rule of the model. Scores are integers, so ties are exact. Those that solve
for their parameters are in `linear`.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from jaxrec.data.histories import NO_TIME, Histories
from jaxrec.data.ragged import Tally, blocks, distinct, ranges
from jaxrec.data.splits import Split
from jaxrec.devices.top_k import UNREACHABLE
from jaxrec.evaluation import linear

NAMES = ('popularity', 'last_week_popularity', 'markov')
_DAY = 86_400
_PAIRS_AT_ONCE = 1 << 23  # (user, item) pairs looked at together


def counts(task: Any, names: Collection[str] | None = None) -> dict[str, tuple]:
    """`rank_counts` of all baselines that the data allow, by name.

    Args:
      task: a `ranking.Ranking`.
      names: of NAMES and `linear.NAMES`, those that are wanted; None = all of NAMES.
        last_week_popularity needs times of a unit that `ticks_per_day` knows, linear ones rank the
        whole catalogue.
    """
    histories, split = task.histories, task.split
    popularity, scorers = task.training_counts, {}
    names = NAMES if names is None else names
    if 'popularity' in names:
        scorers['popularity'] = Scorer(popularity)
    if 'last_week_popularity' in names:
        recent = last_week_counts(histories, split)
        if recent is not None:
            scorers['last_week_popularity'] = Scorer(recent)
    if 'markov' in names:
        scorers['markov'] = Scorer(popularity, *transitions(histories, split))
    found = {name: rank_counts(scorer, task) for name, scorer in scorers.items()}
    solved = [name for name in linear.NAMES if name in names]
    if solved and task.how.candidates == 'all':
        found |= linear.counts(task, solved)
    return found


class Scorer:
    """Score of item j after item i: (transitions from i to j, popularity of j), in that order.

    Args:
      popularity: int [num_items + 1].
      pairs: int64 [P] ascending, i * (num_items + 1) + j of the transitions that occur; () = none.
      counts: int [P], how often.
    """

    def __init__(self, popularity: np.ndarray, pairs: np.ndarray = (), counts: np.ndarray = ()):
        self.num_items = len(popularity) - 1
        self.popularity = popularity.astype(np.int64)
        self._sorted = np.sort(self.popularity[1:])
        self.pairs = np.asarray(pairs, np.int64)
        above = int(self.popularity.max()) + 1  # any transition beats every popularity
        items = self.pairs % (self.num_items + 1)
        self.values = np.asarray(counts, np.int64) * above + self.popularity[items]

    def __call__(self, last: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores int64 of `items` after `last`, arrays of one shape."""
        scores = self.popularity[items]
        if len(self.pairs):
            pair = last.astype(np.int64) * (self.num_items + 1) + items
            at = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
            scores = np.where(self.pairs[at] == pair, self.values[at], scores)
        return scores

    def followers(self, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Range of `pairs` that starts at each item of `last`: (starts, ends)."""
        first = last.astype(np.int64) * (self.num_items + 1)
        return (
            np.searchsorted(self.pairs, first),
            np.searchsorted(self.pairs, first + self.num_items + 1),
        )

    def count_popularity(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many items have more, and the same, popularity as each of `scores`."""
        below = np.searchsorted(self._sorted, scores, side='left')
        up_to = np.searchsorted(self._sorted, scores, side='right')
        return self.num_items - up_to, up_to - below


def rank_counts(scorer: Scorer, task: Any) -> tuple[np.ndarray, np.ndarray]:
    """greater, ties: int64 of all targets of a `ranking.Ranking`, as `top_k` defines them."""
    ends = task.targets.ends[task.owner]
    starts = task.histories.offsets[task.targets.users][task.owner]
    last = task.histories.items[np.maximum(ends - 1, starts)]
    counts = _catalogue_counts if task.how.candidates == 'all' else _candidate_counts
    work = scorer.followers(last)[1] - scorer.followers(last)[0] + ends - starts
    work = work + task.how.negatives
    group = np.cumsum(work) // _PAIRS_AT_ONCE
    parts = np.split(np.arange(len(last)), np.flatnonzero(np.diff(group)) + 1)
    out = [counts(scorer, task, chosen, last[chosen]) for chosen in parts]
    greater, ties = (np.concatenate(column) for column in zip(*out, strict=True))
    from_filter = task.unreachable
    return np.where(from_filter, UNREACHABLE, greater), np.where(from_filter, 0, ties)


def _catalogue_counts(scorer, task, chosen, last):
    """Counts over the whole catalogue without visiting it.

    All items are counted by popularity (a binary search in the sorted counts); then the items
    whose score is not their popularity, the followers of the last item, are moved to where they
    belong; then the target itself and the seen items are taken out.
    """
    targets = task.items[chosen]
    score = scorer(last, targets)
    greater, ties = scorer.count_popularity(score)

    def add(owner, values, sign):
        nonlocal greater, ties
        greater = greater + sign * np.bincount(owner[values > score[owner]], minlength=len(chosen))
        ties = ties + sign * np.bincount(owner[values == score[owner]], minlength=len(chosen))

    first, end = scorer.followers(last)
    index = ranges(first, end - first)
    owner = np.repeat(np.arange(len(chosen)), end - first)
    add(owner, scorer.popularity[scorer.pairs[index] % (scorer.num_items + 1)], -1)
    add(owner, scorer.values[index], +1)

    ties = ties - 1  # the target
    if task.filter_seen:
        example = task.owner[chosen]
        start = task.histories.offsets[task.targets.users[example]]
        lengths = task.targets.ends[example] - start
        owner = np.repeat(np.arange(len(chosen)), lengths)
        events = task.histories.items[ranges(start, lengths)]
        seen = distinct(owner * (scorer.num_items + 1) + events)
        owner, events = np.divmod(seen, scorer.num_items + 1)
        add(owner, scorer(last[owner], events), -1)
    return greater, ties


def _candidate_counts(scorer, task, chosen, last):
    candidates = task.candidates(task.owner[chosen])
    scores = scorer(np.repeat(last[:, None], candidates.shape[1], 1), candidates)
    target = scorer(last, task.items[chosen])[:, None]
    real = candidates > 0
    return ((scores > target) & real).sum(1), ((scores == target) & real).sum(1)


def transitions(histories: Histories, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of consecutive training events.

    Returns:
      pairs: int64 [P] ascending, i * (num_items + 1) + j; counts: int64 [P].
    """
    tally = Tally()
    for users in blocks(histories.offsets):
        starts = histories.offsets[users]
        index = ranges(starts, np.maximum(split.train_ends[users] - starts - 1, 0))
        before, after = histories.items[index].astype(np.int64), histories.items[index + 1]
        tally.add(*np.unique(before * (histories.num_items + 1) + after, return_counts=True))
    return tally.result()


def last_week_counts(histories: Histories, split: Split) -> np.ndarray | None:
    """Training interactions per item in the 7 days up to the newest training event.

    Returns:
      int64 [num_items + 1]; None without times, or if their unit is unknown.
    """
    if histories.times is None:
        return None

    def training():
        for users in blocks(histories.offsets):
            starts = histories.offsets[users]
            index = ranges(starts, split.train_ends[users] - starts)
            yield histories.times[index], index

    newest = max(int(times.max(initial=NO_TIME)) for times, _ in training())
    day = ticks_per_day(newest)
    if day is None:
        return None
    counts = np.zeros(histories.num_items + 1, np.int64)
    for times, index in training():
        recent = histories.items[index[times > newest - 7 * day]]
        counts += np.bincount(recent, minlength=len(counts))
    return counts


def ticks_per_day(newest: int) -> int | None:
    """Length of a day in the unit of the times, told by the size of the newest one.

    Times since 1970 in seconds are below 1e11 until the year 5138, and milli-, micro- and
    nanoseconds are above 1e11, 1e14 and 1e17 since 1973, so the ranges do not meet. None for
    anything below 1e8: not a time since 1970, or in a unit such as days.
    """
    if newest < 10**8:
        return None
    for power in (0, 3, 6):
        if newest < 10 ** (power + 11):
            return _DAY * 10**power
    return _DAY * 10**9
