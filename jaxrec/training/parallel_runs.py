"""Several runs of one experiment in one program: the train state gets a leading axis.

The runs differ in their seed and, if asked, in scalars of the optimiser and the loss; everything
else, shapes above all, is shared. The step of one run is vmapped over the axis, and the axis is
split over the devices, so each device works on its own runs and nothing crosses. A small model
leaves most of an accelerator idle: there, several of them cost little more than one.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import P

from jaxrec.config import Experiment
from jaxrec.errors import UserError
from jaxrec.experiment import flat, to_record
from jaxrec.training.optim import make_optimizer
from jaxrec.training.state import new_state, train_step

# Scalars that may differ between the runs. Those of the model are read where the loss is computed
# and are only calculated with; what a module keeps from its construction (the blocks' dropout) and
# what the program branches on (weight decay, label smoothing) cannot be here.
SCALARS = (
    'optim.learning_rate',
    'optim.b1',
    'optim.b2',
    'optim.eps',
    'model.embedding_dropout',
    'model.table_dropout',
    'model.gbce_t',
    'model.in_batch.rate',
    'model.contrast.weight',
    'model.contrast.temperature',
)
_SEED = 'train.seed'
_AXIS = 'run'


class Runs:
    """Experiments that differ in `train.seed` and SCALARS only, as one program.

    Args:
      experiments: one per run.
      num_items: size of the catalogue.
      horizon: steps of the learning rate's decay.

    Raises:
      UserError: they differ in something else, or need what cannot be stacked.
    """

    def __init__(self, experiments: Sequence[Experiment], num_items: int, horizon: int):
        self.experiments, self._num_items, self._horizon = list(experiments), num_items, horizon
        self._shared = first = self.experiments[0]
        self._varied = _varied(self.experiments)
        if first.mesh.model > 1:
            raise UserError('runs in one program keep their item table whole: mesh.model must be 1')
        if jax.process_count() > 1:
            raise UserError('runs in one program are for a single process')
        count = len(self.experiments)
        devices = next(n for n in range(min(count, jax.device_count()), 0, -1) if count % n == 0)
        self._mesh = jax.make_mesh(
            (devices,),
            (_AXIS,),
            devices=jax.devices()[:devices],
            axis_types=(jax.sharding.AxisType.Auto,),
        )
        self._placement = jax.NamedSharding(self._mesh, P(_AXIS))
        self._values = {
            name: np.array([_value(e, name) for e in self.experiments], np.float32)
            for name in self._varied
        }
        self._values[_SEED] = np.array([e.train.seed for e in self.experiments], np.int32)
        self._init = self._over_runs(self._init_one)
        self._step = self._over_runs(self._step_one, donate=(1,))

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

        return jax.tree.map(place, jax.eval_shape(jax.vmap(self._init_one), self._values))

    def step(self, state: dict, batch: dict[str, jax.Array]) -> tuple[dict, dict]:
        """`state.train_step` of every run: (state, metrics) [runs, ..]; `state` is donated."""
        return self._step(self._placed(self._values), state, batch)

    def put(self, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, jax.Array]:
        """One batch per run, stacked [runs, B, ..] and placed; shorter ones end in padding, 0."""

        def stacked(values):
            longest = max(map(len, values))
            rest = [(0, 0)] * (values[0].ndim - 1)
            return np.stack([np.pad(v, ((0, longest - len(v)), *rest)) for v in values])

        return self._placed({name: stacked([b[name] for b in batches]) for name in batches[0]})

    def _init_one(self, values):
        graphdef, optimizer = self._parts(values)
        model, key = self._shared.model, jax.random.key(values[_SEED])
        return new_state(graphdef, model, self._num_items, optimizer, key)

    def _step_one(self, values, state, batch):
        graphdef, optimizer = self._parts(values)
        settings = self._shared.train
        return train_step(graphdef, optimizer, values[_SEED], settings.microbatches)(state, batch)

    def _parts(self, values) -> tuple[nnx.GraphDef, Any]:
        """Graph definition and optimiser of one run, around its traced scalars."""

        config, optim, num_items = self._shared.model, self._shared.optim, self._num_items
        model = nnx.eval_shape(lambda: config.make(num_items, rngs=nnx.Rngs(jax.random.key(0))))
        for name in self._varied:
            section, _, field = name.partition('.')
            if section == 'model':
                model.config = _replaced(model.config, field, values[name])
            else:
                optim = _replaced(optim, field, values[name])
        return nnx.split(model)[0], make_optimizer(optim, self._horizon)

    def _over_runs(self, one: Callable, donate: tuple[int, ...] = ()) -> Callable:
        """jit of vmap of `one`, the axis split over the devices."""
        # the mesh has no 'data' and 'model', so that models compute as on a single device
        whole = jax.shard_map(
            jax.vmap(one), mesh=self._mesh, in_specs=P(_AXIS), out_specs=P(_AXIS), check_vma=False
        )
        compiled = jax.jit(whole, donate_argnums=donate)

        def call(*args):
            with jax.set_mesh(self._mesh):
                return compiled(*args)

        return call

    def _placed(self, tree):
        return jax.device_put(tree, self._placement)


def _varied(experiments: Sequence[Experiment]) -> list[str]:
    """Names of SCALARS that differ; UserError if anything else does, but for the seed."""
    records = [flat(to_record(e)) for e in experiments]
    names = sorted({name for record in records for name in record})
    varied = [n for n in names if any(r.get(n) != records[0].get(n) for r in records)]
    for name in varied:
        if name not in (_SEED, *SCALARS):
            raise UserError(
                f'{name} differs between runs of one program; these may: {_SEED}, '
                f'{", ".join(SCALARS)}'
            )
        off = not all(_value(e, name) for e in experiments)
        if off and name.endswith(('dropout', 'contrast.weight')):
            raise UserError(
                f'{name} is 0 in some runs of one program and not in others: with 0 the program is '
                'another one; give those runs a program of their own'
            )
    return [name for name in varied if name != _SEED]


def _value(experiment: Experiment, name: str) -> Any:
    return functools.reduce(getattr, name.split('.'), experiment)


def _replaced(settings: Any, name: str, value: Any) -> Any:
    """A dataclass with another value of a field, or of one inside a field: 'in_batch.rate'."""
    field, _, inner = name.partition('.')
    if inner:
        value = _replaced(getattr(settings, field), inner, value)
    return dataclasses.replace(settings, **{field: value})
