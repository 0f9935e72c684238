"""`import jaxrec`: what it offers, and that it costs nothing."""

import subprocess
import sys

import pytest
from runs import small

import jaxrec


def test_importing_touches_no_device_and_imports_nothing_heavy():
    code = """
import sys
import jaxrec
assert not {'jax', 'flax', 'jaxrec.evaluate', 'jaxrec.training'} & set(sys.modules)
assert jaxrec.evaluate is sys.modules['jaxrec.evaluate'] and callable(jaxrec.evaluate)
for name in dir(jaxrec):
    getattr(jaxrec, name)
for command in ('train', 'recommend', 'export', 'table', 'benchmark', 'prepare'):
    __import__(f'jaxrec.{command}')
from jax._src import xla_bridge
assert not xla_bridge._backends
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names():
    assert jaxrec.UserError.__module__ == 'jaxrec.errors'
    assert jaxrec.Experiment().data == jaxrec.Data()
    assert set(jaxrec.__all__) <= set(dir(jaxrec))
    with pytest.raises(AttributeError, match="jaxrec has no attribute 'nothing'"):
        _ = jaxrec.nothing


def test_from_an_experiment_to_a_list(tmp_path):
    experiment = small(tmp_path, **{'train.steps': 4})
    summary = jaxrec.fit(experiment, str(tmp_path / 'run'))  # folders as text too
    assert summary['stopped'] == 'finished' and summary['step'] == 4
    measured = jaxrec.evaluate(str(tmp_path / 'run'), cutoffs=(3, 10))
    assert measured.unit == 'user' and {'HR@3', 'HR@10'} <= measured.metrics.keys()
    assert len(measured.values['HR@3']) == 200
    recommender = jaxrec.load(str(tmp_path / 'run'), k=5, keep_seen=True)
    raw = [recommender.histories.raw_item(n) for n in (1, 2)]
    (rows,) = recommender.recommend([raw])
    assert len(rows) == 5 and set(rows[0]) == {'item', 'title', 'score'}
    (rows,) = jaxrec.load(tmp_path / 'run', 'last').recommend([raw], k=3)
    assert len(rows) == 3 and not {row['item'] for row in rows} & set(raw)
    with pytest.raises(jaxrec.UserError, match='holds no run'):
        jaxrec.load(tmp_path / 'nowhere')
