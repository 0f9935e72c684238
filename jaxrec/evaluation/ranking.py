"""Ranks the targets of a split with a model, under a protocol.

`Task` is what is ranked (users, targets, candidates) and turns counts into metrics; the baselines
share it. `Ranker` produces the counts with a model, compiled once per shape and used again at
every validation.
"""

import collections
import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import P

from jaxrec.data.features import Codes
from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import history_batches
from jaxrec.data.ragged import blocks, ranges
from jaxrec.data.splits import Split, Targets
from jaxrec.devices.mesh import place_whole, serving_rows
from jaxrec.devices.top_k import UNREACHABLE, candidate_counts, counts_and_top_k, winners
from jaxrec.errors import UserError
from jaxrec.evaluation import protocols, rank_metrics

LISTED = 10  # places of the top lists that `Result.interests` looks at
_IN_FLIGHT = 4  # batches given to the device before the results of the first are read


@dataclasses.dataclass
class Result:
    """Counts and metrics of one evaluation.

    Attributes:
      split: 'valid' or 'test'.
      protocol: the protocol as JSON-ready values.
      users: number of users evaluated.
      unreachable: share of targets that the seen filter removes.
      cold: share of targets without any training interaction.
      metrics: mean of each metric over the users, see `rank_metrics.per_example`.
      buckets: the same per popularity bucket of the target, see `rank_metrics.by_bucket`.
      targets: the examples, in the order of the counts.
      greater, ties: int32 [users], see `top_k.rank_counts`.
      interests: of a model with several vectors per user: `target_wins` and `list_wins`, the share
        of the targets, and of the places of the top lists (to LISTED), that each of them gives the
        score for, and `similarity`, the mean cosine between two of a user's vectors. A share near
        0 everywhere is a dead interest; a similarity near 1, K copies of one vector.
    """

    split: str
    protocol: dict
    users: int
    unreachable: float
    cold: float
    metrics: dict[str, float]
    buckets: dict[str, dict]
    targets: Targets
    greater: np.ndarray
    ties: np.ndarray
    interests: dict[str, list[float] | float] = dataclasses.field(default_factory=dict)


class Task:
    """The targets of a split under a protocol.

    Args:
      histories, split: the events, and which of them train, validate and test.
      which: 'valid' or 'test'.
      protocol: how to rank.
      max_users: evaluate at most this many users (a subset fixed by protocol.user_seed), besides
        the protocol's own limit; 0 = no further limit.

    Raises:
      UserError: unknown split, or one without targets.
    """

    def __init__(
        self,
        histories: Histories,
        split: Split,
        which: str,
        protocol: protocols.Protocol,
        *,
        max_users: int = 0,
    ):
        limits = [n for n in (protocol.max_users, max_users) if n]
        targets = protocols.choose_users(
            split.targets(which), min(limits, default=0), protocol.user_seed
        )
        if not len(targets):
            raise UserError(f'the {which} split has no targets: every user has too few events')
        self.histories, self.split, self.which, self.protocol = histories, split, which, protocol
        self.targets = targets
        self.items = histories.items[targets.ends]  # int32 [E], the targets
        self.training_counts = protocols.training_counts(histories, split)
        self._repeated = self._in_input_history()
        self._buckets = rank_metrics.popularity_buckets(self.training_counts)[self.items]
        self._negatives = None
        if protocol.candidates != 'all':
            self._negatives = protocols.Negatives(protocol, histories, split)

    @property
    def filter_seen(self) -> bool:
        return self.protocol.candidates == 'all' and self.protocol.filter_seen

    @property
    def unreachable(self) -> np.ndarray:
        """bool [E], targets that the seen filter removes."""
        return self._repeated & self.filter_seen

    def candidates(self, chosen: np.ndarray) -> np.ndarray:
        """Sampled candidates of the examples `chosen`: int32 [len(chosen), negatives]."""
        return self._negatives(self.targets.users[chosen])

    def too_few_candidates(self) -> int:
        """Users for whom the catalogue has fewer candidates than the protocol asks for."""
        return self._negatives.too_few(self.targets.users) if self._negatives else 0

    def result(self, greater: np.ndarray, ties: np.ndarray) -> Result:
        """Metrics of all examples from their counts, int [E]."""
        values = rank_metrics.per_example(greater, ties, self.protocol.cutoffs)
        return Result(
            split=self.which,
            protocol=protocols.asdict(self.protocol),
            users=len(self.targets),
            unreachable=float(np.mean(self.unreachable)),
            cold=float(np.mean(self.training_counts[self.items] == 0)),
            metrics=rank_metrics.mean(values),
            buckets=rank_metrics.by_bucket(values, self._buckets),
            targets=self.targets,
            greater=greater,
            ties=ties,
        )

    def _in_input_history(self) -> np.ndarray:
        starts = self.histories.offsets[self.targets.users]
        lengths = self.targets.ends - starts
        found = np.zeros(len(lengths), bool)
        for some in blocks(np.concatenate([[0], np.cumsum(lengths)])):
            events = self.histories.items[ranges(starts[some], lengths[some])]
            repeats = events == np.repeat(self.items[some], lengths[some])
            before = np.concatenate([[0], np.cumsum(repeats)])
            ends = np.cumsum(lengths[some])
            found[some] = before[ends] > before[ends - lengths[some]]
        return found


class Ranker:
    """Evaluates a model: `Ranker(...)(params) -> Result`. Runs under `jax.set_mesh`.

    Args:
      graphdef: static part of the model, `nnx.merge(graphdef, params)` gives it back.
      histories, split, which, protocol, max_users: what to rank, see `Task`.
      max_len: window of the model.
      batch_users: users scored at once, rounded up to a multiple of the mesh's data axis.
      codes: of the features that the model reads, see `next_item.feature_codes`.
      coverage: also report Coverage@k, the share of the catalogue in the users' top-k lists, and
        the part of a user's K vectors in them (candidates 'all' only; costs a second pass over the
        scores).
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        histories: Histories,
        split: Split,
        which: str,
        protocol: protocols.Protocol,
        *,
        max_len: int,
        batch_users: int = 256,
        max_users: int = 0,
        codes: Codes | None = None,
        coverage: bool = False,
    ):
        if batch_users < 1:
            raise UserError(f'eval.batch_users={batch_users} must be at least 1')
        self.task = task = Task(histories, split, which, protocol, max_users=max_users)
        self._max_len, self._codes = max_len, codes
        self._rows = serving_rows(batch_users)
        depth = max(task.protocol.cutoffs) if coverage and task.protocol.candidates == 'all' else 0
        self._depth = min(depth, task.histories.num_items)
        self._score = jax.jit(
            functools.partial(
                _score,
                graphdef,
                num_items=task.histories.num_items,
                filter_seen=task.filter_seen,
                depth=self._depth,
            )
        )

    def of(self, split: Split, which: str, *, max_users: int = 0) -> 'Ranker':
        """One for another split of the same histories, which shares what is compiled."""
        other = copy.copy(self)
        old = self.task
        other.task = Task(old.histories, split, which, old.protocol, max_users=max_users)
        return other

    def __call__(self, params) -> Result:
        """Ranks all targets of the task.

        Raises:
          UserError: a target's score is not a finite number.
        """
        examples, waiting = len(self.task.targets), collections.deque()
        columns = {}

        def read(chosen, out):
            for name, value in out.items():
                value = np.asarray(value)
                if name not in columns:
                    columns[name] = np.zeros((examples, *value.shape[1:]), value.dtype)
                columns[name][chosen] = value[: len(chosen)]

        for chosen, batch in self._batches():
            waiting.append((chosen, self._score(params, batch)))
            if len(waiting) > _IN_FLIGHT:
                read(*waiting.popleft())
        while waiting:
            read(*waiting.popleft())

        broken = (columns['greater'] == UNREACHABLE) & ~self.task.unreachable
        if broken.any():
            raise UserError(f'the model gives scores that are not finite for {broken.sum()} users')
        result = self.task.result(columns['greater'], columns['ties'])
        for k in self.task.protocol.cutoffs if self._depth else ():
            result.metrics[f'Coverage@{k}'] = rank_metrics.coverage(
                columns['top'][:, :k], self.task.histories.num_items
            )
        if 'similarity' in columns:
            result.interests = _interests(columns)
        return result

    def _batches(self):
        for chosen, batch in history_batches(
            self.task.histories,
            self.task.targets,
            max_len=self._max_len,
            codes=self._codes,
            **self._rows,
        ):
            missing = len(batch['items']) - len(chosen)
            batch['targets'] = np.pad(self.task.items[chosen], (0, missing))
            if self.task.protocol.candidates != 'all':
                batch['candidates'] = np.pad(self.task.candidates(chosen), ((0, missing), (0, 0)))
                del batch['seen']
            yield chosen, place_whole(batch)


def _score(graphdef, params, batch, *, num_items, filter_seen, depth):
    """What `Ranker` reads of one batch, each [B, ..] and replicated."""
    model = nnx.merge(graphdef, params)
    queries, table, targets = model.queries(batch), model.item_table(), batch['targets']
    if 'candidates' in batch:
        counts = candidate_counts(queries, table, targets, batch['candidates'])
        out = {'greater': counts[0], 'ties': counts[1]}
    else:
        greater, ties, top = counts_and_top_k(
            queries, table, num_items, targets, batch['seen'], filter_seen, depth
        )
        out = {'greater': greater, 'ties': ties, 'top': top}
    if depth and queries.shape[1] > 1:
        listed = jnp.concatenate([targets[:, None], top[:, :LISTED]], axis=1)
        won = winners(queries, table, listed)
        out['won'] = jax.nn.one_hot(jnp.where(listed > 0, won, -1), queries.shape[1])
        unit = queries / jnp.maximum(jnp.linalg.norm(queries, axis=-1, keepdims=True), 1e-9)
        cosines = jnp.einsum('bkd,bjd->bkj', unit, unit)
        pairs = queries.shape[1] * (queries.shape[1] - 1)
        own = jnp.eye(queries.shape[1])
        out['similarity'] = (cosines * (1 - own)).sum((1, 2)) / pairs
    return jax.tree.map(lambda x: jax.reshard(x, P()), out)


def _interests(columns) -> dict:
    """`Result.interests` from won [E, 1 + listed, K] and similarity [E]."""

    def shares(won):
        total = won.sum((0, 1))
        return (total / max(total.sum(), 1)).tolist()

    return {
        'target_wins': shares(columns['won'][:, :1]),
        'list_wins': shares(columns['won'][:, 1:]),
        'similarity': float(columns['similarity'].mean()),
    }
