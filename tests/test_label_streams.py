"""Label streams: what is said, when, and that nothing is said before it is known."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.data.label_streams import STREAMS, Visits, first_after, reports
from jaxrec.losses import pointwise

T = 3
KNOWABLE = tuple(name for name in STREAMS if name != 'oracle')


def drawn(seed=0, count=300):
    """Visits of up to two hours; some leave before a window is over."""
    rng = np.random.default_rng(seed)
    stay = np.round(rng.lognormal(5, 1.8, count), 1)
    after = np.round(rng.exponential(300, (count, T)), 1)
    after = np.where((after <= stay[:, None]) & (rng.random((count, T)) < 0.7), after, np.nan)
    return Visits(np.sort(rng.integers(0, 5000, count)), stay, after)


def slow(stream, visits, window=30, fast=300, late=3600):
    """{(time, visit): [T] of None, 0, 1 or 'missed'}, visit by visit and label by label."""
    said = {}

    def say(time, visit, label, what):
        said.setdefault((time, visit), [None] * T)[label] = what

    for visit, (time, stay, after) in enumerate(
        zip(visits.times, visits.stay, visits.after, strict=True)
    ):
        for label in range(T):
            came, when = not np.isnan(after[label]), after[label]
            if stream == 'oracle':
                say(time, visit, label, int(came))
            if stream == 'fake_negative':
                say(time, visit, label, 0)
                if came:
                    say(time + when, visit, label, 1)
            if stream == 'fast_slow':
                say(time + fast, visit, label, int(came and when <= fast))
                if came and fast < when <= late:
                    say(time + late, visit, label, 'missed')
            if stream == 'moment':
                at = stay
                if came:
                    end = window
                    while end < when:
                        end += window
                    at = min(end, stay)
                say(time + at, visit, label, int(came))
            if stream == 'sliver' and (label == 0 or not np.isnan(after[0])):
                end, wanted = 0, time + (max(when, after[0]) if came else stay)
                while end < wanted:
                    end += window
                say(end, visit, label, int(came))
    return said


def told(found):
    """The same of `reports`."""
    said = {}
    for time, visit, *rows in zip(
        found.times, found.visits, found.labels, found.mask, found.missed, strict=True
    ):
        row = []
        for label, mask, missed in zip(*rows, strict=True):
            assert mask + missed in (0, 1) and label <= mask + missed
            row.append('missed' if missed else int(label) if mask else None)
        said[(time, visit)] = row
    assert len(said) == len(found)
    return said


@pytest.mark.parametrize('stream', STREAMS)
def test_reports_are_the_loop(stream):
    visits = drawn()
    found = reports(stream, visits)
    assert told(found) == slow(stream, visits)
    keys = list(zip(found.times, found.visits, strict=True))
    assert keys == sorted(keys)


def until(visits, now):
    """What is known of them at a time: later behaviours and exits are not."""
    there = visits.times <= now
    age = now - visits.times[there]
    stay, after = visits.stay[there], visits.after[there]
    return Visits(
        visits.times[there],
        np.where(stay <= age, stay, np.inf),
        np.where(after <= age[:, None], after, np.nan),
    )


def said_until(found, now):
    early = found.times <= now
    return {name: column[early] for name, column in dataclasses.asdict(found).items()}


@pytest.mark.parametrize('stream', KNOWABLE)
def test_nothing_is_said_before_its_time(stream):
    """What is said until then is the same where nothing of later has happened yet."""
    visits = drawn()
    whole = reports(stream, visits)
    for now in (0, 700, 2500, 4990, 7000, 20000):
        known = said_until(reports(stream, until(visits, now)), now)
        for name, column in said_until(whole, now).items():
            np.testing.assert_array_equal(known[name], column, err_msg=name)


def test_the_oracle_says_what_nobody_can_know():
    visits = drawn()
    known = said_until(reports('oracle', until(visits, 700)), 700)
    assert (known['labels'] != said_until(reports('oracle', visits), 700)['labels']).any()


def test_moment_says_each_label_once():
    visits, found = drawn(), reports('moment', drawn())
    masks, positives = np.zeros((len(visits.times), T)), np.zeros((len(visits.times), T))
    np.add.at(masks, found.visits, found.mask)
    np.add.at(positives, found.visits, found.mask * found.labels)
    np.testing.assert_array_equal(masks, 1)
    np.testing.assert_array_equal(positives, ~np.isnan(visits.after))
    counts = np.bincount(found.visits, minlength=len(visits.times))
    assert (counts <= 1 + T).all() and (counts > 1).any() and not found.missed.any()
    short = np.flatnonzero(visits.stay < 30)
    assert len(short) > 5
    for row in np.flatnonzero(np.isin(found.visits, short)):  # a plain row, at the exit
        visit = found.visits[row]
        assert counts[visit] == 1 and found.mask[row].all()
        np.testing.assert_array_equal(found.labels[row], ~np.isnan(visits.after[visit]))
        assert found.times[row] == visits.times[visit] + visits.stay[visit]


@pytest.mark.parametrize('stream', STREAMS)
def test_the_order_of_visits_does_not_matter(stream):
    visits, order = drawn(), np.random.default_rng(1).permutation(300)
    shuffled = Visits(visits.times[order], visits.stay[order], visits.after[order])
    again = told(reports(stream, shuffled))
    again = {(time, order[visit]): row for (time, visit), row in again.items()}
    assert again == told(reports(stream, visits))


def test_behaviours_after_an_hour_are_kept_by_moment_and_lost_by_fast_slow():
    """One visit of two hours: a click at once, a like after ten minutes, a gift after 65."""
    visits = Visits(np.array([100]), np.array([7200.0]), np.array([[4.0, 600.0, 3900.0]]))
    moment, fast_slow = (told(reports(stream, visits)) for stream in ('moment', 'fast_slow'))
    assert moment == {
        (130, 0): [1, None, None],
        (700, 0): [None, 1, None],
        (4000, 0): [None, None, 1],
    }
    assert fast_slow == {(400, 0): [1, 0, 0], (3700, 0): [None, 'missed', None]}


def test_a_repeated_like_adds_nothing():
    """Of taps the first counts: reports are the same with more of them."""
    visits, seconds = np.array([0, 2, 0, 2, 2]), np.array([50.0, 80.0, 40.0, 70.0, 90.0])
    first = first_after(visits, seconds, 4)
    np.testing.assert_array_equal(first, [40, np.nan, 70, np.nan])
    more = first_after(np.append(visits, [0, 2]), np.append(seconds, [41.0, 500.0]), 4)
    np.testing.assert_array_equal(more, first)


def cross_entropy(z, y):
    return np.logaddexp(0, z) - y * z


@pytest.mark.parametrize('stream', ('moment', 'fast_slow', 'sliver', 'oracle'))
def test_what_is_streamed_adds_up_to_the_loss_on_final_labels(stream):
    """With the same parameters all along; fast_slow knows labels up to the hour."""
    visits, found = drawn(), reports(stream, drawn())
    logits = np.random.default_rng(2).normal(size=(300, T))  # below the end of `taken_back`
    final = ~np.isnan(visits.after)
    if stream == 'fast_slow':
        final &= visits.after <= 3600
    told_of = np.ones((300, T), bool)
    if stream == 'sliver':
        told_of[:, 1:] = final[:, :1]
    z = logits[found.visits]
    streamed = found.mask * cross_entropy(z, found.labels) - found.missed * z
    offline = told_of * cross_entropy(logits, final)
    np.testing.assert_allclose(streamed.sum(0), offline.sum(0), rtol=1e-12)


# ---- losses


def test_a_positive_taken_back():
    """L_fast of a negative and L_slow are -log p; gradient -1; no gradient beyond the end."""
    with jax.enable_x64(True):
        z = np.array([-40.0, -3.0, 0.0, 2.0, 4.9])
        negative = np.logaddexp(0, z)
        np.testing.assert_allclose(
            negative + pointwise.taken_back(z), np.logaddexp(0, -z), rtol=1e-12, atol=1e-15
        )
        gradient = jax.vmap(jax.grad(pointwise.taken_back))(np.array([-40.0, 4.9, 5.1, 90.0]))
        np.testing.assert_array_equal(gradient, [-1, -1, 0, 0])


def test_fake_negatives():
    """The formula in float64, and its gradient with fixed weights."""
    with jax.enable_x64(True):
        z, y = np.random.default_rng(0).normal(size=40), np.arange(40.0) % 2
        p = 1 / (1 + np.exp(-z))
        wanted = np.where(y == 1, -(1 + p) * np.log(p), -(1 - p) * (1 + p) * np.log(1 - p))
        np.testing.assert_allclose(pointwise.fake_negative_weighted(z, y), wanted, rtol=1e-12)
        slopes = jax.vmap(jax.grad(pointwise.fake_negative_weighted))(z, y)
        by_hand = np.where(y == 1, -(1 + p) * (1 - p), (1 - p) * (1 + p) * p)
        np.testing.assert_allclose(slopes, by_hand, rtol=1e-12)


def test_fake_negative_weights_find_the_true_rate():
    """Told N times no and r N times yes, the gradient is 0 at p = r (arXiv 1907.06558)."""
    with jax.enable_x64(True):
        for rate in (0.01, 0.3, 0.8):
            z = np.log(rate / (1 - rate))
            slope = jax.grad(pointwise.fake_negative_weighted)
            assert abs(slope(z, 0.0) + rate * slope(z, 1.0)) < 1e-12
