"""The pictures are written where matplotlib is, and their absence is reported where it is not."""

import json
import sys

import pytest

from jaxrec.evaluation import plots
from jaxrec.training.logs import read_series

PNG = b'\x89PNG'


def write_log(folder):
    lines = [{'step': s, 'seconds': s / 10, 'loss': 5 - s / 10} for s in range(1, 9)]
    lines += [{'step': s, 'seconds': 1.0, 'valid/NDCG@10': s / 100} for s in (4, 8)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_curves(tmp_path):
    pytest.importorskip('matplotlib')
    write_log(tmp_path)
    assert plots.plot_curves(tmp_path) == ''
    assert (tmp_path / 'curves.png').read_bytes().startswith(PNG)
    assert plots.plot_curves(tmp_path, 'MRR') == ''  # not measured: another one is shown
    assert not list(tmp_path.glob('*.partial*'))


def test_series(tmp_path):
    write_log(tmp_path)
    series = read_series(tmp_path / 'metrics.jsonl')
    assert series['valid/NDCG@10'] == [(4, 0.04), (8, 0.08)]
    assert len(series['loss']) == 8


def test_series_of_a_torn_log(tmp_path):
    write_log(tmp_path)
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 9, "lo')
    assert len(read_series(tmp_path / 'metrics.jsonl')['loss']) == 8


def test_no_curves_without_a_log(tmp_path):
    pytest.importorskip('matplotlib')
    assert plots.plot_curves(tmp_path) == 'nothing has been logged yet'
    assert not (tmp_path / 'curves.png').exists()


def test_metric_at_k(tmp_path):
    pytest.importorskip('matplotlib')
    values = {'HR@1': 0.1, 'HR@10': 0.3, 'NDCG@1': 0.1, 'NDCG@10': 0.2, 'MRR': 0.15}
    assert plots.plot_metric_at_k(tmp_path / 'k.png', {'model': values, 'markov': values}) == ''
    assert (tmp_path / 'k.png').read_bytes().startswith(PNG)


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    write_log(tmp_path)
    assert 'matplotlib is not installed' in plots.plot_curves(tmp_path)
    assert 'matplotlib is not installed' in plots.plot_metric_at_k(tmp_path / 'k.png', {})
    assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']
