"""Rows of one's own: what is read of a file, what is refused, and the commands on it."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import runs

from jaxrec import evaluate
from jaxrec.config import Data, Mesh, Train
from jaxrec.data.fields import Field
from jaxrec.data.rows import Columns
from jaxrec.datasets import rows_file
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment
from jaxrec.models import home, mmoe
from jaxrec.tasks import click

HEAD = 'user,item,timestamp,country,age,seen,tags,click,like'
LINES = [
    'ann,7,30,de,41,3 7 99,red big,1,0',
    'bob,3,10,,,,,0,',
    'ann,3,20,fr,1.5,7,big,0,1',
    'cy,12,20,de,-3,12 12,,1,',
]
COLUMNS = Columns(
    labels=('click', 'like'),
    numbers=('age',),
    categories=('country',),
    sets=('tags',),
    sets_of_items=('seen',),
)


def write(folder, lines=LINES, head=HEAD, name='rows.csv'):
    path = folder / name
    path.write_text('\n'.join([head, *lines]) + '\n')
    return path


def as_parquet(folder):
    """The same rows with lists, nulls and numbers as such."""
    table = {
        'user': ['ann', 'bob', 'ann', 'cy'],
        'item': [7, 3, 3, 12],
        'timestamp': [30, 10, 20, 20],
        'country': pa.array(['de', None, 'fr', 'de']).dictionary_encode(),
        'age': [41.0, np.nan, 1.5, -3.0],
        'seen': [[3, 7, 99], None, [7], [12, 12]],
        'tags': [['red', 'big'], [], ['big'], None],
        'click': [True, False, False, True],
        'like': pa.array([0, None, 1, None], pa.int8()),
    }
    path = folder / 'rows.parquet'
    pa.parquet.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize('kind', ['csv', 'gz', 'parquet', 'no times'])
def test_what_is_read(kind, tmp_path):
    config = Data(log=str(as_parquet(tmp_path) if kind == 'parquet' else write(tmp_path)))
    if kind == 'gz':
        (tmp_path / 'rows.csv.gz').write_bytes(gzip.compress(write(tmp_path).read_bytes()))
        config.log += '.gz'
    if kind == 'no times':
        config.time_col = ''
    rows = rows_file.read(config, COLUMNS)
    order = [0, 1, 2, 3] if kind == 'no times' else [1, 2, 3, 0]
    pick = lambda *values: [values[n] for n in order]  # noqa: E731
    assert rows.user_ids.tolist() == [b'ann', b'bob', b'cy'] and rows.item_ids.tolist() == [
        3,
        7,
        12,
    ]
    assert rows.users.tolist() == pick(0, 1, 0, 2) and rows.items.tolist() == pick(2, 1, 1, 3)
    features = rows.features
    assert features['country'].tolist() == pick(0, -1, 1, 0)
    np.testing.assert_array_equal(features['age'], np.float32(pick(41, np.nan, 1.5, -3)))
    tags = pick([2, 1], [0, 0], [1, 0], [0, 0])
    assert features['tags'].tolist() == tags
    seen = pick([1, 2, 4], [0, 0, 0], [2, 0, 0], [3, 3, 0])  # 99 is no item of a row
    assert features['seen'].tolist() == seen
    np.testing.assert_array_equal(rows.labels['click'], np.float32(pick(1, 0, 0, 1)))
    np.testing.assert_array_equal(rows.labels['like'], np.float32(pick(0, np.nan, 1, np.nan)))
    if kind != 'no times':
        assert rows.times.tolist() == features['timestamp'].tolist() == [10, 20, 20, 30]


@pytest.mark.parametrize(
    'line, head, words',
    [
        ('d,3,4,de,1,,,2,', HEAD, "row 5: 2 in column 'click' is no label"),
        ('d,3,4,de,1,,,yes,', HEAD, "row 5: 'yes' in column 'click'"),
        ('d,3,4,de,1,,,inf,', HEAD, "column 'click'"),
        ('d,3,4,NULL,1,,,1,', HEAD, "'NULL', which stands for a missing one, in column 'country'"),
        ('d,3,4,New York,1,,,1,', HEAD, "row 5 has 2 words in column 'country'"),
        ('d,3,4,de,old,,,1,', HEAD, "'old' in column 'age'"),
        ('d,3,,de,1,,,1,', HEAD, "row 5 has no value in column 'timestamp'"),
        (',3,4,de,1,,,1,', HEAD, "row 5 has no id in column 'user'"),
        ('d,3,4,de,1,,,1,', HEAD.replace('like', 'love'), "no column 'like'"),
        ('d,3,4,de,1,,nan,1,', HEAD, "in column 'tags'"),
        ('d,3,4,de,1,,,1', HEAD, 'rows.csv'),
    ],
)
def test_what_is_refused(line, head, words, tmp_path):
    with pytest.raises(UserError) as error:
        rows_file.read(Data(log=str(write(tmp_path, [*LINES, line], head))), COLUMNS)
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'changes, words', [({'features': 'age'}, '--features'), ({'min_user': 2}, '--min_user')]
)
def test_options_that_say_nothing(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        rows_file.read(Data(log=str(write(tmp_path)), **changes), COLUMNS)


def test_train_and_evaluate_by_command(tmp_path):
    """A file with times that part it; HoME, whose means and variances reach the evaluation."""
    rng = np.random.default_rng(0)
    lines = []
    for time in range(240):
        user, item, country = rng.integers(0, 9), rng.integers(1, 7), 'abc'[rng.integers(0, 3)]
        liked = (user + item) % 2
        known = '' if time % 5 == 0 else str(liked)
        lines.append(f'u{user},{item},{time},{country},{rng.normal():.3f},{item},x,{liked},{known}')
    experiment = Experiment(
        task=click.Config(
            labels=('click', 'like'),
            fields=(
                Field('user'),
                Field('item'),
                Field('country'),
                Field('age', 'number'),
                Field('seen', 'set', of='item'),
            ),
            day='timestamp',
            valid_from=160,
            test_from=200,
            batch_rows=64,
        ),
        model=home.Config(
            dim=4,
            expert_widths=(4,),
            tower_widths=(),
            attend=('seen',),
            groups=(home.Group('a', ('click',)), home.Group('b', ('like',))),
        ),
        data=Data(log=str(write(tmp_path, lines)), data_dir=str(tmp_path / 'data')),
        train=Train(batch_rows=32, epochs=2),
        mesh=Mesh(1, 1),
    )
    config = runs.write(tmp_path / 'experiment.py', experiment)
    folder = tmp_path / 'run'
    trained = runs.inside('train', f'--config={config}', f'--workdir={folder}', '--json')
    assert trained.result['metric'] == 'AUC/mean'
    found = runs.inside('evaluate', f'--workdir={folder}', '--split=valid', '--json')
    assert found.result['metrics']['AUC/mean'] == trained.result['best']
    experts = found.result['details']['experts']
    assert experts.keys() == {'level 1', 'level 2'}
    assert experts['level 2']['experts'].keys() >= {'shared 1', 'a 1', 'b 1', 'click 1', 'like 1'}
    report = folder / 'evaluation_valid.json'
    again = runs.inside(
        'evaluate', f'--workdir={folder}', '--split=valid', f'--base={report}', '--json'
    )
    gains = again.result['details']['gains']
    assert gains['AUC/mean']['gain'] == 0 and gains['AUC/click']['RelaImpr'] == 0
    with pytest.raises(UserError, match='has split=valid, this run test'):
        evaluate.gains(experiment.task, {**again.result, 'split': 'test'}, {'x': again.result})
    refused = runs.inside(
        'train',
        f'--config={config}',
        f'--workdir={tmp_path / "other"}',
        "--config.task.labels=('click','buy')",
    )
    assert 'the model knows the labels click, like' in refused.error


def test_a_label_that_the_file_lacks(tmp_path):
    task = click.Config(labels=('buy',), fields=(Field('user'),), day='timestamp', test_from=2)
    data = Data(log=str(write(tmp_path)), data_dir=str(tmp_path / 'data'))
    experiment = Experiment(task=task, model=mmoe.Config(), data=data)
    with pytest.raises(UserError, match="has no column 'buy'"):
        task.open(experiment, say=lambda line: None)
