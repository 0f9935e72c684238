"""launch/slurm.sbatch on a real Slurm of this machine, started for the test (see tests/slurm)."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from runs import check_same_run, small, write

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    """Calls of Slurm's commands: slurm('squeue', '-h') -> its output."""
    missing = [name for name in ('slurmctld', 'slurmd', 'munged') if not shutil.which(name)]
    if missing:
        pytest.skip(f'{missing[0]} is not installed (Debian: slurm-wlm, munge)')
    if os.geteuid():
        pytest.skip('starting a Slurm needs root')
    folder = tmp_path_factory.mktemp('slurm')
    start = [str(ROOT / 'tests' / 'slurm' / 'start.sh'), str(folder)]
    done = subprocess.run(start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        pytest.skip(f'Slurm does not start here: {done.stderr[-500:]}')
    path = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
    environment = {**os.environ, 'SLURM_CONF': str(folder / 'slurm.conf'), 'PATH': path}

    def call(*words, **more):
        line = list(map(str, words))
        return subprocess.run(
            line, env={**environment, **more}, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    yield call
    stop = [str(ROOT / 'tests' / 'slurm' / 'stop.sh'), str(folder)]
    subprocess.run(stop, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until(true, seconds, what):
    for _ in range(seconds * 5):
        if true():
            return
        time.sleep(0.2)
    raise AssertionError(what())


@pytest.mark.slow
def test_preempted_and_killed_the_job_ends_with_the_parameters_of_one_that_was_not(slurm, tmp_path):
    changes = {'train.epochs': 6, 'train.eval_every': 1.0, 'train.log_every': 5}
    experiment = small(tmp_path, **changes, **{'mesh.data': 0})
    config = f'--config={write(tmp_path / "x.py", experiment)}'
    local = [sys.executable, str(ROOT / 'launch' / 'local.py'), '--processes=2', '--']
    whole = subprocess.run([*local, config, f'--workdir={tmp_path / "whole"}'])
    assert whole.returncode == 0

    log, workdir = tmp_path / 'log', tmp_path / 'run'
    text = lambda: log.read_text() if log.exists() else ''  # noqa: E731
    options = ('--ntasks-per-node=2', '--gpus-per-node=0', '--cpus-per-task=1', f'--output={log}')
    words = (*options, 'launch/slurm.sbatch', config, f'--workdir={workdir}')
    job = slurm('sbatch', '--parsable', *words, EVALUATE='1')
    state = lambda: slurm('squeue', '-h', '-j', job, '-t', 'all', '-o', '%T')  # noqa: E731

    def again():
        """At once, instead of after the two minutes that Slurm lets a requeued job wait."""
        until(lambda: state() == 'PENDING', 60, text)
        slurm('scontrol', 'update', f'JobId={job}', 'StartTime=now')

    until(lambda: 'valid' in text(), 120, text)
    slurm('scontrol', 'requeue', job)  # what a preemption does
    again()
    assert text().count('stopped by a signal at step') == 1
    until(lambda: 'going on from step' in text(), 60, text)
    seen = text().count('valid')
    until(lambda: text().count('valid') > seen, 120, text)
    victim = subprocess.run(['pgrep', '-f', f'jaxrec.train {config}'], capture_output=True)
    os.kill(int(victim.stdout.split()[-1]), signal.SIGKILL)
    again()  # the script has put the job back
    until(lambda: text().count('going on from step') == 2, 300, text)
    until(lambda: state() == 'COMPLETED', 120, text)
    assert 'training ended with exit code 0' in text()
    assert (workdir / 'evaluation_test.json').exists()

    check_same_run(workdir, tmp_path / 'whole')
    sessions = json.loads((workdir / 'run.json').read_text())['sessions']
    assert len(sessions) == 3 and sessions[0]['from_step'] < sessions[1]['from_step']
