"""Which events train, validate and test: index arrays over Histories, nothing is copied."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxrec.data.histories import NO_TIME, Histories
from jaxrec.data.ragged import EVENTS_AT_ONCE, blocks
from jaxrec.errors import UserError

_BINS = 1 << 16
_LATEST = np.iinfo(np.int64).max
LEAK_WARNING = (
    'note: leave-one-out splits each user by itself, so training sees events of other users that '
    'happened after a test event; --config.task.split=temporal avoids that'
)


@dataclasses.dataclass
class Targets:
    """Evaluation examples: the model sees items[offsets[user]:end] and must rank what follows.

    Attributes:
      users: int64 [E] 0-based user numbers, ascending.
      ends: int64 [E] absolute index of the first target event, one past the input history.
      stops: int64 [E] one past the last target event; by default there is one.
    """

    users: np.ndarray
    ends: np.ndarray
    stops: np.ndarray | None = None

    def __post_init__(self):
        if self.stops is None:
            self.stops = self.ends + 1

    def __len__(self) -> int:
        return len(self.users)

    def take(self, chosen: np.ndarray) -> 'Targets':
        return Targets(self.users[chosen], self.ends[chosen], self.stops[chosen])

    def first(self) -> 'Targets':
        """The same examples with their first target alone."""
        return Targets(self.users, self.ends)


@dataclasses.dataclass
class Split:
    """Training events items[offsets[u]:train_ends[u]] of each user, and the two target sets."""

    train_ends: np.ndarray  # int64 [U], absolute
    valid: Targets
    test: Targets

    def targets(self, name: str) -> Targets:
        if name not in ('valid', 'test'):
            raise UserError(f"unknown split {name!r}: use 'valid' or 'test'")
        return getattr(self, name)


KINDS = ('leave-one-out', 'temporal', 'users')


def split(
    histories: Histories,
    kind: str,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    *,
    targets: str = 'first',
    prefix_share: float = 0.8,
    seed: int = 0,
) -> Split:
    """Makes the split called `kind`, one of KINDS.

    Args:
      histories: the events.
      kind: see `leave_one_out`, `temporal` and `users`.
      valid_share, test_share: of `temporal` and `users`.
      targets: 'first' held-out event of a user, or 'all' of them.
      prefix_share, seed: of `users`.
    """
    if kind == 'leave-one-out':
        made = leave_one_out(histories)
    elif kind == 'temporal':
        made = temporal(histories, valid_share, test_share)
    elif kind == 'users':
        made = users(histories, valid_share, test_share, prefix_share, seed)
    else:
        raise UserError(f'unknown task.split {kind!r}: use {", ".join(KINDS)}')
    if targets == 'first':
        made = Split(made.train_ends, made.valid.first(), made.test.first())
    return made


def leave_one_out(histories: Histories) -> Split:
    """Last event = test, the one before = validation, the rest trains (SASRec, section IV).

    The test input contains the validation event. Users with fewer than 3 events only train.
    """
    lengths = np.diff(histories.offsets)
    users = np.flatnonzero(lengths >= 3)
    last = histories.offsets[users + 1] - 1
    train_ends = np.array(histories.offsets[1:])
    train_ends[users] -= 2
    return Split(train_ends, valid=Targets(users, last - 1), test=Targets(users, last))


def temporal(histories: Histories, valid_share: float, test_share: float) -> Split:
    """Global temporal split: everything before one moment trains, whoever the user.

    The test period holds the newest `test_share` of the events that have a time, the validation
    period the `valid_share` before it; those with NO_TIME train. The targets of a user in a period
    are the events of the period, the input all the user's events before the period; users without
    any are left out of that period.

    Raises:
      UserError: no event has a time, or the shares do not fit.
    """
    if histories.times is None:
        raise UserError('task.split=temporal needs timestamps, and this data set has none')
    _check_shares(valid_share, test_share)
    known = _known(histories.times)
    if not known:
        raise UserError('task.split=temporal needs timestamps, and no event has one')
    test_from = _at_rank(histories.times, int(known * (1 - test_share)))
    valid_from = _at_rank(histories.times, int(known * (1 - test_share - valid_share)))
    valid_ends, test_ends = (_first_at(histories, t) for t in (valid_from, test_from))
    starts, stops = histories.offsets[:-1], histories.offsets[1:]
    valid = np.flatnonzero((valid_ends > starts) & (valid_ends < test_ends))
    test = np.flatnonzero((test_ends > starts) & (test_ends < stops))
    return Split(
        valid_ends,
        valid=Targets(valid, valid_ends[valid], test_ends[valid]),
        test=Targets(test, test_ends[test], stops[test]),
    )


def users(
    histories: Histories, valid_share: float, test_share: float, prefix_share: float, seed: int
) -> Split:
    """Whole users are held out, as strong generalisation (Liang et al. 2018) and ComiRec do.

    Of the users with two events or more, shuffled by `seed`, the last `test_share` are tested, the
    `valid_share` before them validate, and nothing of either trains. Of a held-out user the first
    `prefix_share` of the events (one at least) are the input, the rest are the targets.

    Raises:
      UserError: shares that do not fit.
    """
    _check_shares(valid_share, test_share)
    if not 0 < prefix_share < 1:
        raise UserError(f'task.prefix_share={prefix_share} is not in (0, 1)')
    lengths = np.diff(histories.offsets)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(lengths >= 2))
    shares = np.array([1 - valid_share - test_share, 1 - test_share])
    bounds = np.floor(shares * len(order) + 1e-6).astype(int)  # 0.7 * 90 is 62.99..
    _, valid, test = (np.sort(part) for part in np.split(order, bounds))
    starts, train_ends = histories.offsets[:-1], np.array(histories.offsets[1:])
    train_ends[valid], train_ends[test] = starts[valid], starts[test]

    def held_out(chosen):
        given = np.floor(prefix_share * lengths[chosen] + 1e-6).astype(np.int64)
        given = np.clip(given, 1, lengths[chosen] - 1)
        return Targets(chosen, starts[chosen] + given, starts[chosen] + lengths[chosen])

    return Split(train_ends, held_out(valid), held_out(test))


def _check_shares(valid_share, test_share):
    if not (valid_share > 0 and test_share > 0 and valid_share + test_share < 1):
        raise UserError('task.valid_share and task.test_share must be > 0 and add up to < 1')


def period_starts(histories: Histories, periods: int) -> list[np.ndarray]:
    """Cuts the log by time into periods of equally many events (with a time; those without first).

    Returns:
      [periods + 1] of int64 [U]: absolute index of each user's first event in or after a period;
      the last one is the end of the histories.

    Raises:
      UserError: no times, or more periods than moments.
    """
    known = 0 if histories.times is None else _known(histories.times)
    if not known:
        raise UserError('periods need timestamps, and this data set has none')
    first, *moments = (_at_rank(histories.times, n * known // periods) for n in range(periods))
    if (np.diff([first, *moments]) <= 0).any():
        raise UserError(f'the times of this data set do not make {periods} periods: take fewer')
    inner = [_first_at(histories, moment) for moment in moments]
    return [histories.offsets[:-1], *inner, histories.offsets[1:]]


def _first_at(histories: Histories, moment) -> np.ndarray:
    """Absolute index of each user's first event at or after `moment` (its end if none)."""
    first = np.array(histories.offsets[:-1])
    for users in blocks(histories.offsets):
        offsets = histories.offsets[users.start : users.stop + 1]
        earlier = histories.times[offsets[0] : offsets[-1]] < moment
        before = np.concatenate([[0], np.cumsum(earlier, dtype=np.int64)])
        first[users] += np.diff(before[offsets - offsets[0]])
    return first


def _known(times: np.ndarray) -> int:
    """How many events have a time."""
    return sum(int((part != NO_TIME).sum()) for part in _parts(times))


def _at_rank(times: np.ndarray, rank: int) -> int:
    """np.sort(times[times != NO_TIME])[rank], by counting in ever narrower bins."""
    low = min(int(part[part != NO_TIME].min(initial=_LATEST)) for part in _parts(times))
    high, below = max(int(part.max(initial=NO_TIME)) for part in _parts(times)), 0
    while low < high:
        width = (high - low) // _BINS + 1
        counts = np.zeros(_BINS, np.int64)
        for part in _parts(times):
            inside = part[(part >= low) & (part <= high)]
            bins = (inside - low).view(np.uint64) // np.uint64(width)
            counts += np.bincount(bins.astype(np.int64), minlength=_BINS)
        up_to = below + np.cumsum(counts)
        place = int(np.searchsorted(up_to, rank, side='right'))
        below = int(up_to[place - 1]) if place else below
        low, high = low + place * width, min(low + (place + 1) * width - 1, high)
    return low


def _parts(times: np.ndarray) -> Iterator[np.ndarray]:
    return (times[n : n + EVENTS_AT_ONCE] for n in range(0, len(times), EVENTS_AT_ONCE))
