"""Reads the text of a compiled XLA program: what crosses devices, and how much is multiplied.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs, where
XLA knows how often (it does for every `lax.scan`, `map` and `fori_loop` of fixed length). All
figures are those of one device.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BYTES = {'pred': 1, 'bf16': 2, 'c64': 8, 'c128': 16}  # the others say their bits
_ARRAY = re.compile(r'([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9-]*)\((.*)')
_CALLED = re.compile(
    r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)'
    r'|branch_computations=\{([^}]*)\}'
)


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


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program (`jax.stages.Compiled.as_text()`)."""
    found = []
    for _, result, op, _, times in _instructions(text):
        kind = op.removesuffix('-done')
        if kind in KINDS:  # of an asynchronous pair, the one that has the result
            found.append(Collective(kind, _arrays(result), times))
    return found


def matmul_flops(text: str) -> int:
    """Floating-point operations of the matrix products, one multiply-add as two."""
    total = 0
    shapes = {}
    for name, result, op, rest, times in _instructions(text):
        arrays = _arrays(result)
        shapes[name] = arrays[0][1] if len(arrays) == 1 else ()
        if op == 'dot':
            left = shapes[re.match(r'(?:\S+\[\S* )?%?([\w.-]+)', rest)[1]]
            summed = re.search(r'lhs_contracting_dims=\{([0-9,]*)\}', rest)[1]
            inner = math.prod(left[int(d)] for d in summed.split(',') if d)
            total += times * 2 * math.prod(shapes[name]) * inner
    return total


def _instructions(text: str) -> Iterator[tuple[str, str, str, str, int]]:
    """(name, result type, operation, the rest of the line, how often it runs) of each that runs.

    The two branches of a conditional both count.
    """
    computations, entry, lines = {}, None, []
    for line in text.splitlines():
        line = re.sub(r'/\*.*?\*/', '', line)
        if start := _COMPUTATION.match(line):
            lines = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif found := _INSTRUCTION.match(line):
            lines.append(found.groups())
    times = dict.fromkeys(computations, 0)
    _visit(entry, 1, computations, times)
    for name, inside in computations.items():
        if times[name]:
            yield from ((*instruction, times[name]) for instruction in inside)


def _visit(name: str, count: int, computations: dict, times: dict) -> None:
    times[name] += count
    for _, _, op, rest in computations[name]:
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', rest) if op == 'while' else None
        if op in ('async-update', 'async-done'):
            continue  # counted where it starts
        for one, several in _CALLED.findall(rest):
            for called in re.findall(r'[\w.-]+', one or several):
                _visit(called, count * int(trips[1] if trips else 1), computations, times)


def _arrays(result: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (dtype, tuple(int(d) for d in dims.split(',') if d))
        for dtype, dims in _ARRAY.findall(result)
    )


def _size(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.match(r'[a-z]+(\d+)', dtype)
    return int(bits[1]) / 8 if bits else 0  # a token holds nothing
