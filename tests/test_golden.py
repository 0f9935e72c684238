"""Losses, parameters and ranks of every experiment: a change of structure changes none of them.

tests/golden.json was written by the code before the rooms were built (`python tests/test_golden.py`
writes it again), but for contrastive terms: what their views are encoded by draws other dropout
since the last block computes the newest events alone, crops keep their positions, and CL4SRec's
settings under BCE are others now. Experiments run small, on a generated log; what they compute
stays theirs.
"""

import dataclasses
import json
import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest

from jaxrec.data.histories import Histories
from jaxrec.evaluation.run import Pass
from jaxrec.experiment import applied
from jaxrec.tasks.next_item import NextItem
from jaxrec.training.state import Program, evaluated

ROOT = pathlib.Path(__file__).parent.parent
STORED = pathlib.Path(__file__).with_name('golden.json')
STEPS = 20
MESHES = ('1,1', '2,2')
# What makes the programs small; names of a model's fields that it may not have.
SMALL = {'dim': 16, 'feature_dim': 4, 'max_len': 24, 'newest': 16, 'compress': (4, 4)}
FILES = sorted({case.split(':')[0] for case in json.loads(STORED.read_text())})
CASES = [
    *(f'{name}:' for name in FILES),
    'sasrec_losses:bce',
    'sasrec_losses:gbce',
    'sasrec_losses:sampled_softmax',
    'cl4srec_beauty:softmax',
    'kuaiformer_ml1m:sasrec',
    'kuaiformer_ml1m:comirec',
    'own_log:sparse_adam',
    'own_log:rowwise_adagrad',
    'duorec_beauty:moco',
    'kuaiformer_kuairand:streaming',
]
OVERRIDES = {  # of cases that are not an argument of the experiment
    'own_log:sparse_adam': {
        'optim.table': 'sparse_adam',
        'optim.ema': 0.0,
        'model.loss': 'sampled_softmax',
        'model.table_dropout': 0.0,
    },
    'own_log:rowwise_adagrad': {
        'optim.table': 'rowwise_adagrad',
        'optim.ema': 0.0,
        'model.loss': 'bce',
        'model.table_dropout': 0.0,
        'model.negatives_per': 'batch',
        'optim.clip_norm': 1.0,
    },
    'sasrec_ml1m_2018:': {'train.microbatches': 5},  # of rows of 200 events, here of 24
    'sasrec_ml1m_ce:': {'train.microbatches': 4},
    'duorec_beauty:moco': {'model.contrast.0.momentum': 0.9, 'model.contrast.0.queue': 128},
    'kuaiformer_kuairand:streaming': {
        'model.in_batch.logq': 'streaming',
        'model.in_batch.uniform': 8,
        'model.in_batch.refined': True,
    },
}


def log(features):
    """150 users of 3 to 5 or 18 to 33 events on 90 items: histories come in two widths."""
    rng = np.random.default_rng(5)
    lengths = rng.permutation(np.r_[rng.integers(3, 6, 30), rng.integers(18, 34, 120)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = (rng.zipf(1.3, offsets[-1]) % 90 + 1).astype(np.int32)
    times = np.concatenate([np.sort(rng.integers(10**9, 10**9 + 10**6, n)) for n in lengths])
    made = Histories(items, offsets, np.arange(150), np.arange(1, 91), times=times)
    for feature in features:
        if feature.kind == 'set':
            sets = rng.integers(0, feature.size + 1, (90, 3))
            made.item_features[feature.column] = sets.astype(np.int32)
        elif feature.column != 'gap':
            made.features[feature.column] = rng.uniform(0, 9, len(items))
    return made


def experiment_of(case):
    name, _, arg = case.partition(':')
    get_config = runpy.run_path(str(ROOT / 'experiments' / f'{name}.py'))['get_config']
    experiment = get_config(arg) if arg and case not in OVERRIDES else get_config()
    known = {f.name for f in dataclasses.fields(experiment.model)}
    for field in known & SMALL.keys():
        setattr(experiment.model, field, SMALL[field])
    experiment = applied(experiment, OVERRIDES.get(case, {}))
    experiment.train.batch_rows = 40
    return experiment


def run(case):
    """Losses and gradient norms of 20 steps, length of all parameters, ranks, metrics."""
    experiment = experiment_of(case)
    histories = log(experiment.model.inputs().features)
    problem = NextItem(experiment, histories, {'data_hash': '', 'path': ''})
    batches, program = problem.batches(), Program(experiment, problem, 100)
    state, losses, norms = program.init(), [], []
    program.start(0)
    for number in range(STEPS):
        state, terms = program.step(state, program.put([batches(number)]))
        losses.append(float(terms['loss']))
        norms.append(float(terms['grad_norm']))
    parameters = jax.device_get(evaluated(state))
    squares = sum(float((x.astype(np.float64) ** 2).sum()) for x in jax.tree.leaves(parameters))
    measure = Pass(program.graphdef, problem, program.constants)
    result = measure(evaluated(state), problem.ranking('test'), full=True)
    return {
        'losses': losses,
        'grad_norms': norms,
        'parameters': squares**0.5,
        'greater': result.kept['greater'].tolist(),
        'ties': result.kept['ties'].tolist(),
        'metrics': result.metrics,
    }


# Those that the tests of every day look at; the others are slow.
DAILY = {
    '1,1': (
        'quickstart:',
        'sasrec_ml1m_2018:',
        'sasrec_losses:gbce',
    ),
    '2,2': ('kuaiformer_ml1m:comirec',),
}
ALL = [
    pytest.param(case, shape, marks=() if case in DAILY[shape] else pytest.mark.slow)
    for shape in MESHES
    for case in CASES
]


@pytest.mark.parametrize(('case', 'shape'), ALL)
def test_numbers_stay(case, shape, mesh):
    mesh(*map(int, shape.split(',')))
    stored, found = json.loads(STORED.read_text())[case][shape], run(case)
    np.testing.assert_allclose(found['losses'], stored['losses'], rtol=1e-6)
    np.testing.assert_allclose(found['grad_norms'], stored['grad_norms'], rtol=1e-4)
    np.testing.assert_allclose(found['parameters'], stored['parameters'], rtol=1e-6)
    assert found['greater'] == stored['greater'] and found['ties'] == stored['ties']
    stored = {name: v for name, v in stored['metrics'].items() if 'Recall' not in name}  # was HR
    assert found['metrics'] == pytest.approx(stored, abs=1e-12)


def main():
    """Writes tests/golden.json, of the cases that are named alone if any are."""
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', 4)
    made = json.loads(STORED.read_text()) if sys.argv[1:] else {}
    for case in sys.argv[1:] or CASES:
        made[case] = {}
        for shape in MESHES:
            data, model = map(int, shape.split(','))
            devices = jax.devices()[: data * model]
            with jax.set_mesh(jax.make_mesh((data, model), ('data', 'model'), devices=devices)):
                made[case][shape] = run(case)
        print(case, made[case]['1,1']['losses'][::19], made[case]['2,2']['losses'][::19])
    STORED.write_text(json.dumps(made) + '\n')


if __name__ == '__main__':
    main()
