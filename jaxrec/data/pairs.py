"""Pairs of users and items: what trains as a graph, and batches of them."""

import numpy as np

from jaxrec import problem, rng
from jaxrec.data.histories import Histories
from jaxrec.data.negatives import unseen
from jaxrec.data.ragged import blocks, distinct, part, ranges
from jaxrec.errors import UserError


def training_pairs(histories: Histories, train_ends: np.ndarray) -> np.ndarray:
    """int32 [2, E] users and items of the training events, every pair once, ascending.

    Raises:
      UserError: there are none.
    """
    size, found = histories.num_items + 1, []
    for users in blocks(histories.offsets):
        starts = histories.offsets[users]
        lengths = train_ends[users] - starts
        owner = np.repeat(np.arange(users.start, users.stop), lengths)
        found.append(distinct(owner * size + histories.items[ranges(starts, lengths)]))
    keys = np.concatenate(found)
    if not len(keys):
        raise UserError('no training event is left: there is nothing to train on')
    return np.stack(np.divmod(keys, size)).astype(np.int32)


class PairBatches(problem.Batches):
    """Batches of pairs; an epoch has every pair once, in a new order.

    Args:
      pairs: int32 [2, E] distinct and ascending, see `training_pairs`.
      num_items: of the catalogue.
      rows: B, pairs of a global batch.
      seed: of the order and the negatives.
      negatives: per pair, drawn outside the user's items.
      process: (index, count) of this process; it gets its slice of the rows.

    Raises:
      UserError: rows that do not divide over processes; a user who has every item.
    """

    def __init__(
        self,
        pairs: np.ndarray,
        num_items: int,
        *,
        rows: int,
        seed: int,
        negatives: int = 0,
        process: tuple[int, int] = (0, 1),
    ):
        if rows % process[1]:
            raise UserError(f'train.batch_rows={rows} does not divide over {process[1]} processes')
        if negatives and np.bincount(pairs[0]).max() >= num_items:
            raise UserError('a user has every item in training: there are no negatives to draw')
        self._pairs, self._num_items, self._negatives = pairs, num_items, negatives
        self._keys = pairs[0].astype(np.int64) * (num_items + 1) + pairs[1]
        self.rows, self._seed, self._process = rows, seed, process
        self.examples_per_epoch = self.targets_per_epoch = pairs.shape[1]
        self.steps_per_epoch = -(-pairs.shape[1] // rows)
        self.fill = pairs.shape[1] / (rows * self.steps_per_epoch)
        self._epoch = (-1, None)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`: users (from 0) and targets int32, weights float32, [B / processes].

        With negatives also these, int32 [B / processes, k]. Padding is user 0 and item 0.
        """
        epoch, some = self.place(step, self.examples_per_epoch)
        users, targets = self._pairs[:, self._order(epoch)[some]]
        missing = (0, self.rows - len(users))
        batch = {
            'users': np.pad(users, missing),
            'targets': np.pad(targets, missing),
            'weights': np.pad(np.ones(len(users), np.float32), missing),
        }
        if self._negatives:
            generator = rng.host(self._seed, rng.NEGATIVES, step)
            drawn = unseen(generator, users, self._keys, self._num_items, self._negatives)
            batch['negatives'] = np.pad(drawn, (missing, (0, 0)))
        return part(batch, *self._process)

    def _order(self, epoch: int) -> np.ndarray:
        """Of all pairs in this epoch."""
        if self._epoch[0] != epoch:
            generator = rng.host(self._seed, rng.ORDER, epoch)
            self._epoch = (epoch, generator.permutation(self.examples_per_epoch))
        return self._epoch[1]
