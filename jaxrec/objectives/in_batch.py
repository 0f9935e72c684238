"""Softmax over the targets of a batch (and uniform draws), corrected for how they were drawn.

The candidates are the items that the rows of the whole batch, over all devices, have as targets:
popular items come often, so log of the expected number of draws, logQ, is taken from each score
(Yi et al. 2019). How often an item comes is counted by the data pipeline, or estimated on the way
by `estimate`.

With a bank the targets of earlier steps are candidates too, by the vectors that they had:

  CLRec (Zhou et al. 2021, arXiv 2005.12964)    bank > 0, batch_negatives=False, logq='none',
      similarity='cosine': negatives drawn like the targets, and no logQ, take popularity away
  Multi-CLRec    the same with prototypes > 1: a history sees the bank of its prototype alone
  CBNS (Wang et al., SIGIR 2021)    bank and warmup > 0: logQ as stored with the vectors

All three are to be had with own_history=True: otherwise the items of a user's window, which are
drawn more often for that user than q says, are no negatives. A draw of the target itself never
counts, where CLRec's proof counts it: its optimum, log p/q, is the limit of many items.

Multi-CLRec's prototypes, our reading, are means of the user vectors routed to them, no parameters:
each step moves a prototype by 1 % to the mean of its users, at length 1.

`InBatch`, `sample`, `start` and `loss` are all that a model needs, and `compared` of its catalogue.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import P

from jaxrec.config import field
from jaxrec.devices.mesh import on_mesh, placed, replicated, reshape_rows
from jaxrec.errors import UserError
from jaxrec.losses import unit, weighted_mean
from jaxrec.losses.sampled import in_batch_softmax, scores, united
from jaxrec.nn.embeddings import Rows, lookup
from jaxrec.objectives.bank import push, start_bank
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
    similarity: str = field('dot', choices=('dot', 'cosine'))  # of user and item vectors
    temperature: float = field(1.0, above=0)  # scores are divided by it
    bank: int = field(0, least=0)  # targets of earlier steps that are negatives, per prototype
    batch_negatives: bool = True  # the other targets of the batch are negatives
    warmup: int = field(0, least=0)  # steps before those of the bank are
    prototypes: int = field(0, least=0)  # > 0: as many banks, each for the histories next to it
    # of a user's several vectors a candidate is scored by the one that is best for it (max,
    # KuaiFormer) or for the target (target, ComiRec)
    routing: str = field('max', choices=('max', 'target'))
    softness: float = field(0.0, least=0)  # of the best, see `sampled.united`; serving takes 0
    apart: float = field(0.0, least=0)  # weight of the mean squared cosine between them
    hardness: float = field(0.0, least=0)  # negatives weigh exp(hardness score), REMI's

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if not self.bank and (self.warmup or self.prototypes or not self.batch_negatives):
            raise UserError(
                'model.in_batch.warmup, prototypes and batch_negatives=False go with a bank: set '
                'model.in_batch.bank'
            )
        if self.warmup and not self.batch_negatives:
            raise UserError('model.in_batch.warmup leaves no negatives: set batch_negatives=True')
        if self.softness and self.routing != 'max':
            raise UserError("model.in_batch.softness is of routing='max': set one of them alone")
        if self.hardness and self.smoothing:
            raise UserError('model.in_batch.hardness and smoothing: set one of them alone')


def own_table(model: Any, catalogue: dict[str, jax.Array]) -> jax.Array | Rows:
    """The item table to look inputs up in: the catalogue's, unless `compared` has changed that."""
    plain = model.config.in_batch.similarity == 'dot'
    return catalogue['items'] if plain else model.item_table()


def compared(config: InBatch, x: jax.Array) -> jax.Array:
    """Vectors [.., D] of users or items as their dot products are scores."""
    return unit(x) if config.similarity == 'cosine' else x


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
      Scalar, and (terms, next carry). The terms: in_batch (the same), accuracy (share of the
      targets that score higher than all their candidates, corrected scores), for K > 1 largest_win
      (share of the targets that the most frequent winner among the K vectors wins: near 1, the
      others are dead) and, with `apart`, cosine (the mean squared one between two of them), with
      prototypes largest_prototype (the same of them and the histories).
    """
    carry = {name: carry[name] for name in carry if name in _CARRIED}
    if 'frequency' in carry:
        batch, carry['frequency'] = _estimated(config, batch, carry['frequency'])
    rows, count = batch['targets'].shape

    def flat(x):
        return reshape_rows(x, (rows * count, *x.shape[2:]))

    queries, targets, weights = flat(queries), flat(batch['targets']), flat(batch['weights'])
    queries, log_q = compared(config, queries), flat(batch['log_share'])
    drawn, drawn_log_q = replicated(targets), replicated(log_q)
    candidates, candidates_log_q = drawn, drawn_log_q
    if config.uniform:
        candidates = jnp.concatenate([candidates, batch['sampled']])
        uniform = jnp.full(config.uniform, -jnp.log(jnp.float32(num_items)))
        candidates_log_q = jnp.concatenate([candidates_log_q, uniform])
    own_items = compared(config, lookup(table, targets))
    by_vector = jnp.einsum('bkd,bd->bk', queries, own_items, preferred_element_type=jnp.float32)
    positive, asked = united(by_vector, config.softness), queries
    if config.routing == 'target':
        winner = jax.nn.one_hot(by_vector.argmax(1), by_vector.shape[1], dtype=queries.dtype)
        asked = jnp.einsum('bk,bkd->bd', winner, queries)[:, None]
    vectors, own_bank = compared(config, lookup(table, candidates)), None
    drawn_vectors = vectors[: len(drawn)]
    if not config.batch_negatives:
        candidates = jnp.where(jnp.arange(len(candidates)) < len(drawn), 0, candidates)
    if config.bank:
        bank, own_bank = _seen_bank(config, carry, queries, len(candidates))
        candidates = jnp.concatenate([candidates, bank['items']])
        candidates_log_q = jnp.concatenate([candidates_log_q, bank['log_q']])
        vectors = jnp.concatenate([vectors, bank['vectors'].astype(vectors.dtype)])
    if config.logq == 'none':
        log_q, candidates_log_q = 0.0, 0.0
    else:
        log_n = jnp.log(jnp.maximum((candidates > 0).sum(), 1).astype(jnp.float32))
        log_q, candidates_log_q = log_q + log_n, candidates_log_q + log_n
    negatives = scores(asked, vectors, config.softness)
    if config.temperature != 1:
        positive, negatives = positive / config.temperature, negatives / config.temperature
    own = jnp.concatenate([batch['items'], batch['targets']], axis=1)
    shown = flat(allowed(candidates, batch['targets'], own, own_history=config.own_history))
    if own_bank is not None:
        shown = shown & own_bank
    values = in_batch_softmax(
        positive,
        negatives,
        shown,
        log_q_positive=log_q,
        log_q_negatives=candidates_log_q,
        smoothing=config.smoothing,
        refined=config.refined,
        hardness=config.hardness,
    )
    value = weighted_mean(values, weights)
    best = jnp.where(shown, negatives - candidates_log_q, -jnp.inf).max(1)
    right = (positive - log_q > best).astype(jnp.float32)
    terms = {'in_batch': value, 'accuracy': weighted_mean(right, weights)}
    if by_vector.shape[1] > 1:
        won = jax.nn.one_hot(by_vector.argmax(1), by_vector.shape[1])
        terms['largest_win'] = jax.vmap(weighted_mean, (1, None))(won, weights).max()
    if config.apart:
        terms['cosine'] = weighted_mean(_squared_cosine(queries), weights)
        value = value + config.apart * terms['cosine']
    if config.bank:
        carry, more = _pushed(config, carry, queries, weights, drawn_vectors, drawn, drawn_log_q)
        terms |= more
    return value, (terms, carry)


def _squared_cosine(queries: jax.Array) -> jax.Array:
    """[B], the mean squared cosine of two of a row's vectors [B, K, D]; 0 of a single one."""
    count = queries.shape[1]
    each = unit(queries)
    squared = jnp.square(jnp.einsum('bkd,bjd->bkj', each, each))
    return (squared.sum((1, 2)) - count) / max(count * (count - 1), 1)


def sample(config: InBatch, batch: dict, key: jax.Array, num_items: int) -> dict:
    """The batch with the uniform negatives of this step under 'sampled', if there are to be any."""
    if not config.uniform:
        return batch
    drawn = jax.random.randint(key, (config.uniform,), 1, num_items + 1)
    return {**batch, 'sampled': drawn}


def start(config: InBatch, num_items: int, dim: int) -> dict[str, Any]:
    """The first carry: the frequency estimate, and a bank of vectors [.., D], if there are any.

    With prototypes the bank has one more axis, and there are `prototypes` [P, D].
    """
    made = {}
    if config.logq == 'streaming':
        made['frequency'] = start_estimate(num_items)
    elif config.logq == 'examples':
        made['frequency'] = start_estimate(num_items, gap=float(num_items))
    if config.bank:
        made['bank'] = start_bank(config.bank, dim)
    if config.prototypes:
        made['bank'] = jax.tree.map(lambda x: jnp.stack([x] * config.prototypes), made['bank'])
        drawn = jax.random.normal(jax.random.key(0), (config.prototypes, dim))
        made['prototypes'] = unit(drawn)
    if config.warmup:
        made['steps'] = jnp.zeros((), jnp.int32)
    return made


_CARRIED = ('frequency', 'bank', 'prototypes', 'steps')
_MOVES = 0.01  # share of the way of a prototype to the mean of its users, per step


def _routes(carry, queries):
    """int32 [N], the prototype next to each history, and the histories' unit vectors [N, D]."""
    vectors = unit(jax.lax.stop_gradient(replicated(queries)).mean(1))
    return (vectors @ carry['prototypes'].T).argmax(1), vectors


def _seen_bank(config, carry, queries, before):
    """The bank in one piece, and bool [N, before + its places] that each history sees (or None)."""
    bank = jax.tree.map(jax.lax.stop_gradient, carry['bank'])
    if config.warmup:
        ready = carry['steps'] >= config.warmup
        bank = {**bank, 'items': jnp.where(ready, bank['items'], 0)}
    if not config.prototypes:
        return bank, None
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in bank.items()}
    owner = jnp.repeat(jnp.arange(config.prototypes), config.bank)
    own = _routes(carry, queries)[0][:, None] == owner
    own = jnp.pad(own, ((0, 0), (before, 0)), constant_values=True)
    return flat, placed(own, P('data', None))


def _pushed(config, carry, queries, weights, vectors, items, log_q):
    """The carry after a step, and what is logged of it."""
    if config.warmup:
        carry = {**carry, 'steps': carry['steps'] + 1}
    if not config.prototypes:
        return {**carry, 'bank': push(carry['bank'], vectors, items, log_q)}, {}
    routes, users = _routes(carry, queries)
    routed = jax.nn.one_hot(routes, config.prototypes) * replicated(weights)[:, None]
    mine = jnp.where(routed.T > 0, items, 0)
    bank = jax.vmap(push, (0, None, 0, None))(carry['bank'], vectors, mine, log_q)
    count = routed.sum(0)[:, None]
    means = unit(routed.T @ users / jnp.maximum(count, 1))
    moved = unit((1 - _MOVES) * carry['prototypes'] + _MOVES * means)
    prototypes = jnp.where(count > 0, moved, carry['prototypes'])
    largest = routed.sum(0).max() / jnp.maximum(routed.sum(), 1e-9)
    return {**carry, 'bank': bank, 'prototypes': prototypes}, {'largest_prototype': largest}


def _estimated(config, batch, frequency) -> tuple[dict, dict]:
    """The batch with its log_share from the estimate, and the next estimate."""
    targets = replicated(batch['targets'])
    if config.logq == 'examples':
        frequency, log_share = estimate_share(frequency, targets.reshape(-1), config.rate)
    else:
        frequency, log_q = estimate(frequency, targets.reshape(-1), config.rate)
        # Q is the chance to be in a batch; `loss` wants a share of the batch's targets
        log_share = log_q - jnp.log((targets > 0).sum().astype(jnp.float32))
    log_share = log_share.reshape(targets.shape)
    if on_mesh():
        log_share = jax.reshard(log_share, P('data', None))
    return {**batch, 'log_share': log_share}, frequency


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
    return keep & ~holds(history, candidates)[:, None]


def holds(history: jax.Array, candidates: jax.Array) -> jax.Array:
    """bool [B, N], whether a row of `history` int32 [B, L] has the candidate, int32 [N]."""
    if not on_mesh():
        return _holds(history, candidates)
    split = P('data', None)
    return jax.shard_map(_holds, in_specs=(split, P()), out_specs=split)(history, candidates)


def _holds(history, candidates):
    ordered = jnp.sort(history, axis=1)
    place = jax.vmap(lambda row: jnp.searchsorted(row, candidates))(ordered)
    place = jnp.minimum(place, history.shape[1] - 1)
    return jnp.take_along_axis(ordered, place, axis=1) == candidates
