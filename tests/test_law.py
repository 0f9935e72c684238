"""A law of size: what it finds again, and the table that fits it to its cells."""

import json
import types

import numpy as np
import pytest

from jaxrec import table
from jaxrec.paper.spec import Column, Law, Row, Table
from jaxrec.paper.statistics import power_law

SIZES = [160, 320, 640, 1600, 3168, 6336]


@pytest.mark.parametrize(('limit', 'a', 'b'), [(0.79, 0.9, 0.6), (0.8, 0.1, 0.05), (5, 700, 1.7)])
def test_a_law_is_found_again(limit, a, b):
    values = limit - a * np.array(SIZES, float) ** -b
    found = power_law(SIZES, values)
    wanted = {'limit': limit, 'a': a, 'b': b, 'error': 0}
    assert found == pytest.approx(wanted, rel=1e-2, abs=1e-6)


def test_the_best_of_noisy_values():
    """No other law nearby leaves less."""
    rng = np.random.default_rng(0)
    values = 0.79 - 0.9 * np.array(SIZES, float) ** -0.6 + rng.normal(0, 0.001, len(SIZES))
    found = power_law(SIZES, values)

    def error(limit, a, b):
        return np.sqrt(np.mean((limit - a * np.array(SIZES, float) ** -b - values) ** 2))

    best = [found[name] for name in ('limit', 'a', 'b')]
    assert error(*best) == pytest.approx(found['error'])
    for number in range(3):
        for factor in (0.999, 1.001):
            other = [x * factor if n == number else x for n, x in enumerate(best)]
            assert error(*other) >= found['error'] - 1e-9


def test_no_law():
    assert power_law(SIZES[:3], [0.1, 0.2, 0.3]) is None  # too few sizes
    assert power_law([1, 1, 2, 3], [0.1, 0.2, 0.3, 0.4]) is None
    assert power_law(SIZES, -np.arange(6.0)) is None  # it falls


def test_the_table_fits_the_mean_over_seeds(tmp_path, capsys):
    made = Table(
        title='t',
        caption='c',
        columns=(Column('data', ('GAUC/like',)),),
        rows=tuple(Row(str(size), 'x.py') for size in SIZES),
        baseline='160',
        law=Law('AUC/like', 'L n d', {str(size): size for size in SIZES}),
    )
    cells, records = [], {}
    for name in ['none', *map(str, SIZES)]:  # a row without size takes no part
        cells.append(types.SimpleNamespace(row=name, column='data', key=name))
        value = 0.79 - 0.9 * float(name) ** -0.6 if name != 'none' else 0.5
        seeds = {str(n): {'metrics': {'AUC/like': value + d}} for n, d in enumerate((-0.1, 0.1))}
        records[name] = {'seeds': seeds}
    written = table._law(made, cells, records, tmp_path)
    told = json.loads((tmp_path / 'law.json').read_text())
    assert told['data']['law']['b'] == pytest.approx(0.6, rel=1e-2)
    assert len(told['data']['points']) == 6 and tmp_path / 'law.json' in written
    assert 'AUC/like = 0.79' in capsys.readouterr().out
    table._law(made, cells[:3], records, tmp_path)
    assert 'no law of AUC/like yet' in capsys.readouterr().out
