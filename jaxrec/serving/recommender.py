"""Top-k lists of a trained model, for whole histories."""

import collections
import functools

import jax
import numpy as np
from flax import nnx
from jax import P

from jaxrec.data.features import Encoder
from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import history_batches
from jaxrec.data.splits import Targets
from jaxrec.devices.mesh import place_whole, serving_rows
from jaxrec.devices.top_k import top_k, winners
from jaxrec.errors import UserError
from jaxrec.training.restore import Trained

_IN_FLIGHT = 4  # batches given to the device before the results of the first are read


class Recommender:
    """Top-k lists from whole histories.

    Args:
      trained: the model; its mesh is set.
      k: length of the lists.
      keep_seen: also recommend items of the history.
      explain: rows also say which of the user's vectors found the item.
      batch_users: users scored at once, rounded up to a multiple of the mesh's data axis.
    """

    def __init__(
        self,
        trained: Trained,
        k: int,
        *,
        keep_seen: bool = False,
        explain: bool = False,
        batch_users: int = 256,
    ):
        if min(k, batch_users) < 1:
            raise UserError('k and batch_users must be at least 1')
        self.trained, self.keep_seen, self.explain = trained, keep_seen, explain
        self.k = min(k, trained.histories.num_items)
        self._rows = serving_rows(batch_users)
        features = getattr(trained.experiment.model, 'features', ())
        self._encoder = Encoder(trained.histories, features, trained.split.train_ends)
        self._top_k = jax.jit(
            functools.partial(
                _top_k, trained.graphdef, trained.histories.num_items, self.k, keep_seen
            )
        )

    def __call__(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lists for 0-based `users` of the data, from all their events.

        Returns:
          scores float32 [len(users), k] and item numbers int32 [len(users), k], best first;
          number 0 where no item is left; and int32 [len(users), k], which of the user's K vectors
          gave the score, from 0.

        Raises:
          UserError: a score is not a number.
        """
        return self._lists(self.trained.histories, users, self._encoder.events)

    def user(self, user: int) -> list[dict]:
        """The list of a user of the data, by 0-based number, see `one`."""
        return self._listed(*(column[0] for column in self(np.array([user]))))

    def one(self, items: np.ndarray) -> list[dict]:
        """The list after item numbers `items`; features of events are missing, those of items not.

        Returns:
          [{'item': raw id, 'title': text, 'score': float}, ...], with `explain` also 'interest',
          from 1.
        """
        alone = Histories(
            np.asarray(items, np.int32),
            np.array([0, len(items)]),
            np.arange(1),
            self.trained.histories.item_ids,
        )
        codes = lambda index: self._encoder.items(alone.items[index])  # noqa: E731
        lists = self._lists(alone, np.zeros(1, np.int64), codes)
        return self._listed(*(column[0] for column in lists))

    def _listed(self, scores, items, interests):
        known, listed = self.trained.histories, []
        for score, item, interest in zip(scores, items, interests, strict=True):
            if item:
                row = {'item': known.raw_item(item), 'title': known.title(item)}
                found_by = {'interest': int(interest) + 1} if self.explain else {}
                listed.append({**row, 'score': float(score), **found_by})
        return listed

    def _lists(self, histories, users, codes):
        shape = (len(users), self.k)
        lists = np.zeros(shape, np.float32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        waiting = collections.deque()
        for chosen, batch in self._batches(histories, users, codes):
            waiting.append((chosen, self._top_k(self.trained.params, batch)))
            while len(waiting) > _IN_FLIGHT:
                _read(waiting, *lists)
        while waiting:
            _read(waiting, *lists)
        if np.isnan(lists[0]).any():
            raise UserError('the model gives scores that are not numbers: its training diverged')
        return lists

    def _batches(self, histories, users, codes):
        whole = Targets(users, histories.offsets[users + 1])  # no target: all events are input
        max_len = self.trained.experiment.model.max_len
        for chosen, batch in history_batches(
            histories, whole, max_len=max_len, codes=codes, **self._rows
        ):
            yield chosen, place_whole(batch)


def _top_k(graphdef, num_items, k, keep_seen, params, batch):
    model = nnx.merge(graphdef, params)
    queries, table = model.queries(batch), model.item_table()
    scores, items = top_k(queries, table, num_items, None if keep_seen else batch['seen'], k)
    out = scores, items, winners(queries, table, items)
    return jax.tree.map(lambda x: jax.reshard(x, P()), out)


def _read(waiting, *columns):
    chosen, out = waiting.popleft()
    for column, value in zip(columns, out, strict=True):
        column[chosen] = np.asarray(value)[: len(chosen)]
