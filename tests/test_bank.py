"""CLRec, Multi-CLRec and CBNS: what negatives of earlier steps do; how popular lists are."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax import nnx
from models import jit
from test_cl4srec import experiment, loss_of, problem_of, start
from test_view_objectives import kuaiformer_of

from jaxrec.devices.mesh import put_batch
from jaxrec.errors import UserError
from jaxrec.evaluation import rank_metrics
from jaxrec.experiment import applied, check
from jaxrec.losses import in_batch_softmax
from jaxrec.models import comirec
from jaxrec.objectives import in_batch
from jaxrec.objectives.in_batch import InBatch
from jaxrec.training.state import Program

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('logq', [False, True])
def test_what_is_learnt_from_negatives_drawn_like_targets(logq):
    """All cases of a 3 x 4 world with 2 negatives: log p/q without logQ, log p with it."""
    with jax.enable_x64(True):
        p_x = RNG.dirichlet(np.ones(3))
        p = RNG.dirichlet(np.ones(4), 3)
        q = p_x @ p
        cases = np.array(list(itertools.product(range(3), *[range(4)] * 3)))
        x, y, *drawn = cases.T
        chance = jnp.asarray(p_x[x] * p[x, y] * q[drawn[0]] * q[drawn[1]])
        log_q = np.log(q) * logq

        def loss(phi):
            phi = phi.reshape(3, 4)
            values = in_batch_softmax(
                phi[x, y],
                phi[x[:, None], np.stack(drawn, 1)],
                np.ones((len(x), 2), bool),
                log_q_positive=log_q[y],
                log_q_negatives=log_q[np.stack(drawn, 1)],
            )
            return (chance * values).sum()

        phi, slope, curve = jnp.zeros(12), jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
        for _ in range(12):  # Newton; a constant per x is free
            phi = phi - jnp.linalg.pinv(curve(phi), rtol=1e-10) @ slope(phi)
        wanted = np.log(p) - (0 if logq else np.log(q))
        off = np.asarray(phi).reshape(3, 4) - wanted
    np.testing.assert_allclose(off - off.mean(1, keepdims=True), 0, atol=1e-10)


SETTINGS = {
    'clrec': InBatch(
        logq='none', bank=30, batch_negatives=False, similarity='cosine', temperature=0.2
    ),
    'cbns': InBatch(bank=30, warmup=1, own_history=True),
    'multi': InBatch(logq='none', bank=30, batch_negatives=False, prototypes=3, temperature=0.5),
}


def system(settings):
    exp = experiment(loss='in_batch')
    exp = applied(exp, {'task.windows': 'cuts', 'task.cuts': 2})
    exp.model.in_batch = settings
    check(exp)
    return exp


def slow_loss(settings, queries, table, batch, held, steps, routes):
    """Target by target; held: (item, vector, log share, prototype), the oldest first."""

    def compared(x):
        return x / np.linalg.norm(x) if settings.similarity == 'cosine' else x

    targets, total = batch['targets'].ravel(), []
    bank = held if steps >= settings.warmup else []
    drawn = [
        (i, table[i], s, -1) for i, s in zip(targets, batch['log_share'].ravel(), strict=True) if i
    ]
    seen = (drawn if settings.batch_negatives else []) + bank
    log_n = np.log(max(len(seen), 1))
    for n, target in enumerate(targets):
        if not target:
            continue
        row = n // batch['targets'].shape[1]
        own = (
            {target}
            if settings.own_history
            else {target, *batch['items'][row], *batch['targets'][row]}
        )
        score = lambda v, n=n: compared(queries[n]) @ compared(v) / settings.temperature  # noqa: E731
        correct = (lambda s: s + log_n) if settings.logq != 'none' else (lambda s: 0.0)
        positive = score(table[target]) - correct(batch['log_share'].ravel()[n])
        others = [
            score(v) - correct(s)
            for i, v, s, prototype in seen
            if i not in own and prototype in (-1, routes[n])
        ]
        total.append(np.log(np.exp([positive, *others]).sum()) - positive)
    return np.mean(total)


@pytest.mark.parametrize('name', SETTINGS)
def test_negatives_of_earlier_steps(name):
    """Three steps by hand: who is in the bank, under which logQ and prototype, and who sees it."""
    settings = SETTINGS[name]
    exp = system(settings)
    problem, (graphdef, params) = problem_of(exp), start(exp)
    model = nnx.merge(graphdef, params)
    carry, held = model.carry(), []
    step = jit(functools.partial(loss_of, graphdef))
    encode = jit(
        lambda params, batch: nnx.merge(graphdef, params).encode(batch, params['table'], last=2)
    )
    quiet = {'dropout': 0.0, 'embedding_dropout': 0.0}
    exp = applied(exp, {f'model.{k}': v for k, v in quiet.items()})
    graphdef, _ = start(exp)
    step = jit(functools.partial(loss_of, graphdef))
    batches = problem.batches()
    for number in range(3):
        batch = batches(number)
        queries = np.asarray(encode(params, batch), np.float64).reshape(
            -1, params['table'].shape[1]
        )
        routes = np.full(len(queries), -1)
        if settings.prototypes:
            unit = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-9)
            routes = (unit @ np.asarray(carry['prototypes']).T).argmax(1)
            assert set(routes) > {0}
        table = np.asarray(params['table'], np.float64)
        expected = slow_loss(settings, queries, table, batch, held, number, routes)
        value, (terms, carry) = step(params, batch, carry, jax.random.key(number))
        np.testing.assert_allclose(value, expected, rtol=2e-4, atol=1e-6)
        assert (value > 0.05) == (number > 0 or settings.batch_negatives)
        new = zip(batch['targets'].ravel(), batch['log_share'].ravel(), routes, strict=True)
        held += [(i, table[i], s, r) for i, s, r in new if i]
        if settings.prototypes:
            by = [[one for one in held if one[3] == r][-30:] for r in range(settings.prototypes)]
            held = [one for some in by for one in some]
            np.testing.assert_allclose(np.linalg.norm(carry['prototypes'], axis=1), 1, rtol=1e-5)
            assert 1 / settings.prototypes <= terms['largest_prototype'] <= 1
        else:
            held = held[-30:]
        items = np.asarray(carry['bank']['items']).ravel()
        assert items[items > 0].tolist() == [one[0] for one in held]
        params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(7 * x + 1), params)  # as after a step


def test_the_same_on_any_mesh(mesh):
    """Negatives and banks are of the whole batch; prototypes, logQ and a warm-up together."""
    results, exp = [], system(InBatch(bank=30, prototypes=3, warmup=1, similarity='cosine'))
    for shape in ((1, 1), (2, 2)):
        mesh(*shape)
        problem = problem_of(exp)
        program, batches = Program(exp, problem, 10), problem.batches()
        state, found = program.init(), []
        step = jit(jax.value_and_grad(functools.partial(loss_of, program.graphdef), has_aux=True))
        carry = state['carry']
        for number in range(2):
            batch, key = put_batch(batches(number)), jax.random.key(number)
            (value, (_, carry)), grads = step(state['params'], batch, carry, key)
            found.append(jax.device_get((value, carry, grads)))
        results.append(found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5), *results)


@pytest.mark.parametrize('system_of', ['sasrec', 'kuaiformer', 'comirec'])
def test_cosines_are_ranked_by_cosines(system_of):
    """Items of a retrieval and its queries have length 1, and inputs are looked up as they are."""
    exp = system(SETTINGS['clrec'])
    if system_of == 'kuaiformer':
        exp.model = kuaiformer_of().model
    elif system_of == 'comirec':
        exp.model = comirec.Config(dim=16, interests=2, max_len=10)
    exp.model.in_batch = SETTINGS['clrec']
    graphdef, params = start(exp)
    items = {
        name: np.full((2, 4), 1 + (name == 'items')) for name in ('items', 'segments', 'positions')
    }

    @functools.partial(jit, static_argnums=1)
    def found(params, plain):
        model = nnx.merge(graphdef, params)
        if plain:
            model.config = dataclasses.replace(model.config, in_batch=InBatch())
        catalogue = model.catalogue({})
        return catalogue['items'], model.queries(items, catalogue)

    table, queries = found(params, False)
    np.testing.assert_allclose(jnp.linalg.norm(queries, axis=-1), 1, rtol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(table[1:38], axis=-1), 1, rtol=1e-4)
    dots = in_batch.compared(SETTINGS['clrec'], found(params, True)[1])
    np.testing.assert_allclose(dots, queries, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (InBatch(batch_negatives=False), 'go with a bank'),
        (InBatch(prototypes=4), 'go with a bank'),
        (InBatch(warmup=4), 'go with a bank'),
        (InBatch(bank=8, warmup=4, batch_negatives=False), 'no negatives'),
        (InBatch(similarity='l2'), 'similarity'),
        (InBatch(temperature=0.0), 'temperature'),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings, match):
    with pytest.raises(UserError, match=match):
        system(settings)


def test_figures_of_lists():
    """Gini as half the mean absolute difference over the mean; popularity place by place."""
    counts = np.array([0, 50, 20, 5, 1, 0])
    top = np.array([[1, 2], [1, 3], [1, 0]])
    shown = np.array([3, 1, 1, 0, 0])
    gini = np.abs(shown[:, None] - shown).mean() / 2 / shown.mean()
    found = rank_metrics.of_lists(top, counts)
    np.testing.assert_allclose(found['gini'], gini)
    places = [counts[i] for i in top.ravel() if i]
    np.testing.assert_allclose(found['mean_log_popularity'], np.log1p(places).mean())
    assert found['coverage'] == 3 / 5
    assert rank_metrics.of_lists(np.array([[1, 2, 3, 4, 5]]), counts)['gini'] == 0
    deciles = rank_metrics.popularity_buckets(counts, 10)
    assert deciles[1:].tolist() == [0, 6, 9, 9, 9]  # what is before each: 0, 50, 70, 75, all of 76


def test_evaluate_tells_how_popular_its_lists_are(tmp_path):
    exp = runs.small(tmp_path, **{'train.steps': 3, 'train.eval_every': 10.0})
    file = runs.write(tmp_path / 'config.py', exp)
    words = f'--workdir={tmp_path / "run"}'
    assert runs.inside('train', f'--config={file}', words).returncode == 0
    plain = runs.inside('evaluate', words, '--json').result
    done = runs.inside('evaluate', words, '--task.popularity=True', '--json')
    told, lists = done.result, done.result['details']['lists']
    assert told['metrics'] == plain['metrics'] and told['protocol'] == plain['protocol']
    assert 'lists' not in plain['details'] and 0 < lists['gini'] < 1 and 0 < lists['coverage'] <= 1
    deciles = told['groups']['popularity decile']
    assert len(deciles) == 10
    assert sum(one['examples'] for one in deciles.values()) == told['examples']
    mean = sum(one['examples'] * one.get('HR@10', 0) for one in deciles.values()) / told['examples']
    np.testing.assert_allclose(mean, told['metrics']['HR@10'], rtol=1e-6)
    assert 'lists gini' in done.stdout + done.stderr
    wrong = runs.inside('evaluate', words, '--task.popularity=True', '--task.protocol=uniform')
    assert "needs task.protocol='full'" in wrong.error
