"""Top-k lists of a trained model, for whole histories."""

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import P

from jaxrec.data import item_texts
from jaxrec.data.catalogue import Catalogue
from jaxrec.data.features import item_codes
from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import history_batches
from jaxrec.data.ragged import distinct_each
from jaxrec.data.splits import Targets
from jaxrec.devices.ahead import ahead
from jaxrec.devices.mesh import place_rows, place_whole
from jaxrec.devices.top_k import top_k, winners
from jaxrec.devices.tuning import serving_rows
from jaxrec.errors import UserError
from jaxrec.evaluation.run import Beginning
from jaxrec.problem import Problem
from jaxrec.serving.requests import Filter, Request, Shapes, batch, batches
from jaxrec.training.restore import Trained

BATCH_USERS = 256  # scored at once
PLANNED_K = 100  # length of the lists that a plan is for


class Recommender:
    """Top-k lists from whole histories.

    Histories of raw ids need no data, only what the run keeps. Users of the data need them.

    Args:
      trained: the model, of a problem of the next-item task.
      k: length of the lists.
      keep_seen: also recommend items of the history.
      explain: rows also say which of the user's vectors found the item.
      batch_users: users scored at once, rounded up to a multiple of the mesh's data axis.
      exclude: items never to recommend: raw ids, or a mask bool [num_items] in the order of
        `catalogue.item_ids`, as `catalogue.where` makes it of features.
      allow: likewise, the items to choose from; None = all.
      skip_unknown: leave item ids that the data lack out of histories and filters.
      like: another, whose programs are taken over if its model is built alike: of a run's next
        checkpoint nothing is compiled again.

    Attributes:
      catalogue: the items.
      allowed: bool [num_items + 1] by item number, what `exclude` and `allow` leave; None = all.
    """

    def __init__(
        self,
        trained: Trained,
        k: int = 10,
        *,
        keep_seen: bool = False,
        explain: bool = False,
        batch_users: int = BATCH_USERS,
        exclude: Any = None,
        allow: Any = None,
        skip_unknown: bool = False,
        like: 'Recommender | None' = None,
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
        self._filter = Filter(self.catalogue, skip_unknown)
        filtered = exclude is not None or allow is not None
        self.allowed = self._filter.allowed(allow, exclude) if filtered else None
        built = trained.graphdef, self.catalogue.num_items
        same = like and (like.trained.graphdef, like.catalogue.num_items) == built
        self._top_k = _program(*built, keep_seen)
        self._by_text = _program(*built, keep_seen=True)
        self._asked = like._asked if same else _program(*built, keep_seen=False)
        self._dispatch = threading.Lock()
        with self._placed():
            begin = Beginning(trained.graphdef, trained.served)
            self._vectors = begin(trained.params, trained.constants)
            self._shapes = Shapes(self._inputs.max_len, **serving_rows(batch_users))
            self._base = self._filter.everything if self.allowed is None else self.allowed
            self._base_rows = self._by_row(self._base)

    @property
    def histories(self) -> Histories:
        """The data, opened when they are first asked for; UserError if they are gone."""
        return self.trained.problem.source

    @property
    def interests(self) -> int:
        """Vectors of a user."""

        def queries(params, vectors, batch):
            return nnx.merge(self.trained.graphdef, params).queries(batch, vectors)

        size, rows = next(self._shapes.every())
        with self._placed():
            made = place_whole(self._part([], size, rows)[0])
            return jax.eval_shape(queries, self.trained.params, self._vectors, made).shape[1]

    def vectors(self) -> np.ndarray:
        """float32 [num_items + 1, D], an item's at its number."""
        return np.asarray(self._vectors['items'], np.float32)[: self.catalogue.num_items + 1]

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
        k = self._length(k)
        if given is None:
            given, codes = self.histories, self.trained.problem.codes
            parts = self._whole(given, users, codes, self._inputs.users)
        else:
            parts = self._whole(given, users, self._codes_of(given.items), False)
        return self._lists(self._top_k, parts, len(users), k)

    def recommend(
        self,
        histories: Sequence[Sequence[int | str]],
        k: int | None = None,
        *,
        exclude: Any = None,
        allow: Any = None,
    ) -> list[list[dict]]:
        """Lists after histories of raw item ids, oldest first; several threads may ask at once.

        Features of events are missing, those of items are not. After `warm_up` nothing is compiled
        for a `k` up to the object's.

        Args:
          histories: one per list; may be empty.
          k: length of the lists; None = that of the object.
          exclude: items that are not to be in the lists, besides those of the object: raw ids or a
            mask for all histories, or a list with one of these, or None, for each.
          allow: likewise, the only items that may be; of those that the object allows. Histories
            that share it, as one object, are scored together.

        Returns:
          For each history [{'item': raw id, 'title': text, 'score': float}, ..], best first, with
          `explain` also 'interest', from 1.

        Raises:
          UserError: an item that is not in the data, or ids that stand in no list.
        """
        if any(isinstance(history, int | str) for history in histories):
            raise UserError('histories is a list of lists of item ids, one for each user')
        numbers = self._filter.histories(histories)
        return self.after(numbers, k, exclude=exclude, allow=allow)

    def after(
        self,
        histories: Sequence[Sequence[int]],
        k: int | None = None,
        *,
        exclude: Any = None,
        allow: Any = None,
    ) -> list[list[dict]]:
        """The same after histories of item numbers."""
        return self.answers(self.requests(histories, exclude, allow), k)

    def requests(
        self, histories: Sequence[Sequence[int]], exclude: Any = None, allow: Any = None
    ) -> list[Request]:
        """One of every history of item numbers; those with the same filters share what is allowed.

        Raises:
          UserError: see `recommend`.
        """
        count = len(histories)
        histories = [np.asarray(history, np.int32).reshape(-1) for history in histories]
        excludes = self._filter.each(exclude, count, 'exclude')
        allows = self._filter.each(allow, count, 'allow')
        shared = self._base
        for_all = allow if allows is None else None, exclude if excludes is None else None
        if any(one is not None for one in for_all):
            shared = self._filter.allowed(*for_all, self._base)
        unwanted = [[np.zeros(0, np.int32) if self.keep_seen else one] for one in histories]
        allowed, made = [shared] * count, {}  # what `allow` makes of each of its objects
        for n in range(count):
            if excludes and excludes[n] is not None:
                unwanted[n].append(self._filter.numbers(excludes[n], 'exclude'))
            if allows and allows[n] is not None:
                if id(allows[n]) not in made:
                    made[id(allows[n])] = self._filter.allowed(allows[n], None, shared)
                allowed[n] = made[id(allows[n])]
        unwanted = distinct_each(unwanted, self.catalogue.num_items)
        return [Request(*one) for one in zip(histories, unwanted, allowed, strict=True)]

    def answers(self, requests: Sequence[Request], k: int | None = None) -> list[list[dict]]:
        """The lists of `requests`, whoever asked; see `recommend`."""
        k = self._length(k)
        most = self.k if k <= self.k else min(1 << (k - 1).bit_length(), self.catalogue.num_items)
        lists = self._lists(self._asked, self._parts(requests), len(requests), most)
        return self._listed(*(column[:, :k] for column in lists))

    def of_texts(self, texts: Sequence[str], k: int | None = None) -> list[list[dict]]:
        """Lists of the items that go with texts, of a model that reads the items' texts.

        Args:
          texts: in words; the encoder of the items' own texts makes their vectors.
          k: length of the lists; None = that of the object.

        Returns:
          See `recommend`.

        Raises:
          UserError: the model reads no texts, or none of a text's words is known.
        """
        if 'text' not in self.trained.served.sizes or not hasattr(
            nnx.merge(self.trained.graphdef, self.trained.params), 'text_queries'
        ):
            raise UserError(f'the model of {self.trained.workdir} makes nothing of texts')
        vectors = item_texts.encoder_of(self.catalogue.texts)(list(texts))
        for text, found in zip(texts, vectors.any(1), strict=True):
            if not found:
                raise UserError(f'no word of {text!r} is in a text of the items')
        k = self._length(k)
        with self._placed():
            rows = serving_rows(len(texts))['batch_users']
        vectors = np.pad(vectors, ((0, rows - len(texts)), (0, 0)))
        parts = [(np.arange(len(texts)), {'texts': vectors}, self._base_rows)]
        lists = self._lists(self._by_text, parts, len(texts), k)
        return self._listed(*lists)

    def warm_up(self) -> None:
        """Compiles all that a request needs, so that none waits for it."""
        parts = ((np.zeros(0, int), *self._part([], *shape)) for shape in self._shapes.every())
        self._lists(self._asked, parts, 0, self.k)

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
        return self._listed(*self(np.array([user])))[0]

    def _length(self, k):
        k = self.k if k is None else min(k, self.catalogue.num_items)
        if k < 1:
            raise UserError(f'k={k} must be at least 1')
        return k

    def _codes_of(self, items):
        """Codes of the features of events by their index in `items`; None if the model has none."""
        features, of_items = self._inputs.features, self.catalogue.codes
        if not features:
            return None
        return lambda index: item_codes(features, of_items, items[index])

    def _whole(self, histories, users, codes, numbered):
        """(places, batch, allowed rows) of all events of users, for `_lists`."""
        allowed = None if self.allowed is None else self._base_rows
        sizes = self._inputs.max_len, self._batch_users
        for chosen, one in _batches(histories, users, codes, *sizes, numbered):
            yield chosen, one, allowed

    def _parts(self, requests):
        """The same of requests."""
        for places, allowed, size, rows in batches(requests, self._shapes):
            some = [requests[place] for place in places]
            yield places, *self._part(some, size, rows, allowed)

    def _part(self, requests, size, rows, allowed=None):
        made = batch(requests, size, rows, self._inputs.max_len, self._codes_of)
        same = allowed is None or allowed is self._base
        return made, self._base_rows if same else self._by_row(allowed)

    def _by_row(self, allowed):
        """bool [num_items + 1] as the top-k reads it, placed."""
        rows = len(self._vectors['items'])
        return place_rows(np.pad(allowed, (0, rows - len(allowed))))

    def _listed(self, scores, items, interests):
        """Lists as `recommend` gives them, of columns [n, k]; item 0 is none."""
        there = items > 0
        flat = items[there]
        ids, titles = self.catalogue.raw_items(flat), self.catalogue.titles_of(flat)
        columns = zip(ids, titles, scores[there].tolist(), strict=True)
        rows = [{'item': item, 'title': title, 'score': score} for item, title, score in columns]
        if self.explain:
            for row, interest in zip(rows, interests[there].tolist(), strict=True):
                row['interest'] = interest + 1
        ends = np.cumsum(there.sum(1)).tolist()
        return [rows[first:end] for first, end in zip([0, *ends], ends, strict=False)]

    def _lists(self, program, parts, count, k):
        """What `program` gives of (places, batch, allowed rows) .., at their places of `count`."""
        shape = (count, k)
        lists = np.zeros(shape, np.float32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        params = self.trained.params

        def call(given):
            with self._dispatch:  # all devices get the programs of all threads in one order
                return program(params, self._vectors, *given, k=k)

        with self._placed():
            given = ((places, (place_whole(batch), allowed)) for places, batch, allowed in parts)
            for places, out in ahead(call, given):
                for column, value in zip(lists, out, strict=True):
                    column[places] = np.asarray(value)[: len(places)]
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


def _top_k(graphdef, num_items, keep_seen, params, catalogue, batch, allowed=None, *, k):
    model, table = nnx.merge(graphdef, params), catalogue['items']
    if 'texts' in batch:
        queries = model.text_queries(batch['texts'])
    else:
        queries = model.queries(batch, catalogue)
    seen = None if keep_seen else batch['seen']
    scores, items = top_k(queries, table, num_items, seen, k, allowed)
    out = scores, items, winners(queries, table, items)
    return jax.tree.map(lambda x: jax.reshard(x, P()), out)
