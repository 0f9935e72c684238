"""docs/adding.md does what it says: its files are all that a new model, and a new task, need."""

import pathlib
import re
import runpy
import sys

import jax
import numpy as np
import pytest

import jaxrec.models
import jaxrec.tasks
from jaxrec import evaluate
from jaxrec.config import Data
from jaxrec.experiment import applied
from jaxrec.serving.recommender import Recommender
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

DOCS = pathlib.Path(__file__).parent.parent / 'docs' / 'adding.md'
FILES = dict(re.findall(r'```python\n# (\S+)\n(.*?)```', DOCS.read_text(), re.DOTALL))
ADDED = ('jaxrec.models.gru', 'jaxrec.models.mean_items', 'jaxrec.tasks.age')


@pytest.fixture(scope='module', autouse=True)
def folder(tmp_path_factory):
    """Lays the files of the page into folders that continue those of the package."""
    folder = tmp_path_factory.mktemp('adding')
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    rooms = {jaxrec.models: 'models', jaxrec.tasks: 'tasks'}
    for room, name in rooms.items():
        room.__path__.append(str(folder / 'jaxrec' / name))
    yield folder
    for room, name in rooms.items():
        room.__path__.remove(str(folder / 'jaxrec' / name))
    for name in ADDED:
        sys.modules.pop(name, None)


def test_the_page_has_the_files():
    assert set(FILES) == {
        'jaxrec/models/gru.py',
        'experiments/gru_ml100k.py',
        'tests/test_gru.py',
        'jaxrec/tasks/age.py',
        'jaxrec/models/mean_items.py',
        'experiments/age_ml100k.py',
    }


def experiment(folder, name, tmp_path, **changes):
    made = runpy.run_path(str(folder / 'experiments' / name))['get_config']()
    data = Data(dataset='synthetic:users=200,items=40,length=8', data_dir=str(tmp_path / 'data'))
    small = {'data': data, 'train.epochs': 2, 'train.batch_rows': 16, 'train.patience': 0}
    for field, value in {**small, **changes}.items():
        if field == 'data':
            made.data = value
        else:
            made = applied(made, {field: value})
    return made


def test_its_test_of_the_model_passes(folder, mesh):
    runpy.run_path(str(folder / 'tests' / 'test_gru.py'))['test_two_users_of_a_row'](mesh)


def test_a_model_trains_resumes_is_measured_and_serves(folder, tmp_path):
    small = {'model.dim': 8, 'model.max_len': 8}
    whole = experiment(folder, 'gru_ml100k.py', tmp_path, **small)
    found = fit(whole, tmp_path / 'whole')
    assert found['stopped'] == 'finished' and found['best'] > 0
    half = applied(whole, {'train.steps': found['step'] // 2})
    fit(half, tmp_path / 'parts')
    fit(whole, tmp_path / 'parts')
    first, second = (load_trained(tmp_path / name, 'last') for name in ('whole', 'parts'))
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert 'HR@10' in evaluate(tmp_path / 'whole').metrics
    (listed,) = Recommender(first, 3).recommend([[1, 2, 3]])
    assert len(listed) == 3


def test_a_task_trains_and_is_measured(folder, tmp_path):
    ages = tmp_path / 'u.user'
    ages.write_text('\n'.join(f'{n}|{20 + n % 40}|M|writer|12345' for n in range(1, 201)))
    changes = {'task.users': str(ages), 'model.max_len': 8}
    made = experiment(folder, 'age_ml100k.py', tmp_path, **changes)
    found = fit(made, tmp_path / 'run')
    assert found['metric'] == 'accuracy' and 0 <= found['best'] <= 1
    measured = evaluate(tmp_path / 'run')
    assert measured.metrics.keys() == {'accuracy', 'log_loss'}
    for name, value in measured.metrics.items():
        assert value == pytest.approx(np.average(measured.values[name]))
    trained = load_trained(tmp_path / 'run')
    _, _, references = evaluate.evaluate(trained, 'valid')
    assert 'rate' in references
