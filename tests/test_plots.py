"""The pictures are written where matplotlib is, and their absence is reported where it is not."""

import json
import sys

import numpy as np
import pytest

from jaxrec.evaluation import anomalies, plots
from jaxrec.problem import Level
from jaxrec.training.logs import LOG, read_series

PNG = b'\x89PNG'


def write_log(folder):
    lines = [{'step': s, 'seconds': s / 10, 'loss': 5 - s / 10} for s in range(1, 9)]
    lines += [{'step': s, 'seconds': 1.0, 'valid/NDCG@10': s / 100} for s in (4, 8)]
    (folder / LOG).write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_curves(tmp_path):
    pytest.importorskip('matplotlib')
    write_log(tmp_path)
    series = read_series(tmp_path / LOG)
    drawn = {}
    for metric in ('NDCG@10', 'MRR'):  # one that is not measured: another one is shown
        assert plots.plot_curves(tmp_path / f'{metric}.png', series, metric) == ''
        drawn[metric] = (tmp_path / f'{metric}.png').read_bytes()
        assert drawn[metric].startswith(PNG)
    assert drawn['MRR'] == drawn['NDCG@10']
    assert {path.suffix for path in tmp_path.iterdir()} == {'.jsonl', '.png'}


def test_curves_of_a_run_without_validation(tmp_path):
    pytest.importorskip('matplotlib')
    assert plots.plot_curves(tmp_path / 'c.png', {'loss': [(1, 2.0), (2, 1.0)]}, 'MRR') == ''
    assert (tmp_path / 'c.png').read_bytes().startswith(PNG)


def test_series(tmp_path):
    write_log(tmp_path)
    series = read_series(tmp_path / LOG)
    assert series['valid/NDCG@10'] == [(4, 0.04), (8, 0.08)]
    assert len(series['loss']) == 8


def test_series_of_a_torn_log(tmp_path):
    write_log(tmp_path)
    with open(tmp_path / LOG, 'a') as file:
        file.write('{"step": 9, "lo')
    assert len(read_series(tmp_path / LOG)['loss']) == 8


def test_no_curves_without_a_log(tmp_path):
    pytest.importorskip('matplotlib')
    nothing = read_series(tmp_path / LOG)
    assert nothing == {}
    said = plots.plot_curves(tmp_path / 'curves.png', nothing, 'NDCG@10')
    assert said == 'nothing has been logged yet'
    assert not list(tmp_path.iterdir())


def test_metric_at_k(tmp_path):
    pytest.importorskip('matplotlib')
    values = {'HR@1': 0.1, 'HR@10': 0.3, 'NDCG@1': 0.1, 'NDCG@10': 0.2, 'MRR': 0.15}
    values |= {'HR@10 macro': 0.3}
    assert plots.plot_metric_at_k(tmp_path / 'k.png', {'model': values, 'markov': values}) == ''
    assert (tmp_path / 'k.png').read_bytes().startswith(PNG)
    said = plots.plot_metric_at_k(tmp_path / 'none.png', {'model': {'AUC/click': 0.7}})
    assert said == 'no metric has cut-offs' and not (tmp_path / 'none.png').exists()


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    write_log(tmp_path)
    series = read_series(tmp_path / LOG)
    said = plots.plot_curves(tmp_path / 'c.png', series, 'NDCG@10')
    assert 'matplotlib is not installed' in said
    assert 'matplotlib is not installed' in plots.plot_metric_at_k(tmp_path / 'k.png', {})
    assert [p.name for p in tmp_path.iterdir()] == [LOG]


def test_calibration_and_experts(tmp_path):
    pytest.importorskip('matplotlib')
    labels = {name: {'predicted': [0.1, 0.4], 'observed': [0.2, 0.3]} for name in 'abcde'}
    assert plots.plot_reliability(tmp_path / 'r.png', labels) == ''
    level = Level(('a', ''), ('', 'a'), (('', 'a'), ('',)))
    told = anomalies.Experts((level,))
    told.add({'gates/0': np.ones((3, 2, 2)), 'experts/0': np.ones((3, 2, 4))})
    assert plots.plot_experts(tmp_path / 'e.png', told.details({})) == ''
    for name in 're':
        assert (tmp_path / f'{name}.png').read_bytes().startswith(PNG)


def test_law(tmp_path):
    pytest.importorskip('matplotlib')
    points = [('L=1', 10, 0.7), ('L=2', 20, 0.72), ('L=3', 40, 0.73)]
    law = {'limit': 0.75, 'a': 0.3, 'b': 0.8}
    columns = {'one': {'points': points, 'law': law}, 'two': {'points': points[:1], 'law': None}}
    assert plots.plot_law(tmp_path / 'law.png', columns, 'AUC/like', 'C') == ''
    assert (tmp_path / 'law.png').read_bytes().startswith(PNG)
    assert plots.plot_law(tmp_path / 'none.png', {}, 'AUC/like', 'C') == 'no row has been run'
