"""Classes of small graphs, by a linear SVM on the vectors that a model learnt without labels.

All graphs are learnt from and all are embedded, with the model's running statistics, so that the
order of the file tells nothing. Then every fold of ten is predicted by an SVM of the other nine,
whose C is chosen by folds of these nine. Nothing validates: the last step is evaluated.

The protocol is near that of GraphCL (You et al., NeurIPS 2020), whose code has an SVM with an RBF
kernel on vectors as they are (GridSearchCV(SVC())); ours is linear, on standardised ones.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import jax
import numpy as np

from jaxrec import datasets, problem
from jaxrec.config import field
from jaxrec.data.graphs import GraphBatches, Graphs, Packer
from jaxrec.devices.mesh import replicated
from jaxrec.errors import UserError
from jaxrec.evaluation import point_metrics
from jaxrec.evaluation.probe import fitted_by_folds, linear_svm, stratified
from jaxrec.evaluation.run import collected
from jaxrec.tasks.nodes import row_multiple

STRENGTHS = tuple(10.0**n for n in range(-3, 4))  # C that are tried


@dataclasses.dataclass
class Config(problem.Task):
    """Classification of graphs; train.batch_rows counts graphs of a step."""

    folds: int = field(10, least=2, effect='measure')
    fold_seed: int = field(0, least=0, effect='measure')  # which graphs are in which fold

    def check(self, experiment: Any) -> None:
        """Raises UserError for a model that embeds no graphs."""
        if 'embed_graphs' not in experiment.model.verbs:
            raise UserError('this model has no `embed_graphs`: it is not one of the graph task')

    def metrics(self) -> dict[str, problem.Metric]:
        """Accuracy, the share of graphs whose class is found."""
        return {'accuracy': problem.Metric()}

    def protocol_fields(self) -> dict[str, Any]:
        """How graphs are folded and what predicts their classes."""
        found = {'name': 'graphs', 'probe': 'linear svm', 'folds': self.folds}
        return found | {'fold_seed': self.fold_seed} | self.told_precision()

    def open(
        self, experiment: Any, say: Callable = print, process: tuple[int, int] = (0, 1)
    ) -> 'GraphClasses':
        """Reads the graphs and hands out the problem; runs under the mesh.

        Raises:
          UserError: no such graphs, or a class of fewer than two folds can hold.
        """
        graphs, meta = datasets.load(experiment.data, say, kind=Graphs)
        few = np.bincount(graphs.labels).min()
        if few < 2 * self.folds:
            raise UserError(
                f'a class of {graphs.name} has {few} graphs, too few for task.folds={self.folds}'
            )
        packer = Packer(graphs, experiment.train.batch_rows, row_multiple())
        batches = GraphBatches(packer, graphs.num_graphs, experiment.train.seed, process)
        return GraphClasses(
            about=f'{graphs.name}: {graphs.num_graphs:,} graphs, {len(graphs.tags):,} nodes, '
            f'{graphs.edges.shape[1]:,} edges, {graphs.num_tags} tags, '
            f'{graphs.num_classes} classes',
            data_hash=meta['data_hash'],
            data_path=meta['path'],
            source=graphs,
            sizes={'tag': graphs.num_tags, 'class': graphs.num_classes},
            periods=[lambda: problem.Period(batches)],
            evaluations={'test': lambda: GraphEvaluation(self, graphs, packer)},
        )


class GraphClasses(problem.Problem):
    """The problem; a model's `embed_graphs(batch) -> [B, D]` is what it is asked for."""

    verbs: ClassVar[tuple[str, ...]] = ('embed_graphs',)

    def predict(
        self, model: problem.Model, carried: Any, batch: dict, full: bool
    ) -> dict[str, jax.Array]:
        """'vector' [B, D]."""
        del carried, full
        return {'vector': replicated(model.embed_graphs(batch))}


class GraphEvaluation(problem.Evaluation):
    """Accuracy over all graphs, each predicted in its fold.

    Args:
      task: the task's settings.
      graphs: all of them.
      packer: of their batches.
    """

    def __init__(self, task: Config, graphs: Graphs, packer: Packer):
        self._task, self._graphs, self._packer = task, graphs, packer
        self.examples, self.protocol = graphs.num_graphs, task.protocol_fields()

    def batches(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """(places, batch) of one shape; labels are not in it."""
        for chosen in self._packer.order():
            batch = self._packer(chosen)
            del batch['labels']
            yield chosen, batch

    def measure(self, parts: Iterable[problem.Part]) -> problem.Measured:
        """Accuracy from the columns 'vector'."""
        vectors = collected(parts, self.examples)['vector']
        return self._probed(vectors.astype(np.float64))

    def references(self) -> dict[str, problem.Measured]:
        """What needs no model: the largest class, and SVMs on what is counted.

        'raw features' are the nodes of each tag in a graph; 'smoothed features' also those of their
        neighbours, and of the neighbours' neighbours: what a GIN without weights reads out; 'graph
        statistics' log(1 + x) of the nodes, edges, density, mean and largest degree.
        """
        graphs = self._graphs
        labels, tags = graphs.labels, np.eye(graphs.num_tags)[graphs.tags]
        low, high = graphs.edges
        total = lambda x: np.add.reduceat(x, graphs.offsets[:-1], axis=0)  # noqa: E731
        states = [tags]
        for _ in range(2):
            around = states[-1].copy()
            np.add.at(around, low, states[-1][high])
            np.add.at(around, high, states[-1][low])
            states.append(around)
        degrees = np.bincount(graphs.edges.reshape(-1), minlength=len(graphs.tags)).astype(float)
        nodes, ends = np.diff(graphs.offsets), total(degrees)
        largest = np.maximum.reduceat(degrees, graphs.offsets[:-1])
        counted = [
            nodes,
            ends / 2,
            ends / np.maximum(nodes * (nodes - 1), 1),
            ends / nodes,
            largest,
        ]
        majority = np.bincount(labels).argmax()
        return {
            'majority': self._measured(np.full(len(labels), majority)),
            'raw features': self._probed(total(tags)),
            'smoothed features': self._probed(np.concatenate([total(x) for x in states], axis=1)),
            'graph statistics': self._probed(np.log1p(np.stack(counted, axis=1))),
        }

    def _probed(self, x: np.ndarray) -> problem.Measured:
        """Accuracy of SVMs on vectors [G, D], standardised by those that they are fitted on."""
        task, labels = self._task, self._graphs.labels
        generator = np.random.default_rng(task.fold_seed)
        fold = stratified(labels, task.folds, generator)
        predicted, chosen = np.zeros(len(labels), np.int32), []
        for n in range(task.folds):
            train = np.flatnonzero(fold != n)
            deviation = x[train].std(0)
            scaled = (x - x[train].mean(0)) / np.where(deviation > 1e-9, deviation, 1)
            classes, c, _ = fitted_by_folds(
                linear_svm, STRENGTHS, scaled, labels, train, self._graphs.num_classes, generator
            )
            predicted[fold == n] = classes[fold == n]
            chosen.append(c)
        return self._measured(predicted, {'c': chosen})

    def _measured(self, predicted, probe=None):
        return point_metrics.classes(predicted, self._graphs.labels, 'graph', probe)
