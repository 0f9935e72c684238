"""Domains: catalogues that share users, such as food and kitchen, told by a column of items.

The same product may be in both domains under two ids ("twins"), since shops list it twice. Then an
event that is held out in one domain is in the user's history of the other, and what looks like
transfer between domains is a look-up: such rows are told apart from clean ones.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxrec.data.catalogue import Catalogue
from jaxrec.data.histories import Histories
from jaxrec.data.ragged import blocks, distinct, ranges
from jaxrec.data.splits import Split, Targets
from jaxrec.errors import UserError

COLUMN = 'domain'  # of items: the name of the item's domain, utf-8 bytes
HISTORIES = ('both domains', "the target's alone", 'the other alone', 'nothing')
ROWS = ('twin', 'clean')
TWIN_USERS, TWIN_OVERLAP = 3, 0.7  # least common users of twins, and least Jaccard of their users
_MOST = 62  # domains, bits of an int64
_PAIRS_AT_ONCE = 1 << 22
_UNTIMED = 100  # users from whom on ascending ids are no accident


@dataclasses.dataclass
class Domains:
    """Which domain every item is of, and what users had before every event.

    Attributes:
      names: of the domains, ascending.
      of_items: int32 [num_items + 1]; 1 .. of the item's domain in `names`, 0 of padding.
      before: int64 [N], bit d - 1 where the user had events of domain d before this one.
      twins: int32 [P, 2] items that are the same product, see `twins`.
      twin_before: bool [N], whether the user had a twin of the event's item before.
    """

    names: tuple[str, ...]
    of_items: np.ndarray
    before: np.ndarray
    twins: np.ndarray
    twin_before: np.ndarray

    def number(self, name: str) -> int:
        """The number of a domain, from 1; UserError if there is none of that name."""
        return _number(self.names, name)

    def kinds(self, events: np.ndarray, items: np.ndarray) -> np.ndarray:
        """int [n], index into HISTORIES of what users had before `events`, whose targets `items`.

        Args:
          events: int [n], index of the first event that was not there yet.
          items: int [n], of the targets.
        """
        had = self.before[events]
        bit = np.int64(1) << (self.of_items[items] - 1)
        own, other = had & bit > 0, had & ~bit > 0
        return np.select([own & other, own, other], [0, 1, 2], 3)

    def note(self, histories: Histories, targets: Targets) -> str:
        """A line for people: the twins, and the share of targets that have theirs before them."""
        held_out = ranges(targets.ends, targets.stops - targets.ends)
        share = float(np.mean(self.twin_before[held_out])) if len(held_out) else 0.0
        sizes = np.bincount(self.of_items, minlength=len(self.names) + 1)[1:]
        items = ', '.join(f'{n} {size:,}' for n, size in zip(self.names, sizes, strict=True))
        return (
            f'note: domains of items: {items}; {len(self.twins):,} pairs across domains have nearly'
            f' the same users (twins: the same product twice?), and {share:.1%} of the test targets'
            ' have their twin in the history: a look-up, not transfer'
        )


def of_items(items: Histories | Catalogue) -> tuple[tuple[str, ...], np.ndarray] | None:
    """(names, int32 [num_items + 1]) of histories or a catalogue; None if they name no domains.

    Raises:
      UserError: an item without a domain.
    """
    whole = isinstance(items, Histories)
    columns = items.item_features if whole else items.features
    if COLUMN not in columns:
        return None
    column = np.asarray(columns[COLUMN])
    if column.dtype.kind != 'S':  # a column of that name which somebody kept for other ends
        return None
    values, place = np.unique(column, return_inverse=True)
    if not values[0]:
        item = items.raw_item(int((column == b'').argmax()) + 1)
        raise UserError(f'item {item!r} of {items.name} has no domain')
    numbers = np.concatenate([[0], place.reshape(-1) + 1]).astype(np.int32)
    return tuple(v.decode() for v in values), numbers


def within(items: Histories | Catalogue, name: str) -> np.ndarray:
    """bool [num_items], the items of a domain; UserError if there is none of that name."""
    found = of_items(items)
    if found is None:
        raise UserError(f'the items of {items.name or "the data"} have no domains')
    return found[1][1:] == _number(found[0], name)


def _number(names, name):
    if name not in names:
        raise UserError(f'no domain {name!r}: the data have {", ".join(names)}')
    return names.index(name) + 1


def check_names(names: Sequence[str], where: str) -> None:
    """UserError unless there are two domains or more, and not too many."""
    if len(names) < 2:
        raise UserError(
            f'the domain column of {where} has the one value {names[0]!r}: domains are two or '
            'more; leave the column out'
        )
    if len(names) > _MOST:
        raise UserError(
            f'the domain column of {where} has {len(names):,} values, {_MOST} at most: it names '
            'no domains'
        )


def find(histories: Histories, split: Split | None = None) -> Domains | None:
    """The domains of histories; None if they name none.

    Args:
      histories: whose order is that of time, unless `split` is given.
      split: of histories in another order, which says how much of them is before a target.

    Raises:
      UserError: an item without a domain, one domain alone, or very many; events without times that
        were sorted by their ids.
    """
    found = of_items(histories)
    if found is None:
        return None
    names, numbers = found
    check_names(names, histories.name)
    if split is None:
        _check_order(histories)
    domain = numbers[histories.items]
    starts = np.repeat(histories.offsets[:-1], np.diff(histories.offsets))
    before = np.zeros(len(domain), np.int64)
    for n in range(len(names)):
        so_far = np.concatenate([[0], np.cumsum(domain == n + 1)])
        before |= (so_far[:-1] > so_far[starts]).astype(np.int64) << n
    pairs = twins(histories, numbers)
    before_each = np.arange(len(domain))
    for some in () if split is None else (split.valid, split.test):
        lengths = some.stops - some.ends
        before_each[ranges(some.ends, lengths)] = np.repeat(some.inputs, lengths)
    return Domains(names, numbers, before, pairs, _had_twin(histories, pairs, before_each))


def _check_order(histories):
    """UserError where there are no times, and every user's events go by ascending item number."""
    lengths = np.diff(histories.offsets)
    if histories.times is not None or (lengths >= 3).sum() < _UNTIMED:
        return
    for users in blocks(histories.offsets):
        first, last = histories.offsets[users.start], histories.offsets[users.stop]
        falls = histories.items[first + 1 : last] < histories.items[first : last - 1]
        ends = histories.offsets[users.start + 1 : users.stop] - first - 1
        falls[ends[(ends >= 0) & (ends < len(falls))]] = False  # from one user to the next
        if falls.any():
            return
    raise UserError(
        f'{histories.name} has no times, and the events of every user are sorted by item id: this '
        'is no order of time, and nothing can be held out by it'
    )


def only(
    histories: Histories, split: Split, domains: Domains, name: str
) -> tuple[Histories, Split, Domains]:
    """One domain of histories that were split whole: the same targets, the others left out.

    Users keep their numbers, and have no events where they had none in the domain. Items are
    numbered anew, in the same order. So a model of one domain ranks the very targets, and the very
    drawn candidates, that one of the merged log ranks in that domain.

    Raises:
      UserError: no such domain.
    """
    mine = domains.of_items == domains.number(name)
    new = np.cumsum(mine, dtype=np.int32)
    kept = mine[histories.items]
    index = np.flatnonzero(kept)
    upto = np.concatenate([[0], np.cumsum(kept)])

    def targets(old: Targets) -> Targets:
        ends, stops, inputs = (upto[column] for column in (old.ends, old.stops, old.inputs))
        chosen = stops > ends
        return Targets(old.users[chosen], ends[chosen], stops[chosen], inputs[chosen])

    pairs = domains.twins
    one = dataclasses.replace(
        histories,
        items=new[histories.items[index]],
        offsets=upto[histories.offsets],
        item_ids=histories.item_ids[mine[1:]],
        times=None if histories.times is None else histories.times[index],
        features={n: column[index] for n, column in histories.features.items()},
        item_features={n: column[mine[1:]] for n, column in histories.item_features.items()},
        titles=None if histories.titles is None else histories.titles[mine[1:]],
        name=f'{histories.name}, {name} alone',
    )
    return (
        one,
        Split(upto[split.train_ends], targets(split.valid), targets(split.test)),
        Domains(
            domains.names,
            domains.of_items[np.concatenate([[True], mine[1:]])],
            domains.before[index],
            pairs[:0],
            domains.twin_before[index],
        ),
    )


def followers(
    histories: Histories, train_ends: np.ndarray, of_items: np.ndarray | None = None
) -> np.ndarray:
    """Which item directly follows which in training, and how often.

    Args:
      histories: the events.
      train_ends: int64 [U], absolute end of each user's training events.
      of_items: domain of each item: then the next event of the same domain follows; None = the
        next one.

    Returns:
      int64 [3, E]: item, follower, count; ascending by item and follower.
    """
    owner = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    events = np.flatnonzero(np.arange(len(owner)) < train_ends[owner])
    key = owner[events]
    if of_items is not None:
        key = key * (int(of_items.max()) + 1) + of_items[histories.items[events]]
        order = np.argsort(key, kind='stable')
        events, key = events[order], key[order]
    same = key[1:] == key[:-1]
    before, after = (histories.items[events[n : n + len(same)]][same] for n in (0, 1))
    size = histories.num_items + 1
    keys, counts = np.unique(before.astype(np.int64) * size + after, return_counts=True)
    return np.stack([*np.divmod(keys, size), counts])


def twins(
    histories: Histories,
    of_items: np.ndarray,
    users: int = TWIN_USERS,
    overlap: float = TWIN_OVERLAP,
) -> np.ndarray:
    """Pairs of items of different domains that nearly the same users have.

    Exact, and by way of few pairs: users are put in order of their number of items, and items with
    n users whose Jaccard index is at least t share one of their first n - ceil(t n) + 1 (prefix
    filter, Chaudhuri et al., ICDE 2006).

    Args:
      histories: all events count, held out ones too: it is the log that is judged.
      of_items: int32 [num_items + 1], domain of each item.
      users: least common users of a pair.
      overlap: least Jaccard index of their users.

    Returns:
      int32 [P, 2], the lower domain first, ascending.
    """
    size = histories.num_users
    owner = np.repeat(np.arange(size), np.diff(histories.offsets))
    keys = distinct(histories.items.astype(np.int64) * size + owner)  # item by item
    items, owner = np.divmod(keys, size)
    degree = np.bincount(items, minlength=len(of_items))
    rank = np.empty(size, np.int64)  # of users, those of few items first
    rank[np.argsort(np.bincount(owner, minlength=size), kind='stable')] = np.arange(size)
    order = np.lexsort((rank[owner], items))
    starts = np.concatenate([[0], np.cumsum(degree)])
    prefix = degree - np.ceil(overlap * degree - 1e-9).astype(np.int64) + 1
    prefix = np.where(degree >= users, np.minimum(prefix, degree), 0)
    chosen = order[ranges(starts[:-1], prefix)]
    by_user = chosen[np.lexsort((of_items[items[chosen]], owner[chosen]))]
    left, who = items[by_user], owner[by_user]
    # of each user every item with all items of the domains behind its own
    sign = who * (int(of_items.max()) + 1) + of_items[left]
    behind, end = np.searchsorted(sign, sign, 'right'), np.searchsorted(who, who, 'right')
    found = [np.zeros(0, np.int64)]
    group = np.cumsum(end - behind) // _PAIRS_AT_ONCE
    for some in np.split(np.arange(len(left)), np.flatnonzero(np.diff(group)) + 1):
        lengths = (end - behind)[some]
        pair = np.repeat(left[some], lengths) * len(of_items) + left[ranges(behind[some], lengths)]
        first, second = np.divmod(distinct(pair), len(of_items))
        few, many = np.minimum(degree[first], degree[second]), np.maximum(*degree[[first, second]])
        found.append((first * len(of_items) + second)[few >= overlap * many - 1e-9])
    first, second = np.divmod(distinct(np.concatenate(found)), len(of_items))
    common = _common_users(keys, starts, degree, first, second, size)
    union = degree[first] + degree[second] - common
    good = (common >= users) & (common >= overlap * union - 1e-9)
    return np.stack([first[good], second[good]], axis=1).astype(np.int32)


def _common_users(keys, starts, degree, first, second, size):
    """int64 [P], how many users pairs of items share; `keys` are item * size + user, ascending."""
    common = np.zeros(len(first), np.int64)
    group = np.cumsum(degree[first]) // _PAIRS_AT_ONCE
    for some in np.split(np.arange(len(first)), np.flatnonzero(np.diff(group)) + 1):
        lengths = degree[first[some]]
        users = keys[ranges(starts[first[some]], lengths)] % size
        there = _position(keys, np.repeat(second[some], lengths) * size + users) >= 0
        common[some] = np.bincount(np.repeat(np.arange(len(some)), lengths)[there], None, len(some))
    return common


def _position(keys, wanted):
    """Place of each of `wanted` in ascending `keys`, -1 where it is not there."""
    if not len(keys):
        return np.full(np.shape(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _had_twin(histories, pairs, before):
    """bool [N], whether the user had a twin of the event's item; `before` ends what counts."""
    found = np.zeros(len(histories.items), bool)
    if not len(pairs):
        return found
    both = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int64)
    both = both[np.argsort(both[:, 0], kind='stable')]
    rows = len(histories.item_ids) + 1
    concerned = np.zeros(rows, bool)
    concerned[both[:, 0]] = True
    events = np.flatnonzero(concerned[histories.items])
    user = np.searchsorted(histories.offsets, events, 'right') - 1
    item = histories.items[events].astype(np.int64)
    key = user * rows + item
    order = np.argsort(key, kind='stable')
    first = order[
        np.concatenate([[True], np.diff(key[order]) > 0])
    ]  # of a user's events of an item
    low, high = (np.searchsorted(both[:, 0], item, side) for side in ('left', 'right'))
    at = np.repeat(np.arange(len(events)), high - low)
    twin = both[ranges(low, high - low), 1]
    place = _position(key[first], user[at] * rows + twin)
    earlier = (place >= 0) & (events[first][place] < before[events[at]])
    found[events[at[earlier]]] = True
    return found
