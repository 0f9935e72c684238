"""Training several runs in one program: the folders, resuming, early stopping, and its flags."""

import jax
import numpy as np
import pytest
from runs import inside, metrics_of, small, write

from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied
from jaxrec.models import sasrec
from jaxrec.objectives.contrast import Contrast
from jaxrec.training.loop import fit, fit_together
from jaxrec.training.parallel_runs import expand
from jaxrec.training.restore import load_trained

SEEDS = ['0', '1', '2']


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """Three seeds trained in one program, killed and stopped on the way; how it went on."""
    folder = tmp_path_factory.mktemp('together')
    changes = {'train.epochs': 30, 'train.patience': 1, 'optim.ema': 0.0}
    experiment = small(folder, **changes, **{'optim.learning_rate': 3e-2})
    steps = iter(range(1000))

    def dies():
        if next(steps) == 17:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        fit_together(expand(experiment, SEEDS, []), folder / 'runs', stop=dies)
    asked = iter([False, False, True])
    stopped = fit_together(expand(experiment, SEEDS, []), folder / 'runs', stop=lambda: next(asked))
    (step,) = {one['step'] for one in stopped.values() if one['stopped'] == 'signal'}
    config = write(folder / 'experiment.py', experiment)
    words = (f'--config={config}', f'--workdir={folder / "runs"}', '--json')
    done = inside('train', *words, '--seeds_in_parallel=0,1,2')
    assert f'going on from step {step}\n' in done.stderr
    return experiment, folder / 'runs', done


def test_every_seed_is_a_run_of_its_own(setting, tmp_path):
    experiment, runs, done = setting
    summaries = done.result['runs']
    assert list(summaries) == ['seed0', 'seed1', 'seed2']
    alone = fit(applied(experiment, {'train.seed': 1}), tmp_path)
    found = summaries['seed1']
    for name in ('stopped', 'step', 'best_step', 'metric'):
        assert found[name] == alone[name], name
    assert found['stopped'] == 'early stopping'
    assert len({summary['step'] for summary in summaries.values()}) > 1  # each stops on its own
    np.testing.assert_allclose(found['best'], alone['best'], rtol=1e-3)

    tables = []
    for place in (runs / 'seed1', tmp_path):
        trained = load_trained(place)
        assert trained.experiment.train.seed == 1
        tables.append(jax.device_get(trained.params['table']))
    np.testing.assert_allclose(*tables, rtol=2e-3, atol=2e-3)
    assert metrics_of(runs / 'seed1').keys() == metrics_of(tmp_path).keys()


def test_a_run_of_the_program_is_evaluated_like_any_other(setting):
    done = inside('evaluate', f'--workdir={setting[1] / "seed2"}')
    assert done.returncode == 0, done.stderr
    assert 'training seed 2' in done.stdout


def test_other_runs_in_the_folder_are_refused(setting):
    experiment, runs, _ = setting
    with pytest.raises(UserError, match='holds the runs seed0, seed1, seed2 in one program'):
        fit_together(expand(experiment, SEEDS[:2], []), runs)


def test_a_stream_is_refused(tmp_path):
    """Learning period by period is for one run."""
    changes = {'task.windows': 'cuts', 'model.loss': 'in_batch', 'task.periods': 3}
    stream = small(tmp_path, **changes)
    with pytest.raises(UserError, match='learn one period'):
        fit_together(expand(stream, SEEDS, []), tmp_path / 'runs')


def test_expand():
    experiment = Experiment(model=sasrec.Config(contrast=(Contrast(weight=0.1),)))
    runs = expand(experiment, ['3', '4'], ['optim.learning_rate=1e-3,3e-3', 'optim.b1=.8'])
    assert list(runs) == [
        f'seed{seed}_optim.learning_rate={rate}_optim.b1=.8'
        for seed in (3, 4)
        for rate in ('1e-3', '3e-3')
    ]
    assert [(r.train.seed, r.optim.learning_rate, r.optim.b1) for r in runs.values()] == [
        (3, 1e-3, 0.8),
        (3, 3e-3, 0.8),
        (4, 1e-3, 0.8),
        (4, 3e-3, 0.8),
    ]
    assert experiment.train.seed == 0
    (run,) = expand(experiment, [], ['model.contrast.0.weight=.3']).values()
    assert run.model.contrast[0].weight == 0.3
    for vary, error in (
        ('model.dim=8', r'give one of .*optim\.learning_rate'),
        ('optim.b1=x', 'optim.b1='),
    ):
        with pytest.raises(UserError, match=error):
            expand(experiment, [], [vary])
