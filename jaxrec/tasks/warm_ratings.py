"""Ratings of known users, with texts of what a user liked before; lower errors are better.

Biases of the training ratings are constants of training. A model of this task has
`ratings(batch, carried) -> [B]`; `begin(constants)`, if it has one, gives what a pass shares.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrec import datasets, problem
from jaxrec.config import Texts, field
from jaxrec.data import item_texts, warm_ratings
from jaxrec.data import ratings as data
from jaxrec.data.histories import Histories
from jaxrec.data.item_texts import ItemTexts
from jaxrec.errors import UserError
from jaxrec.tasks.ratings import PairRatings, Ratings, RatingTask, check_metric

_RIDGE = 5.0, 0.05  # of the factors that are a reference: for who has n ratings, 5 + .05 n
_FEW = 10  # training ratings of an item, and fewer


@dataclasses.dataclass
class Config(RatingTask):
    """Single ratings are split, by chance or by time."""

    label: str = 'rating'  # column of events
    split: str = field('random', choices=warm_ratings.KINDS)
    valid_share: float = field(0.1, above=0, below=1)
    test_share: float = field(0.1, above=0, below=1)
    domain: str = ''  # items of this one alone, by the column of domains; '' = all
    texts: Texts = dataclasses.field(default_factory=Texts)
    liked: int = field(5, least=1)  # newest items rated above 3 before a row, of whose texts it is
    # the authors' code: the user's first liked items of all rows, held-out ones too; it tells what
    # is to be predicted
    leak: bool = False
    shuffled: bool = False  # the control: items swap their texts
    factors: int = field(32, least=1, effect='measure')  # of the factorisation beside the model

    def check(self, experiment: Any) -> None:
        super().check(experiment)
        metric = experiment.train.metric
        if experiment.model.inputs().negatives and metric in ('', 'RMSE', 'MAE', 'MSE'):
            raise UserError(
                "this model learns an order of items, not ratings: set train.metric='GAUC'"
            )
        if self.valid_share + self.test_share >= 1:
            raise UserError('task.valid_share and task.test_share must add up to < 1')
        item_texts.check(
            self.texts, 'this model' * experiment.model.inputs().texts, 'this model reads no texts'
        )

    def one_split(self) -> bool:
        """Whether runs with other seeds hold out the same examples."""
        return self.split != 'random' or super().one_split()

    def protocol_fields(self) -> dict[str, Any]:
        """What is held out, and how errors are measured."""
        found = {
            'name': 'warm ratings',
            'label': self.label,
            'valid_share': self.valid_share,
            'test_share': self.test_share,
            'clipped': [self.lowest, self.highest],
            'data_split': self.split,
        }
        found |= {'split_seed': self.told_seed()} if self.split == 'random' else {}
        found |= {'domain': self.domain} if self.domain else {}
        found |= {'leak': 'texts of held-out rows'} if self.leak else {}
        return found | self.told_precision()

    def open(
        self, experiment: Any, say: Callable = print, process: tuple[int, int] = (0, 1)
    ) -> Ratings:
        """Reads the ratings, splits them, and makes biases and vectors of texts."""
        histories, meta = datasets.load(experiment.data, say)
        texts = told = None
        if self.texts.encoder:
            texts = item_texts.of_items(histories, self.texts, meta['path'], say)
            told = texts.vectors.any(1)
        split = warm_ratings.split(
            histories,
            self.split,
            label=self.label,
            valid_share=self.valid_share,
            test_share=self.test_share,
            seed=self.seed_of_split(experiment),
            domain=self.domain,
            told=told,
            liked=self.liked,
            leak=self.leak,
        )
        check_metric(experiment, split.valid)
        constants = {'base': base_of(split)}
        if texts is not None:
            constants['texts'] = texts_of(histories, texts, self.shuffled, say)
        batches = data.RatingBatches(
            split.train,
            rows=experiment.train.batch_rows,
            seed=experiment.train.seed,
            process=process,
            rivals=experiment.model.inputs().negatives,
        )
        counts = ', '.join(f'{len(getattr(split, n)):,} {n}' for n in ('train', 'valid', 'test'))
        sizes = {'user': split.num_users, 'item': split.num_items}
        return Ratings(
            about=f'{histories.name}: ratings{f" of {self.domain}" * bool(self.domain)}: {counts}',
            data_hash=hash_with_titles(histories, meta['data_hash']),
            data_path=meta['path'],
            source=histories,
            sizes=sizes | ({} if texts is None else {'text': texts.vectors.shape[1]}),
            periods=[lambda: problem.Period(batches)],
            evaluations={
                name: functools.partial(HeldRatings, self, split, getattr(split, name))
                for name in ('valid', 'test')
            },
            constants=constants,
            notes=('note: texts of held-out rows are seen (task.leak)',) * self.leak,
        )


def hash_with_titles(histories: Histories, data_hash: str) -> str:
    """Of the data and the titles: alike for models that read them and those beside them."""
    found = hashlib.sha256(data_hash.encode())
    if histories.titles is not None:
        found.update(np.ascontiguousarray(histories.titles).tobytes())
    return found.hexdigest()


def base_of(split: warm_ratings.WarmRatings) -> dict[str, np.ndarray]:
    """Of the training ratings: 'items' [num_items + 1] mean + b_i, 'users' [U] b_u; float32."""
    found = data.factorise(split.train, split.num_users, split.num_items, 0)
    items, users = found.mean + found.item_bias, found.user_bias
    return {'items': items.astype(np.float32), 'users': users.astype(np.float32)}


def texts_of(
    histories: Histories, texts: ItemTexts, shuffled: bool = False, say: Callable = print
) -> dict[str, Any]:
    """What models read of the items' texts.

    Args:
      histories: with titles, which may have parts: see `warm_ratings.parts_of`.
      texts: vectors of the whole titles.
      shuffled: items that have a text swap it, by chance.
      say: called with lines for people where it takes a while.

    Returns:
      'items': float32 [num_items + 1, d]. 'parts': float32 [P + 1, d] of the different parts, row 0
      is 0. 'of': int32 [num_items + 1, T], the parts of each item, 0 = none: those without a known
      word are none.
    """
    parts, of = warm_ratings.parts_of(histories.titles)
    found = np.concatenate([np.zeros_like(texts.vectors[:1]), texts.encoder(parts, say)])
    of = np.where(found.any(1)[of], of, 0)
    vectors = np.asarray(texts.vectors)
    if shuffled:
        there = np.flatnonzero(vectors.any(1))
        number = np.arange(len(vectors))
        number[there] = np.random.default_rng(0).permutation(there)
        vectors, of = vectors[number], of[number]
    return {'items': vectors, 'parts': found.astype(np.float32), 'of': of.astype(np.int32)}


class HeldRatings(PairRatings):
    """Ratings of known users that are not learnt.

    Args:
      config: the task's.
      split: of all ratings, for `references`.
      held: what is predicted.
    """

    def __init__(self, config: Config, split: warm_ratings.WarmRatings, held: data.Triples):
        super().__init__(config, held)
        self._split = split

    def _predictions(self):
        """Mean, biases, and a biased factorisation by alternating least squares."""
        split, held = self._split, self._held
        sizes = split.num_users, split.num_items
        found = data.factorise(split.train, *sizes, self._config.factors, ridge=_RIDGE)
        biases = found.of_items(held.items) + found.user_bias[held.users]
        products = (found.users[held.users] * found.items[held.items]).sum(-1)
        return {
            'mean': np.full(len(held), found.mean),
            'biases': biases,
            'biased_mf': biases + products,
        }

    def _groups(self):
        train, held = self._split.train, self._held
        rated = np.bincount(train.items, minlength=self._split.num_items + 1)[held.items]
        items = {'0': rated == 0, f'1 to {_FEW}': (rated > 0) & (rated <= _FEW)}
        groups = {'ratings of the item': items | {f'above {_FEW}': rated > _FEW}}
        if 'before' in held.beside:
            told = (held.beside['before'] > 0).sum(1)
            groups['liked before'] = {'0': told == 0, '1 and more': told > 0}
        return groups
