"""A KuaiFormer with features through train, evaluate and recommend, as a user starts them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from pyarrow import parquet

from jaxrec.data.features import Encoder
from jaxrec.data.history_batches import history_batch
from jaxrec.training.restore import load_trained

EXPERIMENT = """
from jaxrec.config import Data, Eval, Experiment, Optim, Train
from jaxrec.features import Feature
from jaxrec.in_batch import InBatch
from jaxrec.models import kuaiformer

def get_config(arg=''):
    return Experiment(
        model=kuaiformer.Config(
            dim=8, blocks=1, interests=3, max_len=16, compress=(4, 4), newest=8,
            features=(Feature('gap', 'log', size=5, cap=1e6),),
            in_batch=InBatch(logq='streaming', smoothing=0.1, uniform=8),
        ),
        data=Data(
            dataset='synthetic:users=150,items=60,length=8', data_dir={data_dir!r},
            windows='cuts', cuts=2,
        ),
        optim=Optim(learning_rate=1e-2),
        train=Train(batch_rows=16, steps=12, log_every=4),
        eval=Eval(cutoffs=(5, 10), batch_users=64),
    )
"""


def command(name, *flags):
    line = [sys.executable, '-m', f'jaxrec.{name}', *flags, '--json']
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('multi')
    experiment = folder / 'experiment.py'
    experiment.write_text(EXPERIMENT.format(data_dir=str(folder / 'data')))
    command('train', f'--config={experiment}', f'--workdir={folder / "run"}')
    return folder / 'run'


def test_training_logs_accuracy_and_wins(run):
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').open()]
    steps = [line for line in lines if 'loss' in line]
    assert [line['step'] for line in steps] == [4, 8, 12]
    for line in steps:
        assert 0 <= line['accuracy'] <= 1 and 1 / 3 <= line['largest_win'] <= 1


def test_evaluate_reports_the_interests(run):
    result, text = command('evaluate', f'--workdir={run}')
    interests = result['interests']
    for shares in (interests['target_wins'], interests['list_wins']):
        assert len(shares) == 3 and abs(sum(shares) - 1) < 1e-5
    assert -1 <= interests['similarity'] <= 1
    assert 'wins of targets' in text and 'mean cosine' in text


def test_recommend_explains(run, mesh):
    result, text = command('recommend', f'--workdir={run}', '--user=7', '--explain', '--k=8')
    assert 'interest' in text
    mesh(1, 1)
    trained = load_trained(run)
    known, model = trained.histories, nnx.merge(trained.graphdef, trained.params)
    user = known.find_user(7)
    codes = Encoder(known, trained.experiment.model.features, trained.split.train_ends).events
    ends = known.offsets[user : user + 1], known.offsets[user + 1 : user + 2]
    vectors = model.queries(history_batch(known.items, *ends, 16, 16, codes))
    scores = np.asarray(vectors)[0].astype(np.float64) @ np.asarray(model.item_table()).T
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
