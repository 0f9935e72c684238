"""Metrics of single scores against loops over pairs, and what must not change them."""

import numpy as np
import pytest

from jaxrec.evaluation import point_metrics as metrics

NAMES = ('click', 'like', 'never')


def draw(n=300, users=25, seed=0, distinct=12):
    """Scores with many ties, labels, users of any number of rows."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, distinct, n) * (3 / distinct) - 1).astype(np.float32)
    labels = (rng.random(n) < 1 / (1 + np.exp(1 - scores))).astype(np.float32)
    return scores, labels, (rng.integers(0, users, n) * rng.integers(0, 2, n)).astype(np.int32) * 7


def slow_auc(scores, labels):
    won = pairs = 0
    for s, y in zip(scores.tolist(), labels.tolist(), strict=True):
        for other, z in zip(scores.tolist(), labels.tolist(), strict=True):
            if y == 1 and z == 0:
                pairs += 1
                won += 1 if s > other else 0.5 if s == other else 0
    return won / pairs if pairs else np.nan


def slow_gauc(scores, labels, users, weight):
    total = mass = 0
    for user in set(users.tolist()):
        own = users == user
        auc = slow_auc(scores[own], labels[own])
        if not np.isnan(auc):
            w = {'rows': own.sum(), 'positives': int(labels[own].sum()), 'equal': 1}[weight]
            total, mass = total + w * auc, mass + w
    return total / mass


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('distinct', [1, 2, 12, 10_000])
def test_auc(seed, distinct):
    scores, labels, _ = draw(150, seed=seed, distinct=distinct)
    assert metrics.auc(scores, labels) == pytest.approx(slow_auc(scores, labels), abs=1e-14)


@pytest.mark.parametrize('weight', metrics.WEIGHTS)
@pytest.mark.parametrize('seed', range(3))
def test_gauc(weight, seed):
    scores, labels, users = draw(seed=seed)
    value, values, weights = metrics.gauc(scores, labels, users, weight)
    assert value == pytest.approx(slow_gauc(scores, labels, users, weight), abs=1e-14)
    assert value == np.average(values, weights=weights)
    assert values.shape == weights.shape == (len(set(users.tolist())),)


def test_group_auc():
    scores, labels, users = draw()
    groups, values, rows, positives = metrics.group_auc(scores, labels, users)
    assert groups.tolist() == sorted(set(users.tolist()))
    for at, group in enumerate(groups):
        own = users == group
        assert rows[at] == own.sum() and positives[at] == labels[own].sum()
        wanted = slow_auc(scores[own], labels[own])
        np.testing.assert_allclose(values[at], wanted, atol=1e-14)  # NaN with NaN


def test_blocks_of_users_change_nothing(monkeypatch):
    scores, labels, users = draw()
    whole = metrics.group_auc(scores, labels, users), metrics.auc(scores, labels)
    for size in (1, 7, 100, 299, 300):
        monkeypatch.setattr(metrics, '_BLOCK', size)
        for one, other in zip(metrics.group_auc(scores, labels, users), whole[0], strict=True):
            np.testing.assert_array_equal(one, other)
        assert metrics.auc(scores, labels) == whole[1]


def test_variants_of_gauc():
    """All are told of; the chosen one is measured. G2 has groups of user and position."""
    scores, labels, users = draw()
    positions = np.random.default_rng(3).integers(5, 8, len(users))
    columns = scores[:, None], labels[:, None], np.ones((len(users), 1)), users, ('click',)
    for weight, title in metrics.WEIGHTS.items():
        found = metrics.clicks(*columns, weight, positions)
        about = found.details['labels']['click']
        for other, name in metrics.WEIGHTS.items():
            wanted = slow_gauc(scores, labels, users, other)
            assert about[name] == pytest.approx(wanted, abs=1e-13)
        assert found.metrics['GAUC/click'] == about[title]
        pairs = users.astype(np.int64) * 100 + positions
        assert about['G2'] == pytest.approx(slow_gauc(scores, labels, pairs, 'rows'), abs=1e-13)
    assert 'G2' not in metrics.clicks(*columns).details['labels']['click']


def test_reliability():
    logits, labels, _ = draw(95, distinct=10_000)
    found = metrics.reliability(logits, labels)
    order, p = np.argsort(logits, kind='stable'), 1 / (1 + np.exp(-logits.astype(np.float64)))
    first = 0
    for said, seen, rows in zip(
        *(found[n] for n in ('predicted', 'observed', 'rows')), strict=True
    ):
        part = order[first : first + rows]
        assert rows in (9, 10) and seen == pytest.approx(labels[part].mean())
        assert said == pytest.approx(p[part].mean(), abs=1e-12)
        first += rows
    assert first == 95 and found['predicted'] == sorted(found['predicted'])
    assert metrics.reliability(logits[:3], labels[:3])['rows'] == [1, 1, 1]


def test_what_does_not_change_gauc():
    scores, labels, users = draw()
    value = metrics.gauc(scores, labels, users)[0]
    of_user = np.random.default_rng(5).normal(size=users.max() + 1)[users]
    same = lambda *args: metrics.gauc(*args)[0] == pytest.approx(value, abs=1e-13)  # noqa: E731
    assert same(scores.astype(np.float64) + np.round(of_user), labels, users)
    assert same(np.exp(scores), labels, users)
    assert same(*(np.repeat(x, 2) for x in (scores, labels, users)))
    order = np.random.default_rng(6).permutation(len(scores))
    assert same(scores[order], labels[order], users[order])
    assert metrics.gauc(-scores, labels, users)[0] == pytest.approx(1 - value, abs=1e-13)
    assert metrics.gauc(of_user, labels, users)[0] == 0.5
    labels = np.tile([1.0, 0, 0, 1, 0], 60)
    users = np.repeat(np.arange(60), 5)
    found = {round(metrics.gauc(scores, labels, users, w)[0], 12) for w in metrics.WEIGHTS}
    assert len(found) == 1  # equal rows and positives


def test_edges():
    two, one = np.array([0.0, 1]), np.array([1.0, 1])
    assert metrics.auc(np.array([-np.inf, np.inf]), two) == 1
    assert np.isnan(metrics.auc(two, one)) and np.isnan(metrics.auc(two[:0], two[:0]))
    value, values, weights = metrics.gauc(two, one, np.array([4, 4]))
    assert np.isnan(value) and values.tolist() == [0.5] and weights.tolist() == [0]
    with pytest.raises(ValueError, match='NaN'):
        metrics.auc(np.array([np.nan, 1]), two)
    with pytest.raises(ValueError, match='rows, positives, equal'):
        metrics.gauc(two, two, two, 'clicks')


def test_losses_and_errors():
    logits = np.array([-3.0, 0.5, 40, -800, 800], np.float32)
    labels = np.array([0, 1, 1, 0, 1], np.float32)
    p = 1 / (1 + np.exp(-logits[:3].astype(np.float64)))
    wanted = -np.log(np.where(labels[:3] == 1, p, 1 - p))
    np.testing.assert_allclose(metrics.logloss(logits, labels)[:3], wanted, atol=1e-15)
    np.testing.assert_array_equal(metrics.logloss(logits, labels)[3:], 0)
    np.testing.assert_array_equal(metrics.logloss(logits, 1 - labels)[3:], 800)
    assert metrics.entropy(0.5) == pytest.approx(np.log(2)) and metrics.entropy(1.0) == 0
    rate = np.full(1000, np.log(0.2 / 0.8))
    y = np.repeat([1.0, 0], [200, 800])
    loss = metrics.logloss(rate, y).mean()
    assert metrics.normalised_entropy(loss, 0.2) == pytest.approx(1, abs=1e-12)
    assert metrics.calibration(rate, y) == pytest.approx(1, abs=1e-12)
    assert metrics.calibration(rate, y[:1].repeat(1000)) == pytest.approx(0.2)
    assert np.isnan(metrics.calibration(rate, 0 * y))
    assert metrics.rela_impr(0.74, 0.62) == pytest.approx(1.0)
    guess, truth = np.array([1.0, 2, 5]), np.array([1.0, 4, 4])
    assert metrics.mae(guess, truth) == 1 and metrics.rmse(guess, truth) == (5 / 3) ** 0.5


def test_clicks():
    scores, labels, users = draw()
    rng = np.random.default_rng(2)
    other = (rng.random(300) < 0.2).astype(np.float32)
    logits = np.stack([scores, -scores, scores], 1)
    labels = np.stack([labels, other, 0 * other], 1)
    mask = np.stack([np.ones(300), rng.random(300) < 0.6, rng.random(300) < 0.5], 1)
    mask[users == users.max(), 1] = 0  # a user of whom one label is never known
    found = metrics.clicks(logits, labels, mask.astype(np.float32), users, NAMES)
    for column, name in enumerate(NAMES[:2]):
        on = mask[:, column] > 0
        s, y, u = logits[on, column], labels[on, column], users[on]
        assert found.metrics[f'AUC/{name}'] == pytest.approx(slow_auc(s, y), abs=1e-13)
        wanted = slow_gauc(s, y, u, 'rows')
        assert found.metrics[f'GAUC/{name}'] == pytest.approx(wanted, abs=1e-13)
        loss = metrics.logloss(s, y).mean()
        assert found.metrics[f'logloss/{name}'] == pytest.approx(loss, abs=1e-13)
        ne = loss / metrics.entropy(y.mean(dtype=np.float64))
        assert found.metrics[f'NE/{name}'] == pytest.approx(ne, abs=1e-12)
        about = found.details['labels'][name]
        assert about['rows'] == on.sum() and about['positives'] == y.sum()
        both = [len(set(y[u == user].tolist())) == 2 for user in set(u.tolist())]
        assert about['gauc_users'] == sum(both)
    assert found.unit == 'user' and found.details['users'] == len(set(users.tolist()))
    for name, values in found.values.items():
        assert values.shape == (len(set(users.tolist())),)
        mean = np.average(values, weights=found.weights[name])
        assert found.metrics[name] == pytest.approx(mean, abs=1e-13)
    assert 'logloss/never' in found.metrics and 'AUC/never' not in found.metrics
    assert {name.partition('/')[0] for name in found.metrics} == set(metrics.METRICS)
    assert not metrics.METRICS['logloss'].higher and metrics.METRICS['GAUC'].higher
