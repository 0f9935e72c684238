"""Users with events of two domains: examples of how the domains go together, and logs with few.

What a model of two domains knows of a user with events of one alone, it has from the overlapped
users, those with events of both.
"""

import dataclasses

import numpy as np

from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import history_batch
from jaxrec.data.ragged import ranges
from jaxrec.data.splits import Split
from jaxrec.errors import UserError


def overlapped(
    histories: Histories,
    train_ends: np.ndarray,
    of_items: np.ndarray,
    width: int,
    most: int,
    shuffled: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The newest training events of overlapped users, in an order that is drawn once for all.

    Args:
      histories: the events.
      train_ends: int64 [U], absolute end of each user's training events.
      of_items: int32 [num_items + 1], 1 or 2, the domain of each item.
      width: W, events of a row; all but the last have to be of both domains.
      most: rows.
      shuffled: the control: every user's events of the second domain are replaced by another's,
        see `with_others`.

    Returns:
      int32 [N] users from 0, and int32 [N, W] their events, right-aligned.

    Raises:
      UserError: fewer than two such users.
    """
    rows = history_batch(histories.items, histories.offsets[:-1], train_ends, width, width)['items']
    seen = of_items[rows[:, :-1]]
    users = np.flatnonzero((seen == 1).any(1) & (seen == 2).any(1))
    if len(users) < 2:
        raise UserError(
            f'{len(users)} users have training events of both domains among their newest '
            f'{width - 1}: there is nothing to learn of how domains go together'
        )
    users = np.random.default_rng(0).permutation(users)[:most]
    rows = rows[users]
    return users.astype(np.int32), with_others(rows, of_items) if shuffled else rows


def with_others(rows: np.ndarray, of_items: np.ndarray) -> np.ndarray:
    """Rows whose events of the second domain are those of the row before them, newest for newest.

    Places, lengths and domains stay. Where the other row has fewer, its events come again.

    Args:
      rows: int32 [N, W] items, right-aligned, 0 = padding; each with an item of the second domain.
      of_items: int32 [num_items + 1], the domain of each item.
    """
    turned = rows[:, ::-1].copy()  # newest first
    places = of_items[turned] == 2
    turned[places] = _of_the_one_before(turned[places], places.sum(1))
    return turned[:, ::-1]


def with_other_histories(
    histories: Histories, split: Split, of_items: np.ndarray, seed: int = 0
) -> tuple[Histories, Split]:
    """The control of what is learnt across domains: the same log, domains of different people.

    Of each user the domain of the last event stays. What is in the other one is replaced by such
    events of another user who has about as many, newest for newest. So tested targets and their
    candidates are the same, and so is what stands before them of their own domain. Of those that
    validate only the ones are left of which that holds too.

    Args:
      histories: the events.
      split: of them.
      of_items: int32 [num_items + 1], 1 or 2, the domain of each item.
      seed: of the order of users with equally many.
    """
    domain, lengths = of_items[histories.items], np.diff(histories.offsets)
    last = domain[np.maximum(histories.offsets[1:] - 1, 0)]
    owner = np.repeat(np.arange(histories.num_users), lengths)
    free = domain != last[owner]
    same = domain[split.valid.ends] == last[split.valid.users]
    valid = split.valid.take(np.flatnonzero(same))
    for targets in (valid, split.test):
        free[ranges(targets.ends, targets.stops - targets.ends)] = False
    items, counts = histories.items.copy(), np.bincount(owner[free], minlength=len(lengths))
    rank = np.random.default_rng(seed).permutation(len(lengths))
    for n in (1, 2):
        users = np.flatnonzero((last == 3 - n) & (counts > 0))
        users = users[np.lexsort((rank[users], counts[users]))]
        place = np.zeros(len(lengths), np.int64)
        place[users] = np.arange(len(users))
        events = np.flatnonzero(free & (domain == n))[::-1]  # newest first
        events = events[np.argsort(place[owner[events]], kind='stable')]
        items[events] = _of_the_one_before(histories.items[events], counts[users])
    shuffled = dataclasses.replace(
        histories, items=items, name=f'{histories.name}, domains shuffled'
    )
    return shuffled, dataclasses.replace(split, valid=valid)


def _of_the_one_before(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Values [sum of counts] in groups, those of each replaced by those of the group before it.

    Where that one has fewer, its values come again; none is empty.
    """
    group = np.repeat(np.arange(len(counts)), counts)
    starts, before = np.cumsum(counts) - counts, group - 1  # -1: the last
    nth = np.arange(len(values)) - starts[group]
    return values[starts[before] + nth % counts[before]]


def hidden(histories: Histories, of_items: np.ndarray, share: float, seed: int = 0) -> Histories:
    """The log in which `share` of the overlapped users keep both domains.

    Of the other ones a domain that is drawn for each is hidden: they have events of one alone, and
    are trained and tested by these.

    Args:
      histories: the events.
      of_items: int32 [num_items + 1], 1 or 2, the domain of each item.
      share: in (0, 1], rounded down.
      seed: of the draws.
    """
    owner = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    domain = of_items[histories.items]
    counts = [np.bincount(owner[domain == n], minlength=histories.num_users) for n in (1, 2)]
    both = np.flatnonzero((counts[0] > 0) & (counts[1] > 0))
    generator = np.random.default_rng(seed)
    alone = generator.permutation(both)[int(share * len(both) + 1e-9) :]
    lost = np.zeros(histories.num_users, np.int32)
    lost[alone] = generator.integers(1, 3, len(alone))
    kept = np.flatnonzero(domain != lost[owner])
    upto = np.concatenate([[0], np.cumsum(domain != lost[owner])])
    return dataclasses.replace(
        histories,
        items=histories.items[kept],
        offsets=upto[histories.offsets],
        times=None if histories.times is None else histories.times[kept],
        features={name: column[kept] for name, column in histories.features.items()},
        name=f'{histories.name}, {share:.0%} of the users of both domains keep both',
    )
