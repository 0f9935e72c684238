"""Logs larger than memory: the same results in pieces, and no copy of the events anywhere."""

import tracemalloc

import jax
import numpy as np
import pytest
import runs

from jaxrec.benchmarks import data as data_suite
from jaxrec.config import Feature, Train
from jaxrec.data import features, ragged, splits
from jaxrec.data.cuts import CutBatches
from jaxrec.data.features import GAP, Encoder, _spread
from jaxrec.data.histories import NO_TIME, Histories
from jaxrec.data.negatives import UnseenNegatives
from jaxrec.data.packed import TrainBatches
from jaxrec.data.ragged import blocks, distinct, distinct_each
from jaxrec.errors import UserError
from jaxrec.evaluation import baselines, protocols
from jaxrec.evaluation.ranking import Ranking
from jaxrec.experiment import Experiment, check
from jaxrec.models import sasrec
from jaxrec.tasks import next_item


def some_histories(users=60, items=30, longest=20, seed=0):
    """Skewed items, repeats, equal and missing times, users without events."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat(np.arange(users), lengths)
    times = rng.integers(10**9, 10**9 + 40 * 86_400, len(owner)) // 7200 * 7200
    times[rng.random(len(owner)) < 0.1] = NO_TIME
    times = times[np.lexsort((times, owner))]
    return Histories(
        items=rng.integers(1, items + 1, len(owner)).astype(np.int32),
        offsets=offsets,
        user_ids=np.arange(users),
        item_ids=np.arange(items),
        times=times,
    )


@pytest.mark.parametrize('size', [1, 5, 64, 10**6])
def test_blocks_cover_all_users_once(size):
    offsets = some_histories().offsets
    found = list(blocks(offsets, size))
    assert [u for block in found for u in range(block.start, block.stop)] == list(range(60))
    for block in found[:-1]:
        assert offsets[block.stop] - offsets[block.start] < size + 20
    assert (len(found) == 1) == (size == 10**6)
    assert list(blocks(np.zeros(1, np.int64))) == []
    assert list(blocks(np.zeros(4, np.int64))) == [slice(0, 3)]


def everything(h):
    """What is computed over all events, as a flat dict of arrays."""
    loo, temporal = splits.leave_one_out(h), splits.temporal(h, 0.2, 0.2)
    users = splits.users(h, 0.2, 0.2, 0.7, 0)
    encoder = Encoder(h, (Feature(GAP, 'quantile', size=4),), loo.train_ends)
    protocol = protocols.Protocol('full', filter_seen=True)
    one, several = (Ranking(h, s, 'test', protocol) for s in (loo, temporal))
    cuts = CutBatches(h, loo.train_ends, max_len=6, rows=8, seed=1, cuts=2, windows=2)
    draw = UnseenNegatives(h, loo.train_ends, 5)
    batches = TrainBatches(h, loo.train_ends, max_len=7, rows=4, seed=2, unseen_negatives=3)
    found = {
        'statistics': [repr(h.statistics())],
        'counts': protocols.training_counts(h, loo),
        'unreachable': one.unreachable,
        'targets': np.stack([several.owner, several.items, several.unreachable]),
        'of users': np.concatenate([users.train_ends, protocols.training_counts(h, users)]),
        'valid_ends': temporal.train_ends,
        'test': np.stack([temporal.test.users, temporal.test.ends, temporal.test.stops]),
        'periods': np.concatenate(splits.period_starts(h, 4)),
        'last week': baselines.last_week_counts(h, loo),
        'negatives': draw(np.random.default_rng(3), np.repeat(np.arange(60), 2)),
        'fill': [cuts.fill],
    }
    found |= {f'transitions {n}': x for n, x in enumerate(baselines.transitions(h, loo))}
    found |= {f'codes {n}': x for n, x in encoder.events(np.arange(len(h.items))).items()}
    for step in (0, 1, 5):
        for name, made in (('cuts', cuts), ('rows', batches)):
            leaves, _ = jax.tree_util.tree_flatten_with_path(made(step))
            found |= {f'{name} {step} {jax.tree_util.keystr(k)}': v for k, v in leaves}
    return found


@pytest.mark.parametrize('size', [1, 7, 50])
def test_the_same_in_pieces(monkeypatch, size):
    h = some_histories()
    whole = everything(h)
    monkeypatch.setattr(ragged, 'EVENTS_AT_ONCE', size)
    monkeypatch.setattr(splits, 'EVENTS_AT_ONCE', size)
    monkeypatch.setattr(splits, '_BINS', 3)
    monkeypatch.setattr(ragged, '_LEAST', 2)
    pieces = everything(h)
    assert whole.keys() == pieces.keys()
    for name, value in whole.items():
        if 'log_share' in name:  # a sum in another order
            np.testing.assert_allclose(pieces[name], value, rtol=1e-6)
        else:
            np.testing.assert_array_equal(pieces[name], value, err_msg=name)


def test_moments_and_distinct_against_numpy():
    rng = np.random.default_rng(0)
    for times in (rng.integers(-(2**62), 2**62, 999), rng.integers(0, 4, 999), np.full(5, 8)):
        times = np.concatenate([times, [NO_TIME, NO_TIME]])
        known = np.sort(times[times != NO_TIME])
        for rank in (0, 1, 2, 3, 4, len(known) - 1):
            assert splits._at_rank(times, rank) == known[rank]
    keys = rng.integers(0, 50, (20, 5))
    np.testing.assert_array_equal(distinct(keys), np.unique(keys))
    assert len(distinct(keys[:0])) == 0
    parts = [[keys[0] % 4, keys[1] % 4], [], [keys[0, :0]], [np.array([7, 0, 7], np.int32)]]
    found = distinct_each(parts, 7)
    assert [one.tolist() for one in found[1:]] == [[], [], [0, 7]] and found[0].dtype == np.int32
    np.testing.assert_array_equal(found[0], np.unique(keys[:2] % 4))
    assert distinct_each([], 7) == []


def test_a_sample_makes_the_edges_of_a_long_log(monkeypatch):
    h = some_histories(users=400, longest=30)
    feature = (Feature(GAP, 'quantile', size=4),)
    ends = splits.leave_one_out(h).train_ends
    exact = Encoder(h, feature, ends)._edges[GAP]
    monkeypatch.setattr(features, '_SAMPLE', 3000)
    index = _spread(h.offsets[:-1], ends - h.offsets[:-1])
    assert len(index) == 3000 and (np.diff(index) > 0).all() and (index < len(h.items)).all()
    sampled = Encoder(h, feature, ends)._edges[GAP]
    np.testing.assert_allclose(sampled[1:3], exact[1:3], rtol=0.1)


@pytest.mark.parametrize('windows', ['last', 'all', 'cuts'])
def test_training_holds_no_copy_of_the_events(monkeypatch, tmp_path, windows):
    """6 million mapped events of 5,000 users; an int32 column takes 24 MB, and 48 in int64."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(900, 1500, 5000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.memmap(tmp_path / 'items', np.int32, 'w+', shape=int(offsets[-1]))
    items[:] = rng.integers(1, 2001, len(items))
    times = np.memmap(tmp_path / 'times', np.int64, 'w+', shape=len(items))
    times[:] = np.arange(len(items))
    h = Histories(items, offsets, np.arange(5000), np.arange(2000), times)
    monkeypatch.setattr(ragged, 'EVENTS_AT_ONCE', 1 << 16)
    monkeypatch.setattr(splits, 'EVENTS_AT_ONCE', 1 << 16)
    model = sasrec.Config(dim=8, max_len=500, loss='in_batch')
    task = next_item.Config(windows=windows)
    if windows == 'cuts':
        task.cuts = 100
    else:
        model.loss, model.negatives_per, task.unseen_negatives = 'bce', 'data', 1
    experiment = Experiment(model=model, task=task, train=Train(batch_rows=4))
    check(experiment)
    tracemalloc.start()
    for split in (splits.leave_one_out(h), splits.split(h, 'temporal', 0.1, 0.1)):
        problem = next_item.NextItem(experiment, h, {'data_hash': '', 'path': ''}, split=split)
        batches = problem.periods[0]().batches
        for step in (0, batches.steps_per_epoch):
            batches(step)
        problem.evaluations['valid']()
    h.statistics()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6, peak


def test_the_generated_log_of_the_data_suite(tmp_path):
    folder = data_suite.generated(tmp_path / 'log', 20_000)
    h = Histories.load(folder / 'columns')
    assert abs(len(h.items) / 20_000 - 1) < 0.1 and h.items.min() >= 1
    assert h.items.max() <= h.num_items == data_suite.ITEMS
    lengths = np.diff(h.offsets)
    assert (lengths.min(), lengths.max()) == (5, 35)
    assert data_suite.generated(folder, 20_000) == folder  # found, not made again
    assert {f.name for f in folder.iterdir()} == {'columns'}
    with pytest.raises(UserError, match='two numbers of events'):
        data_suite.measure_data(Experiment(), ['5'], repeats=1, steps=1)


@pytest.mark.slow
def test_the_data_suite(tmp_path):
    changes = {'model.loss': 'bce', 'model.negatives': 1, 'optim.ema': 0.0}
    config = runs.write(tmp_path / 'experiment.py', runs.small(tmp_path, **changes))
    words = [f'--config={config}', '--cases=3000,6000', '--repeats=2', '--steps=2', '--json']
    found = runs.process('benchmark', '--suite=data', *words).result
    assert found['events'] == [3000, 6000] and len(found['turns']) == 2
    assert all(50 < mib < 4000 for mib in found['vm_hwm_mib'])
    assert found['ratio'] > 0 and found['cpu_ratio'] > 0
