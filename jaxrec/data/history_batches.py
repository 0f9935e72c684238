"""Histories as right-aligned batches in a handful of shapes: what evaluation and serving read."""

from collections.abc import Callable, Iterator

import numpy as np

from jaxrec.data.features import Codes
from jaxrec.data.histories import Histories
from jaxrec.data.ragged import ranges, scatter
from jaxrec.data.splits import Targets

_SEEN_COST = 1 / 16  # of an item of the whole history, beside one that the model sees
SEEN_ENTRIES = 1 << 24  # of `seen` in one batch of histories, unless a single user needs more


def history_batch(
    items: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    width: int,
    max_len: int,
    codes: Codes | None = None,
    feedback: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Newest `width` events of items[starts[i]:ends[i]], one user per row, right-aligned.

    Args:
      items: int32 [N] flat events.
      starts, ends: int64 [B]; an empty range gives a row of padding.
      width: W <= max_len, columns of the batch.
      max_len: window of the model, which fixes the position numbers.
      codes: of the features of events, by their index in `items`.
      feedback: on events, by the same.

    Returns:
      items, segments (1 on events, 0 on padding), positions: int32 [B, W]; with `codes` also
      features {column: int32 [B, W] or [B, W, T]}, with `feedback` feedback int32 [B, W].
    """
    lengths = np.minimum(ends - starts, width)
    shape = (len(starts), width)
    place = ranges(np.arange(len(starts)) * width + width - lengths, lengths)
    source = ranges(ends - lengths, lengths)
    events = scatter(shape, place, items[source])
    positions = np.broadcast_to(np.arange(max_len - width, max_len, dtype=np.int32), shape)
    batch = {
        'items': events,
        'segments': (events > 0).astype(np.int32),
        'positions': np.where(events > 0, positions, 0).astype(np.int32),
    }
    if codes is not None:
        coded = codes(source).items()
        batch['features'] = {name: scatter(shape, place, values) for name, values in coded}
    if feedback is not None:
        batch['feedback'] = scatter(shape, place, feedback(source))
    return batch


def few_widths(lengths: np.ndarray, max_len: int) -> np.ndarray:
    """Three widths, or fewer, into which histories of these lengths fit at the least cost.

    Args:
      lengths: int [n], one at least.
      max_len: window of the model, beyond which an event costs less.

    Returns:
      int64 ascending; the last one holds the longest.
    """
    longest = max(int(lengths.max()), 1)
    octaves = [np.arange(8, 16) << n >> 3 for n in range(longest.bit_length() + 3)]
    widths = np.unique(np.concatenate(octaves))
    widths = widths[widths > 0]
    widths = widths[: np.searchsorted(widths, longest) + 1]
    upto = np.cumsum(np.bincount(np.searchsorted(widths, lengths), minlength=len(widths)))
    cost = np.minimum(widths, max_len) + _SEEN_COST * widths
    first, second = np.tril_indices(len(widths))[::-1]
    total = upto[first] * cost[first] + (upto[second] - upto[first]) * cost[second]
    best = (total + (upto[-1] - upto[second]) * cost[-1]).argmin()
    return widths[np.unique([first[best], second[best], len(widths) - 1])]


def history_batches(
    histories: Histories,
    targets: Targets,
    *,
    max_len: int,
    batch_users: int,
    multiple: int = 1,
    tokens: int = 1 << 24,
    codes: Codes | None = None,
    widths: np.ndarray | None = None,
    numbered: bool = False,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Histories of all `targets` in fixed shapes, users of similar length together.

    Rows are grouped by history length rounded up to one of `widths`, or beyond them to a power of
    two (4 at least), so short users cost little and only a handful of shapes is ever compiled, one
    per length.

    Args:
      histories: the events.
      targets: the users, and where their input ends.
      max_len: window of the model.
      batch_users: most rows of a batch; users of long histories come in smaller batches, a power of
        two times `multiple`.
      multiple: of which the number of rows is one, as `batch_users` must be.
      tokens: most tokens of a batch that the model sees.
      codes: of features, `codes.Encoder.events`.
      widths: int64 ascending, see `few_widths`; None = powers of two alone.
      numbered: whether batches say who the users are.

    Yields:
      (chosen, batch): `chosen` int64 [n <= rows] indexes `targets`; `batch` as `history_batch`
      gives it, plus `seen`: int32 [rows, S], the whole input history padded with 0, and where
      `numbered` users: int32 [rows]. Rows from n on are padding.
    """
    starts = histories.offsets[targets.users]
    lengths = targets.inputs - starts
    key = np.maximum(4, 1 << np.ceil(np.log2(np.maximum(lengths, 1))).astype(int))
    if widths is not None:
        place = np.searchsorted(widths, lengths)
        key = np.where(place < len(widths), widths[np.minimum(place, len(widths) - 1)], key)
    order = np.argsort(key, kind='stable')
    for size in np.unique(key).tolist():
        group = order[key[order] == size]
        affordable = min(SEEN_ENTRIES // size, tokens // min(size, max_len))
        doublings = max(affordable // multiple, 1).bit_length() - 1
        rows = min(batch_users, multiple << doublings)
        for at in range(0, len(group), rows):
            chosen = group[at : at + rows]
            missing = rows - len(chosen)
            first = np.pad(starts[chosen], (0, missing))
            end = np.pad(targets.inputs[chosen], (0, missing))
            batch = history_batch(histories.items, first, end, min(size, max_len), max_len, codes)
            seen = history_batch(histories.items, first, end, size, size)['items']
            if numbered:
                batch['users'] = np.pad(targets.users[chosen].astype(np.int32), (0, missing))
            yield chosen, {**batch, 'seen': seen}
