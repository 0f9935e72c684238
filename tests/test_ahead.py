"""Batches computed ahead of the one that is read: in order, to the bit, compiled once."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from jaxrec.devices import tuning
from jaxrec.devices.ahead import ahead
from jaxrec.training import state as state_lib


@pytest.fixture
def lanes(mesh, monkeypatch):
    """Four on one device, whatever this machine has."""
    mesh(1, 1)
    monkeypatch.setattr(tuning, 'cores', lambda: 8)
    assert tuning.lanes() == 4


def batches(sizes):
    rng = np.random.default_rng(0)
    return [(n, jnp.asarray(rng.normal(size=(size, 64)))) for n, size in enumerate(sizes)]


def test_in_order_and_to_the_bit(lanes):
    traced, callers = [], set()

    @jax.jit
    def program(x):
        traced.append(x.shape)
        return jnp.cumsum(jax.nn.softmax(x @ x.T), 0)

    def call(x):
        callers.add(threading.get_ident())
        return program(x)

    given = batches([8, 32, 8, 8, 32, 16, 8, 32, 32, 8] * 3)
    with jax.default_matmul_precision('highest'):
        found = list(ahead(call, iter(given)))
        expected = [program(x) for _, x in given]
    assert [key for key, _ in found] == list(range(30))
    for (_, ours), reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, reference)
    assert traced == [(8, 64), (32, 64), (16, 64)]  # once each, under one precision
    assert 1 < len(callers) <= 5


def test_no_more_than_a_few_are_begun(lanes):
    begun = []
    results = ahead(lambda x: begun.append(1) or x, iter(batches([8] * 50)))
    for read in range(1, 4):
        next(results)
        assert len(begun) <= read + 4
    results.close()
    assert len(begun) <= 8


def test_a_mistake_is_told(lanes):

    def call(x):
        if float(x[0, 0]) == 7:
            raise ValueError('seven')
        return x

    given = [(n, jnp.full((2, 2), n)) for n in range(20)]
    read = []
    with pytest.raises(ValueError, match='seven'):
        for key, _ in ahead(call, given):
            read.append(key)
    assert read == list(range(7))


@pytest.mark.parametrize('where', ['several devices', 'an accelerator', 'one core'])
def test_one_thread_where_order_matters_or_nothing_is_won(mesh, monkeypatch, where):
    mesh(2 if where == 'several devices' else 1, 1)
    monkeypatch.setattr(tuning, 'cores', lambda: 1 if where == 'one core' else 8)
    if where == 'an accelerator':
        monkeypatch.setattr(tuning, 'platform', lambda: 'gpu')
    callers = set()

    def call(x):
        callers.add(threading.get_ident())
        return x

    assert len(list(ahead(call, batches([8] * 20)))) == 20
    assert callers == {threading.get_ident()}


def test_turns_of_a_step_side_by_side_are_the_same(mesh, tmp_path, monkeypatch):
    """Two at a time of five, against one after the other."""
    mesh(1, 1)
    changes = {'train.microbatches': 5, 'train.batch_rows': 10}
    run = runs.small(tmp_path, **changes)
    problem = run.task.open(run, lambda line: None)
    batches, found = problem.batches(), {1: [], 2: []}
    for at_once in (1, 2):
        changed = dataclasses.replace(tuning.tuning(), turns_at_once=at_once)
        monkeypatch.setattr(state_lib, 'tuning', lambda changed=changed: changed)
        program = state_lib.Program(run, problem, 10)
        state = program.init()
        program.start(0)
        for step in range(3):
            state, metrics = program.step(state, program.put([batches(step)]))
            found[at_once] += [metrics['loss'], metrics['grad_norm']]
    np.testing.assert_allclose(found[2], found[1], rtol=1e-5)
