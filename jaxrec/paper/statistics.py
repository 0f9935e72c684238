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
    a: np.ndarray, b: np.ndarray, test: str = 't', resamples: int = RESAMPLES
) -> dict[str, float]:
    """Whether users fare better under a than under b: two-sided, paired.

    Args:
      a, b: float64 [users], a metric of the same users in the same order.
      test: 't', or 'bootstrap' of the mean difference (percentiles; the same resamples every time).
      resamples: of the bootstrap.

    Returns:
      difference: mean of a - b; low, high: its 95 % interval; p: p-value.
    """
    from scipy import stats

    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mean, count = float(d.mean()), len(d)
    if not d.any() or count < 2:
        return {'difference': mean, 'low': mean, 'high': mean, 'p': 1.0}
    if test == 't':
        error = float(d.std(ddof=1)) / count**0.5
        if error == 0:
            return {'difference': mean, 'low': mean, 'high': mean, 'p': 0.0}
        half = float(stats.t.ppf(0.975, count - 1)) * error
        p = float(2 * stats.t.sf(abs(mean) / error, count - 1))
        return {'difference': mean, 'low': mean - half, 'high': mean + half, 'p': p}
    means = _resampled_means(d, resamples)
    low, high = np.quantile(means, [0.025, 0.975])
    below = (np.sum(means <= 0) + 1) / (resamples + 1)
    above = (np.sum(means >= 0) + 1) / (resamples + 1)
    p = float(min(2 * min(below, above), 1))
    return {'difference': mean, 'low': float(low), 'high': float(high), 'p': p}


def _resampled_means(d: np.ndarray, resamples: int) -> np.ndarray:
    """Means of resamples of d, drawn by how often each distinct value is taken."""
    values, counts = np.unique(d, return_counts=True)
    rng = np.random.default_rng(0)
    out = []
    rows = max(1, _AT_ONCE // len(values))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.multinomial(len(d), counts / len(d), size=size)
        out.append(drawn @ values / len(d))
    return np.concatenate(out)


def holm(p: Mapping) -> dict:
    """Holm's step-down adjustment: p-values by name, valid together whatever their dependence."""
    names = sorted(p, key=lambda name: p[name])
    adjusted, largest = {}, 0.0
    for place, name in enumerate(names):
        largest = max(largest, min(1.0, (len(names) - place) * p[name]))
        adjusted[name] = largest
    return adjusted
