"""Users with events of two domains: examples of how the domains go together, and logs with few.

What a model of two domains knows of a user with events of one alone, it has from the overlapped
users, those with events of both.
"""

import dataclasses

import numpy as np

from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import history_batch
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
    places = np.flatnonzero(of_items[rows].reshape(-1) == 2)[::-1]  # newest first, of the last row
    values, row = rows.reshape(-1)[places], places // rows.shape[1]
    counts = np.bincount(row, minlength=len(rows))
    starts = np.cumsum(counts[::-1])[::-1] - counts  # of each row in `values`
    other = (row - 1) % len(rows)
    nth = np.arange(len(row)) - starts[row]
    found = rows.copy().reshape(-1)
    found[places] = values[starts[other] + nth % counts[other]]
    return found.reshape(rows.shape)


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
