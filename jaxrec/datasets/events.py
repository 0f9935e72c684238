"""From raw events in file order to Histories: id encoding, k-core, sorting, numbering."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.data.histories import Histories
from jaxrec.errors import UserError

LONGEST_ID = 512  # bytes; ids are kept in a fixed-width column, so one huge id would swell it
INTEGER = r'^(0|-?[1-9][0-9]{0,17})$'  # '007', '+7' and '-0' are not integers: they stay text


@dataclasses.dataclass
class Coded:
    """A column of raw ids: row n has the id values[codes[n]].

    Attributes:
      codes: int32 [N].
      values: [V] distinct raw ids in any order, int64 or utf-8 bytes ('S').
    """

    codes: np.ndarray
    values: np.ndarray


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
    """

    users: Coded
    items: Coded
    times: np.ndarray | None = None
    features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    titles: tuple[np.ndarray, np.ndarray] | None = None
    item_features: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )


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
    users, user_ids = _number(events.users, kept)
    items, item_ids = _number(events.items, kept)
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
        item_features={k: _by_item(item_ids, *v) for k, v in events.item_features.items()},
        titles=None if events.titles is None else _by_item(item_ids, *events.titles),
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


def encode(chunks: list[pa.Array], *, text: bool) -> Coded:
    """Encodes an id column given in pieces.

    Args:
      chunks: integer, float or text arrays (or dictionaries of them), all of one type, no nulls.
      text: the ids come from a text file, so a column of integers is to be read as integers.

    Raises:
      UserError: ids are not integers or text.
    """
    chunks = [c.dictionary_encode() for c in chunks]  # no-op for dictionaries
    if not chunks:
        return Coded(np.zeros(0, np.int32), np.zeros(0, np.int64))
    column = pa.chunked_array(chunks).unify_dictionaries()
    codes = np.concatenate([c.indices.to_numpy(zero_copy_only=False) for c in column.chunks])
    return Coded(codes.astype(np.int32, copy=False), plain_ids(column.chunk(0).dictionary, text))


def plain_ids(values: pa.Array, text: bool) -> np.ndarray:
    kind = values.type
    if pa.types.is_null(kind):
        return np.zeros(0, np.int64)
    if pa.types.is_floating(kind):  # integers that went through a column with gaps
        try:
            return values.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid as e:
            raise UserError('ids are fractions; ids must be integers or text') from e
    if pa.types.is_integer(kind):
        try:
            return values.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid as e:
            raise UserError('ids do not fit in 64-bit signed integers; store them as text') from e
    if not (pa.types.is_large_binary(kind) or pa.types.is_large_string(kind)):
        if not (pa.types.is_binary(kind) or pa.types.is_string(kind)):
            raise UserError(f'ids are of type {kind}; ids must be integers or text')
        values = values.cast(pa.large_binary())
    return from_text(values) if text else fixed_width(values)


def from_text(values: pa.Array) -> np.ndarray:
    """Distinct ids read from text: int64 [V] if each is a plain integer, else 'S' [V]."""
    as_string = values.cast(pa.large_string())  # raises on bytes that are not utf-8
    if len(values) and pc.all(pc.match_substring_regex(as_string, INTEGER)).as_py():
        return as_string.cast(pa.int64()).to_numpy()
    return fixed_width(values)


def fixed_width(values: pa.Array) -> np.ndarray:
    """Arrow text [V] as numpy bytes 'S' [V], without a Python object per value.

    Raises:
      UserError: an id is longer than LONGEST_ID bytes.
    """
    values = values.cast(pa.large_binary())
    lengths = pc.binary_length(values).to_numpy(zero_copy_only=False)
    width = max(int(lengths.max(initial=0)), 1)
    if width > LONGEST_ID:
        raise UserError(f'an id is {width} bytes long; ids may have at most {LONGEST_ID}')
    offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset :][: len(values) + 1]
    out = np.zeros((len(values), width), np.uint8)
    if offsets[-1] > offsets[0]:
        letters = np.frombuffer(values.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        rows = np.repeat(np.arange(len(values)), lengths)
        columns = np.arange(len(letters)) - np.repeat(offsets[:-1] - offsets[0], lengths)
        out[rows, columns] = letters
    return out.view(f'S{width}').reshape(-1)


def _number(column: Coded, kept: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
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


def _by_item(item_ids: np.ndarray, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values [num_items, ..] in item order; '', NaN or 0 where the source has none."""
    order = np.argsort(ids, kind='stable')
    at = np.searchsorted(ids, item_ids, sorter=order)
    at = order[np.minimum(at, len(ids) - 1)]
    found = (ids[at] == item_ids).reshape(-1, *[1] * (values.ndim - 1))
    none = np.array(np.nan if values.dtype.kind == 'f' else 0).astype(values.dtype)
    if values.dtype.kind == 'S':
        none = np.zeros((), values.dtype)
    return np.where(found, values[at], none)
