"""The next-item objective: its losses at every event of packed rows, and what they draw."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import P

from jaxrec import losses
from jaxrec.devices.mesh import on_mesh
from jaxrec.devices.tuning import tuning
from jaxrec.nn.embeddings import Rows, lookup

LOSSES = ('softmax', 'sampled_softmax', 'bce', 'gbce')


def loss(
    config: Any, hidden: jax.Array, table: jax.Array | Rows, batch: dict, num_items: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of the next item at every position of packed rows, and its named term.

    Args:
      config: loss, label_smoothing, gbce_t, logq and multi_signal of the model.
      hidden: [B, L, D] vectors after every event.
      table: [rows, D] item table.
      batch: targets int32 and weights [B, L]; `sampled` unless the loss is softmax, see `sample`;
        `rewards` [B, L], which are labels of bce with multi_signal.main='label'.
      num_items: of the catalogue.
    """
    targets, weights = batch['targets'], batch['weights']
    if config.loss == 'softmax':
        value = losses.softmax(
            hidden,
            table.astype(hidden.dtype),
            targets,
            weights,
            num_items=num_items,
            label_smoothing=config.label_smoothing,
        )
        return value, {'softmax': value}
    negatives = batch['sampled']
    positive = (hidden * lookup(table, targets)).sum(-1)
    scores = negative_scores(hidden, table, negatives)
    if config.loss == 'bce':
        soft = config.multi_signal.main == 'label'
        values = losses.bce(positive, scores, batch.get('rewards') if soft else None)
    elif config.loss == 'gbce':
        values = losses.gbce(positive, scores, num_items=num_items, t=config.gbce_t)
    else:
        expected = negatives.shape[-1] / num_items  # draws of each item
        values = losses.sampled_softmax(
            positive,
            scores,
            hits=negatives == targets[..., None],
            log_q_negatives=jnp.log(expected) if config.logq else 0.0,
        )
    value = losses.weighted_mean(values, weights)
    return value, {config.loss: value}


def sample(config: Any, batch: dict, key: jax.Array, num_items: int) -> dict:
    """The batch with its negatives under 'sampled': int32 [B, L, k], [B, 1, k] or [1, 1, k].

    Args:
      config: loss, negatives and negatives_per of the model.
      batch: packed rows; with negatives_per='data' they bring `negatives` int32 [B, L, k].
      key: of the draws.
      num_items: of the catalogue.
    """
    if config.loss == 'softmax':
        return batch
    if config.negatives_per == 'data':
        return {**batch, 'sampled': batch['negatives']}
    (b, l), k = batch['items'].shape, config.negatives
    shape = {'batch': (1, 1, k), 'row': (b, 1, k), 'position': (b, l, k)}[config.negatives_per]
    split = P('data', None, None) if shape[0] > 1 and on_mesh() else None
    drawn = jax.random.randint(key, shape, 1, num_items + 1, out_sharding=split)
    return {**batch, 'sampled': drawn}


def negative_scores(hidden: jax.Array, table: jax.Array | Rows, negatives: jax.Array) -> jax.Array:
    """Scores [B, L, k] of negatives [B or 1, L or 1, k] under hidden [B, L, D].

    Negatives of single positions are walked in chunks along L and looked up again in the backward
    pass, so that [B, L, k, D] never exists.
    """
    if negatives.shape[:2] == (1, 1):  # one set for the batch
        return jnp.einsum('bld,kd->blk', hidden, lookup(table, negatives[0, 0]))
    if negatives.shape[1] == 1:  # one set per row
        return jnp.einsum('bld,bkd->blk', hidden, lookup(table, negatives[:, 0]))

    @jax.checkpoint
    def scores(x):
        h, ids = x
        return jnp.einsum('bd,bkd->bk', h, lookup(table, ids))

    if negatives.size * hidden.shape[-1] <= tuning().looked_up:
        return jnp.einsum('bld,blkd->blk', hidden, lookup(table, negatives))
    by_position = (jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(negatives, 1, 0))
    return jnp.moveaxis(jax.lax.map(scores, by_position), 0, 1)
