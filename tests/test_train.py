"""The training command: resume, kill, signals, non-finite losses, meshes, and what it records."""

import json
import os
import pathlib
import random
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import (
    check_same_run,
    inside,
    killed_after,
    line,
    lines_of,
    losses_of,
    metrics_of,
    params_of,
    process,
    same,
    small,
    started,
    write,
)

from jaxrec import cli, files
from jaxrec.config import Data, Optim, Train
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, from_record, parsed, to_record
from jaxrec.models import sasrec
from jaxrec.objectives.contrast import Contrast
from jaxrec.tasks import next_item
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.loop import fit
from jaxrec.training.optim import make_optimizer
from jaxrec.training.places import Patience, Progress
from jaxrec.training.state import abstract_state, split_model


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """An experiment file, its data prepared, and an uninterrupted run of it as a process."""
    folder = tmp_path_factory.mktemp('train')
    config = write(folder / 'experiment.py', small(folder, **{'train.epochs': 4}))
    done = process('train', f'--config={config}', f'--workdir={folder / "whole"}')
    assert done.returncode == 0, done.stderr
    return config, folder / 'whole'


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    """An experiment, and an uninterrupted run of it in this process."""
    folder = tmp_path_factory.mktemp('here')
    experiment = small(folder, **{'train.epochs': 1})
    fit(experiment, folder / 'whole')
    return experiment, folder / 'whole'


def train(config, workdir, *flags):
    return inside('train', f'--config={config}', f'--workdir={workdir}', *flags)


def test_a_run_records_itself(setting):
    workdir = setting[1]
    run = json.loads((workdir / 'run.json').read_text())
    assert len(run['data_hash']) == 64
    (session,) = run['sessions']
    assert session['versions']['jax'] == jax.__version__ and session['from_step'] == 0
    assert any('jaxrec.train' in word for word in session['command'])
    assert 'devices' in session and 'git' in session
    record = json.loads((workdir / 'config.json').read_text())
    assert record['model']['type'] == 'jaxrec.models.sasrec:Config'
    assert record['task']['type'] == 'jaxrec.tasks.next_item:Config'
    assert (workdir / 'curves.png').stat().st_size > 1000
    lines, losses = lines_of(workdir), losses_of(workdir)
    steps = [one['step'] for one in lines if 'loss' in one]
    assert steps == sorted(set(steps))
    assert losses[steps[-1]] < losses[steps[0]] - 0.4
    assert max(one['valid/HR@10'] for one in metrics_of(workdir).values()) > 0.25
    for name in ('softmax', 'grad_norm', 'tokens_per_second', 'examples_per_second', 'epoch'):
        assert name in lines[0]
    assert not list(workdir.rglob('*.pkl')) and not list(workdir.rglob('*.pickle'))


def test_stopped_and_killed_at_random_moments_a_run_ends_with_the_bits_of_one_that_was_not(
    setting, tmp_path
):
    config, whole = setting
    words = line('train', f'--config={config}', f'--workdir={tmp_path}')
    early, output = started(words), ''
    for text in early.stdout:
        output += text
        if 'targets an epoch' in text:  # before the first step
            early.send_signal(signal.SIGTERM)
            break
    output += early.stdout.read()
    assert early.wait() == 75, output
    assert 'stopped by a signal' in output and 'same command' in output
    assert params_of(tmp_path)[0] < 20
    rng, kills = random.Random(os.environ.get('JAXREC_TEST_SEED', '0')), 0
    for _ in range(2):
        running = started(words)
        kills += killed_after(running, rng.uniform(0, 0.3))[0]
        if running.returncode == 0:
            break
    assert kills >= 1
    done = process('train', f'--config={config}', f'--workdir={tmp_path}')
    assert done.returncode == 0, done.stderr
    assert 'going on from step' in done.stdout
    check_same_run(tmp_path, whole)


@pytest.mark.slow
def test_cut_short_then_longer_then_stopped(here, tmp_path, capsys):
    """By a limit of steps, by a signal between validations, and on to the end."""
    experiment, whole = here
    short = applied(experiment, {'train.steps': 7})
    summary = fit(short, tmp_path)
    assert summary['step'] == 7 and summary['stopped'] == 'finished'
    steps = iter(range(100))
    summary = fit(experiment, tmp_path, stop=lambda: next(steps) == 2)
    assert summary['step'] == 10 and summary['stopped'] == 'signal'
    assert 'stopped by a signal' in capsys.readouterr().out
    assert params_of(tmp_path)[0] == 10
    fit(experiment, tmp_path)
    assert 'going on from step 10' in capsys.readouterr().out
    assert same(params_of(tmp_path)[1], params_of(whole)[1])


def test_json_is_the_only_line_on_standard_output(here, tmp_path):
    config = write(tmp_path / 'x.py', here[0])
    done = train(f'{config}:argument', tmp_path / 'run', '--config.train.steps=2', '--json')
    assert done.result['step'] == 2 and done.result['stopped'] == 'finished'
    assert len(done.stdout.splitlines()) == 1 and 'targets an epoch' in done.stderr


def test_two_trainings_in_one_workdir(here, tmp_path):
    with files.lock(tmp_path / '.lock'):
        with pytest.raises(UserError, match='another process is training'):
            fit(here[0], tmp_path)


def test_a_run_of_several_devices_outlives_its_log_its_directory_and_its_devices(
    tmp_path, monkeypatch
):
    """Evaluating needs the prepared data, not the raw log, works from anywhere and on one."""
    rng = np.random.default_rng(0)
    rows = [f'u{u},i{rng.integers(9)},{t}' for u in range(30) for t in range(6)]
    (tmp_path / 'log.csv').write_text('user,item,timestamp\n' + '\n'.join(rows))
    monkeypatch.chdir(tmp_path)
    experiment = small(
        pathlib.Path(),
        **{'data.log': 'log.csv', 'data.dataset': '', 'mesh.data': 2, 'mesh.model': 2},
    )
    fit(applied(experiment, {'train.steps': 2}), pathlib.Path('run'))
    (tmp_path / 'log.csv').unlink()
    environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parent.parent)}
    done = process('evaluate', f'--workdir={tmp_path / "run"}', '--json', cwd='/', env=environment)
    assert done.result['examples'] == 30 and done.result['step'] == 2


def test_non_finite_loss_stops_with_a_checkpoint_before_it(here, tmp_path):
    config = write(tmp_path / 'x.py', here[0])
    # a linear warm-up to 1e38: the steps up to the first validation are small enough to survive
    flags = ('--config.optim.learning_rate=1e38', '--config.optim.warmup_steps=1000')
    error = train(config, tmp_path / 'nan', *flags).error
    assert 'not finite' in error and 'learning_rate' in error and '--workdir' in error
    at = int(error.split(' at step ')[1].split()[0].strip(';'))
    step, params = params_of(tmp_path / 'nan')
    assert f'of step {step}' in error and step < at
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_non_finite_loss_after_a_validation_keeps_that_checkpoint(here, tmp_path, mesh):
    mesh(1, 1)
    experiment = here[0]
    step = fit(applied(experiment, {'train.steps': 4}), tmp_path)['step']
    # spoil the saved parameters: the very next loss is not finite
    checkpoints = Checkpoints(tmp_path)
    optimizer = make_optimizer(experiment.optim, experiment.model, 1)
    graphdef, abstract = split_model(experiment.model, {'item': 60})
    state, host = checkpoints.restore_last(abstract_state(graphdef, abstract, optimizer))
    state = {**state, 'params': jax.tree.map(lambda x: x * jnp.nan, state['params'])}
    checkpoints.save_last(step + 1, {**state, 'step': state['step'] + 1}, host)
    checkpoints.close()
    with pytest.raises(UserError, match=f'not finite at step {step + 2} .*of step {step + 1},'):
        fit(experiment, tmp_path)
    assert np.isfinite(params_of(tmp_path, 'best')[1]['table']).all()


def test_validations_are_no_fewer_steps_apart_than_said(here, tmp_path):
    """The last one is at the end."""
    changes = {'train.epochs': 3, 'train.eval_every': 0.25, 'train.eval_steps': 7}
    last = fit(applied(here[0], changes), tmp_path)['step']
    validated = [step for step, line in metrics_of(tmp_path).items() if 'valid/HR@10' in line]
    assert validated == [*range(7, last, 7), last] and last % 7


def test_early_stopping(here, tmp_path, capsys):
    """A run that is not above popularity yet may wait four times as long."""
    changes = {'train.patience': 2, 'optim.learning_rate': 1e-9, 'optim.ema': 0.0}
    changes |= {'train.epochs': 20}
    experiment = applied(here[0], {**changes, 'train.eval_every': 0.25})
    first = fit(experiment, tmp_path)
    assert first['stopped'] == 'early stopping'
    validated = [step for step, line in metrics_of(tmp_path).items() if 'valid/HR@10' in line]
    assert len(validated) == 1 + 4 * 2
    capsys.readouterr()
    assert fit(experiment, tmp_path) == first and 'early stopping' in capsys.readouterr().out


def test_progress():
    """Of a metric whose higher values are better, and of one whose lower values are."""
    for sign in (1, -1):
        progress = Progress()
        found = [
            progress.update(step, sign * value, higher=sign > 0)
            for step, value in enumerate((0.5, 0.4, 0.6, 0.6, 0.1), 1)
        ]
        assert found == [True, False, True, False, False]
        assert (progress.best, progress.best_step, progress.validated) == (sign * 0.6, 3, 5)
        for floor, times in ((None, 1), (0.5, 1), (0.6, 4), (0.7, 4)):  # 4: it has not begun
            progress.validations_since_best = 2 * times
            for patience, over in ((2, True), (3, False), (0, False)):
                floor_ = None if floor is None else sign * floor
                assert Patience(patience, floor_, sign > 0).over(progress) == over


@pytest.mark.slow
def test_same_losses_on_any_mesh(here, tmp_path):
    losses = []
    for data, model in ((1, 1), (8, 1), (2, 4)):
        changes = {'mesh.data': data, 'mesh.model': model, 'train.steps': 6, 'train.log_every': 1}
        workdir = tmp_path / f'{data}{model}'
        fit(applied(here[0], changes), workdir)
        losses.append([round(loss, 5) for loss in losses_of(workdir).values()])
        losses[-1].append(round(metrics_of(workdir)[6]['valid/HR@10'], 5))
    assert len(losses[0]) == 7
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], atol=1.01e-5)


def test_wrong_workdir(here):
    experiment, whole = here
    before = (whole / 'config.json').read_text(), (whole / 'run.json').read_text()
    for changes, words in (
        ({'model.dim': 16}, r'model\.dim=8, .* 16; .*--workdir'),
        ({'data.dataset': 'synthetic:users=20,items=60,length=12,seed=5'}, 'other data'),
        ({'task.protocol': 's3rec-99'}, r'task\.protocol'),
        ({'task.valid_users': 7}, r'task\.valid_users'),
    ):
        with pytest.raises(UserError, match=words):
            fit(applied(experiment, changes), whole)
    assert before == ((whole / 'config.json').read_text(), (whole / 'run.json').read_text())


@pytest.mark.parametrize(
    ('flag', 'words'),
    [
        ('--config.model.dimm=16', ['dimm']),
        ('--config.model.dim=wide', ['dim', 'wide']),
        ('--config.model.heads=0', ['model.heads=0']),
        ('--config.model.max_len=0', ['model.max_len=0']),
        ('--config.model.contrast.0.weight=-1', ['names a position that its tuple has not']),
        ('--config.model.contrast.weight=1', ['--config.model.contrast.0.weight=.1']),
        ('--config.model[dim=16', ['--config.model.contrast.0.weight=.1']),
        ('--no_such_flag=1', ['no_such_flag']),
        ('--config.mesh.model=9', ['mesh']),
        ('--config.data.dataset=netflix', ['netflix', 'ml-100k']),
        ('--config.train.batch_rows=0', ['train.batch_rows=0']),
        # fields that were renamed
        ('--config.data.split=temporal', ['data.split is now task.split']),
        ('--config.data.windows=all', ['data.windows is now task.windows']),
        ('--config.eval.protocol=full', ['eval.protocol is now task.protocol']),
        ('--config.train.eval_users=9', ['train.eval_users is now task.valid_users']),
        ('--config.data.grow_vocabulary=x', ['data.grow_vocabulary is now train.start_from']),
    ],
)
def test_wrong_flags_are_one_line_and_do_not_claim_the_workdir(here, tmp_path, flag, words):
    config = write(tmp_path / 'x.py', here[0])
    error = train(config, tmp_path / 'new', flag).error
    assert all(word in error for word in words), error
    assert not (tmp_path / 'new' / 'config.json').exists()


@pytest.mark.parametrize(
    ('word', 'read'),
    [
        ('--config.model.contrast.0.weight=.1', '--config.model.contrast[0].weight=.1'),
        ('--config.model.contrast[0].weight=.1', '--config.model.contrast[0].weight=.1'),
        ('-config.task.cutoffs.1', '-config.task.cutoffs[1]'),
        ('--config.a.0.1=2', '--config.a[0][1]=2'),
        ('--config.data.log=a.0.csv', '--config.data.log=a.0.csv'),
        ('--config=experiments/a.0.py', '--config=experiments/a.0.py'),
    ],
)
def test_a_position_in_a_tuple_is_written_as_everywhere_else(word, read):
    assert cli._with_positions(word) == read


EXPERIMENT = """
from jaxrec import Data, Experiment, Train
from jaxrec.models import sasrec
def get_config(arg=''):
    return Experiment(model=sasrec.Config(), {})
"""


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('def get_config(arg=""):\n    return (', ['x.py, line 2', 'never closed']),
        ('def get_config(arg=""):\n    return undefined', ['undefined', 'line 2']),
        ('def get_config(arg=""):\n    return int(arg)', ['ValueError', 'line 2']),
        ('x = 1', ['get_config']),
        ('from ml_collections import ConfigDict as get_config', ['jaxrec.experiment.Experiment']),
        (None, ['x.py']),
        # fields that were renamed
        (EXPERIMENT.format('data=Data(split="temporal")'), ['data.split is now task.split']),
        (EXPERIMENT.format('eval=3'), ['eval is now task, e.g. task=tasks.Default(']),
        (EXPERIMENT.format('train=Train(eval_users=5)'), ['is now task.valid_users']),
    ],
)
def test_wrong_experiment_files_are_one_line(tmp_path, text, words):
    path = tmp_path / 'x.py'
    if text is not None:
        path.write_text(text)
    error = train(path, tmp_path / 'run').error
    assert all(word in error for word in words), error


NAMED = "MODELS = {'': 1, 'a': 2}\n\ndef get_config(arg=''):\n    return MODELS[arg or '']\n"


@pytest.mark.parametrize(
    ('name', 'text', 'words'),
    [
        ('nowhere.py', None, 'no such experiment file'),
        ('README.md', '# ±', 'README.md is not an experiment file'),
        ('folder', ..., 'folder is not an experiment file'),
        ('x.py', 'from jaxrec.paper.spec import Table', 'python -m jaxrec.table --table='),
        ('x.py:a', 'def get_config():\n    return 1', 'x.py takes no argument'),
        ('x.py:a', "def get_config(arg=''):\n    return arg", 'must return a jaxrec.experiment'),
        ('x.py', "def get_config(arg=''):\n    return arg", 'must return a jaxrec.experiment'),
        ('x.py:b', NAMED, "no 'b' among the names of this experiment: '', a"),
    ],
)
def test_a_file_that_is_no_experiment_or_takes_no_argument(tmp_path, name, text, words):
    path = tmp_path / name.partition(':')[0]
    if text is ...:
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    for flag in ([f'--config={tmp_path / name}'], ['--config', tmp_path / name]):
        assert words in inside('train', *flag, f'--workdir={tmp_path}/run').error


def test_an_empty_value_of_a_tuple_is_the_empty_tuple(tmp_path):
    flags = ('--config=experiments/kuaiformer_ml1m.py', f'--workdir={tmp_path}/run')
    error = inside('train', *flags, '--config.model.compress=', '--config.task.cutoffs=5').error
    assert 'model.compress=() and model.newest=48' in error
    error = inside('train', *flags, '--config.model.compress=None').error
    assert 'model.compress=(None,) is not tuple' in error
    experiment = Experiment(model=sasrec.Config(), data=Data(time_col='t'))
    given = parsed(['model.contrast=', 'task.cutoffs=', 'data.time_col=', 'optim.eps='], '--x')
    made = applied(experiment, given)
    assert (made.model.contrast, made.task.cutoffs, made.data.time_col) == ((), (), '')
    assert made.optim.eps == ''  # which the check refuses


def test_a_log_beside_the_source_of_a_data_set_is_refused(tmp_path):
    flags = ('--config=experiments/sasrec_beauty.py', f'--workdir={tmp_path}/run')
    error = inside('train', *flags, '--config.data.log=x.csv', '--config.data.source=y').error
    assert '--config.data.source is where --config.data.dataset is read from' in error


def test_overrides_of_renamed_fields():
    experiment = Experiment(model=sasrec.Config())
    for name, now in (
        ('data.cuts', 'task.cuts'),
        ('eval.cutoffs', 'task.cutoffs'),
        ('data.grow_vocabulary', r'train.start_from \(with train.grow\)'),
    ):
        with pytest.raises(UserError, match=f'{name} is now {now}'):
            applied(experiment, {name: 1})
    with pytest.raises(UserError, match=r'no field data\.nothing'):
        applied(experiment, {'data.nothing': 1})


def test_workdir_that_cannot_be_written(here, tmp_path):
    config, blocked = write(tmp_path / 'x.py', here[0]), tmp_path / 'file'
    blocked.write_text('in the way')
    assert str(blocked) in train(config, blocked / 'run').error


def test_record_round_trip():
    experiment = Experiment(
        model=sasrec.Config(dim=24, loss='bce', contrast=(Contrast(weight=0.3),)),
        task=next_item.Config(cutoffs=(1, 7), split='temporal'),
        data=Data(log='x.csv', features='rating'),
        optim=Optim(clip_norm=1.0),
        train=Train(seed=3),
    )
    record = json.loads(json.dumps(to_record(experiment)))
    assert from_record(record) == experiment
    del record['task']
    with pytest.raises(UserError, match='before tasks: train it again'):
        from_record(record)
