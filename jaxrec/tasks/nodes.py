"""Classes of the nodes of one graph, from a model's own scores or from its frozen vectors.

The whole graph is at hand during training, labels of the train nodes alone (transductive). Under
probe='linear' a logistic regression on the vectors of the train nodes takes the place of the
model's scores: that is how vectors learnt without labels are judged.
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
from jaxrec.evaluation.probe import linear_probe
from jaxrec.nn import propagate

VERBS = {'scores': 'scores', 'linear': 'embed'}  # probe -> what it asks the model for
_EVALUATED_AT_ONCE = 1024  # nodes of a batch; the graph is propagated once a pass, not here


@dataclasses.dataclass
class Config(problem.Task):
    """Classification of nodes; train.batch_rows counts nodes of a step."""

    # train, valid and test nodes: those that come with the graph
    split: str = field('public', choices=('public',))
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

    def metrics(self) -> dict[str, problem.Metric]:
        """Accuracy, the share of nodes whose class is found."""
        return {'accuracy': problem.Metric()}

    def protocol_fields(self) -> dict[str, Any]:
        """How nodes are split and what predicts their classes."""
        found = {'name': 'nodes', 'probe': self.probe, 'data_split': self.split}
        return found | self.told_precision()

    def open(
        self, experiment: Any, say: Callable = print, process: tuple[int, int] = (0, 1)
    ) -> 'Nodes':
        """Reads the graph and hands out the problem; runs under the mesh.

        Raises:
          UserError: no such graph, or one without features, labels or split.
        """
        graph, meta = datasets.load(experiment.data, say, kind=Graph)
        for name in ('features', 'labels', *PARTS):
            if getattr(graph, name) is None:
                raise UserError(f'the graph {graph.name} has no {name}, which task.nodes needs')
        if self.normalise_features:
            graph = dataclasses.replace(graph, features=row_normalised(graph.features))
        parts = {name: _labelled(graph, name) for name in PARTS}
        learnt = np.arange(graph.num_nodes) if self.nodes == 'all' else parts['train']
        shown = np.full(graph.num_nodes, UNKNOWN, np.int32)
        shown[parts['train']] = graph.labels[parts['train']]
        multiple = _multiple()

        def batches():
            rows = experiment.train.batch_rows
            seed = experiment.train.seed
            return problem.Period(NodeBatches(learnt, shown, rows, seed, multiple, process))

        def evaluation(part):
            return lambda: NodeEvaluation(self, graph, parts, part, multiple)

        counts = ', '.join(f'{len(parts[name]):,} {name}' for name in PARTS)
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
        """(places, batch) of one shape: nodes and labels (hidden) int32, weights float32."""
        rows = min(self.examples, _EVALUATED_AT_ONCE)
        rows = -(-rows // self._multiple) * self._multiple
        hidden = np.full(self._graph.num_nodes, UNKNOWN, np.int32)
        for start in range(0, self.examples, rows):
            nodes = self._nodes[start : start + rows]
            yield np.arange(start, start + len(nodes)), node_batch(nodes, hidden, rows)

    def measure(self, parts: Iterable[problem.Part]) -> problem.Measured:
        """Accuracy from 'class' or 'vector' columns."""
        column = 'class' if self._probe == 'scores' else 'vector'
        values = None
        for places, columns in parts:
            if values is None:
                values = np.empty((self.examples, *columns[column].shape[1:]), np.float32)
            values[places] = columns[column][: len(places)]
        if self._probe == 'scores':
            return self._measured(values.astype(np.int32))
        return self._measured(*self._probed(values))

    def references(self) -> dict[str, problem.Measured]:
        """What needs no model: the class most frequent among train and valid nodes, and probes.

        'raw features' is a linear probe on the features, 'smoothed features' on A^2 X, the features
        propagated twice (SGC, Wu et al. 2019): what a model learns beyond smoothing is above that.
        """
        known = np.concatenate([self._parts['train'], self._parts['valid']])
        majority = np.bincount(self._graph.labels[known]).argmax()
        adjacency, features = self._graph.normalised_adjacency(), self._graph.features
        nodes = np.unique(np.concatenate([known, self._parts[self._part]]))
        found = {'majority': self._measured(np.full(self.examples, majority, np.int32))}
        for name, x in {
            'raw features': features,
            'smoothed features': adjacency @ (adjacency @ features),
        }.items():
            rows = x[nodes].toarray() if scipy.sparse.issparse(x) else x[nodes]
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

    def _measured(self, classes, details=None):
        """Accuracy of predicted classes [examples] on the part."""
        nodes = self._parts[self._part]
        labels = self._graph.labels[nodes]
        right = (classes[np.searchsorted(self._nodes, nodes)] == labels).astype(np.float64)
        groups = {
            str(c): {
                'examples': int((labels == c).sum()),
                'accuracy': float(right[labels == c].mean()),
            }
            for c in np.unique(labels)
        }
        return problem.Measured(
            {'accuracy': float(right.mean())},
            unit='row',
            values={'accuracy': right},
            groups={'class': groups},
            details={'probe': details} if details else {},
        )


def _labelled(graph: Graph, part: str) -> np.ndarray:
    """Nodes of a part that have a label; UserError if there is none."""
    nodes = getattr(graph, part)
    nodes = nodes[graph.labels[nodes] != UNKNOWN]
    if not len(nodes):
        raise UserError(f'the graph {graph.name} has no labelled {part} nodes')
    return nodes


def _multiple() -> int:
    """What the rows of a batch are padded to on the current mesh."""
    return math.lcm(ROW_MULTIPLE, jax.sharding.get_abstract_mesh().shape.get('data', 1))
