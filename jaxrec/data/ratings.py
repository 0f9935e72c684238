"""Ratings: biases and factors of them; of two domains that share users, who is cold in one.

Cold users have ratings in both domains, and none of those in the target domain is learnt: not by a
model, nor by the biases and factors here, which see the training ratings alone.
"""

import dataclasses

import numpy as np
import scipy.sparse

from jaxrec import problem, rng
from jaxrec.data.catalogue import plain
from jaxrec.data.domains import COLUMN, check_names
from jaxrec.data.histories import Histories
from jaxrec.data.ragged import part, ranges
from jaxrec.data.rows import Rows
from jaxrec.errors import UserError

LABEL = 'rating'
LIKED = 3  # ratings above it are of items that a user likes
SHRINK = 5.0  # ratings at the mean that a bias begins with
_RIDGE = 8.0  # of factors, in ratings
_SWEEPS = 12
_AT_ONCE = 1 << 16  # ratings whose item is solved for without them


@dataclasses.dataclass
class Triples:
    """Ratings one after the other.

    Attributes:
      users: int32 [n], 0-based numbers.
      items: int32 [n], numbers from 1.
      values: float32 [n].
      beside: further columns [n, ..] of the ratings, which their batches have too.
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    beside: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.users)

    def take(self, chosen: np.ndarray) -> 'Triples':
        beside = {name: column[chosen] for name, column in self.beside.items()}
        return Triples(self.users[chosen], self.items[chosen], self.values[chosen], beside)

    def matrix(self, users: int, items: int) -> scipy.sparse.csr_array:
        """float64 [users, items + 1] of the values; of those that are 0 too, an entry each."""
        at = self.users, self.items
        made = scipy.sparse.coo_array((self.values.astype(np.float64), at), (users, items + 1))
        return made.tocsr()


@dataclasses.dataclass
class ColdStart:
    """Ratings that are learnt, and those of cold users in the target domain.

    Attributes:
      source: of everybody in the source domain.
      train, valid, test: in the target domain; no user is in two of them.
      domain: int8 [num_items + 1], 1 of items of the source, 2 of the target, 0 of others.
      num_users: of the data.
    """

    source: Triples
    train: Triples
    valid: Triples
    test: Triples
    domain: np.ndarray
    num_users: int

    @property
    def num_items(self) -> int:
        return len(self.domain) - 1


def cold_start(
    rows: Rows,
    source: str,
    target: str,
    *,
    cold_share: float,
    valid_share: float,
    alone: float = 0.0,
    shuffled: bool = False,
    seed: int = 0,
) -> ColdStart:
    """Splits ratings by users, as the protocol of PTUPCDR does (Zhu et al., WSDM 2022).

    Of the users with ratings in both domains, shuffled by `seed`, the first `cold_share` are
    tested, the next `valid_share` validate.

    Args:
      rows: with the label LABEL and a domain of every item.
      source, target: names of domains.
      cold_share, valid_share: of the users of both.
      alone: share of the training users of both domains whose source ratings are left out.
      shuffled: the control: training users of both domains swap their source ratings by chance, so
        that what they teach about the two domains is wrong; cold users keep theirs.
      seed: of the split.

    Raises:
      UserError: no such domain, no users of both, ratings twice, or shares that leave nothing.
    """
    domain = _domains(rows, source, target)
    values = rows.outcomes((LABEL,), np.arange(len(rows)))
    known = values[1][:, 0] > 0
    everything = Triples(*(np.asarray(x) for x in (rows.users, rows.items, values[0][:, 0])))
    check_once(rows, everything)
    of, ratings = domain[everything.items], everything
    parts = [ratings.take(np.flatnonzero(known & (of == n))) for n in (1, 2)]
    given, wanted = parts
    both = np.intersect1d(given.users, wanted.users)
    if not 0 < cold_share < 1 or not 0 < valid_share < 1 or cold_share + valid_share >= 1:
        raise UserError('task.cold_share and task.valid_share must be > 0 and add up to < 1')
    order = np.random.default_rng(seed).permutation(both)
    tested, checked = (round(share * len(both)) for share in (cold_share, valid_share))
    if min(tested, checked, len(both) - tested - checked) < 1:
        raise UserError(
            f'{rows.name} has {len(both)} users with ratings in {source} and in {target}: too few '
            'to be cold, to validate and to train'
        )
    role = np.zeros(rows.num_users, np.int8)
    role[order[:tested]], role[order[tested : tested + checked]] = 2, 1
    train, valid, test = (wanted.take(np.flatnonzero(role[wanted.users] == n)) for n in range(3))
    learners = order[tested + checked :]
    left_out = learners[: round(alone * len(learners))]
    given = given.take(np.flatnonzero(~np.isin(given.users, left_out)))
    if shuffled:
        number = np.arange(rows.num_users, dtype=given.users.dtype)
        swapped = learners[len(left_out) :]
        number[swapped] = np.roll(swapped, 1)
        given = Triples(number[given.users], given.items, given.values)
    return ColdStart(given, train, valid, test, domain, rows.num_users)


def _domains(rows, source, target):
    """int8 [num_items + 1], see `ColdStart`."""
    if COLUMN not in rows.item_features:
        raise UserError(
            f'{rows.name or "the data"} names no domains of items: of your own log name the column '
            'with data.domain_col'
        )
    column = np.asarray(rows.item_features[COLUMN])
    names = [name.decode() for name in np.unique(column).tolist()]
    check_names(names, rows.name)
    for field, name in (('source', source), ('target', target)):
        if name not in names:
            raise UserError(f'no domain task.{field}={name!r}: the data have {", ".join(names)}')
    if source == target:
        raise UserError(f'task.source and task.target are both {source!r}')
    found = 1 * (column == source.encode()) + 2 * (column == target.encode())
    return np.concatenate([[0], found]).astype(np.int8)


def check_once(rows: Rows | Histories, ratings: Triples) -> None:
    """Raises UserError if a user of `rows` rates an item twice."""
    keys = np.sort(ratings.users.astype(np.int64) * (rows.num_items + 1) + ratings.items)
    again = np.flatnonzero(keys[1:] == keys[:-1])
    if len(again):
        user, item = divmod(int(keys[again[0]]), rows.num_items + 1)
        user, item = plain(rows.user_ids[user]), plain(rows.item_ids[item - 1])
        raise UserError(
            f'user {user!r} of {rows.name} rates item {item!r} twice ({len(again)} such ratings): '
            'keep one of each'
        )


@dataclasses.dataclass
class Factors:
    """A biased matrix factorisation: mean + b_i + b_u + p_u . q_i.

    Attributes:
      mean: of the ratings.
      item_bias, user_bias: float64 [num_items + 1], [U]; 0 of who has no rating.
      items, users: float64 [num_items + 1, d], [U, d], likewise; their columns are of equal length
        and orthogonal, the longest first.
      metric: float64 [d, d], the ridge of q_i is that of q_i metric q_i^T.
      shrink: ratings at the mean that a bias begins with.
    """

    mean: float
    item_bias: np.ndarray
    user_bias: np.ndarray
    items: np.ndarray
    users: np.ndarray
    metric: np.ndarray
    shrink: float

    def of_items(self, items: np.ndarray) -> np.ndarray:
        """float64 [n], mean + b_i."""
        return self.mean + self.item_bias[items]


def factorise(
    ratings: Triples,
    num_users: int,
    num_items: int,
    dim: int,
    means: np.ndarray | None = None,
    ridge: tuple[float, float] = (_RIDGE, 0.0),
    shrink: float = SHRINK,
) -> Factors:
    """Biases by shrunk means in turns, then factors of the rest by alternating least squares.

    Args:
      ratings: those that are learnt.
      num_users, num_items: of the data.
      dim: d; 0 = biases alone.
      means: [num_items + 1] instead of the mean of all ratings, of every item.
      ridge: (a, b), of the factors of who has n ratings a + b n.
      shrink: ratings at the mean that a bias begins with.

    Raises:
      UserError: there are more factors than users or items.
    """
    if dim > min(num_users, num_items):
        raise UserError(
            f'task.factors={dim} is more than there are users ({num_users}) or items ({num_items})'
        )
    users, items, values = ratings.users, ratings.items, ratings.values.astype(np.float64)
    mean = float(values.mean()) if len(values) else 0.0
    left = values - (mean if means is None else means[items])
    count = np.bincount(users, minlength=num_users), np.bincount(items, minlength=num_items + 1)
    of_users, of_items = np.zeros(num_users), np.zeros(num_items + 1)
    for _ in range(_SWEEPS):
        total = np.bincount(items, left - of_users[users], num_items + 1)
        of_items = total / (count[1] + shrink)
        of_users = np.bincount(users, left - of_items[items], num_users) / (count[0] + shrink)
    residual = dataclasses.replace(ratings, values=left - of_users[users] - of_items[items])
    p, q, metric = _alternating(residual.matrix(num_users, num_items), dim, ridge=ridge)
    return Factors(mean, of_items, of_users, q, p, metric, shrink)


def without_own(factors: Factors, ratings: Triples) -> tuple[np.ndarray, np.ndarray]:
    """b_i and q_i as the item's other ratings tell them, for each of the learnt ratings.

    A cold user's rating has no part in what is known of its item. What a model reads of a rating
    that it learns should not have either, or it learns to trust items of few ratings too much.
    Users' biases and factors stay as they are.

    Args:
      factors: of `ratings`.
      ratings: those that were learnt, by the ridge that is the default.

    Returns:
      float64 [n] b_i and float64 [n, d] q_i.
    """
    users, items, p = ratings.users, ratings.items, factors.users
    rows, dim = factors.items.shape
    left = ratings.values - factors.mean - factors.user_bias[users]
    others = np.bincount(items, minlength=rows)[items] - 1
    bias = (np.bincount(items, left, rows)[items] - left) / (others + factors.shrink)
    there, told = (
        dataclasses.replace(ratings, values=values).matrix(len(p), rows - 1).T
        for values in (np.ones(len(ratings)), left)
    )
    squares = _squares(p)
    gram, total, weighed = there @ squares, there @ p, told @ p
    found = np.zeros((len(ratings), dim))
    for start in range(0, len(ratings), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        u, i = users[some], items[some]
        matrix = (gram[i] - squares[u]).reshape(-1, dim, dim) + _RIDGE * factors.metric
        wanted = weighed[i] - left[some, None] * p[u] - bias[some, None] * (total[i] - p[u])
        found[some] = np.linalg.solve(matrix, wanted[..., None])[..., 0]
    return bias, found


def _alternating(residual, dim, sweeps=_SWEEPS, ridge=(_RIDGE, 0.0)):
    """(P, Q) float64 that minimise |R - P Q^T|^2 at its entries + ridge (|P|^2 + |Q|^2).

    Their columns are then turned and stretched; the third is what |Q|^2 is in them, see `Factors`.
    """
    shape = residual.shape
    if not dim:
        return np.zeros((shape[0], 0)), np.zeros((shape[1], 0)), np.zeros((0, 0))
    there = residual.copy()
    there.data[:] = 1
    sides = (residual, there), (residual.T.tocsr(), there.T.tocsr())
    q = np.random.default_rng(0).normal(0, 0.1, (shape[1], dim))
    q[np.diff(sides[1][0].indptr) == 0] = 0
    for _ in range(sweeps):
        p = _solved(*sides[0], q, ridge)
        q = _solved(*sides[1], p, ridge)
    (p, left), (q, right) = np.linalg.qr(p), np.linalg.qr(q)
    u, lengths, v = np.linalg.svd(left @ right.T)
    sign = np.where((q @ v.T).sum(0) < 0, -1, 1)  # of two equal solutions always the same one
    scale = np.sqrt(lengths) * sign
    turned = np.linalg.pinv(left) @ u * scale  # of the columns of P; of Q its inverse, transposed
    there = lengths > 1e-9 * lengths[0]  # few users or items leave columns without anything
    metric = np.where(np.outer(there, there), turned.T @ turned, np.diag(1.0 - there))
    return p @ u * scale, q @ v.T * scale, metric


def _squares(x):
    """[n, d * d], x_i^T x_i of every row."""
    return (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)


def _solved(residual, there, other, ridge):
    """Ridge regressions of every row's residuals on the factors of the other side."""
    dim, counts = other.shape[1], np.diff(there.indptr)
    added = (ridge[0] + ridge[1] * counts)[:, None, None] * np.eye(dim)
    gram = (there @ _squares(other)).reshape(-1, dim, dim) + added
    return np.linalg.solve(gram, (residual @ other)[..., None])[..., 0]


def liked(ratings: Triples, num_users: int, most: int) -> np.ndarray:
    """int32 [U, most], the last items that every user rated above LIKED, 0 = none.

    The order is that of the ratings; item numbers begin at 1, so that none is taken for padding.
    """
    kept = np.flatnonzero(ratings.values > LIKED)
    order = kept[np.argsort(ratings.users[kept], kind='stable')]
    counts = np.bincount(ratings.users[order], minlength=num_users)
    length = np.minimum(counts, most)
    chosen = order[ranges(np.cumsum(counts) - length, length)]
    found = np.zeros((num_users, most), np.int32)
    row = ratings.users[chosen]
    found[row, ranges(np.zeros_like(length), length)] = ratings.items[chosen]
    return found


class RatingBatches(problem.Batches):
    """Batches of ratings; an epoch has every one once, in a new order.

    Args:
      ratings: to learn.
      rows: of a batch, over all processes.
      seed: of the order.
      process: (index, count) of this process; it gets its slice of the rows.
      rivals: whether every rating comes with another of its user, drawn anew each time, of which
        one is above LIKED and one is not.

    Raises:
      UserError: rows that do not divide over processes; rivals, and no rating has one.
    """

    def __init__(
        self,
        ratings: Triples,
        *,
        rows: int,
        seed: int,
        process: tuple[int, int],
        rivals: bool = False,
    ):
        if rows % process[1]:
            raise UserError(f'train.batch_rows={rows} does not divide over {process[1]} processes')
        self._ratings, self._seed, self._process = ratings, seed, process
        self._rivals = Rivals(ratings) if rivals else None
        self.rows = rows
        self.examples_per_epoch = self.targets_per_epoch = len(ratings)
        self.steps_per_epoch = -(-len(ratings) // rows)
        self.fill = len(ratings) / (rows * self.steps_per_epoch)

    def __call__(self, step: int) -> problem.Batch:
        """Batch number `step`, see `rating_batch`."""
        epoch, some = self.place(step, len(self._ratings))
        chosen = self.of_epoch(epoch, self._order)[some]
        batch = rating_batch(self._ratings.take(chosen), self.rows)
        if self._rivals is not None:
            draws = rng.host(self._seed, rng.NEGATIVES, step).random(len(chosen))
            rivals, there = self._rivals(chosen, draws)
            other = rating_batch(self._ratings.take(rivals), self.rows)
            batch |= {f'rival_{name}': other[name] for name in other if name != 'users'}
            batch['rival_weights'][: len(chosen)] = there
        return part(batch, *self._process)

    def _order(self, epoch):
        return rng.host(self._seed, rng.ORDER, epoch).permutation(len(self._ratings))


class Rivals:
    """Of every rating those of the same user on the other side of LIKED."""

    def __init__(self, ratings: Triples):
        side = 2 * ratings.users.astype(np.int64) + (ratings.values > LIKED)
        self._order = np.argsort(side, kind='stable')
        ends = np.searchsorted(side[self._order], [side ^ 1, (side ^ 1) + 1])
        self._first, self._count = ends[0], ends[1] - ends[0]
        if not self._count.any():
            raise UserError(
                f'no user has ratings both above {LIKED} and not: there is no order to learn'
            )

    def __call__(self, chosen: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places int64 [n] of a rival of each, and bool [n] whether it has one; else itself.

        Args:
          chosen: int64 [n], places of ratings.
          draws: [n] in [0, 1), which rival.
        """
        count = self._count[chosen]
        there = count > 0
        place = self._first[chosen] + (draws * count).astype(np.int64)
        return np.where(there, self._order[np.where(there, place, 0)], chosen), there


def rating_batch(ratings: Triples, rows: int) -> problem.Batch:
    """users, items int32 [rows], ratings, weights float32 [rows]; 0 everywhere beyond `ratings`.

    And what ratings have `beside`, [rows, ..].
    """
    missing = (0, rows - len(ratings))
    beside = {
        name: np.pad(column, (missing, *((0, 0) for _ in column.shape[1:])))
        for name, column in ratings.beside.items()
    }
    return beside | {
        'users': np.pad(ratings.users, missing).astype(np.int32),
        'items': np.pad(ratings.items, missing).astype(np.int32),
        'ratings': np.pad(ratings.values, missing).astype(np.float32),
        'weights': np.pad(np.ones(len(ratings), np.float32), missing),
    }
