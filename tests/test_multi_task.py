"""Heads of experts against loops in float64, their identities, and what a gradient may reach."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx

from jaxrec.devices.mesh import BATCH
from jaxrec.errors import UserError
from jaxrec.models import adatt, din, fm, home, mmoe, multi_task, ple
from jaxrec.nn import batch_norm, experts
from jaxrec.training import sparse

B, ROWS, D = 7, 30, 4
LABELS = ('click', 'view', 'like', 'hate')
SIZES = {
    'table': ROWS,
    'label': len(LABELS),
    **{f'label.{name}': n for n, name in enumerate(LABELS)},
    'feature.item': 1,
    'feature.past': 3,
    'feature.age': 0,
}
GROUPS = (home.Group('watch', ('click', 'view')), home.Group('inter', ('like', 'hate')))
SMALL = {'dim': D, 'tower_widths': (5,), 'attend': ('past',), 'expert_widths': (6, 3)}
NORMED = {**SMALL, 'expert': 'bn_swish'}
HEADS = {
    'mmoe': mmoe.Config(experts=3, **NORMED),
    'cgc': ple.Config(levels=1, own_experts=2, **SMALL),
    'ple': ple.Config(own_experts=2, shared_experts=1, **NORMED),
    'apart': ple.Config(levels=1, shared_experts=0, **SMALL),
    'adatt': adatt.Config(**SMALL),
    'adatt, two of its own': adatt.Config(own_experts=2, shared_experts=2, **NORMED),
    'adatt without residual': adatt.Config(native=False, **SMALL),
    'home': home.Config(groups=GROUPS, group_experts=2, own_experts=2, **NORMED),
    'home, one of its own': home.Config(groups=GROUPS, **SMALL),
    'home without mask': home.Config(groups=GROUPS, mask=False, **NORMED),
    'home without gates': home.Config(groups=GROUPS, feature_gate=False, self_gate=False, **NORMED),
}
HOME = HEADS['home']
OTHERS = {
    'din': din.Config(dim=D, tower_widths=(5,), unit_widths=(4,), attend=('past',)),
    'fm': fm.Config(dim=D),
}


def made(config, seed=1):
    """The model, all parameters away from where they begin."""
    config.check()
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: config.make(SIZES, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        values = rng.normal(size=x.shape) * 0.6
        positive = any(getattr(key, 'key', getattr(key, 'name', '')) == 'variance' for key in path)
        return jnp.asarray(values**2 + 0.3 if positive else values, jnp.float32)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, shapes))


def make_batch(seed=0, rows=B):
    rng = np.random.default_rng(seed)
    past = rng.integers(1, ROWS, (rows, 3)) * rng.integers(0, 2, (rows, 3))
    return {
        'features': {
            'item': rng.integers(1, ROWS, rows).astype(np.int32),
            'past': past.astype(np.int32),
            'age': rng.normal(size=rows).astype(np.float32),
        },
        'labels': rng.integers(0, 2, (rows, 4)).astype(np.float32),
        'mask': np.ones((rows, 4), np.float32),
        'weights': np.ones(rows, np.float32),
    }


def scores(model, batch):
    graphdef, params = nnx.split(model)
    run = models.jit(lambda p, features: nnx.merge(graphdef, p).logits(features)[0])
    return np.asarray(run(params, batch['features']))


def loss_and_gradient(model, batch, carry=None):
    """(loss, next carry), gradients as nested dictionaries."""
    graphdef, params = nnx.split(model)
    carry = model.carry() if carry is None else carry

    @models.jit
    def run(params, batch, carry):
        def objective(p):
            value, (_, new) = nnx.merge(graphdef, p).loss(batch, {}, carry, jax.random.key(0))
            return value, new

        return jax.value_and_grad(objective, has_aux=True)(params)

    value, grads = run(params, batch, carry)
    return value, nnx.to_pure_dict(grads)


# ---- slow references: one row, one expert, one gate at a time


def relu(x):
    return np.maximum(x, 0)


def swish(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def numbers(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def slow_mlp(p, n, x, hidden=relu, last=lambda x: x):
    depth = len(p['kernels'])
    for layer in range(depth):
        x = x @ p['kernels'][layer][n]
        if layer in p.get('biases', {}):
            x = x + p['biases'][layer][n]
        if layer < depth - 1:
            x = hidden(x)
    if 'norm' in p:
        norm = {name: values[n] for name, values in p['norm'].items() if values.ndim}
        x = (x - norm['mean']) / np.sqrt(norm['variance'] + 1e-5) * norm['scale'] + norm['bias']
    return last(x)


def slow_expert(p, n, x):
    act = swish if 'norm' in p else relu
    return slow_mlp(p, n, x, act, act)


def slow_gate(p, at, x, seen):
    """{expert: weight} of one listener."""
    if 'gates' not in p:
        assert len(seen) == 1
        return {seen[0]: 1.0}
    logits = slow_mlp(p['gates'], at, x)
    return dict(zip(seen, softmax(logits[seen]), strict=True))


def slow_ple(config, p, x):
    shared, own, labels = config.shared_experts, config.own_experts, len(LABELS)
    streams = {listener: x for listener in [*range(labels), 'shared']}
    for number in range(config.levels):
        q = p['mixtures'][number]
        of = {'shared': list(range(shared))}
        of |= {k: [shared + k * own + e for e in range(own)] for k in range(labels)}
        said = {e: slow_expert(q['experts'], e, streams[k]) for k, es in of.items() for e in es}
        heard = {}
        for k in range(labels):
            weights = slow_gate(q, k, streams[k], of['shared'] + of[k])
            heard[k] = sum(w * said[e] for e, w in weights.items())
        if number < config.levels - 1:
            weights = slow_gate(q, labels, streams['shared'], sorted(said))
            heard['shared'] = sum(w * said[e] for e, w in weights.items())
        streams = heard
    return [streams[k] for k in range(labels)]


def slow_adatt(config, p, x):
    shared, own, labels = config.shared_experts, config.own_experts, len(LABELS)
    streams = {listener: x for listener in [*range(labels), 'shared']}
    for number in range(config.levels):
        q = p['mixtures'][number]
        of = {'shared': list(range(shared))}
        of |= {k: [shared + k * own + e for e in range(own)] for k in range(labels)}
        said = {e: slow_expert(q['experts'], e, streams[k]) for k, es in of.items() for e in es}
        listeners = [*range(labels), *(['shared'] if number < config.levels - 1 else [])]
        heard = {}
        for at, k in enumerate(listeners):
            weights = slow_gate(q, at, streams[k], sorted(said))
            heard[k] = sum(w * said[e] for e, w in weights.items())
            if k != 'shared' and config.native:
                for e in of[k]:
                    heard[k] = heard[k] + (1 if own == 1 else q['native'][k, e]) * said[e]
        streams = heard
    return [streams[k] for k in range(labels)]


def slow_feature_gate(p, n, parts, x):
    """x * sum_l softmax_l 2 sigmoid(x B_l A_l)."""
    shares = softmax(slow_mlp(p['gates'], n, x))
    masks = p['masks']['kernels']
    low = [2 * sigmoid(x @ masks[0][n * parts + k] @ masks[1][n * parts + k]) for k in range(parts)]
    return x * sum(share * one for share, one in zip(shares, low, strict=True))


def slow_home(config, p, x):
    shared, group, own = config.shared_experts, config.group_experts, config.own_experts
    gated = lambda q, n, x: slow_feature_gate(q, n, config.gate_parts, x)  # noqa: E731

    def self_gate(q, at, x, mine, said):
        logits = slow_mlp(q['self_gates'], at, x)[mine]
        weights = sigmoid(logits) if len(mine) == 1 else softmax(logits)
        return sum(w * said[e] for e, w in zip(mine, weights, strict=True))

    q = p['first']
    of = {'': list(range(shared))}
    of |= {g: [shared + g * group + e for e in range(group)] for g in range(2)}
    said = {}
    for place, (_, mine) in enumerate(of.items()):
        seen = gated(p['first_gate'], place, x) if config.feature_gate else x
        said |= {e: slow_expert(q['experts'], e, seen) for e in mine}
    z = {}
    for g in range(2):
        reached = of[''] + of[g] if config.mask else sorted(said)
        z[g] = sum(w * said[e] for e, w in slow_gate(q, g, x, reached).items())
        if config.self_gate:
            z[g] = z[g] + self_gate(q, g, x, of[g], said)
    z[''] = sum(w * said[e] for e, w in slow_gate(q, 2, x, sorted(said)).items())

    q, count = p['second'], shared + 2 * group
    of |= {f'task{k}': [count + k * own + e for e in range(own)] for k in range(4)}
    stream = {'': '', 0: 0, 1: 1, 'task0': 0, 'task1': 0, 'task2': 1, 'task3': 1}
    said = {}
    for place, (name, mine) in enumerate(of.items()):
        seen = z[stream[name]]
        seen = gated(p['second_gate'], place, seen) if config.feature_gate else seen
        said |= {e: slow_expert(q['experts'], e, seen) for e in mine}
    heard = []
    for k in range(4):
        g, mine = k // 2, of[f'task{k}']
        selector = np.concatenate([z[g], z['']])
        reached = of[''] + of[g] + mine if config.mask else sorted(said)
        out = sum(w * said[e] for e, w in slow_gate(q, k, selector, reached).items())
        heard.append(out + self_gate(q, k, selector, mine, said) if config.self_gate else out)
    return heard


def slow_mmoe(config, p, x):
    q = p['mixtures'][0]
    said = [slow_expert(q['experts'], e, x) for e in range(config.experts)]
    gates = [slow_gate(q, k, x, list(range(config.experts))) for k in range(4)]
    return [sum(w * said[e] for e, w in gate.items()) for gate in gates]


SLOW = {ple: slow_ple, adatt: slow_adatt, home: slow_home, mmoe: slow_mmoe}


@pytest.mark.parametrize('name', HEADS)
def test_every_head_against_loops(name):
    config, batch = HEADS[name], make_batch()
    model = made(config)
    p = numbers(nnx.to_pure_dict(nnx.state(model)))
    inputs = np.asarray(model.field_input(batch['features']), np.float64)
    slow = next(way for module, way in SLOW.items() if isinstance(config, module.Config))
    wanted = [
        [slow_mlp(p['towers'], k, h)[0] for k, h in enumerate(slow(config, p['head'], x))]
        for x in inputs
    ]
    graphdef, params = nnx.split(model)
    look = lambda p, b: (nnx.merge(graphdef, p).scores(b, {}), nnx.merge(graphdef, p).look(b, {}))  # noqa: E731
    got, looked = models.jit(look)(params, batch)
    assert got.shape == (B, 4) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=2e-4, rtol=1e-4)
    for number, level in enumerate(config.expert_levels(LABELS)):
        shape = level.sees.shape
        assert looked[f'gates/{number}'].shape == (B, *shape)
        assert looked[f'experts/{number}'].shape[:2] == (B, shape[1])
        assert not np.asarray(looked[f'gates/{number}'])[:, ~(level.sees | level.own)].any()


def test_factorisation_machine_against_loops():
    model, batch = made(OTHERS['fm']), make_batch()
    p, got = numbers(nnx.to_pure_dict(nnx.state(model))), scores(model, batch)
    for row in range(B):
        fields = []
        for name in ('item', 'past'):
            codes = [c for c in np.atleast_1d(batch['features'][name][row]) if c]
            fields.append(
                sum(p['table'][c] for c in codes) / len(codes) if codes else 0 * p['bias']
            )
        fields = [np.zeros(4 * (1 + D)) if len(f) == 4 else f for f in fields]
        fields.append(batch['features']['age'][row] * p['of_numbers'][0])
        for label in range(4):
            wanted = p['bias'][label] + sum(f[label] for f in fields)
            vectors = [f[4 + label * D : 4 + (label + 1) * D] for f in fields]
            for one in range(3):
                wanted += sum(vectors[one] @ vectors[other] for other in range(one))
            assert got[row, label] == pytest.approx(wanted, abs=1e-4)


def test_interest_network_against_loops():
    config, batch = OTHERS['din'], make_batch()
    model = made(config)
    p = numbers(nnx.to_pure_dict(nnx.state(model)))
    got = scores(model, batch)

    def dice(k):
        q = p['towers']['dice'][0]
        mean, variance = q['norm']['mean'][k], q['norm']['variance'][k]

        def act(x):
            share = sigmoid((x - mean) / np.sqrt(variance + 1e-5))
            return share * x + (1 - share) * q['alpha'][k] * x

        return act

    for row in range(B):
        item = p['table'][batch['features']['item'][row]]
        members = [p['table'][c] for c in batch['features']['past'][row] if c]
        pooled = np.zeros(D)
        for m in members:
            pair = np.concatenate([item, m, item - m, item * m])
            pooled += slow_mlp(p['units'][0], 0, pair, sigmoid)[0] * m
        mean = sum(members) / len(members) if members else np.zeros(D)
        x = np.concatenate([item, mean, pooled, [batch['features']['age'][row]]])
        wanted = [slow_mlp(p['towers'], k, x, dice(k))[0] for k in range(4)]
        np.testing.assert_allclose(got[row], wanted, atol=1e-4, rtol=1e-4)


# ---- identities


def copied(source, target):
    """The target with the parameters of the source that have the same place and shape."""
    there, here = (nnx.to_pure_dict(nnx.state(model)) for model in (source, target))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), there, here)
    state = nnx.state(target)
    nnx.replace_by_pure_dict(state, there)
    nnx.update(target, state)
    return target


def test_sharing_all_experts_is_mmoe_and_one_of_them_the_shared_bottom():
    batch = make_batch()
    one = made(mmoe.Config(experts=3, **SMALL))
    two = copied(one, made(ple.Config(levels=1, shared_experts=3, own_experts=0, **SMALL)))
    np.testing.assert_array_equal(scores(one, batch), scores(two, batch))
    alone = made(mmoe.Config(experts=1, **SMALL))
    heard, _ = alone.head(alone.field_input(batch['features']))
    for label in range(1, 4):
        np.testing.assert_array_equal(heard[:, 0], heard[:, label])


@pytest.mark.parametrize('name', ['cgc', 'adatt, two of its own', 'home'])
def test_experts_of_an_owner_have_no_order(name):
    """Exchanged with their columns of all gates (and numbers) nothing changes."""
    config, batch = HEADS[name], make_batch()
    model = made(config)
    before = scores(model, batch)
    mixture = model.head.mixtures[0] if hasattr(model.head, 'mixtures') else model.head.second
    owners = mixture.level.owners
    order = np.arange(len(owners))
    one = owners.index('like')
    assert owners[one + 1] == 'like'
    order[[one, one + 1]] = order[[one + 1, one]]
    for path, param in nnx.to_flat_state(nnx.state(mixture)):
        value = np.asarray(param[...])
        if value.ndim:  # not the count of batches
            changed = value[order] if path[0] == 'experts' else value[..., order]
            param[...] = jnp.asarray(changed)
    np.testing.assert_allclose(scores(model, batch), before, atol=1e-5)


@pytest.mark.parametrize('factor', [0, 1])
def test_a_feature_gate_without_one_factor_is_exactly_one(factor):
    gate = experts.FeatureGate(3, 7, 3, rngs=nnx.Rngs(0))
    gate.masks.kernels[factor][...] = jnp.zeros_like(gate.masks.kernels[factor][...])
    x = np.random.default_rng(0).normal(size=(B, 7)).astype(np.float32)
    np.testing.assert_array_equal(gate(x), np.broadcast_to(x[:, None], (B, 3, 7)))


def test_a_closed_self_gate_is_none():
    with_gate = made(HEADS['home, one of its own'])
    without = made(home.Config(groups=GROUPS, self_gate=False, **SMALL))
    batch = make_batch()
    for name in ('first', 'second'):
        gates = getattr(with_gate.head, name).self_gates
        gates.kernels[0][...] = jnp.zeros_like(gates.kernels[0][...])
        gates.biases[0][...] = jnp.full_like(gates.biases[0][...], -jnp.inf)
    state = nnx.to_pure_dict(nnx.state(with_gate))
    for name in ('first', 'second'):
        state['head'][name].pop('self_gates')
    target = nnx.state(without)
    nnx.replace_by_pure_dict(target, state)
    nnx.update(without, target)
    np.testing.assert_array_equal(scores(with_gate, batch), scores(without, batch))


# ---- what a gradient reaches


class Stopped(nnx.Module):
    """Level 1 whose shared stream passes no gradient."""

    def __init__(self, mixture):
        self.mixture, self.level = mixture, mixture.level

    def __call__(self, *args):
        mixed = self.mixture(*args)
        shared = jax.lax.stop_gradient(mixed.out[:, -1:])
        return mixed._replace(out=jnp.concatenate([mixed.out[:, :-1], shared], axis=1))


def test_hierarchy_of_gradients():
    """Of a watching label: none to the other group's experts of level 2, and to those of level 1
    through the shared stream alone."""
    model, batch = made(HOME), make_batch()
    batch['mask'] = np.tile(np.float32([1, 0, 0, 0]), (B, 1))
    _, grads = loss_and_gradient(model, batch)
    second = HOME.expert_levels(LABELS)[1].owners
    of_second = np.abs(np.asarray(grads['head']['second']['experts']['kernels'][0])).sum((1, 2))
    for owner, size in zip(second, of_second, strict=True):
        assert (size > 0) == (owner in ('', 'watch', 'click')), owner
    of_gates = np.asarray(grads['head']['second_gate']['gates']['kernels'][0])
    names = ('', 'watch', 'inter', *LABELS)
    assert [n for n, g in zip(names, of_gates, strict=True) if g.any()] == ['', 'watch', 'click']
    first = np.array(HOME.expert_levels(LABELS)[0].owners)
    of_first = np.asarray(grads['head']['first']['experts']['kernels'][0])
    assert all(x.any() for x in of_first)
    model.head.first = Stopped(model.head.first)
    _, grads = loss_and_gradient(model, batch)
    of_first = np.asarray(grads['head']['first']['mixture']['experts']['kernels'][0])
    for owner, gradient in zip(first, of_first, strict=True):
        assert gradient.any() == (owner != 'inter'), owner


@pytest.mark.parametrize('config', [HOME, OTHERS['din']], ids=['home', 'din'])
def test_unknown_labels_teach_nothing(config):
    model, batch = made(config), make_batch()
    _, grads = loss_and_gradient(model, {**batch, 'mask': 0 * batch['mask']})
    assert not any(np.any(x) for x in jax.tree.leaves(grads))
    masked = {**batch, 'mask': batch['mask'] * np.float32([1, 1, 0, 1])}
    _, grads = loss_and_gradient(model, masked)
    flipped = {**masked, 'labels': np.abs(batch['labels'] - np.float32([0, 0, 1, 0]))}
    _, same = loss_and_gradient(model, flipped)
    jax.tree.map(np.testing.assert_array_equal, grads, same)
    towers = np.asarray(grads['towers']['kernels'][0])
    assert not towers[2].any() and towers[3].any()


# ---- batch normalisation


def test_statistics_follow_the_rows_that_count():
    norm = batch_norm.BatchNorm((2, 3))
    rng = np.random.default_rng(0)
    mean, variance = np.zeros((2, 3)), np.ones((2, 3))
    for number in range(1, 13):
        x = rng.normal(2, 3, (B, 2, 3)).astype(np.float32)
        real = np.float32([1, 1, 0, 1, 1, 0, 1])
        kept = x[real > 0].astype(np.float64)
        got = norm(x, real)
        wanted = (kept - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-5)
        np.testing.assert_allclose(got[real > 0], wanted, atol=1e-5)
        rate = max(0.1, 1 / number)
        mean = (1 - rate) * mean + rate * kept.mean(0)
        variance = (1 - rate) * variance + rate * kept.var(0)
    np.testing.assert_allclose(norm.mean[...], mean, atol=1e-5)
    np.testing.assert_allclose(norm.variance[...], variance, rtol=1e-5)
    before = norm.mean[...]
    norm(x, 0 * real)  # nothing that counts
    np.testing.assert_array_equal(norm.mean[...], before)
    assert norm.batches[...] == 12
    wanted = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(norm(x), wanted, atol=1e-4)


@pytest.mark.parametrize('name', ['ple', 'home', 'din'])
def test_batches_of_one_and_evaluation_by_itself(name):
    model, batch = made({**HEADS, **OTHERS}[name]), make_batch()
    whole = scores(model, batch)
    for row in range(2):
        alone = {k: v[row : row + 1] for k, v in batch['features'].items()}
        np.testing.assert_allclose(scores(model, {'features': alone})[0], whole[row], atol=1e-5)
    (value, carry), grads = loss_and_gradient(model, make_batch(1, rows=1))
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    moved = batch_norm.statistics(model)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), carry['statistics'], moved)
    learnt = nnx.to_pure_dict(nnx.state(model, batch_norm.Statistic))
    assert jax.tree.leaves(learnt)
    for path, _ in nnx.to_flat_state(nnx.state(model, batch_norm.Statistic)):
        gradient = grads
        for key in path:
            gradient = gradient[key]
        assert not np.any(gradient)


@pytest.mark.parametrize('name', [pytest.param('home', marks=pytest.mark.slow), 'din', 'fm'])
def test_any_mesh(name, mesh):
    config = {**HEADS, **OTHERS}[name]
    graphdef, params = nnx.split(made(config))
    batch = make_batch(rows=8)

    def run(place=lambda x: x):
        def objective(p, batch):
            model = nnx.merge(graphdef, p)
            value, (_, carry) = model.loss(batch, {}, model.carry(), jax.random.key(0))
            return value, carry

        step = models.jit(lambda p, b: jax.value_and_grad(objective, has_aux=True)(p, b))
        return jax.tree.leaves(jax.device_get(step(nnx.to_pure_dict(params), place(batch))))

    alone = run()
    mesh(2, 2)
    placed = jax.NamedSharding(jax.sharding.get_mesh(), BATCH)
    for got, wanted in zip(run(lambda x: jax.device_put(x, placed)), alone, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize(
    'config, words',
    [
        (ple.Config(levels=2, expert_widths=(8, 8, 8)), 'model.expert_widths=(8, 8, 8)'),
        (ple.Config(shared_experts=0, own_experts=0), 'model.shared_experts'),
        (adatt.Config(levels=3), 'model.levels=3'),
        (home.Config(), 'model.groups'),
        (home.Config(groups=(*GROUPS, home.Group('watch', ('share',)))), 'model.groups'),
        (home.Config(groups=GROUPS, expert_widths=()), 'model.expert_widths'),
        (din.Config(unit_widths=(0,)), 'model.unit_widths'),
        (multi_task.Config(tower_widths=(0,)), 'model.tower_widths'),
    ],
)
def test_values_that_cannot_be(config, words):
    with pytest.raises(UserError) as error:
        config.check()
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('config', [OTHERS['din'], OTHERS['fm']], ids=['din', 'fm'])
def test_rows_that_are_touched_get_the_gradient_of_the_whole_table(config):
    """All fields of a batch name rows of the one table; numbers do not."""
    graphdef, params = nnx.split(made(config))
    params, batch = nnx.to_pure_dict(params), make_batch()

    @models.jit
    def both(params, batch):
        def loss(params):
            return nnx.merge(graphdef, params).loss(batch, {}, {}, None)

        (value, _), dense = jax.value_and_grad(loss, has_aux=True)(params)
        (found, _), (rows, rest) = sparse.value_and_grad(loss, params, batch, config.tables())
        rows = rows['table']
        table = sparse.scatter(jnp.zeros_like(params['table']), rows.ids, rows.values)
        return (value, dense), (found, {**rest, 'table': table})

    dense, found = both(params, batch)
    assert np.abs(dense[1]['table']).max() > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, dense)
