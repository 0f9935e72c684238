"""A work directory alone serves lists: without data, log and cache, and wherever it is."""

import dataclasses
import errno
import json
import shutil

import numpy as np
import pytest
from pyarrow import parquet
from runs import inside

import jaxrec
from jaxrec.config import Data, Feature, Optim, Train
from jaxrec.data.fields import Field
from jaxrec.data.histories import Histories
from jaxrec.data.rows import Rows
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied
from jaxrec.models import mmoe, sasrec
from jaxrec.objectives.in_batch import InBatch
from jaxrec.tasks import click, next_item
from jaxrec.training.loop import fit, fit_together
from jaxrec.training.parallel_runs import expand

ITEMS = 30
FEATURES = (
    Feature('price', 'quantile', size=4),
    Feature('tags', 'set', size=3),
    Feature('play', 'quantile', size=3),
    Feature('gap', 'log', size=4, cap=100.0),
)
STREAM = {
    'model.loss': 'in_batch',
    'model.in_batch': InBatch(),
    'task.windows': 'cuts',
    'task.periods': 3,
}


def histories(text):
    """50 users of 8 events each, with titles and features of events and items."""
    rng = np.random.default_rng(0)
    ids = np.arange(ITEMS) * 3 + 5
    if text:
        ids = np.sort(np.char.encode([f'{i}, "é" [{i} ' for i in ids], 'utf-8'))
    return Histories(
        items=rng.integers(1, ITEMS + 1, 400).astype(np.int32),
        offsets=np.arange(0, 401, 8),
        user_ids=np.arange(50) + 100,
        item_ids=ids,
        times=np.tile(np.arange(8) * 7, 50) + np.repeat(np.arange(50), 8),
        features={'play': rng.random(400).astype(np.float32)},
        item_features={
            'price': np.where(rng.random(ITEMS) < 0.2, np.nan, rng.random(ITEMS)),
            'tags': rng.integers(0, 5, (ITEMS, 3)).astype(np.int32),
        },
        titles=np.char.encode([f'Title {i} é' for i in range(ITEMS)], 'utf-8'),
    )


def experiment_of(folder, **changes):
    """One that reads the prepared data set in `folder`."""
    experiment = Experiment(
        model=sasrec.Config(dim=8, blocks=1, max_len=6, features=FEATURES),
        task=next_item.Config(cutoffs=(5, 10)),
        data=Data(log=str(folder)),
        optim=Optim(learning_rate=1e-2),
        train=Train(batch_rows=8, steps=4, seed=1),
    )
    return applied(experiment, changes)


def lists_of(run, raw):
    """Everything that a run gives without users: from Python, on the command line, in bulk."""
    file = run.parent / 'asked.json'
    file.write_text(json.dumps([[r] for r in raw] + [raw, []]))
    line = inside('recommend', f'--workdir={run}', f'--history={json.dumps(raw)}', '--json').result
    output = run.parent / 'lists.parquet'
    done = inside(
        'recommend', f'--workdir={run}', f'--history_file={file}', f'--output={output}', '--json'
    )
    assert done.result['histories'] == len(raw) + 2
    recommender = jaxrec.load(run, k=7)
    lists = recommender.recommend([raw, [], *([r] for r in raw)])
    return lists, line['items'], parquet.read_table(output).to_pylist()


def alone(run, elsewhere, *gone):
    """The run's folder at another place, without what else there was."""
    moved = elsewhere / 'another name'
    shutil.copytree(run, moved)
    for path in (run, *gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return moved


@pytest.fixture(scope='module', params=['text', 'integers'])
def kept(request, tmp_path_factory):
    """(run, its data, raw ids to ask for) of a run with titles and features."""
    folder = tmp_path_factory.mktemp('run')
    made = histories(request.param == 'text')
    made.save(folder / 'data' / 'columns')
    fit(experiment_of(folder / 'data'), folder / 'run')
    return folder / 'run', folder / 'data', [made.raw_item(n) for n in (3, 9, 4)]


def test_the_same_lists_through_the_data_and_from_the_run_alone(kept, tmp_path):
    """A run of before, without a catalogue, reads the data: the reference."""
    run, data, raw = kept
    before = tmp_path / 'before'
    shutil.copytree(run, before)
    shutil.rmtree(before / 'catalogue')
    wanted = lists_of(before, raw)
    assert wanted[0][0][0]['title'].startswith('Title ')
    copy, copied = tmp_path / 'copy', tmp_path / 'data'
    shutil.copytree(run, copy)
    shutil.copytree(data, copied)
    shutil.rmtree(data)  # what config.json and run.json name
    try:
        with pytest.raises(UserError, match='not here now; its source: '):
            jaxrec.load(before)
        moved = alone(copy, tmp_path)
        assert lists_of(moved, raw) == wanted
        for command, flag in (('recommend', '--user=103'), ('evaluate', '--split=test')):
            error = inside(command, f'--workdir={moved}', flag).error
            assert str(data) in error and '--history, --history_file) need no data' in error
    finally:
        shutil.copytree(copied, data)
    with pytest.raises(UserError, match='is not in the data'):
        jaxrec.load(moved).recommend([['nothing']])


def test_a_run_of_before_gets_its_catalogue_when_it_goes_on(kept, tmp_path, monkeypatch):
    run, data, raw = kept
    older = tmp_path / 'older'
    shutil.copytree(run, older)
    shutil.rmtree(older / 'catalogue')
    (older / 'catalogue.partial7').mkdir()  # of a run that was killed

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as disk:
        disk.setattr(np, 'save', full)
        with pytest.raises(UserError, match='catalogue: No space left on device'):
            fit(experiment_of(data), older)
    fit(experiment_of(data), older)
    assert sorted(p.name for p in older.glob('catalogue*')) == ['catalogue']
    assert lists_of(older, raw) == lists_of(run, raw)


def test_a_log_that_has_grown_changes_no_list(tmp_path):
    log, cache = tmp_path / 'log.csv', tmp_path / 'cache'
    rng = np.random.default_rng(1)
    rows = [f'u{n // 8},i{i:02},{n}' for n, i in enumerate(rng.integers(10, 40, 240))]
    log.write_text('\n'.join(['user,item,timestamp', *rows]) + '\n')
    data = {'data.log': str(log), 'data.data_dir': str(cache), 'model.features': ()}
    fit(experiment_of('', **data), tmp_path / 'run')
    wanted = lists_of(tmp_path / 'run', ['i12', 'i20'])
    log.write_text('\n'.join(['user,item,timestamp', 'u1,a new one,3', *rows]) + '\n')
    assert lists_of(tmp_path / 'run', ['i12', 'i20']) == wanted
    shutil.rmtree(cache)
    experiment_of('', **data).task.open(experiment_of('', **data), lambda line: None)
    assert lists_of(tmp_path / 'run', ['i12', 'i20']) == wanted
    error = inside('evaluate', f'--workdir={tmp_path / "run"}').error
    assert 'the data set has changed since' in error and '--history' in error


@pytest.mark.slow
def test_runs_of_one_program_and_streams_stand_alone_too(tmp_path):
    histories(True).save(tmp_path / 'data' / 'columns')
    features = tuple(f for f in FEATURES if f.kind != 'quantile')
    experiment = experiment_of(tmp_path / 'data', **{'model.features': features})
    fit_together(expand(experiment, ['0', '1'], []), tmp_path / 'seeds')
    fit(applied(experiment, STREAM), tmp_path / 'stream')
    raw = [histories(True).raw_item(n) for n in (1, 2)]
    wanted = [jaxrec.load(tmp_path / n).recommend([raw]) for n in ('seeds/seed1', 'stream')]
    error = inside('evaluate', f'--workdir={tmp_path / "seeds"}').error
    assert 'the folders of 2 (seed0, seed1): give one of them' in error
    shutil.rmtree(tmp_path / 'data')
    for name, lists in zip(('seeds/seed1', 'stream'), wanted, strict=True):
        moved = alone(tmp_path / name, tmp_path / f'of {name}')
        assert jaxrec.load(moved).recommend([raw]) == lists


def test_damaged_bytes_of_a_catalogue_are_one_line_or_change_nothing(kept, tmp_path):
    run, data, raw = kept
    wanted = jaxrec.load(run).recommend([raw])
    rng, refused = np.random.default_rng(0), 0
    whole = {p: p.read_bytes() for p in sorted((run / 'catalogue').iterdir())}
    task = experiment_of(data).task
    try:
        for turn in range(150):
            path = list(whole)[turn % len(whole)]
            content = bytearray(whole[path])
            if turn % 3:
                content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            else:
                content = content[: rng.integers(len(content))]
            path.write_bytes(content)
            try:
                found = task.open_catalogue(run / 'catalogue').catalogue
            except UserError as e:
                refused += 1
                assert 'catalogue is damaged (' in str(e)
            else:  # of meta.json, what is told
                assert found.columns().keys() == {p.stem for p in whole} - {'meta'}
                for name, column in found.columns().items():
                    np.testing.assert_array_equal(column, np.load(run / f'catalogue/{name}.npy'))
            path.write_bytes(whole[path])
        assert refused > 100
        path.write_bytes(b'{}')
        assert (
            'start its training again'
            in inside('recommend', f'--workdir={run}', '--history=x').error
        )
        path.unlink()
        assert 'is missing' in inside('recommend', f'--workdir={run}', '--history=x').error
        fit(experiment_of(data), run)  # makes it anew
    finally:
        for path, content in whole.items():
            path.write_bytes(content)
    assert jaxrec.load(run).recommend([raw]) == wanted


def test_the_catalogue_of_another_run_is_refused(kept, tmp_path):
    run, _, _ = kept
    copy = tmp_path / 'copy'
    shutil.copytree(run, copy)
    other = histories(False)
    other.items[0] = 1 + other.items[0] % ITEMS
    other.save(tmp_path / 'other' / 'columns')
    experiment = experiment_of(tmp_path / 'other')
    shutil.rmtree(copy / 'catalogue')
    experiment.task.open(experiment).catalogue.save(copy / 'catalogue')
    with pytest.raises(UserError, match='belongs to a run on other data'):
        jaxrec.load(copy)


def test_a_catalogue_holds_no_event(kept):
    run, _, _ = kept
    there = {p.name for p in (run / 'catalogue').iterdir()}
    assert there == {
        'item_ids.npy',
        'num_users.npy',
        'titles.npy',
        'code.price.npy',
        'code.tags.npy',
        'item.price.npy',
        'item.tags.npy',
        'meta.json',
    }


def test_tasks_that_serve_no_list_say_what_needs_their_data(tmp_path):
    rng = np.random.default_rng(0)
    Rows(
        users=rng.integers(0, 9, 200).astype(np.int32),
        items=rng.integers(1, 8, 200).astype(np.int32),
        times=np.arange(200),
        user_ids=np.arange(9),
        item_ids=np.arange(7),
        features={'date': (1 + np.arange(200) // 20).astype(np.int32)},
        labels={'click': rng.integers(0, 2, 200).astype(np.float32)},
    ).save(tmp_path / 'rows' / 'columns')
    clicks = Experiment(
        task=click.Config(fields=(Field('user'), Field('item')), valid_from=7, test_from=9),
        model=mmoe.Config(dim=4, experts=2, expert_widths=(8,), tower_widths=()),
        data=Data(log=str(tmp_path / 'rows')),
        train=Train(batch_rows=64, steps=2),
    )
    fit(clicks, tmp_path / 'click')
    # going on from a run needs no old data where they are the same, and no other will do
    same = applied(clicks, {'train.start_from': str(tmp_path / 'click')})
    fit(same, tmp_path / 'same')
    rows = Rows.load(tmp_path / 'rows' / 'columns')
    fewer = dataclasses.replace(rows, users=np.maximum(np.array(rows.users), 1))
    fewer.save(tmp_path / 'fewer' / 'columns')
    other = applied(same, {'data.log': str(tmp_path / 'fewer')})
    with pytest.raises(UserError, match='has learnt other data'):
        fit(other, tmp_path / 'other')
    shutil.rmtree(tmp_path / 'rows')
    error = inside('evaluate', f'--workdir={tmp_path / "click"}').error
    assert str(tmp_path / 'rows') in error and 'scores of new rows' in error
    # the folder alone scores rows
    (chances,) = jaxrec.load(tmp_path / 'click').score([{'user': 3, 'item': None}])
    assert 0 < chances['click'] < 1
    error = inside('recommend', f'--workdir={tmp_path / "click"}', '--history=1').error
    assert 'holds no recommender' in error
