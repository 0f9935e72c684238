"""Several processes that run one command: the same numbers, one end, and no run that is lost."""

import json
import os
import pathlib
import random
import runpy
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from pyarrow import parquet

from jaxrec import evaluate, files, train
from jaxrec.config import Mesh
from jaxrec.devices import cluster
from jaxrec.devices.mesh import batch_part, make_mesh
from jaxrec.errors import UserError
from jaxrec.evaluation.protocols import protocol_of
from jaxrec.serving.recommender import Recommender
from jaxrec.training.restore import load_trained

LOCAL = pathlib.Path(__file__).parent.parent / 'launch' / 'local.py'
EXPERIMENT = """
from jaxrec.config import Data, Eval, Experiment, Optim, Train
from jaxrec.models import sasrec

def get_config(arg=''):
    return Experiment(
        model=sasrec.Config(dim=8, blocks=1, max_len=10),
        data=Data(dataset='synthetic:users=200,items=60,length=12,seed=1', data_dir={data_dir!r}),
        optim=Optim(learning_rate=1e-2, ema=0.9),
        train=Train(batch_rows=8, epochs=3, log_every=2, eval_every=0.5),
        eval=Eval(cutoffs=(5, 10), batch_users=64),
    )
"""


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """An experiment file, and an uninterrupted run of it by two processes."""
    folder = tmp_path_factory.mktemp('cluster')
    config = folder / 'experiment.py'
    config.write_text(EXPERIMENT.format(data_dir=str(folder / 'data')))
    run(together(config, folder / 'two'))
    return config, folder / 'two'


@pytest.fixture
def here():
    """Puts back the mesh and the signal handlers that a command in this process leaves."""
    mesh = jax.sharding.get_mesh()
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    jax.set_mesh(mesh)
    for number, handler in handlers:
        signal.signal(number, handler)


def train_here(config, workdir, data, model, steps=0):
    """In this process, on a mesh of its eight devices."""
    experiment = runpy.run_path(str(config))['get_config']()
    experiment.mesh = Mesh(data, model)
    experiment.train.steps = steps
    return train.train(experiment, workdir)


def launch(*flags, command='jaxrec.train'):
    return [sys.executable, str(LOCAL), '--processes=2', f'--command={command}', '--', *flags]


def together(config, workdir, *flags):
    return launch(f'--config={config}', f'--workdir={workdir}', *flags)


def run(line, code=0):
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def started(line):
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def process(launcher, number):
    """Pid of one of the processes that local.py started."""
    children = pathlib.Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text()
    for pid in children.split():
        if f'--process_id={number}' in pathlib.Path(f'/proc/{pid}/cmdline').read_text():
            return int(pid)
    raise AssertionError('no such process')


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def losses_of(workdir):
    return {line['step']: line['loss'] for line in lines_of(workdir) if 'loss' in line}


def metrics_of(workdir):
    return [
        {name: value for name, value in line.items() if name == 'step' or name.startswith('valid')}
        for line in lines_of(workdir)
        if 'valid/HR@10' in line
    ]


def params_of(workdir, which='last'):
    trained = load_trained(workdir, which)
    jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
    return trained.step, jax.device_get(trained.params)


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def errors_of(output):
    return [line for line in output.splitlines() if line.startswith('error: ')]


def test_the_same_run_on_1_2_and_8_devices_and_two_processes(setting, here, tmp_path):
    config, two = setting
    losses, metrics = losses_of(two), metrics_of(two)
    assert len(losses) > 20 and len(metrics) == 6
    for devices in (1, 2, 8):
        train_here(config, tmp_path / str(devices), devices, 1)
        others = losses_of(tmp_path / str(devices))
        assert others.keys() == losses.keys()
        np.testing.assert_allclose(list(others.values()), list(losses.values()), atol=1e-5)
        assert metrics_of(tmp_path / str(devices)) == metrics
    assert len(json.loads((two / 'run.json').read_text())['sessions']) == 1


def test_other_commands_on_two_processes(setting, here, tmp_path):
    """Evaluation and bulk lists: the counts and lists of 1 and of 8 devices, told once."""
    _, workdir = setting
    place = f'--workdir={workdir}'
    done = run(launch(place, '--json', command='jaxrec.evaluate'))
    (line,) = done.stdout.splitlines()
    assert done.stderr.count('protocol: ') == 1
    trained = load_trained(workdir)
    for devices in (1, 8):
        mesh = make_mesh(Mesh(devices, 1))
        jax.set_mesh(mesh)
        trained.params = jax.tree.map(
            lambda x, mesh=mesh: jax.device_put(
                np.asarray(x), jax.NamedSharding(mesh, x.sharding.spec)
            ),
            trained.params,
        )
        result = evaluate.evaluate(trained, 'test', protocol_of(trained.experiment.eval))
        assert json.loads(line) == json.loads(json.dumps(result))
    output = tmp_path / 'lists.parquet'
    flags = (place, '--users=all', '--part_users=50', f'--output={output}')
    run(launch(*flags, command='jaxrec.recommend'))
    lists = parquet.read_table(output).to_pydict()
    scores, items, _ = Recommender(trained, 10)(np.arange(200))
    raw = [trained.histories.raw_item(item) for item in items.reshape(-1)]
    assert lists['item'] == raw and len(raw) == 2000
    np.testing.assert_allclose(lists['score'], scores.reshape(-1), atol=1e-5)


def interrupted(config, workdir, number, signum, pause):
    """Trains until `pause` seconds after the first step, then sends a signal to one process."""
    launcher = started(together(config, workdir))
    output, at = '', None
    for line in launcher.stdout:
        output += line
        if line.startswith('step '):
            time.sleep(pause)
            os.kill(process(launcher, number), signum)
            at = time.monotonic()
            break
    output += launcher.stdout.read()
    launcher.stdout.close()
    return launcher.wait(), output, time.monotonic() - at


def test_a_signal_to_one_process_stops_both_and_kills_lose_nothing(setting, tmp_path):
    config, two = setting
    workdir = tmp_path / 'run'
    code, output, _ = interrupted(config, workdir, 1, signal.SIGTERM, 0)
    assert code == cluster.AGAIN and not errors_of(output)
    assert output.count('stopped by a signal') == 1
    rng = random.Random(os.environ.get('JAXREC_TEST_SEED', '0'))
    for number in (1, 0):
        code, output, took = interrupted(config, workdir, number, signal.SIGKILL, rng.uniform(0, 1))
        assert code == cluster.AGAIN and took < 30
        assert f'process {number} of 2 was ended by SIGKILL' in errors_of(output)[-1]
        assert 'going on from step' in output
    done = run(together(config, workdir))
    assert 'going on from step' in done.stdout
    check_whole(workdir, two)


@pytest.mark.slow
def test_twenty_kills_lose_nothing(setting, tmp_path):
    config, _ = setting
    flags = ('--config.train.epochs=40', '--config.train.patience=0')
    run(together(config, tmp_path / 'whole', *flags))
    rng = random.Random(os.environ.get('JAXREC_TEST_SEED', '0'))
    at, kills = -1, 0
    while kills < 20:
        launcher = started(together(config, tmp_path / 'run', *flags))
        output, due = '', None
        for line in launcher.stdout:
            output += line
            if line.startswith('step ') and due is None:
                due = time.monotonic() + rng.uniform(0, 2)
            if due is not None and time.monotonic() >= due:
                os.kill(process(launcher, rng.randrange(2)), signal.SIGKILL)
                kills += 1
                due = float('inf')
        launcher.stdout.close()
        assert launcher.wait() == cluster.AGAIN, output
        assert 'was ended by SIGKILL' in errors_of(output)[-1]
        if kills > 1:
            begun = int(output.split('going on from step ')[1].split()[0])
            assert begun >= at, output  # a checkpoint is never lost
            at = begun
    run(together(config, tmp_path / 'run', *flags))
    check_whole(tmp_path / 'run', tmp_path / 'whole')


def check_whole(workdir, expected):
    for which in ('last', 'best'):
        step, params = params_of(workdir, which)
        expected_step, expected_params = params_of(expected, which)
        assert step == expected_step and same(params, expected_params)
    assert metrics_of(workdir) == metrics_of(expected)
    assert not list(workdir.rglob('*tmp*'))


def test_a_checkpoint_goes_on_on_another_mesh(setting, here, tmp_path):
    config, two = setting
    workdir, expected = tmp_path / 'run', losses_of(two)
    for stop, data, model in ((8, 4, 2), (16, 2, 4), (24, 1, 1)):
        assert train_here(config, workdir, data, model, stop)['step'] == stop
    losses = losses_of(workdir)
    assert list(losses) == [step for step in expected if step <= 24]
    straight = [expected[step] for step in losses]
    np.testing.assert_allclose(list(losses.values()), straight, atol=1e-5)


@pytest.mark.parametrize(
    ('flag', 'words'),
    [
        ('--config.data.log=/nowhere/log.csv', 'error: process 1 of 2: no such file: /nowhere'),
        ('--config.model.dim=16', 'differ in model.dim'),
    ],
)
def test_a_mistake_on_one_process_ends_both_with_one_line(setting, tmp_path, flag, words):
    """Process 1 alone is given `flag`."""
    config, _ = setting
    port = runpy.run_path(str(LOCAL))['free_port']()
    line = [sys.executable, '-m', 'jaxrec.train', f'--config={config}', f'--workdir={tmp_path}']
    line += [f'--coordinator=127.0.0.1:{port}', '--num_processes=2']
    both = [started([*line, f'--process_id={i}', *[flag] * i]) for i in range(2)]
    output = ''.join(p.communicate(timeout=120)[0] for p in both)
    assert [p.returncode for p in both] == [2, 2], output
    (error,) = errors_of(output)
    assert words in error and 'Traceback' not in output


def test_two_runs_in_one_workdir(setting, tmp_path):
    config, _ = setting
    with files.lock(tmp_path / '.lock'):
        (error,) = errors_of(run(together(config, tmp_path), code=2).stderr)
    assert 'another process is training' in error


@pytest.mark.parametrize(
    ('environment', 'found'),
    [
        ({}, None),
        ({'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '8'}, None),  # inside sbatch, but not srun
        ({'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '8', 'SLURM_STEP_NODELIST': 'a'}, 'Slurm'),
        ({'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '1', 'SLURM_STEP_NODELIST': 'a'}, None),
        ({'OMPI_COMM_WORLD_SIZE': '2'}, 'Open MPI'),
        ({'OMPI_COMM_WORLD_SIZE': '1'}, None),
        ({'KUBERNETES_SERVICE_HOST': 'x'}, None),  # a notebook's pod
        ({'KUBERNETES_SERVICE_HOST': 'x', 'JOB_COMPLETION_INDEX': '0'}, 'Kubernetes'),
        ({'TPU_ML_PLATFORM': 'JAX'}, 'TPU'),
        ({'TPU_ML_PLATFORM': 'JAX', 'JAX_PLATFORMS': 'cpu'}, None),
    ],
)
def test_detected(environment, found):
    assert cluster.detected(environment) == found


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ((None, 2, 0), '--coordinator is missing'),
        (('a:1', None, 0), '--num_processes is missing'),
        (('a:1', 2, None), '--process_id is missing'),
        (('a', 2, 0), '--coordinator=a is not HOST:PORT'),
        (('a:1', 2, 2), '--process_id=2 is not one of the 2'),
    ],
)
def test_wrong_flags(given, words):
    with pytest.raises(UserError, match=words):
        cluster._start(dict(zip(cluster._FLAGS, given, strict=True)))


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ('owners', 'parts'),
    [
        ([[0], [0]], [(0, 1)]),
        ([[0], [1]], [(0, 2), (1, 2)]),
        ([[0, 1]], [(0, 1), (0, 1)]),  # the table is split between the processes
        ([[0, 0], [0, 0], [1, 1], [1, 1]], [(0, 2), (1, 2)]),
        ([[0, 1], [2, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([[0], [0]], [(0, 1), None]),  # process 1 has nothing to do
        ([[0], [0], [1]], [None, None]),
        ([[0], [1], [0], [1]], [None, None]),
        ([[0, 0], [0, 1], [1, 1]], [None, None]),
    ],
)
def test_batch_part(monkeypatch, owners, parts):
    mesh = type('Mesh', (), {'devices': np.array([[Device(o) for o in row] for row in owners])})
    monkeypatch.setattr(jax.sharding, 'get_mesh', lambda: mesh)
    monkeypatch.setattr(jax, 'process_count', lambda: len(parts))
    for number, part in enumerate(parts):
        monkeypatch.setattr(jax, 'process_index', lambda number=number: number)
        if None in parts:
            with pytest.raises(UserError, match='does not fit'):
                batch_part()
        else:
            assert batch_part() == part


def test_poll_alone():
    poll = cluster.Poll()
    assert poll(True, False) == (True, False) and poll(False, False) == (False, False)


@pytest.mark.parametrize(
    ('program', 'code', 'words'),
    [
        ('pass', 0, None),
        ('sys.exit(75)', 75, None),
        ('sys.exit(2 * i)', 2, None),
        ('i or os.kill(os.getpid(), 11)', 75, 'process 0 of 2 was ended by SIGSEGV'),
        ('i and os.kill(os.getpid(), 9); time.sleep(60)', 75, 'process 1 of 2 was ended by SIGKI'),
    ],
)
def test_local(tmp_path, program, code, words):
    """The launcher alone: exit codes, and nobody left behind."""
    begin = 'import os, sys, time\ni = int(sys.argv[-1].partition("=")[2])\n'
    (tmp_path / 'program.py').write_text(begin + program)
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    line = launch(command='program')
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == code, done.stderr
    assert errors_of(done.stderr) == [] if words is None else words in errors_of(done.stderr)[-1]
