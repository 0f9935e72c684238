"""Live rooms: the generated world, the task from ticks to a replayed evaluation, refusals."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from runs import same
from scipy import special

import jaxrec
from jaxrec import datasets
from jaxrec.config import Data, Mesh, Optim, Train
from jaxrec.data.fields import Field
from jaxrec.data.rows import Rows
from jaxrec.datasets import live_rooms
from jaxrec.errors import UserError
from jaxrec.evaluation import point_metrics
from jaxrec.experiment import Experiment, check
from jaxrec.models import marm, mmoe
from jaxrec.tasks import live
from jaxrec.training import plan
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

WORLD = 'live-rooms:users=50,rooms=4,hours=0.6,rate=1,highlights=8,chance=0.2'
FIELDS = (Field('user'), Field('item'), Field('taste'), Field('topic'))


def make(folder, train=None, model=None, **changes):
    settings = {
        'fields': FIELDS,
        'highlights': ('highlight_from', 'highlight_to'),
        'warm_up': 200,
        'ahead': 120,
        'tick': 60,
        'batch_rows': 64,
    }
    small = mmoe.Config(dim=4, experts=1, expert_widths=(8,), tower_widths=(), cross=('taste',))
    return Experiment(
        task=live.Config(**{**settings, **changes}),
        model=model or small,
        data=Data(dataset=WORLD, data_dir=str(folder)),
        optim=Optim(learning_rate=0.03),
        train=Train(**{'batch_rows': 32, 'epochs': 1, **(train or {})}),
    )


def opened(experiment):
    check(experiment)
    return experiment.task.open(experiment, say=lambda line: None)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('live')


# ---- the generated world


def test_the_world_is_what_it_says():
    p = live_rooms.parse('users=300,rooms=30,hours=2,rate=12,topics=4,seed=1')
    rows = live_rooms.generate(p)
    stay = rows.features['stay'].astype(np.float64)
    after = {name: rows.features[f'{name}_after'].astype(np.float64) for name in live_rooms.DELAYS}
    assert abs(len(rows) / (2 * 3600 * 12) - 1) < 0.02 and (np.diff(rows.times) >= 0).all()
    assert 100 < stay.mean() < 180  # some rooms close before the visitor leaves
    for name, when in after.items():
        there = ~np.isnan(when)
        assert (when[there] <= stay[there]).all() and (when[there] >= 0).all()
        np.testing.assert_array_equal(rows.labels[name], there)
    for name in ('like', 'gift'):  # after the click
        there = ~np.isnan(after[name])
        assert (after[name][there] >= after['click'][there]).all() and there.sum() > 50
    room, click = rows.items - 1, rows.labels['click']
    begins, ends = (rows.item_features[f'highlight_{name}'] for name in ('from', 'to'))
    lifted = np.zeros(len(rows), bool)
    for visit in range(len(rows)):
        own = begins[room[visit]] > 0
        inside = (begins[room[visit]] <= rows.times[visit]) & (
            rows.times[visit] < ends[room[visit]]
        )
        lifted[visit] = (own & inside).any()
    length = (ends - begins)[begins > 0]
    assert (length % 30 == 0).all() and length.max() <= 300 and np.median(length) >= 120
    odds = click[lifted].mean() / click[~lifted].mean()
    assert 2.3 < odds < 3.2  # `lift`, less where the chance is cut
    taste, topic = rows.user_features['taste'][rows.users], rows.item_features['topic'][room]
    cells = np.array(
        [click[(taste == a) & (topic == b)].mean() for a in range(4) for b in range(4)]
    )
    assert cells.max() > 2 * cells.min()


def test_the_world_follows_from_its_seed(folder):
    first, again, other = (
        live_rooms.generate(live_rooms.parse(f'users=20,rooms=3,hours=0.3,rate=1,seed={seed}'))
        for seed in (1, 1, 2)
    )
    assert first.content_hash() == again.content_hash() != other.content_hash()
    rows, meta = datasets.load(Data(dataset=WORLD, data_dir=str(folder)), print, kind=Rows)
    assert rows.name == 'live-rooms' and meta['data_hash'] == rows.content_hash()


@pytest.mark.parametrize(
    'argument, words',
    [('rooms=0', 'rooms, topics >= 1'), ('lift=0.5', 'lift >= 1'), ('chance=1', 'chance < 1')],
)
def test_no_such_world(argument, words):
    with pytest.raises(UserError, match=words):
        live_rooms.parse(argument)


# ---- the task


def test_ticks_hold_every_report_once_and_none_too_early(folder):
    p = opened(make(folder))
    rows, seen = p.source, 0
    visits = make(folder).task.visits(rows)
    for number, period in enumerate(p.periods):
        tick, made = int(rows.times[0]) + 60 * number, period()
        for one in made.before.values():
            assert one.tick == tick >= rows.times[0] + 200
            expected = np.flatnonzero((rows.times > tick) & (rows.times <= tick + 120))
            np.testing.assert_array_equal(np.arange(len(rows))[one.visits], expected)
        if made.batches is None:
            continue
        for step in range(made.batches.steps_per_epoch):
            batch = made.batches(step)
            for at in np.flatnonzero(batch['weights']):
                user = batch['features']['user'][at]
                own = np.flatnonzero(p.catalogue.coded['user'][rows.users] == user)
                own = own[
                    p.catalogue.coded['item'][rows.items[own] - 1] == batch['features']['item'][at]
                ]
                # some visit of this user to this room has had this by the end of the tick
                for label in np.flatnonzero(batch['mask'][at]):
                    when = (
                        visits.after[own, label] if batch['labels'][at, label] else visits.stay[own]
                    )
                    assert (rows.times[own] + when <= tick + 60).any()
            seen += int(batch['mask'].sum())
    known = ~np.isnan(visits.after)
    done = rows.times[:, None] + np.where(known, visits.after, visits.stay[:, None])
    assert seen <= known.size and seen >= (done <= rows.times[-1] - 60).sum()


def test_a_stream_that_says_nothing_at_first_is_planned(folder):
    """fast_slow is silent for five minutes."""
    experiment = make(folder, stream='fast_slow')
    assert opened(experiment).periods[0]().batches is None
    found = plan.plan(experiment, Mesh(1, 1))
    assert found['batch_rows'] == 32 and found['steps_per_epoch'] > 0


@pytest.mark.parametrize('stream, key', [('fast_slow', 'missed'), ('fake_negative', 'told_early')])
def test_what_a_stream_needs_of_the_loss_is_in_its_batches(folder, stream, key):
    batch = next(
        filter(
            None,
            (
                p().batches
                for p in opened(make(folder, stream=stream, fast=60, slow=400)).periods[8:]
            ),
        )
    )(0)
    assert key in batch
    assert len(batch[key]) == 32
    plain = next(filter(None, (p().batches for p in opened(make(folder)).periods)))(0)
    assert plain.keys() == {'features', 'labels', 'mask', 'weights'}


def test_the_loss_of_a_stream_is_the_sheets(folder):
    """-logit of what was missed beside plain cross entropy; nothing of what is masked."""
    experiment = make(folder, stream='fast_slow', fast=60, slow=400)
    p = opened(experiment)
    model = experiment.model.make(p.sizes, rngs=nnx.Rngs(0))
    batches = (p().batches for p in p.periods)
    batch = next(b for b in (made(0) for made in batches if made) if b['missed'].any())
    z = np.asarray(model.scores(batch, {}), np.float64)
    known = (batch['mask'] + batch['missed']) * batch['weights'][:, None]
    each = batch['mask'] * (np.logaddexp(0, z) - batch['labels'] * z) - batch['missed'] * z
    wanted = (each * batch['weights'][:, None]).sum(0) / np.maximum(known.sum(0), 1)
    loss, (terms, _) = model.loss(batch, {}, {}, jax.random.key(0))
    np.testing.assert_allclose([terms[f'loss_{n}'] for n in range(3)], wanted, rtol=1e-5)
    assert loss == pytest.approx(wanted.sum(), rel=1e-5)


def test_sliver_scores_labels_whatever_else_comes():
    logits = np.random.default_rng(0).normal(size=(9, 3)) * 3
    p = special.expit(logits)
    wanted = special.logit(np.concatenate([p[:, :1], p[:, :1] * p[:, 1:]], axis=1))
    np.testing.assert_allclose(live.unconditional(logits.astype(np.float32)), wanted, rtol=1e-4)


def test_noticed():
    """Half as much again as at the last tick that knows nothing of it; a room may lack visits."""
    ticks = np.arange(0, 300, 30)
    response = np.array([0.3, 0.1, 0.2, np.nan, 0.25, np.nan, 0.31, 0.1, 0.4, 0.4])
    assert live.noticed(response, ticks, 60) == 180  # .31 > 1.5 * .2
    assert live.noticed(response, ticks, 95) == 180  # .2 at 60: there is none at 90
    assert live.noticed(response, ticks, 61) == 180
    assert live.noticed(np.full(10, 0.2), ticks, 60) == np.inf
    assert live.noticed(np.full(10, np.nan), ticks, 60) == np.inf
    assert live.noticed(np.array([np.nan] * 3 + [0.9] * 7), ticks, 60) == np.inf  # no beginning


def test_the_stream_is_measured_tick_by_tick(folder):
    """AUC, loss, calibration and lag of made-up scores, by loops; the order of sums aside."""
    p = opened(make(folder))
    evaluation, rows = p.evaluations['test'](), p.source
    came = ~np.isnan(make(folder).task.visits(rows).after)
    rng, parts, response = np.random.default_rng(0), [], {}
    aucs, losses, said, real = [], [], 0.0, 0.0
    ticks = [int(rows.times[0]) + 60 * number for number in evaluation.replays]
    for tick in ticks:
        index = [n for n in range(len(rows)) if tick < rows.times[n] <= tick + 120]
        logits = rng.normal(size=(len(index), 3)).astype(np.float32)
        parts.append((np.arange(len(index)), {'logits': logits}))
        y, chance = came[index, 0], special.expit(logits[:, 0].astype(np.float64))
        pairs = [(a > b) + 0.5 * (a == b) for a in logits[y, 0] for b in logits[~y, 0]]
        aucs += [np.mean(pairs)] if pairs else []
        losses.append(-np.log(np.where(y, chance, 1 - chance)).mean())
        said, real = said + chance.sum(), real + y.sum()
        for room in set(rows.items[index]):
            response[tick, room] = chance[rows.items[index] == room].mean()
    found = evaluation.measure(parts)
    assert found.metrics['AUC/click'] == pytest.approx(np.mean(aucs))
    assert found.metrics['logloss/click'] == pytest.approx(np.mean(losses))
    assert found.metrics['calibration/click'] == pytest.approx(said / real)
    lags, missed = [], []
    begins, ends = (rows.item_features[f'highlight_{name}'] for name in ('from', 'to'))
    for room in range(rows.num_items):
        for begin, end in zip(begins[room], ends[room], strict=True):
            if begin == 0 or begin < ticks[0] or begin + live.LONGEST > ticks[-1]:
                continue
            before = [t for t in ticks if t <= begin and (t, room + 1) in response]
            when = np.inf
            if before:
                base = response[before[-1], room + 1]
                later = [
                    t for t in ticks if t > begin and response.get((t, room + 1), 0) >= 1.5 * base
                ]
                when = min(later, default=np.inf)
            lags.append(min(when - begin, live.LONGEST))
            missed.append(when > end)
    assert len(lags) > 1 and found.details['highlights'] == len(lags)
    assert found.metrics['lag'] == pytest.approx(np.mean(lags))
    assert found.metrics['missed'] == pytest.approx(np.mean(missed))
    for name, values in found.values.items():
        assert found.metrics[name] == pytest.approx(values.mean(), abs=1e-12)


def test_the_reference_knows_what_the_stream_said_lately(folder):
    p = opened(make(folder))
    rows, said = p.source, p.evaluations['test']()._world.said
    ahead = next(one for period in p.periods[10:] for one in period().before.values())
    logits = ahead.lately()
    recent = (said.times > ahead.tick - 120) & (said.times <= ahead.tick)
    labels, mask = said.labels[recent], said.mask[recent]
    rooms = rows.items[said.visits[recent]]
    for at, room in enumerate(rows.items[ahead.visits]):
        for label in range(2):  # of gifts there may be none
            mean = labels[:, label].sum() / mask[:, label].sum()
            own = rooms == room
            rate = (labels[own, label].sum() + 20 * mean) / (mask[own, label].sum() + 20)
            assert special.expit(logits[at, label]) == pytest.approx(rate, rel=1e-5)
    measured = ahead.references()['room lately'].metrics['AUC/click']
    came = ~np.isnan(rows.features['click_after'][ahead.visits])
    assert measured == pytest.approx(point_metrics.auc(logits[:, 0], came))


@pytest.fixture(scope='module')
def whole(folder):
    experiment = make(folder, stream='sliver')
    return experiment, folder / 'whole', fit(experiment, folder / 'whole')


def test_a_run_is_measured_by_what_it_predicted_on_the_way(whole):
    experiment, folder, summary = whole
    measured = jaxrec.evaluate(folder)
    assert measured.metrics.keys() == experiment.task.metrics().keys()
    assert 0.5 < measured.metrics['AUC/click'] < 1
    p = opened(experiment)
    weights = [one.examples for period in p.periods for one in period().before.values()]
    assert summary['examples'] == sum(weights)
    mean = np.average(measured.values['logloss/click'], weights=weights)
    assert summary['before']['model']['logloss/click'] == pytest.approx(mean)
    (scores,) = jaxrec.load(folder).score([{'user': 1, 'item': 2, 'taste': 0, 'topic': 1}])
    assert scores['like'] < scores['click']  # a share of it


def test_a_stopped_run_is_not_measured_and_goes_on_bit_for_bit(whole, tmp_path):
    experiment, folder, summary = whole
    steps = iter(range(10_000))
    stopped = fit(experiment, tmp_path, stop=lambda: next(steps) == 20)
    assert stopped['stopped'] == 'signal' and stopped['step'] == 21
    with pytest.raises(UserError, match='has not predicted all of its periods'):
        jaxrec.evaluate(tmp_path)
    again = fit(experiment, tmp_path)
    assert {**again, 'workdir': ''} == {**summary, 'workdir': ''}
    assert same(*(load_trained(one, 'last').params for one in (tmp_path, folder)))
    assert jaxrec.evaluate(tmp_path).metrics == jaxrec.evaluate(folder).metrics


def test_damage_is_one_line(whole, tmp_path):
    _, folder, _ = whole
    path = next((folder / 'predicted').iterdir())
    kept = path.read_bytes()
    path.write_bytes(kept[:50])
    with pytest.raises(UserError, match='is damaged') as error:
        jaxrec.evaluate(folder)
    path.write_bytes(kept)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'labels': ()}, 'task.labels'),
        ({'stream': 'slow'}, 'task.stream'),
        ({'fields': (*FIELDS, Field('stay', 'number'))}, "kind='number'"),
        ({'fields': (*FIELDS, Field('like_after'))}, 'says what came of a row'),
        ({'fields': FIELDS[:2]}, "the model wants field 'taste'"),
        ({'fast': 4000}, 'task.fast=4000 must be below'),
        ({'highlights': ('highlight_from',)}, 'two columns'),
        ({'train': {'epochs': 2}}, 'train.epochs=1'),
        ({'model': marm.Config()}, 'sees the past'),
    ],
)
def test_what_check_refuses(folder, changes, words):
    with pytest.raises(UserError, match=words) as error:
        check(make(folder, **changes))
    assert '\n' not in str(error.value)


def test_what_open_refuses(folder, tmp_path):
    with pytest.raises(UserError, match='too few for task.warm_up=200000'):
        opened(make(folder, warm_up=200_000))
    with pytest.raises(UserError, match="no column 'share_after'"):
        opened(make(folder, labels=('click', 'share')))
    rows = opened(make(folder)).source
    late = rows.features['click_after'].copy()
    late[7] = rows.features['stay'][7] + 1
    features = {**rows.features, 'click_after': late}
    dataclasses.replace(rows, features=features).save(tmp_path / 'columns')
    experiment = make(folder)
    experiment.data = Data(log=str(tmp_path))
    with pytest.raises(UserError, match='row 8: click_after is'):
        opened(experiment)


def test_rows_of_a_file(folder, tmp_path):
    """The same visits from CSV: what came and what is known of them."""
    import pyarrow as pa
    import pyarrow.csv

    rows = opened(make(folder)).source
    table = {
        'user': rows.user_ids[rows.users],
        'item': rows.item_ids[rows.items - 1],
        'timestamp': rows.times,
        'taste': rows.user_features['taste'][rows.users],
        'topic': rows.item_features['topic'][rows.items - 1],
        **{n: pa.array(c, from_pandas=True) for n, c in rows.features.items()},
    }
    pa.csv.write_csv(pa.table(table), tmp_path / 'visits.csv')
    experiment = make(folder, highlights=())
    experiment.data = Data(log=str(tmp_path / 'visits.csv'), data_dir=str(tmp_path))
    p, own = opened(experiment), opened(make(folder, highlights=()))
    for ours, theirs in zip(own.periods, p.periods, strict=True):
        ours, theirs = ours().batches, theirs().batches
        assert (ours is None) == (theirs is None)
        if ours is not None:
            for name in ('labels', 'mask', 'weights'):
                np.testing.assert_array_equal(ours(0)[name], theirs(0)[name])
