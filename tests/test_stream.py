"""Training in periods by time: each is predicted before it is learnt, and after a kill goes on."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from runs import lines_of, params_of, same, small

import jaxrec
from jaxrec.config import Feature
from jaxrec.data import splits
from jaxrec.data.cuts import CutBatches
from jaxrec.data.histories import NO_TIME, Histories
from jaxrec.errors import UserError
from jaxrec.experiment import applied, check
from jaxrec.objectives.contrast import Contrast
from jaxrec.tasks import next_item
from jaxrec.training import loop
from jaxrec.training.loop import fit


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


def experiment(folder, **changes):
    changes = {
        'model.loss': 'in_batch',
        'model.max_len': 6,
        'task.windows': 'cuts',
        'task.cuts': 2,
        'task.periods': 4,
        'data.dataset': 'synthetic:users=60,items=30,length=9,seed=1',
        'train.batch_rows': 16,
        'train.epochs': 1,
        'train.metric': 'HR@10',
        **changes,
    }
    return small(folder, **changes)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """(experiment, folder, summary, what happened in order: ('predict', targets), ('learn',))."""
    folder = tmp_path_factory.mktemp('stream')
    given, happened = experiment(folder), []
    predict, learn = loop._Run._predict, loop._Run._learn_period

    def spy_predict(self, number, before):
        happened.append(('predict', {name: one.targets for name, one in before.items()}))
        return predict(self, number, before)

    def spy_learn(self, batches, *rest):
        happened.append(('learn', batches[0]))
        return learn(self, batches, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, '_predict', spy_predict)
        patch.setattr(loop._Run, '_learn_period', spy_learn)
        summary = fit(given, folder / 'whole')
    return given, folder / 'whole', summary, happened


def test_each_period_is_predicted_and_then_learnt(whole):
    given, folder, result, happened = whole
    assert [kind for kind, _ in happened] == ['predict', 'learn'] * 4
    problem = given.task.open(given, lambda line: None)
    starts = splits.period_starts(problem.source, 4)
    first = problem.source.offsets[:-1]
    users, learnt, predicts, learns = 0, 0, happened[::2], happened[1::2]
    assert predicts[0][1] == {}  # nothing is known yet
    for number, ((_, before), (_, batches)) in enumerate(zip(predicts, learns, strict=True)):
        begin, end = starts[number : number + 2]
        # everything from `begin` on is learnt now, once, but for the first events of all
        events = (end - np.maximum(begin, first + 1)).clip(0).sum()
        assert batches.targets_per_epoch == events > 0
        learnt += events
        if number:
            (targets,) = before.values()
            np.testing.assert_array_equal(targets.ends, begin[targets.users])
            assert (targets.ends < end[targets.users]).all()
            users += len(targets)
    assert learnt == len(problem.source.items) - problem.source.num_users
    assert result['examples'] == users > 0
    predicted = [one for one in lines_of(folder) if 'model/HR@10' in one]
    assert [one['period'] for one in predicted] == [2, 3, 4]
    for who in ('model', 'popularity'):
        values, weights = zip(
            *((one[f'{who}/HR@10'], one['examples']) for one in predicted), strict=True
        )
        mean = np.average(values, weights=weights)
        np.testing.assert_allclose(result['before'][who]['HR@10'], mean)
        assert 0 < mean < 1


def test_what_is_served_is_the_newest(whole):
    """There is no validation to choose by, and none to evaluate afterwards."""
    given, folder, result, _ = whole
    assert params_of(folder, 'best')[0] == params_of(folder, 'last')[0] == result['step']
    assert same(params_of(folder, 'best')[1], params_of(folder, 'last')[1])
    item = given.task.open(given, lambda line: None).source.raw_item(1)
    assert len(jaxrec.load(folder).recommend([[item]], k=3)[0]) == 3
    with pytest.raises(UserError, match='its periods were predicted in training'):
        jaxrec.evaluate(folder)


def test_a_killed_stream_goes_on_with_its_period(whole, tmp_path):
    given, folder, result, happened = whole
    first, second, third = (happened[n][1].steps_per_epoch for n in (1, 3, 5))
    at, steps = first + second + third // 2, itertools.count(1)

    def dies():
        if next(steps) == at:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        fit(given, tmp_path, stop=dies)
    assert params_of(tmp_path)[0] == first + second < at
    with pytest.raises(UserError, match=r'with task\.periods=4, this command has 5'):
        fit(applied(given, {'task.periods': 5}), tmp_path)
    steps = itertools.count(1)
    stopped = fit(given, tmp_path, stop=lambda: next(steps) == third // 2)
    assert stopped['stopped'] == 'signal' and stopped['step'] == at
    again = fit(given, tmp_path)
    assert {**again, 'workdir': ''} == {**result, 'workdir': ''}
    assert same(params_of(tmp_path)[1], params_of(folder)[1])
    logged = [
        [{**one, 'seconds': 0} for one in lines_of(place) if 'period' in one]
        for place in (tmp_path, folder)
    ]
    assert logged[0] == logged[1]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'task.windows': 'last', 'model.loss': 'softmax'}, "task.windows='cuts'"),
        ({'optim.schedule': 'cosine'}, 'no end to decay'),
        ({'model.features': (Feature('gap', 'quantile', size=3),)}, "take 'log' or 'uniform'"),
        ({'model.contrast': (Contrast(weight=0.1),)}, r'set model.contrast=\(\)'),
        ({'train.patience': 2}, 'no validation to be patient for'),
        ({'task.split': 'temporal'}, 'time alone splits'),
        ({'task.periods': 0}, 'must be at least 1'),
    ],
)
def test_errors(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        check(experiment(tmp_path, **changes))


def test_codes_of_features_look_at_the_first_period_only(tmp_path):
    """A stream's later events are not known when the buckets are made; with one period they are."""
    assert experiment(tmp_path).task.protocol_fields()['data_split'] == 'periods'
    given = experiment(tmp_path, **{'model.features': (Feature('gap', 'log', size=4, cap=1e6),)})
    problem = given.task.open(given, lambda line: None)
    assert isinstance(problem, next_item.NextItem) and problem.evaluations == {}
    period = problem.periods[1]()
    batch = period.batches(0)
    assert set(batch['features']) == {'gap'}
    assert jax.tree.all(jax.tree.map(lambda x: len(x) == 16, batch))


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
