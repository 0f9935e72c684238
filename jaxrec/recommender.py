"""Top-k lists of a trained model, for whole histories."""

import collections
import functools

import jax
import numpy as np
from flax import nnx
from jax import P

from jaxrec import retrieval, sharding
from jaxrec.batches import history_batches
from jaxrec.cli import UserError
from jaxrec.histories import Histories
from jaxrec.ranking import place_whole
from jaxrec.splits import Targets
from jaxrec.workdir import Trained

_IN_FLIGHT = 4  # batches given to the device before the results of the first are read


class Recommender:
    """Top-k lists from whole histories.

    Args:
      trained: the model; its mesh is set.
      k: length of the lists.
      keep_seen: also recommend items of the history.
      batch_users: users scored at once, rounded up to a multiple of the mesh's data axis.
    """

    def __init__(
        self, trained: Trained, k: int, *, keep_seen: bool = False, batch_users: int = 256
    ):
        if min(k, batch_users) < 1:
            raise UserError('k and batch_users must be at least 1')
        self.trained, self.keep_seen = trained, keep_seen
        self.k = min(k, trained.histories.num_items)
        self._rows = sharding.serving_rows(batch_users)
        self._top_k = jax.jit(
            functools.partial(
                _top_k, trained.graphdef, trained.histories.num_items, self.k, keep_seen
            )
        )

    def __call__(self, histories: Histories, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lists for 0-based `users` of `histories`, from all their events.

        Returns:
          scores float32 [len(users), k] and item numbers int32 [len(users), k], best first;
          number 0 where no item is left.

        Raises:
          UserError: a score is not a number.
        """
        scores = np.zeros((len(users), self.k), np.float32)
        items = np.zeros((len(users), self.k), np.int32)
        waiting = collections.deque()
        for chosen, batch in self._batches(histories, users):
            waiting.append((chosen, self._top_k(self.trained.params, batch)))
            while len(waiting) > _IN_FLIGHT:
                _read(waiting, scores, items)
        while waiting:
            _read(waiting, scores, items)
        if np.isnan(scores).any():
            raise UserError('the model gives scores that are not numbers: its training diverged')
        return scores, items

    def one(self, items: np.ndarray) -> list[dict]:
        """[{'item': raw id, 'title': text, 'score': float}, ...] after item numbers `items`."""
        known = self.trained.histories
        alone = Histories(
            np.asarray(items, np.int32), np.array([0, len(items)]), np.arange(1), known.item_ids
        )
        scores, found = self(alone, np.zeros(1, np.int64))
        return [
            {'item': known.raw_item(item), 'title': known.title(item), 'score': float(score)}
            for score, item in zip(scores[0], found[0], strict=True)
            if item
        ]

    def _batches(self, histories, users):
        whole = Targets(users, histories.offsets[users + 1])  # no target: all events are input
        max_len = self.trained.experiment.model.max_len
        for chosen, batch in history_batches(histories, whole, max_len=max_len, **self._rows):
            yield chosen, place_whole(batch)


def _top_k(graphdef, num_items, k, keep_seen, params, batch):
    model = nnx.merge(graphdef, params)
    queries = model.queries({name: batch[name] for name in ('items', 'segments', 'positions')})
    seen = None if keep_seen else batch['seen']
    out = retrieval.top_k(queries, model.item_table(), num_items, seen, k)
    return jax.tree.map(lambda x: jax.reshard(x, P()), out)


def _read(waiting, *columns):
    chosen, out = waiting.popleft()
    for column, value in zip(columns, out, strict=True):
        column[chosen] = np.asarray(value)[: len(chosen)]
