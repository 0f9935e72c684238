"""The evaluate command on a small trained run, as a user starts it."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxrec import config, evaluate
from jaxrec.evaluation import protocols, ranking
from jaxrec.evaluation.report import _kind, report, write
from jaxrec.training.restore import load_trained

EXPERIMENT = """
from jaxrec.config import Data, Eval, Experiment, Optim, Train
from jaxrec.models import sasrec

def get_config(arg=''):
    return Experiment(
        model=sasrec.Config(dim=8, blocks=1, max_len=10),
        data=Data(dataset='synthetic:users=200,items=60,length=8', data_dir={data_dir!r}),
        optim=Optim(learning_rate=1e-2),
        train=Train(batch_rows=8, steps=10),
        eval=Eval(cutoffs=(5, 10), batch_users=64),
    )
"""


def command(name, *flags):
    line = [sys.executable, '-m', f'jaxrec.{name}', *flags]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Work directory of a run."""
    folder = tmp_path_factory.mktemp('evaluate')
    experiment = folder / 'experiment.py'
    experiment.write_text(EXPERIMENT.format(data_dir=str(folder / 'data')))
    done = command('train', f'--config={experiment}', f'--workdir={folder / "run"}')
    assert done.returncode == 0, done.stderr
    return folder / 'run'


def test_command(run, mesh):
    done = command('evaluate', f'--workdir={run}', '--json')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1  # text for people is on standard error
    result = json.loads(lines[0])
    assert result == json.loads((run / 'evaluation_test_full.json').read_text())
    assert (run / 'metric_at_k_test_full.png').exists()
    assert result['split'] == 'test' and result['users'] == 200
    assert result['protocol'] == protocols.asdict(
        protocols.protocol_of(config.Eval(cutoffs=(5, 10)))
    )
    assert list(result['baselines']) == ['popularity', 'last_week_popularity', 'markov']
    assert {'HR@10', 'NDCG@10', 'MRR', 'Coverage@10'} <= result['metrics'].keys()
    assert result['unreachable'] == 0  # nobody meets an item twice in this data set
    for text in ('popularity', 'NDCG@10', result['data_hash'], 'filter_seen=True', 'unreachable'):
        assert text in done.stderr

    # One device there, eight here: the same numbers, from Python.
    mesh(1, 1)  # put back afterwards; load_trained sets the run's own
    trained = load_trained(run)
    assert jax.sharding.get_mesh().size == 8
    assert result['step'] == trained.step
    ranker = ranking.Ranker(
        trained.graphdef,
        trained.histories,
        trained.split,
        'test',
        protocols.protocol_of(config.Eval(cutoffs=(5, 10))),
        max_len=10,
    )
    for name, value in ranker(trained.params).metrics.items():
        np.testing.assert_allclose(result['metrics'][name], value, atol=1e-12)


def test_other_protocol_without_matplotlib(run, mesh, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    mesh(1, 1)
    trained = load_trained(run, 'last')
    protocol = protocols.protocol_of(config.Eval(protocol='uniform', negatives=20))
    result = evaluate.evaluate(trained, 'valid', protocol, 'last')
    write(result, trained.workdir)
    written = json.loads((run / 'evaluation_valid_uniform_20-negatives_last.json').read_text())
    assert written['protocol']['negatives'] == 20 and written['checkpoint'] == 'last'
    assert not any(name.startswith('Coverage') for name in written['metrics'])
    text = report(result)
    assert 'negatives=20' in text and 'last checkpoint' in text and 'warning' not in text
    assert 'matplotlib is not installed' in capsys.readouterr().out
    assert not (run / 'metric_at_k_valid_uniform_20-negatives_last.png').exists()


def test_names_of_files():
    def kind(which='test', checkpoint='best', **settings):
        protocol = protocols.asdict(protocols.protocol_of(config.Eval(**settings)))
        return _kind({'split': which, 'protocol': protocol, 'checkpoint': checkpoint})

    assert kind() == 'test_full'
    assert kind(filter_seen=False, checkpoint='last') == 'test_full_keep-seen_last'
    assert kind('valid', protocol='uniform') == 'valid_uniform'
    assert kind(protocol='popularity', negatives=7) == 'test_popularity_7-negatives'
    assert kind(protocol='s3rec-99', negatives=7) == 'test_s3rec-99'


def test_too_few_candidates(run, mesh):
    mesh(1, 1)
    trained = load_trained(run)
    protocol = protocols.protocol_of(config.Eval(protocol='uniform', negatives=500))
    result = evaluate.evaluate(trained, 'test', protocol)
    assert result['too_few_candidates'] == 200
    assert 'warning: for 200 users the catalogue has fewer than 500' in report(result)


def test_options_that_a_protocol_ignores_are_errors(run):
    for flags, text in (
        (('--negatives=20',), '--negatives goes with --protocol=uniform or popularity, not full'),
        (('--protocol=uniform', '--nofilter_seen'), '--filter_seen goes with --protocol=full'),
        (('--protocol=uniform', '--negatives=0'), 'must be at least 1'),
    ):
        done = command('evaluate', f'--workdir={run}', *flags)
        assert done.returncode == 2
        assert text in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    'flags, text',
    [
        (('--workdir=nowhere',), 'nowhere holds no run'),
        (('--workdir=x', '--protocol=fancy'), 'full, sasrec-2018, s3rec-99, uniform, popularity'),
    ],
)
def test_errors(flags, text):
    done = command('evaluate', *flags)
    assert done.returncode == 2
    assert text in done.stderr and len(done.stderr.splitlines()) == 1
