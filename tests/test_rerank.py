"""Two stages: lists of a retriever in the order of a click model trained on the same ids."""

import json

import numpy as np
import pytest
import runs

from jaxrec import api
from jaxrec.config import Data, Train
from jaxrec.data.fields import Field
from jaxrec.data.rows import Rows
from jaxrec.experiment import Experiment
from jaxrec.models import mmoe
from jaxrec.tasks import click
from jaxrec.training.restore import load_trained


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A retriever and a ranker whose users and items are the retriever's."""
    folder = tmp_path_factory.mktemp('stages')
    api.fit(runs.small(folder, **{'train.steps': 2}), folder / 'retriever')
    known = load_trained(folder / 'retriever').problem.source
    rng = np.random.default_rng(0)
    made = Rows(
        users=rng.integers(0, known.num_users, 400).astype(np.int32),
        items=rng.integers(1, known.num_items + 1, 400).astype(np.int32),
        times=np.arange(400),
        user_ids=known.user_ids,
        item_ids=known.item_ids,
        features={
            'date': np.arange(400).astype(np.int32) // 40,
            'hour': rng.integers(0, 24, 400).astype(np.int32),
        },
        labels={name: rng.integers(0, 2, 400).astype(np.float32) for name in ('click', 'like')},
        name='made',
    )
    made.save(folder / 'rows' / 'columns')
    ranker = Experiment(
        task=click.Config(
            labels=('click', 'like'),
            fields=(Field('user'), Field('item'), Field('hour')),
            valid_from=6,
            test_from=8,
        ),
        model=mmoe.Config(dim=4, experts=2, expert_widths=(8,), tower_widths=()),
        data=Data(log=str(folder / 'rows')),
        train=Train(batch_rows=64, steps=8, metric='AUC/mean'),
    )
    api.fit(ranker, folder / 'ranker')
    return folder


def asked(folders, *words):
    return runs.inside('recommend', f'--workdir={folders}/retriever', '--json', *words)


@pytest.mark.parametrize('combined', ['', 'sum', 'product'])
@pytest.mark.parametrize('weights', [{}, {'click': 1.0, 'like': -2.5}])
def test_order_of_the_ranker(folders, weights, combined):
    user = load_trained(folders / 'retriever').problem.source.raw_user(3)
    plain = asked(folders, f'--user={user}', '--k=30').result['items']
    given = ','.join(f'{label}={weight}' for label, weight in weights.items())
    words = [f'--user={user}', f'--rerank={folders}/ranker', '--context={"hour": 20}']
    words += [f'--weights={given}'] if given else []
    words += [f'--combined={combined}'] if combined else []
    found = asked(folders, *words, '--candidates=30', '--k=7').result
    weights = weights or {'click': 1, 'like': 1}
    assert found['weights'] == weights and len(found['items']) == 7
    scorer, wanted = api.load(folders / 'ranker'), []
    for one in plain:
        (chances,) = scorer.score([{'user': user, 'item': one['item'], 'hour': 20}])
        score = sum(weights[name] * chances[name] for name in weights)
        if combined == 'product':
            score = np.prod([(1 + chances[name]) ** weights[name] for name in weights])
        wanted.append((score, one))
    wanted.sort(key=lambda pair: -pair[0])
    for one, (score, before) in zip(found['items'], wanted, strict=False):
        assert one['score'] == pytest.approx(score, abs=1e-6)
        assert (one['item'], one['retrieved']) == (before['item'], before['score'])
    assert [one['item'] for one in found['items']] != [one['item'] for one in plain[:7]]


def test_of_a_history_the_user_is_new(folders):
    item = load_trained(folders / 'retriever').problem.source.item_ids[0]
    rerank = f'--rerank={folders}/ranker'
    found = asked(folders, f'--history={item}', rerank, '--context={"hour": null}').result
    scorer = api.load(folders / 'ranker')
    for one in found['items']:
        (chances,) = scorer.score([{'user': None, 'item': one['item'], 'hour': None}])
        assert one['labels'] == pytest.approx(chances, abs=1e-6)


def test_refusals(folders):
    rerank = f'--rerank={folders}/ranker'
    hour = '--context=' + json.dumps({'hour': 1})
    for words, message in {
        (rerank,): """give --context='{"hour": null}' with""",
        (rerank, '--context={'): 'no JSON',
        (rerank, '--context={"user": 1}'): 'without user and item',
        (rerank, hour, '--weights=buy=1'): "no label 'buy'; it has click, like",
        (rerank, hour, '--weights=click'): 'write LABEL=NUMBER',
        (rerank, hour, '--k=200'): '--candidates=100 must be at least --k=200',
        (f'--rerank={folders}/retriever', hour): 'holds no model that scores rows',
        (hour,): '--context goes with --rerank',
        ('--combined=product',): '--combined goes with --rerank',
    }.items():
        assert message in asked(folders, '--user=1', *words).error
    words = ('--users=all', f'--output={folders}/x.csv', rerank)
    assert '--rerank is for one list' in asked(folders, *words).error
