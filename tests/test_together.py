"""Training several runs in one program: the folders, resuming, early stopping, and its flags."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxrec.config import Experiment
from jaxrec.errors import UserError
from jaxrec.models import sasrec
from jaxrec.training.restore import load_trained
from jaxrec.training.together import expand

EXPERIMENT = """
from jaxrec.config import Data, Eval, Experiment, Optim, Train
from jaxrec.models import sasrec

def get_config(arg=''):
    return Experiment(
        model=sasrec.Config(dim=8, blocks=1, max_len=10),
        data=Data(dataset='synthetic:users=200,items=60,length=12,seed=1', data_dir={data_dir!r}),
        optim=Optim(learning_rate=1e-2),
        train=Train(batch_rows=8, epochs=30, eval_every=0.25, patience=1, log_every=5),
        eval=Eval(cutoffs=(5, 10), batch_users=64),
    )
"""
TOGETHER = '--seeds_in_parallel=0,1,2'


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """An experiment file, and three seeds trained in one program, killed once on the way."""
    folder = tmp_path_factory.mktemp('together')
    config = folder / 'experiment.py'
    config.write_text(EXPERIMENT.format(data_dir=str(folder / 'data')))
    process = subprocess.Popen(
        arguments(config, folder / 'runs', TOGETHER),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output, killed = '', False
    for line in process.stdout:
        output += line
        if 'best valid' in line:
            process.kill()
            killed = True
            break
    process.stdout.close()
    process.wait()
    assert killed, output
    done = train(config, folder / 'runs', TOGETHER, '--json')
    assert done.returncode == 0, done.stderr
    return config, folder / 'runs', json.loads(done.stdout.splitlines()[-1])['runs'], done.stderr


def arguments(config, workdir, *flags):
    words = [sys.executable, '-m', 'jaxrec.train', f'--config={config}', f'--workdir={workdir}']
    return [*words, *flags]


def train(config, workdir, *flags):
    environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
    return subprocess.run(
        arguments(config, workdir, *flags), capture_output=True, text=True, env=environment
    )


def test_every_seed_is_a_run_of_its_own(setting, tmp_path):
    config, runs, summaries, said = setting
    assert 'going on from step' in said
    assert list(summaries) == ['seed0', 'seed1', 'seed2']
    done = train(config, tmp_path / 'alone', '--config.train.seed=1', '--json')
    assert done.returncode == 0, done.stderr
    alone = json.loads(done.stdout.splitlines()[-1])
    found = summaries['seed1']
    for name in ('stopped', 'step', 'best_step', 'metric'):
        assert found[name] == alone[name], name
    assert found['stopped'] == 'early stopping'
    assert len({summary['step'] for summary in summaries.values()}) > 1  # each stops on its own
    np.testing.assert_allclose(found['best'], alone['best'], rtol=1e-3)

    parameters = []
    for place in (runs / 'seed1', tmp_path / 'alone'):
        trained = load_trained(place)
        jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
        assert trained.experiment.train.seed == 1
        parameters.append(jax.device_get(trained.params['table']))
    np.testing.assert_allclose(*parameters, rtol=2e-3, atol=2e-3)
    curves = []
    for place in (runs / 'seed1', tmp_path / 'alone'):
        lines = map(json.loads, (place / 'metrics.jsonl').read_text().splitlines())
        curves.append({x['step']: x['valid/HR@10'] for x in lines if 'valid/HR@10' in x})
    assert curves[0].keys() == curves[1].keys()


def test_a_run_of_the_program_is_evaluated_like_any_other(setting):
    words = [sys.executable, '-m', 'jaxrec.evaluate', f'--workdir={setting[1] / "seed2"}']
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'training seed 2' in done.stdout


def test_other_runs_in_the_folder_are_refused(setting):
    config, runs, _, _ = setting
    done = train(config, runs, '--seeds_in_parallel=0,1')
    assert done.returncode == 2
    assert 'holds the runs seed0, seed1, seed2 in one program' in done.stderr.splitlines()[-1]


def test_expand():
    experiment = Experiment(model=sasrec.Config())
    runs = expand(experiment, ['3', '4'], ['optim.learning_rate=1e-3,3e-3', 'optim.b1=.8'])
    assert list(runs) == [
        f'seed{seed}_optim.learning_rate={rate}_optim.b1=.8'
        for seed in (3, 4)
        for rate in ('1e-3', '3e-3')
    ]
    assert [(r.train.seed, r.optim.learning_rate, r.optim.b1) for r in runs.values()] == [
        (3, 1e-3, 0.8),
        (3, 3e-3, 0.8),
        (4, 1e-3, 0.8),
        (4, 3e-3, 0.8),
    ]
    assert experiment.train.seed == 0
    for vary, error in (
        ('model.dim=8', 'give one of optim.learning_rate'),
        ('optim.b1=x', 'optim.b1='),
    ):
        with pytest.raises(UserError, match=error):
            expand(experiment, [], [vary])
