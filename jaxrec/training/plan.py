"""What a run would cost on devices that are not here.

The real programs are compiled for the mesh: they are partitioned as they will be, nothing is
allocated and nothing runs. Sizes of parameters, optimiser state and batch, matrix products and what
crosses devices follow from the partitioned program.

Without a target, the training step is compiled for as many virtual CPU devices. Temporaries, and
which collectives are merged into one, are then the choice of XLA's CPU compiler: other backends
fuse, schedule and merge otherwise, so take these two as a guide. (The gradient of a dense table is
summed over 'data' once for each use of the table: a compiler may add up before it sums.)

For a target (`devices.target`) its own compiler decides, and all that a run does is compiled: the
first train state, the step, an evaluation's batch, and lists where the task serves them. Times are
the best that the machine can do (a roofline): each instruction takes as long as its products, its
memory or the compiler's cycles, whichever is longest, and then the network. Real ones are longer.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxrec import config
from jaxrec.cli import say
from jaxrec.devices import hlo
from jaxrec.devices.mesh import BATCH, REPLICATED, abstract, concrete, make_mesh
from jaxrec.devices.programs import deterministic
from jaxrec.devices.target import Target, network_seconds, seconds, target_of
from jaxrec.errors import UserError
from jaxrec.evaluation.run import Beginning, prediction
from jaxrec.experiment import Experiment, check
from jaxrec.training.state import Program, evaluated, initialiser

PARTS = {  # of the train state, and what they are called
    'params': 'parameters',
    'opt_state': 'optimiser state',
    'ema': 'averaged parameters',
    'carry': 'carried from step to step',
}
_COSTLIEST = 5  # instructions that are named
FULL = 0.9  # of a device's memory may be used: the runtime and fragments take the rest

# (problem, experiment, graphdef) -> (jitted (parameters, vectors, batch), batch): what serving adds
Lists = Callable[..., tuple[Callable, dict]]


def parse_mesh(text: str) -> config.Mesh:
    """'64,8' as 64 devices on the data axis times 8 on the model axis."""
    parts = text.split(',')
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f'--dry_run needs --mesh=DATA,MODEL such as --mesh=64,8, not {text!r}')
    return config.Mesh(*map(int, parts))


def plan(
    experiment: Experiment,
    mesh: config.Mesh | None,
    items: int = 0,
    target: Target | None = None,
    lists: Lists | None = None,
) -> dict:
    """Sizes and work of a training step of `experiment` on `mesh`, and of all else for a target.

    Args:
      experiment: its own mesh is not looked at. If its train.batch_rows does not divide over the
        mesh, the next larger number that does is planned with.
      mesh: of no more devices than this process sees, which may be virtual, or than the target has.
        None: all devices of the target, its tables split over as few as hold the train state.
      items: size of the catalogue; 0 opens the experiment's data set. With it, generated histories
        fill every row, and nothing is known of an epoch.
      target: machines to compile for; None = virtual CPU devices.
      lists: what serving compiles; None = no lists.

    Returns:
      JSON-ready; bytes, operations and seconds are those of one device.

    Raises:
      UserError: what `train` would raise before its first step, or the target is of another size.
    """
    if target and mesh and mesh.data * mesh.model != len(target.devices):
        raise UserError(
            f'--mesh={mesh.data},{mesh.model} has {mesh.data * mesh.model} devices, --target='
            f'{target.name} {len(target.devices)}: leave --mesh out, or let it have as many'
        )
    mesh = mesh or _smallest(experiment, items, target)
    settings = experiment.train
    multiple = mesh.data * max(settings.microbatches, 1)
    rows = -(-settings.batch_rows // multiple) * multiple
    settings = dataclasses.replace(settings, batch_rows=rows)
    experiment = dataclasses.replace(experiment, mesh=mesh, train=settings)
    check(experiment)
    with jax.set_mesh(make_mesh(mesh, target and target.devices)):
        planned = _Planned(experiment, items, target)
        found = {
            'mesh': [mesh.data, mesh.model],
            'devices': mesh.data * mesh.model,
            'items': planned.problem.sizes.get('item'),
            'batch_rows': rows,
            'steps_per_epoch': None if items else planned.batches.steps_per_epoch,
            'parameters': planned.parameters,
            **planned.step(),
        }
        found['flops_of_all'] = found['flops'] * found['devices']
        if target:
            programs = {'first state': planned.first_state(), 'vectors': planned.vectors()}
            programs['evaluation'] = planned.evaluation()
            if lists and 'queries' in planned.problem.verbs:
                programs['lists'] = planned.lists(lists)
            programs = {name: program for name, program in programs.items() if program}
            found |= {'target': target.name, 'machine': target.machine.name}
            found |= {'memory_of_machine': target.machine.memory, 'programs': programs}
        return found


def compare(
    experiment: Experiment, names: Sequence[str], items: int = 0, lists: Lists | None = None
) -> list[dict]:
    """`plan` for each target by name, on the mesh that it chooses."""
    found = []
    for name in names:
        try:
            found.append(plan(experiment, None, items, target_of(name), lists))
        except UserError as e:
            say(f'{name}: {e}')
    return found


class _Planned:
    """The programs of one experiment on the current mesh."""

    def __init__(self, experiment: Experiment, items: int, target: Target | None):
        self._experiment, self._target = experiment, target
        self.problem = _problem(experiment, items)
        learnt = (period().batches for period in self.problem.periods)
        self.batches = next((batches for batches in learnt if batches is not None), None)
        if self.batches is None:
            raise UserError('there is nothing to learn: no period of the data has training rows')
        horizon = experiment.train.epochs * self.batches.steps_per_epoch
        self._program = Program(experiment, self.problem, horizon)
        self._state = self._program.abstract()
        self._constants = abstract(self.problem.constants, REPLICATED)
        self._params = evaluated(self._state)
        self._beginning = Beginning(self._program.graphdef, self.problem)

    @property
    def parameters(self) -> int:
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self._state['params']))

    def step(self) -> dict:
        """The training step of the largest batch, of all shapes that come."""
        found = []
        for batch in (abstract(batch, BATCH) for batch in self.batches.shapes()):
            parts = _parts(self._state) | {'batch': per_device(batch)}
            parts |= {'constants': per_device(self._constants)} if self._constants else {}
            found.append(self._compiled(self._program.lowered(batch), parts))
        return max(found, key=lambda one: one['memory']['total']) | {'batch_shapes': len(found)}

    def first_state(self) -> dict:
        """What makes the state before the first step."""
        key = abstract(jax.eval_shape(lambda: jax.random.key(0)), REPLICATED)
        make = initialiser(self._experiment.model, self.problem.sizes, self._program.optimizer)
        return self._compiled(make.lower(key), _parts(self._state))

    def vectors(self) -> dict | None:
        """What an evaluation computes once for all its batches; None if there is nothing."""
        parts = {'parameters': per_device(self._params)}
        return self._compiled(self._begun, parts) if self._made else None

    def evaluation(self) -> dict | None:
        """The longest batch of an evaluation in training, beside the state; None without any."""
        evaluations = self.problem.evaluations or self.problem.periods[-1]().before
        if not evaluations:
            return None
        evaluation = next(iter(evaluations.values()))()
        batch = max((batch for _, batch in evaluation.batches()), key=host_bytes)
        predict = prediction(self._program.graphdef, self.problem, full=True)
        beside = per_device(self._state) - per_device(self._params)
        return self._served(predict, batch, beside, deterministic())

    def lists(self, lists: Lists) -> dict:
        """The longest batch of bulk lists, in a process that serves."""
        return self._served(*lists(self.problem, self._experiment, self._program.graphdef))

    def _served(
        self, function: Callable, batch: dict, beside: int = 0, options: dict | None = None
    ) -> dict:
        """Of a function of (parameters, vectors, batch); what is in both of the first is one."""

        def call(params, constants, made, batch):
            return function(params, self._beginning.whole(params, constants, made), batch)

        batch = abstract(batch, BATCH)
        parts = {'parameters': self._params, 'vectors': self._made, 'batch': batch}
        parts |= {'constants': self._constants}
        with jax.default_matmul_precision(self._experiment.task.precision):
            program = jax.jit(call, compiler_options=options)
            lowered = program.lower(self._params, self._constants, self._made, batch)
        parts = {name: per_device(x) for name, x in parts.items() if x}
        parts |= {'train state': beside} if beside else {}
        return {'rows': len(jax.tree.leaves(batch)[0]), **self._compiled(lowered, parts)}

    @functools.cached_property
    def _begun(self):
        with jax.default_matmul_precision(self._experiment.task.precision):
            return self._beginning.lower(self._params, self._constants)

    @functools.cached_property
    def _made(self):
        return concrete(self._begun.out_info)

    def _compiled(self, lowered: Any, parts: dict[str, int]) -> dict:
        """Memory by part, products, what crosses devices, and for a target times."""
        options = self._target and self._target.options
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as e:
            return _too_large(str(e), parts)
        text, sizes = compiled.as_text(), compiled.memory_analysis()
        memory = dict(parts)
        if self._target:  # what arrays take beyond their numbers, a TPU's are stored in tiles
            known = sum(parts.values()) - parts.get('train state', 0)
            held = max(sizes.argument_size_in_bytes, sizes.output_size_in_bytes)
            memory['padding'] = max(held - known, 0)
            memory['program'] = sizes.generated_code_size_in_bytes
        memory['temporaries'] = sizes.temp_size_in_bytes
        moved = hlo.collectives(text)
        found = {
            'memory': {**memory, 'total': sum(memory.values())},
            'flops': hlo.matmul_flops(text),
            'collectives': _crossing(moved),
        }
        return found | (self._times(text, moved, found) if self._target else {})

    def _times(self, text: str, moved: list[hlo.Collective], found: dict) -> dict:
        machine = self._target.machine
        costs = [(seconds(machine, one), one) for one in hlo.costs(text)]
        costs.sort(key=lambda pair: -pair[0])
        network = sum(network_seconds(machine, one) for one in moved)
        computing = sum(took for took, _ in costs)
        return {
            'fits': found['memory']['total'] <= FULL * machine.memory,
            'seconds': {
                'computing': computing,
                'network': network,
                'total': computing + network,
                'products alone': sum(
                    flops / machine.flops[kind]
                    for _, one in costs
                    for kind, flops in one.flops.items()
                ),
                'memory alone': sum(one.bytes for _, one in costs) / machine.bandwidth,
            },
            'costliest': [
                {
                    'about': one.about or one.name,
                    'seconds': took,
                    'times': one.times,
                    'flops': sum(one.flops.values()),
                    'bytes': one.bytes,
                }
                for took, one in costs[:_COSTLIEST]
            ],
        }


def _problem(experiment: Experiment, items: int):
    if not items:
        return experiment.task.open(experiment, say)
    if not hasattr(experiment.task, 'generated'):
        raise UserError('--items is for tasks with a catalogue of items: leave it out')
    return experiment.task.generated(experiment, items)


def _smallest(experiment: Experiment, items: int, target: Target) -> config.Mesh:
    """All devices of a target, with the fewest shards of the tables of which half is in memory."""
    count = len(target.devices)
    shapes = [config.Mesh(count // n, n) for n in range(1, count + 1) if count % n == 0]
    for mesh in shapes:
        with jax.set_mesh(make_mesh(mesh, target.devices)):
            experiment = dataclasses.replace(experiment, mesh=mesh)
            problem = _problem(experiment, items)
            state = Program(experiment, problem, 1).abstract()
            if per_device(state) <= target.machine.memory / 2 or mesh == shapes[-1]:
                return mesh
    raise AssertionError('a target has devices')


def _too_large(message: str, parts: dict[str, int]) -> dict:
    """What is known of a program for which a TPU's compiler finds no room."""
    used = re.search(r'(?:Used |\()([\d.]+)([KMGT])', message)
    if 'RESOURCE_EXHAUSTED' not in message or not used:
        raise UserError(f'the compiler fails: {message.splitlines()[0]}')
    total = int(float(used[1]) * 1024 ** (1 + 'KMGT'.index(used[2]))) + parts.get('train state', 0)
    known = sum(parts.values())
    memory = {**parts, 'temporaries': max(total - known, 0), 'total': max(total, known)}
    return {'memory': memory, 'flops': 0, 'collectives': {}, 'fits': False}


def _crossing(moved: list[hlo.Collective]) -> dict:
    found = {}
    for one in moved:
        kind = found.setdefault(one.kind, {'times': 0, 'bytes': 0, 'largest': 0})
        kind['times'] += one.times
        kind['bytes'] += int(one.bytes)
        kind['largest'] = max(kind['largest'], *(math.prod(shape) for _, shape in one.arrays))
    return found


def _parts(state: dict) -> dict[str, int]:
    return {name: per_device(state[part]) for part, name in PARTS.items() if part in state}


def per_device(tree) -> int:
    """Bytes of placed `tree` on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )


def host_bytes(batch: dict) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(batch))
