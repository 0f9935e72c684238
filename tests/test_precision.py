"""Precision of matrix products: a setting of training, and part of an evaluation's protocol."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from runs import inside, small

from jaxrec.evaluation.run import Pass
from jaxrec.experiment import applied, effect
from jaxrec.problem import Evaluation, Problem
from jaxrec.training import plan
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained
from jaxrec.training.state import train_step


class Scaled(Problem):
    """Predicts x @ w, and notes under which precision it was traced."""

    traced = ()

    def predict(self, model, carried, batch, full):
        self.traced += (jax.config.jax_default_matmul_precision,)
        return {'y': batch['x'] @ jnp.ones((2, 2))}


class Rows(Evaluation):
    examples = 2

    def __init__(self, protocol):
        self.protocol = protocol

    def batches(self):
        yield np.arange(2), {'x': np.ones((2, 2), np.float32)}

    def measure(self, parts):
        return list(parts)


@pytest.mark.parametrize('told', ['default', 'high', None])
def test_a_pass_computes_as_its_protocol_says_and_in_full_if_it_says_nothing(mesh, told):
    mesh(1, 1)
    problem = Scaled('', '', '', None, {}, (), {})
    Pass(nnx.split(nnx.Module())[0], problem, {})({}, Rows({'precision': told} if told else {}))
    assert problem.traced == (told or 'highest',)
    assert jax.config.jax_default_matmul_precision is None


def test_only_what_differs_from_full_precision_is_told(tmp_path):
    task = small(tmp_path).task
    assert 'precision' not in task.protocol_fields()
    assert (
        dataclasses.replace(task, precision='default').protocol_fields()['precision'] == 'default'
    )
    assert effect('task.precision', small(tmp_path)) == 'measure'
    assert effect('train.precision', small(tmp_path)) == 'result'


@pytest.mark.parametrize('precision', ['default', 'highest'])
def test_a_step_multiplies_as_the_setting_says(tmp_path, mesh, precision):
    mesh(1, 1)
    experiment = small(tmp_path)
    planned = plan._Planned(experiment, 60, None)
    batch = plan.abstract(planned.batches(0), plan.BATCH)
    step = train_step(planned._program.graphdef, planned._program.optimizer, 0, precision=precision)
    lines = step.lower(planned._state, batch).as_text().splitlines()
    products = [line for line in lines if 'stablehlo.dot_general' in line]
    full = [line for line in products if 'HIGHEST' in line]
    assert len(products) > 10 and len(full) == (len(products) if precision == 'highest' else 0)


def test_a_run_is_evaluated_under_another_precision_and_says_so(tmp_path):
    """On a CPU the numbers are the same: it computes in float32 whatever is asked for."""
    fit(applied(small(tmp_path), {'train.steps': 3}), tmp_path / 'run')
    place = f'--workdir={tmp_path / "run"}'
    done = inside('evaluate', place, '--task.precision=default', '--json').result
    plain = inside('evaluate', place, '--json').result
    assert done['protocol'].pop('precision') == 'default'
    assert done['protocol'] == plain['protocol'] and done['metrics'] == plain['metrics']
    assert load_trained(tmp_path / 'run').experiment.train.precision == 'default'
