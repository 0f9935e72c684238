"""Lists by the last item of a history alone: what an item-to-item model has to beat.

item_cf     users of both, over the root of the product of each one's users
tfidf       cosine of TF-IDF over all words of the titles
texts       cosine of the texts' vectors, as the model reads them
..+tfidf    item_cf plus a tenth of the cosine; ..+model with the cosine of the model's vectors
"""

from typing import Any

import numpy as np
import scipy.sparse

from jaxrec.data import text_encoders
from jaxrec.evaluation import linear

_SHARE = 0.1


def counts(task: Any, vectors: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(greater, ties) int64 of all targets by name, as `linear.counts` has them.

    Args:
      task: a `ranking.Ranking` among the whole catalogue.
      vectors: float32 [rows, D], of items by the model.
    """
    known = linear.matrix(task.histories, task.split.train_ends)
    given = linear.before(task)[1]
    last = last_items(task)
    near = item_cf(known)
    collaborative = lambda rows: (rows @ near).toarray()  # noqa: E731
    own = vectors[1 : known.shape[1] + 1]
    own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
    scorers = {'item_cf': collaborative, 'model_cosine': cosine(own)}
    if task.texts is not None:
        scorers['texts'] = cosine(task.texts.vectors[1:])
    if task.histories.titles is not None:
        words = tf_idf(task.histories.titles)
        scorers['tfidf'] = lambda rows: ((rows @ words) @ words.T).toarray()
    mixed = {
        f'item_cf+{name}': lambda rows, other=scorers[scorer]: (
            collaborative(rows) + _SHARE * other(rows)
        )
        for name, scorer in (('tfidf', 'tfidf'), ('texts', 'texts'), ('model', 'model_cosine'))
        if scorer in scorers
    }
    del scorers['model_cosine']
    return {
        name: linear.ranked(scorer, task, last, given) for name, scorer in (scorers | mixed).items()
    }


def last_items(task: Any) -> scipy.sparse.csr_array:
    """float64 [examples, items], 1 at the newest item before the targets; empty where none is."""
    ends, starts = task.targets.ends, task.histories.offsets[task.targets.users]
    rows = np.flatnonzero(ends > starts)
    items = task.histories.items[ends[rows] - 1] - 1
    shape = (len(ends), task.histories.num_items)
    return scipy.sparse.csr_array((np.ones(len(rows)), (rows, items)), shape)


def item_cf(known: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """float64 [items, items], users of both over the root of each one's; 0 of an item itself."""
    scale = 1 / np.sqrt(np.maximum(np.asarray(known.sum(0), np.float64), 1))
    scaled = known @ scipy.sparse.diags_array(scale)
    return linear.together(scaled)


def tf_idf(titles: np.ndarray) -> scipy.sparse.csr_array:
    """float32 [items, words], rows of length 1 or 0."""
    words, frequency = text_encoders.vocabulary(titles)
    number = {word.decode(): n for n, word in enumerate(words.tolist())}
    weights = text_encoders.inverse_frequency(frequency, len(titles))
    return text_encoders.normed(text_encoders.count(titles, number), weights)


def cosine(vectors: np.ndarray) -> linear.Scores:
    """Scores by products of unit vectors float32 [items, d]."""
    return lambda rows: (rows.astype(np.float32) @ vectors) @ vectors.T
