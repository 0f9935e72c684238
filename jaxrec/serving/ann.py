"""A graph of the items that finds most of the best ones without looking at all of them.

HNSW (Malkov & Yashunin 2018) over inner products, by faiss; needs `jaxrec[ann]`. Items get one
dimension more, which makes all equally long, and queries 0 there (Bachrach et al. 2014, section 3):
no inner product changes, and no item is left without neighbours because it is short.
"""

from typing import Any

import numpy as np

LEAST = 0.99  # recall that a search is widened for
_LINKS, _BUILD = 32, 100  # of an item; considered in building
_SEARCH = 64  # considered in a search, at first


def built(items: np.ndarray) -> Any:
    """faiss.IndexHNSWFlat of vectors float32 [n, D], an item's at its number - 1; see `search`."""
    import faiss

    squares = np.square(items, dtype=np.float32).sum(1, keepdims=True)
    longer = np.concatenate([items, np.sqrt(squares.max(initial=0) - squares)], 1)
    index = faiss.IndexHNSWFlat(longer.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD
    index.add(np.ascontiguousarray(longer, np.float32))
    return index


def search(index: Any, queries: np.ndarray, k: int) -> np.ndarray:
    """int64 [n, k] of the index's items for queries float32 [n, D], best first, -1 = none found."""
    return index.search(np.pad(queries, ((0, 0), (0, 1))), k)[1]


def widen(index: Any, queries: np.ndarray, best: np.ndarray, least: float = LEAST) -> float:
    """Has a search consider more and more until it finds `least` of the best; the recall then.

    Args:
      index: of `built`; keeps the width, in its file too.
      queries: float32 [n, D].
      best: int [n, k], items as the index numbers them, the best by all inner products.
      least: share of `best` that is to be found.
    """
    index.hnsw.efSearch = _SEARCH
    while True:
        found = search(index, queries, best.shape[1])
        reached = recall(found, best)
        if reached >= least or index.hnsw.efSearch >= index.ntotal:
            return reached
        index.hnsw.efSearch = index.hnsw.efSearch * 5 // 4


def recall(found: np.ndarray, best: np.ndarray) -> float:
    """Mean share of each row of `best` that is in the same row of `found`, int [n, k]."""
    return float(np.mean([np.isin(b, f).mean() for f, b in zip(found, best, strict=True)]))
