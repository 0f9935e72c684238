"""Scorers without parameters to learn: what a model has to beat.

Popularity, popularity in the last week, and an item-to-item Markov chain, under the protocol, the
seen filter and the tie rule of the model. Scores are integers, so ties are exact. Those that solve
for their parameters are in `linear`.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from jaxrec.data.domains import followers
from jaxrec.data.histories import NO_TIME, Histories
from jaxrec.data.ragged import Tally, blocks, distinct, ranges
from jaxrec.data.splits import Split
from jaxrec.devices.top_k import UNREACHABLE
from jaxrec.evaluation import linear

NAMES = ('popularity', 'last_week_popularity', 'markov')
OF_DOMAINS = ('markov_in_domain', 'items_own', 'items_other', 'items_both')
_DAY = 86_400
_PAIRS_AT_ONCE = 1 << 23  # (user, item) pairs looked at together


def counts(task: Any, names: Collection[str] | None = None) -> dict[str, tuple]:
    """`rank_counts` of all baselines that the data allow, by name.

    Args:
      task: a `ranking.Ranking`.
      names: of NAMES, OF_DOMAINS and `linear.NAMES`, those that are wanted; None = all of NAMES,
        and of OF_DOMAINS where targets are ranked in their domains, for which these are.
        last_week_popularity needs times of a unit that `ticks_per_day` knows, linear ones rank the
        whole catalogue.
    """
    histories, split = task.histories, task.split
    popularity, scorers = task.training_counts, {}
    if names is None:
        names = NAMES + OF_DOMAINS * task.in_domain
    if 'popularity' in names:
        scorers['popularity'] = Scorer(popularity)
    if 'last_week_popularity' in names:
        recent = last_week_counts(histories, split)
        if recent is not None:
            scorers['last_week_popularity'] = Scorer(recent)
    if 'markov' in names:
        scorers['markov'] = Scorer(popularity, *transitions(histories, split))
    found = {name: rank_counts(scorer, task) for name, scorer in scorers.items()}
    if task.in_domain:
        found |= _in_domains(task, names)
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
      within: bool [num_items + 1], the items that are ranked; None = all.
    """

    def __init__(
        self,
        popularity: np.ndarray,
        pairs: np.ndarray = (),
        counts: np.ndarray = (),
        within: np.ndarray | None = None,
    ):
        self.num_items = len(popularity) - 1
        self.popularity = popularity.astype(np.int64)
        self.within = np.ones(len(popularity), bool) if within is None else within
        self._sorted = np.sort(self.popularity[1:][self.within[1:]])
        self.pairs, counts = np.asarray(pairs, np.int64), np.asarray(counts, np.int64)
        kept = self.within[self.pairs % len(popularity)]
        self.pairs, counts = self.pairs[kept], counts[kept]
        above = int(self.popularity.max()) + 1  # any transition beats every popularity
        items = self.pairs % (self.num_items + 1)
        self.values = counts * above + self.popularity[items]

    def among(self, within: np.ndarray) -> 'Scorer':
        """The same of these items alone, bool [num_items + 1]."""
        found = Scorer(self.popularity, self.pairs, np.zeros(len(self.pairs)), within)
        found.values = self.values[within[self.pairs % len(within)]]
        return found

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
        return len(self._sorted) - up_to, up_to - below


def rank_counts(
    scorer: Scorer | dict[int, Scorer], task: Any, last: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """greater, ties: int64 of all targets of a `ranking.Ranking`, as `top_k` defines them.

    Args:
      scorer: of all targets, or by domain, where they are ranked in their domains.
      task: the ranking.
      last: int [targets], item by which each is scored; None = the newest one of the history.
    """
    if task.in_domain and not isinstance(scorer, dict):
        domains = np.unique(task.target_domains).tolist()
        scorer = {d: scorer.among(task.domains.of_items == d) for d in domains}
    if last is None:
        starts = task.histories.offsets[task.targets.users][task.owner]
        last = task.histories.items[np.maximum(task.targets.inputs[task.owner] - 1, starts)]
    greater, ties = (np.zeros(len(task.items), np.int64) for _ in range(2))
    if not isinstance(scorer, dict):
        _count(scorer, task, np.arange(len(last)), last, greater, ties)
    else:
        for domain, one in scorer.items():
            mine = np.flatnonzero(task.target_domains == domain)
            _count(one, task, mine, last, greater, ties)
    from_filter = task.unreachable
    return np.where(from_filter, UNREACHABLE, greater), np.where(from_filter, 0, ties)


def _count(scorer, task, mine, last, greater, ties):
    """Puts the counts of the targets `mine` into `greater` and `ties`, some at a time."""
    ends = task.targets.inputs[task.owner[mine]]
    starts = task.histories.offsets[task.targets.users][task.owner[mine]]
    first, end = scorer.followers(last[mine])
    counts = _catalogue_counts if task.how.candidates == 'all' else _candidate_counts
    group = np.cumsum(end - first + ends - starts + task.how.negatives) // _PAIRS_AT_ONCE
    for some in np.split(mine, np.flatnonzero(np.diff(group)) + 1):
        greater[some], ties[some] = counts(scorer, task, some, last[some])


def _in_domains(task, names):
    """Counts of those of OF_DOMAINS that are wanted."""
    found, histories = {}, task.histories
    domain = task.domains.of_items[histories.items]
    if 'markov_in_domain' in names:
        follow = followers(histories, task.split.train_ends, task.domains.of_items)
        pairs = follow[0] * (histories.num_items + 1) + follow[1]
        by_domain, last = {}, np.zeros(len(task.items), np.int64)
        for d in np.unique(task.target_domains).tolist():
            alone = task.domains.of_items == d
            by_domain[d] = Scorer(task.training_counts, pairs, follow[2], within=alone)
            events = np.flatnonzero(domain == d)
            mine = np.flatnonzero(task.target_domains == d)
            example = task.owner[mine]
            place = np.searchsorted(events, task.targets.inputs[example]) - 1
            newest = events[np.maximum(place, 0)]
            there = (place >= 0) & (newest >= histories.offsets[task.targets.users[example]])
            last[mine] = np.where(there, histories.items[newest], 0)
        found['markov_in_domain'] = rank_counts(by_domain, task, last)
    wanted = [name for name in OF_DOMAINS if name in names and name.startswith('items_')]
    return found | (linear.neighbours(task, wanted) if wanted else {})


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
        lengths = task.targets.inputs[example] - start
        owner = np.repeat(np.arange(len(chosen)), lengths)
        events = task.histories.items[ranges(start, lengths)]
        seen = distinct(owner * (scorer.num_items + 1) + events)
        owner, events = np.divmod(seen, scorer.num_items + 1)
        ranked = scorer.within[events]
        owner, events = owner[ranked], events[ranked]
        add(owner, scorer(last[owner], events), -1)
    return greater, ties


def _candidate_counts(scorer, task, chosen, last):
    candidates = task.candidates(chosen)
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
