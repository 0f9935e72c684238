"""Several processes that run one command: the same numbers, one end, and no run that is lost."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from pyarrow import parquet
from runs import (
    check_same_run,
    lines_of,
    losses_of,
    metrics_of,
    params_of,
    small,
    started,
    write,
)

import jaxrec
from jaxrec import files
from jaxrec.devices import cluster
from jaxrec.devices.mesh import batch_part
from jaxrec.errors import UserError
from jaxrec.experiment import applied
from jaxrec.serving import bulk
from jaxrec.training.loop import fit, fit_together
from jaxrec.training.parallel_runs import devices_of, expand

LOCAL = pathlib.Path(__file__).parent.parent / 'launch' / 'local.py'


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """An experiment, its file, and an uninterrupted run of it by two processes."""
    folder = tmp_path_factory.mktemp('cluster')
    changes = {'mesh.data': 0, 'train.epochs': 2, 'model.blocks': 0}  # compiled six times
    experiment = small(folder, **changes)
    config = write(folder / 'experiment.py', experiment)
    run(together(config, folder / 'two'))
    return experiment, config, folder / 'two'


def launch(*flags, command='jaxrec.train'):
    return [sys.executable, str(LOCAL), '--processes=2', f'--command={command}', '--', *flags]


def together(config, workdir, *flags):
    return launch(f'--config={config}', f'--workdir={workdir}', *flags)


def run(line, code=0):
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def process(launcher, number):
    """Pid of one of the processes that local.py started."""
    children = pathlib.Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text()
    for pid in children.split():
        if f'--process_id={number}' in pathlib.Path(f'/proc/{pid}/cmdline').read_text():
            return int(pid)
    raise AssertionError('no such process')


def errors_of(output):
    return [line for line in output.splitlines() if line.startswith('error: ')]


def test_the_same_run_on_one_device_and_two_processes(setting, tmp_path):
    """Other meshes: test_train."""
    experiment, _, two = setting
    losses, metrics = losses_of(two), metrics_of(two)
    assert len(losses) == 15 and len(metrics) == 4
    fit(applied(experiment, {'mesh.data': 1}), tmp_path)
    others = losses_of(tmp_path)
    assert others.keys() == losses.keys()
    np.testing.assert_allclose(list(others.values()), list(losses.values()), atol=1e-5)
    assert metrics_of(tmp_path) == metrics
    assert len(json.loads((two / 'run.json').read_text())['sessions']) == 1


@pytest.mark.slow
def test_devices_listed_in_turns(setting, tmp_path):
    """Two processes of two devices that JAX lists in turns, as the hosts of a torus may be."""
    _, config, two = setting
    (tmp_path / 'program.py').write_text(  # JAX's own gathering counts on its own order
        'import sys, jax\nfrom jaxrec import cli, train\nlisted = jax.devices\n'
        'def devices(*which):\n'
        '    found = listed(*which)\n'
        '    mine = sys._getframe(1).f_globals["__name__"] == "jaxrec.devices.mesh"\n'
        '    return found[::2] + found[1::2] if mine else found\n'
        'jax.devices = devices\ntrain.define_flags()\ncli.run(train.main)\n'
    )
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{LOCAL.parent.parent}'}
    flags = (f'--config={config}', f'--workdir={tmp_path / "run"}')
    line = launch(*flags, command='program')
    done = subprocess.run(
        line, capture_output=True, text=True, env={**environment, 'JAX_NUM_CPU_DEVICES': '2'}
    )
    assert done.returncode == 0, done.stderr
    assert 'on 4 cpu devices' in done.stdout
    losses = losses_of(two)
    found = losses_of(tmp_path / 'run')
    np.testing.assert_allclose(list(found.values()), list(losses.values()), atol=1e-5)
    assert metrics_of(tmp_path / 'run') == metrics_of(two)


def killed_after(times):
    """Something to be called that raises the last of so many times."""
    left = iter(range(times - 1, -1, -1))

    def dies(*args):
        if not next(left):
            raise KeyboardInterrupt

    return dies


def test_other_commands_on_two_processes(setting, tmp_path, monkeypatch):
    """Evaluation and bulk lists: the counts and lists of eight devices, told once.

    The lists were begun by one process, which was killed.
    """
    _, _, workdir = setting
    place = f'--workdir={workdir}'
    done = run(launch(place, '--json', command='jaxrec.evaluate'))
    (line,) = done.stdout.splitlines()
    assert done.stderr.count('protocol: ') == 1
    assert json.loads(line)['metrics'] == jaxrec.evaluate(workdir).metrics
    output, recommender = tmp_path / 'lists.parquet', jaxrec.load(workdir)
    monkeypatch.setattr(bulk._Progress, 'add', killed_after(2))
    with pytest.raises(KeyboardInterrupt):
        bulk.write_lists(recommender, np.arange(200), output, 50)
    flags = (place, '--users=all', '--part_users=50', f'--output={output}')
    done = run(launch(*flags, command='jaxrec.recommend'))
    assert 'going on: 2 of 4 parts are there' in done.stdout
    lists = parquet.read_table(output).to_pydict()
    scores, items, _ = recommender(np.arange(200))
    raw = [recommender.histories.raw_item(item) for item in items.reshape(-1)]
    assert lists['item'] == raw and len(raw) == 2000
    np.testing.assert_allclose(lists['score'], scores.reshape(-1), atol=1e-5)


def alike(found, expected):
    """The same run but for the order of sums, whoever trained which part of it."""
    assert metrics_of(found) == metrics_of(expected)
    losses, others = losses_of(found), losses_of(expected)
    assert losses.keys() == others.keys()
    np.testing.assert_allclose(list(losses.values()), list(others.values()), atol=1e-5)
    assert params_of(found, 'best')[0] == params_of(expected, 'best')[0]


@pytest.mark.slow
def test_runs_of_one_program_on_two_processes(setting, tmp_path):
    """Two of four runs each, half of the way; one process goes on from there."""
    experiment, config, _ = setting
    flags = ('--seeds_in_parallel=0,1', '--vary=optim.learning_rate=1e-2,3e-3')
    done = run(together(config, tmp_path / 'runs', *flags, '--config.train.steps=8'))
    assert '4 runs in one program on 2 cpu devices' in done.stdout
    runs = expand(experiment, ['0', '1'], ['optim.learning_rate=1e-2,3e-3'])
    for folder in ('runs', 'alone'):
        fit_together(runs, tmp_path / folder)
    assert len(metrics_of(tmp_path / 'alone' / 'seed0_optim.learning_rate=1e-2')) == 4
    for name in runs:
        alike(tmp_path / 'runs' / name, tmp_path / 'alone' / name)


def test_runs_take_as_many_devices_of_every_process(monkeypatch):
    devices = [Device(owner) for owner in (0, 1, 0, 1, 0, 1)]
    for n, device in enumerate(devices):
        device.id = n
    monkeypatch.setattr(jax, 'devices', lambda: devices)
    monkeypatch.setattr(jax, 'local_device_count', lambda: 3)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    for runs, used in ((2, [0, 1]), (4, [0, 2, 1, 3]), (6, [0, 2, 4, 1, 3, 5]), (10, [0, 1])):
        assert [device.id for device in devices_of(runs)] == used
    for runs in (1, 3):
        with pytest.raises(UserError, match=f'{runs} runs in one program do not divide over 2'):
            devices_of(runs)


@pytest.mark.slow
def test_a_stream_on_two_processes(setting, tmp_path):
    """Stopped within its second period, which one process goes on with."""
    changes = {'model.loss': 'in_batch', 'task.windows': 'cuts', 'task.cuts': 2, 'task.periods': 3}
    data = 'synthetic:users=60,items=30,length=9,seed=1'
    stream = applied(setting[0], {**changes, 'train.epochs': 1, 'data.dataset': data})
    config = write(tmp_path / 'stream.py', stream)
    begun = fit(stream, tmp_path / 'alone')['step'] // 4 * 2
    run(together(config, tmp_path / 'run', f'--config.train.steps={begun}'))
    assert fit(stream, tmp_path / 'run')['step'] > begun
    alike(tmp_path / 'run', tmp_path / 'alone')
    found, expected = (
        [{**one, 'seconds': 0} for one in lines_of(tmp_path / name) if 'period' in one]
        for name in ('run', 'alone')
    )
    assert found == expected and [one['period'] for one in found] == [2, 3]


@pytest.mark.slow
def test_a_benchmark_of_two_processes(setting):
    """It counts what each has learnt of every batch."""
    experiment, config, _ = setting
    flags = ('--suite=train', '--repeats=1', '--steps=5', '--matmul_size=64', '--json')
    done = run(launch(f'--config={config}', *flags, command='jaxrec.benchmark'))
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result['device'].startswith('2 processes') and result['batch_rows'] == 8
    batches = experiment.task.open(experiment, lambda line: None).periods[0]().batches
    targets = sum((batches(step)['weights'] > 0).sum() for step in range(4, 9))  # warmed up
    assert result['ours'] * 5 * result['step_ms'] / 1e3 == pytest.approx(targets, rel=1e-6)


def test_alone_no_device_is_touched(monkeypatch):
    """A benchmark's own processes need it."""
    monkeypatch.setattr(jax, 'process_count', None)
    with cluster.joined():
        assert not cluster.together()


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


def test_a_signal_to_one_process_stops_both_and_a_kill_loses_nothing(setting, tmp_path):
    """Process 1 is told to stop; process 0, which the other depends on, is killed."""
    _, config, two = setting
    code, output, _ = interrupted(config, tmp_path, 1, signal.SIGTERM, 0)
    assert code == cluster.AGAIN and not errors_of(output)
    assert output.count('stopped by a signal') == 1
    rng = random.Random(os.environ.get('JAXREC_TEST_SEED', '0'))
    killed(config, tmp_path, 0, rng.uniform(0, 0.2))
    done = run(together(config, tmp_path))
    assert 'going on from step' in done.stdout
    check_same_run(tmp_path, two)


@pytest.mark.slow  # as many kills of both processes as anyone likes: test_twenty_kills
def test_a_kill_of_the_other_process_loses_nothing(setting, tmp_path):
    _, config, two = setting
    interrupted(config, tmp_path, 1, signal.SIGTERM, 0)
    killed(config, tmp_path, 1, 0.1)
    run(together(config, tmp_path))
    check_same_run(tmp_path, two)


def killed(config, workdir, number, pause):
    """A run that goes on and loses a process."""
    code, output, took = interrupted(config, workdir, number, signal.SIGKILL, pause)
    assert code == cluster.AGAIN and took < 30
    assert f'process {number} of 2 was ended by SIGKILL' in errors_of(output)[-1]
    assert 'going on from step' in output


@pytest.mark.slow
def test_twenty_kills_lose_nothing(setting, tmp_path):
    _, config, _ = setting
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
    check_same_run(tmp_path / 'run', tmp_path / 'whole')


def test_a_checkpoint_goes_on_on_another_mesh(setting, tmp_path):
    experiment, _, two = setting
    expected = losses_of(two)
    for stop, data, model in ((4, 4, 2), (8, 2, 4), (12, 1, 1)):
        changes = {'mesh.data': data, 'mesh.model': model, 'train.steps': stop}
        assert fit(applied(experiment, changes), tmp_path)['step'] == stop
    losses = losses_of(tmp_path)
    assert list(losses) == [step for step in expected if step <= 12]
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
    _, config, _ = setting
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    line = [sys.executable, '-m', 'jaxrec.train', f'--config={config}', f'--workdir={tmp_path}']
    line += [f'--coordinator=127.0.0.1:{port}', '--num_processes=2', '--json']
    both = [started([*line, f'--process_id={i}', *[flag] * i]) for i in range(2)]
    outputs = [p.communicate(timeout=120)[0] for p in both]
    output = ''.join(outputs)
    assert [p.returncode for p in both] == [2, 2], output
    (error,) = errors_of(output)
    assert words in error and 'Traceback' not in output
    (told,) = [line for line in output.splitlines() if line.startswith('{')]
    assert told in outputs[0] and json.loads(told)['exit'] == 2  # of whichever of them it was
    assert json.loads(told)['error'].endswith(error.partition('2: ')[2] or error[7:])


def test_two_runs_in_one_workdir(setting, tmp_path):
    _, config, _ = setting
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
