"""The launchers' files: Kubernetes manifests against their schemas, and the scripts."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / 'k8s' / name).read_text()))


def validate(path):
    line = [sys.executable, '-m', 'kubernetes_validate', '--strict', str(path)]
    return subprocess.run(line, capture_output=True, text=True)


def job_of_the_set():
    (jobset,) = documents('jobset.yaml')
    (replicated,) = jobset['spec']['replicatedJobs']
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': replicated['name']}}
    return {**job, 'spec': replicated['template']['spec']}


@pytest.mark.parametrize('name', ['rbac.yaml', 'job.yaml', 'the job of jobset.yaml'])
def test_manifests_fit_their_schemas_and_a_wrong_field_does_not(tmp_path, name):
    given = [job_of_the_set()] if ' ' in name else documents(name)
    path = tmp_path / 'manifest.yaml'
    path.write_text(yaml.safe_dump_all(given))
    done = validate(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'WARN' not in done.stdout + done.stderr  # a schema that is not there is only warned of
    last = given[-1]
    inner = last['spec']['template']['spec'] if last['kind'] == 'Job' else last['roleRef']
    inner['restartPolice'] = 'Never'
    path.write_text(yaml.safe_dump_all(given))
    done = validate(path)
    assert done.returncode == 1 and 'restartPolice' in done.stdout + done.stderr


def test_manifests_agree_with_each_other():
    service, job = documents('job.yaml')
    account, role, binding = documents('rbac.yaml')
    assert service['spec']['clusterIP'] == 'None'
    assert service['spec']['selector'] == {'job-name': job['metadata']['name']}
    assert job['metadata']['labels']  # JAX 0.10 looks into them without asking
    pod, other = (j['spec']['template']['spec'] for j in (job, job_of_the_set()))
    assert pod.pop('subdomain') == service['metadata']['name']
    assert pod == other
    assert pod['serviceAccountName'] == account['metadata']['name']
    assert binding['roleRef']['name'] == role['metadata']['name']
    for each in (job, job_of_the_set()):
        assert each['spec']['completionMode'] == 'Indexed'
        assert each['spec']['completions'] == each['spec']['parallelism']


@pytest.fixture
def tpu(tmp_path):
    """launch/tpu_vm.sh with a gcloud that notes its options and runs the command here."""
    bin_ = tmp_path / 'bin'
    python = tmp_path / 'jaxrec' / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    bin_.mkdir()
    gcloud = '#!/bin/bash\necho "$@" >> calls\nfor w; do :; done\nbash -c "${w#--command=}"\n'
    for path, text in (
        (bin_ / 'gcloud', gcloud),
        (python, '#!/bin/bash\nprintf "%s|" "$@"\nexec sleep 60\n'),
    ):
        path.write_text(text)
        path.chmod(0o755)
    environment = {**os.environ, 'PATH': f'{bin_}:{os.environ["PATH"]}'}
    environment |= {'TPU': 'slice', 'ZONE': 'zone'}

    def call(*words):
        line = [str(LAUNCH / 'tpu_vm.sh'), *words]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return call


def test_tpu_vm(tpu, tmp_path):
    done = tpu('train', '--config=x.py', '--config.task.cutoffs=(5, 10)')
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / 'calls').read_text()
    assert calls.startswith('compute tpus tpu-vm ssh slice --zone=zone --worker=all --command=')
    pid = int((tmp_path / 'jaxrec' / 'train.pid').read_text())
    for _ in range(100):
        if (tmp_path / 'jaxrec' / 'train.log').read_text():
            break
        time.sleep(0.05)
    assert tpu('stop').returncode == 0
    for _ in range(100):
        if not pathlib.Path(f'/proc/{pid}').exists():
            break
        time.sleep(0.05)
    assert not pathlib.Path(f'/proc/{pid}').exists()
    log = (tmp_path / 'jaxrec' / 'train.log').read_text()
    assert log == '-u|-m|jaxrec.train|--config=x.py|--config.task.cutoffs=(5, 10)|'
    done = tpu()
    assert done.returncode == 2 and 'launch/tpu_vm.sh setup' in done.stdout
