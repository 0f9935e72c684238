"""Generated visits to live rooms, whose appeal changes by the minute, for label streams.

Rooms live about an hour in steps of 30 seconds. A visitor clicks by the visitor's taste and the
room's topic and quality; in a highlight, 2 to 5 minutes long, `lift` times as often. Who clicks may
like and send a gift. Delays are exponential, in the mean 5 seconds to the click, 2 minutes from
there to the like (which is tapped again and again) and 20 minutes to the gift; what is late for the
exit never happens. A visit is lognormal, 3 minutes in the mean.
"""

import dataclasses

import numpy as np

from jaxrec.data.label_streams import first_after
from jaxrec.data.ragged import ranges
from jaxrec.data.rows import Rows
from jaxrec.datasets import parameters
from jaxrec.errors import UserError

NAME = 'live-rooms'
TICK = 30  # seconds of a step
DELAYS = {'click': 5.0, 'like': 120.0, 'gift': 1200.0}  # seconds, means
CHANCES = {'like': 0.4, 'gift': 0.4}  # of one who clicked to mean it
_ROOM = 3600  # seconds that a room lives, mean
_HIGHLIGHT = (4, 10)  # ticks, least and most
_TAPS = 3.0  # likes of one who likes, mean


@dataclasses.dataclass
class Parameters:
    """What `live-rooms:hours=2,seed=3` sets."""

    users: int = 2000
    rooms: int = 20  # live at once, mean
    hours: float = 3.0
    rate: float = 15.0  # visits a second
    topics: int = 8  # and tastes
    chance: float = 0.12  # of a click where taste, topic and quality say nothing
    spread: float = (
        0.7  # deviation of what taste and topic, and of what the room add to its log odds
    )
    highlights: float = 3.0  # an hour of a room
    lift: float = 3.0  # of the chance of a click in one
    stay: float = 180.0  # seconds of a visit, mean
    seed: int = 0


def parse(argument: str) -> Parameters:
    """Reads 'hours=2,seed=3'.

    Raises:
      UserError: unknown parameter, or not a number, or a value that makes no sense.
    """
    p = parameters.parse(Parameters, NAME, argument)
    if min(p.users, p.rooms, p.topics) < 1 or min(p.hours, p.rate, p.stay) <= 0:
        raise UserError(f'{NAME} needs users, rooms, topics >= 1 and hours, rate, stay > 0')
    if min(p.spread, p.highlights) < 0 or p.lift < 1 or not 0 < p.chance < 1:
        raise UserError(f'{NAME} needs spread, highlights >= 0, lift >= 1 and 0 < chance < 1')
    return p


def generate(p: Parameters) -> Rows:
    """A row a visit, times in seconds from 0; the same for the same parameters.

    Of the row: `stay` and `click_after`, `like_after`, `gift_after`, seconds from its time, NaN of
    what never came. Of the user: taste. Of the room: topic, and `highlight_from` and
    `highlight_to`, seconds. Labels: click, like, gift.
    """
    rng = np.random.default_rng(p.seed)
    ticks = round(p.hours * 3600 / TICK)
    first, last, topic, quality = _rooms(p, ticks, rng)
    lifted, highlights = _lifted(p, first, last, ticks, rng)
    affinity = p.spread * rng.normal(size=(p.topics, p.topics))
    taste = rng.integers(0, p.topics, p.users)
    times, rooms = _shown(p, first, last, ticks, rng)
    count = len(times)
    users = rng.integers(0, p.users, count)
    odds = affinity[taste[users], topic[rooms]] + quality[rooms]
    odds += np.log(p.chance / (1 - p.chance))
    chance = 1 / (1 + np.exp(-odds)) * np.where(lifted[rooms, times // TICK], p.lift, 1)
    stay = rng.lognormal(np.log(p.stay) - 0.5, 1.0, count)
    stay = np.minimum(stay, TICK * last[rooms] - times)
    after = np.full((count, 3), np.nan)
    clicks = rng.random(count) < chance
    after[clicks, 0] = rng.exponential(DELAYS['click'], clicks.sum())
    meant = rng.random((count, 2)) < list(CHANCES.values())
    taps = np.where(meant[:, 0], rng.geometric(1 / _TAPS, count), 0)
    visit = np.repeat(np.arange(count), taps)
    first_tap = np.repeat(rng.exponential(DELAYS['like'], count), taps)
    more = np.where(ranges(np.zeros(count, int), taps) > 0, rng.exponential(2.0, len(visit)), 0)
    after[:, 1] = after[:, 0] + first_after(visit, first_tap + more, count)
    after[:, 2] = after[:, 0] + np.where(
        meant[:, 1], rng.exponential(DELAYS['gift'], count), np.nan
    )
    after, stay = after.astype(np.float32), stay.astype(np.float32)
    after[after > stay[:, None]] = np.nan
    return Rows(
        users=users.astype(np.int32),
        items=(rooms + 1).astype(np.int32),
        times=times,
        user_ids=np.arange(p.users),
        item_ids=np.arange(1, len(topic) + 1),
        features={'stay': stay, **{f'{n}_after': after[:, k] for k, n in enumerate(DELAYS)}},
        user_features={'taste': taste.astype(np.int32)},
        item_features={'topic': topic.astype(np.int32), **highlights},
        labels={n: (~np.isnan(after[:, k])).astype(np.float32) for k, n in enumerate(DELAYS)},
        name=NAME,
    )


def _rooms(p, ticks, rng):
    """First and last tick, topic and quality of every room; some are open at the start."""
    count = round(p.rooms * (ticks * TICK / _ROOM + 1))
    length = np.maximum(_ROOM / TICK * rng.lognormal(-0.045, 0.3, count), 10)
    first = np.round(rng.uniform(-_ROOM / TICK, ticks, count)).astype(int)
    last = first + np.round(length).astype(int)
    return first, last, rng.integers(0, p.topics, count), p.spread * rng.normal(size=count)


def _lifted(p, first, last, ticks, rng):
    """bool [R, ticks], where there is a highlight; and when each began and ended, as columns."""
    lifted = np.zeros((len(first), ticks), bool)
    times = [[] for _ in first]
    mean = _ROOM / TICK / max(p.highlights, 1e-9)
    for room in range(len(first)):
        at = first[room] + rng.exponential(mean)
        while at < last[room]:
            begin, length = int(at), int(rng.integers(_HIGHLIGHT[0], _HIGHLIGHT[1] + 1))
            end = min(begin + length, last[room], ticks)
            if 0 < begin < ticks:
                lifted[room, begin:end] = True
                times[room].append((begin, end))
            at = begin + length + 1 + rng.exponential(mean)
    most = max(1, *map(len, times))
    columns = {name: np.zeros((len(first), most), np.int32) for name in ('from', 'to')}
    for room, own in enumerate(times):
        for nth, (begin, end) in enumerate(own):
            columns['from'][room, nth], columns['to'][room, nth] = TICK * begin, TICK * end
    return lifted, {f'highlight_{name}': column for name, column in columns.items()}


def _shown(p, first, last, ticks, rng):
    """Times ascending and rooms of the visits; a room is shown in whole ticks of its life."""
    popular = rng.lognormal(0, 0.5, len(first))
    times, rooms = [], []
    for tick, count in enumerate(rng.poisson(p.rate * TICK, ticks)):
        live = np.flatnonzero((first <= tick) & (tick < last))
        if not len(live):
            continue
        weights = popular[live] / popular[live].sum()
        times.append(np.sort(TICK * tick + rng.integers(0, TICK, count)))
        rooms.append(rng.choice(live, count, p=weights))
    if not times:
        raise UserError(f'{NAME}: no room is live: raise rooms or hours')
    return np.concatenate(times), np.concatenate(rooms)
