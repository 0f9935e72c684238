"""A KuaiFormer with features through train, evaluate and recommend, as a user starts them."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from pyarrow import parquet
from runs import inside, lines_of, small
from test_experiments import FILES, load

from jaxrec.config import Feature
from jaxrec.data.features import Encoder
from jaxrec.data.history_batches import history_batch
from jaxrec.models import kuaiformer
from jaxrec.objectives.in_batch import InBatch
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

MODEL = kuaiformer.Config(
    dim=8,
    blocks=1,
    interests=3,
    max_len=16,
    compress=(4, 4),
    newest=8,
    features=(Feature('gap', 'log', size=5, cap=1e6),),
    in_batch=InBatch(logq='streaming', smoothing=0.1, uniform=8),
)


def command(name, *flags):
    done = inside(name, *flags, '--json')
    return done.result, done.stderr


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('multi')
    changes = {
        'task.windows': 'cuts',
        'task.cuts': 2,
        'data.dataset': 'synthetic:users=150,items=60,length=8',
        'optim.ema': 0.0,
        'train.batch_rows': 16,
        'train.steps': 12,
        'train.log_every': 4,
        'train.eval_every': 9.0,
    }
    fit(dataclasses.replace(small(folder, **changes), model=MODEL), folder / 'run')
    return folder / 'run'


def test_training_logs_accuracy_and_wins(run):
    steps = [line for line in lines_of(run) if 'loss' in line]
    assert [line['step'] for line in steps] == [4, 8, 12]
    for line in steps:
        assert 0 <= line['accuracy'] <= 1 and 1 / 3 <= line['largest_win'] <= 1


def test_evaluate_reports_the_interests(run):
    result, text = command('evaluate', f'--workdir={run}')
    interests = result['details']['interests']
    for shares in (interests['target_wins'], interests['list_wins']):
        assert len(shares) == 3 and abs(sum(shares) - 1) < 1e-5
    assert -1 <= interests['similarity'] <= 1
    assert 'interests target wins: ' in text and 'interests similarity: ' in text


def test_recommend_explains(run):
    result, text = command('recommend', f'--workdir={run}', '--user=7', '--explain', '--k=8')
    assert 'interest' in text
    trained = load_trained(run)
    known, model = trained.problem.source, nnx.merge(trained.graphdef, trained.params)
    user = known.find_user(7)
    train_ends = trained.problem.split.train_ends
    codes = Encoder(known, trained.experiment.model.features, train_ends).events
    ends = known.offsets[user : user + 1], known.offsets[user + 1 : user + 2]
    with jax.set_mesh(trained.mesh):
        catalogue = model.catalogue({})
        vectors = model.queries(history_batch(known.items, *ends, 16, 16, codes), catalogue)
    items = np.asarray(catalogue['items'])
    scores = np.asarray(vectors)[0].astype(np.float64) @ items.T
    for row in result['items']:
        item = known.find_item(row['item'])
        assert item not in known.history(user)
        assert row['interest'] == scores[:, item].argmax() + 1
        np.testing.assert_allclose(row['score'], scores[:, item].max(), rtol=1e-4)
    listed = [row['score'] for row in result['items']]
    left = np.setdiff1d(np.arange(1, known.num_items + 1), known.history(user))
    np.testing.assert_allclose(listed, np.sort(scores.max(0)[left])[::-1][:8], rtol=1e-4)

    history = ','.join(str(known.raw_item(item)) for item in known.history(user))
    alone, _ = command('recommend', f'--workdir={run}', f'--history={history}', '--k=8')
    assert 'interest' not in alone['items'][0]
    assert [row['score'] for row in alone['items']] != listed  # the times are not known then


def test_bulk_lists_explain_too(run, tmp_path):
    users = tmp_path / 'users.txt'
    users.write_text('7\n3\n')
    output = tmp_path / 'lists.parquet'
    flags = (f'--workdir={run}', '--explain', '--k=8')
    command('recommend', *flags, f'--users={users}', f'--output={output}')
    single, _ = command('recommend', *flags, '--user=7')
    rows = [row for row in parquet.read_table(output).to_pylist() if row['user'] == 7]
    assert [(r['item'], r['interest']) for r in rows] == [
        (r['item'], r['interest']) for r in single['items']
    ]


@pytest.mark.slow
def test_four_interests_can_what_one_cannot(tmp_path):
    """Where every user has four tastes; after 10 epochs."""
    found = {}
    for k in (1, 4):
        experiment = load(FILES[0].with_stem('kuaiformer_interests')).get_config(f'4,{k},16')
        experiment.data.data_dir = str(tmp_path)
        experiment.train.epochs = 10
        fit(experiment, tmp_path / str(k))
        found[k] = command('evaluate', f'--workdir={tmp_path / str(k)}')[0]['metrics']['HR@10']
    assert found[4] > 2 * found[1] and found[4] > 0.1, found
