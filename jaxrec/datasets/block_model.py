"""Generated graphs whose communities are the classes, for tests and for trying things out.

A stochastic block model with the words of a document as features: most edges stay within a class,
and most of a node's features are among those of its class. All classes are equally large.
"""

import dataclasses

import numpy as np
import scipy.sparse

from jaxrec.data.graph import Graph, undirected
from jaxrec.datasets import parameters
from jaxrec.errors import UserError

NAME = 'block-model'


@dataclasses.dataclass
class Parameters:
    """What `block-model:nodes=300,classes=3` sets."""

    nodes: int = 300
    classes: int = 3
    features: int = 60
    words: int = 5  # features of a node, drawn with repetition
    degree: float = 5.0  # mean
    within: float = 0.8  # share of the edges inside a class
    own: float = 0.4  # share of a node's features from its class, beside the uniform ones
    train: int = 5  # labelled nodes of each class to train on
    valid: int = 60
    test: int = 120
    seed: int = 0


def parse(argument: str) -> Parameters:
    """Reads 'nodes=300,seed=3'.

    Raises:
      UserError: unknown parameter, or not a number, or a value that makes no sense.
    """
    p = parameters.parse(Parameters, NAME, argument)
    if p.classes < 2 or p.features < p.classes or min(p.words, p.train) < 1:
        raise UserError(f'{NAME} needs features >= classes >= 2, words >= 1, train >= 1')
    if not (0 <= p.within <= 1 and 0 <= p.own <= 1 and p.degree > 0):
        raise UserError(f'{NAME} needs within and own in [0, 1] and degree > 0')
    if p.train * p.classes + p.valid + p.test > p.nodes or min(p.valid, p.test) < 1:
        raise UserError(f'{NAME}: train of each class, valid and test are more than the nodes')
    return p


def generate(p: Parameters) -> Graph:
    """The graph with sparse features of 1; the same for the same parameters."""
    rng = np.random.default_rng(p.seed)
    labels = rng.permutation(np.arange(p.nodes) % p.classes).astype(np.int32)
    members = [np.flatnonzero(labels == c) for c in range(p.classes)]
    draws = round(p.nodes * p.degree / 2)
    low = rng.integers(0, p.nodes, draws)
    inside = np.array([rng.choice(members[c]) for c in labels[low]])
    high = np.where(rng.random(draws) < p.within, inside, rng.integers(0, p.nodes, draws))
    each = p.features // p.classes
    own = labels[:, None] * each + rng.integers(0, each, (p.nodes, p.words))
    words = rng.integers(0, p.features, own.shape)
    words = np.where(rng.random(own.shape) < p.own, own, words)
    rows = np.repeat(np.arange(p.nodes), p.words)
    counts = scipy.sparse.coo_array(
        (np.ones(words.size, np.float32), (rows, words.reshape(-1))), (p.nodes, p.features)
    ).tocsr()
    counts.sum_duplicates()
    counts.data[:] = 1
    train = np.concatenate([m[: p.train] for m in members])
    rest = rng.permutation(np.setdiff1d(np.arange(p.nodes), train))
    parts = [train, rest[: p.valid], rest[p.valid : p.valid + p.test]]
    return Graph(
        p.nodes,
        undirected(np.stack([low, high])),
        counts,
        labels,
        *(np.sort(part).astype(np.int32) for part in parts),
        name=NAME,
    )
