"""Top-k lists of a trained model, for whole histories."""

import collections
import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import P

from jaxrec.data.catalogue import Catalogue
from jaxrec.data.features import item_codes
from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import history_batches
from jaxrec.data.splits import Targets
from jaxrec.devices.mesh import place_whole
from jaxrec.devices.top_k import top_k, winners
from jaxrec.devices.tuning import serving_rows
from jaxrec.errors import UserError
from jaxrec.evaluation.run import Beginning
from jaxrec.problem import Problem
from jaxrec.serving.given_ids import near
from jaxrec.training.restore import Trained

BATCH_USERS = 256  # scored at once
PLANNED_K = 100  # length of the lists that a plan is for
_IN_FLIGHT = 4  # batches given to the device before the results of the first are read


class Recommender:
    """Top-k lists from whole histories.

    Histories of raw ids need no data, only what the run keeps. Users of the data need them.

    Args:
      trained: the model, of a problem of the next-item task.
      k: length of the lists.
      keep_seen: also recommend items of the history.
      explain: rows also say which of the user's vectors found the item.
      batch_users: users scored at once, rounded up to a multiple of the mesh's data axis.

    Attributes:
      catalogue: the items.
    """

    def __init__(
        self,
        trained: Trained,
        k: int = 10,
        *,
        keep_seen: bool = False,
        explain: bool = False,
        batch_users: int = BATCH_USERS,
    ):
        if min(k, batch_users) < 1:
            raise UserError('k and batch_users must be at least 1')
        if 'queries' not in trained.served.verbs or trained.served.catalogue is None:
            raise UserError(f'{trained.workdir} holds no recommender of next items')
        self.trained, self.keep_seen, self.explain = trained, keep_seen, explain
        self.catalogue: Catalogue = trained.served.catalogue
        self.k = min(k, self.catalogue.num_items)
        self._batch_users = batch_users
        self._inputs = trained.experiment.model.inputs()
        self._top_k = _program(trained.graphdef, self.catalogue.num_items, keep_seen)
        with self._placed():
            begin = Beginning(trained.graphdef, trained.served)
            self._vectors = begin(trained.params, trained.constants)

    @property
    def histories(self) -> Histories:
        """The data, opened when they are first asked for; UserError if they are gone."""
        return self.trained.problem.source

    def __call__(
        self, users: np.ndarray, given: Histories | None = None, k: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lists for 0-based `users` of the data, or of other histories, from all their events.

        Args:
          users: int64 [n].
          given: histories of `given`; None = those of the data.
          k: length of the lists; None = that of the object.

        Returns:
          scores float32 [len(users), k] and item numbers int32 [len(users), k], best first;
          number 0 where no item is left; and int32 [len(users), k], which of the user's K vectors
          gave the score, from 0.

        Raises:
          UserError: a score is not a number, or the data are asked for and gone.
        """
        k = self.k if k is None else min(k, self.catalogue.num_items)
        if k < 1:
            raise UserError(f'k={k} must be at least 1')
        if given is None:
            codes, numbered = self.trained.problem.codes, self._inputs.users
            return self._lists(self.histories, users, codes, k, numbered)
        features, of_items = self._inputs.features, self.catalogue.codes
        codes = lambda index: item_codes(features, of_items, given.items[index])  # noqa: E731
        return self._lists(given, users, codes if features else None, k)

    def recommend(
        self, histories: Sequence[Sequence[int | str]], k: int | None = None
    ) -> list[list[dict]]:
        """Lists after histories of raw item ids, oldest first.

        Features of events are missing, those of items are not.

        Args:
          histories: one per list; may be empty.
          k: length of the lists; None = that of the object.

        Returns:
          For each history [{'item': raw id, 'title': text, 'score': float}, ..], best first, with
          `explain` also 'interest', from 1.

        Raises:
          UserError: an item that is not in the data, or ids that stand in no list.
        """
        if any(isinstance(history, int | str) for history in histories):
            raise UserError('histories is a list of lists of item ids, one for each user')
        numbers = [[self._number(item) for item in history] for history in histories]
        return self.after(numbers, k)

    def after(self, histories: Sequence[Sequence[int]], k: int | None = None) -> list[list[dict]]:
        """The same after histories of item numbers."""
        given = self.given(histories)
        lists = self(np.arange(given.num_users), given, k)
        return [self._listed(*row) for row in zip(*lists, strict=True)]

    def given(self, histories: Sequence[Sequence[int]]) -> Histories:
        """Histories of item numbers, oldest first, as users 1, 2, .. of this catalogue."""
        flat = [np.asarray(history, np.int32).reshape(-1) for history in histories]
        return Histories(
            np.concatenate([np.zeros(0, np.int32), *flat]),
            np.concatenate([[0], np.cumsum([len(one) for one in flat])]).astype(np.int64),
            np.arange(1, len(flat) + 1),
            self.catalogue.item_ids,
        )

    def user(self, user: int) -> list[dict]:
        """The list of a user of the data, by 0-based number, see `recommend`."""
        return self._listed(*(column[0] for column in self(np.array([user]))))

    def _number(self, item):
        number = self.catalogue.find_item(item)
        if number is None:
            raise UserError(
                f'item {item!r} is not in the data{near(item, self.catalogue.find_item)}'
            )
        return number

    def _listed(self, scores, items, interests):
        known, listed = self.catalogue, []
        for score, item, interest in zip(scores, items, interests, strict=True):
            if item:
                row = {'item': known.raw_item(item), 'title': known.title(item)}
                found_by = {'interest': int(interest) + 1} if self.explain else {}
                listed.append({**row, 'score': float(score), **found_by})
        return listed

    def _lists(self, histories, users, codes, k, numbered=False):
        shape = (len(users), k)
        lists = np.zeros(shape, np.float32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        waiting, params, max_len = collections.deque(), self.trained.params, self._inputs.max_len
        with self._placed():
            sizes = max_len, self._batch_users
            for chosen, batch in _batches(histories, users, codes, *sizes, numbered):
                out = self._top_k(params, self._vectors, place_whole(batch), k=k)
                waiting.append((chosen, out))
                while len(waiting) > _IN_FLIGHT:
                    _read(waiting, *lists)
            while waiting:
                _read(waiting, *lists)
        if np.isnan(lists[0]).any():
            raise UserError('the model gives scores that are not numbers: its training diverged')
        return lists

    @contextlib.contextmanager
    def _placed(self):
        """On the model's mesh, in the precision of its evaluations."""
        precision = self.trained.experiment.task.precision
        with jax.set_mesh(self.trained.mesh), jax.default_matmul_precision(precision):
            yield


def planned(problem: Problem, experiment: Any, graphdef: nnx.GraphDef) -> tuple[Callable, dict]:
    """What a plan compiles for bulk lists of `PLANNED_K`.

    Returns:
      The jitted (parameters, vectors, batch) -> lists, and its longest batch.
    """
    histories, max_len = problem.source, experiment.model.inputs().max_len
    users = np.arange(histories.num_users)
    numbered = experiment.model.inputs().users
    batches = _batches(histories, users, problem.codes, max_len, BATCH_USERS, numbered)
    _, batch = max(batches, key=lambda one: one[1]['items'].size + one[1]['seen'].size)
    k = min(PLANNED_K, problem.sizes['item'])
    lists = _program(graphdef, problem.sizes['item'], keep_seen=False)
    return jax.jit(lambda params, vectors, batch: lists(params, vectors, batch, k=k)), batch


def _batches(histories, users, codes, max_len, batch_users, numbered):
    whole = Targets(users, histories.offsets[users + 1])  # no target: all events are input
    sizes = serving_rows(batch_users)
    return history_batches(
        histories, whole, max_len=max_len, codes=codes, numbered=numbered, **sizes
    )


def _program(graphdef, num_items, keep_seen):
    call = functools.partial(_top_k, graphdef, num_items, keep_seen)
    return jax.jit(call, static_argnames='k')


def _top_k(graphdef, num_items, keep_seen, params, catalogue, batch, *, k):
    model, table = nnx.merge(graphdef, params), catalogue['items']
    queries = model.queries(batch, catalogue)
    scores, items = top_k(queries, table, num_items, None if keep_seen else batch['seen'], k)
    out = scores, items, winners(queries, table, items)
    return jax.tree.map(lambda x: jax.reshard(x, P()), out)


def _read(waiting, *columns):
    chosen, out = waiting.popleft()
    for column, value in zip(columns, out, strict=True):
        column[chosen] = np.asarray(value)[: len(chosen)]
