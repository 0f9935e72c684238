"""The contract: a task says what is learnt and how it is measured, a model says how.

Training, evaluation and serving know tasks and models by these types alone:

    Task.open(experiment) -> Problem     reads the data
    ModelConfig.make(sizes) -> Model     builds the model for tables of these sizes
    Problem.periods -> Period            batches to learn from, one after the other
    Problem.evaluations -> Evaluation    examples to predict, and how predictions are measured
    Evaluation.measure -> Measured       metrics, and the value of every user, row or graph

A step is: batch = batches(step); batch = model.sample(batch, key); gradient of model.loss. A pass
is: carried = problem.begin(model, constants); problem.predict for every batch; measure.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from jaxrec.config import field
from jaxrec.errors import UserError

PRECISION = 'highest'  # of the products of an evaluation, where its protocol says nothing
PRECISIONS = ('default', 'high', 'highest')  # default: of the backend, a TPU's is bfloat16
STATISTICS = 'statistics'  # in a carry, see `Model.carry`
Batch = dict[str, Any]  # arrays, nested where the batch has structure
Columns = dict[str, np.ndarray]
Part = tuple[np.ndarray, Columns]  # places int [n] of examples, and the columns [n, ..] of these


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is known of a metric before it is measured."""

    higher: bool = True  # whether a higher value is a better one
    single: bool = True  # whether single users, rows or graphs have values, which a table tests


@dataclasses.dataclass
class Measured:
    """The result of one evaluation.

    Attributes:
      metrics: by name; metrics[m] == np.average(values[m], weights=weights[m]) where there are
        values.
      unit: what a value is of: 'user', 'row' or 'graph'; tests over them need the same in a table.
      values: float64 [N] by metric.
      weights: float64 [N] by metric; absent = all the same.
      groups: metrics of parts of the examples, by name of the grouping, then of the group; every
        group has its 'examples'.
      members: bool [N] of the examples of `values` that a group has, named as in `groups`; a group
        may have none.
      numbers: int64 [N], of the examples in the data, where runs of other seeds hold out others.
      details: JSON-able, everything else that is told about the result.
      kept: arrays from which `values` follow (ranks), kept by a table's cell.
    """

    metrics: dict[str, float]
    unit: str = 'user'
    values: Columns = dataclasses.field(default_factory=dict)
    weights: Columns = dataclasses.field(default_factory=dict)
    groups: dict[str, dict[str, dict]] = dataclasses.field(default_factory=dict)
    members: dict[str, Columns] = dataclasses.field(default_factory=dict)
    numbers: np.ndarray | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    kept: Columns = dataclasses.field(default_factory=dict)

    def to_keep(self) -> Columns:
        """`kept`, or where there is nothing the values and weights themselves; members, numbers."""
        more = {} if self.numbers is None else {'numbers': self.numbers}
        more |= {
            f'members/{grouping}/{name}': array
            for grouping, groups in self.members.items()
            for name, array in groups.items()
        }
        if self.kept:
            return self.kept | more
        weights = {f'weights/{name}': array for name, array in self.weights.items()}
        values = {f'values/{name}': array for name, array in self.values.items()}
        return weights | values | more


class Evaluation:
    """Examples to predict, and how their predictions are measured.

    Attributes:
      examples: how many; `places` in batches count from 0 to examples - 1.
      protocol: JSON-able, all that the numbers depend on besides model and data.
      replays: numbers of the periods whose predictions it measures, as they were before each was
        learnt (`Problem.keeps`); there is nothing to predict. Parts are then (places, the rest of
        what was kept), a part a period. Empty = the usual.
    """

    examples: int
    protocol: dict[str, Any]
    replays: range = range(0)

    def batches(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """(places int64 [n], batch of n rows or more) in a handful of shapes; the rest is padding.

        Every process yields the same whole batches.
        """
        raise NotImplementedError

    def measure(self, parts: Iterable[Part]) -> Measured:
        """Metrics from the columns of `Problem.predict`, part by part as they come."""
        raise NotImplementedError

    def references(self) -> dict[str, Measured]:
        """The same of predictors that have nothing to learn, by name."""
        return {}

    def floor(self, metric: str) -> float | None:
        """What the simplest of them has in a metric: where learning begins. None = unknown."""
        return None

    def mixtures(self, begin: Callable[[], Any]) -> dict[str, Measured]:
        """The same of predictors that take something of the model: what `Problem.begin` gives."""
        del begin
        return {}


class Batches:
    """Training batches: a pure function of the step, so that a run resumes bit for bit.

    Attributes:
      rows: leading axis of a batch over all processes.
      steps_per_epoch, examples_per_epoch, targets_per_epoch: of an epoch.
      fill: share of the places of a batch that are real.
    """

    rows: int
    steps_per_epoch: int
    examples_per_epoch: int
    targets_per_epoch: int
    fill: float = 1.0
    _latest: tuple[int | None, Any] = (None, None)

    def __call__(self, step: int) -> Batch:
        """Batch number `step`, this process's rows of it; always with 'weights' float32 [rows, ..].

        Weights are 1 on real targets and 0 on padding.
        """
        raise NotImplementedError

    def shapes(self) -> list[Batch]:
        """A batch of every shape that comes, one at least: as many programs are compiled."""
        return [self(0)]

    def place(self, step: int, count: int) -> tuple[int, slice]:
        """The epoch of a step, and its part of an epoch's `count` rows.

        They are spread evenly over the epoch's steps: no tiny last batch.
        """
        epoch, nth = divmod(step, self.steps_per_epoch)
        first, last = (n * count // self.steps_per_epoch for n in (nth, nth + 1))
        return epoch, slice(first, last)

    def of_epoch(self, epoch: int, make: Callable[[int], Any]) -> Any:
        """`make(epoch)`, an order say, made once for all steps of the epoch."""
        if self._latest[0] != epoch:
            self._latest = epoch, make(epoch)
        return self._latest[1]


@dataclasses.dataclass
class Period:
    """A stretch of training: predict `before`, then learn `batches` for train.epochs.

    Attributes:
      batches: what is learnt; None if there is nothing.
      before: evaluations of the model as it is before, by name.
      saved: whether a checkpoint ends it; short ones are saved every train.save_every minutes.
    """

    batches: Batches | None
    before: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)
    saved: bool = True


@dataclasses.dataclass
class Problem:
    """A task on its data.

    Attributes:
      about: a line for people.
      data_hash: of the content.
      data_path: folder of the prepared data, '' if there is none.
      source: the data (Histories, Rows, Graph).
      sizes: what tables and heads are made by, {'item': 12101}.
      ids: raw ids by the same names, ascending, of those whose rows a later run may take over.
      constants: arrays that every step and pass reads; placed once, never saved.
      periods: in order; usually one.
      evaluations: by name: 'valid' during training, 'test'.
      notes: lines to print when training begins.
      starts: by the names of `ids`, float32 [n + 1, d] vectors that the rows of all tables numbered
        so begin with (`warm_start.rows_from`).
      catalogue: of the data what serving needs besides the model, of events only those that are a
        graph to propagate over or a support, with `save(folder)`; a run keeps it, so that it is
        served without its data (`Task.open_catalogue`). None where nothing is served.
      compared_hash: of the data without what only some models read, such as the vectors of texts:
        what stands in one column of a table has it in common; '' = `data_hash`.
      verbs: what `begin` and `predict` ask a model for, by name.
      keeps: whether a run keeps what was predicted before each period, by one evaluation at most:
        `Measured.kept`, in which 'places' are those of the examples.
    """

    verbs: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[bool] = False

    about: str
    data_hash: str
    data_path: str
    source: Any
    sizes: dict[str, int]
    periods: Sequence[Callable[[], Period]]
    evaluations: Mapping[str, Callable[[], Evaluation]]
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    ids: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    starts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    catalogue: Any = None
    compared_hash: str = ''

    def begin(self, model: 'Model', constants: dict[str, jax.Array]) -> Any:
        """What a whole pass shares (item vectors, a propagated graph); traced, once a pass."""
        del model, constants
        return {}

    def predict(
        self, model: 'Model', carried: Any, batch: Batch, full: bool
    ) -> dict[str, jax.Array]:
        """Columns [B, ..] of a batch, whole on every device; traced.

        Args:
          model: with the parameters to evaluate.
          carried: of `begin`.
          batch: of `Evaluation.batches`.
          full: everything a report shows, not only what the metrics of training need.
        """
        raise NotImplementedError


@dataclasses.dataclass
class Task:
    """What is learnt, from which data, and how it is measured; `experiment.task`.

    Attributes:
      needs_no_data: for a message, what is served from a run's folder alone; '' = nothing.
    """

    needs_no_data: ClassVar[str] = ''

    # of the matrix products of evaluations and lists, whatever they were trained with
    precision: str = field(PRECISION, choices=PRECISIONS, effect='measure')

    def check(self, experiment: Any) -> None:
        """Every coupling of task, model, data and optimiser, before anything is read.

        Raises:
          UserError: a combination that cannot be.
        """

    def metrics(self) -> dict[str, Metric]:
        """What is measured; train.metric and a table's columns are among these."""
        raise NotImplementedError

    def protocol_fields(self) -> dict[str, Any]:
        """JSON-able: what the numbers depend on besides model and data, with the 'name' of it all.

        With `told_precision`, by which a pass knows how to multiply. Numbers of which these differ
        never share a table.
        """
        raise NotImplementedError

    def told_precision(self) -> dict[str, str]:
        """What `protocol_fields` says of it: nothing of full precision."""
        return {} if self.precision == PRECISION else {'precision': self.precision}

    def values(
        self, kept: Columns, metric: str, protocol: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(values, weights) float64 [N] of a metric, from what a table's cell has kept.

        Args:
          kept: of `Measured.to_keep`.
          metric: by name.
          protocol: of the evaluation.

        Raises:
          KeyError: the metric has no values of single users, rows or graphs.
        """
        del protocol
        values = kept[f'values/{metric}']
        return values, kept.get(f'weights/{metric}', np.ones(len(values)))

    def gains(self, report: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, dict]:
        """{metric: {'base': b, 'gain': value - b}} of a report beside another one.

        Args:
          report: as `jaxrec.evaluate` writes it: metrics, protocol and so on.
          base: another run's, of the same examples.

        Raises:
          UserError: it was made under another protocol.
        """
        if report['protocol'] != base['protocol']:
            raise UserError(f'its protocol is another one: {base["protocol"]}')
        if not self.one_split() and report['seed'] != base['seed']:
            raise UserError(f'its seed, {base["seed"]}, holds out other examples')
        return {
            name: {'base': base['metrics'][name], 'gain': value - base['metrics'][name]}
            for name, value in report['metrics'].items()
            if name in base['metrics']
        }

    def one_split(self) -> bool:
        """Whether runs with other seeds hold out the same examples."""
        return True

    def main_metric(self) -> str:
        """The metric of the best checkpoint where train.metric names none."""
        return next(iter(self.metrics()))

    def open(
        self, experiment: Any, say: Callable = print, process: tuple[int, int] = (0, 1)
    ) -> Problem:
        """Reads the data and hands out the problem; runs under the mesh.

        Args:
          experiment: whole.
          say: called with lines for people.
          process: (index, count): the part of each batch that this process makes.
        """
        raise NotImplementedError

    def open_catalogue(self, folder: pathlib.Path) -> Problem:
        """The problem as a run keeps it, to be served: without data, periods and evaluations.

        Its sizes, constants and `begin` are those of the problem that was learnt.

        Args:
          folder: where that problem's `catalogue` was saved.

        Raises:
          UserError: it is damaged.
        """
        raise NotImplementedError

    def idle(self) -> dict[str, str]:
        """Fields that say nothing beside the values of others, and why, for a message."""
        return {}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a model wants of the data.

    Attributes:
      max_len: newest events of a history that it sees; 0 = no history.
      features: `config.Feature`s that it reads.
      extras: of 'users', 'same_target', 'similar': see data/positives.
      cuts: most targets per window that it can learn; 0 = it learns one at every event.
      negatives: whether the data draw its negatives; of ratings, see `ratings.RatingBatches`.
      labels: that it knows by name, all or none of the task's.
      rewards: what events were worth, a `config.Rewards` with signals; None = 1 each.
      pairs: whether it learns pairs of users and items, by themselves and as a graph.
      users: whether it knows the users of the data by number.
      items: whether it makes item vectors of items' features, which steps then read as constants.
      information: whether it also wants how much the features of items say of each other.
      prefixes: whether it learns histories as they are, without an event to predict.
      domains: whether it knows the domains of items, a constant too.
      followers: whether it reads which item follows which in training, of two domains.
      context: of pairs in two domains, most items of either that come with a pair.
      support: most overlapped users whose training histories are a constant too.
      shuffled: whether their events of one domain are another user's, see `data.overlap`.
      texts: whether it reads the items' texts, constants beside those of `items`.
      described: whether it knows items by their features and texts alone, so that they need some.
      alone: of a model that learns items by themselves, how their negatives are chosen, one of
        `item_batches.HOW`; '' = it learns histories or pairs.
    """

    max_len: int = 0
    features: tuple = ()
    extras: tuple[str, ...] = ()
    cuts: int = 0
    negatives: bool = False
    labels: tuple[str, ...] = ()
    rewards: Any = None
    pairs: bool = False
    users: bool = False
    items: bool = False
    information: bool = False
    prefixes: bool = False
    domains: bool = False
    followers: bool = False
    context: int = 0
    support: int = 0
    shuffled: bool = False
    texts: bool = False
    described: bool = False
    alone: str = ''


@dataclasses.dataclass(frozen=True)
class Level:
    """Experts of a model side by side, and who listens to them; '' is what belongs to all.

    Attributes:
      listeners: C names, of labels or groups of them.
      owners: E names, of whose each expert is.
      hears: of every listener the owners whose experts its gate reaches.
    """

    listeners: tuple[str, ...]
    owners: tuple[str, ...]
    hears: tuple[tuple[str, ...], ...]

    @property
    def sees(self) -> np.ndarray:
        """bool [C, E], whose gate reaches which expert."""
        return np.array([[owner in heard for owner in self.owners] for heard in self.hears])

    @property
    def own(self) -> np.ndarray:
        """bool [C, E], which experts are a listener's alone."""
        alone = [[bool(one) and one == owner for owner in self.owners] for one in self.listeners]
        return np.array(alone)

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts: 'like 1', 'shared 2'."""
        seen, names = {}, []
        for owner in self.owners:
            seen[owner] = seen.get(owner, 0) + 1
            names.append(f'{owner or "shared"} {seen[owner]}')
        return tuple(names)


@dataclasses.dataclass
class ModelConfig:
    """Hyper-parameters of a model; `experiment.model`.

    Attributes:
      verbs: of a model for several tasks or none of its own, what a task may ask it for.
    """

    verbs: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raises UserError for a value that cannot be."""

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'Model':
        """Builds the model; `sizes` are those of the problem."""
        raise NotImplementedError

    def inputs(self) -> Inputs:
        """What the model wants of the data."""
        return Inputs()

    def tables(self) -> dict[str, tuple[str, ...]]:
        """{parameter: paths in the batch} of tables of which a step needs the named rows only.

        A path names its way into the batch, 'positive/items'. {} where a step needs whole tables.
        """
        return {}

    def whole_batch(self) -> str:
        """The setting for which a batch's rows need each other (negatives, a norm); '' = none."""
        return ''

    def expert_levels(self, labels: tuple[str, ...]) -> tuple[Level, ...]:
        """The levels of experts between input and labels, of which `Model.look` tells."""
        del labels
        return ()


class Model(nnx.Module):
    """A model; besides `loss` it has the verbs of its task.

    Retrieval: `catalogue(constants) -> {'items': [rows, D], ..}` and
    `queries(batch, catalogue) -> [B, K, D]`. Click: `scores(batch, constants) -> [B, T]`, logits.
    Nodes: `scores` of classes, or `embed(batch, constants) -> [N, D]` under a linear probe.
    """

    def sample(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch with the row numbers that `loss` draws (negatives); the step calls it."""
        del key
        return batch

    def loss(
        self, batch: Batch, constants: dict[str, jax.Array], carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """(scalar, (named terms, carry)): a mean weighted by batch['weights'].

        A term 'spread' (or 'spread.PLACE') is how far vectors are apart: 1 = in all directions, 0 =
        all the same, of which training warns.

        Args:
          batch: after `sample`.
          constants: of the problem.
          carry: what it remembers of the steps before, see `carry`.
          key: of this step; dropout.
        """
        raise NotImplementedError

    def look(self, batch: Batch, constants: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Columns [B, ..] of what a report shows of the inside; 'gates/0', 'experts/0' of levels.

        Of a level with C listeners and E experts: [B, C, E] and [B, E, D].
        """
        del batch, constants
        return {}

    def carry(self) -> dict:
        """First value of what is remembered besides parameters: momentum, queue, BatchNorm.

        What is under STATISTICS, nested like the parameters, is evaluated and served in their
        place: running means and variances.
        """
        return {}
