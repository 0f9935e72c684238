"""Codes of features: small integers made of columns, on the host."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from jaxrec.config import KINDS, Feature
from jaxrec.data.histories import NO_TIME, Histories
from jaxrec.data.ragged import ranges
from jaxrec.errors import UserError

_SAMPLE = 1 << 24  # events that the edges of quantile buckets are taken from; fewer: all


class Encoder:
    """Codes of the features of any events of `histories`.

    Args:
      histories: the events.
      features: which.
      train_ends: int64 [U], absolute end of each user's training events; only they make the edges
        of quantile buckets, _SAMPLE evenly spread ones where there are more.

    Attributes:
      of_items: codes of the features that items have, int32 [num_items + 1] or [num_items + 1, T]
        by column; row 0 is padding.

    Raises:
      UserError: the histories have no such column, or it does not fit the feature's kind.
    """

    def __init__(self, histories: Histories, features: tuple[Feature, ...], train_ends: np.ndarray):
        self._histories, self._features = histories, features
        self.of_items = {}
        self._edges = {}
        for feature in features:
            column = self._column(feature)
            if feature.kind == 'quantile':
                self._edges[feature.column] = self._quantiles(feature, column, train_ends)
            if feature.column in histories.item_features:
                codes = self._codes(feature, np.asarray(column))
                self.of_items[feature.column] = np.concatenate([np.zeros_like(codes[:1]), codes])

    def events(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Codes int32 [n], or [n, T] of sets, of the events with these absolute indices."""
        codes = self.items(self._histories.items[index])
        for feature in self._features:
            if feature.column not in self.of_items:
                values = self._values(feature, index)
                codes[feature.column] = self._codes(feature, values)
        return codes

    def items(self, items: np.ndarray) -> dict[str, np.ndarray]:
        """The same for events of which only the items are known: the rest is missing."""
        return item_codes(self._features, self.of_items, items)

    def _column(self, feature):
        h, name = self._histories, feature.column
        if name == GAP:
            if h.times is None:
                raise UserError(f'feature {GAP!r} needs times, which {h.name or "the data"} lacks')
            return None
        column = h.features.get(name, h.item_features.get(name))
        if column is None:
            there = ', '.join(sorted([GAP, *h.features, *h.item_features]))
            raise UserError(f'{h.name or "the data"} has no column {name!r}; it has {there}')
        if (column.ndim == 2) != (feature.kind == 'set'):
            raise UserError(
                f'column {name!r} holds {"sets" if column.ndim == 2 else "single values"}: '
                f'kind={feature.kind!r} does not go with it'
            )
        return column

    def _values(self, feature, index):
        if feature.column != GAP:
            return self._histories.features[feature.column][index]
        times, offsets = self._histories.times, self._histories.offsets
        before = times[np.maximum(index - 1, 0)]
        # A user's first event has none before it; one without a time has none with a time before.
        first = offsets[np.searchsorted(offsets, index)] == index
        missing = first | (before == NO_TIME)
        return np.where(missing, np.nan, (times[index] - before).astype(np.float64))

    def _quantiles(self, feature, column, train_ends):
        index = some_events(self._histories, train_ends)
        if feature.column in self._histories.item_features:
            values = np.asarray(column)[self._histories.items[index] - 1]
        else:
            values = self._values(feature, index)
        values = values[~np.isnan(values.astype(np.float64))]
        if not len(values):
            raise UserError(f'column {feature.column!r} has no value in the training events')
        shares = np.arange(1, feature.size) / feature.size
        return np.append(np.quantile(values, shares), values.max())

    def _codes(self, feature, values):
        if feature.kind == 'set':
            return np.where(values > feature.size, feature.size + 1, values).astype(np.int32)
        values = values.astype(np.float64)
        missing = np.isnan(values)
        if feature.kind == 'quantile':
            *edges, most = self._edges[feature.column]
            bucket = np.searchsorted(edges, values, side='right')
            bucket = np.where(values > most, feature.size, bucket)
        else:
            missing |= values < 0
            values = np.where(missing, 0, values)
            if feature.kind == 'category':
                bucket = values
            elif feature.kind == 'uniform':
                bucket = values / feature.cap * feature.size
            else:
                bucket = np.log1p(values) / np.log1p(feature.cap) * feature.size
            bucket = np.minimum(np.floor(bucket), feature.size)
        return np.where(missing, 0, bucket + 1).astype(np.int32)


def item_codes(
    features: tuple[Feature, ...], of_items: Mapping[str, np.ndarray], items: np.ndarray
) -> dict[str, np.ndarray]:
    """Codes int32 [n], or [n, T] of sets, where only the items are known: the rest is missing.

    Args:
      features: which.
      of_items: see `Encoder`.
      items: int32 [n], numbers of the items.
    """
    missing = np.zeros(len(items), np.int32)
    return {
        f.column: of_items[f.column][items] if f.column in of_items else missing for f in features
    }


def some_events(histories: Histories, train_ends: np.ndarray) -> np.ndarray:
    """Absolute index of the training events, of _SAMPLE evenly spread ones where there are more."""
    starts = histories.offsets[:-1]
    lengths = train_ends - starts
    return _spread(starts, lengths) if lengths.sum() > _SAMPLE else ranges(starts, lengths)


def _spread(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Absolute index of _SAMPLE events, evenly spread over all in these ranges, ascending."""
    ends = np.cumsum(lengths)
    chosen = np.arange(_SAMPLE) * ends[-1] // _SAMPLE
    users = np.searchsorted(ends, chosen, side='right')
    return starts[users] + chosen - (ends[users] - lengths[users])


GAP = 'gap'  # built in: time since the user's event before, in the unit of the times


Codes = Callable[[np.ndarray], dict[str, np.ndarray]]  # of the features of events, by index


def check_features(features: tuple[Feature, ...]) -> None:
    """Raises UserError for a feature that cannot be."""
    names = [feature.column for feature in features]
    for feature in features:
        name = f'feature {feature.column!r}'
        if names.count(feature.column) > 1:
            raise UserError(f'{name} is given twice')
        if feature.kind not in KINDS:
            raise UserError(f'{name}: kind={feature.kind!r} is not one of {", ".join(KINDS)}')
        if feature.size < 1:
            raise UserError(f'{name}: size={feature.size} must be at least 1')
        if feature.kind in ('uniform', 'log') and not 0 < feature.cap < math.inf:
            raise UserError(f'{name}: kind={feature.kind} needs cap > 0, not {feature.cap}')
