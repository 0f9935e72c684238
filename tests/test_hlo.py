"""What is read of the texts of a TPU's and a GPU's compiler, against counts by hand.

tests/hlo/ has the texts, tests/hlo_programs.py the programs; with the compilers installed the same
is read of texts made anew (test_accelerators).
"""

import pytest
from hlo_programs import CROSSING, FLOPS, FOLDER, PROGRAMS

from jaxrec.devices import hlo

KINDS = ('tpu', 'gpu')


def text_of(kind, name):
    return (FOLDER / f'{kind}_{name}.txt').read_text()


def check(name, kind, text):
    """A program's text says what is in it by hand."""
    assert hlo.matmul_flops(text) == FLOPS.get(name, 0)
    costs = hlo.costs(text)
    assert sum(sum(one.flops.values()) for one in costs) == FLOPS.get(name, 0)
    assert all(one.cycles == 0 for one in costs) == (kind == 'gpu' or name == 'scattered')
    found = [(one.kind, one.times, one.bytes) for one in hlo.collectives(text)]
    if name not in CROSSING:
        assert not found
        return
    (one,), (expected, times, size) = found, CROSSING[name]
    assert one == (expected, times, pytest.approx(size, rel=0.1))


@pytest.mark.parametrize('name', PROGRAMS)
@pytest.mark.parametrize('kind', KINDS)
def test_products_loops_and_collectives(kind, name):
    check(name, kind, text_of(kind, name))


def test_rows_of_a_large_table_cost_rows_and_a_copy_of_it_is_seen():
    """500 rows of 64 floats are read and written; this TPU text also copies 4 million, padded."""
    rows, table = 500 * 64 * 4, 4_000_000 * 64 * 4
    on_gpu = sum(one.bytes for one in hlo.costs(text_of('gpu', 'rows')))
    assert 4 * rows <= on_gpu <= 6 * rows
    costs = sorted(hlo.costs(text_of('tpu', 'rows')), key=lambda one: one.bytes)
    assert costs[-1].bytes == table + 2 * table  # read as {0,1}, written as {1,0}: tiles of 128
    assert costs[-1].cycles > 1e6
    assert sum(one.bytes for one in costs[:-1]) < 8 * rows


def test_an_array_is_as_large_as_its_tiles():
    for shape, layout, size in (
        ((10, 64), '1,0:T(8,128)', 16 * 128),
        ((10, 64), '0,1:T(8,128)', 64 * 128),
        ((10, 64), '1,0', 640),
        ((3, 10, 100), '2,1,0:T(8,128)', 3 * 16 * 128),
        ((100,), '0:T(512)', 512),
        ((), ':T(128)', 1),
    ):
        assert hlo._bytes('f32', shape, layout) == 4 * size
        assert hlo._bytes('bf16', shape, layout) == 2 * size


def test_the_network_runs_beside_without_memory():
    """What an asynchronous collective hands from fusion to fusion is not read by each of them."""
    crossing = 4096 * 8192 * 4
    costs = {one.name: one for one in hlo.costs(text_of('tpu', 'beside'))}
    beside = [one for name, one in costs.items() if name.startswith('fusion')]
    assert len(beside) == 2 and all(one.bytes < crossing / 8 for one in beside)
    assert not any(name.startswith('async') for name in costs)
