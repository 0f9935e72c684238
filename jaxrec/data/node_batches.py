"""Batches of a graph's nodes; the graph itself is at hand whole."""

import numpy as np

from jaxrec import problem, rng
from jaxrec.data.graph import UNKNOWN
from jaxrec.data.ragged import part

ROW_MULTIPLE = 64  # batches are padded to this, so that they split over most meshes


class NodeBatches(problem.Batches):
    """Batches of nodes; an epoch has every node once, in a new order where there are several steps.

    Args:
      nodes: int [n] that are learnt from.
      labels: int32 [N] of all nodes, UNKNOWN where they are hidden.
      rows: of `nodes` in a step, at most.
      seed: of the order.
      multiple: a batch is padded to a multiple of this.
      process: (index, count) of this process; it gets its slice of the rows.
    """

    def __init__(
        self,
        nodes: np.ndarray,
        labels: np.ndarray,
        rows: int,
        seed: int,
        multiple: int = ROW_MULTIPLE,
        process: tuple[int, int] = (0, 1),
    ):
        self._nodes, self._labels, self._seed, self._process = nodes, labels, seed, process
        self.steps_per_epoch = -(-len(nodes) // rows)
        self._each = -(-len(nodes) // self.steps_per_epoch)
        self.rows = -(-self._each // multiple) * multiple
        self.examples_per_epoch = self.targets_per_epoch = len(nodes)
        self.fill = len(nodes) / (self.rows * self.steps_per_epoch)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`: nodes and labels int32, weights float32, each [rows / processes]."""
        epoch, n = divmod(step, self.steps_per_epoch)
        chosen = self.of_epoch(epoch, self._order)[n * self._each : (n + 1) * self._each]
        return part(node_batch(chosen, self._labels, self.rows), *self._process)

    def _order(self, epoch):
        if self.steps_per_epoch == 1:
            return self._nodes
        return rng.host(self._seed, rng.ORDER, epoch).permutation(self._nodes)


def node_batch(nodes: np.ndarray, labels: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """The nodes, padded to `rows` with node 0 of weight 0 and no label."""
    missing = (0, rows - len(nodes))
    return {
        'nodes': np.pad(nodes.astype(np.int32), missing),
        'labels': np.pad(labels[nodes].astype(np.int32), missing, constant_values=UNKNOWN),
        'weights': np.pad(np.ones(len(nodes), np.float32), missing),
    }
