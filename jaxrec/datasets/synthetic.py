"""Generated histories with a known structure, for tests and for trying things out.

An event depends on the last two: item b has two followers, and which of them is likely is
decided by the item a before b. With the default parameters the likely one comes next with
probability 0.7, the other with 0.1, and a popular item (Zipf) with 0.2. No user meets an item
twice, so filtering seen items removes no target.
"""

import dataclasses

import numpy as np

from jaxrec.data.histories import Histories
from jaxrec.datasets import parameters
from jaxrec.datasets.events import Events
from jaxrec.datasets.raw_ids import Coded
from jaxrec.errors import UserError

DAY = 86_400


@dataclasses.dataclass
class Parameters:
    """What `synthetic:users=1000,items=200` sets."""

    users: int = 1000
    items: int = 200
    length: int = 20  # mean events per user; the least is 3 and the most 3 * length
    seed: int = 0
    likely: float = 0.7  # probability of the follower that the last two items point to
    other: float = 0.1  # of the other follower of the last item; the rest is popularity


def parse(argument: str) -> Parameters:
    """Reads 'users=1000,seed=3'.

    Raises:
      UserError: unknown parameter, or not a number, or a value that makes no sense.
    """
    p = parameters.parse(Parameters, 'synthetic', argument)
    if p.users < 1 or p.length < 3 or p.items < 3 * p.length:
        raise UserError('synthetic needs users >= 1, length >= 3, items >= 3 * length')
    if not (0 <= p.likely <= 1 and 0 <= p.other <= 1 - p.likely):
        raise UserError('synthetic needs likely >= 0, other >= 0 and likely + other <= 1')
    return p


def generate(p: Parameters) -> Events:
    """Events with times in seconds, in order of (user, time); raw ids count from 1."""
    rng = np.random.default_rng(p.seed)
    followers = rng.integers(0, p.items, (p.items, 2))
    popularity = np.cumsum(1 / np.arange(1, p.items + 1))
    popularity /= popularity[-1]
    lengths = np.clip(rng.geometric(1 / (p.length - 2), p.users) + 2, 3, 3 * p.length)
    steps = int(lengths.max())
    history = np.full((p.users, steps), -1, np.int64)
    everyone = np.arange(p.users)
    for t in range(steps):
        by_popularity = np.searchsorted(popularity, rng.random(p.users))
        before, last = history[:, max(t - 2, 0)], history[:, max(t - 1, 0)]
        pointed = (before % 2 + 2) % 2
        draw = rng.random(p.users)
        which = np.where(draw < p.likely, pointed, 1 - pointed)
        follower = followers[last, which]
        chosen = (
            by_popularity
            if t == 0
            else np.where(draw < p.likely + p.other, follower, by_popularity)
        )
        history[everyone, t] = _first_unseen(chosen, history[:, :t], p.items)
    alive = np.arange(steps) < lengths[:, None]
    gaps = np.ceil(rng.exponential(DAY, history.shape)).astype(np.int64)
    starts = rng.integers(0, 365 * DAY, (p.users, 1))
    times = 1_500_000_000 + starts + np.cumsum(gaps, axis=1)
    users = np.repeat(everyone.astype(np.int32), lengths)
    return Events(
        Coded(users, everyone + 1),
        Coded(history[alive].astype(np.int32), np.arange(1, p.items + 1)),
        times[alive],
    )


def _first_unseen(chosen: np.ndarray, seen: np.ndarray, items: int) -> np.ndarray:
    """`chosen` [U] moved up, item by item, past what each user's row of `seen` [U, t] holds."""
    chosen = chosen.copy()
    clash = np.flatnonzero((seen == chosen[:, None]).any(1))
    while len(clash):
        chosen[clash] = (chosen[clash] + 1) % items
        clash = clash[(seen[clash] == chosen[clash, None]).any(1)]
    return chosen


_BATCHES = 4  # of generated users; then they come round again


def generated(length: int, rows: int, items: int) -> Histories:
    """Uniform random histories of `length` events, users enough for four batches of `rows` each."""
    users = _BATCHES * rows
    rng = np.random.default_rng(0)
    return Histories(
        items=rng.integers(1, items + 1, users * length).astype(np.int32),
        offsets=np.arange(users + 1) * length,
        user_ids=np.arange(users),
        item_ids=np.broadcast_to(np.int64(0), items),  # takes no memory; nobody asks for them
    )
