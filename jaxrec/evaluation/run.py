"""The evaluation pass: predict every batch of an evaluation with a model, and measure."""

import collections
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxrec.devices.mesh import place_whole
from jaxrec.problem import Columns, Evaluation, Measured, Part, Problem

_IN_FLIGHT = 4  # batches given to the device before the results of the first are read


class Pass:
    """Evaluates parameters of one model on one problem; compiled once for all its evaluations.

    Args:
      graphdef: static part of the model, `nnx.merge(graphdef, params)` gives it back.
      problem: whose examples are predicted.
      constants: of the problem, placed.
    """

    def __init__(self, graphdef: nnx.GraphDef, problem: Problem, constants: dict[str, jax.Array]):
        self._constants = constants

        def begin(params, constants):
            return problem.begin(nnx.merge(graphdef, params), constants)

        def predict(full, params, carried, batch):
            return problem.predict(nnx.merge(graphdef, params), carried, batch, full)

        self._begin = jax.jit(begin)
        self._predict = {full: jax.jit(functools.partial(predict, full)) for full in (False, True)}

    def __call__(self, params: dict, evaluation: Evaluation, *, full: bool = False) -> Measured:
        """Predicts and measures; runs under the mesh that the parameters are on.

        Args:
          params: of the model.
          evaluation: of the problem.
          full: everything a report shows.
        """
        return evaluation.measure(self._parts(params, evaluation, full))

    def _parts(self, params: dict, evaluation: Evaluation, full: bool) -> Iterator[Part]:
        carried, waiting = self._begin(params, self._constants), collections.deque()
        for places, batch in evaluation.batches():
            waiting.append((places, self._predict[full](params, carried, place_whole(batch))))
            if len(waiting) > _IN_FLIGHT:
                yield _read(*waiting.popleft())
        while waiting:
            yield _read(*waiting.popleft())


def collected(parts: Iterable[Part], examples: int) -> Columns:
    """All columns whole, [examples, ..] by name, from their parts."""
    columns = {}
    for places, part in parts:
        for name, value in part.items():
            if name not in columns:
                columns[name] = np.zeros((examples, *value.shape[1:]), value.dtype)
            columns[name][places] = value
    return columns


def _read(places: np.ndarray, columns: dict[str, Any]) -> Part:
    return places, {name: np.asarray(value)[: len(places)] for name, value in columns.items()}
