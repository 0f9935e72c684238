"""The click task on made-up rows: split, training, evaluation, references, and what is refused."""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from jaxrec import problem
from jaxrec.config import Data, Train
from jaxrec.data.fields import Field
from jaxrec.data.rows import Rows
from jaxrec.devices.mesh import BATCH, on_mesh
from jaxrec.errors import UserError
from jaxrec.evaluation import point_metrics
from jaxrec.experiment import Experiment, check
from jaxrec.models import mmoe
from jaxrec.tasks import click

LABELS = ('click', 'like')
FIELDS = (Field('user'), Field('item'), Field('watch', 'set', of='item'), Field('age', 'number'))
N, USERS, ITEMS = 400, 12, 9
FOLDER = ''  # of the rows, see `rows`


@pytest.fixture(autouse=True)
def rows(tmp_path):
    """400 rows of which an item and a user like each other or do not; days 1 to 10, unsorted."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, USERS, N), rng.integers(1, ITEMS + 1, N)
    likes = rng.random((USERS, ITEMS + 1)) < 0.4
    like = likes[users, items].astype(np.float32)
    made = Rows(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        times=np.arange(N),
        user_ids=np.arange(USERS),
        item_ids=np.arange(ITEMS),
        features={'date': (1 + (np.arange(N) // 40 + (np.arange(N) % 40 > 35)) % 10)},
        user_features={
            'watch': rng.integers(0, ITEMS + 1, (USERS, 3)).astype(np.int32),
            'age': rng.normal(size=USERS).astype(np.float32),
        },
        labels={
            'click': np.where(rng.random(N) < 0.1, 1 - like, like).astype(np.float32),
            'like': np.where(rng.random(N) < 0.2, np.nan, like).astype(np.float32),
        },
        name='made',
    )
    made.save(tmp_path / 'columns')
    global FOLDER
    FOLDER = str(tmp_path)
    return made


def make(train=None, model=None, **changes):
    settings = {'labels': LABELS, 'fields': FIELDS, 'valid_from': 7, 'test_from': 9}
    small = {
        'dim': 4,
        'experts': 2,
        'expert_widths': (8,),
        'tower_widths': (),
        'attend': ('watch',),
    }
    experiment = Experiment(
        model=mmoe.Config(**{**small, **(model or {})}),
        data=Data(log=FOLDER),
        train=Train(**{'batch_rows': 32, 'metric': 'GAUC/mean', 'seed': 1, **(train or {})}),
    )
    experiment.task = click.Config(**{**settings, 'batch_rows': 50, **changes})
    return experiment


def opened(experiment):
    check(experiment)
    return experiment.task.open(experiment, say=lambda line: None)


def test_open(rows):
    p = opened(make())
    assert isinstance(p, problem.Problem) and len(p.source) == len(rows)
    assert (p.data_hash, p.data_path) == (rows.content_hash(), FOLDER)
    day = rows.features['date']
    counts = [(day < 7).sum(), ((day >= 7) & (day < 9)).sum(), (day >= 9).sum()]
    assert '{:,} train, {:,} valid, {:,} test'.format(*counts) in p.about
    (period,) = p.periods
    batches = period().batches
    assert batches.examples_per_epoch == counts[0] and batches.rows == 32
    assert [p.evaluations[n]().examples for n in ('valid', 'test')] == counts[1:]
    assert p.sizes['label'] == 2 and p.sizes['feature.watch'] == 3 and p.sizes['feature.age'] == 0
    assert p.evaluations['test']().protocol['days'] == [9, 10]
    batch = batches(0)
    assert batch['features'].keys() == {'user', 'item', 'watch', 'age'}
    assert batch['labels'].shape == batch['mask'].shape == (32, 2)


def test_evaluation_batches(rows):
    p = opened(make())
    evaluation = p.evaluations['test']()
    index = np.flatnonzero(rows.features['date'] >= 9)
    found = list(evaluation.batches())
    places = np.concatenate([places for places, _ in found])
    np.testing.assert_array_equal(places, np.arange(len(index)))
    assert {len(batch['weights']) for _, batch in found} == {50}
    for places, batch in found:
        labels, mask = rows.outcomes(LABELS, index[places])
        np.testing.assert_array_equal(batch['labels'][: len(places)], labels)
        np.testing.assert_array_equal(batch['mask'][: len(places)], mask)
        assert batch['weights'].sum() == len(places)


def evaluate(p, graph, params, name, order=1):
    @jax.jit
    def predict(params, batch):
        model = nnx.merge(graph, params)
        return p.predict(model, p.begin(model, {}), batch, False)

    def placed(batch):
        if not on_mesh():
            return batch
        place = jax.NamedSharding(jax.sharding.get_mesh(), BATCH)
        return jax.device_put(batch, place)

    evaluation = p.evaluations[name]()
    parts = [
        (places, jax.device_get(predict(params, placed(batch))))
        for places, batch in evaluation.batches()
    ]
    return evaluation.measure(parts[::order])


def test_training_beats_the_references(rows):
    experiment = make()
    p = opened(experiment)
    graph, params = nnx.split(experiment.model.make(p.sizes, rngs=nnx.Rngs(0)))
    batches = p.periods[0]().batches

    @jax.jit
    def step(params, batch):
        loss = lambda p: nnx.merge(graph, p).loss(batch, {}, {}, jax.random.key(0))[0]  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), value

    losses = []
    for number in range(40 * batches.steps_per_epoch):
        params, value = step(params, batches(number))
        losses.append(float(value))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    found = evaluate(p, graph, params, 'test')
    assert found.metrics.keys() == experiment.task.metrics().keys()
    references = p.evaluations['test']().references()
    best = max(reference.metrics['AUC/click'] for reference in references.values())
    assert found.metrics['AUC/click'] > best + 0.05
    for mean, metric in (('AUC/mean', 'AUC'), ('GAUC/mean', 'GAUC')):
        each = [found.metrics[f'{metric}/{label}'] for label in LABELS]
        assert found.metrics[mean] == pytest.approx(np.mean(each))
    for name, values in found.values.items():
        mean = np.average(values, weights=found.weights[name])
        assert found.metrics[name] == pytest.approx(mean, abs=1e-12)
    again = evaluate(p, graph, params, 'test', order=-1)  # whichever part comes first
    assert again.metrics == found.metrics


def test_any_mesh(mesh):
    experiment = make()

    def metrics():
        p = opened(experiment)
        graph, params = nnx.split(experiment.model.make(p.sizes, rngs=nnx.Rngs(0)))
        return evaluate(p, graph, params, 'valid').metrics

    alone = metrics()
    mesh(2, 2)
    assert metrics() == pytest.approx(alone, abs=1e-6)


def test_references(rows):
    found = opened(make()).evaluations['test']().references()
    assert found.keys() == {'item rate', 'user rate'}
    day = rows.features['date']
    test = np.flatnonzero(day >= 9)
    for name, owners in (('item rate', rows.items), ('user rate', rows.users)):
        logits = np.zeros((len(test), 2))
        for column, label in enumerate(LABELS):
            known = (day < 7) & ~np.isnan(rows.labels[label])
            mean = rows.labels[label][known].mean(dtype=np.float64)
            for at, row in enumerate(test):
                own = known & (owners == owners[row])
                rate = (rows.labels[label][own].sum() + 20 * mean) / (own.sum() + 20)
                logits[at, column] = np.log(rate / (1 - rate))
        labels, mask = rows.outcomes(LABELS, test)
        wanted = point_metrics.clicks(logits, labels, mask, rows.users[test], LABELS)
        for metric, value in wanted.metrics.items():
            assert found[name].metrics[metric] == pytest.approx(value, abs=1e-9), metric
    assert found['user rate'].metrics['GAUC/click'] == 0.5


def test_metric_without_a_positive(rows):
    rows.labels['like'][rows.features['date'] >= 7] = 0
    rows.save(pathlib.Path(FOLDER) / 'columns')
    with pytest.raises(UserError, match="'GAUC/mean' is undefined on the validation rows"):
        opened(make())
    p = opened(make(gauc=('click',)))
    found = p.evaluations['test']().references()['item rate'].metrics
    assert 'GAUC/mean' in found and 'logloss/like' in found
    assert not {'AUC/mean', 'AUC/like', 'NE/like'} & found.keys()


def test_metrics():
    metrics = make().task.metrics()
    assert metrics['GAUC/click'].higher and metrics['AUC/mean'].higher
    assert not metrics['logloss/like'].higher
    assert make(gauc=('like',)).task.metrics().keys() == metrics.keys()
    p = opened(make(gauc=('like',)))
    found = p.evaluations['valid']().references()['item rate'].metrics
    assert found['GAUC/mean'] == found['GAUC/like'] and found['AUC/mean'] != found['AUC/like']


def test_gains_over_another_report():
    task = make().task
    protocol = {'labels': ['click', 'like'], 'data_split': 'x'}
    values = {'AUC/click': 0.7, 'logloss/like': 0.2, 'GAUC/like': 0.6, 'AUC/mean': 0.65}
    mine = {'protocol': protocol, 'metrics': values}
    base = {
        'protocol': {**protocol, 'labels': ['click']},
        'metrics': {'AUC/click': 0.6, 'GAUC/click': 0.5, 'AUC/mean': 0.6},
    }
    (gain,) = task.gains(mine, base).items()  # no mean over other labels
    assert gain[0] == 'AUC/click' and gain[1]['base'] == 0.6
    assert gain[1]['gain'] == pytest.approx(0.1) and gain[1]['RelaImpr'] == pytest.approx(1)
    same = task.gains(mine, {**mine, 'metrics': {**values, 'GAUC/like': 0.5}})
    assert same.keys() == values.keys() and 'RelaImpr' not in same['GAUC/like']
    with pytest.raises(UserError, match='its protocol is another one'):
        task.gains(mine, {**base, 'protocol': {**protocol, 'data_split': 'y'}})


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'labels': ()}, 'task.labels'),
        ({'labels': ('click', 'click')}, 'task.labels'),
        ({'gauc': ('hate',)}, 'task.gauc'),
        ({'gauc_weight': 'clicks'}, 'task.gauc_weight'),
        ({'valid_from': 9}, 'task.valid_from=9 must be below task.test_from=9'),
        ({'batch_rows': 0}, 'task.batch_rows'),
        ({'fields': ()}, 'task.fields'),
        ({'fields': FIELDS[:2]}, "the model wants field 'watch'"),
        ({'train': {'metric': 'NDCG@10'}}, "train.metric='NDCG@10' is not measured"),
        ({'model': {'query': 'age'}}, "the model wants field 'age'"),
    ],
)
def test_what_check_refuses(changes, words):
    experiment = make(**changes)
    with pytest.raises(UserError) as error:
        check(experiment)
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'labels': ('click', 'hate')}, "no label 'hate'; it has click, like"),
        ({'day': 'age'}, "task.day='age' must be a column of the rows"),
        ({'day': 'week'}, "no column 'week'"),
        ({'position': 'watch'}, "task.position='watch' must be a column of the rows"),
        ({'test_from': 11}, 'no test row: date is 1 to 10'),
        ({'valid_from': 1}, 'no train row'),
    ],
)
def test_what_open_refuses(changes, words):
    experiment = make(**changes)
    check(experiment)
    with pytest.raises(UserError) as error:
        experiment.task.open(experiment)
    assert words in str(error.value) and '\n' not in str(error.value)
