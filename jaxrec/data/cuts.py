"""Batches of cuts: a history up to a moment, and the one event after it.

KuaiFormer, ComiRec and every in-batch loss train on them. A row is a window of a user's events and
holds G consecutive cuts, which share its encoding: the last one is after the window's last event,
the one before it one event earlier, and so on. With G = 1 each cut has a whole window of its own.
"""

import numpy as np

from jaxrec import rng
from jaxrec.data.features import Codes
from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import history_batch
from jaxrec.data.packed import with_extras
from jaxrec.data.positives import Users
from jaxrec.data.ragged import blocks, part, ranges
from jaxrec.data.rewards import Rewarder
from jaxrec.errors import UserError
from jaxrec.problem import Batches


class CutBatches(Batches):
    """Batches of windows with G cuts: some windows of every user in each epoch, in a new order.

    A user's windows of an epoch are spread over the history at equal distances from a random start
    (systematic sampling), so no target comes twice in an epoch, and each is as likely as any other.
    Where as many windows as there may be take all targets, they are laid out from the user's end.

    Args:
      histories: the events.
      train_ends: int64 [U], absolute end of each user's training events.
      max_len: W, newest events before a row's last cut that the model sees.
      rows: B, windows per global batch.
      seed: of the windows and their order.
      windows: per user and epoch, fewer where that takes all targets; 0 = all targets.
      cuts: G, targets per window.
      train_starts: int64 [U], absolute index before which no event is a target; None = none.
      codes: of features, `codes.Encoder.events`.
      similar: int32 [num_items + 1], the item most like each (`positives.similar_items`).
      rewards: of events.
      extras: what else a batch has of its users.
      numbered: whether batches say who the users are.
      process: (index, count) of this process; it gets its slice of the rows.
    """

    def __init__(
        self,
        histories: Histories,
        train_ends: np.ndarray,
        *,
        max_len: int,
        rows: int,
        seed: int,
        windows: int = 0,
        cuts: int = 1,
        train_starts: np.ndarray | None = None,
        codes: Codes | None = None,
        similar: np.ndarray | None = None,
        rewards: Rewarder | None = None,
        extras: Users | None = None,
        numbered: bool = False,
        process: tuple[int, int] = (0, 1),
    ):
        if rows % process[1]:
            raise UserError(f'train.batch_rows={rows} does not divide over {process[1]} processes')
        if cuts > max_len:
            raise UserError(f'task.cuts={cuts} is more than the model.max_len={max_len} events')
        self._histories, self._max_len, self._seed = histories, max_len, seed
        self._cuts, self._codes, self._similar, self._rewards = cuts, codes, similar, rewards
        self._extras, self._numbered, self._process = extras, numbered, process
        starts = histories.offsets[:-1]
        first = starts + 1 if train_starts is None else np.maximum(starts + 1, train_starts)
        targets = np.maximum(train_ends - first, 0)
        taken = -(-targets // cuts)
        taken = np.minimum(taken, windows) if windows else taken
        self._users = np.flatnonzero(taken)
        if not len(self._users):
            raise UserError('no user has two training events: there is nothing to train on')
        self._first, self._targets = first[self._users], targets[self._users]
        self._taken = taken[self._users]
        # A window may also end up to G - 1 events after the last target, which leaves its places
        # for these empty: so all targets, the first and the last too, are in G possible windows.
        self._places = self._targets + cuts - 1
        self._whole = self._taken * cuts >= self._targets
        chance = self._taken * cuts / self._places
        self._chance = np.where(self._whole, 1.0, chance)  # of each target, per epoch
        self.rows = rows
        self._ends = np.cumsum(self._taken)  # number of each user's last window, plus one
        self.rows_per_epoch = self.examples_per_epoch = int(self._ends[-1])
        self.targets_per_epoch = round(float((self._chance * self._targets).sum()))
        self.steps_per_epoch = -(-self.rows_per_epoch // rows)
        self._log_shares = self._log_target_shares()
        if extras is not None:  # a row is a segment
            together = -(-self.rows_per_epoch // self.steps_per_epoch)
            everyone = ranges(self._first, self._targets)
            extras.expect(np.ones(together, np.int64), together, everyone)

    @property
    def fill(self) -> float:
        """Share of the tokens of all rows that are real, in the first epoch.

        Of many millions of windows, some evenly spread ones speak for all.
        """
        every = max(self.examples_per_epoch >> 22, 1)
        users, places = self._placed(
            np.arange(0, self.examples_per_epoch, every), self.of_epoch(0, self._order)[0]
        )
        last = np.minimum(places, self._targets[users] - 1) + self._first[users]
        before = last - self._histories.offsets[self._users[users]]
        return float(np.minimum(before, self._max_len).mean() / self._max_len)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, this process's rows of it.

        Returns:
          items, segments, positions: int32 [B / processes, W], right-aligned, and codes of
          features, as `history_batch` gives them; targets: int32 [.., G], the last is the event
          after the window, the others those in its last G - 1 places; weights: float32
          [.., G], 0 where there is no target; log_share: float32 [.., G], log of the target's
          expected share of all targets; if asked for, similar int32 [.., W], rewards float32
          [.., G] of the targets and feedback int32 [.., W] on the items; where `numbered`, users:
          int32 [B / processes].
        """
        epoch, part_of_epoch = self.place(step, self.rows_per_epoch)
        starts, order = self.of_epoch(epoch, self._order)
        users, places = self._placed(order[part_of_epoch].astype(np.int64), starts)
        extras = {}
        if self._extras is not None:
            target = self._first[users] + np.minimum(places, self._targets[users] - 1)
            extras = self._extras(step, self._users[users], target)
        index, count = self._process
        size = self.rows // count
        mine = slice(index * size, (index + 1) * size)
        users, places = users[mine], places[mine]
        missing = (0, size - len(users))

        ends = np.minimum(places, self._targets[users] - 1)  # number of the row's last target
        batch = history_batch(
            self._histories.items,
            np.pad(self._histories.offsets[self._users[users]], missing),
            np.pad(self._first[users] + ends, missing),
            self._max_len,
            self._max_len,
            self._codes,
            self._rewards.feedback if self._rewards else None,
        )
        if self._similar is not None:
            batch['similar'] = self._similar[batch['items']]
        number = ends[:, None] - np.arange(self._cuts)[::-1]  # of each target, from 0
        real = number >= np.maximum(places - self._cuts + 1, 0)[:, None]
        events = self._first[users][:, None] + np.maximum(number, 0)
        targets = self._histories.items[events] * real
        batch['targets'] = np.pad(targets, (missing, (0, 0)))
        batch['weights'] = (batch['targets'] > 0).astype(np.float32)
        batch['log_share'] = self._log_shares[batch['targets']]
        if self._rewards is not None:
            rewards = self._rewards(events.reshape(-1)).reshape(events.shape) * real
            batch['rewards'] = np.pad(rewards, (missing, (0, 0))).astype(np.float32)
        if self._numbered:
            batch['users'] = np.pad(self._users[users].astype(np.int32), missing)
        return batch | part(extras, index, count)

    def shapes(self) -> list[dict]:
        """A batch of every shape."""
        return with_extras(self(0), self._extras, self._process)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """In [0, 1), where each user's windows of `epoch` start, and the order of all windows."""
        generator = rng.host(self._seed, rng.CUTS, epoch)
        starts, count = generator.random(len(self._users)), self.examples_per_epoch
        kind = np.int32 if count < 2**31 else np.int64  # half the memory
        return starts, generator.permutation(np.arange(count, dtype=kind))

    def _placed(self, windows: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """User (an index of self._users) and place of these windows, numbered user by user."""
        users = np.searchsorted(self._ends, windows, side='right')
        taken = self._taken[users]
        nth = windows - (self._ends[users] - taken)
        places = np.floor((nth + starts[users]) * (self._places[users] / taken)).astype(np.int64)
        places = np.minimum(places, self._places[users] - 1)  # against rounding
        from_end = self._targets[users] - 1 - nth * self._cuts
        return users, np.where(self._whole[users], from_end, places)

    def _log_target_shares(self) -> np.ndarray:
        """float32 [num_items + 1], log of each item's expected share of the targets; 0 if none."""
        expected = np.zeros(self._histories.num_items + 1)
        for users in blocks(np.concatenate([[0], np.cumsum(self._targets)])):
            items = self._histories.items[ranges(self._first[users], self._targets[users])]
            chance = np.repeat(self._chance[users], self._targets[users])
            expected += np.bincount(items, chance, minlength=len(expected))
        with np.errstate(divide='ignore'):
            shares = np.log(expected / expected.sum())
        return np.where(expected > 0, shares, 0).astype(np.float32)
