"""Softmax over the targets of a batch (and uniform draws), corrected for how they were drawn.

The candidates are the items that the rows of the whole batch, over all devices, have as targets:
popular items come often, so log of the expected number of draws, logQ, is taken from each score
(Yi et al. 2019). How often an item comes is counted by the data pipeline, or estimated on the way
by `estimate`.

`InBatch` and `loss` are all that a model needs; `InBatchModel` passes on `sample`, `init_memory`
and `remember`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from jaxrec import sharding
from jaxrec.cli import UserError
from jaxrec.losses import weighted_mean


@dataclasses.dataclass
class InBatch:
    """Settings of the in-batch softmax."""

    logq: str = 'counted'  # frequencies: counted | streaming | none (no correction)
    rate: float = 0.01  # streaming: weight of the newest gap
    refined: bool = False  # logQ as in arXiv 2507.09331
    smoothing: float = 0.0  # KuaiFormer's, in [0, 1)
    uniform: int = 0  # negatives per batch drawn uniformly from the catalogue, besides the targets
    own_history: bool = False  # items of the user's own window count as negatives

    def check(self) -> None:
        """Raises UserError for a value that cannot be."""
        if self.logq not in ('counted', 'streaming', 'none'):
            raise UserError(
                f'model.in_batch.logq={self.logq!r} is not one of counted, streaming, none'
            )
        if not 0 < self.rate < 1:
            raise UserError(f'model.in_batch.rate={self.rate} is not between 0 and 1')
        if not 0 <= self.smoothing < 1:
            raise UserError(f'model.in_batch.smoothing={self.smoothing} is not in [0, 1)')
        if self.uniform < 0:
            raise UserError(f'model.in_batch.uniform={self.uniform} must not be negative')


def loss(
    config: InBatch, queries: jax.Array, table: jax.Array, batch: dict, num_items: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """In-batch softmax of cuts (`cuts.CutBatches`), and its terms.

    Each of the N candidates, the targets of all rows and the uniform draws, has its own logQ: log
    of N times the chance of the item where the candidate comes from, so that both parts estimate
    the same sum over the catalogue.

    Args:
      config: settings.
      queries: [B, G, K, D] user vectors of G cuts per row.
      table: [rows, D] item table.
      batch: targets int32, weights and log_share float32 [B, G], items int32 [B, W]; with uniform
        negatives `sampled` int32 [config.uniform], see `sample`.
      num_items: of the catalogue.

    Returns:
      Scalar, and the terms in_batch (the same), accuracy (share of the targets that score higher
      than all their candidates, corrected scores) and, for K > 1, largest_win (share of the targets
      that the most frequent winner among the K vectors wins: near 1, the others are dead).
    """
    rows, count = batch['targets'].shape

    def flat(x):
        return sharding.reshape_rows(x, (rows * count, *x.shape[2:]))

    queries, targets, weights = flat(queries), flat(batch['targets']), flat(batch['weights'])
    log_q = flat(batch['log_share'])
    candidates, candidates_log_q = sharding.replicated(targets), sharding.replicated(log_q)
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
        'bkd,bd->bk', queries, sharding.lookup(table, targets), preferred_element_type=jnp.float32
    )
    positive = by_vector.max(1)
    negatives = scores(queries, sharding.lookup(table, candidates))
    own = jnp.concatenate([batch['items'], batch['targets']], axis=1)
    shown = flat(allowed(candidates, batch['targets'], own, own_history=config.own_history))
    value = in_batch_softmax(
        positive,
        negatives,
        weights,
        shown,
        log_q_positive=log_q,
        log_q_negatives=candidates_log_q,
        smoothing=config.smoothing,
        refined=config.refined,
    )
    best = jnp.where(shown, negatives - candidates_log_q, -jnp.inf).max(1)
    right = (positive - log_q > best).astype(jnp.float32)
    terms = {'in_batch': value, 'accuracy': weighted_mean(right, weights)}
    if by_vector.shape[1] > 1:
        won = jax.nn.one_hot(by_vector.argmax(1), by_vector.shape[1])
        terms['largest_win'] = jax.vmap(weighted_mean, (1, None))(won, weights).max()
    return value, terms


def sample(config: InBatch, batch: dict, key: jax.Array, num_items: int) -> dict:
    """The batch with the uniform negatives of this step under 'sampled', if there are to be any."""
    if not config.uniform or 'sampled' in batch:
        return batch
    drawn = jax.random.randint(key, (config.uniform,), 1, num_items + 1)
    return {**batch, 'sampled': drawn}


def init_memory(config: InBatch, num_items: int) -> dict[str, jax.Array]:
    """What is remembered from step to step: the estimate of logq='streaming'."""
    return start_estimate(num_items) if config.logq == 'streaming' else {}


def remember(batch: dict, memory: dict, step: jax.Array, rate: float) -> tuple[dict, dict]:
    """The batch with its log_share from the estimate, and the new estimate; see `state`."""
    targets = sharding.replicated(batch['targets'])
    memory, log_q = estimate(memory, targets.reshape(-1), step, rate)
    # Q is the chance to be in a batch; `loss` wants a share of the batch's targets
    log_share = log_q - jnp.log((targets > 0).sum().astype(jnp.float32))
    log_share = log_share.reshape(targets.shape)
    if sharding.on_mesh():
        log_share = jax.reshard(log_share, P('data', None))
    return {**batch, 'log_share': log_share}, memory


class InBatchModel(nnx.Module):
    """A model that trains with `loss` alone; has `config.in_batch` and `num_items`."""

    def sample(self, batch: dict, key: jax.Array) -> dict:
        """The batch with the uniform negatives that `loss(batch, key)` uses under 'sampled'."""
        _, sample_key = jax.random.split(key)
        return sample(self.config.in_batch, batch, sample_key, self.num_items)

    def init_memory(self) -> dict:
        """See `state`: the frequency estimate, if the loss uses one."""
        return init_memory(self.config.in_batch, self.num_items)

    def remember(
        self, batch: dict, memory: dict, step: jax.Array, key: jax.Array
    ) -> tuple[dict, dict]:
        """See `state`."""
        del key
        return remember(batch, memory, step, self.config.in_batch.rate)


def scores(queries: jax.Array, rows: jax.Array) -> jax.Array:
    """Largest dot product of each user's vectors with each item: [B, N].

    The gradient reaches the vector that wins alone (KuaiFormer, section 3.4).

    Args:
      queries: [B, K, D].
      rows: [N, D].
    """
    return jnp.einsum('bkd,nd->bkn', queries, rows, preferred_element_type=jnp.float32).max(1)


def in_batch_softmax(
    positive: jax.Array,
    negatives: jax.Array,
    weights: jax.Array,
    allowed: jax.Array,
    *,
    log_q_positive: jax.Array | float = 0.0,
    log_q_negatives: jax.Array | float = 0.0,
    smoothing: float = 0.0,
    refined: bool = False,
) -> jax.Array:
    """Cross-entropy of each row's target against the candidates allowed for it.

    With corrected scores s' = s - logQ and p their softmax over target and allowed candidates:

      (1 - a) (-log p_target) + (a / N) sum_j -log(1 - p_j)

    The second term is KuaiFormer's smoothing (arXiv 2411.10057, section 3.4): unlike label
    smoothing it pushes negatives down only. N is the number of candidates, padding included.
    `refined` is arXiv 2507.09331: the target, which is always among the candidates, is not
    corrected, and each row's loss is multiplied by 1 - p_target, through which no gradient flows.

    Args:
      positive: [B] scores of the targets.
      negatives: [B, N] scores of the candidates.
      weights: [B] weight per row.
      allowed: bool [B, N]; False leaves a candidate out: the target itself, an item of the user's
        history, padding.
      log_q_positive: [B], log_q_negatives: [N]; log of the expected number of draws.
      smoothing: a in [0, 1).
      refined: see above.

    Returns:
      Scalar, the weighted mean over rows, float32.
    """
    if not refined:
        positive = positive - log_q_positive
    negatives = jnp.where(allowed, negatives - log_q_negatives, -jnp.inf)
    log_z = jnp.logaddexp(positive, jax.nn.logsumexp(negatives, axis=-1))
    loss = log_z - positive
    if smoothing:
        p = jnp.exp(jnp.minimum(negatives - log_z[:, None], -1e-6))  # below 1: its log is finite
        push = -jnp.where(allowed, jnp.log1p(-p), 0).sum(-1)
        loss = (1 - smoothing) * loss + smoothing / negatives.shape[1] * push
    if refined:
        loss = loss * jax.lax.stop_gradient(-jnp.expm1(positive - log_z))
    return weighted_mean(loss, weights)


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
    if sharding.on_mesh():
        holds = jax.shard_map(_holds, in_specs=(split, P()), out_specs=split)
    return keep & ~holds(history, candidates)[:, None]


def _holds(history, candidates):
    """bool [B, N], whether a row [L] of the history has the candidate."""
    ordered = jnp.sort(history, axis=1)
    place = jax.vmap(lambda row: jnp.searchsorted(row, candidates))(ordered)
    place = jnp.minimum(place, history.shape[1] - 1)
    return jnp.take_along_axis(ordered, place, axis=1) == candidates


def start_estimate(num_items: int, gap: float = 100.0) -> dict[str, jax.Array]:
    """State of `estimate`: every item last seen at step 0, and about every `gap` steps."""
    return {
        'last': jnp.zeros(num_items + 1, jnp.int32),
        'gap': jnp.full(num_items + 1, gap, jnp.float32),
    }


def estimate(
    state: dict[str, jax.Array], items: jax.Array, step: jax.Array, rate: float
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Streaming frequency estimation (Yi et al. 2019, Algorithm 2), a counter per item.

    gap <- (1 - rate) gap + rate (step - last), last <- step, for every item of the batch, once.

    Args:
      state: of `start_estimate`.
      items: int32 [N] items of this batch, repeats allowed, 0 = none.
      step: int32, number of this step, from 1.
      rate: a in (0, 1).

    Returns:
      The new state, and float32 [N] log Q = -log gap: the log of the share of batches that hold
      the item.
    """
    last, gap = state['last'], state['gap']
    new = (1 - rate) * gap[items] + rate * (step - last[items])  # the same for repeats
    state = {'last': last.at[items].set(step), 'gap': gap.at[items].set(new)}
    return state, -jnp.log(jnp.maximum(new, 1e-6))
