"""An exported model gives what the run gives: in a process of its own, without the library."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from pyarrow import parquet
from runs import inside
from test_alone import FEATURES, experiment_of, histories
from test_rows import make_rows

import jaxrec
from jaxrec.config import Data, Train
from jaxrec.data.fields import Field
from jaxrec.devices.mesh import make_mesh
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied
from jaxrec.models import gcn, kuaiformer, mmoe
from jaxrec.serving import export
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.scorer import Scorer
from jaxrec.tasks import click, nodes
from jaxrec.training.loop import fit
from jaxrec.training.restore import Trained, load_trained

FIELDS = (
    Field('user'),
    Field('item'),
    Field('tab'),
    Field('watched', 'set', of='item'),
    Field('past', 'set', of='item'),
    Field('tags', 'set'),
    Field('age', 'number'),
    Field('price', 'quantile', size=3),
)
ELSEWHERE = """
import json, sys
for name in ('jaxrec', 'flax', 'pyarrow', 'optax', 'orbax'):
    sys.modules[name] = None  # importing it now raises ImportError
asked, found = json.load(open(sys.argv[1])), {}
for folder, what in asked.items():
    sys.path.insert(0, folder)
    from model import Model
    model = Model()
    found[folder] = model.score(what) if 'scores' == model.about['kind'] else [
        model.recommend(what, k=7), model.recommend(what[:1], k=100, keep_seen=True)]
    del sys.path[0], sys.modules['model']
json.dump(found, open(sys.argv[2], 'w'))
"""


def clicks(folder):
    fields = {'labels': ('click', 'like'), 'fields': FIELDS, 'day': 'day'}
    rows = make_rows(200)
    rows.features['day'] = (np.arange(200) // 20).astype(np.int32)
    rows.save(folder / 'rows' / 'columns')
    return Experiment(
        task=click.Config(**fields, valid_from=7, test_from=8),
        model=mmoe.Config(dim=4, experts=2, expert_widths=(8,), tower_widths=(), attend=('past',)),
        data=Data(log=str(folder / 'rows')),
        train=Train(batch_rows=32, steps=8),
    )


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Models by kind; 'clicks' has a folder of its own."""
    folder = tmp_path_factory.mktemp('runs')
    histories(True).save(folder / 'data' / 'columns')
    interests = kuaiformer.Config(
        dim=8,
        blocks=1,
        heads=1,
        interests=2,
        max_len=7,
        compress=(2, 2),
        newest=3,
        features=FEATURES[:2],
    )
    lists = experiment_of(folder / 'data')
    several = {'model': interests, 'task.windows': 'cuts', 'task.cuts': 2}
    fit(clicks(folder), folder / 'clicks')
    return {
        'features': untrained(lists, folder),
        'interests': untrained(applied(lists, several), folder),
        'clicks': load_trained(folder / 'clicks'),
    }


def untrained(experiment, folder):
    """A model as it is drawn, with its data."""
    with jax.set_mesh(make_mesh(experiment.mesh)):
        problem = experiment.task.open(experiment, lambda line: None)
        graphdef, state = nnx.split(experiment.model.make(problem.sizes, rngs=nnx.Rngs(3)))
        params, mesh = nnx.to_pure_dict(state), jax.sharding.get_mesh()
    return Trained(experiment, problem, mesh, graphdef, params, {}, 0, folder, 'best')


def test_the_same_in_a_process_without_the_library(runs, tmp_path):
    """The kinds: event and item features, several interests, text ids, scores of all fields."""
    made = histories(True)
    raw = [made.raw_item(n) for n in (3, 9, 4, 9, 28, 1, 2, 11)]
    carts = [raw, [], raw[:1], raw[2:7]]
    asked, wanted = {}, {}
    for name, trained in runs.items():
        folder = tmp_path / name
        check = export.write(trained, folder)['check']
        assert check['difference'] < 1e-5
        if name == 'clicks':
            served = Scorer(trained)
            asked[str(folder)] = export.drawn_rows(served.catalogue, 21, seed=1)
            wanted[str(folder)] = served.score(asked[str(folder)])
            continue
        assert check['ids_equal'] == 1 and check['lists'] == 64
        served = Recommender(trained)
        whole = Recommender(trained, k=100, keep_seen=True).recommend(carts[:1])
        asked[str(folder)] = carts
        wanted[str(folder)] = [served.recommend(carts, k=7), whole]
        table = parquet.read_table(folder / 'items.parquet').to_pylist()
        assert [row['item'] for row in table] == [made.raw_item(n + 1) for n in range(30)]
        vectors = np.load(folder / 'items.npy')[1:31]
        np.testing.assert_array_equal([row['vector'] for row in table], vectors)
    question, answer = tmp_path / 'asked.json', tmp_path / 'found.json'
    question.write_text(json.dumps(asked))
    words = [sys.executable, '-c', ELSEWHERE, str(question), str(answer)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(answer.read_text())
    for folder, mine in wanted.items():
        theirs = found[folder]
        if pathlib.Path(folder).name == 'clicks':
            for a, b in zip(mine, theirs, strict=True):
                assert list(a) == list(b) == ['click', 'like']
                np.testing.assert_allclose(list(a.values()), list(b.values()), atol=1e-6)
            continue
        for lists, others in zip(mine, theirs, strict=True):
            for a, b in zip(lists, others, strict=True):
                assert [(r['item'], r['title']) for r in a] == [(r['item'], r['title']) for r in b]
                scores = [[r['score'] for r in rows] for rows in (a, b)]
                np.testing.assert_allclose(*scores, atol=1e-5)


def test_what_is_told_of_the_model(runs, tmp_path):
    run, folder = runs['clicks'].workdir, tmp_path / 'out'
    inside('evaluate', f'--workdir={run}')
    assert inside('export', f'--workdir={run}', f'--output={folder}').returncode == 0
    about = json.loads((folder / 'model.json').read_text())
    measured = jaxrec.evaluate(run).metrics
    assert about['evaluations']['test']['metrics'] == measured
    assert about['valid'].keys() >= {'AUC/click', 'GAUC/like'}
    assert about['data_hash'] == json.loads((run / 'run.json').read_text())['data_hash']
    assert about['signature']['inputs']['past'] == {'dtype': 'int32', 'shape': ['batch', 4]}
    assert about['signature']['outputs'] == {'logits': {'dtype': 'float32', 'shape': ['batch', 2]}}
    assert about['signature']['platforms'] == ['cpu', 'cuda', 'rocm', 'tpu']
    assert {'jax', 'numpy', 'jaxrec'} <= about['versions'].keys()


def test_a_folder_appears_whole_or_not_at_all(runs, tmp_path, monkeypatch):
    run, folder = runs['clicks'].workdir, tmp_path / 'out'
    folder.mkdir()
    (folder / 'thesis.tex').write_text('precious')
    words = ('export', f'--workdir={run}', f'--output={folder}')
    assert 'holds something else than an exported model' in inside(*words).error
    (folder / 'thesis.tex').unlink()
    assert inside(*words).returncode == 0
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with monkeypatch.context() as broken:  # a function that gives other scores is not left behind
        broken.setattr(export._Scores, 'save', spoilt(export._Scores.save))
        assert 'gives other scores than the model' in inside(*words).error
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    (folder / 'left over').write_text('')
    assert inside(*words).returncode == 0 and not (folder / 'left over').exists()
    with monkeypatch.context() as bare:
        bare.setattr(export.importlib.util, 'find_spec', lambda name: None)
        assert "pip install 'jaxrec[export]'" in inside(*words).error
    (tmp_path / 'file').write_text('')
    assert 'is a file' in inside(*words[:2], f'--output={tmp_path / "file"}').error
    assert '--output=FOLDER' in inside(*words[:2]).error
    assert 'holds no run' in inside('export', f'--workdir={tmp_path}', words[2]).error


def test_an_index_of_the_items_finds_most_of_them(runs, tmp_path):
    """Of several interests; where faiss is missing one line says so."""
    trained = runs['interests']
    if importlib.util.find_spec('faiss') is None:
        with pytest.raises(UserError, match=r"pip install 'jaxrec\[ann\]'"):
            export.write(trained, tmp_path / 'out', index=True)
        pytest.skip('faiss is not installed')
    about = export.write(trained, tmp_path / 'out', index=True)
    assert about['ann']['recall@10'] > 0.99 and (tmp_path / 'out' / 'items.faiss').exists()
    with pytest.raises(UserError, match='this one scores rows'):
        export.write(runs['clicks'], tmp_path / 'other', index=True)
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def spoilt(save):
    def saved(self, folder, arrays):
        save(self, folder, {name: value + 1 for name, value in arrays.items()})

    return saved


def test_a_model_of_one_graph_has_nothing_to_export(tmp_path):
    """Classes of nodes belong to the graph that was learnt: there is no new input."""
    experiment = Experiment(
        task=nodes.Config(),
        model=gcn.Config(hidden=4),
        data=Data(dataset='block-model:nodes=60,valid=10,test=10', data_dir=str(tmp_path / 'data')),
        train=Train(batch_rows=32, steps=2),
    )
    fit(experiment, tmp_path / 'run')
    words = (f'--workdir={tmp_path / "run"}', f'--output={tmp_path / "out"}')
    assert 'neither lists nor scores' in inside('export', *words).error
    assert not (tmp_path / 'out').exists()
