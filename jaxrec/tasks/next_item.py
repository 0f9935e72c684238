"""The task of predicting the next item: retrieval from histories, by itself or in time order.

A model of this task has `catalogue(constants) -> {'items': [rows, D]}` and
`queries(batch, catalogue) -> [B, K, D]`; an item's score is its largest dot product with the K
vectors.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
import scipy.sparse

from jaxrec import datasets
from jaxrec.config import Texts, field
from jaxrec.data import domains as domains_lib
from jaxrec.data import item_texts, overlap, positives, splits, text_encoders
from jaxrec.data.catalogue import Catalogue
from jaxrec.data.cuts import CutBatches
from jaxrec.data.features import Encoder, check_features
from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import few_widths
from jaxrec.data.information import mutual_information
from jaxrec.data.item_batches import ItemBatches, co_clicks
from jaxrec.data.packed import TrainBatches
from jaxrec.data.pairs import DomainPairBatches, PairBatches, training_pairs
from jaxrec.data.rewards import Rewarder
from jaxrec.data.splits import Split, Targets
from jaxrec.datasets.synthetic import generated
from jaxrec.devices.mesh import Divided, table_rows
from jaxrec.errors import UserError
from jaxrec.evaluation import baselines, linear, protocols, rank_metrics
from jaxrec.evaluation.ranking import LISTED, Ranking, score
from jaxrec.nn import bipartite
from jaxrec.nn.propagate import entries
from jaxrec.problem import Batches, Inputs, Metric, Model, Period, Problem, Task


@dataclasses.dataclass
class Config(Task):
    """How histories are split, what is learnt from them, and how it is measured."""

    needs_no_data: ClassVar[str] = 'lists after histories (--history, --history_file) need no data'

    split: str = field('leave-one-out', choices=splits.KINDS)
    # temporal: of the events, in the validation period; users: of users; random: of every user's
    # events; given: of the training events, where the data come without validation events
    valid_share: float = 0.1
    test_share: float = 0.1
    # random, given: whether the input of a test holds the validation events of the user
    valid_seen: bool = field(True, effect='measure')
    prefix_share: float = 0.8  # users: of the events of a held-out user, which are the input
    # a user's held-out events that are targets: the first of the period, or all; or each one by
    # itself, a row of its own
    targets: str = field('first', choices=('first', 'all', 'each'), effect='measure')
    periods: int = field(1, least=1)  # > 1: predict and learn so many periods in turn (a stream)
    # train on each user's 'last' window of the model, on 'all' windows, on 'cuts': histories and
    # the one event after each (in-batch losses, see jaxrec.data.cuts), on 'pairs' of a user and
    # an item, in no order (models of a graph; train.batch_rows counts pairs), on all 'prefixes'
    # of each user's last window, events to predict aside (pre-training), or on 'items' by
    # themselves (models of texts; train.batch_rows counts items)
    windows: str = field('last', choices=('last', 'all', 'cuts', 'pairs', 'prefixes', 'items'))
    cuts: int = field(1, least=1)  # with windows='cuts': targets per window, consecutive
    windows_per_user: int = field(0, least=0)  # with 'cuts': per epoch; 0 = every target once
    unseen_negatives: int = field(0, least=0)  # per target, drawn outside the user's training items
    # with windows='pairs': every user as often as another, and one of their items by chance, as in
    # LightGCN's own code; else every pair once an epoch
    by_user: bool = False
    protocol: str = field('full', choices=protocols.NAMES, effect='measure')
    # score items of the input history -inf (protocol full)
    filter_seen: bool = field(True, effect='measure')
    # sampled candidates (protocols uniform and popularity)
    negatives: int = field(100, least=1, effect='measure')
    cutoffs: tuple[int, ...] = field((1, 5, 10, 20, 50), effect='measure')
    # of data whose items have a domain: learn and rank one of them ('' = the merged log), split as
    # the merged log is; rank every target among the items of its own domain
    domain: str = ''
    in_domain: bool = field(False, effect='measure')
    # of two domains: the share of the users of both who keep both; of the others one is hidden
    overlap: float = field(1.0, above=0, most=1)
    # the control of two domains: what users have in the other domain than their test target's is
    # another user's, in training and evaluation
    shuffled: bool = False
    # of models with a support of users of both domains: the order in which lists take these, while
    # steps draw from all; `evaluate --task.support_seed=1` tells what hangs on which they are
    support_seed: int = field(0, least=0, effect='measure')
    # of the items' titles, for models that read them (model.items.made_of and others)
    texts: Texts = dataclasses.field(default_factory=Texts)
    # tables of items begin with the texts' vectors, of any model: as many of their principal
    # directions as it has columns, as large as the numbers that it would draw
    start_table: bool = False
    # evaluate: also Gini, mean popularity and coverage of the top 10 lists, and metrics by decile
    # of the target's popularity
    popularity: bool = field(False, effect='pace')
    # evaluate: also lists by the last item of a history: item-CF, TF-IDF, the texts' vectors, and
    # mixtures of item-CF with these and with the model's own vectors
    item_lists: bool = field(False, effect='pace')
    # evaluate: also what is solved for, EASE, the low-pass filter, GF-CF and item cosine; where
    # pairs are learnt they come by themselves
    linear: bool = field(False, effect='pace')
    batch_users: int = field(512, least=1, effect='pace')
    valid_users: int = field(0, least=0)  # validate on at most so many during training; 0 = all

    def metrics(self) -> dict[str, Metric]:
        """HR, NDCG and MRR at the cut-offs; with targets='all' Recall, Precision and MAP too.

        With in_domain also the mean of each over the domains, as '.. macro'.
        """
        cutoffs = protocols.protocol_of(self).cutoffs
        names = rank_metrics.names(cutoffs, self.targets == 'all')
        means = [f'Coverage@{k}' for k in cutoffs]
        means += [f'{name} macro' for name in names if self.in_domain]
        return {name: Metric() for name in names} | {n: Metric(single=False) for n in means}

    def main_metric(self) -> str:
        """NDCG@10, or at the first cut-off where there is no 10; with in_domain its macro mean."""
        name = f'NDCG@{10 if 10 in self.cutoffs else min(self.cutoffs)}'
        return f'{name} macro' if self.in_domain else name

    def protocol_fields(self) -> dict[str, Any]:
        """The protocol, and how the data are split."""
        found = {**protocols.asdict(protocols.protocol_of(self)), 'data_split': self.split}
        found |= self.told_precision()
        if self.in_domain:
            found['in_domain'] = True
        if self.periods > 1:
            return {**found, 'data_split': 'periods', 'targets': self.targets}
        if self.split != 'leave-one-out':
            found |= {
                name: getattr(self, name) for name in ('valid_share', 'test_share', 'targets')
            }
        if self.domain:
            found['domain'] = self.domain
        if not self.valid_seen:
            found['valid_seen'] = False
        if self.overlap < 1:
            found['overlap'] = self.overlap
        if self.support_seed:
            found['support_seed'] = self.support_seed
        if self.split == 'users':
            found['prefix_share'] = self.prefix_share
        return found

    def values(self, kept: dict, metric: str, protocol: Mapping[str, Any]) -> tuple:
        """(values, weights) float64 [users] of a metric, from the counts of all targets."""
        counts = kept['greater'], kept['ties']
        if 'owner' in kept:
            found = rank_metrics.per_user(*counts, kept['owner'], protocol['cutoffs'])
        else:
            found = rank_metrics.per_example(*counts, protocol['cutoffs'])
        return found[metric], np.ones(len(found[metric]))

    def check(self, experiment: Any) -> None:
        """Raises UserError for settings of task, model and training that do not go together."""
        inputs, train = experiment.model.inputs(), experiment.train
        protocol = protocols.protocol_of(self)
        check_features(inputs.features)
        if not inputs.max_len:
            raise UserError('this model reads no history: it is not one of the next-item task')
        learns = {'pairs': inputs.pairs, 'prefixes': inputs.prefixes, 'items': bool(inputs.alone)}
        for windows, wanted in learns.items():
            if (self.windows == windows) != wanted:
                want = f"'{windows}'" if wanted else "'last', 'all' or 'cuts'"
                raise UserError(f'this model trains on task.windows={want}, not {self.windows!r}')
        if self.split in splits.PARTED and not inputs.pairs:
            raise UserError(
                f'task.split={self.split!r} takes single events out of their order: it goes with '
                "task.windows='pairs' and a model that learns them"
            )
        if (self.windows == 'cuts') != bool(inputs.cuts):
            want = 'task.windows=' + ("'cuts'" if inputs.cuts else "'last' or 'all'")
            raise UserError(
                f"this model trains on {want}, not {self.windows!r} (model.loss='in_batch' and "
                "task.windows='cuts' go together)"
            )
        if self.windows == 'cuts' and self.cuts > inputs.cuts:
            raise UserError(
                f'task.cuts={self.cuts} is more than the {inputs.cuts} newest events after which '
                'this model can predict (model.newest or model.max_len)'
            )
        if bool(self.unseen_negatives) != inputs.negatives:
            need = "with a sampled loss and model.negatives_per='data'"
            need = "with model.loss='bpr'" if inputs.pairs else need
            raise UserError(f'task.unseen_negatives goes {need}, and they with it')
        if self.by_user and (not inputs.pairs or inputs.domains):
            raise UserError("task.by_user is for task.windows='pairs' of models without domains")
        if self.popularity and protocol.candidates != 'all':
            raise UserError(f"task.popularity needs task.protocol='full', not {self.protocol!r}")
        if self.item_lists and protocol.candidates != 'all':
            raise UserError(f"task.item_lists needs task.protocol='full', not {self.protocol!r}")
        if self.linear and (protocol.candidates != 'all' or self.in_domain):
            raise UserError(
                "task.linear ranks the whole catalogue: it needs task.protocol='full', and not "
                'task.in_domain'
            )
        if self.targets == 'all' and protocol.candidates != 'all':
            raise UserError(f"task.targets='all' needs task.protocol='full', not {self.protocol!r}")
        if self.in_domain and self.targets == 'all':
            raise UserError("task.in_domain ranks one target of a user: set task.targets='first'")
        if self.in_domain and protocol.exclude == 'train' and protocol.candidates != 'all':
            raise UserError(
                f'task.protocol={self.protocol!r} may draw items that the user has in validation '
                "or test as candidates: with task.in_domain take 'uniform' (task.negatives=999)"
            )
        if inputs.domains and not self.in_domain:
            raise UserError(
                'this model learns to rank items of one domain at a time: set task.in_domain'
            )
        if not self.valid_seen and self.split not in splits.PARTED:
            raise UserError("task.valid_seen is for task.split='random' and 'given'")
        if (self.overlap < 1 or self.shuffled) and (
            self.periods > 1 or self.split in splits.PARTED
        ):
            raise UserError(
                'task.overlap and task.shuffled are of a log that is split once, in its order'
            )
        if self.support_seed and not inputs.support:
            raise UserError('task.support_seed: this model has no support of users to draw')
        if self.domain and (self.periods > 1 or self.windows == 'pairs'):
            raise UserError(
                'task.domain takes one domain of a log that is split once, in its order'
            )
        if self.targets == 'each' and not (inputs.pairs and self.split in splits.PARTED):
            raise UserError(
                "task.targets='each' is for pairs in no order: task.split='random' or 'given', and "
                "task.windows='pairs'"
            )
        if self.targets == 'all' and self.split == 'leave-one-out':
            raise UserError("task.split='leave-one-out' has one target: set task.targets='first'")
        if self.split in splits.PARTED and not self.valid_share and train.patience:
            raise UserError('task.valid_share=0 leaves nothing to be patient for: train.patience=0')
        if train.metric.startswith('Coverage') and train.metric in self.metrics():
            raise UserError(
                f'train.metric={train.metric} is measured by jaxrec.evaluate only, not in training'
            )
        item_texts.check(
            self.texts,
            'task.start_table' if self.start_table else 'this model' * inputs.texts,
            "nothing reads the texts: set model.items.made_of='ids+texts' or task.start_table",
        )
        if self.start_table and train.start_from:
            raise UserError('task.start_table and train.start_from both say how tables begin')
        if self.periods > 1:
            self._check_stream(experiment)

    def _check_stream(self, experiment):
        inputs, train = experiment.model.inputs(), experiment.train
        if self.windows != 'cuts':
            raise UserError("task.periods > 1 trains on cuts: set task.windows='cuts'")
        if inputs.extras:
            raise UserError(
                'a stream has no contrastive term: set model.contrast=(), and the weights of '
                'model.multi_signal, if there is one, to 0'
            )
        for feature in inputs.features:
            if feature.kind == 'quantile':
                raise UserError(
                    f"feature {feature.column!r}: kind='quantile' looks at all training events, "
                    "and a stream does not know them yet: take 'log' or 'uniform'"
                )
        if experiment.optim.schedule != 'constant':
            raise UserError("a stream has no end to decay to: set optim.schedule='constant'")
        if train.patience:
            raise UserError('a stream has no validation to be patient for: set train.patience=0')
        if self.split != Config.split:
            raise UserError(f'task.split={self.split!r} and task.periods > 1: time alone splits')

    def open(
        self, experiment: Any, say: Callable = print, process: tuple[int, int] = (0, 1)
    ) -> 'NextItem':
        """Reads the histories, splits them, and hands out batches and rankings."""
        histories, meta = datasets.load(experiment.data, say=say)
        return NextItem(experiment, histories, meta, process, say=say)

    def open_catalogue(self, folder: pathlib.Path) -> 'Retrieval':
        """Lists after histories need the items alone; see `problem.Task`."""
        catalogue = Catalogue.load(folder)
        return Retrieval(
            about=f'{catalogue.name or "data"}: {catalogue.num_items:,} items',
            data_hash=catalogue.data_hash,
            data_path='',
            source=None,
            sizes=_sizes(catalogue),
            periods=(),
            evaluations={},
            ids={'item': catalogue.item_ids},
            catalogue=catalogue,
            constants=constants_of(
                catalogue, self.in_domain and not self.domain, support_seed=self.support_seed
            ),
        )

    def idle(self) -> dict[str, str]:
        """What the protocol does not ask for."""
        found = {}
        if self.protocol not in ('uniform', 'popularity'):
            found['negatives'] = f'task.protocol={self.protocol!r} does not draw so many'
        if self.protocol != 'full':
            found['filter_seen'] = f'task.protocol={self.protocol!r} ranks drawn candidates'
        return found

    def generated(self, experiment: Any, items: int) -> 'NextItem':
        """The problem on generated histories that fill every row, of a catalogue of `items`.

        The last events are learnt and are the targets of evaluations too: it is there to be timed.

        Raises:
          UserError: the model reads features, which they lack.
        """
        inputs = experiment.model.inputs()
        if inputs.features or inputs.rewards or experiment.task.texts.encoder:
            raise UserError(
                '--items has no features and no texts, and the model reads some: leave it out'
            )
        length, rows = experiment.model.inputs().max_len + 1, experiment.train.batch_rows
        histories = generated(length, rows, items)
        meta = {'data_hash': '', 'path': ''}
        last = Targets(np.arange(histories.num_users), histories.offsets[1:] - 1)
        split = dataclasses.replace(_everything(histories), valid=last, test=last)
        return NextItem(experiment, histories, meta, split=split)


_LISTS = Inputs()


def constants_of(
    catalogue: Catalogue,
    domains: bool = False,
    support_seed: int = 0,
    inputs: Inputs = _LISTS,
) -> dict[str, Any]:
    """What steps and passes read of the items: their graph, or 'items' {'known', 'codes'}.

    Where texts are read 'items' also has 'texts' float32 [num_items + 1, d], and where `inputs` ask
    for it 'information' float32 [k, k] of the k columns of 'codes' by name, see `data.information`.

    With `domains` also 'domains' int32 [table rows], numbers from 1 by name, 0 on padding, and of
    models that know them 'of_domain', of each int32 [its items], ascending, which steps read and
    lists do not. Of models that ask for them 'follow' and 'follow_own', entries of means of an
    item's followers, and 'support', rows of overlapped users: 'users' and 'items' of
    `overlap.overlapped`, and 'order', in which lists take them: as `support_seed` draws it, theirs
    with 0.

    Args:
      catalogue: the items.
      domains: whether they have domains.
      support_seed: see above.
      inputs: what a model that is trained wants; of lists nothing more.

    Raises:
      UserError: no item has a feature to mask, or nothing tells items apart, where `inputs` say so.
    """
    found = {} if catalogue.pairs is None else graph_of(catalogue)
    if domains:
        names, numbers = domains_lib.of_items(catalogue)
        found['domains'] = np.pad(numbers, (0, table_rows(catalogue.num_items) - len(numbers)))
        if inputs.domains:
            each = range(1, len(names) + 1)
            found['of_domain'] = [np.flatnonzero(numbers == n).astype(np.int32) for n in each]
    if catalogue.follow is not None:
        found['follow'] = _mean_follower(catalogue.follow, catalogue.num_items)
        found['follow_own'] = _mean_follower(catalogue.follow_own, catalogue.num_items)
    if catalogue.support is not None:
        order = np.arange(len(catalogue.support), dtype=np.int32)
        if support_seed:
            np.random.default_rng(support_seed).shuffle(order)
        found['support'] = {
            'users': np.asarray(catalogue.support_users),
            'items': np.asarray(catalogue.support),
            'order': order,
        }
    if catalogue.known is not None:
        codes = {name: np.asarray(column) for name, column in catalogue.codes.items()}
        found['items'] = {'known': np.asarray(catalogue.known), 'codes': codes}
        if inputs.described and not (codes or catalogue.texts):
            raise UserError(
                'without model.item_id items need features of their own in model.features, or '
                'model.texts: else all items are alike'
            )
        if inputs.information and not codes:
            raise UserError(
                'model.item_views masks features that items have: model.features has none'
            )
        if inputs.information:
            by_name = {name: codes[name] for name in sorted(codes)}
            found['items']['information'] = mutual_information(by_name)
        if catalogue.texts:
            found['items']['texts'] = np.asarray(catalogue.texts['vectors'])
    return found


def _sizes(catalogue: Catalogue) -> dict[str, int]:
    """'item' and 'user', and where texts are read 'text', the length of their vectors."""
    sizes = {'item': catalogue.num_items, 'user': catalogue.num_users}
    return sizes | ({'text': catalogue.texts['vectors'].shape[1]} if catalogue.texts else {})


def _mean_follower(follow, num_items):
    """Entries of D^-1 A with A the counts of followers; rows without any are 0."""
    item, follower, count = np.asarray(follow)
    share = count / np.bincount(item, count, num_items + 1)[item]
    shape = (table_rows(num_items),) * 2
    return entries(scipy.sparse.csr_array((share, (item, follower)), shape))


def graph_of(catalogue: Catalogue) -> dict[str, Any]:
    """'edges' and 'degrees' of `bipartite.graph` of the catalogue's pairs."""
    users, items = catalogue.pairs
    rows = bipartite.Nodes(table_rows(catalogue.num_users - 1), table_rows(catalogue.num_items))
    mesh = jax.sharding.get_mesh()
    edges, degrees = bipartite.graph(users, items, rows, 1 if mesh.empty else mesh.size)
    return {'edges': Divided(edges), 'degrees': degrees}


class Retrieval(Problem):
    """Items by their dot products with a history's vectors."""

    verbs = ('catalogue', 'queries')

    def begin(self, model: Model, constants: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The item vectors."""
        return model.catalogue(constants)


class NextItem(Retrieval):
    """Next-item prediction on histories.

    Args:
      experiment: whole.
      histories: the events, also what serving reads.
      meta: their data_hash and path.
      process: (index, count): the part of each batch that this process makes.
      split: instead of the one that the task names.
      say: called with lines for people.

    Attributes:
      split: which events train, validate and test; of a stream, up to the end.
      codes: of the features that the model reads, None if it reads none.
    """

    def __init__(
        self,
        experiment: Any,
        histories: Histories,
        meta: dict,
        process: tuple[int, int] = (0, 1),
        split: Split | None = None,
        say: Callable = print,
    ):
        self._experiment, self._task, self._process = experiment, experiment.task, process
        task, notes = experiment.task, ()
        two = task.overlap < 1 or task.shuffled
        parted = task.split in splits.PARTED and task.periods == 1 and not split
        if parted:
            shares = task.valid_share, task.test_share
            histories = splits.parted(histories, task.split, *shares)
            how = {'targets': task.targets, 'valid_seen': task.valid_seen}
            split = splits.split(histories, task.split, *shares, **how)
        domains = domains_lib.find(histories, split if parted else None)
        if domains is None and (task.domain or task.in_domain or two):
            raise UserError(
                f'{histories.name or "the data"} names no domains of items, which task.domain, '
                'in_domain, overlap and shuffled go by: of your own log name the column with '
                'data.domain_col'
            )
        if two and len(domains.names) != 2:
            raise UserError(
                f'task.overlap and task.shuffled are of two domains, and {histories.name} has '
                f'{len(domains.names)}: leave them out'
            )
        if task.periods > 1:
            starts = splits.period_starts(histories, task.periods)
            periods = [
                functools.partial(self._period, n, before, after)
                for n, (before, after) in enumerate(itertools.pairwise(starts))
            ]
            self.split, evaluations = _everything(histories), {}
            train_ends = starts[1]
        else:
            if task.overlap < 1:
                histories = overlap.hidden(histories, domains.of_items, task.overlap)
                domains = domains_lib.find(histories)
            self.split = split or splits.split(
                histories,
                task.split,
                task.valid_share,
                task.test_share,
                targets=task.targets,
                prefix_share=task.prefix_share,
            )
            if task.shuffled:
                histories, self.split = overlap.with_other_histories(
                    histories, self.split, domains.of_items
                )
                domains = domains_lib.find(histories)
            if domains is not None:
                notes += (domains.note(histories, self.split.test),)
            if task.domain:
                histories, self.split, domains = domains_lib.only(
                    histories, self.split, domains, task.domain
                )
            train_ends = self.split.train_ends
            periods = [lambda: Period(self.batches())]
            evaluations = {
                'valid': lambda: self.ranking('valid', max_users=self._task.valid_users),
                'test': lambda: self.ranking('test'),
            }
            if task.split in splits.PARTED and not len(self.split.valid):  # nothing validates
                del evaluations['valid']
            if task.split == 'leave-one-out':
                notes += (splits.LEAK_WARNING,)
        self._domains, self._in_domain = domains, task.in_domain and not task.domain
        features = experiment.model.inputs().features
        encoder = Encoder(histories, features, train_ends)
        self.codes = encoder.events if features else None
        wanted = experiment.model.inputs().rewards
        self._rewards = Rewarder(histories, wanted, train_ends) if wanted else None
        self._pairs = None
        if experiment.model.inputs().pairs:
            self._pairs = training_pairs(histories, train_ends)
            repeats = int((train_ends - histories.offsets[:-1]).sum()) - self._pairs.shape[1]
            if repeats:
                notes += (f'note: {repeats:,} repeated pairs are one edge each',)
        self.texts = _texts(experiment, histories, meta['path'], say)
        data_hash, texts = meta['data_hash'], {}
        if self.texts is None and experiment.data.texts:
            unheard = histories.num_items - len(np.unique(histories.items))
            if unheard:
                notes += (
                    f'note: nothing reads the texts, so {unheard:,} items without events are '
                    'ranked by vectors that nothing taught: set task.texts.encoder, or leave '
                    'data.texts out',
                )
        if self.texts is not None:
            texts = self.texts.columns()
            data_hash = hashlib.sha256(f'{data_hash} {self.texts.digest}'.encode()).hexdigest()
        known = None
        if experiment.model.inputs().items:
            known = protocols.training_counts(histories, self.split) > 0
        catalogue = Catalogue(
            histories.item_ids,
            histories.num_users,
            data_hash,
            histories.titles,
            encoder.of_items,
            histories.item_features,
            histories.name,
            self._pairs,
            known,
            texts=texts,
            **self._two_domains(histories, train_ends),
        )
        super().__init__(
            about=f'{histories.name or "data"}: {histories.num_users:,} users, '
            f'{histories.num_items:,} items',
            data_hash=data_hash,
            compared_hash=meta['data_hash'],
            data_path=meta['path'],
            source=histories,
            sizes=_sizes(catalogue),
            periods=periods,
            evaluations=evaluations,
            ids={'item': histories.item_ids},
            notes=notes,
            catalogue=catalogue,
            constants=constants_of(
                catalogue,
                self._in_domain,
                task.support_seed,
                experiment.model.inputs(),
            ),
            starts={'item': self.texts.vectors} if task.start_table else {},
        )
        protocol = protocols.protocol_of(task)
        max_len = experiment.model.inputs().max_len
        self._widths = few_widths(self._longest_inputs(), max_len)
        self._filter_seen = protocol.candidates == 'all' and protocol.filter_seen
        deepest = max(*protocol.cutoffs, LISTED * task.popularity)
        deepest = deepest if protocol.candidates == 'all' else 0
        self._depth = min(deepest, histories.num_items)

    def begin(self, model: Model, constants: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The item vectors, and in_domain the items' domains."""
        carried = super().begin(model, constants)
        return carried | ({'domains': constants['domains']} if self._in_domain else {})

    def predict(self, model: Model, carried: Any, batch: dict, full: bool) -> dict[str, jax.Array]:
        """Counts of the targets, with `full` also top lists and how the interests share them."""
        return score(
            model.queries(batch, carried),
            carried['items'],
            batch,
            num_items=self.sizes['item'],
            filter_seen=self._filter_seen,
            depth=self._depth if full else 0,
            domains=carried.get('domains'),
        )

    def ranking(self, which: str, *, split: Split | None = None, **options: Any) -> Ranking:
        """The evaluation of 'valid' or 'test' of a split, by default the problem's."""
        return Ranking(
            self.source,
            split or self.split,
            which,
            protocols.protocol_of(self._task),
            told=self._task.protocol_fields(),
            max_len=self._experiment.model.inputs().max_len,
            batch_users=self._task.batch_users,
            codes=self.codes,
            several=self._task.targets == 'all',
            each=self._task.targets == 'each',
            popularity=self._task.popularity,
            widths=self._widths,
            numbered=self._experiment.model.inputs().users,
            domains=self._domains,
            in_domain=self._in_domain,
            item_lists=self._task.item_lists,
            texts=self.texts,
            **{'references': self._references(), **options},
        )

    def _two_domains(self, histories, train_ends):
        """What a catalogue holds of models that know two domains."""
        inputs = self._experiment.model.inputs()
        if not inputs.domains:
            return {}
        if self._domains is None or len(self._domains.names) != 2 or self._task.domain:
            there = self._task.domain or ', '.join(self._domains.names if self._domains else ())
            raise UserError(f'this model learns two domains together; here is {there or "none"}')
        of_items, found = self._domains.of_items, {}
        if inputs.followers:
            found['follow'] = domains_lib.followers(histories, train_ends)
            found['follow_own'] = domains_lib.followers(histories, train_ends, of_items)
        if inputs.support:
            width, most = inputs.max_len + 1, inputs.support
            rest = of_items, width, most, inputs.shuffled
            names = 'support_users', 'support'
            found |= dict(zip(names, overlap.overlapped(histories, train_ends, *rest), strict=True))
        return found

    def _references(self) -> tuple[str, ...] | None:
        """Of pairs also what is solved for; nothing that goes by an order which there is not."""
        if self._pairs is None:
            return (*baselines.NAMES, *linear.NAMES) if self._task.linear else None
        ordered = baselines.NAMES if self.source.times is not None else ('popularity',)
        if self._in_domain:
            return (*ordered, *(name for name in baselines.OF_DOMAINS if 'items' in name))
        return (*ordered, *linear.NAMES)

    def _longest_inputs(self) -> np.ndarray:
        """Lengths of what is read to predict test targets; where there are none, of everything."""
        offsets, test = self.source.offsets, self.split.test
        return test.inputs - offsets[test.users] if len(test) else np.diff(offsets)

    def batches(self) -> Batches:
        """The training batches of the split."""
        task, train_ends = self._task, self.split.train_ends
        train = self._experiment.train
        if task.windows == 'pairs' and self._experiment.model.inputs().domains:
            return DomainPairBatches(
                self.source,
                train_ends,
                self._domains.of_items,
                rows=train.batch_rows,
                seed=train.seed,
                negatives=task.unseen_negatives,
                context=self._experiment.model.inputs().context,
                process=self._process,
            )
        if task.windows == 'pairs':
            return PairBatches(
                self._pairs,
                self.source.num_items,
                rows=train.batch_rows,
                seed=train.seed,
                negatives=task.unseen_negatives,
                by_user=task.by_user,
                process=self._process,
            )
        if task.windows == 'items':
            return self._item_batches()
        common = self._common()
        extras = self._experiment.model.inputs().extras
        if extras:
            common['extras'] = self._users(extras, common)
        if 'similar' in extras:
            common['similar'] = positives.similar_items(self.source, train_ends)
        if task.windows == 'cuts':
            return CutBatches(
                self.source,
                train_ends,
                windows=task.windows_per_user,
                cuts=task.cuts,
                numbered=self._experiment.model.inputs().users,
                **common,
            )
        return TrainBatches(
            self.source,
            train_ends,
            windows=task.windows,
            unseen_negatives=task.unseen_negatives,
            numbered=self._experiment.model.inputs().users,
            **common,
        )

    def _item_batches(self) -> ItemBatches:
        titles = np.asarray(self.source.titles)
        numbers = np.unique(titles, return_inverse=True)[1].reshape(-1) + 1
        numbers = np.concatenate([[0], np.where(self.texts.vectors[1:].any(1), numbers, 0)])
        train = self._experiment.train
        return ItemBatches(
            co_clicks(self.source, self.split.train_ends),
            numbers,
            rows=train.batch_rows,
            seed=train.seed,
            how=self._experiment.model.inputs().alone,
            process=self._process,
        )

    def _common(self) -> dict:
        """What all kinds of batches are told."""
        train = self._experiment.train
        return {
            'max_len': self._experiment.model.inputs().max_len,
            'rows': train.batch_rows,
            'seed': train.seed,
            'codes': self.codes,
            'rewards': self._rewards,
            'process': self._process,
        }

    def _users(self, extras, common) -> positives.Users:
        """What contrastive terms want to know of the users of a batch."""
        mesh = jax.sharding.get_mesh()
        return positives.Users(
            self.source,
            self.split.train_ends,
            max_len=common['max_len'],
            seed=common['seed'],
            same_target='same_target' in extras,
            codes=self.codes,
            rewards=self._rewards,
            multiple=1 if mesh.empty else math.lcm(mesh.shape['data'], self._process[1]),
        )

    def _period(self, number: int, before: np.ndarray, after: np.ndarray) -> Period:
        """Predict each user's events from index `before` to `after`, then learn them."""
        histories, evaluations, batches = self.source, {}, None
        starts = histories.offsets[:-1]
        users = np.flatnonzero((before > starts) & (before < after))
        if number and len(users):
            targets = Targets(users, before[users], after[users])
            targets = targets if self._task.targets == 'all' else targets.first()
            evaluations['period'] = self.ranking(
                'valid',
                split=Split(before, targets, targets),
                max_users=self._task.valid_users,
                references=('popularity',),
            )
        if (after > np.maximum(before, starts + 1)).any():  # else first events only
            batches = CutBatches(
                histories,
                after,
                windows=self._task.windows_per_user,
                cuts=self._task.cuts,
                train_starts=before,
                numbered=self._experiment.model.inputs().users,
                **self._common(),
            )
        return Period(batches, evaluations)


def _texts(
    experiment: Any, histories: Histories, folder: str, say: Callable
) -> item_texts.ItemTexts | None:
    """The vectors of the items' texts, None where they are not read.

    A run that begins with another one's parameters shares the space of its texts.

    Raises:
      UserError: there are no texts, a package is missing, or that run has other vectors.
    """
    settings, start, encoder = experiment.task.texts, experiment.train.start_from, None
    if not settings.encoder:
        return None
    if start and (pathlib.Path(start) / 'catalogue').exists():
        kept = Catalogue.load(pathlib.Path(start) / 'catalogue').texts
        there = kept and histories.titles is not None
        now = text_encoders.digest(settings, histories.titles) if there else ''
        same = kept and kept['digest'][0].decode() == now
        encoder = item_texts.encoder_of(kept) if kept and not same else None
        found = encoder and (encoder.kind, len(encoder.centre), bool(encoder.centre.any()))
        if encoder and found != (asked := (settings.encoder, settings.dim, settings.centred)):
            about = '{} of {} numbers, centred: {}'.format
            raise UserError(
                f'train.start_from={start} has texts by {about(*found)}, this command by '
                f'{about(*asked)}: they must be the same'
            )
    return item_texts.of_items(histories, settings, folder, say, encoder)


def _everything(histories: Histories) -> Split:
    """All events train."""
    nobody = Targets(np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Split(np.array(histories.offsets[1:]), nobody, nobody)
