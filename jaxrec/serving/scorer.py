"""Scores of a trained ranking model, for rows as people have them."""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import scipy.special
from flax import nnx

from jaxrec.data.row_catalogue import RowCatalogue
from jaxrec.devices.mesh import place_whole
from jaxrec.errors import UserError
from jaxrec.evaluation.run import Beginning
from jaxrec.serving.buckets import buckets
from jaxrec.training.restore import Trained

BATCH_ROWS = 1024  # scored at once


class Scorer:
    """Probabilities of the labels of rows; several threads may ask at once.

    Args:
      trained: the model, of a problem of the click task.
      batch_rows: rows scored at once, rounded up to a multiple of the mesh's data axis.

    Attributes:
      labels: what is scored, in order.
      catalogue: codes of the fields.

    Raises:
      UserError: it is no such model.
    """

    sees_past: ClassVar[bool] = False  # whether models see what their users were shown before

    def __init__(self, trained: Trained, *, batch_rows: int = BATCH_ROWS):
        if batch_rows < 1:
            raise UserError('batch_rows must be at least 1')
        if 'scores' not in trained.served.verbs or trained.served.catalogue is None:
            raise UserError(f'{trained.workdir} holds no model that scores rows')
        if bool(trained.experiment.model.inputs().max_len) != self.sees_past:
            raise UserError(
                f'{trained.workdir} holds a model that sees {"no" if self.sees_past else "the"} '
                'past of a row: jaxrec.load(workdir) gives what serves it'
            )
        self.trained, self.labels = trained, tuple(trained.experiment.task.labels)
        self.catalogue: RowCatalogue = trained.served.catalogue
        self._sizes = buckets(batch_rows, 2 * trained.mesh.shape['data'])
        self._dispatch = threading.Lock()
        graphdef, served = trained.graphdef, trained.served

        def logits(params, carried, batch):
            model = nnx.merge(graphdef, params)
            return served.predict(model, carried, batch, full=False)['logits']

        self._logits = jax.jit(logits)
        with self._placed():
            self._carried = Beginning(graphdef, served)(trained.params, trained.constants)

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        """Probabilities of every label.

        Args:
          rows: each {'user': raw id, 'item': raw id, column: value} with the fields of the task
            that belong to a row; None for what is not known, a new user or item too. The fields of
            users and items are as in the data, unless the row has them. What else is in it does
            not matter.

        Returns:
          [{label: probability}, ..].

        Raises:
          UserError: a field is missing or of a wrong kind, or a user or item is not in the data.
        """
        return self.chances(self.given(rows))

    def logits(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The same before the logistic function, float32 [n, labels]."""
        return self._logits_of(self.given(rows))

    def given(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the model sees of rows, nested arrays [n, ..]; the errors of `score`."""
        if isinstance(rows, Mapping) or any(not isinstance(row, Mapping) for row in rows):
            raise UserError('rows is a list of dicts, a value by column')
        return {'features': self.catalogue(rows)}

    def chances(self, given: dict[str, Any]) -> list[dict[str, float]]:
        """`score` of what the model sees, whoever asked."""
        chances = scipy.special.expit(self._logits_of(given).astype(np.float64))
        return [dict(zip(self.labels, one, strict=True)) for one in chances.tolist()]

    def warm_up(self) -> None:
        """Compiles all that any request needs."""
        for size in self._sizes:
            self._run(self._logits, self.given([]), size)

    def _logits_of(self, given):
        count, most = len(jax.tree.leaves(given)[0]), self._sizes[-1]
        out = [np.zeros((0, len(self.labels)), np.float32)]
        for first in range(0, count, most):
            part = jax.tree.map(lambda x: x[first : first + most], given)  # noqa: B023
            out.append(self._run(self._logits, part, min(count - first, most)))
        found = np.concatenate(out)
        if np.isnan(found).any():
            raise UserError('the model gives scores that are not numbers: its training diverged')
        return found

    def _run(self, program, given, count):
        """[count, ..] of a program (params, carried, batch)."""
        size = next(size for size in self._sizes if size >= count)
        pad = lambda x: np.pad(x, [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)])  # noqa: E731
        filled = jax.tree.map(pad, given)
        with self._placed():
            with self._dispatch:  # all devices get the programs of all threads in one order
                out = program(self.trained.params, self._carried, place_whole(filled))
            return np.asarray(out)[:count]

    @contextlib.contextmanager
    def _placed(self):
        """On the model's mesh, in the precision of its evaluations."""
        precision = self.trained.experiment.task.precision
        with jax.set_mesh(self.trained.mesh), jax.default_matmul_precision(precision):
            yield
