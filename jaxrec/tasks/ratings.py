"""Ratings of users who are cold in one domain and known in another; lower errors are better.

Biases, and factors of a biased factorisation, are fitted to the training ratings before training
begins, and are constants of it: see `data.ratings`. Only of the item of a rating that is learnt a
model reads what the item's other ratings tell, as it is where cold users are predicted. A model of
this task has `ratings(batch, carried) -> [B]`; `begin(constants)`, if it has one, gives what a pass
shares.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxrec import datasets, problem
from jaxrec.config import field
from jaxrec.data import ratings as data
from jaxrec.data.rows import Columns, Rows
from jaxrec.devices.mesh import replicated
from jaxrec.devices.tuning import serving_rows
from jaxrec.errors import UserError
from jaxrec.evaluation import cold_start, point_metrics


@dataclasses.dataclass
class RatingTask(problem.Task):
    """What all tasks of ratings share: how errors are measured, and by which seed they split."""

    split_seed: int = field(0, least=-1)  # of what is held out by chance; -1: train.seed
    lowest: float = field(1.0, effect='measure')  # predictions are clipped in evaluations
    highest: float = field(5.0, effect='measure')
    batch_rows: int = field(4096, least=1, effect='pace')  # of an evaluation

    def check(self, experiment: Any) -> None:
        if not self.lowest < self.highest:
            raise UserError(f'task.lowest={self.lowest} must be below task.highest={self.highest}')
        if not experiment.model.inputs().users:
            raise UserError('this task is of users by number, which this model does not know')

    def one_split(self) -> bool:
        """Whether runs with other seeds hold out the same examples."""
        return self.split_seed >= 0

    def seed_of_split(self, experiment: Any) -> int:
        """What examples are held out by."""
        return self.split_seed if self.split_seed >= 0 else experiment.train.seed

    def told_seed(self) -> int | str:
        """What `protocol_fields` says of it."""
        return self.split_seed if self.split_seed >= 0 else 'train.seed'

    def metrics(self) -> dict[str, problem.Metric]:
        """MAE and RMSE; of single ratings MAE and the squared error MSE have values.

        GAUC is how well a user's liked items (rated above 3) are above the user's others.
        """
        low = problem.Metric(higher=False)
        return {
            'RMSE': problem.Metric(higher=False, single=False),
            'MAE': low,
            'MSE': low,
            'GAUC': problem.Metric(single=False),
        }


@dataclasses.dataclass
class Config(RatingTask):
    """Users of both domains are split; target ratings of those who are tested are never learnt."""

    source: str = ''  # domain in which everybody is known
    target: str = ''  # domain in which cold users have no rating
    cold_share: float = field(0.2, above=0, below=1)  # of the users of both, tested
    valid_share: float = field(0.05, above=0, below=1)  # of them, cold too, for validation
    alone: float = field(0.0, least=0, below=1)  # training users whose source ratings are left out
    # the control: training users swap their source ratings, so that there is nothing to transfer
    shuffled: bool = False
    factors: int = field(10, least=1)  # of the factorisations
    shrink: float = field(data.SHRINK, above=0)  # ratings at the mean that a bias begins with
    liked: int = field(20, least=1)  # newest source items rated above 3 that a model sees

    def check(self, experiment: Any) -> None:
        if not self.source or not self.target:
            raise UserError('task.source and task.target must name the two domains')
        if self.cold_share + self.valid_share >= 1:
            raise UserError('task.cold_share and task.valid_share must add up to < 1')
        inputs = experiment.model.inputs()
        if inputs.negatives or inputs.texts:
            raise UserError(
                'this task has no texts and no pairs of ratings, which this model learns from'
            )
        super().check(experiment)

    def columns(self) -> Columns:
        """What there is to read of a log of ratings."""
        return Columns(labels=(data.LABEL,), quantities=True, domain=True)

    def protocol_fields(self) -> dict[str, Any]:
        """Who is cold, and how errors are measured."""
        found = {
            'name': 'cold-start ratings',
            'domains': [self.source, self.target],
            'cold_share': self.cold_share,
            'valid_share': self.valid_share,
            'split_seed': self.told_seed(),
            'clipped': [self.lowest, self.highest],
            'data_split': 'users of both domains',
        }
        return found | self.told_precision()

    def open(
        self, experiment: Any, say: Callable = print, process: tuple[int, int] = (0, 1)
    ) -> 'Ratings':
        """Reads the ratings, holds the cold users' out, and factorises what is left."""
        rows, meta = datasets.load(experiment.data, say, kind=Rows, columns=self.columns())
        split = data.cold_start(
            rows,
            self.source,
            self.target,
            cold_share=self.cold_share,
            valid_share=self.valid_share,
            alone=self.alone,
            shuffled=self.shuffled,
            seed=self.seed_of_split(experiment),
        )
        check_metric(experiment, split.valid)
        bases = cold_start.Bases(split, self.factors, self.shrink)
        learnt = learnt_ratings(bases)
        batches = data.RatingBatches(
            learnt,
            rows=experiment.train.batch_rows,
            seed=experiment.train.seed,
            process=process,
        )
        counts = ', '.join(f'{len(getattr(split, n)):,} {n}' for n in ('train', 'valid', 'test'))
        return Ratings(
            about=f'{rows.name}: {len(split.source):,} ratings of {self.source}; of {self.target} '
            f'{counts}; {len(bases.taught()):,} users teach the way from one to the other',
            data_hash=meta['data_hash'],
            data_path=meta['path'],
            source=rows,
            sizes={
                'user': rows.num_users,
                'item': rows.num_items,
                'factor': self.factors,
            },
            periods=[lambda: problem.Period(batches)],
            evaluations={
                name: functools.partial(ColdRatings, self, bases, getattr(split, name))
                for name in ('valid', 'test')
            },
            constants=constants_of(bases, learnt, self.liked),
        )


def learnt_ratings(bases: cold_start.Bases) -> data.Triples:
    """The training ratings of users of both domains.

    Beside them, float32, is what is known of their items without the rating itself: 'item_base' [n]
    mean + b_i, 'item_factors' [n, d].

    Raises:
      UserError: there are none.
    """
    taught = bases.taught_ratings()
    if not len(taught):
        raise UserError('no training user has ratings in both domains: there is nothing to learn')
    bias, factors = data.without_own(bases.target, bases.data.train)
    known = {'item_base': bases.target.mean + bias, 'item_factors': factors}
    beside = {name: np.asarray(column, np.float32) for name, column in known.items()}
    return dataclasses.replace(bases.data.train, beside=beside).take(taught)


def constants_of(bases: cold_start.Bases, learnt: data.Triples, liked: int) -> dict[str, Any]:
    """What models of cold users read besides a batch, float32 but for numbers.

    Args:
      bases: of the split.
      learnt: see `learnt_ratings`.
      liked: items that a model sees of a user's.

    Returns:
      'base': 'items' [num_items + 1] mean + b_i and 'users' [U] k b_u; 'vectors': factors 'items'
      [num_items + 1, d] of both domains and 'users' [U, d] of the source; 'scale': 1 / deviation of
      the factors of 'users', 'source' and target 'items'; 'liked': int32 [U, liked], see
      `data.ratings.liked`; 'support': 'users', 'items', 'ratings' [n] of `learnt` and what is
      beside them, in an order of chance that the split alone decides.
    """
    split, source, target = bases.data, bases.source, bases.target
    items = np.where((split.domain == 2)[:, None], target.items, source.items)
    support = learnt.take(np.random.default_rng(0).permutation(len(learnt)))
    parts = {
        'users': source.users[np.unique(split.source.users)],
        'source': source.items[np.unique(split.source.items)],
        'items': target.items[np.unique(split.train.items)],
    }
    single = lambda x: np.asarray(x, np.float32)  # noqa: E731
    return {
        'base': {
            'items': single(target.mean + target.item_bias),
            'users': single(bases.slope * source.user_bias),
        },
        'vectors': {'items': single(items), 'users': single(source.users)},
        'scale': {name: single(1 / max(x.std(), 1e-6)) for name, x in parts.items()},
        'liked': data.liked(split.source, split.num_users, liked),
        'support': {
            'users': np.asarray(support.users, np.int32),
            'items': np.asarray(support.items, np.int32),
            'ratings': single(support.values),
            **support.beside,
        },
    }


class Ratings(problem.Problem):
    """Ratings of pairs of a user and an item."""

    verbs = ('ratings',)

    def begin(self, model: problem.Model, constants: dict[str, jax.Array]) -> Any:
        """What the model makes of the constants, or they themselves."""
        return model.begin(constants) if hasattr(model, 'begin') else constants

    def predict(
        self, model: problem.Model, carried: Any, batch: problem.Batch, full: bool
    ) -> dict[str, jax.Array]:
        """ratings: float32 [B]."""
        del full
        return {'ratings': replicated(model.ratings(batch, carried))}


class PairRatings(problem.Evaluation):
    """Ratings that are not learnt, each by itself.

    Args:
      config: the task's.
      held: what is predicted.
    """

    def __init__(self, config: RatingTask, held: data.Triples):
        self._config, self._held = config, held
        self.examples, self.protocol = len(held), config.protocol_fields()

    def batches(self) -> Iterator[tuple[np.ndarray, problem.Batch]]:
        """All of one shape, see `data.ratings.rating_batch`; ratings are hidden: 0."""
        rows = serving_rows(min(self._config.batch_rows, self.examples))['batch_users']
        hidden = dataclasses.replace(self._held, values=np.zeros(self.examples, np.float32))
        for start in range(0, self.examples, rows):
            places = np.arange(start, min(start + rows, self.examples))
            yield places, data.rating_batch(hidden.take(places), rows)

    def measure(self, parts: Iterable[problem.Part]) -> problem.Measured:
        """From the predicted ratings, part by part."""
        found = np.full(self.examples, np.nan, np.float32)
        for places, columns in parts:
            found[places] = columns['ratings'][: len(places)]
        return self._measured(found)

    def references(self) -> dict[str, problem.Measured]:
        """What needs no training, see `_predictions`."""
        return {name: self._measured(values) for name, values in self._predictions().items()}

    def _predictions(self) -> dict[str, np.ndarray]:
        """float64 [n] of the held-out ratings, by name."""
        raise NotImplementedError

    def _groups(self) -> dict[str, dict[str, np.ndarray]]:
        """bool [n] of the held-out ratings, by name of the grouping, then of the group."""
        raise NotImplementedError

    def _details(self) -> dict[str, int]:
        return {}

    def _measured(self, found):
        values, scores = self._held.values, found
        if not np.isfinite(found).all():
            raise UserError('the model gives ratings that are not finite numbers')
        found = np.clip(found.astype(np.float64), self._config.lowest, self._config.highest)
        error = np.abs(found - values)

        def errors(some):
            ordered = gauc(self._held.take(some), scores[some])
            return {
                'RMSE': point_metrics.rmse(found[some], values[some]),
                'MAE': point_metrics.mae(found[some], values[some]),
                'MSE': float((error[some] ** 2).mean()),
            } | ({} if ordered is None else {'GAUC': ordered})

        members, held = self._groups(), self._held
        numbers = held.users.astype(np.int64) << 32 | held.items
        return problem.Measured(
            metrics=errors(np.arange(self.examples)),
            unit='row',
            values={'MAE': error, 'MSE': error**2},
            members=members,
            numbers=None if self._config.one_split() else numbers,
            groups={
                grouping: {
                    name: {'examples': len(some), **errors(some)}
                    for name, some in ((n, np.flatnonzero(x)) for n, x in groups.items())
                    if len(some)
                }
                for grouping, groups in members.items()
            },
            details=self._details(),
        )


def gauc(held: data.Triples, scores: np.ndarray) -> float | None:
    """GAUC of ratings above `data.LIKED`; None if no user has them and others."""
    found = point_metrics.gauc(scores, held.values > data.LIKED, held.users)[0]
    return None if np.isnan(found) else found


def check_metric(experiment: Any, valid: data.Triples) -> None:
    """Raises UserError if train.metric is undefined on the validation ratings."""
    if experiment.train.metric == 'GAUC' and gauc(valid, np.zeros(len(valid))) is None:
        raise UserError(
            f"train.metric='GAUC': no user has validation ratings both above {data.LIKED} and not; "
            'choose another metric'
        )


class ColdRatings(PairRatings):
    """Ratings of cold users.

    Args:
      config: the task's.
      bases: of the training ratings, for `references`.
      cold: what is predicted.
    """

    def __init__(self, config: Config, bases: cold_start.Bases, cold: data.Triples):
        super().__init__(config, cold)
        self._bases = bases

    def _predictions(self):
        return cold_start.predictions(self._bases, self._held)

    def _groups(self):
        given = self._bases.data
        count = np.bincount(given.source.users, minlength=given.num_users)[self._held.users]
        return {'users with': {'source ratings below 20': count < 20, '20 and more': count >= 20}}

    def _details(self):
        return {'cold users': len(np.unique(self._held.users))}
