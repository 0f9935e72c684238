"""The evaluate command on a small trained run, as a user starts it, and as a function."""

import errno
import json
import sys
import tempfile

import numpy as np
import pytest
from runs import check_members, inside, process, small

import jaxrec
from jaxrec import evaluate
from jaxrec.errors import UserError
from jaxrec.evaluation import report
from jaxrec.tasks import next_item
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

TASK = next_item.Config(cutoffs=(5, 10))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Work directory of a run on eight devices."""
    folder = tmp_path_factory.mktemp('evaluate')
    changes = {'train.steps': 6, 'mesh.data': 0, 'optim.ema': 0.0}
    fit(small(folder, **changes), folder / 'run')
    return folder / 'run'


@pytest.fixture(scope='module')
def done(run):
    """The command as a process, on one device."""
    return process('evaluate', f'--workdir={run}', f'--kept={run / "kept.npz"}', '--json')


def test_command(run, done):
    result = done.result
    assert len(done.stdout.splitlines()) == 1  # text for people is on standard error
    assert result == json.loads((run / 'evaluation_test.json').read_text())
    assert (run / 'metric_at_k_test.png').exists()
    assert result['split'] == 'test' and result['examples'] == 200 and result['unit'] == 'user'
    assert result['protocol'] == json.loads(json.dumps(TASK.protocol_fields()))
    assert result['main_metric'] == 'NDCG@10'
    assert list(result['references']) == ['popularity', 'last_week_popularity', 'markov']
    assert {'HR@10', 'NDCG@10', 'MRR', 'Coverage@10'} <= result['metrics'].keys()
    assert result['details']['unreachable'] == 0  # nobody meets an item twice in this data set
    buckets = result['groups']['popularity']
    assert sum(bucket['examples'] for bucket in buckets.values()) == 200
    for text in ('popularity', 'NDCG@10', result['data_hash'], 'filter_seen=True', 'unreachable'):
        assert text in done.stderr


def test_what_is_solved_for_beside_a_sequence_model(run, done):
    """The other numbers are as they were; item cosine by hand."""
    told = inside('evaluate', f'--workdir={run}', '--task.linear=True', '--json').result
    found = told['references']
    assert list(found) == [*done.result['references'], 'ease', 'low_pass', 'gf_cf', 'item_cosine']
    assert {name: found[name] for name in done.result['references']} == done.result['references']
    assert told['protocol'] == done.result['protocol']
    histories = load_trained(run).problem.source
    known = np.zeros((histories.num_users, histories.num_items + 1))
    for user in range(histories.num_users):
        known[user, histories.history(user)[:-1]] = 1
    length = np.maximum(np.sqrt((known**2).sum(0)), 1e-9)
    between = known.T @ known / length / length[:, None]
    np.fill_diagonal(between, 0)
    scores, hits = known @ between, 0
    scores[known > 0] = -np.inf
    for user, row in enumerate(scores):
        target = histories.history(user)[-1]
        above, ties = (row[1:] > row[target]).sum(), (row[1:] == row[target]).sum()
        hits += np.clip((10 - above) / ties, 0, 1)
    assert found['item_cosine']['HR@10'] == pytest.approx(hits / histories.num_users, abs=0.006)
    wrong = inside('evaluate', f'--workdir={run}', '--task.linear=True', '--task.protocol=s3rec-99')
    assert wrong.returncode and 'task.linear ranks the whole catalogue' in wrong.error


def test_the_same_numbers_from_python_on_eight_devices(run, done):
    """And from what is kept of single users."""
    measured = jaxrec.evaluate(run)
    for name, value in measured.metrics.items():
        np.testing.assert_allclose(done.result['metrics'][name], value, atol=1e-12)
    trained = load_trained(run)
    assert trained.mesh.size == 8 and trained.step == done.result['step']
    with np.load(run / 'kept.npz') as kept:
        buckets = {f'members/popularity/{name}' for name in ('head', 'mid', 'tail')}
        assert set(kept) == {'greater', 'ties'} | buckets
        assert (sum(kept[name].astype(int) for name in buckets) == 1).all()
        assert set(check_members(measured)) == set(kept)
        for name in ('HR@10', 'NDCG@5', 'MRR'):
            values, weights = TASK.values(kept, name, done.result['protocol'])
            np.testing.assert_array_equal(values, measured.values[name])
            np.testing.assert_allclose(np.average(values, None, weights), measured.metrics[name])


def test_other_protocol_without_matplotlib(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    flags = ('--task.protocol=uniform', '--task.negatives=20', '--checkpoint=last')
    done = inside('evaluate', f'--workdir={run}', '--split=valid', *flags)
    assert done.returncode == 0, done.stderr
    name = 'valid_protocol-uniform_negatives-20_last'
    written = json.loads((run / f'evaluation_{name}.json').read_text())
    assert written['protocol']['negatives'] == 20 and written['checkpoint'] == 'last'
    assert not any(metric.startswith('Coverage') for metric in written['metrics'])
    assert 'negatives=20' in done.stdout and 'last checkpoint' in done.stdout
    assert 'too few candidates: 0' in done.stdout
    assert 'matplotlib is not installed' in done.stdout
    assert not (run / f'metric_at_k_{name}.png').exists()


def test_a_report_that_cannot_be_written_is_refused_before_the_work(run, tmp_path, monkeypatch):
    """A run's folder may be read-only: --output writes elsewhere."""

    def read_only(dir):
        if str(dir).startswith(str(run)):
            raise OSError(errno.EROFS, 'Read-only file system')
        return temporary(dir=dir)

    temporary = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, 'TemporaryFile', read_only)
    report_file = tmp_path / 'here.json'
    done = inside('evaluate', f'--workdir={run}', f'--output={report_file}', '--json')
    assert done.result == json.loads(report_file.read_text())
    assert (tmp_path / 'metric_at_k_here.png').exists()
    monkeypatch.setattr(evaluate, 'evaluate', None)
    for flags, text in (
        ((), 'Read-only file system; --output=FILE.json writes the report elsewhere'),
        ((f'--output={tmp_path}/nowhere/x.json',), 'nowhere/x.json: No such file or directory'),
        ((f'--output={tmp_path}',), 'is a folder'),
        ((f'--output={report_file}/x.json',), 'x.json: Not a directory'),
        ((f'--output={report_file}', f'--kept={run}/kept.npz'), 'choose another --kept'),
    ):
        assert text in inside('evaluate', f'--workdir={run}', *flags).error


def test_too_few_candidates(run):
    trained = load_trained(run, task={'protocol': 'uniform', 'negatives': 500})
    found = evaluate.evaluate(trained, 'test')
    result = evaluate.as_json(trained, 'test', *found)
    assert result['details']['too_few_candidates'] == 200
    assert 'too few candidates: 200' in report.text(result)


def test_a_model_that_is_beaten_is_told_so(run):
    """By whatever has a better main metric."""
    trained = load_trained(run)
    evaluation, measured, references = evaluate.evaluate(trained, 'test')
    main = trained.experiment.task.main_metric()
    values = {name: other.metrics[main] for name, other in references.items()}
    for value in (-1.0, measured.metrics[main], 2.0):
        measured.metrics[main] = value
        result = evaluate.as_json(trained, 'test', evaluation, measured, references)
        better = [name for name, other in values.items() if other > value]
        assert result['beaten_by'] == better
        told = f'note: by {main} the model, {value:.4f}, is beaten by'
        assert (told in report.text(result)) == bool(better)
    assert not better and value == 2


@pytest.mark.parametrize(
    ('flags', 'text'),
    [
        ((), 'give --workdir=DIR'),
        (('--workdir=nowhere',), 'nowhere holds no run'),
        (('--checkpoint=newest',), "use 'best' or 'last'"),
        (('--split=train',), "unknown split 'train'; this run has valid or test"),
        (('--task.protocol=fancy',), 'full, sasrec-2018, s3rec-99, uniform, popularity'),
        (('--task.protocol=uniform', '--task.negatives=0'), 'must be at least 1'),
        (('--task.nothing=1',), 'no field task.nothing'),
        (('--task.protocol',), 'is not FIELD=VALUE'),
        # what says nothing under the protocol
        (('--task.negatives=50',), "task.negatives says nothing here, task.protocol='full'"),
        (('--task.protocol=s3rec-99', '--task.negatives=50'), 'task.negatives says nothing'),
        (('--task.protocol=uniform', '--task.filter_seen=False'), 'task.filter_seen says nothing'),
        (('--task.cutoffs=',), 'task.cutoffs needs at least one cut-off'),
        # what the run has learnt cannot differ
        (('--task.split=temporal',), r'task.split is part of what'),
        (('--task.windows=all',), r'task.windows is part of what'),
        (('--protocol=full',), 'protocol'),  # its name before there were tasks
    ],
)
def test_errors(run, flags, text):
    where = () if not flags or flags[0].startswith('--workdir') else (f'--workdir={run}',)
    assert text in inside('evaluate', *where, *flags).error


def test_errors_of_the_function(run):
    with pytest.raises(UserError, match=r'task\.windows is part of what'):
        jaxrec.evaluate(run, protocol='uniform', windows='all')
