"""From raw events in file order to Histories: k-core, sorting, numbering."""

import dataclasses

import numpy as np

from jaxrec.data.histories import Histories
from jaxrec.datasets.raw_ids import Coded
from jaxrec.errors import UserError


@dataclasses.dataclass
class Words:
    """A column of any number of words a row.

    Attributes:
      counts: int64 [N], of each row.
      coded: the words of all rows, one after the other.
    """

    counts: np.ndarray
    coded: Coded


@dataclasses.dataclass
class Events:
    """Events in file order.

    Attributes:
      users: raw user ids of the N events.
      items: raw item ids of the N events.
      times: [N] int64, or float64 when a time has a fraction, or None (file order is time order).
      features: named numeric columns, each [N].
      titles: raw item ids with their titles ('S'), both [T], or None.
      item_features: named (raw item ids [T], values [T] or int32 [T, S]); items without one get
        NaN, or in integer columns 0.
      words: named columns of words.
      about: how the source is written, for people: {'delimiter': 'comma', ..}.
    """

    users: Coded
    items: Coded
    times: np.ndarray | None = None
    features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    titles: tuple[np.ndarray, np.ndarray] | None = None
    item_features: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    words: dict[str, Words] = dataclasses.field(default_factory=dict)
    about: dict[str, str] = dataclasses.field(default_factory=dict)


def to_histories(events: Events, name: str, min_user: int = 0, min_item: int = 0) -> Histories:
    """Filters, numbers and sorts events.

    Users and items are numbered by ascending raw id (integers by value, text by its utf-8 bytes)
    after the k-core filter. Events are sorted by (user, time); equal times keep the file's order,
    and equal events are all kept.

    Args:
      events: the events in file order.
      name: data set name, for messages.
      min_user: least events of a user.
      min_item: least events of an item; both are applied until neither removes anything.

    Returns:
      Histories with at least one event.

    Raises:
      UserError: there are no events, or the filter leaves none.
    """
    if not len(events.users.codes):
        raise UserError(f'no events in {name}')
    kept = k_core(events.users.codes, events.items.codes, min_user, min_item)
    if kept is not None and not len(kept):
        raise nothing_left(name, min_user, min_item)
    users, user_ids = number(events.users, kept)
    items, item_ids = number(events.items, kept)
    times = _take(events.times, kept)
    order = time_order(users, times)
    counts = np.bincount(users, minlength=len(user_ids))
    return Histories(
        items=_take(items, order) + np.int32(1),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        user_ids=user_ids,
        item_ids=item_ids,
        times=None if times is None else integer_times(_take(times, order), name),
        features={k: _take(_take(v, kept), order) for k, v in events.features.items()},
        item_features={k: by_item(item_ids, *v) for k, v in events.item_features.items()},
        titles=None if events.titles is None else by_item(item_ids, *events.titles),
        name=name,
    )


def nothing_left(name: str, min_user: int, min_item: int) -> UserError:
    """The complaint about a k-core without events."""
    return UserError(
        f'nothing is left of {name}: no group of users with at least {min_user} events on '
        f'items with at least {min_item}; lower --min_user or --min_item'
    )


def k_core(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int):
    """Indices of the events in the k-core, ascending; None if it keeps everything.

    Args:
      users: int [N] user of each event, numbered from 0.
      items: int [N] item of each event, numbered from 0.
      min_user: least events of each user that is kept.
      min_item: least events of each item that is kept.
    """
    kept = None
    while True:
        by_user = np.bincount(users)[users] >= min_user if len(users) else np.ones(0, bool)
        by_item = np.bincount(items)[items] >= min_item if len(items) else np.ones(0, bool)
        stay = by_user & by_item
        if stay.all():
            return kept
        stay = np.flatnonzero(stay)
        kept = stay if kept is None else kept[stay]
        users, items = users[stay], items[stay]


def number(column: Coded, kept: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers int32 [N] by ascending raw id of the ids that occur, and these ids."""
    codes = _take(column.codes, kept)
    present = np.zeros(len(column.values), bool)
    present[codes] = True
    order = np.argsort(column.values, kind='stable')
    order = order[present[order]]
    rank = np.zeros(len(column.values), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank[codes], column.values[order]


def _take(column, index):
    return column if column is None or index is None else column[index]


def time_order(users: np.ndarray, times: np.ndarray | None) -> np.ndarray | None:
    """Stable order by (user, time); None if the events are already in it."""
    later = users[1:] > users[:-1]
    same = users[1:] == users[:-1]
    if times is not None:
        same &= times[1:] >= times[:-1]
    if (later | same).all():
        return None
    if times is None or (times[1:] >= times[:-1]).all():
        return np.argsort(users, kind='stable')
    return np.lexsort((times, users))  # stable


def integer_times(times: np.ndarray, name: str) -> np.ndarray:
    """Times as int64; fractions are kept as millionths of the source's unit."""
    if times.dtype.kind != 'f':
        return times.astype(np.int64, copy=False)
    if np.abs(times).max() >= 2**63 / 1e6:
        raise UserError(f'times of {name} with fractions are too large to keep as millionths')
    return np.round(times * 1e6).astype(np.int64)


def by_item(item_ids: np.ndarray, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values [num_items, ..] in item order; '', NaN or 0 where the source has none."""
    order = np.argsort(ids, kind='stable')
    at = np.searchsorted(ids, item_ids, sorter=order)
    at = order[np.minimum(at, len(ids) - 1)]
    found = (ids[at] == item_ids).reshape(-1, *[1] * (values.ndim - 1))
    none = np.array(np.nan if values.dtype.kind == 'f' else 0).astype(values.dtype)
    if values.dtype.kind == 'S':
        none = np.zeros((), values.dtype)
    return np.where(found, values[at], none)
