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
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.config import Data, Eval, Experiment, Optim, Train
from jaxrec.experiment import from_record, to_record
from jaxrec.models import sasrec
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.optim import make_optimizer
from jaxrec.training.restore import load_trained
from jaxrec.training.state import abstract_state, split_model

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
    trained = load_trained(workdir, which)
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
    assert len(run['data_hash']) == 64
    (session,) = run['sessions']
    assert session['versions']['jax'] == jax.__version__ and session['from_step'] == 0
    assert any('jaxrec.train' in word for word in session['command'])
    assert 'devices' in session and 'git' in session
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


def test_sigterm_before_the_first_step_leaves_in_order(setting, tmp_path):
    config, _ = setting
    process = subprocess.Popen(
        arguments(config, tmp_path / 'early'),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = ''
    for line in process.stdout:
        output += line
        if 'targets an epoch' in line:
            process.send_signal(signal.SIGTERM)
            break
    output += process.stdout.read()
    assert process.wait() == 0, output
    assert 'stopped by a signal' in output
    assert params_of(tmp_path / 'early')[0] < 20


def test_two_trainings_in_one_workdir(setting, tmp_path):
    config, _ = setting
    first = subprocess.Popen(
        arguments(config, tmp_path / 'shared', '--config.train.epochs=1000'),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in first.stdout:
        if line.startswith('step '):
            break
    error = one_error_line(command(config, tmp_path / 'shared'))
    first.kill()
    first.stdout.close()
    first.wait()
    assert 'another process is training' in error


def test_a_run_outlives_its_log_and_its_directory(tmp_path):
    """Evaluating needs the prepared data, not the raw log, and works from anywhere."""
    rng = np.random.default_rng(0)
    rows = [f'u{u},i{rng.integers(9)},{t}' for u in range(30) for t in range(6)]
    (tmp_path / 'log.csv').write_text('user,item,timestamp\n' + '\n'.join(rows))
    (tmp_path / 'x.py').write_text(EXPERIMENT.format(data_dir='data'))
    environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parent.parent)}
    flags = ('--config.data.log=log.csv', '--config.data.dataset=', '--config.train.steps=2')
    run = lambda where, *words: subprocess.run(  # noqa: E731
        [sys.executable, '-m', *words], cwd=where, env=environment, capture_output=True, text=True
    )
    done = run(tmp_path, 'jaxrec.train', '--config=x.py', '--workdir=run', *flags)
    assert done.returncode == 0, done.stderr
    (tmp_path / 'log.csv').unlink()
    done = run('/', 'jaxrec.evaluate', f'--workdir={tmp_path / "run"}')
    assert done.returncode == 0, done.stderr


def test_trained_on_several_devices_used_on_one(setting, tmp_path):
    config, _ = setting
    flags = ('--config.mesh.data=2', '--config.mesh.model=2', '--config.train.steps=2')
    done = subprocess.run(
        arguments(config, tmp_path / 'four', *flags),
        capture_output=True,
        text=True,
        env={**os.environ, 'JAX_NUM_CPU_DEVICES': '4'},
    )
    assert done.returncode == 0, done.stderr
    words = [sys.executable, '-m', 'jaxrec.recommend', f'--workdir={tmp_path / "four"}', '--user=3']
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_cut_short_then_longer(setting, tmp_path):
    config, whole = setting
    workdir = tmp_path / 'short'
    done = command(f'{config}:argument', workdir, '--config.train.steps=7', '--json')
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
    # a linear warm-up to 1e38: the steps up to the first validation are small enough to survive
    flags = ('--config.optim.learning_rate=1e38', '--config.optim.warmup_steps=1000')
    error = one_error_line(command(config, workdir, *flags))
    assert 'not finite' in error and 'learning_rate' in error and '--workdir' in error
    at = int(error.split(' at step ')[1].split()[0].strip(';'))
    step, params = params_of(workdir)
    assert f'of step {step}' in error and step < at
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_non_finite_loss_after_a_validation_keeps_that_checkpoint(setting, tmp_path):
    config, _ = setting
    workdir = tmp_path / 'nan_later'
    assert command(config, workdir, '--config.train.steps=10').returncode == 0
    step, params = params_of(workdir)
    # spoil the saved parameters: the very next loss is not finite
    trained = load_trained(workdir, 'last')
    checkpoints = Checkpoints(workdir)
    optimizer = make_optimizer(trained.experiment.optim, 1)
    graphdef, abstract = split_model(trained.experiment.model, trained.histories.num_items)
    state, host = checkpoints.restore_last(abstract_state(graphdef, abstract, optimizer))
    state = {**state, 'params': jax.tree.map(lambda x: x * jnp.nan, state['params'])}
    checkpoints.save_last(step + 1, {**state, 'step': state['step'] + 1}, host)
    checkpoints.close()
    jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
    error = one_error_line(command(config, workdir))
    assert f'not finite at step {step + 2}' in error and f'of step {step + 1}' in error
    assert np.isfinite(params['table']).all()


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


def test_wrong_workdir(setting):
    config, whole = setting
    before = (whole / 'config.json').read_text(), (whole / 'run.json').read_text()
    error = one_error_line(command(config, whole, '--config.model.dim=16'))
    assert 'model.dim=8' in error and '16' in error and '--workdir' in error
    other = '--config.data.dataset=synthetic:users=20,items=60,length=12,seed=5'
    assert 'other data' in one_error_line(command(config, whole, other))
    assert 'eval.protocol' in one_error_line(
        command(config, whole, '--config.eval.protocol=s3rec-99')
    )
    assert before == ((whole / 'config.json').read_text(), (whole / 'run.json').read_text())


@pytest.mark.parametrize(
    ('flag', 'words'),
    [
        ('--config.model.dimm=16', ['dimm']),
        ('--config.model.dim=wide', ['dim', 'wide']),
        ('--config.model.heads=0', ['model.heads=0']),
        ('--config.model.max_len=0', ['model.max_len=0']),
        ('--no_such_flag=1', ['no_such_flag']),
        ('--config.mesh.model=3', ['mesh']),
        ('--config.data.dataset=netflix', ['netflix', 'ml-100k']),
        ('--config.train.batch_rows=0', ['train.batch_rows=0']),
    ],
)
def test_wrong_flags_are_one_line_and_do_not_claim_the_workdir(setting, tmp_path, flag, words):
    config, _ = setting
    error = one_error_line(command(config, tmp_path / 'new', flag))
    assert all(word in error for word in words)
    assert not (tmp_path / 'new' / 'config.json').exists()


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('def get_config(arg=""):\n    return (', ['x.py, line 2', 'never closed']),
        ('def get_config(arg=""):\n    return undefined', ['undefined', 'line 2']),
        ('def get_config(arg=""):\n    return int(arg)', ['ValueError', 'line 2']),
        ('x = 1', ['get_config']),
        ('from ml_collections import ConfigDict as get_config', ['config.Experiment']),
        (None, ['x.py']),
    ],
)
def test_wrong_experiment_files_are_one_line(tmp_path, text, words):
    path = tmp_path / 'x.py'
    if text is not None:
        path.write_text(text)
    error = one_error_line(command(path, tmp_path / 'run'))
    assert all(word in error for word in words), error


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
    record = json.loads(json.dumps(to_record(experiment)))
    assert from_record(record) == experiment
