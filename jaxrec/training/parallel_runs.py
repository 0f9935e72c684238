"""Several runs of one experiment in one program: the train state gets a leading axis.

The runs differ in their seed and, if asked, in scalars of the optimiser and the loss; everything
else, shapes above all, is shared. The step of one run is vmapped over the axis, and the axis is
split over the devices, so each device works on its own runs and nothing crosses. A small model
leaves most of an accelerator idle: there, several of them cost little more than one.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import P

from jaxrec import rng
from jaxrec.devices import cluster
from jaxrec.devices.mesh import in_order, put_as, put_whole
from jaxrec.devices.programs import deterministic
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, flat, rules, to_record
from jaxrec.problem import Problem
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import (
    check_model,
    evaluated,
    new_state,
    pure_step,
    split_model,
    turns_of,
)

_SEED = 'train.seed'
_AXIS = 'run'


def expand(
    experiment: Experiment, seeds: Sequence[str], vary: Sequence[str]
) -> dict[str, Experiment]:
    """{folder name: experiment} of every seed with every combination of values.

    Args:
      experiment: what the runs share.
      seeds: numbers; train.seed where there are none.
      vary: 'FIELD=VALUE,VALUE', e.g. 'optim.learning_rate=1e-3,3e-3', of fields that may vary.

    Raises:
      UserError: a field that cannot vary, or a value that is not a number.
    """
    axes = [(_SEED, list(seeds) or [str(experiment.train.seed)])]
    traced = _traced(experiment)
    for given in vary:
        name, _, values = given.partition('=')
        if name not in traced:
            raise UserError(f'--vary={given}: give one of {", ".join(traced)} and its values')
        axes.append((name, values.split(',')))
    runs = {}
    for values in itertools.product(*(values for _, values in axes)):
        changed, parts = {}, []
        for (name, _), value in zip(axes, values, strict=True):
            try:
                changed[name] = int(value) if name == _SEED else float(value)
            except ValueError as e:
                raise UserError(f'{name}={value!r} is not a number') from e
            parts.append(f'seed{changed[name]}' if name == _SEED else f'{name}={value}')
        runs['_'.join(parts)] = applied(experiment, changed)
    return runs


class Runs:
    """Experiments that differ in `train.seed` and traced fields only, as one program.

    It has the methods of `state.Program`, for states, batches and metrics with a leading axis. A
    traced field (`config.field`) is read where the loss or the update is computed and is only
    calculated with; what a module keeps from its construction (the blocks' dropout) and what the
    program branches on (weight decay, label smoothing) is not one.

    Args:
      experiments: one per run.
      problem: what they learn, in batches of their own.
      horizon: steps of the learning rate's decay.

    Raises:
      UserError: they differ in something else, or need what cannot be stacked.
    """

    def __init__(self, experiments: Sequence[Experiment], problem: Problem, horizon: int):
        self.experiments, self._sizes, self._horizon = list(experiments), problem.sizes, horizon
        self._shared = first = self.experiments[0]
        self._varied = _varied(self.experiments)
        if first.mesh.model > 1:
            raise UserError('runs in one program keep their tables whole: mesh.model must be 1')
        check_model(first.model, problem)
        self.graphdef, self._served = split_model(first.model, problem.sizes)
        self.constants, self._begun = put_whole(problem.constants), 0
        self._mesh = jax.sharding.Mesh(np.array(devices_of(len(self.experiments))), (_AXIS,))
        self._placement = jax.NamedSharding(self._mesh, P(_AXIS))
        self._constants = put_as(problem.constants, jax.NamedSharding(self._mesh, P()))
        self._values = {
            name: np.array([_value(e, name) for e in self.experiments], np.float32)
            for name in self._varied
        }
        self._values[_SEED] = np.stack([rng.words(e.train.seed) for e in self.experiments])
        self._init = self._over_runs(self._init_one)
        self._step = None

    @property
    def devices(self) -> int:
        """Devices that the runs are split over."""
        return self._mesh.size

    def init(self) -> dict:
        """The stacked train state [runs, ..]; each part is what `state.init_state` gives."""
        return self._init(self._placed(self._values))

    def abstract(self) -> dict:
        """Shapes and placement of the stacked state, to restore into."""

        def place(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._placement)

        with jax.set_mesh(self._mesh):
            return jax.tree.map(place, jax.eval_shape(jax.vmap(self._init_one), self._values))

    def start(self, begun: int) -> None:
        """Before the first step, of a state that had `begun` steps behind it when the run began."""
        self._begun, self._turns = begun, turns_of(self._shared)
        self._step = self._over_runs(self._step_one, donate=(1,), shared=1)

    def put(self, batches: Sequence[dict]) -> dict:
        """One batch per run, stacked [runs, B, ..] and placed; shorter ones end in padding, 0."""

        def stacked(*values):
            longest = max(map(len, values))
            rest = [(0, 0)] * (values[0].ndim - 1)
            return np.stack([np.pad(v, ((0, longest - len(v)), *rest)) for v in values])

        return self._placed(jax.tree.map(stacked, *batches))

    def step(self, state: dict, batch: dict) -> tuple[dict, dict]:
        """`state.pure_step` of every run: (state, metrics) [runs, ..]; `state` is donated."""
        return self._step(self._placed(self._values), state, batch, self._constants)

    def parameters(self, state: dict) -> Iterator[dict]:
        """Those to evaluate, run by run, placed on the current mesh."""
        stacked = cluster.whole(evaluated(state))
        for nth in range(len(self.experiments)):
            yield jax.tree.map(
                lambda x, a, nth=nth: put_as(x[nth], a.sharding), stacked, self._served
            )

    def about(self) -> str:
        """How many and where, for people."""
        devices = self._mesh.size
        return (
            f'{len(self.experiments)} runs in one program on {devices} {jax.default_backend()} '
            f'device{"s" if devices > 1 else ""}'
        )

    def _init_one(self, values):
        graphdef, optimizer = self._parts(values)
        model, key = self._shared.model, rng.key(values[_SEED])
        return new_state(graphdef, model, self._sizes, optimizer, key)

    def _step_one(self, values, state, batch, constants):
        graphdef, optimizer = self._parts(values)
        step = pure_step(
            graphdef, optimizer, values[_SEED], self._turns, self._shared.train.precision
        )
        return step(state, batch, constants)

    def _parts(self, values) -> tuple[nnx.GraphDef, Any]:
        """Graph definition and optimiser of one run, around its traced scalars."""
        config, optim, sizes = self._shared.model, self._shared.optim, self._sizes
        model = nnx.eval_shape(lambda: config.make(sizes, rngs=nnx.Rngs(jax.random.key(0))))
        for name in self._varied:
            section, _, field = name.partition('.')
            if section == 'model':
                model.config = _replaced(model.config, field, values[name])
            else:
                optim = _replaced(optim, field, values[name])
        optimizer = make_optimizer(optim, config, self._horizon, self._begun)
        return nnx.split(model)[0], optimizer

    def _over_runs(self, one: Callable, donate: tuple[int, ...] = (), shared: int = 0) -> Callable:
        """jit of vmap of `one`, the axis split over the devices; the last arguments have none."""
        # the mesh has no 'data' and 'model', so that models compute as on a single device

        def call(*args):
            own = len(args) - shared
            whole = jax.shard_map(
                jax.vmap(one, in_axes=(0,) * own + (None,) * shared),
                mesh=self._mesh,
                in_specs=(P(_AXIS),) * own + (P(),) * shared,
                out_specs=P(_AXIS),
                check_vma=False,
            )
            return whole(*args)

        compiled = jax.jit(call, donate_argnums=donate, compiler_options=deterministic())

        def on_mesh(*args):
            with jax.set_mesh(self._mesh):
                return compiled(*args)

        return on_mesh

    def _placed(self, tree):
        return put_as(tree, self._placement)


def devices_of(runs: int) -> list[jax.Device]:
    """Those that so many runs in one program are split over: equally many of every process.

    Raises:
      UserError: the runs do not divide over the processes.
    """
    processes = jax.process_count()
    if runs % processes:
        raise UserError(
            f'{runs} runs in one program do not divide over {processes} processes: let their '
            f'number be a multiple of {processes}, or start one process'
        )
    own = runs // processes
    count = next(n for n in range(min(own, jax.local_device_count()), 0, -1) if own % n == 0)
    by_process = itertools.groupby(in_order(jax.devices()), lambda device: device.process_index)
    return [device for _, devices in by_process for device in list(devices)[:count]]


def _traced(experiment: Experiment) -> list[str]:
    """Names of the fields that may differ between runs of one program."""
    return [name for name, rule in rules(experiment) if rule.get('traced')]


def _varied(experiments: Sequence[Experiment]) -> list[str]:
    """Names of traced fields that differ; UserError if anything else does, but for the seed."""
    records = [flat(to_record(e)) for e in experiments]
    names = sorted({name for record in records for name in record})
    varied = [n for n in names if any(r.get(n) != records[0].get(n) for r in records)]
    traced = _traced(experiments[0])
    for name in varied:
        if name not in (_SEED, *traced):
            raise UserError(
                f'{name} differs between runs of one program; these may: {_SEED}, '
                f'{", ".join(traced)}'
            )
        if name != _SEED and not all(_value(e, name) for e in experiments):
            raise UserError(
                f'{name} is 0 in some runs of one program and not in others: with 0 the program is '
                'another one; give those runs a program of their own'
            )
    return [name for name in varied if name != _SEED]


def _value(experiment: Experiment, name: str) -> Any:
    return functools.reduce(_inside, name.split('.'), experiment)


def _inside(part: Any, name: str) -> Any:
    return part[int(name)] if isinstance(part, tuple) else getattr(part, name)


def _replaced(settings: Any, name: str, value: Any) -> Any:
    """Settings with another value of a field, or of one inside: 'in_batch.rate', 'contrast.0.x'."""
    field, _, inner = name.partition('.')
    if inner:
        value = _replaced(_inside(settings, field), inner, value)
    if isinstance(settings, tuple):
        return (*settings[: int(field)], value, *settings[int(field) + 1 :])
    return dataclasses.replace(settings, **{field: value})
