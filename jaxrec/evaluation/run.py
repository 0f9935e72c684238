"""The evaluation pass: predict every batch of an evaluation with a model, and measure."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxrec.devices.ahead import ahead
from jaxrec.devices.mesh import place_whole
from jaxrec.devices.programs import deterministic
from jaxrec.problem import PRECISION, Columns, Evaluation, Measured, Part, Problem

QUIET = 10.0  # seconds of an evaluation without a line of how far it is


class Pass:
    """Evaluates parameters of one model on one problem; compiled once for all its evaluations.

    Args:
      graphdef: static part of the model, `nnx.merge(graphdef, params)` gives it back.
      problem: whose examples are predicted.
      constants: of the problem, placed.
    """

    def __init__(self, graphdef: nnx.GraphDef, problem: Problem, constants: dict[str, jax.Array]):
        self._constants = constants
        self._begin = Beginning(graphdef, problem)
        self._predict = {
            full: jax.jit(prediction(graphdef, problem, full), compiler_options=deterministic())
            for full in (False, True)
        }

    def begin(self, params: dict) -> Any:
        """What a pass shares, `Problem.begin` of these parameters."""
        return self._begin(params, self._constants)

    def __call__(
        self,
        params: dict,
        evaluation: Evaluation,
        *,
        full: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> Measured:
        """Predicts and measures; runs under the mesh that the parameters are on.

        Args:
          params: of the model.
          evaluation: of the problem.
          full: everything a report shows.
          say: called with a line every `QUIET` seconds; None = it is not told how far it is.
        """
        precision = evaluation.protocol.get('precision', PRECISION)
        with jax.default_matmul_precision(precision):
            parts = self._parts(params, evaluation, full)
            return evaluation.measure(_told(parts, say) if say else parts)

    def _parts(self, params: dict, evaluation: Evaluation, full: bool) -> Iterator[Part]:
        carried, predict = self._begin(params, self._constants), self._predict[full]
        batches = ((places, place_whole(batch)) for places, batch in evaluation.batches())
        for places, columns in ahead(lambda batch: predict(params, carried, batch), batches):
            yield places, {name: np.asarray(x)[: len(places)] for name, x in columns.items()}


def _told(parts: Iterator[Part], say: Callable[[str], None]) -> Iterator[Part]:
    rows, told = 0, time.monotonic()
    for places, columns in parts:
        rows += len(places)
        if time.monotonic() - told > QUIET:
            say(f'{rows:,} rows predicted')
            told = time.monotonic()
        yield places, columns


def prediction(graphdef: nnx.GraphDef, problem: Problem, full: bool) -> Callable:
    """`Problem.predict` as a function of (parameters, carried, batch)."""

    def predict(params, carried, batch):
        return problem.predict(nnx.merge(graphdef, params), carried, batch, full)

    return predict


class Beginning:
    """`Problem.begin` of (parameters, constants), compiled.

    What it only hands on, an item table above all, is handed on and not copied.
    """

    def __init__(self, graphdef: nnx.GraphDef, problem: Problem):
        def begin(params, constants):
            return problem.begin(nnx.merge(graphdef, params), constants)

        @functools.partial(jax.jit, static_argnums=2, compiler_options=deterministic())
        def computed(params, constants, which):
            leaves = jax.tree.leaves(begin(params, constants))
            return [leaves[n] for n in which]

        self._begin, self._computed = begin, computed

    def __call__(self, params: dict, constants: dict) -> Any:
        """All that `begin` gives."""
        _, new, _ = self._layout(params, constants)
        made = self._computed(params, constants, new) if new else ()
        return self.whole(params, constants, made)

    def lower(self, params: dict, constants: dict) -> jax.stages.Lowered:
        """Of what computes the arrays that are new."""
        return self._computed.lower(params, constants, self._layout(params, constants)[1])

    def whole(self, params: dict, constants: dict, made: Sequence[jax.Array]) -> Any:
        """What is handed on and the arrays that are new, put together."""
        given, _, structure = self._layout(params, constants)
        inputs, made = jax.tree.leaves((params, constants)), iter(made)
        leaves = [next(made) if at is None else inputs[at] for at in given]
        return jax.tree.unflatten(structure, leaves)

    def _layout(self, params, constants):
        """(which input each result is, numbers of those that are none, structure)."""
        jaxpr, shapes = jax.make_jaxpr(self._begin, return_shape=True)(params, constants)
        place = {id(var): n for n, var in enumerate(jaxpr.jaxpr.invars)}
        given = [place.get(id(var)) for var in jaxpr.jaxpr.outvars]
        new = tuple(n for n, at in enumerate(given) if at is None)
        return given, new, jax.tree.structure(shapes)


def collected(parts: Iterable[Part], examples: int) -> Columns:
    """All columns whole, [examples, ..] by name, from their parts."""
    columns = {}
    for places, part in parts:
        for name, value in part.items():
            if name not in columns:
                columns[name] = np.zeros((examples, *value.shape[1:]), value.dtype)
            columns[name][places] = value
    return columns
