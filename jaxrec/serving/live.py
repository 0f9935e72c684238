"""What a service answers with: a run's model, replaced when its run has a better one."""

import dataclasses
import functools
import gc
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrec.errors import UserError
from jaxrec.serving.given_ids import near
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.scorer import BATCH_ROWS, Scorer
from jaxrec.training.checkpoint import standing
from jaxrec.training.restore import Trained, load_trained

_FILTERS = 32  # different ones whose masks are kept, num_items bytes each


@dataclasses.dataclass
class Histories:
    """A question for lists, see `Recommender.recommend`.

    Attributes:
      histories: raw item ids, oldest first.
      k: length of the lists.
      exclude, allow: raw item ids; None = none, all.
      where: features of the items that may be, see `Catalogue.where`.
      skip_unknown: leave out item ids that the model does not know.
    """

    histories: Sequence[Sequence[int | str]]
    k: int = 10
    exclude: Sequence[int | str] | None = None
    allow: Sequence[int | str] | None = None
    where: dict[str, Any] | None = None
    skip_unknown: bool = False


@dataclasses.dataclass
class Rows:
    """A question for scores, see `Scorer.score`."""

    rows: Sequence[dict[str, Any]]


class _Lists:
    """Answers `Histories`."""

    verb = 'recommend'

    def __init__(self, trained: Trained, before: '_Lists | None', k: int, batch: int):
        self.trained, self.most = trained, batch
        like = before and before._recommender
        self._recommender = Recommender(trained, k, batch_users=batch, like=like)
        self._known = self._recommender.catalogue
        self._filter = functools.lru_cache(_FILTERS)(self._mask)
        self._recommender.warm_up()

    def about(self):
        columns = sorted(self._known.features)
        return {'items': self._known.num_items, 'where': columns, 'k': self._recommender.k}

    def prepared(self, question: Histories):
        """(requests, unknown ids that are left out)."""
        unknown = []
        numbers = [self._numbers(h, question, unknown) for h in question.histories]
        exclude, allow = (
            None if raw is None else self._numbers(raw, question, unknown)
            for raw in (question.exclude, question.allow)
        )
        made = self._recommender.requests(numbers)
        if question.where or allow is not None:
            allowed = self._filter(json.dumps([question.where, allow], sort_keys=True))
            for one in made:
                one.allowed = allowed
        if exclude:
            for one in made:
                one.unwanted = np.union1d(one.unwanted, exclude).astype(np.int32)
        return made, unknown

    def answers(self, questions, prepared):
        k = max(question.k for question in questions)
        requests = [request for some, _ in prepared for request in some]
        lists, found = iter(self._recommender.answers(requests, k)), []
        for question, (some, unknown) in zip(questions, prepared, strict=True):
            own = [next(lists)[: question.k] for _ in some]
            found.append({'lists': own, 'unknown': unknown})
        return found

    def _numbers(self, raw, question, unknown):
        found = []
        for one in raw:
            number = self._known.find_item(one)
            if number is not None:
                found.append(number)
            elif question.skip_unknown:
                unknown.append(one)
            else:
                hint = near(one, self._known.find_item)
                raise UserError(
                    f'item {one!r} is not known{hint}; "skip_unknown": true leaves it out'
                )
        return found

    def _mask(self, key):
        """`Request.allowed` of a filter; one object for all who ask for the same, so that they are
        answered together."""
        where, allow = json.loads(key)
        if 'self' in (where or {}):  # the one name that Python would take for something else
            raise UserError("the catalogue has no column 'self' of items")
        chosen = self._known.where(**(where or {}))
        if allow is not None:
            chosen &= np.isin(np.arange(1, self._known.num_items + 1), allow)
        return np.concatenate([[False], chosen])


class _Scores:
    """Answers `Rows`."""

    verb = 'score'

    def __init__(self, trained: Trained, before: '_Scores | None', k: int, batch: int):
        del before, k, batch
        self.trained, self.most = trained, BATCH_ROWS
        self._scorer = Scorer(trained)
        self._scorer.warm_up()

    def about(self):
        units = self._scorer.catalogue.units
        fields = sorted(name for name, unit in units.items() if unit == 'row')
        return {'labels': list(self._scorer.labels), 'fields': fields}

    def prepared(self, question: Rows):
        return self._scorer.given(question.rows)

    def answers(self, questions, prepared):
        whole = jax.tree.map(lambda *parts: np.concatenate(parts), *prepared)
        chances = iter(self._scorer.chances(whole))
        return [{'scores': [next(chances) for _ in one.rows]} for one in questions]


class Live:
    """The model that answers now; ready, and nothing compiles for a question.

    Args:
      workdir: folder of the run.
      checkpoint: 'best' or 'last'.
      k: longest list.
      batch: histories that go to the device at once.

    Attributes:
      verb: 'recommend' or 'score', what it answers.
      most: histories or rows of a batch.
      step: of the model.

    Raises:
      UserError: the run serves neither lists nor scores over a wire.
    """

    def __init__(self, workdir: str | pathlib.Path, checkpoint: str, *, k: int, batch: int):
        self._workdir, self._checkpoint = pathlib.Path(workdir), checkpoint
        self._options = {'k': k, 'batch': batch}
        self._standing = standing(self._workdir, checkpoint)
        self._now = self._opened(None)
        self.verb, self.most = self._now.verb, self._now.most

    @property
    def step(self) -> int:
        return self._now.trained.step

    def about(self) -> dict[str, Any]:
        """What is served, JSON-ready."""
        now = self._now
        told = {'step': now.trained.step, 'data': now.trained.served.about}
        return {'answers': self.verb, **told, **now.about()}

    def answer(self, questions: Sequence[Any]) -> list[dict | Exception]:
        """What to tell each, {'lists', 'unknown'} or {'scores'} and the 'step' of the model.

        A question that cannot be answered gets the exception and spoils no other.
        """
        now = self._now  # another thread may replace it at any moment
        found, good = [None] * len(questions), []
        for place, question in enumerate(questions):
            try:
                good.append((place, question, now.prepared(question)))
            except Exception as e:  # a UserError, or a bug that one question brings to light
                found[place] = e
        if good:
            places, asked, prepared = zip(*good, strict=True)
            try:
                told = now.answers(asked, prepared)
            except UserError as e:  # of the model, not of who asks
                raise RuntimeError(str(e)) from e
            for place, one in zip(places, told, strict=True):
                found[place] = {**one, 'step': now.trained.step}
        return found

    def renew(self) -> bool:
        """Takes the run's newest checkpoint if it is not the one here; whether it did.

        Meanwhile, in another thread, the model before answers; both are in memory.

        Raises:
          UserError: there is a new one that cannot be used. It is not tried again.
        """
        newest = standing(self._workdir, self._checkpoint)
        if newest is None or newest == self._standing:
            return False
        self._standing = newest
        new = self._opened(self._now)
        if new.verb != self.verb:
            raise UserError(f'{self._workdir} now holds another kind of model: start again')
        self._now = new
        gc.collect()  # the one before
        return True

    def _opened(self, before):
        trained = load_trained(self._workdir, self._checkpoint)
        verbs = trained.served.verbs
        if 'scores' in verbs and trained.experiment.model.inputs().max_len:
            raise UserError(
                f'{self._workdir} holds a model with memories of its users, which one process '
                'must keep: jaxrec.load(workdir) serves it'
            )
        kinds = {'queries': _Lists, 'scores': _Scores}
        kind = next((kinds[verb] for verb in verbs if verb in kinds), None)
        if kind is None or trained.served.catalogue is None:
            raise UserError(f'{self._workdir} holds a model that gives neither lists nor scores')
        return kind(trained, before if isinstance(before, kind) else None, **self._options)
