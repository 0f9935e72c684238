"""Losses: pure functions of scores or vectors, one value per target; the caller weighs and reduces.

Exceptions are the exact softmax and InfoNCE among nodes: they make their gradients in the forward
pass, so they take the weights and return the weighted mean.
"""

from jaxrec.losses.contrastive import (
    alignment,
    info_nce,
    info_nce_queue,
    negative_cosine,
    sinkhorn,
    spread,
    swapped_prediction,
    triplet,
    uniformity,
    unit,
)
from jaxrec.losses.gaussian import gaussian_kl
from jaxrec.losses.nodes import info_nce_among, info_nce_of_shares, shares_of
from jaxrec.losses.pointwise import bce, bpr, gbce, weighted_mean
from jaxrec.losses.sampled import in_batch_softmax, sampled_softmax, scores
from jaxrec.losses.softmax import in_domain, softmax

__all__ = [
    'alignment',
    'bce',
    'bpr',
    'gaussian_kl',
    'gbce',
    'in_batch_softmax',
    'in_domain',
    'info_nce',
    'info_nce_among',
    'info_nce_of_shares',
    'info_nce_queue',
    'negative_cosine',
    'sampled_softmax',
    'scores',
    'shares_of',
    'sinkhorn',
    'softmax',
    'spread',
    'swapped_prediction',
    'triplet',
    'uniformity',
    'unit',
    'weighted_mean',
]
