"""Batches of (user, cut) samples: a history up to the cut, and the one event after it.

KuaiFormer, ComiRec and every in-batch loss train on them: one target per row, one user vector (or
K of them) per row.
"""

import numpy as np

from jaxrec.batches import Codes, history_batch, ranges
from jaxrec.cli import UserError
from jaxrec.histories import Histories


class CutBatches:
    """Batches of cuts: m = min(cuts, possible ones) of every user in each epoch, in a new order.

    A user's m cuts of an epoch are spread over the history at equal distances from a random start
    (systematic sampling), so they differ, and each is as likely as any other.

    Args:
      histories: the events.
      train_ends: int64 [U], absolute end of each user's training events.
      max_len: W, newest events before a cut that the model sees.
      rows: B, samples per global batch.
      seed: of the cuts and their order.
      cuts: samples per user and epoch; 0 = every one.
      train_starts: int64 [U], absolute index before which no event is a target; None = none.
      codes: of features, `features.Encoder.events`.
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
        cuts: int = 0,
        train_starts: np.ndarray | None = None,
        codes: Codes | None = None,
        process: tuple[int, int] = (0, 1),
    ):
        if rows % process[1]:
            raise UserError(f'train.batch_rows={rows} does not divide over {process[1]} processes')
        self._histories, self._max_len, self._seed = histories, max_len, seed
        self._codes, self._process = codes, process
        starts = histories.offsets[:-1]
        first = starts + 1 if train_starts is None else np.maximum(starts + 1, train_starts)
        possible = np.maximum(train_ends - first, 0)
        taken = np.minimum(possible, cuts) if cuts else possible
        self._users = np.flatnonzero(taken)
        if not len(self._users):
            raise UserError('no user has two training events: there is nothing to train on')
        self._first, self._possible = first[self._users], possible[self._users]
        self._taken = taken[self._users]
        self.rows = rows
        self.rows_per_epoch = self.windows_per_epoch = int(self._taken.sum())
        self.targets_per_epoch = self.rows_per_epoch
        self.steps_per_epoch = -(-self.rows_per_epoch // rows)
        self._log_shares = self._log_target_shares()
        self._epoch = (-1, None, None)

    @property
    def fill(self) -> float:
        """Share of the tokens of all rows that are real, in an average epoch."""
        index = ranges(self._first, self._possible)  # of every possible target
        before = index - np.repeat(self._histories.offsets[self._users], self._possible)
        weights = np.repeat(self._taken / self._possible, self._possible)
        real = (weights * np.minimum(before, self._max_len)).sum()
        return float(real / (self.rows_per_epoch * self._max_len))

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, this process's rows of it.

        Returns:
          items, segments, positions: int32 [B / processes, W], right-aligned, and codes of
          features, as `batches.history_batch` gives them; targets: int32 [..]; weights: float32
          [..], 0 on rows of padding; log_share: float32 [..], log of the target's expected share of
          all targets.
        """
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        users, targets = self._order(epoch)
        # Samples are spread evenly over the epoch's steps: no tiny last batch.
        first = step_of_epoch * self.rows_per_epoch // self.steps_per_epoch
        last = (step_of_epoch + 1) * self.rows_per_epoch // self.steps_per_epoch
        index, count = self._process
        part = self.rows // count
        mine = slice(first + index * part, min(last, first + (index + 1) * part))
        missing = part - max(mine.stop - mine.start, 0)
        users, ends = users[mine], targets[mine]
        items = self._histories.items[ends]
        batch = history_batch(
            self._histories.items,
            np.pad(self._histories.offsets[users], (0, missing)),
            np.pad(ends, (0, missing)),
            self._max_len,
            self._max_len,
            self._codes,
        )
        batch['targets'] = np.pad(items, (0, missing))
        batch['weights'] = np.pad(np.ones(len(items), np.float32), (0, missing))
        batch['log_share'] = np.pad(self._log_shares[items], (0, missing))
        return batch

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """User and absolute index of the target of every sample of `epoch`, in order."""
        if self._epoch[0] != epoch:
            rng = np.random.default_rng([self._seed, 3, epoch])
            users = np.repeat(self._users, self._taken)
            nth = ranges(np.zeros_like(self._taken), self._taken)
            start = np.repeat(rng.random(len(self._users)), self._taken)
            apart = np.repeat(self._possible / self._taken, self._taken)
            cut = np.floor((nth + start) * apart).astype(np.int64)
            cut = np.minimum(cut, np.repeat(self._possible - 1, self._taken))  # against rounding
            targets = np.repeat(self._first, self._taken) + cut
            order = rng.permutation(len(targets))
            self._epoch = (epoch, users[order], targets[order])
        return self._epoch[1:]

    def _log_target_shares(self) -> np.ndarray:
        """float32 [num_items + 1], log of each item's expected share of the targets; 0 if none."""
        items = self._histories.items[ranges(self._first, self._possible)]
        chance = np.repeat(self._taken / self._possible, self._possible)
        expected = np.bincount(items, chance, minlength=self._histories.num_items + 1)
        with np.errstate(divide='ignore'):
            shares = np.log(expected / self.rows_per_epoch)
        return np.where(expected > 0, shares, 0).astype(np.float32)
