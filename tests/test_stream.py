"""Streaming: periods by time, prediction before learning, going on after a kill."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from jaxrec import config, stream, train
from jaxrec.config import Feature
from jaxrec.data import splits
from jaxrec.data.cuts import CutBatches
from jaxrec.data.histories import NO_TIME, Histories
from jaxrec.errors import UserError
from jaxrec.models import cl4srec, sasrec


def make_histories(seed=0, users=30):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 15, users)
    times = [np.sort(rng.integers(0, 1000, n)) for n in lengths]
    for own in times[::3]:
        own[: len(own) // 2] = NO_TIME
    return Histories(
        items=rng.integers(1, 21, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_ids=np.arange(users),
        item_ids=np.arange(1, 21),
        times=np.concatenate(times),
    )


def test_periods_hold_equally_many_events_in_time_order():
    histories = make_histories(users=200)
    starts = splits.period_starts(histories, 5)
    assert len(starts) == 6
    np.testing.assert_array_equal(starts[0], histories.offsets[:-1])
    np.testing.assert_array_equal(starts[-1], histories.offsets[1:])
    held = []
    for before, after in itertools.pairwise(starts):
        index = np.concatenate([np.arange(a, b) for a, b in zip(before, after, strict=True)])
        held.append(histories.times[index.astype(int)])
    assert sum(map(len, held)) == len(histories.items)
    known = [period[period != NO_TIME] for period in held]
    assert all((period == NO_TIME).sum() == 0 for period in held[1:])
    for earlier, later in itertools.pairwise(known):
        assert earlier.max() < later.min()
    total = sum(map(len, known))
    assert all(abs(len(period) - total / 5) < 0.02 * total for period in known)


def test_periods_need_times():
    histories = dataclasses.replace(make_histories(), times=None)
    with pytest.raises(UserError, match='need timestamps'):
        splits.period_starts(histories, 3)
    histories = make_histories()
    histories.times[:] = 5
    with pytest.raises(UserError, match='do not make 3 periods'):
        splits.period_starts(histories, 3)


def experiment(tmp_path):
    return config.Experiment(
        model=sasrec.Config(dim=8, max_len=6, blocks=1, loss='in_batch'),
        data=config.Data(
            dataset='synthetic:users=60,items=30,length=9,seed=1',
            data_dir=str(tmp_path / 'data'),
            windows='cuts',
            cuts=2,
        ),
        train=config.Train(batch_rows=16, epochs=1, metric='HR@10'),
        eval=config.Eval(cutoffs=(5, 10)),
    )


@pytest.fixture
def spied(monkeypatch):
    """What happened, in order: ('predict', targets) and ('learn', first, end)."""
    happened = []
    predict, learn = stream._predict, stream._learn

    def spy_predict(ranker, params):
        happened.append(('predict', ranker.task.targets))
        return predict(ranker, params)

    def spy_learn(experiment, histories, before, after, *rest):
        happened.append(('learn', before, after))
        return learn(experiment, histories, before, after, *rest)

    monkeypatch.setattr(stream, '_predict', spy_predict)
    monkeypatch.setattr(stream, '_learn', spy_learn)
    return happened


def test_each_period_is_predicted_and_then_learnt(tmp_path, mesh, spied):
    mesh(1, 1)
    result = stream.stream(experiment(tmp_path), tmp_path / 'run', 4)
    assert [kind for kind, *_ in spied] == ['learn', *['predict', 'learn'] * 3]
    learnt = spied[0][2]
    users = 0
    for (_, targets), (_, before, after) in zip(spied[1::2], spied[2::2], strict=True):
        np.testing.assert_array_equal(before, learnt)  # nothing in between, nothing twice
        np.testing.assert_array_equal(targets.ends, before[targets.users])
        assert (targets.ends < after[targets.users]).all()
        learnt, users = after, users + len(targets)
    assert result['users'] == users > 0
    lines = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').open()]
    predicted = [line for line in lines if 'model/HR@10' in line]
    mean = np.average(
        [line['model/HR@10'] for line in predicted], weights=[line['users'] for line in predicted]
    )
    np.testing.assert_allclose(result['model']['HR@10'], mean)
    assert len(predicted) == 3 and 0 < result['popularity']['HR@10'] < 1


def test_a_killed_stream_goes_on_with_its_period(tmp_path, mesh, monkeypatch):
    mesh(1, 1)
    whole = stream.stream(experiment(tmp_path), tmp_path / 'whole', 4)
    learn, calls = stream._learn, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return learn(*args)

    monkeypatch.setattr(stream, '_learn', dies)
    with pytest.raises(KeyboardInterrupt):
        stream.stream(experiment(tmp_path), tmp_path / 'killed', 4)
    jax.clear_caches()
    again = stream.stream(experiment(tmp_path), tmp_path / 'killed', 4)
    assert len(calls) == 5
    assert {**again, 'workdir': ''} == {**whole, 'workdir': ''}
    with pytest.raises(UserError, match='another run'):
        stream.stream(experiment(tmp_path), tmp_path / 'killed', 5)
    with pytest.raises(UserError, match=r'a run of jaxrec.stream; use another --workdir'):
        train.train(experiment(tmp_path), tmp_path / 'killed')


def test_errors(tmp_path, mesh):
    for change, message in (
        ({'data.windows': 'last', 'model.loss': 'softmax'}, "data.windows='cuts'"),
        ({'optim.schedule': 'cosine'}, 'no end to decay'),
        ({'model.features': (Feature('gap', 'quantile', size=3),)}, "take 'log' or 'uniform'"),
    ):
        wrong = experiment(tmp_path)
        for name, value in change.items():
            section, field = name.split('.')
            setattr(getattr(wrong, section), field, value)
        with pytest.raises(UserError, match=message):
            stream.stream(wrong, tmp_path / 'run', 4)
    wrong = experiment(tmp_path)
    wrong.model = cl4srec.Config(dim=8, blocks=1, max_len=8, loss='in_batch')
    with pytest.raises(UserError, match='set model.contrast.weight=0'):
        stream.stream(wrong, tmp_path / 'run', 4)
    with pytest.raises(UserError, match='at least 2'):
        stream.stream(experiment(tmp_path), tmp_path / 'run', 1)


def test_learning_leaves_out_what_was_before():
    """With train_starts the targets are the events of the period alone."""
    histories = make_histories()
    starts = splits.period_starts(histories, 3)
    batches = CutBatches(histories, starts[2], max_len=4, rows=8, seed=0, train_starts=starts[1])
    seen = np.concatenate([batches(s)['targets'].ravel() for s in range(batches.steps_per_epoch)])
    expected = [
        histories.items[i]
        for start, a, b in zip(histories.offsets[:-1], starts[1], starts[2], strict=True)
        for i in range(max(a, start + 1), b)
    ]
    assert sorted(seen[seen > 0]) == sorted(expected)
