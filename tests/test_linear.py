"""Closed-form models against dense float64 formulas, and their counts against a loop."""

import numpy as np
import pytest
from real_data import real_data
from test_train_test_text import histories

from jaxrec.config import Data
from jaxrec.data import splits
from jaxrec.datasets import load
from jaxrec.devices.top_k import UNREACHABLE
from jaxrec.evaluation import baselines, linear, protocols
from jaxrec.evaluation.ranking import Ranking
from jaxrec.tasks import next_item


def ranking(filter_seen=True):
    lengths = np.random.default_rng(1).integers(2, 30, 40)
    made = splits.parted(histories(lengths), 'random', 0.1, 0.2)
    split = splits.split(made, 'random', targets='all')
    how = protocols.protocol_of(next_item.Config(filter_seen=filter_seen))
    return Ranking(made, split, 'test', how, several=True)


def dense(task):
    """R of everybody before the test, float64."""
    h, r = task.histories, np.zeros((task.histories.num_users, task.histories.num_items))
    for user in range(h.num_users):
        part = h.features['part'][h.offsets[user] : h.offsets[user + 1]]
        r[user, h.history(user)[part < 2] - 1] = 1
    return r


def slow_scores(r):
    """{name: [users, items]} by the formulas."""
    p = np.linalg.inv(r.T @ r + 500 * np.eye(r.shape[1]))
    b = np.eye(r.shape[1]) - p @ np.diag(1 / np.diag(p))
    np.fill_diagonal(b, 0)
    users, items = (np.sqrt(np.maximum(r.sum(axis), 1e-300)) for axis in (1, 0))
    n = np.where(r > 0, r / users[:, None] / items, 0)
    v = np.linalg.svd(n)[2][: min(64, min(r.shape) - 1)]
    there = r.sum(0) > 0
    low = ((r * np.where(there, 1 / items, 0)) @ v.T @ v) * np.where(there, items, 0)
    c = np.array([[a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-300) for b in r.T] for a in r.T])
    np.fill_diagonal(c, 0)
    hop = r @ (n.T @ n)
    return {'ease': r @ b, 'low_pass': low, 'gf_cf': hop + 0.3 * low, 'item_cosine': r @ c}


@pytest.mark.parametrize('filter_seen', [True, False])
def test_against_dense_formulas(filter_seen, monkeypatch, capsys):
    """All users at once, or a user or two; of many items no matrix is made, and a line says so."""
    task = ranking(filter_seen)
    r = dense(task)
    monkeypatch.setattr(linear, 'QUIET', 1e9)
    found = [baselines.counts(task, linear.NAMES)]
    assert not capsys.readouterr().out
    monkeypatch.setattr(linear, '_SCORES', 100)
    monkeypatch.setattr(linear, 'QUIET', 0)
    found.append(baselines.counts(task, linear.NAMES))
    monkeypatch.setattr(linear, 'DENSE_ITEMS', 59)
    assert list(baselines.counts(task, linear.NAMES)) == ['low_pass']
    lines = capsys.readouterr().out
    assert 'ease: 1 of 37 examples' in lines
    assert 'no ease, gf_cf, item_cosine: their matrix of 60 items squared' in lines
    assert list(found[0]) == list(linear.NAMES)
    for name, scores in slow_scores(r).items():
        want = []
        for owner, item in zip(task.owner, task.items, strict=True):
            user = task.targets.users[owner]
            others = np.ones(r.shape[1], bool) if not filter_seen else r[user] == 0
            others[item - 1] = False
            own = scores[user, item - 1]
            want.append((scores[user][others] > own).sum())
        for of in found:  # rounding may turn two scores round
            assert (of[name][0] == want).mean() > 0.98, name


def test_seen_targets_are_misses():
    task = ranking()
    task.unreachable = task.unreachable | (np.arange(len(task.items)) == 3)
    greater, ties = baselines.counts(task, ('low_pass',))['low_pass']
    assert greater[3] == UNREACHABLE and ties[3] == 0


@pytest.mark.slow
def test_the_numbers_known_of_real_files(tmp_path):
    """Recall and NDCG at 20 on ml-1m-graph, fitted on the whole of train."""
    source = real_data('ml-1m-graph')
    data, _ = load(Data(dataset='ml-1m-graph', source=str(source), data_dir=str(tmp_path)), str)
    made = splits.parted(data, 'given', 0.0, 0.0)
    split = splits.split(made, 'given', targets='all')
    how = protocols.protocol_of(next_item.Config(cutoffs=(20,)))
    task = Ranking(made, split, 'test', how, several=True)
    wanted = {
        'popularity': (0.1160, 0.1176),
        'ease': (0.2759, 0.2660),
        'low_pass': (0.2743, 0.2610),
        'gf_cf': (0.2675, 0.2580),
    }
    for name, counts in baselines.counts(task, tuple(wanted)).items():
        found = task.result(*counts).metrics
        got = found['Recall@20'], found['NDCG@20']
        assert got == pytest.approx(wanted.pop(name), abs=1e-4), name
    assert not wanted
