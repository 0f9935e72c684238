"""Requests for lists: a history each, and which items may be in its list, in a few shapes."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import numpy as np

from jaxrec.data.catalogue import Items
from jaxrec.data.features import Codes
from jaxrec.data.history_batches import history_batch
from jaxrec.data.ragged import distinct
from jaxrec.errors import UserError
from jaxrec.serving.buckets import buckets
from jaxrec.serving.given_ids import near

_COLUMNS = 64  # see devices.top_k
_WIDTH, _SEEN = 16, 64  # the smallest shapes of what the model sees, and of unwanted items


@dataclasses.dataclass
class Request:
    """One list that is wanted.

    Attributes:
      history: int32 [n] item numbers, oldest first.
      unwanted: int32 [m], distinct numbers of items that are not to be in the list.
      allowed: bool [num_items + 1], the items that may be, by number; requests share it.
    """

    history: np.ndarray
    unwanted: np.ndarray
    allowed: np.ndarray


class Shapes:
    """The shapes of batches of requests.

    Args:
      max_len: window of the model.
      batch_users, multiple, tokens: see `history_batches`.

    Attributes:
      sizes: (events that the model sees, unwanted items) of a row, ascending.
    """

    def __init__(self, max_len: int, *, batch_users: int, multiple: int, tokens: int):
        self.max_len, self._tokens = max_len, tokens
        self._batch_users, self._multiple = batch_users, multiple
        widths = sorted({min(size, max_len) for size in buckets(max_len, _WIDTH)})
        sizes = [(width, max(_SEEN, 4 * width)) for width in widths]
        self.sizes = [*sizes, (max_len, 8 * sizes[-1][1])]

    def of(self, requests: Sequence[Request]) -> np.ndarray:
        """Of each request the place int64 [n] in `sizes` of the smallest that holds it.

        `len(sizes)` where there are more unwanted items than in any.
        """
        events = np.minimum([len(one.history) for one in requests], self.max_len)
        unwanted = [len(one.unwanted) for one in requests]
        widths, seen = zip(*self.sizes, strict=True)
        return np.maximum(np.searchsorted(widths, events), np.searchsorted(seen, unwanted))

    def rows(self, width: int) -> tuple[int, ...]:
        """How many rows batches of this width have: `buckets`, and quarters of the most.

        Padding is scored like the rest. A product takes `_COLUMNS` vectors in the time of fewer.
        """
        most = min(self._batch_users, max(self._tokens // width, self._multiple))
        most, step = most // self._multiple * self._multiple, math.lcm(_COLUMNS, self._multiple)
        quarters = {-(-most * n // (4 * step)) * step for n in (1, 2, 3)}
        return tuple(sorted({*buckets(most, self._multiple), *(n for n in quarters if n < most)}))

    def every(self) -> Iterator[tuple[tuple[int, int], int]]:
        """(size, rows) of every shape there is."""
        return ((size, rows) for size in self.sizes for rows in self.rows(size[0]))


def batches(
    requests: Sequence[Request], shapes: Shapes
) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[int, int], int]]:
    """Requests that go together: their places int64 [n], what is allowed, their size and rows.

    Those that share what is allowed do; what is left of a batch's rows is taken by requests that
    would fit a smaller size. More unwanted items than any shape holds are no longer allowed
    instead, so that such a request goes alone.
    """
    groups, last = {}, len(shapes.sizes) - 1
    for place, (request, size) in enumerate(zip(requests, shapes.of(requests), strict=True)):
        if size > last:
            allowed = request.allowed.copy()
            allowed[request.unwanted] = False
            request.allowed, request.unwanted = allowed, request.unwanted[:0]
        groups.setdefault(id(request.allowed), []).append((min(size, last), place))
    for group in groups.values():
        group.sort()  # by size; the largest are taken first
        while group:
            place = group[-1][0]
            size, count = shapes.sizes[place], sum(other == place for other, _ in group)
            sizes = shapes.rows(size[0])
            rows = next((rows for rows in sizes if rows >= count), sizes[-1])
            some, group = group[-rows:], group[:-rows]
            places = np.array([place for _, place in some])
            yield places, requests[places[0]].allowed, size, rows


def batch(
    requests: Sequence[Request],
    size: tuple[int, int],
    rows: int,
    max_len: int,
    codes_of: Callable[[np.ndarray], Codes | None],
) -> dict[str, np.ndarray]:
    """A batch as `history_batches` gives it, of which `seen` are the unwanted items.

    Args:
      requests: `rows` or fewer.
      size: of a row, see `Shapes`.
      rows: of the batch.
      max_len: window of the model.
      codes_of: of item numbers, the codes of their features by index.
    """
    histories = [request.history[-max_len:] for request in requests]
    flat = np.concatenate([np.zeros(0, np.int32), *histories]).astype(np.int32)
    ends = np.cumsum([0, *map(len, histories)])
    starts, ends = (np.pad(x, (0, rows - len(requests))) for x in (ends[:-1], ends[1:]))
    made = history_batch(flat, starts, ends, size[0], max_len, codes_of(flat))
    seen = np.zeros((rows, size[1]), np.int32)
    for row, request in zip(seen, requests, strict=False):
        row[: len(request.unwanted)] = request.unwanted
    return {**made, 'seen': seen}


class Filter:
    """Which items may be recommended: raw ids or masks, for all histories or for each.

    Args:
      items: of the catalogue.
      skip_unknown: leave out ids that are not in the catalogue.
    """

    def __init__(self, items: Items, skip_unknown: bool):
        self._items, self._skip_unknown = items, skip_unknown
        self.everything = np.ones(items.num_items + 1, bool)

    def found(self, raw: Sequence[Any]) -> np.ndarray:
        """int64 [n], numbers of items; 0 for unknown ones, which are to be left out.

        Raises:
          UserError: an unknown item that is not.
        """
        found = self._items.find_items(raw)
        if not self._skip_unknown and not found.all():
            unknown = raw[int(found.argmin())]
            hint = near(unknown, self._items.find_item)
            raise UserError(f'item {unknown!r} is not in the data{hint}')
        return found

    def histories(self, given: Sequence[Sequence[Any]]) -> list[np.ndarray]:
        """int64 item numbers of histories of raw ids; UserError as in `found`."""
        found = self.found([raw for history in given for raw in history])
        ends = np.cumsum([len(history) for history in given], dtype=int)
        parts = (found[first:end] for first, end in zip([0, *ends], ends, strict=False))
        return [part[part > 0] for part in parts]

    def numbers(self, given: Any, what: str) -> np.ndarray:
        """int32 distinct item numbers of raw ids, or of a mask bool [num_items].

        Raises:
          UserError: it is neither, or an item is unknown.
        """
        if isinstance(given, np.ndarray) and given.dtype == bool:
            if given.shape != (self._items.num_items,):
                raise UserError(
                    f'{what}: a mask has a value for each of the {self._items.num_items:,} items, '
                    f'this one is {list(given.shape)}'
                )
            return (np.flatnonzero(given) + 1).astype(np.int32)
        if not _is_ids(given):
            raise UserError(
                f'{what} must be item ids, or a mask, for all histories or one for each'
            )
        found = distinct(self.found(list(given)))
        return found[found > 0].astype(np.int32)

    def allowed(self, allow: Any, exclude: Any, before: np.ndarray | None = None) -> np.ndarray:
        """bool [num_items + 1] by number: of `before` what is in `allow` and not in `exclude`."""
        chosen = self.everything if before is None else before
        if allow is not None:
            only = np.zeros_like(chosen)
            only[self.numbers(allow, 'allow')] = True
            chosen = chosen & only
        if exclude is not None:
            chosen = chosen.copy()
            chosen[self.numbers(exclude, 'exclude')] = False
        return chosen

    def each(self, given: Any, count: int, what: str) -> list | None:
        """One for each history; None if it is for all.

        Raises:
          UserError: there are not as many as histories.
        """
        if given is None or isinstance(given, np.ndarray) or _is_ids(given):
            return None
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != count:
            raise UserError(
                f'{what} must be item ids or a mask, or one for each of {count:,} lists'
            )
        return list(given)


def _is_ids(given: Any) -> bool:
    """Whether it is a collection of raw ids."""
    if isinstance(given, np.ndarray):
        return given.ndim == 1
    collection = isinstance(given, Sequence | Set) and not isinstance(given, str | bytes)
    return collection and all(isinstance(one, int | str | np.integer) for one in given)
