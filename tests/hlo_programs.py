"""Small programs, what is in them by hand, and their texts as TPU's and GPU's compilers write them.

python tests/hlo_programs.py writes tests/hlo/ anew, where both compilers are installed.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from jaxrec.devices.target import target_of

FOLDER = pathlib.Path(__file__).parent / 'hlo'


def loop(x, w):
    """5 turns, each with a product and a sum over 'model'."""

    def summed(x, w):
        def turn(x, _):
            return jax.lax.psum(x @ w, 'model'), None

        return jax.lax.scan(turn, x, None, length=5)[0]

    split = P('data', 'model'), P('model', None)
    return jax.shard_map(summed, in_specs=split, out_specs=split[0], check_vma=False)(x, w)


def batched(x, y):
    """A product for each of the leading axis."""
    return jnp.einsum('bij,bkj->bik', x, y, out_sharding=P('data'))


def beside(x, w):
    """A large gathering that a compiler lets run beside two products."""

    def local(x, w):
        whole = jax.lax.all_gather(x, 'data', axis=0, tiled=True)
        y = jnp.tanh(w @ w)
        return whole.sum(1), jnp.tanh(y @ w)

    return jax.shard_map(local, in_specs=(P('data'), P()), out_specs=(P(), P()), check_vma=False)(
        x, w
    )


def scattered(x):
    """A sum of which each device keeps its part."""

    def local(x):
        return jax.lax.psum_scatter(x, 'data', scatter_dimension=0, tiled=True)

    return jax.shard_map(local, in_specs=P(), out_specs=P('data'), check_vma=False)(x)


def rows(table, ids, values):
    """500 rows of a large table read, and as many written in place."""
    old = table.at[ids].get(mode='clip', out_sharding=P())
    return table.at[ids].set(values, mode='drop'), old


F, I = np.float32, np.int32
PROGRAMS = {  # function, mesh, arguments (shape, dtype, axes), donated
    'loop': (loop, (2, 2), [((8, 16), F, ('data', 'model')), ((16, 8), F, ('model',))], ()),
    'batched': (batched, (2, 1), [((32, 48, 64), F, ('data',)), ((32, 40, 64), F, ('data',))], ()),
    'beside': (beside, (2, 1), [((4096, 8192), F, ('data',)), ((1024, 1024), F, ())], ()),
    'scattered': (scattered, (2, 1), [((4096, 1024), F, ())], ()),
    'rows': (rows, (1, 1), [((4_000_000, 64), F, ()), ((500,), I, ()), ((500, 64), F, ())], (0,)),
}
FLOPS = {'loop': 5 * 2 * 4 * 8 * 8, 'batched': 2 * 16 * 48 * 40 * 64, 'beside': 2 * 2 * 1024**3}
CROSSING = {  # kind, times, bytes; a TPU's sum that is scattered is padded
    'loop': ('all-reduce', 5, 5 * 4 * 8 * 4),
    'beside': ('all-gather', 1, 4096 * 8192 * 4),
    'scattered': ('reduce-scatter', 1, 2048 * 1024 * 4),
}


def compiled(name, target):
    """The text of a program for as many of a target's devices as it needs."""
    function, shape, arguments, donated = PROGRAMS[name]
    chosen = np.array(target.devices[: shape[0] * shape[1]]).reshape(shape)
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    with jax.set_mesh(jax.sharding.Mesh(chosen, ('data', 'model'), axis_types=explicit)):
        mesh = jax.sharding.get_mesh()
        given = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, P(*axes)))
            for shape, dtype, axes in arguments
        ]
        lowered = jax.jit(function, donate_argnums=donated).lower(*given)
        return lowered.compile(compiler_options=target.options).as_text()


def shortened(text):
    """Without what `hlo` does not read: tables of source lines, most of what compilers note."""
    text = re.sub(r'\n(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*', '\n', text)
    text = re.sub(r', metadata=\{[^}]*\}', '', text)
    lines = []
    for line in text.splitlines():
        head, _, config = line.partition(', backend_config=')
        kept = re.findall(
            r'"(?:known_trip_count":\{[^}]*\}|estimated_cycles":"\d+"'
            r'|dot_dimension_numbers":\{[^}]*\})',
            config,
        )
        lines.append(head + (', backend_config={' + ','.join(kept) + '}' if kept else ''))
    return re.sub(r'\n{3,}', '\n\n', '\n'.join(lines)) + '\n'


def main():
    FOLDER.mkdir(exist_ok=True)
    for kind, target in (('tpu', 'v5e:2x2'), ('gpu', 'h100:4')):
        there = target_of(target)
        for name in PROGRAMS:
            path = FOLDER / f'{kind}_{name}.txt'
            path.write_text(shortened(compiled(name, there)))


if __name__ == '__main__':
    main()
