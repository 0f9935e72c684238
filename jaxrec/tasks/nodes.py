"""Classes of the nodes of one graph, from a model's own scores or from its frozen vectors.

The whole graph is at hand during training, labels of the train nodes alone (transductive). Under
probe='linear' a logistic regression on the vectors of the train nodes takes the place of the
model's scores: that is how vectors learnt without labels are judged, on the split that comes with
the graph or, under split='random', on several random ones (as GRACE, Zhu et al. 2020, does). These
are two protocols whose numbers differ by points, and never share a table.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from jaxrec import datasets, problem
from jaxrec.config import field
from jaxrec.data.graph import PARTS, UNKNOWN, Graph, row_normalised
from jaxrec.data.node_batches import ROW_MULTIPLE, NodeBatches, node_batch
from jaxrec.devices.mesh import lookup, replicated
from jaxrec.errors import UserError
from jaxrec.evaluation import point_metrics
from jaxrec.evaluation.probe import (
    STRENGTHS,
    fitted_by_folds,
    linear_probe,
    logistic_regression,
)
from jaxrec.evaluation.run import collected
from jaxrec.nn import propagate

VERBS = {'scores': 'scores', 'linear': 'embed'}  # probe -> what it asks the model for
_EVALUATED_AT_ONCE = 1024  # nodes of a batch; the graph is propagated once a pass, not here


@dataclasses.dataclass
class Config(problem.Task):
    """Classification of nodes; train.batch_rows counts nodes of a step."""

    # train, valid and test nodes: those that come with the graph, or `splits` times train_share of
    # all labelled nodes, at random, the rest test; C and the best step by folds of the train nodes
    split: str = field('public', choices=('public', 'random'))
    splits: int = field(5, least=1, effect='measure')
    train_share: float = field(0.1, above=0, below=1, effect='measure')
    # the model's own scores, or logistic regression on frozen vectors
    probe: str = field('scores', choices=tuple(VERBS))
    # learn from the train nodes, or from all, labels hidden elsewhere
    nodes: str = field('labelled', choices=('labelled', 'all'))
    normalise_features: bool = True  # each node's features divided by their sum

    def check(self, experiment: Any) -> None:
        """Every coupling of task, model, data and optimiser, before anything is read.

        Raises:
          UserError: a combination that cannot be.
        """
        verb = VERBS[self.probe]
        if verb not in experiment.model.verbs:
            raise UserError(
                f'task.probe={self.probe!r} needs a model that has `{verb}` for nodes, and this '
                'one has not: choose another task.probe or model'
            )
        if self.nodes != 'all' and 'scores' not in experiment.model.verbs:
            raise UserError(
                f'task.nodes={self.nodes!r}: this model learns without labels, and so from all '
                "nodes: set task.nodes='all'"
            )
        if self.split == 'random' and (self.probe, self.nodes) != ('linear', 'all'):
            raise UserError(
                "task.split='random' judges vectors learnt without labels: set "
                "task.probe='linear' and task.nodes='all'"
            )

    def metrics(self) -> dict[str, problem.Metric]:
        """Accuracy, the share of nodes whose class is found."""
        return {'accuracy': problem.Metric()}

    def protocol_fields(self) -> dict[str, Any]:
        """How nodes are split and what predicts their classes."""
        found = {'name': 'nodes', 'probe': self.probe, 'data_split': self.split}
        if self.split == 'random':
            found |= {'splits': self.splits, 'train_share': self.train_share}
        return found | self.told_precision()

    def open(
        self, experiment: Any, say: Callable = print, process: tuple[int, int] = (0, 1)
    ) -> 'Nodes':
        """Reads the graph and hands out the problem; runs under the mesh.

        Raises:
          UserError: no such graph, or one without features, labels or split.
        """
        graph, meta = datasets.load(experiment.data, say, kind=Graph)
        parted = self.split == 'public'
        for name in ('features', 'labels', *(PARTS if parted else ())):
            if getattr(graph, name) is None:
                raise UserError(f'the graph {graph.name} has no {name}, which task.nodes needs')
        if self.normalise_features:
            graph = dataclasses.replace(graph, features=row_normalised(graph.features))
        parts = {name: _labelled(graph, name) for name in PARTS} if parted else {}
        learnt = np.arange(graph.num_nodes) if self.nodes == 'all' else parts['train']
        shown = np.full(graph.num_nodes, UNKNOWN, np.int32)
        if parted:
            shown[parts['train']] = graph.labels[parts['train']]
        multiple = row_multiple()

        def batches():
            rows = experiment.train.batch_rows
            seed = experiment.train.seed
            return problem.Period(NodeBatches(learnt, shown, rows, seed, multiple, process))

        def evaluation(part):
            if parted:
                return lambda: NodeEvaluation(self, graph, parts, part, multiple)
            return lambda: SplitsEvaluation(self, graph, part, multiple)

        counts = ', '.join(f'{len(nodes):,} {name}' for name, nodes in parts.items())
        counts = counts or f'{self.splits} times {self.train_share:.0%} to learn from,'
        return Nodes(
            about=f'{graph.name}: {graph.num_nodes:,} nodes, {graph.edges.shape[1]:,} edges, '
            f'{graph.num_features:,} features, {graph.num_classes} classes; {counts} nodes',
            data_hash=meta['data_hash'],
            data_path=meta['path'],
            source=graph,
            sizes={
                'node': graph.num_nodes,
                'feature': graph.num_features,
                'class': graph.num_classes,
            },
            periods=[batches],
            evaluations={part: evaluation(part) for part in ('valid', 'test')},
            constants=constants(graph),
            probe=self.probe,
        )


def constants(graph: Graph) -> dict[str, Any]:
    """'adjacency': Sparse [N, N], normalised; 'features': Sparse or float32 [N, F], as they are."""
    features = graph.features
    sparse = scipy.sparse.issparse(features)
    return {
        'adjacency': propagate.entries(graph.normalised_adjacency()),
        'features': propagate.entries(features) if sparse else np.asarray(features, np.float32),
    }


@dataclasses.dataclass
class Nodes(problem.Problem):
    """The problem; a pass computes all nodes once, and its batches pick theirs.

    Attributes:
      probe: of the task.
    """

    probe: str = 'scores'

    def begin(self, model: problem.Model, constants: dict) -> jax.Array:
        """Class logits or vectors of all nodes, [N, C] or [N, D]."""
        batch = {'nodes': jnp.arange(self.sizes['node'], dtype=jnp.int32)}
        verb = model.scores if self.probe == 'scores' else model.embed
        return verb(batch, constants)

    def predict(
        self, model: problem.Model, carried: jax.Array, batch: dict, full: bool
    ) -> dict[str, jax.Array]:
        """'class' int32 [B] under probe='scores', else 'vector' [B, D]."""
        del model, full
        rows = replicated(lookup(carried, batch['nodes']))
        if self.probe == 'scores':
            return {'class': rows.argmax(-1).astype(jnp.int32)}
        return {'vector': rows}


class NodeEvaluation(problem.Evaluation):
    """Accuracy over the nodes of a part; under probe='linear' train and valid are predicted too.

    Args:
      task: the task's settings.
      graph: with the features that the model sees.
      parts: labelled nodes by name.
      part: 'valid' or 'test'.
      multiple: batches are padded to a multiple of this.
    """

    def __init__(
        self,
        task: Config,
        graph: Graph,
        parts: dict[str, np.ndarray],
        part: str,
        multiple: int = ROW_MULTIPLE,
    ):
        self._graph, self._parts, self._part = graph, parts, part
        self._probe, self._multiple = task.probe, multiple
        names = dict.fromkeys(['train', 'valid', part]) if task.probe == 'linear' else [part]
        self._nodes = np.unique(np.concatenate([parts[name] for name in names]))
        self.examples = len(self._nodes)
        self.protocol = {**task.protocol_fields(), 'nodes': len(parts[part])}

    def batches(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """See `batches_of`."""
        return batches_of(self._nodes, self._graph.num_nodes, self._multiple)

    def measure(self, parts: Iterable[problem.Part]) -> problem.Measured:
        """Accuracy from 'class' or 'vector' columns."""
        columns = collected(parts, self.examples)
        if self._probe == 'scores':
            return self._measured(columns['class'])
        return self._measured(*self._probed(columns['vector']))

    def references(self) -> dict[str, problem.Measured]:
        """What needs no model: the class most frequent among train and valid nodes, and probes.

        'raw features' is a linear probe on the features, 'smoothed features' on A^2 X, the features
        propagated twice (SGC, Wu et al. 2019): what a model learns beyond smoothing is above that.
        """
        known = np.concatenate([self._parts['train'], self._parts['valid']])
        majority = np.bincount(self._graph.labels[known]).argmax()
        nodes = np.unique(np.concatenate([known, self._parts[self._part]]))
        found = {'majority': self._measured(np.full(self.examples, majority, np.int32))}
        for name, rows in untrained(self._graph, nodes):
            predicted, details = self._probed(rows, nodes)
            mine = predicted[np.searchsorted(nodes, self._nodes)]
            found[name] = self._measured(mine, details)
        return found

    def _probed(self, vectors, nodes=None):
        """Classes of `nodes` (those evaluated) by a linear probe on their vectors, and its C."""
        nodes = self._nodes if nodes is None else nodes
        train, valid = (np.searchsorted(nodes, self._parts[p]) for p in ('train', 'valid'))
        labels = self._graph.labels[nodes]
        return linear_probe(vectors, labels, train, valid, self._graph.num_classes)

    def _measured(self, predicted, probe=None):
        """Accuracy of predicted classes of `_nodes` on the part."""
        nodes = self._parts[self._part]
        mine = predicted[np.searchsorted(self._nodes, nodes)]
        return point_metrics.classes(mine, self._graph.labels[nodes], 'row', probe)


class SplitsEvaluation(problem.Evaluation):
    """Mean accuracy over random splits of the labelled nodes.

    Each split is probed by multinomial logistic regression (GRACE: one class against the rest) on
    vectors of length 1, C chosen by five folds of its train nodes. 'valid' is the accuracy over
    these folds, of the first split alone, which none of its test nodes has a part in.

    Args:
      task: the task's settings.
      graph: with the features that the model sees.
      part: 'valid' or 'test'.
      multiple: batches are padded to a multiple of this.
    """

    def __init__(self, task: Config, graph: Graph, part: str, multiple: int = ROW_MULTIPLE):
        self._task, self._graph, self._part, self._multiple = task, graph, part, multiple
        self._nodes = np.flatnonzero(graph.labels != UNKNOWN)
        self._labels, self.examples = graph.labels[self._nodes], len(self._nodes)
        if round(task.train_share * self.examples) < 5:
            raise UserError(
                f'{graph.name} has {self.examples} labelled nodes, of which '
                f'task.train_share={task.train_share} are too few'
            )
        self.protocol = {**task.protocol_fields(), 'nodes': self.examples}

    def batches(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """See `batches_of`."""
        return batches_of(self._nodes, self._graph.num_nodes, self._multiple)

    def measure(self, parts: Iterable[problem.Part]) -> problem.Measured:
        """Accuracy from the columns 'vector'."""
        return self._probed(collected(parts, self.examples)['vector'])

    def references(self) -> dict[str, problem.Measured]:
        """As of `NodeEvaluation`, without the largest class."""
        return {name: self._probed(x) for name, x in untrained(self._graph, self._nodes)}

    def _probed(self, vectors: np.ndarray) -> problem.Measured:
        right, tested = np.zeros(self.examples), np.zeros(self.examples)
        valid, chosen = [], []
        vectors = np.asarray(vectors, np.float64)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        for seed in range(self._task.splits if self._part == 'test' else 1):
            generator = np.random.default_rng(seed)
            order = generator.permutation(self.examples)
            train, test = np.split(order, [round(self._task.train_share * self.examples)])
            x = vectors
            if x.shape[1] > len(train):  # the solution lies in the span of the train rows
                x = x @ np.linalg.qr(x[train].T)[0]
            of = x, self._labels, train, self._graph.num_classes, generator
            predicted, c, accuracy = fitted_by_folds(logistic_regression, STRENGTHS, *of)
            right[test] += predicted[test] == self._labels[test]
            tested[test] += 1
            valid.append(accuracy)
            chosen.append(c)
        details = {'probe': {'c': chosen, 'valid_accuracy': float(np.mean(valid))}}
        if self._part == 'valid':
            metrics, values = {'accuracy': float(np.mean(valid))}, {'accuracy': np.array(valid)}
            return problem.Measured(metrics, 'row', values, details=details)
        value = {'accuracy': right / np.maximum(tested, 1)}
        mean = float(np.average(value['accuracy'], weights=tested))
        weights = {'accuracy': tested}
        return problem.Measured({'accuracy': mean}, 'row', value, weights, details=details)


def batches_of(
    nodes: np.ndarray, count: int, multiple: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(places, batch) of one shape: nodes and labels (hidden) int32, weights float32.

    Args:
      nodes: to be predicted, of `count`.
      count: N.
      multiple: batches are padded to a multiple of this.
    """
    rows = min(len(nodes), _EVALUATED_AT_ONCE)
    rows = -(-rows // multiple) * multiple
    hidden = np.full(count, UNKNOWN, np.int32)
    for start in range(0, len(nodes), rows):
        some = nodes[start : start + rows]
        yield np.arange(start, start + len(some)), node_batch(some, hidden, rows)


def untrained(graph: Graph, nodes: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(name, rows [n, F] of these nodes) of the features, and of A^2 X."""
    adjacency, features = graph.normalised_adjacency(), graph.features
    smoothed = adjacency @ (adjacency @ features)
    for name, x in (('raw features', features), ('smoothed features', smoothed)):
        yield name, x[nodes].toarray() if scipy.sparse.issparse(x) else x[nodes]


def _labelled(graph: Graph, part: str) -> np.ndarray:
    """Nodes of a part that have a label; UserError if there is none."""
    nodes = getattr(graph, part)
    nodes = nodes[graph.labels[nodes] != UNKNOWN]
    if not len(nodes):
        raise UserError(f'the graph {graph.name} has no labelled {part} nodes')
    return nodes


def row_multiple() -> int:
    """What the rows of a batch are padded to on the current mesh."""
    return math.lcm(ROW_MULTIPLE, jax.sharding.get_abstract_mesh().shape.get('data', 1))
