"""Softmax over the targets of a batch (and uniform draws), corrected for how they were drawn.

The candidates are the items that the rows of the whole batch, over all devices, have as targets:
popular items come often, so log of the expected number of draws, logQ, is taken from each score
(Yi et al. 2019). How often an item comes is counted by the data pipeline, or estimated on the way
by `estimate`.

`InBatch`, `sample`, `start` and `loss` are all that a model needs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.config import field
from jaxrec.devices.mesh import on_mesh, replicated, reshape_rows
from jaxrec.losses import weighted_mean
from jaxrec.losses.sampled import in_batch_softmax, scores
from jaxrec.nn.embeddings import Rows, lookup
from jaxrec.objectives.frequency import estimate, estimate_share, start_estimate


@dataclasses.dataclass
class InBatch:
    """Settings of the in-batch softmax."""

    # frequencies for the correction: counted by the data pipeline, or estimated on the way with
    # time in examples or, as in the paper, in batches (see jaxrec.objectives.frequency)
    logq: str = field('counted', choices=('counted', 'examples', 'streaming', 'none'))
    rate: float = field(0.01, above=0, below=1, traced=True)  # weight of the newest gap
    refined: bool = False  # logQ as in arXiv 2507.09331
    smoothing: float = field(0.0, least=0, below=1)  # KuaiFormer's
    uniform: int = field(0, least=0)  # negatives per batch drawn uniformly, besides the targets
    own_history: bool = False  # items of the user's own window count as negatives


def loss(
    config: InBatch,
    queries: jax.Array,
    table: jax.Array | Rows,
    batch: dict,
    carry: dict,
    num_items: int,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
    """In-batch softmax of cuts (`cuts.CutBatches`), its terms, and the next carry.

    Each of the N candidates, the targets of all rows and the uniform draws, has its own logQ: log
    of N times the chance of the item where the candidate comes from, so that both parts estimate
    the same sum over the catalogue.

    Args:
      config: settings.
      queries: [B, G, K, D] user vectors of G cuts per row.
      table: [rows, D] item table.
      batch: targets int32, weights and log_share float32 [B, G], items int32 [B, W]; with uniform
        negatives `sampled` int32 [config.uniform], see `sample`.
      carry: of `start`.
      num_items: of the catalogue.

    Returns:
      Scalar, and the terms in_batch (the same), accuracy (share of the targets that score higher
      than all their candidates, corrected scores) and, for K > 1, largest_win (share of the targets
      that the most frequent winner among the K vectors wins: near 1, the others are dead).
    """
    carry = {name: carry[name] for name in carry if name == 'frequency'}
    if carry:
        batch, carry = _estimated(config, batch, carry)
    rows, count = batch['targets'].shape

    def flat(x):
        return reshape_rows(x, (rows * count, *x.shape[2:]))

    queries, targets, weights = flat(queries), flat(batch['targets']), flat(batch['weights'])
    log_q = flat(batch['log_share'])
    candidates, candidates_log_q = replicated(targets), replicated(log_q)
    if config.uniform:
        drawn = batch['sampled']
        candidates = jnp.concatenate([candidates, drawn])
        uniform = jnp.full(len(drawn), -jnp.log(jnp.float32(num_items)))
        candidates_log_q = jnp.concatenate([candidates_log_q, uniform])
    if config.logq == 'none':
        log_q, candidates_log_q = 0.0, 0.0
    else:
        log_n = jnp.log((candidates > 0).sum().astype(jnp.float32))
        log_q, candidates_log_q = log_q + log_n, candidates_log_q + log_n
    by_vector = jnp.einsum(
        'bkd,bd->bk', queries, lookup(table, targets), preferred_element_type=jnp.float32
    )
    positive = by_vector.max(1)
    negatives = scores(queries, lookup(table, candidates))
    own = jnp.concatenate([batch['items'], batch['targets']], axis=1)
    shown = flat(allowed(candidates, batch['targets'], own, own_history=config.own_history))
    values = in_batch_softmax(
        positive,
        negatives,
        shown,
        log_q_positive=log_q,
        log_q_negatives=candidates_log_q,
        smoothing=config.smoothing,
        refined=config.refined,
    )
    value = weighted_mean(values, weights)
    best = jnp.where(shown, negatives - candidates_log_q, -jnp.inf).max(1)
    right = (positive - log_q > best).astype(jnp.float32)
    terms = {'in_batch': value, 'accuracy': weighted_mean(right, weights)}
    if by_vector.shape[1] > 1:
        won = jax.nn.one_hot(by_vector.argmax(1), by_vector.shape[1])
        terms['largest_win'] = jax.vmap(weighted_mean, (1, None))(won, weights).max()
    return value, (terms, carry)


def sample(config: InBatch, batch: dict, key: jax.Array, num_items: int) -> dict:
    """The batch with the uniform negatives of this step under 'sampled', if there are to be any."""
    if not config.uniform:
        return batch
    drawn = jax.random.randint(key, (config.uniform,), 1, num_items + 1)
    return {**batch, 'sampled': drawn}


def start(config: InBatch, num_items: int) -> dict[str, Any]:
    """The first carry: the frequency estimate, if there is one."""
    if config.logq == 'examples':
        return {'frequency': start_estimate(num_items, gap=float(num_items))}
    return {'frequency': start_estimate(num_items)} if config.logq == 'streaming' else {}


def _estimated(config, batch, carry) -> tuple[dict, dict]:
    """The batch with its log_share from the estimate, and the next carry."""
    targets = replicated(batch['targets'])
    if config.logq == 'examples':
        frequency, log_share = estimate_share(carry['frequency'], targets.reshape(-1), config.rate)
    else:
        frequency, log_q = estimate(carry['frequency'], targets.reshape(-1), config.rate)
        # Q is the chance to be in a batch; `loss` wants a share of the batch's targets
        log_share = log_q - jnp.log((targets > 0).sum().astype(jnp.float32))
    log_share = log_share.reshape(targets.shape)
    if on_mesh():
        log_share = jax.reshard(log_share, P('data', None))
    return {**batch, 'log_share': log_share}, {'frequency': frequency}


def allowed(
    candidates: jax.Array, targets: jax.Array, history: jax.Array, *, own_history: bool
) -> jax.Array:
    """bool [B, G, N], the candidates that count as negatives of each target.

    Never padding (0) or the target itself, so that an item drawn twice is no negative of itself;
    and with `own_history` False none of the row's own items either.

    Args:
      candidates: int32 [N] item numbers.
      targets: int32 [B, G].
      history: int32 [B, L] the user's own items, targets among them, 0 = padding.
      own_history: whether these count.
    """
    keep = (candidates > 0) & (candidates != targets[..., None])
    if own_history:
        return keep
    split = P('data', None)
    holds = _holds
    if on_mesh():
        holds = jax.shard_map(_holds, in_specs=(split, P()), out_specs=split)
    return keep & ~holds(history, candidates)[:, None]


def _holds(history, candidates):
    """bool [B, N], whether a row [L] of the history has the candidate."""
    ordered = jnp.sort(history, axis=1)
    place = jax.vmap(lambda row: jnp.searchsorted(row, candidates))(ordered)
    place = jnp.minimum(place, history.shape[1] - 1)
    return jnp.take_along_axis(ordered, place, axis=1) == candidates
