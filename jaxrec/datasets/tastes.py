"""Generated histories of users with several tastes at once: where several interests must help.

The items fall into tastes of equal size, inside which item r is drawn in proportion to 1 / r. A
user has a few tastes; each event is of one of them, whichever comes (uniformly, independently), and
an item of it that the user has not met. What comes next is therefore spread over all of the user's
tastes, and one vector must lie between them.
"""

import dataclasses

import numpy as np

from jaxrec.datasets import parameters
from jaxrec.datasets.events import Events
from jaxrec.datasets.raw_ids import Coded
from jaxrec.errors import UserError


@dataclasses.dataclass
class Parameters:
    """What `synthetic:interests=4,users=4000` sets."""

    interests: int = 4  # tastes of a user
    tastes: int = 100  # in all
    users: int = 4000
    items: int = 3000
    length: int = 40  # events of every user
    seed: int = 0


def parse(argument: str) -> Parameters:
    """Reads 'interests=4,seed=3'.

    Raises:
      UserError: unknown parameter, or not a number, or a value that makes no sense.
    """
    p = parameters.parse(Parameters, 'synthetic', argument)
    if p.users < 1 or p.length < 3 or not 1 <= p.interests <= p.tastes or p.items % p.tastes:
        raise UserError(
            'synthetic:interests= needs users >= 1, length >= 3, interests from 1 to tastes, and '
            f'items that tastes={p.tastes} divides'
        )
    if p.length > p.interests * (p.items // p.tastes):
        raise UserError(
            f'synthetic:interests={p.interests} gives a user {p.interests * p.items // p.tastes} '
            f'items, fewer than length={p.length}: ask for fewer tastes= or a smaller length='
        )
    return p


def generate(p: Parameters) -> Events:
    """Events with times in days, in order of (user, time); raw ids count from 1."""
    rng = np.random.default_rng(p.seed)
    size, everyone = p.items // p.tastes, np.arange(p.users)
    mine = rng.random((p.users, p.tastes)).argsort(axis=1)[:, : p.interests]
    # the order in which a taste's items come: drawn one after the other in proportion to 1 / rank
    lateness = rng.exponential(size=(p.users, p.interests, size)) * np.arange(1, size + 1)
    order = lateness.argsort(axis=2)
    taken = np.zeros((p.users, p.interests), np.int64)
    history = np.zeros((p.users, p.length), np.int32)
    for t in range(p.length):
        draw = np.where(taken < size, rng.random(taken.shape), -1)
        which = draw.argmax(axis=1)
        item = order[everyone, which, taken[everyone, which]]
        history[:, t] = mine[everyone, which] * size + item
        taken[everyone, which] += 1
    users = np.repeat(everyone.astype(np.int32), p.length)
    return Events(
        Coded(users, everyone + 1),
        Coded(history.reshape(-1), np.arange(1, p.items + 1)),
        np.tile(1_500_000_000 + 86_400 * np.arange(p.length), p.users),
    )
