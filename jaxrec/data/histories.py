"""Histories: every user's time-ordered events as flat, memory-mappable numpy columns."""

import dataclasses
import os
from typing import ClassVar

import numpy as np

from jaxrec.data import stored
from jaxrec.data.catalogue import Items, find, plain
from jaxrec.data.ragged import blocks, distinct

NO_TIME = np.iinfo(
    np.int64
).min  # of an event that is older than the user's others, but not known when


@dataclasses.dataclass
class Histories(Items):
    """Events of all users, user by user and oldest first within a user.

    Attributes:
      items: int32 [N]; item numbers 1..num_items (0 is padding and never stored).
      offsets: int64 [U + 1]; user u's events are items[offsets[u]:offsets[u + 1]].
      user_ids: [U]; raw user ids as given, int64 or utf-8 bytes ('S'), ascending.
      item_ids: [num_items]; raw id of item i at i - 1, int64 or utf-8 bytes, ascending.
      times: int64 [N] timestamps in the source's unit, or None where the source has none. NO_TIME
        where only the order is known: such events are a user's first, and before every moment.
      features: named per-event columns, each [N].
      item_features: named per-item columns; item i's value is at i - 1. [num_items], or int32
        [num_items, T] sets of up to T numbers from 1, padded with 0.
      titles: utf-8 bytes [num_items] for display, or None.
      name: data set name, for messages.
    """

    KIND: ClassVar[str] = 'histories'

    items: np.ndarray
    offsets: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    times: np.ndarray | None = None
    features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    item_features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    titles: np.ndarray | None = None
    name: str = ''

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    def history(self, user: int) -> np.ndarray:
        """Items of user number `user` (0-based), oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def find_user(self, raw) -> int | None:
        """0-based number of the user with raw id `raw` (int, or its text), None if unknown."""
        return find(self.user_ids, raw)

    def raw_user(self, user: int) -> int | str:
        """Raw id of user number `user`, as the source gave it."""
        return plain(self.user_ids[user])

    def content_hash(self) -> str:
        """sha256 over every column but titles; independent of file format and platform.

        Titles are for display: sources of one data set spell them differently.
        """
        columns = {name: c for name, c in self.columns().items() if name != 'titles'}
        return stored.content_hash(self.KIND, columns)

    def statistics(self) -> dict:
        """Users, items, interactions, mean length, density, tied timestamps, repeats.

        Tied is the share of a user's consecutive pairs with the same time, of those that have one.
        """
        n, users, items = len(self.items), self.num_users, self.num_items
        different, pairs, tied = 0, 0, 0
        for block in blocks(self.offsets):
            offsets = self.offsets[block.start : block.stop + 1]
            events = slice(offsets[0], offsets[-1])
            owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            different += len(distinct(owner * (items + 1) + self.items[events]))
            if self.times is not None:
                times = self.times[events]
                inner = (owner[1:] == owner[:-1]) & (times[:-1] != NO_TIME)
                pairs += int(inner.sum())
                tied += int(((times[1:] == times[:-1]) & inner).sum())
        return {
            'users': users,
            'items': items,
            'interactions': n,
            'mean_length': n / max(users, 1),
            'density': n / max(users * items, 1),
            'tied_timestamps': tied / pairs if pairs else None,
            'repeats': n - different,
        }

    def save(self, folder: str | os.PathLike, about: dict | None = None) -> dict:
        """Writes the columns and meta.json, see `stored.save`; returns what meta.json holds."""
        return stored.save(self, folder, about)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> 'Histories':
        """Opens a folder written by `save`; columns are memory-mapped, read-only."""
        columns, name = stored.load(folder, cls.KIND)
        features, item_features = (stored.named(columns, p) for p in ('feature.', 'item.'))
        return cls(**columns, features=features, item_features=item_features, name=name)

    def columns(self) -> dict[str, np.ndarray]:
        """Everything that is stored, by the name of its file."""
        columns = {
            'items': self.items,
            'offsets': self.offsets,
            'user_ids': self.user_ids,
            'item_ids': self.item_ids,
            'times': self.times,
            'titles': self.titles,
        }
        columns |= {f'feature.{name}': column for name, column in sorted(self.features.items())}
        columns |= {f'item.{name}': column for name, column in sorted(self.item_features.items())}
        return {name: np.ascontiguousarray(c) for name, c in columns.items() if c is not None}
