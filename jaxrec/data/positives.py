"""What contrastive terms need of the data besides the rows of a batch (host, numpy).

Who the users of a batch are; the events of another user who went on to the same item (DuoRec); the
item most similar to each (CoSeRec).
"""

import math

import jax
import numpy as np

from jaxrec import rng
from jaxrec.data.features import Codes
from jaxrec.data.histories import Histories
from jaxrec.data.ragged import ranges, scatter
from jaxrec.data.rewards import Rewarder

_BLOCK = 64  # users come in multiples of it, as a queue of them is kept
_USUAL, _MOST = 1.0, 6.0  # standard deviations above the mean for which the two sizes have room


class Users:
    """Adds the users of a batch, and with `same_target` a positive for each.

    How many there are differs from step to step, but the arrays come in two sizes, so that two
    programs are compiled: one that most steps fit into, and one for the others. (A step of more
    than that comes once in many millions, and gets a size of its own.)

    Args:
      histories: the events.
      train_ends: int64 [U], absolute end of each user's training events.
      max_len: L, window of the model.
      seed: of the positives.
      same_target: whether there are any.
      codes: of features, for the positives' events.
      rewards: of the events that the users go on to.
      multiple: devices of the 'data' axis, over which everything is split.
    """

    def __init__(
        self,
        histories: Histories,
        train_ends: np.ndarray,
        *,
        max_len: int,
        seed: int,
        same_target: bool,
        codes: Codes | None = None,
        rewards: Rewarder | None = None,
        multiple: int = 1,
    ):
        self._rewards = rewards
        self._histories, self._max_len, self._seed = histories, max_len, seed
        self._codes, self._multiple, self._same_target = codes, multiple, same_target
        if same_target:
            starts = histories.offsets[:-1] + 1  # a first event has no history
            events = ranges(starts, np.maximum(train_ends - starts, 0))
            items = histories.items[events]
            self._events = events[np.argsort(items, kind='stable')]  # item by item, ascending
            counts = np.bincount(items, minlength=histories.num_items + 1)
            self._first = np.cumsum(counts) - counts
            self._counts = counts
        self._sizes = []

    def expect(self, per_row: np.ndarray, rows: int, targets: np.ndarray) -> None:
        """Fixes the two sizes, by what an epoch holds; before the first call.

        Args:
          per_row: int64 [R], segments in each row of an epoch.
          rows: of them that come together in a step.
          targets: int64 [n], as a call's, of the epoch.
        """
        most = int(np.sort(per_row)[-rows:].sum())
        mean, variance = rows * per_row.mean(), rows * per_row.var()
        events = events_variance = 0.0
        if self._same_target:
            lengths, squares = self._expected_lengths(targets)
            events = mean * lengths
            events_variance = mean * (squares - lengths**2) + variance * lengths**2
        for deviations in (_USUAL, _MOST):
            users = min(math.ceil(mean + deviations * variance**0.5), most)
            size = self._size(users, math.ceil(events + deviations * events_variance**0.5))
            if size not in self._sizes:
                self._sizes.append(size)

    def shapes(self) -> list[dict[str, np.ndarray]]:
        """What a call returns, without users, in every size."""
        nobody = np.zeros(0, np.int64)
        return [self._made(size, nobody, nobody, nobody) for size in self._sizes]

    def __call__(self, step: int, users: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
        """What to add to batch number `step`.

        Args:
          step: of the run.
          users: int64 [n], user number (0-based) of every segment, in their order.
          targets: int64 [n], absolute index of the event after each segment.

        Returns:
          users, user_targets: int32 [N], N >= n a multiple of 64: user number + 1 and item after
          the segment, 0 = none; user_rewards: float32 [N] of that event, if asked for. positive:
          items, segments, positions (and features) int32 [R, 4L], n segments in the same order,
          each the events before a random other training event of the same item; of the segment's
          own target if no other has it.
        """
        others = targets
        if self._same_target:
            others = self._others(rng.host(self._seed, rng.POSITIVES, step), targets)
        needed = self._size(len(users), int(self._lengths(others).sum()))
        fits = [size for size in self._sizes if size[0] >= needed[0] and size[1] >= needed[1]]
        return self._made(fits[0] if fits else needed, users, targets, others)

    def _made(self, size, users, targets, others):
        """The arrays in a size (N, R)."""
        missing = (0, size[0] - len(users))
        added = {
            'users': np.pad(users + 1, missing).astype(np.int32),
            'user_targets': np.pad(self._histories.items[targets], missing),
        }
        if self._rewards is not None:
            added['user_rewards'] = np.pad(self._rewards(targets), missing)
        if self._same_target:
            added['positive'] = self._rows(others, size[1])
        return added

    def _size(self, users: int, events: int) -> tuple[int, int]:
        """(N, R) with room for so many users, and events of their positives."""
        block, rows = math.lcm(_BLOCK, self._multiple), 0
        if self._same_target:
            rows = -(-(events // (3 * self._max_len) + 1) // self._multiple) * self._multiple
        return -(-max(users, 1) // block) * block, rows

    def _lengths(self, targets):
        """Events of the windows before `targets`."""
        offsets = self._histories.offsets
        starts = offsets[np.searchsorted(offsets, targets, side='right') - 1]
        return np.minimum(targets - starts, self._max_len)

    def _expected_lengths(self, targets):
        """Mean and mean square of the lengths of positives, over what is drawn for `targets`."""
        lengths = self._lengths(self._events).astype(float)
        items = self._histories.items[targets]
        sums = [np.concatenate([[0], np.cumsum(x)]) for x in (lengths, lengths**2)]
        first, count = self._first[items], self._counts[items]
        return [float(((x[first + count] - x[first]) / count).mean()) for x in sums]

    def _others(self, generator, targets):
        """Absolute index of another training event of the same item as each of `targets`."""
        items = self._histories.items[targets]
        first, count = self._first[items], self._counts[items]
        own = self._place(targets, first, count)
        drawn = generator.integers(0, np.maximum(count - 1, 1))
        return self._events[first + np.where(count > 1, drawn + (drawn >= own), 0)]

    def _place(self, targets, first, count):
        """Where each target stands among the events of its item: all are searched at once."""
        low, high = np.zeros_like(count), count - 1
        while (low < high).any():
            middle = (low + high) // 2
            below = self._events[first + middle] < targets
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        return low

    def _rows(self, targets, rows):
        """The events before each target, one after the other in `rows` rows of 4L.

        A segment stands in the row of the 3L places in which it begins, so there is room for any.
        """
        lengths = self._lengths(targets)
        begin = np.cumsum(lengths) - lengths
        stride, width = 3 * self._max_len, 4 * self._max_len
        row = begin // stride
        number = np.arange(len(row)) - np.searchsorted(row, row)  # of the segment in its row
        source = ranges(targets - lengths, lengths)
        place = ranges(row * width + begin - row * stride, lengths)
        shape = (rows, width)
        events = {
            'items': self._histories.items[source],
            'segments': np.repeat(number + 1, lengths),
            'positions': ranges(self._max_len - lengths, lengths),
        }
        if self._codes is not None:
            events['features'] = self._codes(source)
        return jax.tree.map(lambda values: scatter(shape, place, values), events)


def similar_items(histories: Histories, train_ends: np.ndarray) -> np.ndarray:
    """int32 [num_items + 1], the item most similar to each, 0 if it shares no user with any other.

    Item collaborative filtering with inverse user frequency (CoSeRec, Liu et al. 2021, section
    3.2): sim(i, j) = sum over the users of both of 1 / log(1 + events), divided by sqrt(users of i
    x users of j). Of equals the smallest number.
    """
    from scipy import sparse  # not for the commands that need no similarity

    lengths = train_ends - histories.offsets[:-1]
    users = np.repeat(np.arange(histories.num_users), lengths)
    items = histories.items[ranges(histories.offsets[:-1], lengths)]
    shape = (histories.num_users, histories.num_items + 1)
    seen = sparse.csr_array((np.ones(len(users)), (users, items)), shape=shape)
    seen.data[:] = 1  # an item counts once per user
    weight = 1 / np.log1p(np.maximum(lengths, 1))
    weighted = sparse.diags_array(weight) @ seen
    scale = 1 / np.sqrt(np.maximum(seen.sum(0), 1))
    of_items = seen.T.tocsr()
    best = np.zeros(histories.num_items + 1, np.int32)
    for first in range(0, len(best), _ITEMS_AT_ONCE):
        block = (of_items[first : first + _ITEMS_AT_ONCE] @ weighted).toarray() * scale
        block[np.arange(len(block)), first + np.arange(len(block))] = 0
        nearest = block.argmax(1)
        best[first : first + len(block)] = np.where(block.max(1) > 0, nearest, 0)
    return best


_ITEMS_AT_ONCE = 512
