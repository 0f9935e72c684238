"""The evaluation protocol as data: against what a target is ranked, for which users, at which k.

Numbers under different protocols cannot be compared, so `asdict` of the protocol is stored and
printed beside every number.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxrec.data.histories import Histories
from jaxrec.data.ragged import blocks, distinct, ranges
from jaxrec.data.splits import Split, Targets
from jaxrec.errors import UserError


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How targets are ranked.

    Attributes:
      name: one of `NAMES`.
      candidates: 'all' (the whole catalogue), or sampled 'uniform' or by 'popularity' (training
        interactions).
      negatives: sampled candidates per user; 0 for 'all'.
      exclude: what sampled candidates avoid: the user's 'train' items, or the whole 'history',
        validation and test events included.
      duplicates: whether sampled candidates may repeat.
      filter_seen: score the items of the input history -inf (candidates 'all' only).
      max_users: evaluate a random subset of this many users; 0 = all.
      user_seed: of that subset.
      negatives_seed: of the sampled candidates; with the user's number it fixes them.
      ties: 'shared': a target takes each position among its equals with the same probability.
      cutoffs: the k of the metrics at k.
    """

    name: str
    candidates: str = 'all'
    negatives: int = 0
    exclude: str = 'history'
    duplicates: bool = False
    filter_seen: bool = False
    max_users: int = 0
    user_seed: int = 0
    negatives_seed: int = 0
    ties: str = 'shared'
    cutoffs: tuple[int, ...] = (1, 5, 10, 20, 50)


NAMES = ('full', 'sasrec-2018', 's3rec-99', 'uniform', 'popularity')
_USERS_AT_ONCE = 1 << 16


def protocol_of(settings: Any) -> Protocol:
    """The protocol that the settings of a retrieval task name.

    full: the whole catalogue. sasrec-2018: the SASRec authors' code (util.py): 100 uniform
    negatives outside the training items only (so they may be the validation item or the target),
    repeats allowed, a random 10,000 users where there are more. s3rec-99: 99 uniform negatives
    outside the whole history, no repeats (Zhou et al., CIKM 2020). uniform, popularity:
    `settings.negatives` of them outside the whole history, no repeats.

    Raises:
      UserError: no cut-offs.
    """
    cutoffs = tuple(sorted(set(settings.cutoffs)))
    if not cutoffs or cutoffs[0] < 1:
        raise UserError('task.cutoffs needs at least one cut-off, each at least 1')
    presets = {
        'full': {'filter_seen': settings.filter_seen},
        'sasrec-2018': {
            'candidates': 'uniform',
            'negatives': 100,
            'exclude': 'train',
            'duplicates': True,
            'max_users': 10_000,
        },
        's3rec-99': {'candidates': 'uniform', 'negatives': 99},
        'uniform': {'candidates': 'uniform', 'negatives': settings.negatives},
        'popularity': {'candidates': 'popularity', 'negatives': settings.negatives},
    }
    return Protocol(name=settings.protocol, cutoffs=cutoffs, **presets[settings.protocol])


def asdict(protocol: Protocol) -> dict:
    """The protocol as JSON-ready values."""
    return {**dataclasses.asdict(protocol), 'cutoffs': list(protocol.cutoffs)}


def choose_users(targets: Targets, max_users: int, seed: int) -> Targets:
    """All of `targets`, or a random subset of `max_users` (> 0) that only `seed` decides."""
    if not 0 < max_users < len(targets):
        return targets
    chosen = np.random.default_rng(seed).choice(len(targets), max_users, replace=False)
    return targets.take(np.sort(chosen))


def training_counts(histories: Histories, split: Split) -> np.ndarray:
    """Training interactions per item: int64 [num_items + 1], entry 0 is padding."""
    counts = np.zeros(histories.num_items + 1, np.int64)
    for users in blocks(histories.offsets):  # all their events without those held out
        ends = histories.offsets[users.start + 1 : users.stop + 1]
        train_ends = split.train_ends[users]
        events = histories.items[histories.offsets[users.start] : ends[-1]]
        held_out = histories.items[ranges(train_ends, ends - train_ends)]
        counts += np.bincount(events, minlength=len(counts))
        counts -= np.bincount(held_out, minlength=len(counts))
    return counts


class Negatives:
    """Sampled candidates: a pure function of (seed, user), whatever the batch or the devices.

    User u's draws are hash(seed, u, 0), hash(seed, u, 1), ...; the first `negatives` of them that
    the protocol allows are taken. Skipping repeats makes that successive sampling without
    replacement. A user for whom a few rounds of draws do not suffice, because most of the
    catalogue is forbidden, is completed from a list of what is left, which is the same
    distribution.

    Args:
      protocol: with candidates 'uniform' or 'popularity'.
      histories, split: the events, and which of them train.
      allowed: bool [num_items + 1], the items that are ever drawn; None = all.
    """

    _ROUNDS = 4  # of 2 * negatives draws each

    def __init__(
        self,
        protocol: Protocol,
        histories: Histories,
        split: Split,
        allowed: np.ndarray | None = None,
    ):
        weights = np.ones(histories.num_items + 1)
        if protocol.candidates == 'popularity':
            weights = training_counts(histories, split).astype(np.float64)
        weights[0] = 0
        self._number = np.arange(len(weights))  # of an item among those that are allowed
        if allowed is not None:
            weights[~allowed] = 0
            self._number = np.cumsum(allowed)
        self._weights, self._cumulative = weights, np.cumsum(weights)
        self._last = np.flatnonzero(weights).max(initial=0)
        self._protocol, self._histories, self._split = protocol, histories, split

    def __call__(self, users: np.ndarray) -> np.ndarray:
        """Candidates of 0-based `users`: int32 [len(users), negatives].

        Places stay 0 where fewer items than that are allowed and have a chance to be drawn.
        """
        count, items = self._protocol.negatives, self._histories.num_items + 1
        forbidden = self._forbidden(users)
        out = np.zeros((len(users), count), np.int32)
        filled = np.zeros(len(users), np.int64)
        for step in range(self._ROUNDS):
            rows = np.flatnonzero(filled < count)
            if not len(rows):
                return out
            place = np.arange(2 * count) + step * 2 * count
            drawn = self._invert(_uniform(self._protocol.negatives_seed, users[rows], place))
            keys = rows[:, None] * items + drawn
            good = ~_contains(forbidden, keys)
            if not self._protocol.duplicates:
                good &= _first_of_its_kind(keys)
                taken = distinct(rows[:, None] * items + out[rows])  # 0s are never drawn
                good &= ~_contains(taken, keys)
            index = filled[rows, None] + np.cumsum(good, axis=1) - 1
            good &= index < count
            row, column = np.nonzero(good)
            out[rows[row], index[row, column]] = drawn[row, column]
            filled[rows] += good.sum(1)
        for row in np.flatnonzero(filled < count):
            own = forbidden[np.searchsorted(forbidden, [row * items, (row + 1) * items])[0] :]
            own = own[own < (row + 1) * items] - row * items
            self._complete(out[row], int(filled[row]), int(users[row]), own)
        return out

    def too_few(self, users: np.ndarray) -> int:
        """For how many of `users` fewer candidates are allowed than the protocol asks for."""
        items = self._histories.num_items + 1
        drawable = self._weights > 0
        asked = 1 if self._protocol.duplicates else self._protocol.negatives
        few = 0
        for start in range(0, len(users), _USERS_AT_ONCE):
            chosen = users[start : start + _USERS_AT_ONCE]
            row, item = np.divmod(self._forbidden(chosen), items)
            taken = np.bincount(row[drawable[item]], minlength=len(chosen))
            few += int((drawable.sum() - taken < asked).sum())
        return few

    def _forbidden(self, users: np.ndarray) -> np.ndarray:
        """Sorted keys row * (num_items + 1) + item of what each user's candidates avoid."""
        starts, ends = self._histories.offsets[users], self._histories.offsets[users + 1]
        if self._protocol.exclude == 'train':
            ends = self._split.train_ends[users]
        row = np.repeat(np.arange(len(users)), ends - starts)
        events = self._histories.items[ranges(starts, ends - starts)]
        return distinct(row * (self._histories.num_items + 1) + events)

    def _invert(self, uniform: np.ndarray) -> np.ndarray:
        """Items whose slice of the cumulative weights holds `uniform` in [0, 1)."""
        total = self._cumulative[-1]
        index = np.searchsorted(self._cumulative, uniform * total, side='right')
        return np.minimum(index, self._last)  # rounding may reach beyond

    def _complete(self, out: np.ndarray, filled: int, user: int, forbidden: np.ndarray) -> None:
        """Fills out[filled:] from the allowed items that are left, in place."""
        weights = self._weights.copy()
        weights[forbidden] = 0
        missing = len(out) - filled
        rest = np.arange(1 << 40, (1 << 40) + max(missing, len(weights)))  # draws not used above
        uniform = _uniform(self._protocol.negatives_seed, np.array([user]), rest)[0]
        if self._protocol.duplicates:
            allowed = np.flatnonzero(weights)
            if len(allowed):
                cumulative = np.cumsum(weights[allowed])
                index = np.searchsorted(
                    cumulative, uniform[:missing] * cumulative[-1], side='right'
                )
                out[filled:] = allowed[np.minimum(index, len(allowed) - 1)]
            return
        weights[out[:filled]] = 0
        allowed = np.flatnonzero(weights)
        # The order of arrival of exponential clocks is successive sampling by weight.
        arrival = -np.log1p(-uniform[self._number[allowed]]) / weights[allowed]
        best = allowed[np.argsort(arrival, kind='stable')[:missing]]
        out[filled : filled + len(best)] = best


def _contains(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    if not len(sorted_keys):
        return np.zeros(keys.shape, bool)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[at] == keys


def _first_of_its_kind(keys: np.ndarray) -> np.ndarray:
    """True where a value appears for the first time in `keys`, read row by row."""
    first = np.zeros(keys.size, bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first.reshape(keys.shape)


def _uniform(seed: int, users: np.ndarray, place: np.ndarray) -> np.ndarray:
    """float64 [users, places] in [0, 1), a hash of (seed, user, place) (splitmix64 finaliser)."""
    state = _mix(np.uint64(seed) + np.zeros(1, np.uint64))
    state = _mix(state ^ users.astype(np.uint64))
    state = _mix(state[:, None] ^ _mix(place.astype(np.uint64))[None, :])
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
