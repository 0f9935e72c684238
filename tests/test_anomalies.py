"""What is told of mixtures of experts, against loops, and on a made collapse."""

import itertools
import json

import jax
import numpy as np
import pytest

from jaxrec.evaluation import anomalies
from jaxrec.problem import Level

LEVEL = Level(('a', 'b', ''), ('', '', 'a', 'b'), (('', 'a'), ('', 'b'), ('', 'a', 'b')))
LABELS = {'a': {'positives': 7}, 'b': {'positives': 900}}
B, D = 11, 3


def draw(seed=0):
    rng = np.random.default_rng(seed)
    logits = np.where(LEVEL.sees, rng.normal(size=(B, 3, 4)), -np.inf)
    said = np.maximum(rng.normal(size=(B, 4, D)), 0).astype(np.float32)
    return {'gates/0': np.asarray(jax.nn.softmax(logits)), 'experts/0': said}


def told(columns, cuts=(0, B)):
    experts = anomalies.Experts((LEVEL,))
    for first, last in itertools.pairwise(cuts):
        experts.add({'logits': 0, **{name: x[first:last] for name, x in columns.items()}})
    return experts.details(LABELS)['level 1']


def test_against_loops():
    columns = draw()
    found, gates = told(columns), columns['gates/0'].astype(np.float64)
    mean = gates.mean(0)
    for e, name in enumerate(('shared 1', 'shared 2', 'a 1', 'b 1')):
        out, about = columns['experts/0'][:, e].astype(np.float64), found['experts'][name]
        assert about['mean'] == pytest.approx(out.mean()) and about['std'] == pytest.approx(
            out.std()
        )
        assert about['zeros'] == pytest.approx((out == 0).mean())
        assert found['gates']['b'][name] == pytest.approx(mean[1, e], abs=1e-7)
        counts = found['histogram']['counts'][name]
        assert sum(counts) == B * D
        edges = [-np.inf, *found['histogram']['edges'], np.inf]
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            assert count == ((out > low) & (out <= high)).sum()
    one = found['experts']['shared 2']['one_label']
    assert one == pytest.approx(mean[:2, 1].max() / mean[:2, 1].sum())
    assert 'one_label' not in found['experts']['a 1']
    a = found['listeners']['a']
    assert a['own'] == pytest.approx(mean[0, 2]) and a['positives'] == 7
    seen = mean[0][mean[0] > 0]
    assert a['effective_experts'] == pytest.approx(np.exp(-(seen * np.log(seen)).sum()))
    assert found['largest_gate'] == pytest.approx(mean.max())
    deviations = [found['experts'][n]['std'] for n in found['experts']]
    assert found['std_ratio'] == pytest.approx(max(deviations) / min(deviations))
    assert 'own' not in found['listeners']['shared']
    json.dumps(found, allow_nan=False)


def test_parts_and_their_order_change_nothing():
    columns = draw()
    parts = told(columns, (0, 4, 5, B))
    flat = lambda x: [np.float64(v) for v in jax.tree.leaves(x)]  # noqa: E731
    np.testing.assert_allclose(flat(parts), flat(told(columns)), rtol=1e-12)


def test_a_collapse_is_seen():
    """One expert with all the weight, the others a hundredth as large."""
    columns = draw()
    columns['gates/0'] = np.zeros((B, 3, 4)) + np.array([0.99, 0.01, 0, 0])
    columns['experts/0'][:, 1:] /= 100
    found = told(columns)
    assert found['largest_gate'] == pytest.approx(0.99)
    assert found['std_ratio'] > 50 and found['listeners']['b']['own'] == 0
    assert found['listeners']['a']['effective_experts'] < 1.1
    dead = draw()
    dead['experts/0'][:, 2] = 0
    assert told(dead)['std_ratio'] is None and told(dead)['experts']['a 1']['zeros'] == 1


def test_nothing_to_tell():
    experts = anomalies.Experts((LEVEL,))
    experts.add({'logits': np.zeros((B, 2))})
    assert experts.details(LABELS) == {} and anomalies.Experts(()).details({}) == {}
