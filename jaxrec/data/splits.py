"""Which events train, validate and test: index arrays over Histories, nothing is copied."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxrec.data.histories import NO_TIME, Histories
from jaxrec.data.ragged import EVENTS_AT_ONCE, blocks, ranges
from jaxrec.errors import UserError

_BINS = 1 << 16
_LATEST = np.iinfo(np.int64).max
LEAK_WARNING = (
    'note: leave-one-out splits each user by itself, so training sees events of other users that '
    'happened after a test event; --config.task.split=temporal avoids that'
)


@dataclasses.dataclass
class Targets:
    """Evaluation examples: the model sees items[offsets[user]:input] and must rank targets.

    Attributes:
      users: int64 [E] 0-based user numbers, ascending.
      ends: int64 [E] absolute index of the first target event.
      stops: int64 [E] one past the last target event; by default there is one.
      inputs: int64 [E] one past the input history; by default it ends where the targets begin.
    """

    users: np.ndarray
    ends: np.ndarray
    stops: np.ndarray | None = None
    inputs: np.ndarray | None = None

    def __post_init__(self):
        if self.stops is None:
            self.stops = self.ends + 1
        if self.inputs is None:
            self.inputs = self.ends

    def __len__(self) -> int:
        return len(self.users)

    def take(self, chosen: np.ndarray) -> 'Targets':
        columns = self.users, self.ends, self.stops, self.inputs
        return Targets(*(column[chosen] for column in columns))

    def first(self) -> 'Targets':
        """The same examples with their first target alone."""
        return Targets(self.users, self.ends, inputs=self.inputs)


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


PARTED = ('random', 'given')  # by single events, whatever their time: of histories from `parted`
GIVEN_USERS = 'given-users'
KINDS = ('leave-one-out', 'temporal', 'users', *PARTED, GIVEN_USERS)
PART = 'part'  # column of events: TRAIN, VALID or TEST
TRAIN, VALID, TEST = range(3)


def split(
    histories: Histories,
    kind: str,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    *,
    targets: str = 'first',
    prefix_share: float = 0.8,
    valid_seen: bool = True,
    seed: int = 0,
) -> Split:
    """Makes the split called `kind`, one of KINDS.

    Args:
      histories: the events.
      kind: see `leave_one_out`, `temporal`, `users`, `given_users` and, of histories from `parted`,
        `by_part`.
      valid_share, test_share: of `temporal` and `users`.
      targets: 'first' held-out event of a user, or 'all' of them.
      prefix_share, seed: of `users`.
      valid_seen: of histories from `parted`, see `by_part`.
    """
    if kind == 'leave-one-out':
        made = leave_one_out(histories)
    elif kind == 'temporal':
        made = temporal(histories, valid_share, test_share)
    elif kind == 'users':
        made = users(histories, valid_share, test_share, prefix_share, seed)
    elif kind == GIVEN_USERS:
        made = given_users(histories)
    elif kind in PARTED:
        made = by_part(histories, valid_seen)
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


def given_users(histories: Histories) -> Split:
    """Users are held out as the data's column PART says of their last events.

    Of users who validate or test the last event is the target, all before it the input. Their other
    events are of the same part, and nothing of them trains, or all of TRAIN, which train.

    Raises:
      UserError: no column PART or other values in it, a user in other parts than these, a held-out
        user with a single event.
    """
    part, offsets, lengths = _given(histories), histories.offsets, np.diff(histories.offsets)
    there = np.flatnonzero(lengths)
    of_user = np.full(histories.num_users, TRAIN, np.int8)
    of_user[there] = part[offsets[there + 1] - 1]
    owner = np.repeat(np.arange(histories.num_users), lengths)
    trains = np.bincount(owner[part == TRAIN], minlength=histories.num_users)
    odd = (part != of_user[owner]) & ((part != TRAIN) | (trains[owner] != lengths[owner] - 1))
    mixed = np.flatnonzero(odd)
    alone = np.flatnonzero((of_user != TRAIN) & (lengths < 2))
    for users, what in (
        (owner[mixed], 'has events of several parts'),
        (alone, 'is held out and has a single event'),
    ):
        if len(users):
            raise UserError(
                f'user {histories.raw_user(users[0])!r} {what}: task.split={GIVEN_USERS!r} holds '
                'out whole users, or last events alone'
            )
    train_ends = offsets[:-1] + trains
    valid, test = (np.flatnonzero(of_user == one) for one in (VALID, TEST))
    return Split(
        train_ends, Targets(valid, offsets[valid + 1] - 1), Targets(test, offsets[test + 1] - 1)
    )


def parted(
    histories: Histories, kind: str, valid_share: float, test_share: float, seed: int = 0
) -> Histories:
    """The same events with each user's in the order train, valid, test, told by the column PART.

    random: of a user's events `test_share` are drawn for the test and `valid_share` for validation,
    rounded down, and one at least trains. given: the data's column PART says it, and where it says
    TRAIN and TEST alone, `valid_share` of a user's training events, rounded down, is drawn for
    validation. With valid_share=0 nothing validates.

    Args:
      histories: with every item once a user.
      kind: of PARTED.
      valid_share, test_share: see above; test_share is for 'random'.
      seed: of the draws.

    Returns:
      Histories without times, since the order no longer tells them.

    Raises:
      UserError: shares that do not fit, no column PART or other values in it, an item twice in a
        user's events, a user who is tested and has nothing to train on.
    """
    _check_once(histories)
    offsets, lengths = histories.offsets, np.diff(histories.offsets)
    owner = np.repeat(np.arange(histories.num_users), lengths)
    drawn = np.random.default_rng(seed).random(len(owner))
    if kind == 'random':
        if not (valid_share >= 0 and test_share > 0 and valid_share + test_share < 1):
            raise UserError(
                'task.valid_share must be >= 0, task.test_share > 0, and they add up to < 1'
            )
        part = np.full(len(owner), TRAIN, np.int8)
        held_out = ((TEST, test_share), (VALID, valid_share))
    else:
        part = _given(histories)
        held_out = () if (part == VALID).any() or not valid_share else ((VALID, valid_share),)
        if not 0 <= valid_share < 1:
            raise UserError(f'task.valid_share={valid_share} is not in [0, 1)')
    order = np.lexsort((drawn, part, owner))  # a user's training events first, shuffled
    first, left = offsets[:-1], np.bincount(owner[part == TRAIN], minlength=len(lengths))
    whole = left
    for name, share in held_out:
        count = np.minimum(np.floor(share * whole + 1e-6).astype(np.int64), np.maximum(left - 1, 0))
        part[order[ranges(first, count)]] = name
        first, left = first + count, left - count
    order = np.lexsort((part, owner))  # stable: within a part as they came
    return dataclasses.replace(
        histories,
        items=histories.items[order],
        times=None,
        features={
            **{name: column[order] for name, column in histories.features.items()},
            PART: part[order],
        },
    )


def by_part(histories: Histories, valid_seen: bool = True) -> Split:
    """The split of histories from `parted`.

    Args:
      histories: in the order train, valid, test.
      valid_seen: whether the test input contains the validation events. A user who is cold in a
        domain would not be, if it did.

    Raises:
      UserError: a user who is tested and has nothing to train on.
    """
    offsets, lengths = histories.offsets, np.diff(histories.offsets)
    owner = np.repeat(np.arange(histories.num_users), lengths)
    part = histories.features[PART]
    ends = [
        offsets[:-1] + np.bincount(owner[part <= name], minlength=len(lengths))
        for name in (TRAIN, VALID, TEST)
    ]
    alone = np.flatnonzero((ends[TRAIN] == offsets[:-1]) & (lengths > 0))
    if len(alone):
        raise UserError(
            f'user {histories.raw_user(alone[0])!r} is evaluated and has no training event '
            f'({len(alone)} users have none): remove such users from the data'
        )

    def held_out(before, after, inputs):
        users = np.flatnonzero(after > before)
        return Targets(users, before[users], after[users], inputs[users])

    valid = held_out(ends[TRAIN], ends[VALID], ends[TRAIN])
    seen = ends[VALID if valid_seen else TRAIN]
    return Split(ends[TRAIN], valid=valid, test=held_out(ends[VALID], ends[TEST], seen))


def _check_once(histories):
    """UserError where a user has an item twice: drawn apart, one would be learnt and tested."""
    size = histories.num_items + 1
    for users in blocks(histories.offsets):
        offsets = histories.offsets[users.start : users.stop + 1]
        owner = np.repeat(np.arange(users.start, users.stop), np.diff(offsets))
        keys = np.sort(owner * size + histories.items[offsets[0] : offsets[-1]])
        again = keys[1:][keys[1:] == keys[:-1]]
        if len(again):
            user, item = divmod(int(again[0]), size)
            raise UserError(
                f'user {histories.raw_user(user)!r} has item {histories.raw_item(item)!r} twice '
                f'({len(again)} repeats in all): a split of single events needs every pair once; '
                'remove repeats, or take task.split=temporal'
            )


def _given(histories):
    """int8 [N], the column PART; UserError if there is none, or with other values."""
    if PART not in histories.features:
        raise UserError(
            f"task.split='given' reads the column {PART!r} of the data (0 train, 1 valid, 2 test), "
            f'and {histories.name or "the data"} has none: of your own log keep it with '
            f'--features={PART}'
        )
    given = histories.features[PART]
    wrong = np.flatnonzero(~np.isin(given, (TRAIN, VALID, TEST)))
    if len(wrong):
        raise UserError(
            f'the column {PART!r} holds {given[wrong[0]]:g}: 0 is train, 1 valid, 2 test'
        )
    if not (given == TEST).any():
        raise UserError(f'the column {PART!r} names no test event (2)')
    return given.astype(np.int8)


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
