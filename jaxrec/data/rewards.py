"""What events were worth to their users: one number in [0, 1] made of named feedback columns."""

import numpy as np

from jaxrec.config import Rewards, Signal
from jaxrec.data.features import some_events
from jaxrec.data.histories import Histories
from jaxrec.errors import UserError


class Rewarder:
    """Composite rewards of events, and which of them their users liked and disliked.

    r = clip(sum_k w_k g_k, 0, 1) over the signals that are known of an event, w_k the weights of
    the positive ones, made to add up to 1, minus those of the negative ones; g_k is 0 or 1, or the
    place of a value among those of training events in its bucket, 0 = smallest to 1 = largest.
    Additive, as feedback types are taken to be independent. An event of which no positive signal is
    known has reward 1: it is an interaction as any other. The formula is our reading of a talk (Luo
    Qing, Kuaishou, 2022), which has none.

    Args:
      histories: the events.
      rewards: signals and thresholds.
      train_ends: int64 [U], absolute end of each user's training events; only they make buckets and
        places in them.

    Raises:
      UserError: the histories have no such column of events, or nothing in it.
    """

    def __init__(self, histories: Histories, rewards: Rewards, train_ends: np.ndarray):
        self._histories, self._rewards = histories, rewards
        self._edges, self._sorted = {}, {}
        for signal in rewards.signals:
            self._check(signal.column, histories.features)
            if signal.within:
                self._check(signal.within, {**histories.features, **histories.item_features})
            index = some_events(histories, train_ends)
            if np.isnan(histories.features[signal.column][index]).all():
                raise UserError(
                    f'column {signal.column!r} has no value in the training events: leave it out '
                    'of model.multi_signal.rewards.signals'
                )
            if signal.kind == 'percentile':
                self._learn(signal, index)

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Rewards float32 [n] of the events with these absolute indices."""
        total, known, against = (np.zeros(len(index)) for _ in range(3))
        for signal in self._rewards.signals:
            value = self._value(signal, index)
            there = ~np.isnan(value)
            worth = signal.weight * np.where(there, value, 0)
            if signal.negative:
                against += worth
            else:
                total += worth
                known += signal.weight * there
        mean = np.where(known > 0, total / np.where(known > 0, known, 1), 1.0)
        return np.clip(mean - against, 0, 1).astype(np.float32)

    def feedback(self, index: np.ndarray) -> np.ndarray:
        """int32 [n]: -1 disliked, 1 liked, 0 neither; see `config.Rewards`."""
        rewards, hated = self(index), np.zeros(len(index), bool)
        for signal in self._rewards.signals:
            if signal.negative:
                hated |= np.nan_to_num(self._value(signal, index)) > 0
        liked = rewards >= np.float32(self._rewards.liked)
        disliked = hated | (rewards <= np.float32(self._rewards.disliked))
        return np.where(disliked, -1, liked).astype(np.int32)

    def _check(self, column, columns):
        if column not in columns:
            h = self._histories
            there = ', '.join(sorted(columns)) or 'none'
            raise UserError(
                f'{h.name or "the data"} has no column {column!r} for a signal; it has {there}: '
                'set model.multi_signal.rewards.signals, or keep the column with data.features'
            )

    def _value(self, signal: Signal, index: np.ndarray) -> np.ndarray:
        """g of a signal, float64 [n] in [0, 1]; NaN = not known."""
        values = self._histories.features[signal.column][index].astype(np.float64)
        if signal.kind == 'binary':
            return np.where(np.isnan(values), np.nan, values > 0)
        buckets, found = self._buckets(signal, index), np.full(len(index), np.nan)
        for bucket, learnt in enumerate(self._sorted[signal.column]):
            here = (buckets == bucket) & ~np.isnan(values)
            first, last = (
                np.searchsorted(learnt, values[here], side) for side in ('left', 'right')
            )
            place = (first + last - 1) / 2 / max(len(learnt) - 1, 1)
            found[here] = np.clip(place, 0, 1) if len(learnt) > 1 else 0.5
        return found

    def _learn(self, signal, index):
        if signal.within:
            sizes = self._within(signal, index)
            sizes = sizes[~np.isnan(sizes)]
            shares = np.arange(1, signal.buckets) / signal.buckets
            self._edges[signal.column] = np.quantile(sizes, shares) if len(sizes) else shares
        values = self._histories.features[signal.column][index].astype(np.float64)
        buckets, known = self._buckets(signal, index), ~np.isnan(values)
        self._sorted[signal.column] = [
            np.sort(values[known & (buckets == bucket)]) for bucket in range(signal.buckets + 1)
        ]

    def _buckets(self, signal, index):
        """int64 [n], bucket of each event; the last is of those whose size is not known."""
        if not signal.within:
            return np.zeros(len(index), np.int64)
        sizes = self._within(signal, index)
        found = np.searchsorted(self._edges[signal.column], sizes, side='right')
        return np.where(np.isnan(sizes), signal.buckets, found)

    def _within(self, signal, index):
        h = self._histories
        if signal.within in h.features:
            return h.features[signal.within][index].astype(np.float64)
        return np.asarray(h.item_features[signal.within])[h.items[index] - 1].astype(np.float64)
