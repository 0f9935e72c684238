"""A catalogue: the items of the data as lists need them, without events but those of a graph."""

import dataclasses
import pathlib
import re
from typing import ClassVar

import numpy as np

from jaxrec.data import stored
from jaxrec.errors import UserError

_INTEGER = re.compile('0|-?[1-9][0-9]{0,18}')  # int() also takes '1_0', '+1' and other digits
_CODE = 'code.'


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

    def raw_item(self, item: int) -> int | str:
        """Raw id of item number `item`, as the source gave it."""
        return plain(self.item_ids[item - 1])

    def title(self, item: int) -> str:
        """Title of item number `item`, '' where there is none."""
        return '' if self.titles is None else plain(self.titles[item - 1])


@dataclasses.dataclass
class Catalogue(Items):
    """What a run keeps of its data, so that it can be served without them.

    Attributes:
      item_ids, titles: see `Items`.
      num_users: of the data, by which a model may have made a table.
      data_hash: of the data.
      codes: of the features that items have and the model reads, int32 [num_items + 1] or
        [num_items + 1, T] by column; row 0 is padding. See `features.Encoder`.
      name: of the data set, for messages.
      pairs: int32 [2, E] of the graph that item vectors are propagated over, see
        `pairs.training_pairs`; None where there is none.
      known: bool [num_items + 1], items with training events, of models that make item vectors of
        `codes`; None for others.
    """

    KIND: ClassVar[str] = 'catalogue'

    item_ids: np.ndarray
    num_users: int
    data_hash: str
    titles: np.ndarray | None = None
    codes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    name: str = ''
    pairs: np.ndarray | None = None
    known: np.ndarray | None = None

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
        try:
            meta = stored.read_meta(folder)
            columns, name = stored.load(folder, cls.KIND)
            codes = {n[len(_CODE) :]: columns.pop(n) for n in sorted(columns) if n[:5] == _CODE}
            num_users = int(columns.pop('num_users')[0])
            opened = cls(
                **columns, num_users=num_users, data_hash=meta['of'], codes=codes, name=name
            )
            whole = meta['format'] == stored.FORMAT and opened.content_hash() == meta['data_hash']
        except FileNotFoundError as e:
            raise UserError(f'{folder} is damaged ({e.filename} is missing)') from e
        except OSError:  # no permission: says enough
            raise
        except Exception as e:  # whatever comes of damaged bytes
            raise UserError(f'{folder} is damaged ({e})') from e
        if not whole:
            raise UserError(f'{folder} is damaged (its content is not what its hash says)')
        return opened

    def columns(self) -> dict[str, np.ndarray]:
        """Everything that is stored, by the name of its file."""
        columns = {
            'item_ids': self.item_ids,
            'num_users': np.array([self.num_users], np.int64),
            'titles': self.titles,
            'pairs': self.pairs,
            'known': self.known,
        }
        columns |= {_CODE + name: column for name, column in sorted(self.codes.items())}
        return {name: np.ascontiguousarray(c) for name, c in columns.items() if c is not None}


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


def plain(value) -> int | str:
    """A raw id as Python's int or text."""
    return value.decode() if isinstance(value, bytes) else int(value)
