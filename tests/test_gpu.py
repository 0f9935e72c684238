"""On a GPU: a killed run ends with the bits of one that was not, and a CPU says what it says.

pytest -m accelerators tests/test_gpu.py, skipped where no GPU is. This process keeps to its CPU, as
in the rest of the suite; the commands are processes that get the GPU.
"""

import dataclasses
import shutil

import pytest
from runs import check_same_run, killed_after, line, process, small, started, write

from jaxrec.experiment import applied
from jaxrec.models import lightgcn
from jaxrec.objectives.contrast import Contrast
from jaxrec.tasks import next_item

pytestmark = [
    pytest.mark.accelerators,
    pytest.mark.skipif(shutil.which('nvidia-smi') is None, reason='no GPU here'),
]
COMMON = {  # so few items that many rows of a step's gradient fall on one another
    'data.dataset': 'synthetic:users=3000,items=300,length=40,seed=1',
    'model.dim': 64,
    'train.epochs': 6,
    'train.eval_every': 1.0,
    'train.log_every': 5,
}


def sequences(folder, **changes):
    rows = {'model.max_len': 50, 'model.dropout': 0.2, 'train.batch_rows': 64}
    return small(folder, **COMMON, **rows, **changes)


def sampled(folder):
    """Rows of the item table are updated alone."""
    return sequences(
        folder,
        **{'model.loss': 'sampled_softmax', 'model.negatives': 64},
        **{'optim.table': 'sparse_adam', 'optim.ema': 0.0},
    )


def contrastive(folder):
    experiment = sequences(folder)
    model = dataclasses.replace(experiment.model, contrast=(Contrast(),))
    return dataclasses.replace(experiment, model=model)


def graph(folder):
    task = next_item.Config(windows='pairs', cutoffs=(5, 10), batch_users=64)
    experiment = dataclasses.replace(small(folder), model=lightgcn.Config(), task=task)
    return applied(experiment, {**COMMON, 'train.batch_rows': 4096, 'model.loss': 'multinomial'})


@pytest.fixture
def commands_on_a_gpu(monkeypatch):
    """Without the flags and the compile cache of the suite."""
    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    monkeypatch.delenv('XLA_FLAGS')


@pytest.mark.parametrize('make', [sampled, contrastive, graph])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(make, tmp_path, commands_on_a_gpu):
    config = write(tmp_path / 'experiment.py', make(tmp_path))
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    done = process('train', f'--config={config}', f'--workdir={whole}')
    assert done.returncode == 0, done.stderr
    assert ' gpu device' in done.stdout
    words = line('train', f'--config={config}', f'--workdir={cut}', '--config.train.save_every=.01')
    assert killed_after(started(words), 1.0)[0]
    done = process('train', *words[words.index('jaxrec.train') + 1 :])
    assert done.returncode == 0, done.stderr
    assert 'going on from step' in done.stdout
    check_same_run(cut, whole)


def test_a_cpu_evaluates_what_a_gpu_learnt(tmp_path, monkeypatch, commands_on_a_gpu):
    config = write(tmp_path / 'experiment.py', sequences(tmp_path))
    workdir = f'--workdir={tmp_path / "run"}'
    done = process('train', f'--config={config}', workdir, '--config.train.epochs=2')
    assert done.returncode == 0, done.stderr
    there = process('evaluate', workdir, '--json').result
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    here = process('evaluate', workdir, '--json').result
    for name, value in here['metrics'].items():
        assert there['metrics'][name] == pytest.approx(value, abs=2e-3), name
