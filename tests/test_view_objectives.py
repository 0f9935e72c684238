"""Objectives of two views against float64 loops, their limits, meshes, resume and collapse."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit
from test_cl4srec import NONE, QUIET, D, L, experiment, loss_of, problem_of, start

from jaxrec import losses
from jaxrec.errors import UserError
from jaxrec.experiment import applied, check
from jaxrec.models import kuaiformer
from jaxrec.objectives import contrast, segments, view_objectives
from jaxrec.objectives.contrast import Contrast
from jaxrec.objectives.in_batch import InBatch
from jaxrec.objectives.view_objectives import Vectors
from jaxrec.objectives.views import attacked, views
from jaxrec.problem import Batches
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.places import Patience, Place, Progress, Watch
from jaxrec.training.state import Program

N, K = 7, 4
RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(2, N, 5))
USERS = np.array([4, 2, 9, 0, 1, 0, 5], np.int32)  # 0 = none
REAL = USERS > 0


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def of_both(settings, first=FIRST, second=SECOND, own=None, targets=None, users=USERS):
    """(term, what is logged) of these vectors."""
    vectors = Vectors(*map(jnp.asarray, (first, second, users, users)), targets)
    value, terms, _ = contrast.term(settings, vectors, own or {}, {})
    return float(value), terms


def test_decoupled_leaves_the_positive_out_of_the_denominator():
    """log sum_negatives e^s - s+, both directions, over real users alone."""
    total = 0.0
    for a, b in ((unit(FIRST), unit(SECOND)), (unit(SECOND), unit(FIRST))):
        for n in np.flatnonzero(REAL):
            negatives = [a[n] @ x[m] / 0.3 for m in np.flatnonzero(REAL) for x in (a, b) if m != n]
            total += math.log(np.exp(negatives).sum()) - a[n] @ b[n] / 0.3
    settings = Contrast(objective='decoupled', similarity='cosine', temperature=0.3)
    np.testing.assert_allclose(of_both(settings)[0], total / (2 * REAL.sum()), rtol=1e-5)


@pytest.mark.parametrize('objective', ['info_nce', 'decoupled'])
def test_a_user_alone_and_an_empty_queue_cost_nothing(objective):
    settings = Contrast(objective=objective)
    alone = np.where(np.arange(N) == 2, 3, 0).astype(np.int32)
    assert of_both(settings, users=alone)[0] == 0
    x = jnp.asarray(FIRST)
    value, gradient = jax.value_and_grad(
        lambda x: losses.info_nce_queue(
            x,
            x[::-1],
            jnp.zeros((1, 3, 5)),
            hidden=np.ones((N, 3), bool),
            decoupled=objective == 'decoupled',
        ).sum()
    )(x)
    assert value == 0 and np.isfinite(gradient).all() and not gradient.any()


@pytest.mark.parametrize('objective', ['info_nce', 'decoupled', 'swav', 'simsiam', 'direct_au'])
def test_symmetric_in_views_and_blind_to_the_order_of_users(objective):
    settings = Contrast(objective=objective, prototypes=K)
    own = {k: x[...] for k, x in view_objectives.make(settings, 5, normal, nnx.Rngs(0)).items()}
    value, _ = of_both(settings, own=own)
    assert abs(value) > 0.01
    np.testing.assert_allclose(of_both(settings, SECOND, FIRST, own)[0], value, rtol=1e-5)
    order = RNG.permutation(N)
    moved = of_both(settings, FIRST[order], SECOND[order], own, users=USERS[order])[0]
    np.testing.assert_allclose(moved, value, rtol=1e-5)


normal = nnx.initializers.normal(1.0)


def slow_codes(scores, epsilon, steps):
    """The authors' iteration, of real rows."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    for _ in range(steps):
        q /= q.sum(1, keepdims=True) * len(q)
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def test_swav_predicts_the_codes_of_the_other_view():
    prototypes = RNG.normal(size=(K, 5))
    settings = Contrast(
        objective='swav', prototypes=K, temperature=0.2, code_temperature=0.1, code_steps=3
    )
    scores = [unit(x[REAL]) @ unit(prototypes).T for x in (FIRST, SECOND)]
    codes = [slow_codes(x, 0.1, 3) for x in scores]
    total = 0.0
    for code, other in ((codes[0], scores[1]), (codes[1], scores[0])):
        p = np.exp(other / 0.2) / np.exp(other / 0.2).sum(1, keepdims=True)
        total -= (code * np.log(p)).sum()
    value, terms = of_both(settings, own={'prototypes': jnp.asarray(prototypes)})
    np.testing.assert_allclose(value, total / (2 * REAL.sum()), rtol=1e-5)
    assert 1 / K <= terms['code_use'] <= 1
    longer = {'prototypes': jnp.asarray(prototypes * np.arange(1, K + 1)[:, None])}
    np.testing.assert_allclose(of_both(settings, own=longer)[0], value, rtol=1e-5)


def test_sums_of_codes():
    weights = jnp.asarray(REAL, jnp.float32)
    scores = jnp.asarray(RNG.normal(size=(N, K)))
    codes = losses.sinkhorn(scores, weights, epsilon=0.5, steps=3)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-6)  # exact after the last half step
    many = losses.sinkhorn(scores, weights, epsilon=0.5, steps=200)
    np.testing.assert_allclose(weights @ many, REAL.sum() / K, rtol=1e-5)
    same = losses.sinkhorn(jnp.ones((N, K)), weights, epsilon=0.05, steps=3)
    np.testing.assert_allclose(same, 1 / K, rtol=1e-6)
    gradient = jax.grad(
        lambda codes: losses.swapped_prediction(scores, scores, (codes, codes), 0.1).sum()
    )(codes)
    assert not gradient.any()


def test_predictors_and_what_they_predict():
    """SimSiam -(cos(p1, z2) + cos(p2, z1)) / 2 and BYOL 2 - 2 cos, over real users."""
    own = {
        'inner': RNG.normal(size=(5, 3)),
        'outer': RNG.normal(size=(3, 5)),
        'scale': RNG.normal(size=3),
        'shift': RNG.normal(size=3),
        'bias': RNG.normal(size=5),
    }

    def slow(x):
        y = x @ own['inner']
        y = (y - y[REAL].mean(0)) / np.sqrt(y[REAL].var(0) + 1e-5)
        return np.maximum(y * own['scale'] + own['shift'], 0) @ own['outer'] + own['bias']

    def cosine(x, z):
        return (unit(slow(x)) * unit(z)).sum(1)[REAL].mean()

    arrays = {name: jnp.asarray(x) for name, x in own.items()}
    value, _ = of_both(Contrast(objective='simsiam'), own=arrays)
    expected = -(cosine(FIRST, SECOND) + cosine(SECOND, FIRST)) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert -1 <= value <= 1
    targets = RNG.normal(size=(2, N, 5))
    value, _ = of_both(
        Contrast(objective='byol', momentum=0.9), own=arrays, targets=tuple(jnp.asarray(targets))
    )
    expected = 2 - cosine(FIRST, targets[1]) - cosine(SECOND, targets[0])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    gradient = jax.grad(lambda z: losses.negative_cosine(jnp.asarray(FIRST), z).sum())
    assert not gradient(jnp.asarray(SECOND)).any()


def test_direct_au_is_alignment_plus_uniformity():
    value, terms = of_both(Contrast(objective='direct_au', uniformity=0.7))
    a, b = unit(FIRST[REAL]), unit(SECOND[REAL])
    apart = [
        np.log(
            np.mean(
                [
                    np.exp(-2 * ((x[n] - x[m]) ** 2).sum())
                    for n in range(5)
                    for m in range(5)
                    if n != m
                ]
            )
        )
        for x in (a, b)
    ]
    expected = ((a - b) ** 2).sum(1).mean() + 0.7 * np.mean(apart)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(terms['uniformity'], apart[0], rtol=1e-5)
    np.testing.assert_allclose(terms['spread'], a.std(0).mean() * math.sqrt(5), rtol=1e-5)


def test_spread_of_vectors():
    """1 in all directions, 0 for a collapse, and nothing to tell of one vector."""
    many = jnp.asarray(RNG.normal(size=(4000, 32)))
    np.testing.assert_allclose(losses.spread(many, jnp.ones(4000)), 1, atol=0.02)
    assert losses.spread(jnp.ones((9, 32)), jnp.ones(9)) < 1e-3
    assert losses.spread(jnp.ones((9, 32)), jnp.eye(9)[0]) == 1


def test_simsiam_collapses_without_its_stop_gradient(monkeypatch):
    """`spread` of a linear encoder of noisy views: near 1, or 0 where gradients flow through."""
    settings = Contrast(objective='simsiam')
    own = view_objectives.make(settings, 8, nnx.initializers.xavier_normal(), nnx.Rngs(0))
    data, users = jnp.asarray(RNG.normal(size=(64, 8))), jnp.arange(1, 65)

    def loss(params, key):
        noise = 0.5 * jax.random.normal(key, (2, 64, 8))
        first, second = (data + noise) @ params['kernel'] + params['bias_of_all']
        vectors = Vectors(first, second, users, users)
        return contrast.term(settings, vectors, params, {})[:2]

    def spread():
        def step(params, key):
            grads, terms = jax.grad(loss, has_aux=True)(params, key)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), terms['spread']

        params = {'kernel': jnp.eye(8), 'bias_of_all': jnp.full(8, 0.1)}
        params |= {name: x[...] for name, x in own.items()}
        return jax.lax.scan(step, params, jax.random.split(jax.random.key(0), 150))[1][-1]

    assert spread() > 0.9
    monkeypatch.setattr(jax.lax, 'stop_gradient', lambda x: x)
    assert spread() < 0.05


SETTINGS = {  # small, with views that take little to compile
    'swav': {'objective': 'swav', 'prototypes': 8, 'first': 'cutoff', 'second': 'dropout'},
    'simsiam': {'objective': 'simsiam', 'first': 'shuffle', 'second': 'token_cutoff'},
    'byol': {'objective': 'byol', 'momentum': 0.9, 'first': 'dropout', 'second': 'dropout'},
    'direct_au': {'objective': 'direct_au', 'first': 'adversarial', 'second': 'dropout'},
}


def kuaiformer_of(*terms):
    model = kuaiformer.Config(
        dim=D,
        blocks=1,
        heads=2,
        ffn=1,
        interests=2,
        max_len=L,
        compress=(),
        newest=L,
        contrast=tuple(Contrast(**settings) for settings in terms),
        in_batch=InBatch(),
    )
    made = applied(experiment(), {'task.windows': 'cuts', 'task.cuts': 2})
    made.model = model
    return made


SYSTEMS = {'sasrec': experiment, 'kuaiformer': kuaiformer_of}


@pytest.mark.parametrize(
    ('system', 'names'),
    [
        ('sasrec', tuple(SETTINGS)),
        pytest.param('kuaiformer', ('swav',), marks=pytest.mark.slow),
    ],
)
def test_every_objective_on_any_mesh_and_after_a_restart(system, names, mesh, tmp_path):
    """Two steps of a model with all of them: the same on 1 and 4 devices, and restored between.

    Prototypes, predictors and momentum encoders are in the checkpoint. (A queue: test_cl4srec.)
    """
    exp = SYSTEMS[system](*(SETTINGS[name] for name in names))
    check(exp)
    results = []
    for shape in ((1, 1), (2, 2)):
        mesh(*shape)
        problem = problem_of(exp)
        program, batches = Program(exp, problem, 10), problem.batches()
        state, found = program.init(), []

        @jit
        def step(state, batch, key, graphdef=program.graphdef):
            loss = lambda p: loss_of(graphdef, p, batch, state.get('carry', {}), key)  # noqa: E731
            (_, (terms, carry)), grads = jax.value_and_grad(loss, has_aux=True)(state['params'])
            moved = jax.tree.map(lambda p, g: p - 0.1 * g, state['params'], grads)
            return {**state, 'params': moved, **({'carry': carry} if carry else {})}, terms

        for number in range(2):
            if number:
                saving = Checkpoints(tmp_path / f'{shape[0]}')
                saving.save_last(1, state, {})
                saving.close()
            state, terms = step(state, program.put([batches(number)]), jax.random.key(number))
            found.append(jax.device_get(terms))
        results.append((found, learnt(state)))
        places = [f'.{n}' for n in range(len(names))] if len(names) > 1 else ['']
        assert {f'spread{place}' for place in places} | {f'code_use{places[0]}'} < terms.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), *results)
    # what was saved on one mesh goes on on another, on its own bit for bit
    for folder, same in (('2', np.testing.assert_array_equal), ('1', close)):
        restoring = Checkpoints(tmp_path / folder)
        again, _ = restoring.restore_last(program.abstract())
        restoring.close()
        again, _ = step(again, program.put([batches(1)]), jax.random.key(1))
        jax.tree.map(same, learnt(again), results[1][1])
    with_own = [str(n) for n, name in enumerate(names) if name != 'direct_au']
    assert list(state['params']['objectives']) == with_own
    assert list(state.get('carry', {})) == [
        str(n) for n, name in enumerate(names) if name == 'byol'
    ]


def learnt(state):
    return jax.device_get({name: state[name] for name in ('params', 'carry') if name in state})


close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-4)


def test_weight_zero_is_kuaiformer_itself():
    """And SASRec: test_cl4srec."""
    results = []
    for terms in ((dict(SETTINGS['byol'], weight=0.0),), ()):
        exp = kuaiformer_of(*terms)
        batch, (graphdef, params) = problem_of(exp).batches()(0), start(exp)
        assert not nnx.merge(graphdef, params).carry()
        step = jit(functools.partial(loss_of, graphdef))
        results.append((step(params, batch, {}, jax.random.key(0)), params, batch))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_packed_and_padded_rows_give_the_same_vectors():
    """Segments side by side, or each in a row of its own, of both models."""
    for system, make in SYSTEMS.items():
        exp, found = make(), []
        packed = problem_of(applied(experiment(), {'train.batch_rows': 8})).batches()(0)
        packed = {name: packed[name] for name in ('items', 'segments', 'positions')}
        graphdef, params = start(exp)
        get = jit(
            lambda params, rows, graphdef=graphdef: nnx.merge(graphdef, params).user_vectors(
                rows, 64, 'last', None
            )
        )
        found.append(get(params, packed))
        own = jit(lambda rows: segments.apart(rows, 64, L))(packed)
        found.append(get(params, own))
        count = segments.ends(jnp.asarray(packed['segments'])).sum()
        assert count > 8, system
        for other in found[1:]:
            np.testing.assert_allclose(found[0][:count], other[:count], atol=2e-6)


def test_the_attack_makes_the_term_worse():
    """By a shift of the given length, of the view that is attacked alone, nothing on padding."""
    exp = experiment({'first': 'adversarial', 'second': 'dropout', 'weight': 1.0}, **QUIET)
    batch = problem_of(exp).batches()(0)
    graphdef, params = start(exp)
    model = nnx.merge(graphdef, params)
    rows = views(exp.model.contrast[0], batch, jax.random.key(0), D)
    assert 'shift' in rows[0] and 'shift' not in rows[1]
    users = jnp.asarray(batch['users'])

    def value(rows):
        pair = [model.user_vectors(view, len(users), 'last', None) for view in rows]
        return contrast.term(Contrast(), Vectors(*pair, users, users), {}, {})[0]

    @jit
    def found(rows):
        shifted = attacked(rows, value, 0.05)
        slope = jax.grad(lambda x: value(attacked(rows, lambda r: value(r) * x, 0.05)))(1.0)
        return value(rows), value(shifted), shifted[0]['shift'], slope

    before, after, shift, slope = found(rows)
    assert after > before + 1e-4
    assert slope == 0  # nothing flows through the shift
    squares = np.asarray(shift**2).sum(-1)
    assert not squares[batch['segments'] == 0].any()
    first = batch['segments'][0] == 1
    np.testing.assert_allclose(squares[0, first].mean() ** 0.5, 0.05, rtol=1e-4)


@pytest.mark.parametrize(
    ('wrong', 'match'),
    [
        ({'objective': 'barlow'}, 'objective'),
        ({'objective': 'byol'}, 'set model.contrast.0.momentum'),
        ({'objective': 'swav', 'momentum': 0.9}, 'has no momentum encoder'),
        ({'objective': 'byol', 'momentum': 0.9, 'queue': 64}, 'knows no negatives'),
        ({'objective': 'decoupled', 'momentum': 0.9}, 'a multiple of 64'),
        ({'objective': 'swav', 'prototypes': 1}, 'model.contrast.0.prototypes=1'),
        ({'first': 'adversarial', 'adversarial': 0.0}, 'adversarial'),
        ({'first': 'same_target', 'prefix': True}, "leaves the view 'same_target' without"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(wrong, match):
    with pytest.raises(UserError, match=match):
        check(experiment(wrong))


@pytest.mark.parametrize('wrong', [{'pool': 'mean'}, {'first': 'shuffle'}], ids=str)
def test_what_kuaiformer_cannot(wrong):
    with pytest.raises(UserError, match='KuaiFormer'):
        check(kuaiformer_of(wrong))


def test_cuts_bring_similar_items_too():
    exp = kuaiformer_of({**NONE, 'insert': 0.5})
    check(exp)
    batch = problem_of(exp).batches()(0)
    assert ((batch['similar'] > 0) <= (batch['items'] > 0)).all() and batch['similar'].any()
    graphdef, params = start(exp)
    step = functools.partial(loss_of, graphdef)
    _, (terms, _) = jax.eval_shape(step, params, batch, {}, jax.random.key(0))
    assert 'contrast' in terms


def test_a_collapse_is_told_once():
    """A term at a time and a run at a time; a healthy one never."""

    class Quiet:  # instead of logs
        def __init__(self):
            self.lines = []

        def write(self, *args):
            pass

        progress = write

        def line(self, text):
            self.lines.append(text)

    class Epoch(Batches):
        steps_per_epoch = examples_per_epoch = targets_per_epoch = 10

    runs = [Place(name, None, Quiet(), None, Progress()) for name in ('seed0', 'seed1')]
    watch = Watch(runs, Epoch(), 0, 0, 10, Patience(0), None)
    for step, spreads in enumerate(((0.5, 0.3), (0.05, 0.3), (0.01, 0.02), (0.0, 0.0)), 1):
        metrics = {'spread.1': np.array(spreads), 'spread.0': np.ones(2), 'spreads': np.zeros(2)}
        watch.add(step, {'loss': np.ones(2), 'grad_norm': np.ones(2), **metrics})
        watch.read()
    told = [run.logs.lines for run in runs]
    assert [len(lines) for lines in told] == [1, 1]
    assert (
        told[0][0].startswith('seed0  warning: collapse at step 2')
        and 'spread.1 0.05' in told[0][0]
    )
    assert 'at step 3' in told[1][0] and 'healthy is near 1' in told[1][0]
