"""The benchmark command: its yardsticks by hand, every suite end to end, and the peer's turns."""

import contextlib
import dataclasses
import json
import sys

import numpy as np
import pytest
import runs

from jaxrec import benchmark
from jaxrec.benchmarks import ann, flops, lists, measure, peer, report, soak, training
from jaxrec.data.splits import leave_one_out
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment
from jaxrec.models import comirec, lightgcn, mmoe, ple, sasrec
from jaxrec.problem import Batches
from jaxrec.serving import ann as serving_ann
from jaxrec.tasks import next_item

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
    return runs.write(folder / 'experiment.py', runs.small(folder))


def one_error_line(words, *shown):
    error = runs.inside('benchmark', *words).error
    assert all(word in error for word in shown), error


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
    experiment = Experiment(model=dataclasses.replace(model, negatives=7))
    counted = flops.train_flops(experiment, 10, {'segments': SEGMENTS})
    assert counted == 3 * forward


def test_flops_of_negatives_from_the_data():
    """As many as the task draws, whatever the model's own number is."""
    model = sasrec.Config(loss='bce', negatives_per='data', negatives=99)
    experiment = Experiment(model=model, task=next_item.Config(unseen_negatives=7))
    own = Experiment(model=dataclasses.replace(model, negatives_per='token', negatives=7))
    batch = {'segments': SEGMENTS}
    assert flops.train_flops(experiment, 10, batch) == flops.train_flops(own, 10, batch)


def test_unknown_models_have_no_flops():
    for model in (comirec.Config(), sasrec.Config(loss='in_batch'), object()):
        assert np.isnan(flops.train_flops(Experiment(model=model), 10, {'segments': SEGMENTS}))
    ours = {'seconds': 2.0, 'targets': 40, 'tokens': 60, 'steps': 4, 'flops': float('nan')}
    turn = training.turn(ours, 100.0, {'seconds': 4.0, 'count': 20})
    assert turn['ours'] == 20 and turn['peer'] == 5 and turn['ratio'] == 4
    assert turn['gflops'] is None and turn['step_ms'] == 500
    assert turn['of_against'] is None
    turn = training.turn(ours, 100.0, None, 8.0)
    assert turn['against_ms'] == 2000 and turn['of_against'] == 0.25


def check_files(suite, result, folder):
    """Of a result there are JSON, a table and a picture."""
    assert KEYS <= result.keys()
    assert result['ours'] > 0 and result['ratio'] is None and result['peer'] is None
    assert result == json.loads((folder / f'benchmark_{suite}.json').read_text())
    assert '| ---' in (folder / f'benchmark_{suite}.md').read_text()
    assert (folder / f'benchmark_{suite}.png').read_bytes()[:4] == b'\x89PNG'


def run(suite, config, folder, *flags):
    words = [f'--suite={suite}', *([f'--config={config}'] if config else []), *flags]
    words += ['--repeats=2', '--matmul_size=64', '--json', f'--output={folder}']
    done = runs.inside('benchmark', *words)
    assert len(done.stdout.splitlines()) == 1  # nothing else is on standard output
    check_files(suite, done.result, folder)
    return done.result


def test_suite_train(experiment, tmp_path):
    result = run('train', experiment, tmp_path, '--steps=2', '--against=model.blocks=0')
    assert len(result['turns']) == 2 and 0 < result['of_matmul']
    assert result['batch_rows'] == 8 and result['steps_per_turn'] == 2
    assert result['against'] == {'model.blocks': 0}
    ratio, (first, *_) = result['of_against'], result['turns']
    assert ratio > 0 and first['of_against'] == pytest.approx(
        first['step_ms'] / first['against_ms']
    )
    assert 8 < result['users_per_batch'] < 30  # rows of 10 places for histories of 12


def test_suite_train_of_what_has_no_flops(tmp_path):
    changes = {'task.windows': 'cuts', 'model.loss': 'in_batch', 'model.blocks': 0}
    config = runs.write(tmp_path / 'e.py', runs.small(tmp_path, **changes))
    result = run('train', config, tmp_path, '--steps=2')
    assert result['gflops'] is result['of_matmul'] is result['mfu'] is None


def test_suite_eval(experiment, tmp_path):
    result = run('eval', experiment, tmp_path)
    assert result['users'] == 200 and result['seconds'] > 0 and len(result['turns']) == 2


@pytest.mark.parametrize('suite', ['loss', 'catalogue'])
def test_suites_of_sizes(experiment, tmp_path, suite):
    """A process a size, so that each has its own peak of memory."""
    if suite == 'loss':
        result = run('loss', None, tmp_path, '--cases=32x100x8')
    else:  # table, two moments, averages, and then positions and counters
        words = ['--cases=1000', '--steps=1', '--config.model.blocks=0']
        result = run('catalogue', experiment, tmp_path, *words)
        assert result['cases'][0]['state_mib'] > 4 * 1024 * 8 * 4 / 2**20
    assert [case['case'] for case in result['cases']] == ['32x100x8' if suite == 'loss' else '1000']


@pytest.mark.slow
def test_suite_lists(experiment, tmp_path, monkeypatch):
    """A call of many and calls of one, of different users; all of them are lists."""
    monkeypatch.setattr(lists, 'SIZES', {'many': 16, 'at_once': 2})
    monkeypatch.setattr(lists, '_ONE_BY_ONE', 5)
    result = run('lists', experiment, tmp_path)
    assert result['users_at_once'] == 16 and 0 < result['one_ms'] <= result['one_p99_ms']
    monkeypatch.setattr(lists, '_ONE_BY_ONE', 500)
    one_error_line(['--suite=lists', f'--config={experiment}'], '532', 'the data have 200')


def test_what_is_timed_of_lists(monkeypatch):
    monkeypatch.setattr(lists, 'SIZES', {'many': 3, 'at_once': 2})
    calls = []
    told = lists.timed(calls.append, list('abcdefgh'))
    assert calls == [['a', 'b', 'c'], ['d', 'e', 'f'], ['g'], ['h']]
    assert told['count'] == 6 and len(told['milliseconds']) == 2


def test_suite_ann(tmp_path, monkeypatch):
    """A graph of few items finds them all; the faster exact way is the one it is held against."""
    pytest.importorskip('faiss', reason="needs '.[ann]'")
    monkeypatch.setattr(ann, '_SECONDS', 0.02)
    result = run('ann', None, tmp_path, '--cases=600,2000')
    for case in result['cases']:
        assert case['recall@10'] >= 0.97 and case['milliseconds'] > 0
        faster = case['exact_milliseconds'] / case['milliseconds']
        assert case['times_faster'] == pytest.approx(faster)
        both = min(faster, case['many_times_faster']), max(faster, case['many_times_faster'])
        assert case['better'] == ('graph' if both[0] > 1 else 'exact' if both[1] < 1 else 'both')
    assert [case['items'] for case in result['cases']] == [600, 2000]
    items, queries = ann.generated(300)
    again, _ = ann.generated(300)
    assert items.shape == (300, 64) and queries.shape == (1024, 64) and (items == again).all()


def test_short_items_are_found_too():
    """Of lengths over six powers of ten, beside a full sort, and the products are those without."""
    pytest.importorskip('faiss', reason="needs '.[ann]'")
    rng = np.random.default_rng(0)
    items = rng.normal(size=(2000, 16)) * 10 ** rng.uniform(-3, 3, size=(2000, 1))
    items, queries = items.astype(np.float32), items[:50].astype(np.float32)
    items[:1900] *= np.sign(-items[:1900, :1])  # the first 50 lie where only short ones do
    best = np.argsort(-(queries.astype(np.float64) @ items.T), axis=1)[:, :10]
    index = serving_ann.built(items)
    assert serving_ann.widen(index, queries, best) >= 0.99
    assert serving_ann.search(index, queries, 3).shape == (50, 3)


def test_recall_by_hand():
    found, best = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 9, 1], [7, 8, 9]])
    assert serving_ann.recall(found, best) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.slow
def test_suite_serve(experiment, tmp_path):
    result = run('serve', experiment, tmp_path, '--cases=1,4')
    assert [case['case'] for case in result['cases']] == ['1', '4'] and result['resident_mib'] > 50
    for case in result['cases']:
        assert 0 < case['milliseconds'] <= case['p99_ms'] and case['requests_per_second'] > 1


@pytest.mark.slow
def test_suite_soak(experiment, tmp_path, monkeypatch):
    """The service is killed and reloaded, and an answer that is not the wanted one is seen."""
    result = run('soak', experiment, tmp_path, '--cases=25')
    assert result['wrong'] == result['lost'] == 0 and result['kills'] == 5
    assert min(result[name] for name in ('right', 'refused', 'slow', 'asked_again')) > 0
    assert result['checkpoints'] > 20 and result['steps_seen'] > 2
    assert sum(result[n] for n in ('right', 'wrong', 'lost', 'refused')) == result['asked']
    assert sum(case['right'] for case in result['cases']) == result['right']


@pytest.mark.parametrize(
    ('items', 'scores', 'right'),
    [
        ('abc', (4, 3, 3), True),
        ('acb', (4, 3, 3), True),  # their scores are near
        ('abd', (4, 3, 3), False),
        ('bac', (4, 3, 3), False),
        ('abc', (4, 3, 2.9), False),
        ('abx', (4, 3, 3), False),
        ('ab', (4, 3), False),
        ('abcd', (4, 3, 3, 1), False),
    ],
)
def test_which_answer_of_a_soak_is_right(items, scores, right):
    def listed(items, scores):
        return [{'item': i, 'score': s} for i, s in zip(items, scores, strict=True)]

    wanted, answer = listed('abcd', (4, 3, 3 - 1e-6, 1)), {'lists': [listed(items, scores)]}
    assert soak.right(answer, wanted, 3) == right
    assert soak.right({'lists': [wanted[:2]]}, wanted[:2], 3)  # there are no more items


@pytest.mark.slow
def test_suite_bulk(tmp_path):
    """By a small log; what the large one holds is the command's own."""
    changes = {'model.max_len': 8, 'model.dim': 8}
    config = runs.write(tmp_path / 'e.py', runs.small(tmp_path, **changes))
    result = run('bulk', config, tmp_path, '--cases=300,1200')
    small, large = result['cases']
    assert abs(large['users'] - 1200) < 150 and result['memory_growth'] < 1.5
    assert small['anonymous_mib'] <= small['peak_memory_mib'] and large['output_mib'] > 0.01


def test_error_lines(experiment):
    one_error_line(['--suite=nope'], '--suite=nope', 'catalogue')
    one_error_line(['--suite=eval'], '--config')
    one_error_line(
        ['--suite=eval', '--workdir=x'], '--workdir goes with', 'lists, serve, soak, ann'
    )
    one_error_line(['--suite=serve'], '--workdir=DIR', '--config')
    one_error_line(['--suite=serve', '--workdir=x', '--cases=many'], 'numbers of clients')
    one_error_line(['--suite=ann', '--cases=3'], 'numbers of items')
    one_error_line(['--suite=soak', '--workdir=x', '--cases=1,2'], 'number of seconds')
    given = f'--config={experiment}'
    train = ['--suite=train', given]
    one_error_line([*train, '--against=model.layers=1'], 'model.layers')
    one_error_line([*train, '--against=model.blocks=x'], 'model.blocks')
    one_error_line([*train, '--against=data.dataset=beauty'], '--against')
    one_error_line([*train, '--against=data.split=temporal'], 'data.split is now task.split')
    one_error_line([*train, '--config.task.windows=cuts'], 'task.windows')  # it is checked
    one_error_line(['--suite=eval', given, '--against=model.blocks=1'], '--against')
    missing = ['--peer=rectools', '--peer_python=/no/such/python']
    one_error_line([*train, *missing], '/no/such/python')
    one_error_line(['--suite=loss', '--cases=10x'], '10x', 'TOKENSxITEMSxDIM')


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('--suite=loss',), '--suite=loss starts processes of its own'),
        (('--suite=catalogue',), '--suite=catalogue starts processes of its own'),
        (('--suite=data',), '--suite=data starts processes of its own'),
        (('--suite=train', '--peer=rectools', f'--peer_python={sys.executable}'), 'leave --peer'),
    ],
)
def test_what_several_processes_cannot_measure_together(experiment, monkeypatch, flags, words):
    """The other suites: test_cluster."""
    monkeypatch.setattr(benchmark.cluster, 'joined', contextlib.nullcontext)
    monkeypatch.setattr(benchmark.cluster, 'together', lambda: True)
    one_error_line([f'--config={experiment}', *flags], words, 'start one')


@pytest.mark.parametrize('shape', [(1, 1), (4, 2)])
def test_the_rate_of_products_is_that_of_all_devices(shape, mesh, monkeypatch):
    """As the FLOPs that it is held against are."""
    mesh(*shape)
    monkeypatch.setattr(measure, 'seconds', lambda call: 1.0)
    rate = measure.Matmul(16).sample()
    assert rate == pytest.approx(shape[0] * shape[1] * 2 * 16**3 / 1e9)


def test_suites_of_histories_need_a_task_that_ranks_items(tmp_path):
    (tmp_path / 'e.py').write_text(
        'from jaxrec.experiment import Experiment\n'
        'from jaxrec.models import gcn\n'
        'from jaxrec.tasks import nodes\n'
        'def get_config():\n'
        '    return Experiment(model=gcn.Config(), task=nodes.Config())\n'
    )
    for suite in ('eval', 'catalogue', 'data'):
        words = [f'--suite={suite}', f'--config={tmp_path / "e.py"}']
        one_error_line(words, f'--suite={suite} needs a task that ranks items')


def test_peer_flags():
    peer.check(None, None, 'loss')
    peer.check('rectools', sys.executable, 'train')
    for wrong in (
        ('torchrec', sys.executable, 'train'),
        ('rectools', sys.executable, 'loss'),
        ('rectools', None, 'eval'),
        ('torch-graph', sys.executable, 'eval'),
        (None, sys.executable, 'train'),
    ):
        with pytest.raises(UserError, match='--peer'):
            peer.check(*wrong)


def test_peer_of_click_models():
    """The same layers, or a line; every training row once, each field with codes of its own."""
    model = ple.Config(levels=2, expert_widths=(8, 4, 8, 4))
    spec = peer.click_spec(Experiment(model=model), 3)
    assert (spec['model'], spec['expert_widths'], spec['levels']) == ('ple', (8, 4), 2)
    spec = peer.click_spec(Experiment(model=mmoe.Config(expert_widths=(8, 4))), 3)
    assert (spec['model'], spec['expert_widths'], spec['experts']) == ('mmoe', (8, 4), 6)
    for wrong in (mmoe.Config(attend=('past',)), ple.Config(expert_widths=(8, 4)), sasrec.Config()):
        with pytest.raises(UserError, match='the peer'):
            peer.click_spec(Experiment(model=wrong), 0)

    class Two(Batches):
        steps_per_epoch = 2

        def __call__(self, step):
            return {
                'weights': np.array([1, 1, 1 - step], np.float32),
                'labels': np.full((3, 2), step, np.float32),
                'features': {
                    'user': np.array([7, 9, 0]) + step,
                    'past': np.array([[40, 0], [0, 0], [41, 40]]),
                    'age': np.array([0.5, 1, 2], np.float32),
                },
            }

    columns = peer.click_columns(Two())
    np.testing.assert_array_equal(columns['labels'][:, 0], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(columns['field.user'], [1, 3, 0, 2, 4])
    past = [[1, 0], [0, 0], [2, 1], [1, 0], [0, 0]]
    np.testing.assert_array_equal(columns['field.past'], past)
    np.testing.assert_array_equal(columns['field.age'], [0.5, 1, 2, 0.5, 1])


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
    served = peer.lists_columns(histories, split, np.array([2, 0]))
    assert served['served'].tolist() == [2, 0] and served['items'].tolist() == [
        *[1, 2, 3],
        *[7, 8, 9, 10],
    ]
    columns = peer.eval_columns(histories, split, 1)
    assert columns['items'].tolist() == [1, 2, 3, 7, 8, 9, 10]
    assert columns['test_users'].tolist() == [0] and columns['test_items'].tolist() == [4]
    model = sasrec.Config(dim=32, heads=2, loss='bce', negatives=3)
    spec = peer.train_spec(Experiment(model=model), 5)
    assert spec['model']['loss'] == 'BCE' and spec['model']['n_negatives'] == 3
    assert spec['model']['n_factors'] == 32 and spec['model']['n_heads'] == 2
    from_data = dataclasses.replace(model, negatives_per='data')
    drawn = Experiment(model=from_data, task=next_item.Config(unseen_negatives=9))
    assert peer.eval_spec(drawn)['model']['n_negatives'] == 9
    with pytest.raises(UserError, match='ffn'):
        peer.eval_spec(Experiment(model=sasrec.Config(ffn=4)))
    with pytest.raises(UserError, match='--config.task.windows=last'):
        peer.train_spec(Experiment(model=model, task=next_item.Config(windows='all')), 5)
    with pytest.raises(UserError, match='no counterpart of jaxrec.models.comirec'):
        peer.eval_spec(Experiment(model=comirec.Config()))
    pairs = next_item.Config(windows='pairs', unseen_negatives=1)
    views = lightgcn.Views('noise', noise=0.3)
    graph = Experiment(model=lightgcn.Config(dim=8, views=views), task=pairs)
    spec = peer.graph_spec(graph, 2)
    assert (spec['dim'], spec['kind'], spec['noise'], spec['batches']) == (8, 'noise', 0.3, 2)
    for model in (
        lightgcn.Config(loss='direct_au'),
        lightgcn.Config(views=lightgcn.Views('edge_drop', among='all')),
    ):
        with pytest.raises(UserError, match='the peer'):
            peer.graph_spec(Experiment(model=model, task=pairs), 0)


def test_report_shows_every_turn():
    turns = [{'ours': 2000.0, 'peer': None}, {'ours': 3000.0, 'peer': None}]
    result = {'suite': 'train', 'turns': turns, 'ours': 2500.0, 'versions': {'jax': '1'}}
    text = report.markdown(result)
    assert '| 2,000 |' in text and '| 3,000 |' in text and 'peer' not in text
