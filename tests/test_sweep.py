"""launch/sweep.py: prints, runs and tabulates the rows of an experiment's sweep()."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SWEEP = pathlib.Path(__file__).parent.parent / 'launch' / 'sweep.py'
EXPERIMENT = """
from jaxrec.config import Data, Eval, Experiment, Train
from jaxrec.models import sasrec

def get_config(arg=''):
    return Experiment(
        model=sasrec.Config(dim=int(arg or 8), blocks=1, max_len=6),
        data=Data(dataset='synthetic:users=60,items=30,length=6', data_dir={data_dir!r}),
        train=Train(batch_rows=8, steps=3),
        eval=Eval(cutoffs=(5, 10)),
    )

def sweep():
    return {{
        'base': ('', {{}}),
        'width/4': ('4', {{}}),
        'cut/5': ('', {{'eval.cutoffs': (5, 10, 20), 'model.dropout': 0.5}}),
    }}
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / 'experiment.py'
    path.write_text(EXPERIMENT.format(data_dir=str(tmp_path / 'data')))
    return path


def sweep(experiment, *flags):
    place = f'--workdir={experiment.parent / "runs"}'
    line = [sys.executable, str(SWEEP), f'--experiment={experiment}', place, *flags]
    return subprocess.run(line, capture_output=True, text=True)


def test_prints_commands(experiment):
    done = sweep(experiment, '--seeds=0,3', '--', '--config.train.epochs=2')
    lines = done.stdout.splitlines()
    assert len(lines) == 3 * 2 * 2
    train, evaluate = lines[-2:]
    folder = experiment.parent / 'runs' / 'cut_5' / 'seed3'
    assert f'-m jaxrec.train --config={experiment} --workdir={folder}' in train
    assert "'--config.eval.cutoffs=(5, 10, 20)' --config.model.dropout=0.5" in train
    assert train.endswith('--config.train.seed=3 --config.train.epochs=2')
    assert evaluate.endswith(f'-m jaxrec.evaluate --workdir={folder}')
    assert f'--config={experiment}:4 ' in lines[4]


def test_runs_once_and_tabulates(experiment):
    flags = ('--only=base,width/*', '--seeds=0,1')
    done = sweep(experiment, '--run', *flags)
    assert done.returncode == 0, done.stderr
    runs = experiment.parent / 'runs'
    files = sorted(runs.glob('*/*/evaluation_test_full.json'))
    assert len(files) == 4
    before = [path.stat().st_mtime_ns for path in files]
    assert sweep(experiment, '--run', *flags).returncode == 0
    assert [path.stat().st_mtime_ns for path in files] == before  # nothing is run again

    table = sweep(experiment, '--table', '--metrics=HR@10,NDCG@5', *flags).stdout.splitlines()
    assert table[0] == '|  | seeds | HR@10 | NDCG@5 |'
    for line, name in zip(table[2:], ('base', 'width_4'), strict=True):
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        assert cells[:2] == [name.replace('_', '/'), '2']
        results = [json.loads(p.read_text()) for p in sorted((runs / name).glob('*/eval*.json'))]
        for cell, metric in zip(cells[2:], ('HR@10', 'NDCG@5'), strict=True):
            a, b = (r['metrics'][metric] for r in results)
            assert cell == f'{(a + b) / 2:.4f} ± {np.std([a, b], ddof=1):.4f}'


def test_errors(experiment):
    done = sweep(experiment, '--only=nothing')
    assert done.returncode == 1 and 'takes no row of base, width/4, cut/5' in done.stderr
    folder = experiment.parent / 'runs' / 'base' / 'seed0'
    folder.mkdir(parents=True)
    result = {'metrics': {'HR@5': 0.1}, 'data_hash': 'a'}
    (folder / 'evaluation_test_full.json').write_text(json.dumps(result))
    done = sweep(experiment, '--table', '--metrics=HR@7')
    assert done.returncode == 1 and '--metrics=HR@7: base has only HR@5' in done.stderr
    done = sweep(experiment.with_name('nonesuch.py'))
    assert done.returncode == 1 and 'no such experiment file' in done.stderr
    experiment.write_text('def get_config(arg): pass')
    done = sweep(experiment)
    assert done.returncode == 1 and 'has no sweep()' in done.stderr
