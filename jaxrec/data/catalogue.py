"""A catalogue: the items of the data as lists need them.

Without events but those of a graph, and of users whom a model compares others with.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxrec.data import stored
from jaxrec.errors import UserError

_INTEGER = re.compile('0|-?[1-9][0-9]{0,18}')  # int() also takes '1_0', '+1' and other digits
_CODE, _FEATURE, _TEXT = 'code.', 'item.', 'text.'


class Items:
    """Items by number 1..num_items, their raw ids and titles.

    Attributes:
      item_ids: [num_items]; raw id of item i at i - 1, int64 or utf-8 bytes ('S'), ascending.
      titles: utf-8 bytes [num_items] for display, or None.
    """

    item_ids: np.ndarray
    titles: np.ndarray | None

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def find_item(self, raw) -> int | None:
        """1-based number of the item with raw id `raw` (int, or its text), None if unknown."""
        index = find(self.item_ids, raw)
        return None if index is None else index + 1

    def find_items(self, raw: Sequence) -> np.ndarray:
        """int64 [n], `find_item` of each, 0 where it is unknown."""
        return find_all(self.item_ids, raw) + 1

    def raw_item(self, item: int) -> int | str:
        """Raw id of item number `item`, as the source gave it."""
        return plain(self.item_ids[item - 1])

    def raw_items(self, items: np.ndarray) -> list[int | str]:
        """`raw_item` of each of int [n]."""
        return _plain(self.item_ids[items - 1])

    def title(self, item: int) -> str:
        """Title of item number `item`, '' where there is none."""
        return '' if self.titles is None else plain(self.titles[item - 1])

    def titles_of(self, items: np.ndarray) -> list[str]:
        """`title` of each of int [n]."""
        return [''] * len(items) if self.titles is None else _plain(self.titles[items - 1])


@dataclasses.dataclass
class Catalogue(Items):
    """What a run keeps of its data, so that it can be served without them.

    Attributes:
      item_ids, titles: see `Items`.
      num_users: of the data, by which a model may have made a table.
      data_hash: of the data.
      codes: of the features that items have and the model reads, int32 [num_items + 1] or
        [num_items + 1, T] by column; row 0 is padding. See `features.Encoder`.
      features: columns of items as the data have them, [num_items] or [num_items, T]: see `where`.
      name: of the data set, for messages.
      pairs: int32 [2, E] of the graph that item vectors are propagated over, see
        `pairs.training_pairs`; None where there is none.
      known: bool [num_items + 1], items with training events, of models that make item vectors of
        `codes`; None for others.
      follow, follow_own: int64 [3, E] of `domains.followers`, by the merged log and in each domain,
        of models that read them; None for others.
      support, support_users: of `overlap.overlapped`, histories that a model compares others with;
        None where it has none.
      texts: 'vectors' float32 [num_items + 1, d] of the items' texts and what made them, see
        `item_texts.ItemTexts`, of tasks that read them; {} for others.
    """

    KIND: ClassVar[str] = 'catalogue'

    item_ids: np.ndarray
    num_users: int
    data_hash: str
    titles: np.ndarray | None = None
    codes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    name: str = ''
    pairs: np.ndarray | None = None
    known: np.ndarray | None = None
    follow: np.ndarray | None = None
    follow_own: np.ndarray | None = None
    support: np.ndarray | None = None
    support_users: np.ndarray | None = None
    texts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def content_hash(self) -> str:
        """sha256 over every column; independent of file format and platform."""
        return stored.content_hash(self.KIND, self.columns())

    def statistics(self) -> dict:
        """How many items, and how many users the data have."""
        return {'items': self.num_items, 'users': self.num_users}

    def save(self, folder: pathlib.Path) -> None:
        """Writes the columns and meta.json, see `stored.save`."""
        stored.save(self, folder, {'of': self.data_hash})

    @classmethod
    def load(cls, folder: pathlib.Path) -> 'Catalogue':
        """Opens a folder written by `save`; columns are memory-mapped, read-only.

        Raises:
          UserError: a file of it is missing, damaged or of another kind.
        """

        def made(columns, name, meta):
            codes, features = stored.named(columns, _CODE), stored.named(columns, _FEATURE)
            num_users = int(columns.pop('num_users')[0])
            texts = stored.named(columns, _TEXT)
            rest = {'codes': codes, 'features': features, 'data_hash': meta['of'], 'name': name}
            rest |= {'texts': texts}
            return cls(**columns, num_users=num_users, **rest)

        return opened(folder, cls.KIND, made)

    def where(self, **features: Any) -> np.ndarray:
        """bool [num_items], the items whose features have these values.

        Args:
          features: by column, a value or several of which one will do; of a set, that holds one of
            them: genres=3, year=(1994, 1995).

        Raises:
          UserError: the catalogue has no such column.
        """
        chosen = np.ones(self.num_items, bool)
        for name, values in features.items():
            if name not in self.features:
                there = ', '.join(self.features) or 'none'
                raise UserError(f'the catalogue has no column {name!r} of items; it has {there}')
            found = np.isin(self.features[name], np.atleast_1d(np.asarray(values)))
            chosen &= found.any(1) if found.ndim == 2 else found
        return chosen

    def columns(self) -> dict[str, np.ndarray]:
        """Everything that is stored, by the name of its file."""
        columns = {
            'item_ids': self.item_ids,
            'num_users': np.array([self.num_users], np.int64),
            'titles': self.titles,
            'pairs': self.pairs,
            'known': self.known,
            'follow': self.follow,
            'follow_own': self.follow_own,
            'support': self.support,
            'support_users': self.support_users,
        }
        columns |= {_CODE + name: column for name, column in sorted(self.codes.items())}
        columns |= {_FEATURE + name: column for name, column in sorted(self.features.items())}
        columns |= {_TEXT + name: column for name, column in sorted(self.texts.items())}
        return {name: np.ascontiguousarray(c) for name, c in columns.items() if c is not None}


def opened(folder: pathlib.Path, kind: str, made: Callable[[dict, str, dict], Any]) -> Any:
    """What `made` gives of the columns, the name and meta.json of a saved folder; memory-mapped.

    Raises:
      UserError: a file of it is missing, damaged or of another kind.
    """
    try:
        meta = stored.read_meta(folder)
        found = made(*stored.load(folder, kind), meta)
        whole = meta['format'] == stored.FORMAT and found.content_hash() == meta['data_hash']
    except FileNotFoundError as e:
        raise UserError(f'{folder} is damaged ({e.filename} is missing)') from e
    except OSError:  # no permission: says enough
        raise
    except Exception as e:  # whatever comes of damaged bytes
        raise UserError(f'{folder} is damaged ({e})') from e
    if not whole:
        raise UserError(f'{folder} is damaged (its content is not what its hash says)')
    return found


def find(ids: np.ndarray, raw) -> int | None:
    """Index of raw id `raw` (int, or its text) in ascending `ids`, None if it is not there.

    Text is taken as it is. Around a whole number blanks are ignored: no such id has any.
    """
    if ids.dtype.kind == 'S':
        try:
            raw = str(raw).encode(errors='surrogateescape')  # of a command line that is not utf-8
        except UnicodeEncodeError:  # half a character, which JSON can spell
            return None
    elif _INTEGER.fullmatch(str(raw).strip()) and -(2**63) <= int(raw) < 2**63:
        raw = int(raw)
    else:
        return None
    index = int(np.searchsorted(ids, raw))
    return index if index < len(ids) and ids[index] == raw else None


def find_all(ids: np.ndarray, raw: Sequence) -> np.ndarray:
    """`find` of each: int64 [n], -1 where it is not there."""
    if (keys := _keys(ids, raw)) is None:
        found = (find(ids, one) for one in raw)
        return np.array([-1 if index is None else index for index in found], np.int64)
    index = np.searchsorted(ids, keys)
    there = index < len(ids)
    there[there] = ids[index[there]] == keys[there]
    return np.where(there, index, -1)


def _keys(ids, raw):
    """Raw ids as an array of the dtype of `ids`, in which each is what `find` makes of it; or
    None."""
    kind = int if ids.dtype.kind != 'S' else str
    if set(map(type, raw)) - {kind}:
        return None
    if kind is int:
        try:
            return np.array(raw, np.int64)
        except OverflowError:
            return None
    together = ''.join(raw)  # zeros at an end are lost in an array, what is too long is cut
    exact = together.isascii() and '\0' not in together
    exact = exact and max(map(len, raw), default=0) <= ids.dtype.itemsize
    return np.array(raw, ids.dtype) if exact else None


def _plain(values):
    return [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]


def plain(value) -> int | str:
    """A raw id as Python's int or text."""
    return value.decode() if isinstance(value, bytes) else int(value)
