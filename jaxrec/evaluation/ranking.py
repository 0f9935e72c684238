"""Ranking the held-out events of users among the catalogue, or among sampled candidates."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from jaxrec.data import domains as domains_lib
from jaxrec.data.domains import Domains
from jaxrec.data.features import Codes
from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import few_widths, history_batches
from jaxrec.data.item_texts import ItemTexts
from jaxrec.data.ragged import blocks, distinct, ranges
from jaxrec.data.splits import Split
from jaxrec.devices import top_k
from jaxrec.devices.tuning import serving_rows
from jaxrec.errors import UserError
from jaxrec.evaluation import baselines, item_lists, protocols, rank_metrics
from jaxrec.evaluation.run import collected
from jaxrec.problem import Batch, Evaluation, Measured, Part

LISTED = 10  # places of the top lists of which interests and popularity are told
DECILES = ('1, most popular', *map(str, range(2, 10)), '10, least popular')
_KEPT = 1 << 25  # sampled candidates that are kept once they are drawn
_TARGETS = 16  # targets of a user ranked together where there are several; more take more rows


class Ranking(Evaluation):
    """The targets of a split under a protocol.

    An example is a user; `items` are the targets of all users one after the other, `owner` says
    whose. A row of a batch is a user's history with one target, or with up to 16 where a user may
    have several.

    Args:
      histories, split: the events, and which of them train, validate and test.
      which: 'valid' or 'test'.
      protocol: how to rank.
      told: the protocol as it is told beside the numbers; None = `protocol` alone.
      max_len: window of the model.
      batch_users: rows scored at once, rounded up to a multiple of the mesh's data axis.
      codes: of the features that the model reads.
      max_users: evaluate at most this many users (a subset fixed by protocol.user_seed), besides
        the protocol's own limit; 0 = no further limit.
      several: a user may have several targets, which are measured by more metrics (always so
        where somebody has).
      popularity: tell how popular what the top lists show is, and metrics by decile of the target.
      references: of the names in `baselines`, those that `references` measures; None = all of
        `baselines.NAMES` that the data allow.
      widths: of the batches of histories, see `few_widths`; None = those best for these targets.
        Evaluations that share them share their programs.
      numbered: whether batches say who the users are.
      domains: of the items, by which metrics are also told apart; None = there are none.
      in_domain: rank among the items of the target's domain alone.
      each: every target is a row by itself, among candidates of its own; values are of rows.
      item_lists: whether `mixtures` measures lists by the last item, see `item_lists.counts`.
      texts: vectors of the items' texts, where the task reads them.

    Raises:
      UserError: unknown split, or one without targets; several targets of a user in_domain.
    """

    def __init__(
        self,
        histories: Histories,
        split: Split,
        which: str,
        protocol: protocols.Protocol,
        *,
        told: dict | None = None,
        max_len: int = 50,
        batch_users: int = 256,
        codes: Codes | None = None,
        max_users: int = 0,
        several: bool = False,
        popularity: bool = False,
        references: tuple[str, ...] | None = None,
        widths: np.ndarray | None = None,
        numbered: bool = False,
        domains: Domains | None = None,
        in_domain: bool = False,
        each: bool = False,
        item_lists: bool = False,
        texts: ItemTexts | None = None,
    ):
        self._item_lists, self.texts = item_lists, texts
        limits = [n for n in (protocol.max_users, max_users) if n]
        targets = protocols.choose_users(
            split.targets(which), min(limits, default=0), protocol.user_seed
        )
        if not len(targets):
            raise UserError(f'the {which} split has no targets: every user has too few events')
        self.histories, self.split, self.how = histories, split, protocol
        self.targets, self.examples = targets, len(targets)
        self.protocol = told or protocols.asdict(protocol)
        self._max_len, self._batch_users, self._codes = max_len, batch_users, codes
        self._references, self._popularity = references, popularity
        self._numbered = numbered
        if widths is None:
            widths = few_widths(targets.inputs - histories.offsets[targets.users], max_len)
        self._widths = widths
        self.owner, self.items, self._events = self._pairs()
        self._each = each
        self._several = not each and (several or len(self.items) > self.examples)
        self.domains, self.in_domain = domains, in_domain
        if in_domain and self._several:
            raise UserError(
                "task.in_domain ranks targets one by one: set task.targets='first' or 'each'"
            )
        self.target_domains = None if domains is None else domains.of_items[self.items]
        self.training_counts = protocols.training_counts(histories, split)
        self.unreachable = self._in_input_history() & self.filter_seen  # by the seen filter
        self._negatives = self._drawn = None
        if protocol.candidates != 'all':
            draw = functools.partial(protocols.Negatives, protocol, histories, split)
            self._negatives = {0: draw()}
            if in_domain:
                here = np.unique(self.target_domains).tolist()
                self._negatives = {d: draw(allowed=domains.of_items == d) for d in here}
        self._lay_out_rows()

    @property
    def filter_seen(self) -> bool:
        return self.how.candidates == 'all' and self.how.filter_seen

    def candidates(self, chosen: np.ndarray) -> np.ndarray:
        """Sampled candidates of the targets `chosen`: int32 [len(chosen), negatives].

        They are a user's, or a user's in the target's domain: targets of one draw share them.
        """
        if len(self.items) * self.how.negatives > _KEPT:
            return self._draw(chosen)
        if self._drawn is None:
            self._drawn = self._draw(np.arange(len(self.items)))
        return self._drawn[chosen]

    def _draw(self, chosen):
        out = np.zeros((len(chosen), self.how.negatives), np.int32)
        for draw, some in self._by_negatives(chosen):
            out[some] = draw(self.targets.users[self.owner[chosen[some]]])
        return out

    def _by_negatives(self, chosen):
        """(what draws, places in `chosen`) of examples that share it."""
        if not self.in_domain:
            return [(self._negatives[0], slice(None))]
        domain = self.target_domains[chosen]
        return [(draw, np.flatnonzero(domain == d)) for d, draw in self._negatives.items()]

    def batches(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """(rows, batch): histories, `targets` int32 [B, T], and `candidates` [B, n] or `seen`.

        In_domain also `domain` int32 [B], that of the target; padding has 0.
        """
        for chosen, batch in history_batches(
            self.histories,
            self.targets.take(self._row_example),
            max_len=self._max_len,
            codes=self._codes,
            widths=self._widths,
            numbered=self._numbered,
            **serving_rows(self._batch_users),
        ):
            missing = len(batch['items']) - len(chosen)
            places = self._row_first[chosen, None] + np.arange(self._width)
            real = np.arange(self._width) < self._row_count[chosen, None]
            targets = np.where(real, self.items[np.minimum(places, len(self.items) - 1)], 0)
            batch['targets'] = np.pad(targets, ((0, missing), (0, 0))).astype(np.int32)
            if self._negatives is not None:
                drawn = self.candidates(self._row_first[chosen])
                batch['candidates'] = np.pad(drawn, ((0, missing), (0, 0)))
                del batch['seen']
            elif self.in_domain:
                domain = self.target_domains[self._row_first[chosen]]
                batch['domain'] = np.pad(domain, (0, missing)).astype(np.int32)
            yield chosen, batch

    def measure(self, parts: Iterable[Part]) -> Measured:
        """Metrics of the counts `greater` and `ties` [n, T], and of the lists `top` if they came.

        Raises:
          UserError: a target's score is not a finite number.
        """
        columns = collected(parts, len(self._row_example))
        greater, ties = (self._by_pair(columns[name]) for name in ('greater', 'ties'))
        broken = (greater == top_k.UNREACHABLE) & ~self.unreachable
        if broken.any():
            users = len(distinct(self.owner[broken]))
            raise UserError(f'the model gives scores that are not finite for {users} users')
        measured = self.result(greater, ties)
        once = np.unique(self._row_example, return_index=True)[1]  # a row of every user
        if 'top' in columns and self._popularity:
            lists = columns['top'][once, :LISTED]
            measured.details['lists'] = rank_metrics.of_lists(lists, self.training_counts)
            buckets = rank_metrics.popularity_buckets(self.training_counts, len(DECILES))
            by_target = rank_metrics.per_example(greater, ties, self.how.cutoffs)
            measured.groups['popularity decile'] = rank_metrics.by_group(
                by_target, rank_metrics.of_buckets(buckets[self.items], DECILES)
            )
        if 'top' in columns:
            for k in self.how.cutoffs:
                shown = columns['top'][:, : min(k, columns['top'].shape[1])]
                covered = rank_metrics.coverage(shown, self.histories.num_items)
                measured.metrics[f'Coverage@{k}'] = covered
        if 'similarity' in columns:
            for name in ('list_wins', 'similarity'):
                columns[name] = columns[name][once]
            measured.details['interests'] = _interests(columns)
        return measured

    def references(self) -> dict[str, Measured]:
        """The baselines that the data allow, see `baselines.counts`."""
        counted = baselines.counts(self, self._references)
        return {name: self.result(*counts) for name, counts in counted.items()}

    def floor(self, metric: str) -> float | None:
        """That of popularity."""
        counts = baselines.counts(self, ('popularity',))['popularity']
        return self.result(*counts).metrics.get(metric)

    def mixtures(self, begin: Callable[[], Any]) -> dict[str, Measured]:
        """Lists by the last item of the history, some with the model's vectors of items."""
        if not self._item_lists:
            return {}
        counted = item_lists.counts(self, np.asarray(begin()['items'], np.float32))
        return {name: self.result(*counts) for name, counts in counted.items()}

    def result(self, greater: np.ndarray, ties: np.ndarray) -> Measured:
        """Metrics from the counts of all targets, int [len(items)]."""
        cutoffs = self.how.cutoffs
        if self._several:
            values = rank_metrics.per_user(greater, ties, self.owner, cutoffs)
            kept = {'greater': greater, 'ties': ties, 'owner': self.owner}
        else:
            values = rank_metrics.per_example(greater, ties, cutoffs)
            kept = {'greater': greater, 'ties': ties}
        buckets = rank_metrics.popularity_buckets(self.training_counts)[self.items]
        by_target = rank_metrics.per_example(greater, ties, cutoffs)
        members = {
            'popularity': rank_metrics.of_buckets(buckets),
            **rank_metrics.of_events(self.training_counts[self.items]),
            **self._of_domains(),
        }
        groups = {name: rank_metrics.by_group(by_target, one) for name, one in members.items()}
        metrics = rank_metrics.mean(values)
        if self.in_domain:
            parts = list(groups['domain'].values())
            means = {f'{name} macro': np.mean([part[name] for part in parts]) for name in by_target}
            metrics |= {name: float(value) for name, value in means.items()}
        return Measured(
            metrics=metrics,
            unit='row' if self._each else 'user',
            values=values,
            groups=groups,
            members={} if self._several else members,
            details={
                'targets': len(self.items),
                'unreachable': float(np.mean(self.unreachable)),
                'cold': float(np.mean(self.training_counts[self.items] == 0)),
                'too_few_candidates': self._too_few_candidates(),
            },
            kept=kept,
        )

    def _too_few_candidates(self) -> int:
        """Users for whom the catalogue has fewer candidates than the protocol asks for."""
        if self._negatives is None:
            return 0
        found = 0
        for draw, some in self._by_negatives(np.arange(len(self.items))):
            found += draw.too_few(self.targets.users[distinct(self.owner[some])])
        return found

    def _of_domains(self):
        """By the target's domain, by what the user had before, and twin and clean rows."""
        if self.domains is None:
            return {}
        events, of = self.targets.inputs[self.owner], self.domains
        found = {
            'domain': (of.names, self.target_domains - 1),
            'history of': (domains_lib.HISTORIES, of.kinds(events, self.items)),
        }
        if not self._several and of.twin_before.any():
            twin = of.twin_before[self._events]
            found['rows'] = domains_lib.ROWS, np.where(twin, 0, 1)
            if self._each:  # rows of both domains: clean ones of each
                domain = np.where(twin, -1, self.target_domains - 1)
                found['clean rows of'] = of.names, domain
        return {name: rank_metrics.of_parts(*one) for name, one in found.items()}

    def _pairs(self):
        """(owner, int32 item, first event) of the distinct targets of every example, in order."""
        lengths = self.targets.stops - self.targets.ends
        owner = np.repeat(np.arange(self.examples), lengths)
        events = ranges(self.targets.ends, lengths)
        items = self.histories.items[events]
        if len(items) == self.examples:
            return owner, items, events
        keys = owner * (self.histories.num_items + 1) + items
        keys, first = np.unique(keys, return_index=True)
        owner, items = np.divmod(keys, self.histories.num_items + 1)
        return owner, items.astype(np.int32), events[first]

    def _lay_out_rows(self):
        """Which example each row of the batches is of, its first target and how many it has."""
        self._width = 1 if self._each or len(self.items) == self.examples else _TARGETS
        per_example = np.bincount(self.owner, minlength=self.examples)
        rows = -(-per_example // self._width)
        self._row_example = np.repeat(np.arange(self.examples), rows)
        nth = ranges(np.zeros_like(rows), rows)
        before = np.cumsum(per_example) - per_example
        self._row_first = before[self._row_example] + nth * self._width
        left = per_example[self._row_example] - nth * self._width
        self._row_count = np.minimum(left, self._width)

    def _by_pair(self, column: np.ndarray) -> np.ndarray:
        """[len(items)] of a column [rows, T]."""
        return column[np.arange(self._width) < self._row_count[:, None]]

    def _in_input_history(self) -> np.ndarray:
        """bool [len(items)], targets that the user had before."""
        starts = self.histories.offsets[self.targets.users][self.owner]
        lengths = self.targets.inputs[self.owner] - starts
        found = np.zeros(len(lengths), bool)
        for some in blocks(np.concatenate([[0], np.cumsum(lengths)])):
            events = self.histories.items[ranges(starts[some], lengths[some])]
            repeats = events == np.repeat(self.items[some], lengths[some])
            before = np.concatenate([[0], np.cumsum(repeats)])
            ends = np.cumsum(lengths[some])
            found[some] = before[ends] > before[ends - lengths[some]]
        return found


def score(
    queries: jax.Array,
    table: jax.Array,
    batch: Batch,
    *,
    num_items: int,
    filter_seen: bool,
    depth: int,
    domains: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """What `Ranking.measure` reads of one batch, each [B, ..] and whole on every device.

    Args:
      queries: [B, K, D] user vectors.
      table: [rows, D] item vectors.
      batch: of `Ranking.batches`.
      num_items: of the catalogue.
      filter_seen: score the items of the history -inf.
      depth: length of the top lists; 0 = none.
      domains: int32 [rows], of the items, where a batch names that of its targets.
    """
    targets = batch['targets']
    if 'candidates' in batch:
        greater, ties = top_k.candidate_counts(queries, table, targets, batch['candidates'])
        out = {'greater': greater, 'ties': ties}
    else:
        greater, ties, top = top_k.counts_and_top_k(
            queries,
            table,
            num_items,
            targets,
            batch['seen'],
            filter_seen,
            depth,
            batch.get('domain'),
            None if domains is None else _beside(table, domains),
        )
        out = {'greater': greater, 'ties': ties}
        if depth:
            out['top'] = top
    if depth and queries.shape[1] > 1:
        listed = jnp.concatenate([targets, top[:, :LISTED]], axis=1)
        won = top_k.winners(queries, table, listed)
        won = jax.nn.one_hot(jnp.where(listed > 0, won, -1), queries.shape[1])
        shown = targets.shape[1]
        out['target_wins'], out['list_wins'] = won[:, :shown].sum(1), won[:, shown:].sum(1)
        unit = queries / jnp.maximum(jnp.linalg.norm(queries, axis=-1, keepdims=True), 1e-9)
        cosines = jnp.einsum('bkd,bjd->bkj', unit, unit)
        pairs = queries.shape[1] * (queries.shape[1] - 1)
        own = jnp.eye(queries.shape[1])
        out['similarity'] = (cosines * (1 - own)).sum((1, 2)) / pairs
    return jax.tree.map(lambda x: jax.reshard(x, P()), out)


def _beside(table, column):
    """A column of items beside a table that may have more rows, split as its rows are."""
    return jax.reshard(jnp.pad(column, (0, len(table) - len(column))), P('model'))


def _interests(columns) -> dict[str, list[float] | float]:
    """How a model's several vectors share the work.

    target_wins and list_wins: the share of the targets, and of the places of the top lists (to
    LISTED), that each of them gives the score for; similarity: the mean cosine between two of a
    user's vectors. A share near 0 everywhere is a dead interest; a similarity near 1, K copies of
    one vector.
    """

    def shares(won):
        total = won.sum(0)
        return (total / max(total.sum(), 1)).tolist()

    return {
        'target_wins': shares(columns['target_wins']),
        'list_wins': shares(columns['list_wins']),
        'similarity': float(columns['similarity'].mean()),
    }
