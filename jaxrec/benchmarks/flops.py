"""Useful floating-point operations of a training step: what the mathematics needs, no more.

Padding, the masked half of attention, anything computed twice, and everything that is not a matrix
product (LayerNorm, softmax, dropout, the optimiser) count nothing. With d = dim, f = ffn, one
multiply-add as 2 operations, the forward pass costs

  each real token and block   '2018'    6 d^2 + 4 f d^2       q, k, v; two feed-forward layers
                              'pre_ln'  8 d^2 + 4 f d^2       and the output projection
                              'ligr'   12 d^2 + 6 f d^2       and two gates; SwiGLU has three layers
  each pair of tokens (query, key it may see) and block   4 d       q k^T and the weighted sum of v
  each target                 softmax   2 d items             one score per item
                              others    2 d (1 + negatives)   one score per candidate

where a window of n tokens has n (n + 1) / 2 pairs. Forward and backward together are three times
the forward pass.
"""

import numpy as np

from jaxrec.experiment import Experiment
from jaxrec.models import sasrec

DENSE = {'2018': (6, 4), 'pre_ln': (8, 4), 'ligr': (12, 6)}  # multiples of d^2 and of f d^2


def train_flops(experiment: Experiment, num_items: int, batch: dict) -> float:
    """Useful operations of one step on a packed batch, forward and backward.

    Args:
      experiment: with a SASRec as model; nan for another kind of model, and for cuts and features,
        whose operations are not counted here.
      num_items: size of the catalogue.
      batch: `segments` int [B, L], as `packed.TrainBatches` makes it.
    """
    model = experiment.model
    if not isinstance(model, sasrec.Config) or model.loss == 'in_batch' or model.features:
        return float('nan')
    from_data = model.negatives_per == 'data'
    negatives = experiment.task.unseen_negatives if from_data else model.negatives
    tokens, pairs = tokens_and_pairs(batch['segments'])
    return 3 * forward_flops(model, num_items, negatives, tokens, pairs)


def forward_flops(
    model: sasrec.Config, num_items: int, negatives: int, tokens: int, pairs: int
) -> float:
    """Useful operations of the forward pass, see the head of this file."""
    dense, inner = DENSE[model.variant]
    per_token = (dense + inner * model.ffn) * model.dim**2
    candidates = num_items if model.loss == 'softmax' else 1 + negatives
    encoder = model.blocks * (tokens * per_token + pairs * 4 * model.dim)
    return encoder + tokens * 2 * model.dim * candidates


def tokens_and_pairs(segments: np.ndarray) -> tuple[int, int]:
    """Real tokens, and pairs (query, key not after it) within windows, of rows int [B, L]."""
    rows = np.arange(len(segments))[:, None] * (int(segments.max(initial=0)) + 1)
    lengths = np.bincount((segments + rows)[segments > 0]).astype(np.int64)
    return int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum())


def softmax_flops(tokens: int, items: int, dim: int) -> float:
    """Value and gradients of the exact softmax: three products of tokens x items x dim."""
    return 6.0 * tokens * items * dim
