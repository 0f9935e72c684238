"""The command itself, as a user runs it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import runs

from jaxrec import datasets
from jaxrec.data.histories import Histories
from jaxrec.datasets import store

FIELDS = [
    'dataset',
    'users',
    'items',
    'interactions',
    'mean_length',
    'density',
    'tied_timestamps',
    'repeats',
    'data_hash',
    'path',
]


def prepare(*args):
    return runs.inside('prepare', *args)


def test_prints_for_people_and_for_machines(tmp_path):
    log = tmp_path / 'events.csv'
    log.write_text('who,sku,ts\n2,9,5\n1,8,7\n2,7,5\n2,9,6\n')
    args = [f'--log={log}', '--user_col=who', '--item_col=sku', '--time_col=ts']
    args.append(f'--data_dir={tmp_path / "data"}')
    people = prepare(*args)
    assert people.returncode == 0 and people.stderr == ''
    for phrase in ['users         2', 'items         3', 'interactions  4', 'equal times keep']:
        assert phrase in people.stdout
    machines = prepare(*args, '--json')
    assert len(machines.stdout.splitlines()) == 1 and 'already prepared' in machines.stderr
    result = json.loads(machines.stdout)
    assert list(result) == FIELDS
    h = Histories.load(f'{result["path"]}/columns')
    assert result['data_hash'] == h.content_hash() and result['data_hash'] in people.stdout
    assert (result['interactions'], result['repeats'], result['mean_length']) == (4, 1, 2.0)
    assert result['density'] == 4 / 6 and result['tied_timestamps'] == 0.5
    np.testing.assert_array_equal(h.items, [2, 3, 1, 3])


def test_json_stays_alone_on_stdout_while_building(tmp_path):
    done = prepare('--dataset=synthetic:users=20', f'--data_dir={tmp_path}', '--json')
    assert json.loads(done.stdout)['users'] == 20
    assert json.loads(done.stdout)['tied_timestamps'] == 0
    assert 'writing' in done.stderr


def test_data_dir_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    done = prepare('--dataset=synthetic:users=20', '--data_dir=~/kept', '--json')
    assert json.loads(done.stdout)['path'].startswith(str(tmp_path / 'kept'))


@pytest.mark.parametrize(
    ('args', 'phrases'),
    [
        (['--log=nowhere.csv'], ['no such file: nowhere.csv (--log)']),
        (['--dataset=ml-100'], ["unknown data set 'ml-100'; known, nearest first: ml-100k"]),
        (['--dataset=beauty', '--log=x.csv'], ['not both']),
        (['--log=log.csv', '--user_col=item'], ['--user_col and --item_col both name']),
        (['--dataset=beauty', '--min_user=few'], ['--min_user', 'few']),
        (['--log=log.csv'], ["log.csv has no column 'user'", "'who', 'item'", '--user_col=COLUMN']),
        (['--dataset=synthetic', '--data_dir=log.csv/x'], ['cannot write', '--data_dir']),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, args, phrases):
    (tmp_path / 'log.csv').write_text('who,item\n1,2\n')
    monkeypatch.chdir(tmp_path)
    data_dir = [] if any('data_dir' in a for a in args) else ['--data_dir=data']
    done = prepare(*args, *data_dir)
    assert done.stderr.splitlines() == [done.error]
    for phrase in phrases:
        assert phrase in done.error


def test_commands_can_be_imported_together():
    code = (
        'from absl import flags\n'
        'from jaxrec import benchmark, evaluate, prepare, recommend, table, train\n'
        'assert not {"dataset", "workdir", "config", "table"} & set(flags.FLAGS)\n'
        'prepare.define_flags()\n'
        'assert set(prepare.FIELDS) <= set(flags.FLAGS)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_the_data_sets():
    done = runs.process('prepare', '--help')
    for name, (_, _, summary) in datasets.KNOWN.items():
        assert name in done.stdout and summary in done.stdout
    assert '{known}' not in done.stdout


def test_rows_and_graphs_are_prepared_by_the_same_command(tmp_path):
    graph = 'block-model:nodes=60,valid=5,test=5,train=3'
    rows = 'live-rooms:hours=1,rooms=6,users=50'
    for name, phrases in (
        (graph, ['nodes         60', 'homophily']),
        (rows, ['rows', 'mean click']),
    ):
        people = prepare(f'--dataset={name}', f'--data_dir={tmp_path}')
        assert people.returncode == 0, people.stderr
        for phrase in phrases:
            assert phrase in people.stdout
        machines = prepare(f'--dataset={name}', f'--data_dir={tmp_path}', '--json')
        result = json.loads(machines.stdout)
        assert result['dataset'] == name.partition(':')[0] and 'already prepared' in machines.stderr
        kind = store.KINDS['graph' if name == graph else 'rows']
        assert result['data_hash'] == kind.load(f'{result["path"]}/columns').content_hash()
