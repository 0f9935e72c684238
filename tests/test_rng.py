"""Randomness by name: which bits a stream or a key of a step are."""

import jax
import numpy as np
import pytest
from runs import small

from jaxrec import rng
from jaxrec.config import LARGEST_SEED
from jaxrec.errors import UserError
from jaxrec.training.loop import fit, fit_together
from jaxrec.training.parallel_runs import Runs, expand
from jaxrec.training.state import Program


def test_streams_of_the_host():
    """Seed, stream and number alone, as written here: runs of before go on with the same bits."""
    streams = {rng.ORDER: 1, rng.NEGATIVES: 2, rng.CUTS: 3, rng.POSITIVES: 4}
    assert len(streams) == 4
    firsts = []
    for stream, n in streams.items():
        for seed in (0, 7):
            for number in (0, 5):
                drawn = rng.host(seed, stream, number).integers(0, 2**63, 8)
                expected = np.random.default_rng([seed, n, number]).integers(0, 2**63, 8)
                np.testing.assert_array_equal(drawn, expected)
                again = rng.host(seed, stream, number)  # whatever was drawn before
                np.testing.assert_array_equal(again.integers(0, 2**63, 8), expected)
                firsts.append(drawn[0])
    assert len(set(firsts)) == len(firsts)


def test_keys_of_a_step():
    key = jax.random.key(3)
    keys = rng.keys(key, 'encode', 'table', 'negatives')
    assert list(keys) == ['encode', 'table', 'negatives']
    for own, expected in zip(keys.values(), jax.random.split(key, 3), strict=True):
        np.testing.assert_array_equal(jax.random.key_data(own), jax.random.key_data(expected))
    other = rng.keys(key, 'table', 'encode', 'negatives')  # the order is part of the bits
    same = jax.random.key_data(keys['encode']) == jax.random.key_data(other['encode'])
    assert not same.all()
    assert rng.keys(None, 'encode', 'table') == {'encode': None, 'table': None}


@pytest.mark.parametrize('names', [('one',), ('a', 'b')])
def test_keys_inside_a_program(names):
    key = jax.random.key(1)
    inside = jax.jit(lambda key: rng.keys(key, *names))(key)
    for name, own in rng.keys(key, *names).items():
        np.testing.assert_array_equal(jax.random.key_data(inside[name]), jax.random.key_data(own))


WORD = 2**32
SEEDS = [0, 1, 2, 5, WORD - 1, WORD, WORD + 1, 2 * WORD, 5 * WORD, 5 * WORD + 1, LARGEST_SEED]


def test_no_two_seeds_share_a_stream_of_the_host():
    """Nor does a stream of one meet another stream, or another number, of another."""
    streams = [
        tuple(rng.host(seed, stream, number).integers(0, 2**63, 2))
        for seed in SEEDS
        for stream in (rng.ORDER, rng.NEGATIVES, rng.CUTS, rng.POSITIVES)
        for number in (0, 1, 2, 3, 4, 5, 2**31 - 1)
    ]
    assert len(set(streams)) == len(streams)


def test_no_two_seeds_share_a_key():
    """Nor a key with any of another's first steps; below 2^32 it is JAX's own, traced or not."""
    traced = jax.jit(jax.vmap(rng.key))(np.stack([rng.words(seed) for seed in SEEDS]))
    seen = set()
    for seed, inside in zip(SEEDS, traced, strict=True):
        key = rng.key(seed)
        data = jax.random.key_data(key)
        np.testing.assert_array_equal(data, jax.random.key_data(inside))
        if seed < WORD:
            np.testing.assert_array_equal(data, jax.random.key_data(jax.random.key(seed)))
        steps = [jax.random.fold_in(key, step) for step in range(8)]
        seen |= {tuple(jax.random.key_data(one).tolist()) for one in (key, *steps)}
    assert len(seen) == 9 * len(SEEDS)


@pytest.mark.parametrize('kind', ['rbg', 'unsafe_rbg'])
def test_keys_of_another_generator(kind):
    with jax.default_prng_impl(kind):
        for seed in (0, 7, WORD - 1):
            expected = jax.random.key_data(jax.random.key(seed))
            np.testing.assert_array_equal(jax.random.key_data(rng.key(seed)), expected)


def test_large_seeds_begin_and_step_differently_alone_and_in_one_program(mesh, tmp_path):
    """Initial weights and dropout, of runs with the same batches: those of one problem."""
    mesh(1, 1)
    seeds = (0, WORD, LARGEST_SEED)
    flat = {'model.blocks': 0, 'optim.ema': 0.0}
    runs = [small(tmp_path, **flat, **{'train.seed': seed}) for seed in seeds]
    problem = runs[0].task.open(runs[0], lambda line: None)
    batch = problem.periods[0]().batches(0)

    def tables(program, batches):
        state = program.init()
        program.start(0)
        first = [jax.device_get(p['table']) for p in program.parameters(state)]
        _, metrics = program.step(state, program.put(batches))
        return first, np.ravel(metrics['loss'])

    together, losses = tables(Runs(runs, problem, 10), [batch] * len(runs))
    for nth, run in enumerate(runs):
        (alone,), loss = tables(Program(run, problem, 10), [batch])
        np.testing.assert_allclose(together[nth], alone, rtol=1e-6)
        np.testing.assert_allclose(losses[nth], loss[0], rtol=1e-5)
    assert len({table.tobytes() for table in together}) == len(seeds)
    assert len(set(losses.tolist())) == len(seeds)


@pytest.mark.parametrize('seed', [-1, LARGEST_SEED + 1, 99999999999999999999])
def test_other_seeds_are_refused_before_anything_is_read(tmp_path, seed):
    with pytest.raises(UserError, match=rf'train\.seed={seed} is not in \[0, {LARGEST_SEED}\]'):
        fit(small(tmp_path, **{'train.seed': seed}), tmp_path / 'run')
    runs = expand(small(tmp_path), [str(seed)], [])
    with pytest.raises(UserError, match=rf'train\.seed={seed} is not in'):
        fit_together(runs, tmp_path / 'run')
    assert not list(tmp_path.iterdir())
    for name in ('synthetic', 'block-model', 'live-rooms'):
        with pytest.raises(UserError, match=f'seed={seed} is not in'):
            fit(small(tmp_path, **{'data.dataset': f'{name}:seed={seed}'}), tmp_path / 'run')
