"""Ratings of cold users without training a model: what one has to beat.

Biases, a common factorisation, mapped factors and neighbours; of the training ratings alone.
Published systems whose base is a dot product without biases lose to the first of them.
"""

import numpy as np

from jaxrec.data.ratings import SHRINK, ColdStart, Factors, Triples, factorise

NAMES = ('mean', 'item_mean', 'item_source_bias', 'cmf', 'emcdr', 'source_knn')
_RIDGE = 1.0  # of a map between factors, in users
_FAR = 1.0  # likeness to somebody who has nothing to say, which neighbours begin with


class Bases:
    """Factorisations of both domains, and how a user's bias in one is that in the other.

    Args:
      data: the split.
      dim: of the factors.
      shrink: ratings at the mean that a bias begins with.

    Attributes:
      source, target: `Factors` of each domain's training ratings.
      slope: k, by which a source user's bias counts in the target domain.
    """

    def __init__(self, data: ColdStart, dim: int, shrink: float = SHRINK):
        self.data, self.dim = data, dim
        sizes = data.num_users, data.num_items
        self.source = factorise(data.source, *sizes, dim, shrink=shrink)
        self.target = factorise(data.train, *sizes, dim, shrink=shrink)
        self.slope = self._slope()

    def _slope(self):
        """Least squares of r - mean - b_i on b_u of the source, over users of both domains."""
        train = self.data.train
        bias = self.source.user_bias[train.users]  # 0 of who is not in the source
        left = train.values - self.target.of_items(train.items)
        return float((bias * left).sum() / max((bias**2).sum(), 1e-9))

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """float64 [n], mean + b_i + k b_u: what every model here begins with."""
        return self.target.of_items(items) + self.slope * self.source.user_bias[users]

    def taught(self) -> np.ndarray:
        """int [n], users of both domains whose target ratings are learnt."""
        return np.intersect1d(self.data.source.users, self.data.train.users)

    def taught_ratings(self) -> np.ndarray:
        """int [n], places of theirs among the training ratings."""
        return np.flatnonzero(np.isin(self.data.train.users, self.taught()))


def predictions(bases: Bases, cold: Triples) -> dict[str, np.ndarray]:
    """float64 [n] of the ratings `cold`, by NAMES.

    mean: of the target's training ratings. item_mean: with the item's bias, shrunk and free of the
    users' (a factorisation of the target alone has no more to say of a cold user).
    item_source_bias: with the user's bias in the source, times the slope fitted on training users.
    cmf: biases and factors of users that both domains share (Singh & Gordon, KDD 2008). emcdr:
    factors of the source mapped by the least-squares matrix of training users (Man et al., IJCAI
    2017), on item_source_bias. source_knn: what item_source_bias leaves, averaged over training
    users by the cosine of theirs in the source.
    """
    users, items = cold.users, cold.items
    target, base = bases.target, bases.predict(users, items)
    mapped = bases.source.users @ linear_map(bases)
    return {
        'mean': np.full(len(cold), target.mean),
        'item_mean': target.of_items(items),
        'item_source_bias': base,
        'cmf': _common(bases)(users, items),
        'emcdr': base + (mapped[users] * target.items[items]).sum(-1),
        'source_knn': base + _neighbours(bases, users, items),
    }


def linear_map(bases: Bases, ridge: float = _RIDGE) -> np.ndarray:
    """float64 [d, d], W of the least |P_t - P_s W|^2 + ridge |W|^2 over training users of both."""
    both = bases.taught()
    p, wanted = bases.source.users[both], bases.target.users[both]
    return np.linalg.solve(p.T @ p + ridge * np.eye(bases.dim), p.T @ wanted)


def _common(bases):
    """Predictions of one factorisation of both domains, each about its own mean."""
    data = bases.data
    pairs = zip(*((x.users, x.items, x.values) for x in (data.source, data.train)), strict=True)
    both = Triples(*map(np.concatenate, pairs))
    means = np.select([data.domain == 1, data.domain == 2], [bases.source.mean, bases.target.mean])
    sizes, shrink = (data.num_users, data.num_items), bases.target.shrink
    found = factorise(both, *sizes, bases.dim, means, shrink=shrink)

    def predict(users, items):
        biases = means[items] + found.item_bias[items] + found.user_bias[users]
        return biases + (found.users[users] * found.items[items]).sum(-1)

    return predict


def _neighbours(bases, users, items):
    """float64 [n] mean residuals of training users, weighted by their likeness in the source."""
    data, both = bases.data, bases.taught()
    if not len(both):
        return np.zeros(len(users))
    residuals = _residuals(bases.source, data.source, bases.source.user_bias)
    likeness = residuals.matrix(data.num_users, data.num_items)
    length = np.sqrt(np.asarray(likeness.multiply(likeness).sum(1)).reshape(-1))
    wanted, row = np.unique(users, return_inverse=True)
    similar = (likeness[wanted] @ likeness[both].T).toarray()
    similar /= np.maximum(length[wanted][:, None] * length[both], 1e-9)
    similar = np.maximum(similar, 0)
    train = data.train.take(bases.taught_ratings())
    left = train.values - bases.target.of_items(train.items) - bases.target.user_bias[train.users]
    number = np.searchsorted(both, train.users).astype(np.int32)
    rated = Triples(number, train.items, left.astype(np.float32)).matrix(len(both), data.num_items)
    there = rated.copy()
    there.data[:] = 1
    total, weight = similar @ rated, similar @ there
    return (total / (weight + _FAR))[row, items]


def _residuals(factors: Factors, ratings: Triples, user_bias: np.ndarray) -> Triples:
    """What the biases leave of ratings."""
    left = ratings.values - factors.of_items(ratings.items) - user_bias[ratings.users]
    return Triples(ratings.users, ratings.items, left.astype(np.float32))
