"""Beginning with another run's parameters: by name, what is taken, new, left, and refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from runs import inside

from jaxrec.config import Data, Mesh, Optim, Train
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, check
from jaxrec.models import sasrec
from jaxrec.objectives.contrast import Contrast
from jaxrec.objectives.queue import BLOCK
from jaxrec.objectives.seq2seq import Seq2Seq
from jaxrec.tasks import next_item
from jaxrec.training.checkpoint import Checkpoints, by_name
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained
from jaxrec.training.state import Program
from jaxrec.training.warm_start import state_from

MOCO = Contrast(weight=0.1, head=True, momentum=0.9, queue=BLOCK)


@pytest.fixture(autouse=True)
def meshes():
    before = jax.sharding.get_mesh()
    yield
    jax.set_mesh(before)


def write_log(path, items):
    drawn = np.random.default_rng(0).permutation(np.resize(items, 360))
    lines = [f'{n // 6},{item},{n}' for n, item in enumerate(drawn)]
    path.write_text('user,item,timestamp\n' + '\n'.join(lines) + '\n')
    return path


def experiment_of(log, model=None, optim=None, **train):
    return Experiment(
        model=model or sasrec.Config(dim=8, blocks=1, max_len=6),
        task=next_item.Config(cutoffs=(5, 10)),
        data=Data(log=str(log), data_dir=str(log.parent / 'd')),
        optim=optim or Optim(),
        train=Train(**{'batch_rows': 8, 'epochs': 2, 'seed': 3, **train}),
        mesh=Mesh(1, 1),
    )


@pytest.fixture(scope='module')
def before(tmp_path_factory):
    """(folder, log, parameters of the best checkpoint) of a run whose last one differs."""
    log = write_log(tmp_path_factory.mktemp('run') / 'events.csv', range(10, 60))
    moco = sasrec.Config(dim=8, blocks=1, max_len=6, contrast=(MOCO,))
    experiment = experiment_of(log, moco, Optim(ema=0.9), steps=4, eval_every=0.2)
    folder = log.parent / 'run'
    fit(experiment, folder)
    checkpoints = Checkpoints(folder)
    marked = jax.tree.map(lambda x: jax.device_get(x) + 1, load_trained(folder).params)
    step, run = checkpoints.best_step(), json.loads((folder / 'run.json').read_text())['id']
    shutil.rmtree(folder / 'checkpoints/best')  # so that the best is told from the last
    checkpoints.close()
    checkpoints = Checkpoints(folder)
    checkpoints.save_best(step, marked, {'run': run})
    checkpoints.close()
    return folder, log, by_name(jax.device_get(load_trained(folder).params))


def begun(experiment, folder):
    """The train state before the first step, by name."""
    fit(applied(experiment, {'train.steps': 1, 'optim.learning_rate': 1e-30}), folder)
    checkpoints = Checkpoints(folder)
    tree = checkpoints._series['last'].restore(1).tree
    checkpoints.close()
    return by_name(jax.device_get(tree))


def test_parameters_of_one_name_are_taken_and_the_rest_is_new(before, tmp_path, capsys):
    """A model with other heads; averages and queue's encoder begin with what was taken."""
    folder, log, there = before
    model = sasrec.Config(dim=8, blocks=1, max_len=6, loss='bce', seq2seq=Seq2Seq(0.1))
    experiment = experiment_of(log, model, Optim(ema=0.9), start_from=str(folder))
    state = begun(experiment, tmp_path / 'new')
    for name, value in there.items():
        if name.startswith(('heads', 'objectives')):
            assert f'params.{name}' not in state
            continue
        np.testing.assert_allclose(state[f'params.{name}'], value, atol=1e-6)
        np.testing.assert_allclose(state[f'ema.{name}'], value, atol=1e-6)
    assert state['step'] == 1
    out = capsys.readouterr().out
    (line,) = [one for one in out.splitlines() if 'parameters of the best checkpoint' in one]
    assert str(folder) in line and '6 new (seq2seq)' in line and 'left (heads)' in line
    told = json.loads((tmp_path / 'new/run.json').read_text())['started_from']
    assert told['checkpoint'] == 'best' and told['folder'] == str(folder)
    assert told['run'] == json.loads((folder / 'run.json').read_text())['id']
    assert set(told['taken']) | set(told['left']) == set(there)
    assert 'table' in told['taken'] and all(n.startswith('seq2seq') for n in told['new'])


@pytest.mark.slow
def test_last_checkpoint_and_what_is_carried(before, tmp_path):
    folder, log, best = before
    moco = sasrec.Config(dim=8, blocks=1, max_len=6, contrast=(MOCO,))
    experiment = experiment_of(log, moco, start_from=str(folder), start_with='last')
    state = begun(experiment, tmp_path / 'new')
    last = by_name(jax.device_get(load_trained(folder, 'last').params))
    np.testing.assert_allclose(state['params.table'], last['table'], atol=1e-6)
    assert np.abs(last['table'] - best['table']).max() > 0.5
    carried = {n: x for n, x in state.items() if n.startswith('carry.') and 'table' in n}
    assert carried  # the momentum encoder begins with what was taken, not with what was drawn
    for value in carried.values():
        np.testing.assert_allclose(value, last['table'], atol=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_without_the_run_it_began_with(before, tmp_path):
    folder, log, _ = before
    shutil.copytree(folder, tmp_path / 'pre')
    experiment = experiment_of(log, start_from=str(tmp_path / 'pre'))
    fit(experiment, tmp_path / 'whole')
    fit(applied(experiment, {'train.steps': 3}), tmp_path / 'parts')
    told = json.loads((tmp_path / 'parts/run.json').read_text())['started_from']
    shutil.rmtree(tmp_path / 'pre')
    fit(experiment, tmp_path / 'parts')
    run = json.loads((tmp_path / 'parts/run.json').read_text())
    assert run['started_from'] == told and len(run['sessions']) == 2
    whole, parts = (by_name(load_trained(tmp_path / n, 'last').params) for n in ('whole', 'parts'))
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])


@pytest.mark.slow
def test_other_data_of_the_same_items_keep_their_rows(tmp_path):
    own = tmp_path
    first = write_log(own / 'events.csv', range(5, 55))
    fit(experiment_of(first, steps=1), own / 'run')
    trained = load_trained(own / 'run')
    text = (own / 'events.csv').read_text().splitlines()
    longer = [*text, *(f'u{n},{item},{n}' for n, item in enumerate(range(5, 25)))]
    (own / 'events.csv').write_text('\n'.join(longer) + '\n')
    experiment = experiment_of(first, start_from=str(own / 'run'))
    state = begun(experiment, own / 'new')
    np.testing.assert_allclose(
        state['params.table'][:51], np.asarray(trained.params['table'])[:51], atol=1e-6
    )


def test_on_another_mesh_they_are_placed_as_a_new_run_places_them(before):
    folder, log, there = before
    jax.set_mesh(jax.make_mesh((2, 2), ('data', 'model'), devices=jax.devices()[:4]))
    experiment = experiment_of(log, optim=Optim(ema=0.9), start_from=str(folder))
    problem = experiment.task.open(experiment, lambda line: None)
    program = Program(experiment, problem, 10)
    state, _ = state_from(experiment, problem, program)
    wanted, found = by_name(program.abstract()), by_name(state)
    assert wanted.keys() == found.keys()
    for name, one in found.items():
        assert one.sharding.spec == wanted[name].sharding.spec, name
    assert found['params.table'].sharding.spec == jax.P('model', None)
    np.testing.assert_array_equal(found['ema.table'], there['table'])


def test_what_does_not_fit_is_one_line(before, tmp_path):
    folder, log, _ = before

    def fails(phrase, log=log, **changes):
        with pytest.raises(UserError, match=phrase) as error:
            start = {'start_from': str(folder)} | changes.pop('train', {})
            fit(experiment_of(log, **changes, **start), tmp_path / 'new')
        assert '\n' not in str(error.value)

    wider = sasrec.Config(dim=16, blocks=1, max_len=7)
    fails(r'do not fit this model: .*positions is \(6, 8\) there, \(7, 16\) here', model=wider)
    fails(r'table is \(64, 8\) there, \(64, 16\) here', model=wider)
    (tmp_path / 'o').mkdir()
    fails('is not in the new data', write_log(tmp_path / 'o/events.csv', range(30, 80)))
    fails('nowhere holds no run', train={'start_from': str(tmp_path / 'nowhere')})
    for changes in ({'train.start_with': 'last'}, {'train.start_with': 'first'}):
        with pytest.raises(UserError, match=r'train\.start_with'):
            check(applied(experiment_of(log), changes))
    shutil.copytree(folder, tmp_path / 'pre')
    shutil.rmtree(tmp_path / 'pre/checkpoints/best')
    fails('--config.train.start_with=last takes', train={'start_from': str(tmp_path / 'pre')})
    words = [f'--config.data.log={log}', f'--config.data.data_dir={log.parent}/d']
    words += [f'--workdir={tmp_path}/cli', f'--config.train.start_from={folder}']
    done = inside('train', '--config=experiments/own_log.py', *words)
    assert 'do not fit this model' in done.error
