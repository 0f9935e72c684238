"""The training command: resume, kill, signals, non-finite losses, meshes, and what it records."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxrec import workdir as workdir_lib
from jaxrec.config import Data, Eval, Experiment, Optim, Train
from jaxrec.models import sasrec

EXPERIMENT = """
from jaxrec.config import Data, Eval, Experiment, Optim, Train
from jaxrec.models import sasrec

def get_config(arg=''):
    return Experiment(
        model=sasrec.Config(dim=8, blocks=1, max_len=10),
        data=Data(dataset='synthetic:users=300,items=60,length=12,seed=1', data_dir={data_dir!r}),
        optim=Optim(learning_rate=1e-2, ema=0.9),
        train=Train(batch_rows=8, epochs=4, log_every=5, eval_every=0.25),
        eval=Eval(cutoffs=(5, 10), batch_users=64),
    )
"""


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """An experiment file, its data prepared, and an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp('train')
    config = folder / 'experiment.py'
    config.write_text(EXPERIMENT.format(data_dir=str(folder / 'data')))
    done = command(config, folder / 'whole')
    assert done.returncode == 0, done.stderr
    return config, folder / 'whole'


def arguments(config, workdir, *flags):
    return [
        sys.executable,
        '-m',
        'jaxrec.train',
        f'--config={config}',
        f'--workdir={workdir}',
        *flags,
    ]


def command(config, workdir, *flags):
    return subprocess.run(arguments(config, workdir, *flags), capture_output=True, text=True)


def params_of(workdir, which='last'):
    trained = workdir_lib.load_trained(workdir, which)
    jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
    return trained.step, jax.device_get(trained.params)


def metrics_of(workdir):
    lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def one_error_line(done):
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line]
    assert lines[-1].startswith('error: ')
    assert 'Traceback' not in done.stderr
    return lines[-1]


def test_a_run_records_itself(setting):
    workdir = setting[1]
    run = json.loads((workdir / 'run.json').read_text())
    assert run['versions']['jax'] == jax.__version__
    assert len(run['data_hash']) == 64
    assert any('jaxrec.train' in word for word in run['command'])
    assert 'devices' in run and 'git' in run
    record = json.loads((workdir / 'config.json').read_text())
    assert record['model']['type'] == 'jaxrec.models.sasrec:Config'
    assert (workdir / 'curves.png').stat().st_size > 1000
    lines = metrics_of(workdir)
    steps = [line['step'] for line in lines if 'loss' in line]
    assert steps == sorted(set(steps))
    first, last = ([line for line in lines if 'loss' in line][i]['loss'] for i in (0, -1))
    assert last < first - 0.5
    assert max(line['valid/HR@10'] for line in lines if 'valid/HR@10' in line) > 0.3
    for name in ('softmax', 'grad_norm', 'tokens_per_second', 'examples_per_second', 'epoch'):
        assert name in lines[0]
    assert not list(workdir.rglob('*.pkl')) and not list(workdir.rglob('*.pickle'))


def test_kill_at_random_moments_then_resume_is_bit_exact(setting, tmp_path):
    config, whole = setting
    workdir = tmp_path / 'killed'
    rng = random.Random(os.environ.get('JAXREC_TEST_SEED', '0'))
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(
            arguments(config, workdir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        at = None
        for line in process.stdout:  # the random moment counts from the first sign of training
            if line.startswith('step '):
                at = at or time.monotonic() + rng.uniform(0, 1.5)
            if at and time.monotonic() > at:
                process.kill()
                kills += 1
                break
        process.stdout.close()
        process.wait()
        if process.returncode == 0:
            break
    assert kills >= 1
    done = command(config, workdir)
    assert done.returncode == 0, done.stderr
    step, params = params_of(workdir)
    expected_step, expected = params_of(whole)
    assert step == expected_step
    assert same(params, expected)
    assert same(params_of(workdir, 'best')[1], params_of(whole, 'best')[1])
    keep = lambda lines: [  # noqa: E731
        (line['step'], {k: v for k, v in line.items() if k.startswith('valid')})
        for line in lines
        if 'valid/HR@10' in line
    ]
    assert keep(metrics_of(workdir)) == keep(metrics_of(whole))


def test_sigterm_saves_and_says_how_to_go_on(setting, tmp_path):
    config, whole = setting
    workdir = tmp_path / 'stopped'
    process = subprocess.Popen(
        arguments(config, workdir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output = ''
    for line in process.stdout:
        output += line
        if line.startswith('step '):
            process.send_signal(signal.SIGTERM)
            break
    output += process.stdout.read()
    assert process.wait() == 0, output
    assert 'stopped by a signal' in output and 'same command' in output
    stopped_at, _ = params_of(workdir)
    done = command(config, workdir)
    assert done.returncode == 0, done.stderr
    assert f'going on from step {stopped_at}' in done.stdout
    assert same(params_of(workdir)[1], params_of(whole)[1])


def test_cut_short_then_longer(setting, tmp_path):
    config, whole = setting
    workdir = tmp_path / 'short'
    done = command(config, workdir, '--config.train.steps=7', '--json')
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary['step'] == 7 and summary['stopped'] == 'finished'
    assert len(done.stdout.splitlines()) == 1  # everything else went to standard error
    done = command(config, workdir)
    assert done.returncode == 0, done.stderr
    assert same(params_of(workdir)[1], params_of(whole)[1])


def test_non_finite_loss_stops_with_a_checkpoint_before_it(setting, tmp_path):
    config, _ = setting
    workdir = tmp_path / 'nan'
    # finite at first, then beyond float32: a rate of 1e38 after a warm-up
    flags = ('--config.optim.learning_rate=1e38', '--config.optim.warmup_steps=1000')
    error = one_error_line(command(config, workdir, *flags))
    assert 'not finite at step' in error and 'learning_rate' in error
    at = int(error.split('not finite at step ')[1].split()[0])
    if list((workdir / 'checkpoints' / 'last').glob('[0-9]*')):
        step, params = params_of(workdir)
        assert step < at
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_early_stopping(setting, tmp_path):
    config, _ = setting
    flags = ('--config.train.patience=2', '--config.optim.learning_rate=1e-9', '--json')
    done = command(config, tmp_path / 'early', *flags, '--config.optim.ema=0')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])['stopped'] == 'early stopping'
    again = command(config, tmp_path / 'early', *flags, '--config.optim.ema=0')
    assert again.returncode == 0 and 'early stopping' in again.stderr


def test_same_losses_on_any_mesh(setting, tmp_path):
    config, _ = setting
    losses = []
    environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '8'}
    for data, model in ((1, 1), (8, 1), (4, 2), (2, 4)):
        workdir = tmp_path / f'mesh{data}{model}'
        flags = (f'--config.mesh.data={data}', f'--config.mesh.model={model}')
        done = subprocess.run(
            arguments(
                config, workdir, *flags, '--config.train.steps=6', '--config.train.log_every=1'
            ),
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        lines = metrics_of(workdir)
        losses.append([round(line['loss'], 5) for line in lines if 'loss' in line])
        valid = [line for line in lines if 'valid/HR@10' in line][-1]
        losses[-1].append(round(valid['valid/HR@10'], 5))
    assert len(losses[0]) == 7
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], atol=1.01e-5)


def test_wrong_workdir_and_wrong_flags(setting, tmp_path):
    config, whole = setting
    error = one_error_line(command(config, whole, '--config.model.dim=16'))
    assert 'model.dim=8' in error and '16' in error and '--workdir' in error
    error = one_error_line(
        command(config, whole, '--config.data.dataset=synthetic:users=20,items=60,length=12,seed=5')
    )
    assert 'other data' in error
    error = one_error_line(command(config, tmp_path / 'a', '--config.model.dimm=16'))
    assert 'dimm' in error
    error = one_error_line(command(config, tmp_path / 'a', '--config.model.dim=wide'))
    assert 'dim' in error and 'wide' in error
    error = one_error_line(command(config, tmp_path / 'a', '--no_such_flag=1'))
    assert 'no_such_flag' in error
    error = one_error_line(command(tmp_path / 'missing.py', tmp_path / 'a'))
    assert 'missing.py' in error
    error = one_error_line(command(config, tmp_path / 'a', '--config.mesh.model=3'))
    assert 'mesh' in error
    error = one_error_line(command(config, tmp_path / 'a', '--config.train.metric=NDCG@7'))
    assert 'NDCG@7' in error and 'HR@10' in error
    error = one_error_line(command(config, tmp_path / 'a', '--config.data.dataset=netflix'))
    assert 'netflix' in error


def test_workdir_that_cannot_be_written(setting, tmp_path):
    config, _ = setting
    blocked = tmp_path / 'file'
    blocked.write_text('in the way')
    error = one_error_line(command(config, blocked / 'run'))
    assert str(blocked) in error


def test_record_round_trip():
    experiment = Experiment(
        model=sasrec.Config(dim=24, loss='bce'),
        data=Data(log='x.csv', features=('rating',))
        if hasattr(Data, 'features')
        else Data(log='x'),
        optim=Optim(clip_norm=1.0),
        train=Train(seed=3),
        eval=Eval(cutoffs=(1, 7)),
    )
    record = json.loads(json.dumps(workdir_lib.to_record(experiment)))
    assert workdir_lib.from_record(record) == experiment
