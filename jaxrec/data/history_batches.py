"""Histories as right-aligned batches in a handful of shapes: what evaluation and serving read."""

from collections.abc import Iterator

import numpy as np

from jaxrec.data.features import Codes
from jaxrec.data.histories import Histories
from jaxrec.data.ragged import ranges, scatter
from jaxrec.data.splits import Targets

SEEN_ENTRIES = 1 << 24  # of `seen` in one batch of histories, unless a single user needs more


def history_batch(
    items: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    width: int,
    max_len: int,
    codes: Codes | None = None,
) -> dict[str, np.ndarray]:
    """Newest `width` events of items[starts[i]:ends[i]], one user per row, right-aligned.

    Args:
      items: int32 [N] flat events.
      starts, ends: int64 [B]; an empty range gives a row of padding.
      width: W <= max_len, columns of the batch.
      max_len: window of the model, which fixes the position numbers.
      codes: of the features of events, by their index in `items`.

    Returns:
      items, segments (1 on events, 0 on padding), positions: int32 [B, W]; with `codes` also
      features {column: int32 [B, W] or [B, W, T]}.
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
    return batch


def history_batches(
    histories: Histories,
    targets: Targets,
    *,
    max_len: int,
    batch_users: int,
    multiple: int = 1,
    tokens: int = 1 << 24,
    codes: Codes | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Histories of all `targets` in fixed shapes, users of similar length together.

    Rows are grouped by history length rounded up to a power of two (4 at least), so short users
    cost little and only a handful of shapes is ever compiled, one per length.

    Args:
      histories: the events.
      targets: the users, and where their input ends.
      max_len: window of the model.
      batch_users: most rows of a batch; users of long histories come in smaller batches, a power of
        two times `multiple`.
      multiple: of which the number of rows is one, as `batch_users` must be.
      tokens: most tokens of a batch that the model sees.
      codes: of features, `codes.Encoder.events`.

    Yields:
      (chosen, batch): `chosen` int64 [n <= rows] indexes `targets`; `batch` as `history_batch`
      gives it, plus `seen`: int32 [rows, S], the whole input history padded with 0. Rows from n
      on are padding.
    """
    starts = histories.offsets[targets.users]
    key = np.maximum(4, 1 << np.ceil(np.log2(np.maximum(targets.ends - starts, 1))).astype(int))
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
            end = np.pad(targets.ends[chosen], (0, missing))
            batch = history_batch(histories.items, first, end, min(size, max_len), max_len, codes)
            seen = history_batch(histories.items, first, end, size, size)['items']
            yield chosen, {**batch, 'seen': seen}
