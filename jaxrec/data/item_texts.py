"""Vectors of the items' texts, stored beside the prepared data."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from jaxrec import files
from jaxrec.config import ENCODERS, Texts
from jaxrec.data import stored, text_encoders
from jaxrec.data.catalogue import Items
from jaxrec.data.text_encoders import Encoder
from jaxrec.errors import UserError

FOLDER = 'texts'


@dataclasses.dataclass
class ItemTexts:
    """Vectors of all items, and what made them.

    Attributes:
      vectors: float32 [num_items + 1, d], an item's at its number: of length 1, or 0 where it has
        no text; row 0 is 0.
      encoder: of further texts, in the same space.
      digest: of all that the vectors follow from.
      name: of the data set, for messages.
    """

    KIND: ClassVar[str] = 'texts'

    vectors: np.ndarray
    encoder: Encoder
    digest: str = ''
    name: str = ''

    def columns(self) -> dict[str, np.ndarray]:
        """Everything that is stored, by the name of its file."""
        digest = np.array([self.digest.encode()])
        columns = {'vectors': self.vectors, 'digest': digest, **self.encoder.columns()}
        return {name: np.ascontiguousarray(column) for name, column in columns.items()}

    def content_hash(self) -> str:
        """sha256 over every column; independent of file format and platform."""
        return stored.content_hash(self.KIND, self.columns())

    def statistics(self) -> dict:
        """How many items, how many of them have a vector, and how many words are known."""
        there = int(self.vectors.any(1).sum())
        return {'items': len(self.vectors) - 1, 'texts': there, 'words': len(self.encoder.words)}


def check(settings: Texts, reader: str, unread: str) -> None:
    """Raises UserError unless texts are set exactly where something reads them.

    Args:
      settings: task.texts.
      reader: what reads them, for people; '' = nothing.
      unread: what to say of texts that nothing reads.
    """
    if reader and not settings.encoder:
        names = ', '.join(filter(None, ENCODERS))
        raise UserError(
            f"{reader} reads the items' texts: set task.texts.encoder to one of {names}"
        )
    if settings.encoder and not reader:
        raise UserError(f'task.texts.encoder={settings.encoder!r} and {unread}')


def encoder_of(columns: Mapping[str, np.ndarray]) -> Encoder:
    """What made the vectors, of `ItemTexts.columns`."""
    rest = 'vectors', 'digest'
    made_by = {name: column for name, column in columns.items() if name not in rest}
    return Encoder(**made_by | {'kind': columns['kind'][0].decode()})


def of_items(
    items: Items,
    settings: Texts,
    folder: str,
    say: Callable = print,
    encoder: Encoder | None = None,
) -> ItemTexts:
    """The vectors of items' titles: those that are stored, or new ones, which then are.

    Args:
      items: with titles; items without have zero vectors.
      settings: what is made of them.
      folder: of the prepared data; '' stores nothing.
      say: called with lines for people.
      encoder: of an earlier run, whose space they are to share; None = one of these texts.

    Raises:
      UserError: no item has a text, or none a vector; a package is missing.
    """
    name = items.name or 'the data'
    if items.titles is None or not (items.titles != b'').any():
        raise UserError(
            f'{name} has no texts of items, and task.texts.encoder={settings.encoder!r} reads '
            'them: name a table of items and texts with data.texts'
        )
    digest = text_encoders.digest(settings, items.titles, encoder)
    make = lambda: _made(items, settings, encoder, digest, say)  # noqa: E731
    place = pathlib.Path(folder) / FOLDER / digest[:16]
    with contextlib.ExitStack() as held:
        try:
            if folder:
                held.enter_context(files.lock(place.with_name(f'.{place.name}.lock')))
        except OSError:  # a folder that is only read: made again each time
            folder = ''
        there = _stored(place, digest) if folder else make()
        if there is None:
            stored.save(make(), place, {'digest': digest})
            there = _stored(place, digest)
    empty = items.num_items - there.statistics()['texts']
    if empty == items.num_items:
        raise UserError(
            f'no text of {name} has a vector by {settings.encoder!r}: they have no word that it '
            'knows, or are all alike, and task.texts.centred takes away what all share'
        )
    if empty:
        say(f'note: {empty:,} of {items.num_items:,} items have no text with a vector')
    return there


def _made(items, settings, encoder, digest, say):
    encoder = encoder or text_encoders.fit(settings, items.titles, say)
    vectors = np.zeros((items.num_items + 1, len(encoder.centre)), np.float32)
    vectors[1:] = encoder(items.titles, say)
    return ItemTexts(vectors, encoder, digest, items.name)


def _stored(place, digest):
    """The finished vectors in `place`, None if there are none or they are damaged."""
    try:
        if stored.read_meta(place)['digest'] != digest:
            return None
        columns, name = stored.load(place, ItemTexts.KIND)
        return ItemTexts(columns['vectors'], encoder_of(columns), digest, name)
    except (OSError, KeyError, ValueError):
        return None
