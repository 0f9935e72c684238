"""Metrics of scores of single rows: AUC and its per-user mean, losses, accuracy, errors.

Everything is computed on the host, sums in float64, and exact. Of n rows and T labels an evaluation
holds 12 n T bytes (logits, labels and masks, float32) and the users; a metric of one label adds
about 50 n bytes for a while: AUC sorts the scores of each class by themselves and counts in blocks,
GAUC sorts users in blocks of whole ones (_BLOCK rows and more). 200 million rows with one label: 14
GB; with eight: 30 GB.
"""

import itertools

import numpy as np

from jaxrec import problem

METRICS = {
    'AUC': problem.Metric(single=False),
    'GAUC': problem.Metric(),
    'logloss': problem.Metric(higher=False),
    'NE': problem.Metric(higher=False, single=False),
}
WEIGHTS = {'rows': 'G1', 'positives': 'G3', 'equal': 'G4'}  # of a user in GAUC, and its name
BINS = 10  # of `reliability`
_BLOCK = 1 << 22  # rows that are sorted at once


def group_auc(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """AUC inside every group: (R - P (P + 1) / 2) / (P N), R = sum of the ranks of the positives.

    Equal scores share the mean of their ranks. Sorts blocks of whole groups by (group, score).

    Args:
      scores: [n], finite or infinite.
      labels: [n], 0 or 1.
      groups: int [n], any numbers.

    Returns:
      distinct groups ascending [G]; auc float64 [G], NaN where a group has one class only; rows
      and positives, int64 [G].

    Raises:
      ValueError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError('a score is NaN')
    if not len(scores):
        empty = np.zeros(0, np.int64)
        return np.asarray(groups)[:0], np.zeros(0), empty, empty
    order = np.argsort(groups, kind='stable')
    starts = np.concatenate([[0], np.flatnonzero(np.diff(groups[order])) + 1])
    firsts = np.unique(np.searchsorted(starts, np.arange(0, len(order), _BLOCK)))
    cuts = starts[firsts[firsts < len(starts)]]
    blocks = zip(cuts, [*cuts[1:], len(order)], strict=True)
    found = [_group_auc(*(x[order[a:b]] for x in (scores, labels, groups))) for a, b in blocks]
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def _group_auc(scores, labels, groups):
    order = np.lexsort((scores, groups))
    group, score, positive = groups[order], scores[order], labels[order].astype(np.int64)
    new_group = np.concatenate([[True], group[1:] != group[:-1]])
    new_run = new_group | np.concatenate([[True], score[1:] != score[:-1]])
    runs, starts = np.flatnonzero(new_run), np.flatnonzero(new_group)
    sizes = np.diff(np.append(starts, len(order)))
    lengths = np.diff(np.append(runs, len(order)))
    first = np.repeat(starts, np.diff(np.append(np.searchsorted(runs, starts), len(runs))))
    rank = runs - first + (lengths + 1) / 2  # from 1, of every run
    total = np.add.reduceat(rank * np.add.reduceat(positive, runs), np.searchsorted(runs, starts))
    positives = np.add.reduceat(positive, starts)
    pairs = positives * (sizes - positives).astype(np.float64)
    above = total - positives * (positives + 1) / 2
    auc = np.divide(above, pairs, out=np.full(len(starts), np.nan), where=pairs > 0)
    return group[starts], auc, sizes, positives


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half; NaN with one class only."""
    if np.isnan(scores).any():
        raise ValueError('a score is NaN')
    positives, negatives = (np.sort(scores[labels == one]) for one in (1, 0))
    if not len(positives) or not len(negatives):
        return float('nan')
    twice = 0
    for first in range(0, len(positives), _BLOCK):
        block = positives[first : first + _BLOCK]
        below = (np.searchsorted(negatives, block, side) for side in ('left', 'right'))
        twice += sum(int(counts.sum()) for counts in below)
    return twice / 2 / (len(positives) * len(negatives))


def gauc(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, weight: str = 'rows'
) -> tuple[float, np.ndarray, np.ndarray]:
    """sum_u w_u AUC_u / sum_u w_u over the users with both classes.

    G1, weight = 'rows': impressions (HoME eq. 12). G3: 'positives'. G4, 'equal': a plain mean, as
    in the code of DIN. G2 is the first GAUC (Zhu et al. 2017, arXiv 1703.02091): G1 of groups that
    are (user, position).

    Args:
      scores, labels, groups: see `group_auc`; groups are users.
      weight: one of WEIGHTS.

    Returns:
      GAUC, NaN if no user has both classes; AUC float64 [G] by ascending user, .5 where it is
      undefined; weights float64 [G], 0 there.
    """
    if weight not in WEIGHTS:
        raise ValueError(f'weight={weight!r} is not one of {", ".join(WEIGHTS)}')
    return _weighted(*group_auc(scores, labels, groups)[1:], weight)


def _weighted(values, rows, positives, weight):
    defined = ~np.isnan(values)
    weights = {'rows': rows, 'positives': positives, 'equal': np.ones(len(rows))}[weight]
    weights = np.where(defined, weights, 0).astype(np.float64)
    values = np.where(defined, values, 0.5)
    mean = float(np.average(values, weights=weights)) if defined.any() else float('nan')
    return mean, values, weights


def logloss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-y log p - (1 - y) log(1 - p) with p = sigmoid(logits), float64 [n]; never infinite."""
    logits = logits.astype(np.float64)
    return np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))


def entropy(rate: float) -> float:
    """-r log r - (1 - r) log(1 - r): the logloss of always saying the mean rate; 0 at 0 and 1."""
    return float(-sum(p * np.log(p) for p in (rate, 1 - rate) if p > 0))


def normalised_entropy(loss: float, rate: float) -> float:
    """Logloss in units of the mean rate's entropy (He et al. 2014); NaN with one class only."""
    return loss / entropy(rate) if entropy(rate) else float('nan')


def calibration(logits: np.ndarray, labels: np.ndarray) -> float:
    """Sum of the predicted probabilities / number of positives; NaN without one."""
    predicted = np.exp(-np.logaddexp(0, -logits.astype(np.float64))).sum()
    positives = labels.sum(dtype=np.float64)
    return float(predicted / positives) if positives else float('nan')


def decisions(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Precision, recall and their harmonic mean F1 of saying yes where p > .5; NaN if undefined."""
    said, real = int((logits > 0).sum()), int(labels.sum())
    right = int(labels[logits > 0].sum())
    parts = {'precision': (right, said), 'recall': (right, real), 'F1': (2 * right, said + real)}
    return {name: a / b if b else float('nan') for name, (a, b) in parts.items()}


def rela_impr(auc: float, base: float) -> float:
    """(AUC - .5) / (AUC_base - .5) - 1 (Yan et al. 2014)."""
    return (auc - 0.5) / (base - 0.5) - 1


def mae(predictions: np.ndarray, values: np.ndarray) -> float:
    """Mean of |prediction - value|."""
    return float(np.abs(predictions.astype(np.float64) - values).mean())


def rmse(predictions: np.ndarray, values: np.ndarray) -> float:
    """Root of the mean of (prediction - value)^2."""
    return float(np.sqrt(np.square(predictions.astype(np.float64) - values).mean()))


def clicks(
    logits: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    users: np.ndarray,
    names: tuple[str, ...],
    weight: str = 'rows',
    positions: np.ndarray | None = None,
) -> problem.Measured:
    """AUC, GAUC, logloss and NE of every label, over its known rows.

    Args:
      logits: [n, T].
      labels: [n, T], 0 or 1.
      mask: [n, T], 1 where the label is known.
      users: int [n].
      names: of the T labels.
      weight: of a user in GAUC, one of WEIGHTS.
      positions: int [n], of the row in the list it was shown in, for G2; None = none are known.

    Returns:
      Metrics 'AUC/NAME' and so on. Values of GAUC and logloss are of every user that has a row, in
      ascending order; the weights are the user's known rows, or in GAUC what `weight` says, 0 for a
      user with one class. A metric that is undefined for want of a class is absent.
      details['labels']: rows, positives, rate, calibration, `decisions`, all variants of GAUC and
      the users that they keep, by label; details['reliability']: see `reliability`, by label.
    """
    everyone, owner = np.unique(users, return_inverse=True)
    measured = problem.Measured(metrics={}, details={'examples': len(users)})
    measured.details |= {'users': len(everyone), 'labels': {}, 'reliability': {}}
    for column, name in enumerate(names):
        known = mask[:, column] > 0
        logit, label, user = logits[known, column], labels[known, column], owner[known]
        about = {'rows': len(label), 'positives': int(label.sum(dtype=np.float64))}
        measured.details['labels'][name] = about
        if not len(label):
            continue
        losses = logloss(logit, label)
        rate = about['positives'] / len(label)
        by_user = group_auc(logit, label, user)[1:]
        mean, values, weights = _weighted(*by_user, weight)
        variants = {title: _weighted(*by_user, w)[0] for w, title in WEIGHTS.items()}
        if positions is not None:
            variants['G2'] = gauc(logit, label, _pairs(user, positions[known]))[0]
        about |= {'rate': rate, 'gauc_users': int(np.count_nonzero(weights))}
        found = {
            'AUC': auc(logit, label),
            'GAUC': mean,
            'logloss': float(losses.mean()),
            'NE': normalised_entropy(float(losses.mean()), rate),
        }
        variants |= {'calibration': calibration(logit, label), **decisions(logit, label)}
        about |= {k: variants[k] for k in sorted(variants) if not np.isnan(variants[k])}
        measured.details['reliability'][name] = reliability(logit, label)
        measured.metrics |= {f'{k}/{name}': v for k, v in found.items() if not np.isnan(v)}
        count = np.bincount(user, minlength=len(everyone)).astype(np.float64)
        total = np.bincount(user, weights=losses, minlength=len(everyone))
        _set(measured, f'logloss/{name}', total / np.maximum(count, 1), count)
        if weights.any():
            there = np.flatnonzero(count)
            _set(measured, f'GAUC/{name}', *_spread(len(everyone), there, values, weights))
    return measured


def classes(
    predicted: np.ndarray, labels: np.ndarray, unit: str, probe: dict | None = None
) -> problem.Measured:
    """Accuracy of predicted classes int [N], of all and by class.

    Args:
      predicted: int [N].
      labels: int [N].
      unit: what each is of.
      probe: how the classes were found, for the details.
    """
    right = (predicted == labels).astype(np.float64)
    groups = {
        str(c): {
            'examples': int((labels == c).sum()),
            'accuracy': float(right[labels == c].mean()),
        }
        for c in np.unique(labels)
    }
    return problem.Measured(
        {'accuracy': float(right.mean())},
        unit=unit,
        values={'accuracy': right},
        groups={'class': groups},
        details={'probe': probe} if probe else {},
    )


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> dict[str, list]:
    """Of rows in order of their prediction, in `bins` parts of as many: what was said and was so.

    Returns:
      predicted: mean of sigmoid(logits), observed: mean label, rows; a value for every part that
      has a row.
    """
    order = np.argsort(logits, kind='stable')
    edges = np.arange(bins + 1) * len(order) // bins
    found = {'predicted': [], 'observed': [], 'rows': []}
    for first, last in itertools.pairwise(edges):
        part = order[first:last]
        if len(part):
            said = np.exp(-np.logaddexp(0, -logits[part].astype(np.float64)))
            found['predicted'].append(float(said.mean()))
            found['observed'].append(float(labels[part].mean(dtype=np.float64)))
            found['rows'].append(len(part))
    return found


def _pairs(users, positions):
    """A number for every (user, position) that there is."""
    _, place = np.unique(positions, return_inverse=True)
    return users.astype(np.int64) * (place.max(initial=0) + 1) + place


def _set(measured, metric, values, weights):
    measured.values[metric], measured.weights[metric] = values, weights


def _spread(count, places, values, weights):
    """Values and weights of all users; those without a known row have .5 and 0."""
    all_values, all_weights = np.full(count, 0.5), np.zeros(count)
    all_values[places], all_weights[places] = values, weights
    return all_values, all_weights
