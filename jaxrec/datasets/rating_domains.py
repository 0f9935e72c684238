"""Ratings of the same users in two domains: books and music of Douban, and MovieLens by genre.

The domain is a column of items (`data.domains`), of which the reader says the name.
"""

import dataclasses
import gzip
import pathlib
from collections.abc import Callable

import numpy as np

from jaxrec.data.domains import COLUMN
from jaxrec.data.rows import Rows
from jaxrec.datasets import events, movielens, pair_domains
from jaxrec.datasets.public import read_file
from jaxrec.errors import UserError

_DOUBAN = 'https://raw.githubusercontent.com/fengzhu1/GA-DTCDR/main/Data'
_ENDING = '_ratings.dat'


def read_douban(source: str, say: Callable) -> tuple[Rows, str]:
    """Lines `user<TAB>item<TAB>rating` of two files, {domain}_ratings.dat, plain or gzip.

    Users are shared by both files; items are not, so that an id is one of the file's domain.

    Raises:
      UserError: a file is missing or not of this layout, or nobody is in both.
    """
    if source:
        path = pathlib.Path(source).expanduser()
        found = sorted({p.name.removesuffix('.gz') for p in path.glob(f'*{_ENDING}*')})
        if len(found) != 2:
            raise UserError(
                f'{path} holds {len(found)} files DOMAIN{_ENDING}, and two are wanted: user, item '
                'and rating a line, users alike in both'
            )
        names = [name.removesuffix(_ENDING) for name in found]
        pick = {name: (f'{name}{_ENDING}', source) for name in names}
    else:
        pick = {name: (f'douban_{name}/ratings.dat', '') for name in ('book', 'music')}
    columns, used = [], source or _DOUBAN
    for number, (name, (file, there)) in enumerate(pick.items()):
        data, at = read_file(there, say, f'{_DOUBAN}/{file}', '')
        columns.append((number, _table(data, at)))
        say(f'{at}: {len(columns[-1][1]):,} ratings of {name}')
    users = np.concatenate([table[:, 0] for _, table in columns]).astype(np.int64)
    if not len(np.intersect1d(columns[0][1][:, 0], columns[1][1][:, 0])):
        raise UserError(f'{used}: no user is in both files: their ids are not shared')
    items = [
        np.char.add(f'{name}:', table[:, 1].astype(np.int64).astype(str)).astype('S')
        for name, (_, table) in zip(pick, columns, strict=True)
    ]
    values = np.concatenate([table[:, 2] for _, table in columns]).astype(np.float32)
    names = [np.full(len(table), n.encode()) for n, (_, table) in zip(pick, columns, strict=True)]
    return _rows(users, np.concatenate(items), values, np.concatenate(names), 'ratings'), used


def _table(data: bytes, used: str) -> np.ndarray:
    """float64 [n, 3] of lines with three numbers."""
    data = gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
    lines = data.decode().split('\n')
    while lines and not lines[-1].strip():
        lines.pop()
    cells = [line.split() for line in lines]
    wrong = next((n for n, line in enumerate(cells) if len(line) != 3), None)
    if wrong is None:
        try:
            return np.array(cells, np.float64).reshape(-1, 3)
        except ValueError:
            wrong = next(n for n, line in enumerate(cells) if not _numbers(line))
    raise UserError(f'{used} line {wrong + 1} is not `user<TAB>item<TAB>rating`: {lines[wrong]!r}')


def _numbers(line):
    try:
        return [float(word) for word in line]
    except ValueError:
        return None


def read_genres(source: str, say: Callable, first: str, second: str) -> tuple[Rows, str]:
    """MovieLens-1M's films of one genre and not of the other, each a domain.

    Raises:
      UserError: as of `movielens.ML_1M`, or movies.dat is not there.
    """
    raw, used = movielens.ML_1M.read_checked(source, say)
    if 'genres' not in raw.item_features:
        raise UserError(f'{used} comes without movies.dat, which names the genres')
    ids, genres = raw.item_features['genres']
    one, other = ((genres == movielens.GENRES.index(g) + 1).any(1) for g in (first, second))
    names = np.select([one & ~other, other & ~one], [first.lower(), second.lower()], '').astype('S')
    order = np.argsort(ids)
    place = order[np.searchsorted(ids, raw.items.values, sorter=order)]
    of_event = names[place][raw.items.codes]
    kept = np.flatnonzero(of_event != b'')
    kept = kept[np.argsort(raw.times[kept], kind='stable')]
    users = raw.users.values[raw.users.codes[kept]]
    items = raw.items.values[raw.items.codes[kept]]
    values = raw.features['rating'][kept].astype(np.float32)
    times = events.integer_times(raw.times, used)[kept]
    return _rows(users, items, values, of_event[kept], 'ml-1m-genres', times), used


def _rows(users, items, values, domain, name, times=None):
    """Rows of ratings, in the order given; `domain` is of every rating's item."""
    user_ids, users = np.unique(users, return_inverse=True)
    item_ids, first, items = np.unique(items, return_index=True, return_inverse=True)
    return Rows(
        users=users.astype(np.int32),
        items=(items + 1).astype(np.int32),
        times=np.zeros(len(users), np.int64) if times is None else times,
        user_ids=user_ids,
        item_ids=item_ids,
        item_features={COLUMN: domain[first]},
        labels={'rating': values},
        name=name,
    )


@dataclasses.dataclass(frozen=True)
class Ratings:
    """A data set, as `datasets` asks for it; see `public.DataSet`.

    Attributes:
      size: published numbers of users, items and ratings, a note where others come; () = none.
      variant: of a layout that another folder may have too, see `pair_domains.by_folder`.
    """

    name: str
    description: str
    citation: str
    homepage: str
    licence: str
    read: Callable[[str, Callable], tuple[Rows, str]]
    size: tuple[int, ...] = ()
    variant: Callable[[str], str] | None = None

    def read_checked(self, source: str, say: Callable) -> tuple[Rows, str]:
        """The rows, and where they were."""
        rows, used = self.read(source, say)
        rows.name = self.name
        found = rows.num_users, rows.num_items, len(rows)
        if self.size and found != self.size:
            say(
                f'note: {used} has {found[0]:,} users, {found[1]:,} items and {found[2]:,} ratings,'
                f' not those of {self.name} as published ({self.size[2]:,} ratings)'
            )
        return rows, used


DOUBAN = Ratings(
    name='douban-ratings',
    description='Douban: ratings 1 to 5 of books and of music by shared users, without times. '
    'Another folder with two files DOMAIN_ratings.dat is read alike.',
    citation='Zhu et al., A Graphical and Attentional Framework for Dual-Target Cross-Domain '
    'Recommendation, IJCAI 2020',
    homepage='https://github.com/fengzhu1/GA-DTCDR',
    licence='no licence text comes with the data; the source asks for a citation',
    read=read_douban,
    variant=pair_domains.by_folder,
    size=(2_216, 12_344, 165_750),
)
DRAMA_COMEDY = Ratings(
    name='ml-1m-drama-comedy',
    description='MovieLens-1M: ratings of films that are a drama and no comedy, and the reverse.',
    citation=movielens.CITATION,
    homepage='https://grouplens.org/datasets/movielens/1m/',
    licence=movielens.LICENCE,
    read=lambda source, say: read_genres(source, say, 'Drama', 'Comedy'),
)
