"""The benchmark command: its yardsticks by hand, every suite end to end, and the peer's turns."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxrec.benchmarks import flops, peer, report, training
from jaxrec.config import Experiment
from jaxrec.data.splits import leave_one_out
from jaxrec.errors import UserError
from jaxrec.models import sasrec

EXPERIMENT = """
from jaxrec.config import Data, Experiment, Train
from jaxrec.models import sasrec

def get_config(arg=''):
    return Experiment(
        model=sasrec.Config(dim=8, blocks=1, max_len=10),
        data=Data(dataset='synthetic:users=300,items=60,length=12', data_dir={data_dir!r}),
        train=Train(batch_rows=8),
    )
"""
KEYS = {
    'suite',
    'config',
    'ratio',
    'ours',
    'peer',
    'unit',
    'matmul_gflops',
    'device',
    'versions',
    'data_hash',
}
ECHO = """
import json, sys
spec = json.load(open(sys.argv[1]))
print(json.dumps({'about': spec['suite']}), flush=True)
while sys.stdin.readline():
    print(json.dumps({'seconds': 2.0, 'count': 10}), flush=True)
"""


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp('benchmark')
    path = folder / 'experiment.py'
    path.write_text(EXPERIMENT.format(data_dir=str(folder / 'data')))
    return path


def command(*flags):
    return subprocess.run(
        [sys.executable, '-m', 'jaxrec.benchmark', *flags], capture_output=True, text=True
    )


def one_error_line(done, *words):
    assert done.returncode == 2, (done.stdout, done.stderr)
    last = done.stderr.splitlines()[-1]
    assert last.startswith('error: ') and 'Traceback' not in done.stderr
    assert all(word in last for word in words), last


SEGMENTS = np.array([[1, 1, 1, 2, 0, 0], [1, 0, 0, 0, 0, 0]])  # windows of 3, 1 and 1 tokens


def test_tokens_and_pairs():
    assert flops.tokens_and_pairs(SEGMENTS) == (5, 6 + 1 + 1)
    assert flops.tokens_and_pairs(np.zeros((2, 3), int)) == (0, 0)


@pytest.mark.parametrize(
    ('variant', 'loss', 'per_token', 'candidates'),
    [
        # multiply-adds of one token in one block, dim 4 and inner width 8, counted layer by layer
        ('2018', 'softmax', 3 * 16 + 32 + 32, 10),
        ('pre_ln', 'bce', 4 * 16 + 32 + 32, 1 + 7),
        ('ligr', 'sampled_softmax', 4 * 16 + 2 * 16 + 32 + 32 + 32, 1 + 7),
    ],
)
def test_flops_by_hand(variant, loss, per_token, candidates):
    model = sasrec.Config(variant=variant, dim=4, blocks=2, ffn=2, loss=loss)
    attention = 8 * (4 + 4)  # multiply-adds of q k^T and of the weighted sum, 8 pairs
    encoder = 2 * (5 * per_token + attention)
    forward = 2 * (encoder + 5 * candidates * 4)
    counted = flops.train_flops(model, 10, 7, {'segments': SEGMENTS})
    assert counted == 3 * forward


def test_unknown_models_have_no_flops():
    assert np.isnan(flops.train_flops(object(), 10, 7, {'segments': SEGMENTS}))
    ours = {'seconds': 2.0, 'targets': 40, 'tokens': 60, 'steps': 4, 'flops': float('nan')}
    turn = training.turn(ours, 100.0, {'seconds': 4.0, 'count': 20})
    assert turn['ours'] == 20 and turn['peer'] == 5 and turn['ratio'] == 4
    assert turn['gflops'] is None and turn['step_ms'] == 500
    assert turn['of_against'] is None
    turn = training.turn(ours, 100.0, None, 8.0)
    assert turn['against_ms'] == 2000 and turn['of_against'] == 0.25


@pytest.mark.parametrize(
    ('suite', 'flags'),
    [
        ('train', ['--steps=2', '--against=model.blocks=0']),
        ('eval', []),
        ('loss', ['--cases=32x100x8']),
        ('catalogue', ['--cases=1000', '--steps=1']),
    ],
)
def test_suites(experiment, tmp_path, suite, flags):
    given = [] if suite == 'loss' else [f'--config={experiment}']
    done = command(
        f'--suite={suite}',
        *given,
        *flags,
        '--repeats=2',
        '--matmul_size=64',
        '--json',
        f'--output={tmp_path}',
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # nothing else is on standard output
    assert KEYS <= result.keys()
    assert result['ours'] > 0 and result['ratio'] is None and result['peer'] is None
    assert result == json.loads((tmp_path / f'benchmark_{suite}.json').read_text())
    assert '| ---' in (tmp_path / f'benchmark_{suite}.md').read_text()
    assert (tmp_path / f'benchmark_{suite}.png').read_bytes()[:4] == b'\x89PNG'
    if suite == 'train':
        assert len(result['turns']) == 2 and 0 < result['of_matmul']
        assert result['batch_rows'] == 8 and result['steps_per_turn'] == 2
        assert result['against'] == {'model.blocks': 0}
        ratio, (first, *_) = result['of_against'], result['turns']
        assert ratio > 0 and first['of_against'] == pytest.approx(
            first['step_ms'] / first['against_ms']
        )
    if suite == 'catalogue':  # table, two moments, positions, one block, and counters
        assert result['cases'][0]['state_mib'] > 3 * 1024 * 8 * 4 / 2**20


def test_error_lines(experiment):
    one_error_line(command('--suite=nope'), '--suite=nope', 'catalogue')
    one_error_line(command('--suite=eval'), '--config')
    given = f'--config={experiment}'
    one_error_line(command('--suite=train', given, '--against=model.layers=1'), 'model.layers')
    one_error_line(command('--suite=train', given, '--against=model.blocks=x'), 'model.blocks')
    one_error_line(command('--suite=eval', given, '--against=model.blocks=1'), '--against')
    one_error_line(command('--suite=train', given, '--against=data.split=temporal'), '--against')
    missing = ['--peer=rectools', '--peer_python=/no/such/python']
    one_error_line(command('--suite=train', given, *missing), '/no/such/python')
    one_error_line(command('--suite=loss', '--cases=10x'), '10x', 'TOKENSxITEMSxDIM')


def test_peer_flags():
    peer.check(None, None, 'loss')
    peer.check('rectools', sys.executable, 'train')
    for wrong in (
        ('torchrec', sys.executable, 'train'),
        ('rectools', sys.executable, 'loss'),
        ('rectools', None, 'eval'),
        (None, sys.executable, 'train'),
    ):
        with pytest.raises(UserError, match='--peer'):
            peer.check(*wrong)


def test_peer_takes_turns(tmp_path, monkeypatch):
    script = tmp_path / 'echo.py'
    script.write_text(ECHO)
    monkeypatch.setitem(peer.PEERS, 'echo', str(script))
    other = peer.Peer('echo', sys.executable, {'suite': 'train'}, {'users': np.arange(3)})
    assert other.about == {'about': 'train'}
    assert [other.measure() for _ in range(2)] == [{'seconds': 2.0, 'count': 10}] * 2
    other.close()


def test_broken_peer_is_one_line(tmp_path, monkeypatch):
    script = tmp_path / 'broken.py'
    script.write_text("raise ImportError('no rectools here')")
    monkeypatch.setitem(peer.PEERS, 'broken', str(script))
    with pytest.raises(UserError, match='ImportError: no rectools here'):
        peer.Peer('broken', sys.executable, {}, {'users': np.arange(3)})


def test_peer_gets_the_same_model_and_data():
    from jaxrec.data.histories import Histories

    lengths = np.array([4, 2, 5])
    histories = Histories(
        np.arange(1, 12, dtype=np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.arange(3),
        np.arange(11),
    )
    split = leave_one_out(histories)
    columns = peer.train_columns(histories, split)
    assert columns['users'].tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert columns['items'].tolist() == [1, 2, 5, 6, 7, 8, 9]
    columns = peer.eval_columns(histories, split, 1)
    assert columns['items'].tolist() == [1, 2, 3, 7, 8, 9, 10]
    assert columns['test_users'].tolist() == [0] and columns['test_items'].tolist() == [4]
    model = sasrec.Config(dim=32, heads=2, loss='bce', negatives=3)
    spec = peer.train_spec(Experiment(model=model), 5)
    assert spec['model']['loss'] == 'BCE' and spec['model']['n_negatives'] == 3
    assert spec['model']['n_factors'] == 32 and spec['model']['n_heads'] == 2
    with pytest.raises(UserError, match='ffn'):
        peer.eval_spec(Experiment(model=sasrec.Config(ffn=4)))


def test_report_shows_every_turn():
    turns = [{'ours': 2000.0, 'peer': None}, {'ours': 3000.0, 'peer': None}]
    result = {'suite': 'train', 'turns': turns, 'ours': 2500.0, 'versions': {'jax': '1'}}
    text = report.markdown(result)
    assert '| 2,000 |' in text and '| 3,000 |' in text and 'peer' not in text
