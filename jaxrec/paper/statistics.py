"""Intervals over seeds and paired tests over users."""

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 10_000
_AT_ONCE = 1 << 22  # resampled users held at a time


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None]:
    """(mean, half width of its confidence interval) over seeds, by Student's t.

    The half width is None for a single value.
    """
    from scipy import stats  # comes with jax

    values = np.asarray(values, np.float64)
    count = len(values)
    if count < 2:
        return float(values.mean()), None
    quantile = stats.t.ppf((1 + level) / 2, count - 1)
    return float(values.mean()), float(quantile * values.std(ddof=1) / count**0.5)


def paired(
    a: np.ndarray,
    b: np.ndarray,
    test: str = 't',
    resamples: int = RESAMPLES,
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Whether users fare otherwise under a than under b: two-sided, paired.

    Args:
      a, b: float64 [users], a metric of the same users (or rows, graphs) in the same order.
      test: 't', or 'bootstrap' of the mean difference (percentiles; the same resamples every time).
      resamples: of the bootstrap.
      weights: float64 [users] of the mean; None = all the same. The mean is then a ratio of two
        sums, whose error is that of its linear part (delta method).

    Returns:
      difference: mean of a - b; low, high: its 95 % interval; p: p-value.
    """
    from scipy import stats

    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    w = np.ones(len(d)) if weights is None else np.asarray(weights, np.float64)
    even, count = bool((w == w[0]).all()) if len(w) else True, len(d)
    mean = float(d.mean() if even else np.average(d, weights=w))
    if not d.any() or count < 2:
        return {'difference': mean, 'low': mean, 'high': mean, 'p': 1.0}
    if test == 't':
        linear = d if even else w * (d - mean) / w.mean()
        error = float(linear.std(ddof=1)) / count**0.5
        if error == 0:
            return {'difference': mean, 'low': mean, 'high': mean, 'p': 0.0}
        half = float(stats.t.ppf(0.975, count - 1)) * error
        p = float(2 * stats.t.sf(abs(mean) / error, count - 1))
        return {'difference': mean, 'low': mean - half, 'high': mean + half, 'p': p}
    means = _resampled_means(d, None if even else w, resamples)
    low, high = np.quantile(means, [0.025, 0.975])
    below = (np.sum(means <= 0) + 1) / (resamples + 1)
    above = (np.sum(means >= 0) + 1) / (resamples + 1)
    p = float(min(2 * min(below, above), 1))
    return {'difference': mean, 'low': float(low), 'high': float(high), 'p': p}


def _resampled_means(d: np.ndarray, w: np.ndarray | None, resamples: int) -> np.ndarray:
    """Means of resamples of d, drawn by how often each distinct value (and weight) is taken."""
    if w is None:
        values, counts = np.unique(d, return_counts=True)
        weights = np.ones(len(values))
    else:
        (values, weights), counts = np.unique(np.stack([d, w]), axis=1, return_counts=True)
    rng = np.random.default_rng(0)
    out = []
    rows = max(1, _AT_ONCE // len(values))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.multinomial(len(d), counts / len(d), size=size)
        total = len(d) if w is None else drawn @ weights
        out.append(drawn @ (values * weights) / total)
    return np.concatenate(out)


def holm(p: Mapping) -> dict:
    """Holm's step-down adjustment: p-values by name, valid together whatever their dependence."""
    names = sorted(p, key=lambda name: p[name])
    adjusted, largest = {}, 0.0
    for place, name in enumerate(names):
        largest = max(largest, min(1.0, (len(names) - place) * p[name]))
        adjusted[name] = largest
    return adjusted


def power_law(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float] | None:
    """limit, a, b of value = limit - a * size^-b by least squares, a and b above 0; and error.

    Of every b the best limit and a are those of a line; b is searched from .01 to 4. `error` is the
    root of the mean square of what is left. None if there are fewer than four sizes, or the values
    do not grow with size.
    """
    from scipy import optimize

    x, y = np.asarray(sizes, np.float64), np.asarray(values, np.float64)
    if len(np.unique(x)) < 4:
        return None

    def line(log_b):
        falling = (x / x.min()) ** -np.exp(log_b)
        slope = np.cov(falling, y, bias=True)[0, 1] / falling.var()
        limit = y.mean() - slope * falling.mean()
        return limit, -slope, np.sqrt(np.mean((limit + slope * falling - y) ** 2))

    grid = np.log(np.geomspace(0.01, 4, 60))
    best = grid[np.argmin([line(log_b)[2] for log_b in grid])]
    step = grid[1] - grid[0]
    log_b = optimize.minimize_scalar(
        lambda log_b: line(log_b)[2], bounds=(best - step, best + step), method='bounded'
    ).x
    limit, a, error = line(log_b)
    if a <= 0:
        return None
    b = float(np.exp(log_b))
    return {'limit': float(limit), 'a': float(a * x.min() ** b), 'b': b, 'error': float(error)}
