"""Augmentations: what each may do to a history, ragged or packed, and how often it does what."""

import collections
import fractions
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from models import jit

from jaxrec.objectives import augment

L = 12
RATES = st.sampled_from([0.0, 0.1, 0.29, 0.3, 0.5, 0.6, 0.7, 0.9, 1.0])
PACKED = st.lists(  # rows of segments' lengths that fit L places
    st.lists(st.integers(1, L), max_size=L).map(
        lambda lengths: [
            n for n, end in zip(lengths, itertools.accumulate(lengths), strict=True) if end <= L
        ]
    ),
    min_size=3,
    max_size=3,
)


def pack(rows):
    """Rows of segments with these lengths; items are all different, similar ones 1000 more."""
    out = {name: np.zeros((len(rows), L), np.int32) for name in ('items', 'segments', 'positions')}
    for row, lengths in enumerate(rows):
        at = 0
        for number, length in enumerate(lengths, 1):
            place = slice(at, at + length)
            out['items'][row, place] = 100 * row + np.arange(at, at + length) + 1
            out['segments'][row, place] = number
            out['positions'][row, place] = np.arange(L - length, L)
            at += length
    out['similar'] = np.where(out['items'] > 0, out['items'] + 1000, 0)
    x = np.where(out['items'] > 0, out['items'] + 5000, 0)
    out['features'] = {'x': x, 'set': np.stack([x] * 2, -1)}
    return out


def ragged(lengths):
    """One right-aligned segment per row, as `batches.history_batch` makes them."""
    rows = pack([[n] if n else [] for n in lengths])

    def align(x):
        return np.stack([np.roll(x[i], L - n, 0) for i, n in enumerate(lengths)])

    return jax.tree.map(align, rows)


def histories(rows):
    """[(items, positions, features)] of every segment, in order; checks that they are whole."""
    rows = jax.tree.map(np.asarray, rows)
    found, features = [], rows['features']
    for row in range(len(rows['items'])):
        segments = rows['segments'][row]
        numbers = [s for s, _ in itertools.groupby(segments[segments > 0])]
        assert numbers == sorted(set(numbers)), 'each in one piece, in order'
        for number in numbers:
            here = np.flatnonzero(segments == number)
            np.testing.assert_array_equal(here, np.arange(here[0], here[-1] + 1))
            positions = rows['positions'][row, here]
            np.testing.assert_array_equal(np.diff(positions), 1)
            assert 0 <= positions[0] <= positions[-1] < L
            x, pair = features['x'][row, here], features['set'][row, here]
            np.testing.assert_array_equal(pair, np.stack([x, x], -1))
            found.append((rows['items'][row, here].tolist(), x.tolist()))
        outside = segments == 0
        for value in jax.tree.leaves(rows):
            assert not value[row][outside].any()
    return found


def share(rate, length):
    """floor(rate n), the rate taken as the decimal it is written as."""
    return math.floor(fractions.Fraction(str(rate)) * length)


JITTED = {  # one program for all rates, but for `insert`, whose width is the rate's
    name: jax.jit(f, static_argnums=2 if name == 'insert' else ())
    for name, f in augment.OPERATIONS.items()
}
JITTED_PREFIX = jax.jit(augment.prefix)
JITTED_SHUFFLE = jax.jit(augment.shuffle)
JITTED_EVENTS = jax.jit(lambda segments, key, rate: augment.draw_events(segments, key, rate, 3))
THREE = {'crop': 0.5, 'mask': 0.3, 'substitute': 0.9}
ALL = {**dict.fromkeys(('crop', 'reorder', 'sample'), 0.6), 'mask': 0.3, 'substitute': 0.3}
ALL['insert'] = 0.5
views_of_three = jax.jit(lambda rows, key: augment.two_views(rows, key, THREE, 4))
ANY = hypothesis.settings(max_examples=60, deadline=None)


def cases(test):
    """Packed and right-aligned rows, any rate and key."""
    given = hypothesis.given(
        rows=PACKED.map(pack) | st.lists(st.integers(0, L), min_size=3, max_size=3).map(ragged),
        rate=RATES,
        seed=st.integers(0, 2**31),
    )
    return ANY(given(test))


def run(name, rows, rate, seed):
    """Pairs of histories before and after."""
    before = histories(rows)
    after = histories(JITTED[name](rows, jax.random.key(seed), rate))
    assert len(before) == len(after)
    ends = newest_positions(rows), newest_positions(JITTED[name](rows, jax.random.key(seed), rate))
    for positions in ends:
        np.testing.assert_array_equal(positions, L - 1)
    return zip(before, after, strict=True)


def newest_positions(rows):
    """Of each segment."""
    segments, positions = np.asarray(rows['segments']), np.asarray(rows['positions'])
    following = np.pad(segments[:, 1:], ((0, 0), (0, 1)))
    return positions[(segments > 0) & (segments != following)]


@cases
def test_crop_is_contiguous(rows, rate, seed):
    after = JITTED['crop'](rows, jax.random.key(seed), rate)
    for (old, _), (new, features) in zip(*map(histories, (rows, after)), strict=True):
        assert len(new) == max(1, share(rate, len(old)))
        at = old.index(new[0])
        assert new == old[at : at + len(new)]
        assert features == [item + 5000 for item in new]
    kept = np.asarray(after['segments']) > 0
    for name in ('items', 'segments', 'positions'):
        np.testing.assert_array_equal(after[name][kept], np.asarray(rows[name])[kept])


@cases
def test_a_prefix_keeps_the_oldest_events(rows, rate, seed):
    after = JITTED_PREFIX(rows, jax.random.key(seed))
    for (old, _), (new, features) in zip(*map(histories, (rows, after)), strict=True):
        assert 1 <= len(new) and new == old[: len(new)]
        assert features == [item + 5000 for item in new]
    kept = np.asarray(after['segments']) > 0
    np.testing.assert_array_equal(after['positions'][kept], np.asarray(rows['positions'])[kept])


def test_all_prefixes_are_equally_likely():
    rows = pack([[4, 3]] * 2000)
    segments = np.asarray(JITTED_PREFIX(rows, jax.random.key(1))['segments'])
    for number, length in ((1, 4), (2, 3)):
        found = np.bincount((segments == number).sum(1), minlength=length + 1)
        np.testing.assert_allclose(found[1:] / 2000, 1 / length, atol=0.04)
        assert not found[0]


@cases
def test_shuffle_gives_positions_to_other_events_of_their_segment(rows, rate, seed):
    """ConSERT's; events stay, and so does padding."""
    after = JITTED_SHUFFLE(rows, jax.random.key(seed))
    old, new, segments = (
        np.asarray(x) for x in (rows['positions'], after['positions'], rows['segments'])
    )
    np.testing.assert_array_equal(new[segments == 0], old[segments == 0])
    for row, number in {(r, n) for r, n in zip(*np.nonzero(segments), strict=True)}:
        here = (row, segments[row] == segments[row, number])
        np.testing.assert_array_equal(np.sort(new[here]), old[here])
    for name in ('items', 'segments', 'similar'):
        np.testing.assert_array_equal(after[name], rows[name])


@cases
def test_token_cutoff_cuts_whole_events_and_no_padding(rows, rate, seed):
    segments = np.asarray(rows['segments'])
    cut = np.asarray(JITTED_EVENTS(segments, jax.random.key(seed), rate))
    assert (cut.any(-1) == cut.all(-1)).all()
    for row, number in enumerate(segments):
        for n in range(segments.max() + 1):
            mine = number == n
            assert cut[row, mine, 0].sum() == (share(rate, mine.sum()) if n else 0)


@cases
def test_mask_hides_exactly_so_many(rows, rate, seed):
    for (old, _), (new, features) in run('mask', rows, rate, seed):
        assert len(new) == len(old)
        hidden = [i for i, item in enumerate(new) if item == augment.MASK]
        assert len(hidden) == share(rate, len(old))
        kept = [i for i in range(len(old)) if i not in hidden]
        assert [new[i] for i in kept] == [old[i] for i in kept]
        assert [f > 0 for f in features] == [item > 0 for item in new]


@cases
def test_reorder_permutes_one_span_and_nothing_else(rows, rate, seed):
    for (old, _), (new, features) in run('reorder', rows, rate, seed):
        assert sorted(new) == sorted(old)
        changed = [i for i in range(len(old)) if old[i] != new[i]]
        if changed:
            assert changed[-1] - changed[0] < share(rate, len(old))
        assert features == [item + 5000 for item in new]


@cases
def test_sample_keeps_some_events_in_their_order(rows, rate, seed):
    """At the newest places of their segment; no padding among them."""
    after = JITTED['sample'](rows, jax.random.key(seed), rate)
    for (old, _), (new, features) in zip(*map(histories, (rows, after)), strict=True):
        assert len(new) == max(1, share(rate, len(old)))
        rest = iter(old)
        assert all(item in rest for item in new), 'a sub-sequence'
        assert features == [item + 5000 for item in new]
    kept = np.asarray(after['segments']) > 0
    for name in ('segments', 'positions'):
        np.testing.assert_array_equal(after[name][kept], np.asarray(rows[name])[kept])
    np.testing.assert_array_equal(newest_positions(after), L - 1)


@cases
def test_substitute_replaces_by_the_similar_item(rows, rate, seed):
    for (old, _), (new, features) in run('substitute', rows, rate, seed):
        assert len(new) == len(old)
        changed = [i for i in range(len(old)) if old[i] != new[i]]
        assert len(changed) == (max(1, share(rate, len(old))) if len(old) > 1 else 0)
        assert all(new[i] == old[i] + 1000 for i in changed)
        assert [f > 0 for f in features] == [i not in changed for i in range(len(old))]


@cases
def test_insert_puts_the_similar_item_before(rows, rate, seed):
    for (old, _), (new, features) in run('insert', rows, rate, seed):
        count = max(1, share(rate, len(old))) if len(old) > 1 else 0
        assert len(new) == min(len(old) + count, L)
        inserted = [i for i, item in enumerate(new) if item > 1000]
        assert [new[i] for i in range(len(new)) if i not in inserted] == old[
            len(old) - (len(new) - len(inserted)) :
        ]
        for i in inserted:
            assert new[i] == new[i + 1] + 1000
        assert [f > 0 for f in features] == [i not in inserted for i in range(len(new))]


@ANY
@hypothesis.given(rows=PACKED.map(pack), seed=st.integers(0, 2**31), chosen=st.integers(0, 2**L))
def test_where_spares_segments(rows, seed, chosen):
    """Segments that `where` leaves out stay as they are."""
    where = ((chosen >> rows['segments']) & 1 > 0) & (rows['segments'] > 0)
    spared = [
        not bool(where[row][rows['segments'][row] == number].any())
        for row in range(3)
        for number in range(1, int(rows['segments'][row].max()) + 1)
    ]
    for name in augment.OPERATIONS:
        out = histories(JITTED[name](rows, jax.random.key(seed), 0.6, where))
        for old, new, keep in zip(histories(rows), out, spared, strict=True):
            if keep:
                assert old == new, name


@ANY
@hypothesis.given(rows=PACKED.map(pack), seed=st.integers(0, 2**31))
def test_two_views_are_of_different_operations(rows, seed):
    """Each of THREE leaves its own trace on a history of 4 events or more."""
    views = views_of_three(rows, jax.random.key(seed))

    def operation(old, new):
        if len(new) < len(old):
            return 'crop'
        return 'mask' if augment.MASK in new else 'substitute'

    for (old, _), (one, _), (two, _) in zip(*map(histories, (rows, *views)), strict=True):
        if len(old) >= 4:
            assert operation(old, one) != operation(old, two)
        if len(old) <= 4:  # SHORT
            assert len(one) == len(two) == len(old)


def test_a_single_operation_makes_both_views():
    rows = pack([[12], [6, 6], [1]])
    one, two = augment.two_views(rows, jax.random.key(0), {'mask': 0.5})
    for (old, _), (a, _), (b, _) in zip(*map(histories, (rows, one, two)), strict=True):
        assert a.count(augment.MASK) == b.count(augment.MASK) == len(old) // 2
    assert (one['items'] != two['items']).any()


def outcomes(name, length, rate, draws=6000):
    """Counter of the new histories over many keys (and, packed, over both segments of a row)."""
    rows = pack([[length, length]] * 10)
    keys = jax.random.split(jax.random.key(3), draws // 20)
    out = jax.jit(jax.vmap(lambda key: augment.OPERATIONS[name](rows, key, rate)['items']))(keys)
    out = np.asarray(out)[..., : 2 * length].reshape(-1, 10, 2, length)
    start = np.asarray(rows['items'])[:, : 2 * length].reshape(10, 2, length)[..., :1]
    relative = np.where(out > 0, out - start, -1).reshape(-1, length)
    return collections.Counter(map(tuple, relative.tolist()))


@pytest.mark.parametrize(
    ('name', 'length', 'rate', 'count'),
    [
        ('crop', 6, 0.5, 4),  # starts
        ('mask', 5, 0.4, 10),  # pairs of places
        ('sample', 5, 0.4, 10),  # pairs of events
        ('reorder', 4, 1.0, 24),  # orders
        ('reorder', 3, 0.67, 3),  # the identity half the time, else one of two exchanges
    ],
)
def test_all_outcomes_are_about_equally_likely(name, length, rate, count):
    """Chi-squared of the counts: with these keys, far below where doubt begins."""
    seen = outcomes(name, length, rate)
    assert len(seen) == count
    total = sum(seen.values())
    expected = dict.fromkeys(seen, total / count)
    if count == 3:
        expected = {k: total * (0.5 if k == (0, 1, 2) else 0.25) for k in seen}
    chi2 = sum((n - expected[k]) ** 2 / expected[k] for k, n in seen.items())
    assert chi2 < count - 1 + 4 * math.sqrt(2 * (count - 1))


def test_the_same_on_every_mesh(mesh):
    rows = pack([[5, 3, 1], [12], [2, 2, 2, 2], [1] * 8] * 2)

    @jit
    def views(rows, key):
        cut = augment.draw_dimensions(rows['segments'], key, 0.3, 4)
        return augment.two_views(rows, key, ALL, 3), cut

    expected = jax.device_get(views(rows, jax.random.key(0)))
    mesh(4, 2)
    split = jax.NamedSharding(jax.sharding.get_mesh(), jax.P('data'))
    got = views(jax.device_put(rows, split), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, expected, jax.device_get(got))


def test_dimensions_are_cut_alike_in_a_segment():
    rows = pack([[5, 7]] * 50)
    cut = np.asarray(augment.draw_dimensions(rows['segments'], jax.random.key(0), 0.3, 40))
    assert (cut[:, :5] == cut[:, :1]).all() and (cut[:, 5:] == cut[:, 5:6]).all()
    assert (cut[:, 0] != cut[:, 5]).any(1).all() and (cut[0, 0] != cut[1, 0]).any()
    assert abs(cut[:, [0, 5]].mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
