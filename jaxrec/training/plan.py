"""What a run would cost on a mesh of devices that are not here.

The real training step is compiled for the mesh on as many virtual CPU devices: the program is
partitioned as it will be, nothing is allocated and nothing runs. Sizes of parameters, optimiser
state and batch, matrix products and what crosses devices follow from the partitioned program.
Temporaries, and which collectives are merged into one, are the choice of XLA's CPU compiler: other
backends fuse, schedule and merge otherwise, so take these two as a guide. (The gradient of a dense
table is summed over 'data' once for each use of the table: a compiler may add up before it sums.)
"""

import dataclasses
import math

import jax
import numpy as np

from jaxrec import config
from jaxrec.cli import say
from jaxrec.devices import hlo
from jaxrec.devices.mesh import BATCH, make_mesh
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, check
from jaxrec.training.state import Program

_PARTS = {  # of the train state, and what they are called
    'params': 'parameters',
    'opt_state': 'optimiser state',
    'ema': 'averaged parameters',
    'carry': 'carried from step to step',
}


def parse_mesh(text: str) -> config.Mesh:
    """'64,8' as 64 devices on the data axis times 8 on the model axis."""
    parts = text.split(',')
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f'--dry_run needs --mesh=DATA,MODEL such as --mesh=64,8, not {text!r}')
    return config.Mesh(*map(int, parts))


def plan(experiment: Experiment, mesh: config.Mesh, items: int = 0) -> dict:
    """Sizes and work of one training step of `experiment` on `mesh`, of its largest batch.

    Batches of every shape that comes are compiled, as many as `programs`.

    Args:
      experiment: its own mesh is not looked at. If its train.batch_rows does not divide over the
        mesh, the next larger number that does is planned with.
      mesh: of no more devices than this process sees, which may be virtual.
      items: size of the catalogue; 0 opens the experiment's data set. With it, generated histories
        fill every row, and nothing is known of an epoch.

    Returns:
      JSON-ready; bytes and operations are those of one device.

    Raises:
      UserError: what `train` would raise before its first step.
    """
    settings = experiment.train
    multiple = mesh.data * max(settings.microbatches, 1)
    rows = -(-settings.batch_rows // multiple) * multiple
    settings = dataclasses.replace(settings, batch_rows=rows)
    experiment = dataclasses.replace(experiment, mesh=mesh, train=settings)
    check(experiment)
    with jax.set_mesh(make_mesh(mesh)):
        return _plan(experiment, mesh, items, rows)


def _plan(experiment: Experiment, mesh: config.Mesh, items: int, rows: int) -> dict:
    if items:
        problem = experiment.task.generated(experiment, items)
    else:
        problem = experiment.task.open(experiment, say)
    batches = problem.periods[0]().batches
    placed = jax.NamedSharding(jax.sharding.get_mesh(), BATCH)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), batches.shapes()
    )
    settings = experiment.train
    program = Program(experiment, problem, settings.epochs * batches.steps_per_epoch)
    state = program.abstract()
    program.start(0)
    programs = [program.lowered(batch).compile() for batch in shapes]
    batch, compiled = max(zip(shapes, programs, strict=True), key=lambda both: _held(both[1]))
    compiled_text, sizes = compiled.as_text(), compiled.memory_analysis()

    memory = {name: _per_device(state[part]) for part, name in _PARTS.items() if part in state}
    memory['batch'] = _per_device(batch)
    memory['temporaries'] = sizes.temp_size_in_bytes
    crossing = {}
    for one in hlo.collectives(compiled_text):
        kind = crossing.setdefault(one.kind, {'times': 0, 'bytes': 0})
        kind['times'] += one.times
        kind['bytes'] += int(one.bytes)
    flops = hlo.matmul_flops(compiled_text)
    return {
        'mesh': [mesh.data, mesh.model],
        'devices': mesh.data * mesh.model,
        'items': problem.sizes['item'],
        'batch_rows': rows,
        'programs': len(programs),
        'steps_per_epoch': None if items else batches.steps_per_epoch,
        'parameters': sum(math.prod(x.shape) for x in jax.tree.leaves(state['params'])),
        'memory': {**memory, 'total': sum(memory.values())},
        'flops': flops,
        'flops_of_all': flops * mesh.data * mesh.model,
        'collectives': crossing,
    }


def text(found: dict, asked_rows: int) -> str:
    """The plan for people."""
    data, model = found['mesh']
    lines = [
        f'mesh ({data}, {model}): {found["devices"]:,} devices; {found["items"]:,} items, '
        f'{found["batch_rows"]:,} rows a step, {found["parameters"]:,} parameters',
    ]
    if found['batch_rows'] != asked_rows:
        lines.append(
            f'note: train.batch_rows={asked_rows} does not divide over the mesh; training there '
            f'needs --config.train.batch_rows={found["batch_rows"]}, which this is for'
        )
    if found['steps_per_epoch']:
        lines.append(f'{found["steps_per_epoch"]:,} steps an epoch')
    lines += ['', 'memory of a device']
    lines += [f'  {name:20} {_bytes(size):>12}' for name, size in found['memory'].items()]
    lines += [
        '',
        'a step on a device',
        f'  {"matrix products":20} {found["flops"] / 1e9:>8,.3f} GFLOP '
        f'({found["flops_of_all"] / 1e9:,.1f} on all)',
    ]
    for kind, moved in found['collectives'].items():
        lines.append(f'  {kind:20} {_bytes(moved["bytes"]):>12} in {moved["times"]:,} turns')
    lines += [
        '',
        "temporaries, and which collectives are merged, are those of XLA's CPU compiler",
    ]
    return '\n'.join(lines)


def _held(compiled) -> int:
    """Bytes of arguments and temporaries on one device."""
    sizes = compiled.memory_analysis()
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes


def _per_device(tree) -> int:
    """Bytes of `tree` on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )


def _bytes(size: float) -> str:
    for unit in ('B', 'KiB', 'MiB', 'GiB'):
        if size < 1024 or unit == 'GiB':
            break
        size /= 1024
    return f'{size:,.{0 if unit == "B" else 2}f} {unit}'
