"""Reads the text of a compiled XLA program: what crosses devices, is multiplied, and costs.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs, where
the text says how often (it does for every `lax.scan`, `map` and `fori_loop` of fixed length). All
figures are those of one device. Texts differ by compiler: a TPU's has tiled layouts, memory spaces,
products as convolutions and its own estimate of cycles; a GPU's calls cuBLAS.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = (
    'all-reduce',
    'all-gather',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
    'collective-broadcast',
)
_BYTES = {'pred': 1, 'bf16': 2, 'c64': 8, 'c128': 16}  # the others say their bits
_ARRAY = re.compile(r'([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\](?:\{([^}]*)\})?')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9-]*)\((.*)')
_CALLED = re.compile(
    r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)'
    r'|(?:branch_computations|called_computations)=\{([^}]*)\}'
)
_SHORT = ('bf16', 'f16')
_NO_WORK = (  # name what is there, or only hold the instructions that are counted
    'parameter constant tuple get-tuple-element bitcast while conditional call after-all '
    'partition-id replica-id opt-barrier async-start async-update async-done'
).split()
_SLICES = ('gather', 'dynamic-slice', 'slice')  # read of their first operand what they yield
_IN_PLACE = ('scatter', 'dynamic-update-slice')  # touch of their first operand what they write


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that moves data between devices.

    Attributes:
      kind: one of KINDS.
      arrays: (dtype, shape) of each result on one device.
      times: how often it runs.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    times: int

    @property
    def bytes(self) -> int:
        """Of all results on one device, each time together."""
        return self.times * sum(_size(dtype) * math.prod(shape) for dtype, shape in self.arrays)


@dataclasses.dataclass(frozen=True)
class Cost:
    """One instruction that computes, with all that is fused into it.

    Attributes:
      name: of the instruction.
      about: where it comes from in the traced program, 'jvp()/dot_general'.
      times: how often it runs.
      flops: of its matrix products, each time together, by what they are computed in: 'bfloat16'
        (or another short type), or for longer types 'default', 'high' or 'highest' precision.
      bytes: that it reads from and writes to the device's main memory, each time together. Of an
        array that is only sliced or gathered from, or updated in place, the rows that are touched.
      cycles: the compiler's own estimate, each time together; 0 where it gives none.
    """

    name: str
    about: str
    times: int
    flops: dict[str, int]
    bytes: int
    cycles: int


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program (`jax.stages.Compiled.as_text()`)."""
    program, found = _Program(text), {}
    for inside, one, times in program.running():
        kind, result = one.op.removesuffix('-done'), one.result
        if kind not in KINDS:  # of an asynchronous pair, the one that has the result
            continue
        key = len(found)
        if inside not in program.alone:  # a TPU fuses it with all that runs meanwhile
            key = re.search(r'channel_id=\d+', one.rest)[0]
            if inside.startswith('all-reduce-scatter'):
                kind, result = 'reduce-scatter', program.root(inside).result
        arrays = tuple(array[:2] for array in _arrays(result))
        found.setdefault(key, Collective(kind, arrays, times))
    return list(found.values())


def matmul_flops(text: str) -> int:
    """Floating-point operations of the matrix products, one multiply-add as two."""
    program = _Program(text)
    return sum(times * program.flops(inside, one) for inside, one, times in program.running())


def costs(text: str) -> list[Cost]:
    """What each instruction costs, in the order of the text; those that cost nothing are left out.

    Collectives are not among them, see `collectives`.
    """
    program, found = _Program(text), []
    for inside, one, times in program.running(fused=False):
        if one.op in _NO_WORK or one.op.endswith('-done'):
            continue
        if one.op.removesuffix('-start') in KINDS:
            continue
        flops = {}
        for kind, count in program.products(inside, one):
            flops[kind] = flops.get(kind, 0) + times * count
        cycles = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
        about = re.search(r'op_name="([^"]*)"', one.rest)
        cost = Cost(
            name=one.name,
            about=about[1] if about else '',
            times=times,
            flops=flops,
            bytes=times * program.traffic(inside, one),
            cycles=times * int(cycles[1] if cycles else 0),
        )
        if cost.flops or cost.bytes or cost.cycles:
            found.append(cost)
    return found


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """A line of a computation: ROOT name = result op(operands), attributes."""

    root: bool
    name: str
    result: str
    op: str
    rest: str

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of what it reads, without their types."""
        depth = 1
        for end, letter in enumerate(self.rest):
            depth += (letter in '([{') - (letter in ')]}')
            if not depth:
                return re.findall(r'%([\w.-]+)', self.rest[:end])
        return []

    @functools.cached_property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        found = []
        for one, several in _CALLED.findall(self.rest):
            found += re.findall(r'[\w.-]+', one or several)
        return found


class _Program:
    """The computations of a text by name, and how often each runs."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        entry, lines = None, {}
        for line in text.splitlines():
            line = re.sub(r'/\*.*?\*/', '', line)
            if start := _COMPUTATION.match(line):
                lines = self.computations.setdefault(start[2], {})
                entry = start[2] if start[1] else entry
            elif found := _INSTRUCTION.match(line):
                one = _Instruction(bool(found[1]), *found.groups()[1:])
                lines[one.name] = one
        self._times = dict.fromkeys(self.computations, 0)
        self.alone = set()  # computations whose instructions run by themselves, not fused
        self._visit(entry, 1, True)

    def _visit(self, name: str, count: int, alone: bool) -> None:
        self._times[name] += count
        if alone:
            self.alone.add(name)
        for one in self.computations[name].values():
            if one.op in ('async-update', 'async-done'):
                continue  # counted where it starts
            trips = self._trips(one) if one.op == 'while' else 1
            runs_alone = one.op in ('while', 'conditional', 'call', 'async-start')
            for called in one.called:
                self._visit(called, count * trips, alone and runs_alone)

    def _trips(self, loop: _Instruction) -> int:
        """How often a loop runs: as the text says, or counted from 0 to a constant; else 1."""
        if told := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(told[1])
        condition = self.computations[re.search(r'condition=%?([\w.-]+)', loop.rest)[1]]
        root = next(one for one in condition.values() if one.root)
        below = [self.computations[name] for name in root.called] + [condition]
        compares = [one for part in below for one in part.values() if one.op == 'compare']
        limits = [one for one in condition.values() if re.match(r'[su]\d+\[\]', one.result)]
        limits = [one.rest.split(')')[0] for one in limits if one.op == 'constant']
        if len(compares) == 1 and 'direction=LT' in compares[0].rest and len(limits) == 1:
            return int(limits[0])
        return 1

    def root(self, name: str) -> _Instruction:
        """The one whose result is that of the computation."""
        return next(one for one in self.computations[name].values() if one.root)

    def running(self, fused: bool = True) -> Iterator[tuple[str, _Instruction, int]]:
        """(computation, instruction, how often it runs), with what is fused or without.

        The two branches of a conditional both count.
        """
        for name, inside in self.computations.items():
            if self._times[name] and (fused or name in self.alone):
                yield from ((name, one, self._times[name]) for one in inside.values())

    def flops(self, inside: str, one: _Instruction) -> int:
        """Of a matrix product, once; 0 of anything else."""
        if one.op == 'convolution':
            return self._convolution_flops(inside, one)
        if one.op == 'dot':
            summed = re.search(r'lhs_contracting_dims=\{([0-9,]*)\}', one.rest)[1]
        elif one.op == 'custom-call' and 'lhs_contracting_dimensions' in one.rest:  # cuBLAS
            summed = re.search(r'lhs_contracting_dimensions":\[([0-9",]*)\]', one.rest)[1]
        else:
            return 0
        left = self._shape(inside, one.operands[0])
        inner = math.prod(left[int(d.strip('"'))] for d in summed.split(',') if d)
        return 2 * math.prod(_arrays(one.result)[0][1]) * inner

    def _convolution_flops(self, inside: str, one: _Instruction) -> int:
        """A TPU's products are convolutions; its batch axes are windows of which one place counts.

        labels such as 0bf_io0->0bf: what each axis of (left, right, result) is.
        """
        labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', one.rest)
        left, right, result = (
            dict(zip(axes, shape, strict=True))
            for axes, shape in zip(
                labels.groups(),
                (*(self._shape(inside, name) for name in one.operands[:2]),)
                + (_arrays(one.result)[0][1],),
                strict=True,
            )
        )
        window = re.search(r'window=\{([^}]*)\}', one.rest)
        options = dict(part.split('=') for part in window[1].split()) if window else {}

        def option(name, axis, default):
            return options[name].split('x')[axis] if name in options else default

        places = 1
        for axis in range(len(right) - 2):
            size, at = right[str(axis)], np.arange(result[str(axis)])
            stride, dilate, base = (
                int(option(name, axis, 1)) for name in ('stride', 'rhs_dilate', 'lhs_dilate')
            )
            low = int(str(option('pad', axis, '0_0')).split('_')[0])
            read = at[:, None] * stride - low + np.arange(size) * dilate
            inner = (read >= 0) & (read <= (left[str(axis)] - 1) * base) & (read % base == 0)
            places *= int(inner.sum())
        return 2 * result['b'] * result['f'] * right['i'] * places

    def products(self, inside: str, one: _Instruction) -> Iterator[tuple[str, int]]:
        """(kind of `Cost.flops`, flops) of each product that an instruction computes or calls."""
        if flops := self.flops(inside, one):
            short = _arrays(self.computations[inside][one.operands[0]].result)[0][0] in _SHORT
            precise = re.search(r'(?i)operand_precision"?[=:][{\[]"?(\w+)', one.rest)
            yield 'bfloat16' if short else precise[1].lower() if precise else 'default', flops
        if one.op == 'fusion':
            for name in one.called:
                for inner in self.computations[name].values():
                    yield from self.products(name, inner)

    def traffic(self, inside: str, one: _Instruction) -> int:
        """Bytes of main memory that an instruction reads and writes, once."""
        shapes = self.computations[inside]
        operands = [shapes[name] for name in one.operands if name in shapes]
        if one.op == 'fusion':
            body = self.computations[one.called[0]]
            root = self.root(one.called[0])
            if root.op == 'custom-call' and any(i.op in KINDS for i in body.values()):
                return 0  # the beginning or the end of a collective
            parameters = [i for i in body.values() if i.op == 'parameter']
            parameters.sort(key=lambda i: int(i.rest.split(')')[0]))
            read = sum(
                min(_stored(operand.result), self._read_inside(body, parameter.name))
                for operand, parameter in zip(operands, parameters, strict=True)
            )
            return read + min(_stored(one.result), self._written_inside(body, root))
        if one.op in _SLICES:
            return _stored(one.result) + sum(_stored(i.result) for i in operands[1:])
        if one.op in _IN_PLACE:
            return _changed(one, shapes) + sum(_stored(i.result) for i in operands[1:])
        if one.op.endswith('-start'):  # copies and slices: to and from are in the result
            ends = _arrays(one.result)[:2]
            return min(_bytes(*end) for end in ends) * sum(map(_in_main_memory, ends))
        return _stored(one.result) + sum(_stored(i.result) for i in operands)

    def _read_inside(self, body: dict[str, _Instruction], name: str) -> float:
        """Bytes that a fused computation reads of one of its arrays; inf = all of it."""
        total = 0
        for one in body.values():
            if name not in one.operands or one.op == 'tuple' or one.op in KINDS:
                continue  # only handed on
            if one.op == 'bitcast':
                total += self._read_inside(body, one.name)
            elif one.op in _SLICES and one.operands[0] == name:
                total += sum(_bytes(d, s, '') for d, s, _ in _arrays(one.result))
            elif one.op in _IN_PLACE and one.operands[0] == name:
                total += _changed(one, body)
            elif one.op == 'fusion':
                inner = self.computations[one.called[0]]
                numbers = [n for n, operand in enumerate(one.operands) if operand == name]
                for i in inner.values():
                    if i.op == 'parameter' and int(i.rest.split(')')[0]) in numbers:
                        total += self._read_inside(inner, i.name)
            else:
                return math.inf
        return total

    def _written_inside(self, body: dict[str, _Instruction], one: _Instruction) -> float:
        """Bytes that a fused computation writes as its result `one`."""
        if one.op == 'tuple':
            return sum(self._written_inside(body, body[name]) for name in one.operands)
        if one.op == 'bitcast' and one.operands[0] in body:
            return self._written_inside(body, body[one.operands[0]])
        if one.op == 'fusion':
            inner = self.computations[one.called[0]]
            return self._written_inside(inner, self.root(one.called[0]))
        if one.op == 'parameter' or one.op in KINDS:
            return 0  # handed on, or brought by the network
        return _changed(one, body) if one.op in _IN_PLACE else _stored(one.result)

    def _shape(self, inside: str, name: str) -> tuple[int, ...]:
        return _arrays(self.computations[inside][name].result)[0][1]


def _changed(one: _Instruction, shapes: dict[str, _Instruction]) -> int:
    """Bytes that a scatter or an update writes: of its updates."""
    updates = [one.operands[1]]
    if one.op == 'scatter':
        updates = one.operands[len(one.operands) // 2 + 1 :]
    arrays = [array for name in updates for array in _arrays(shapes[name].result)]
    return sum(_bytes(dtype, shape, '') for dtype, shape, _ in arrays)


def _arrays(result: str) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """(dtype, shape, layout) of each array of a result."""
    return tuple(
        (dtype, tuple(int(d.lstrip('<=')) for d in dims.split(',') if d), layout)
        for dtype, dims, layout in _ARRAY.findall(result)
    )


def _stored(result: str) -> int:
    """Bytes of the arrays that lie in main memory."""
    return sum(_bytes(*array) for array in _arrays(result) if _in_main_memory(array))


def _in_main_memory(array: tuple[str, tuple[int, ...], str]) -> bool:
    """S(1) and above is a nearer memory of a TPU, or the host's."""
    return not re.search(r'S\([1-9]', array[2])


def _bytes(dtype: str, shape: tuple[int, ...], layout: str) -> int:
    """As it is stored: {1,0:T(8,128)} fills tiles of 8 x 128 of the two minor axes, 1 and 0."""
    order, _, tiling = layout.partition(':')
    tile = re.match(r'T\(([0-9,]+)\)', tiling)
    sizes = [shape[int(axis)] for axis in reversed(order.split(',')) if axis] or list(shape)
    if tile and sizes:
        tiles = [int(n) for n in tile[1].split(',')][-len(sizes) :]
        minor = [-(-n // t) * t for n, t in zip(sizes[-len(tiles) :], tiles, strict=True)]
        sizes[-len(tiles) :] = minor
    return int(_size(dtype) * math.prod(sizes))


def _size(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.match(r'[a-z]+(\d+)', dtype)
    return int(bits[1]) / 8 if bits else 0  # a token holds nothing
