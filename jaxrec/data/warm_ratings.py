"""Ratings of known users: which are learnt, by chance or by time, and what was liked before each.

What a user liked is told by the texts of items. Held-out ratings never are among it: of a row there
are the user's training ratings before it, whatever the row's own part.
"""

import dataclasses

import numpy as np

from jaxrec.data import domains
from jaxrec.data.histories import Histories
from jaxrec.data.ratings import LIKED, Triples, check_once
from jaxrec.errors import UserError

KINDS = ('random', 'temporal')
MOST_PARTS = 8  # of an item's text


@dataclasses.dataclass
class WarmRatings:
    """Ratings that are learnt, and two sets that are not.

    Attributes:
      train, valid, test: beside them, if somebody asked, 'before': int32 [n, H], items that the
        user liked before, 0 = none.
      num_users, num_items: of the data.
    """

    train: Triples
    valid: Triples
    test: Triples
    num_users: int
    num_items: int


def split(
    histories: Histories,
    kind: str,
    *,
    label: str = 'rating',
    valid_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    domain: str = '',
    told: np.ndarray | None = None,
    liked: int = 5,
    leak: bool = False,
) -> WarmRatings:
    """Splits the ratings of a log.

    random: single ratings by chance, whoever rates. temporal: the newest of all are tested, those
    before them validate; ratings of one time keep the order of the data.

    Args:
      histories: with the column `label` of events; events without a number there are left out.
      kind: of KINDS.
      label: the ratings.
      valid_share, test_share: of the ratings.
      seed: of 'random'.
      domain: items of this one alone, by the column `domains.COLUMN`; '' = all.
      told: bool [num_items + 1], which items have a text; None = nobody asks for 'before'.
      liked: H, newest items with a text that a user rated above LIKED before a row.
      leak: the authors' code: the first H of all rows, held-out ones and the row itself too.

    Raises:
      UserError: no such column, domain or times, an item rated twice, or a part is empty.
    """
    name = histories.name or 'the data'
    if label not in histories.features:
        there = ', '.join(sorted(histories.features)) or 'none'
        raise UserError(
            f'{name} has no column {label!r} of events; it has {there}: of your own log name it '
            'with data.features'
        )
    values = np.asarray(histories.features[label], np.float32)
    kept = ~np.isnan(values) & _of_domain(histories, domain)
    owner = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    ratings = Triples(owner[kept].astype(np.int32), histories.items[kept], values[kept])
    check_once(histories, ratings)
    if kind == 'random':
        order = np.random.default_rng(seed).permutation(len(ratings))
    elif histories.times is None:
        raise UserError(f"task.split='temporal' needs times, and {name} has none")
    else:
        order = np.argsort(histories.times[kept], kind='stable')
    valid, test = (round(share * len(ratings)) for share in (valid_share, test_share))
    if min(valid, test, len(ratings) - valid - test) < 1:
        raise UserError(
            f'{name} has {len(ratings)} ratings{f" of {domain}" * bool(domain)}: too few to train, '
            'to validate and to test'
        )
    role = np.zeros(len(ratings), np.int8)
    role[order[len(order) - test :]] = 2
    role[order[len(order) - test - valid : len(order) - test]] = 1
    if told is not None:
        tells = (ratings.values > LIKED) & told[ratings.items]
        tells = tells if leak else tells & (role == 0)
        ratings.beside['before'] = items_before(ratings, tells, liked, first=leak)
    parts = (ratings.take(np.flatnonzero(role == n)) for n in range(3))
    return WarmRatings(*parts, histories.num_users, histories.num_items)


def _of_domain(histories, domain):
    """bool [N], events of the domain's items."""
    if not domain:
        return np.ones(len(histories.items), bool)
    found = domains.of_items(histories)
    if found is None:
        raise UserError(
            f'task.domain={domain!r}, and {histories.name or "the data"} names no domains of '
            'items: of your own log name the column with data.domain_col'
        )
    names, numbers = found
    if domain not in names:
        raise UserError(f'no domain task.domain={domain!r}: the data have {", ".join(names)}')
    return numbers[histories.items] == names.index(domain) + 1


def items_before(
    ratings: Triples, tells: np.ndarray, most: int, *, first: bool = False
) -> np.ndarray:
    """int32 [n, most], the newest items before each row among those that tell, 0 = none.

    Args:
      ratings: user by user, oldest first.
      tells: bool [n], rows whose item may be told.
      most: of a row.
      first: instead the user's first ones, whenever they were rated.
    """
    rows = np.flatnonzero(tells)
    if not len(rows):
        return np.zeros((len(ratings), most), np.int32)
    count = np.concatenate([[0], np.cumsum(tells)])
    begins = np.searchsorted(ratings.users, ratings.users)  # users are in order
    ends = np.searchsorted(ratings.users, ratings.users, side='right')
    if first:
        place = count[begins][:, None] + np.arange(most)
        there = place < count[ends][:, None]
    else:
        place = count[:-1][:, None] - 1 - np.arange(most)
        there = place >= count[begins][:, None]
    chosen = rows[np.clip(place, 0, len(rows) - 1)]
    return np.where(there, ratings.items[chosen], 0).astype(np.int32)


def parts_of(titles: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Parts of texts that are written 'title|genre|genre', a text without a bar is its own.

    Args:
      titles: utf-8 bytes [num_items].

    Returns:
      The different parts, P of them, and int32 [num_items + 1, T]: numbers from 1 of those of every
      item, T the most of one but MOST_PARTS at most, padded with 0.
    """
    found, number = [], {}
    for title in titles.tolist():
        parts = [part.strip() for part in title.split(b'|')]
        parts = list(dict.fromkeys(filter(None, parts)))[:MOST_PARTS]
        found.append([number.setdefault(part, len(number) + 1) for part in parts])
    out = np.zeros((len(found) + 1, max(1, *map(len, found)) if found else 1), np.int32)
    for row, numbers in zip(out[1:], found, strict=True):
        row[: len(numbers)] = numbers
    return list(number), out
