"""The linear probe: what a linear classifier reads from frozen vectors."""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.optimize
import scipy.special

_NEWTON = 50  # steps; a few are enough
STRENGTHS = tuple(2.0**n for n in range(-10, 10))  # C that are tried, as GRACE's evaluation


def logistic_regression(
    x: np.ndarray, labels: np.ndarray, classes: int, c: float, start: np.ndarray | None = None
) -> np.ndarray:
    """Multinomial logistic regression: C sum_n -log softmax(x_n W + b)[label_n] + |W|^2 / 2.

    Args:
      x: float64 [N, D].
      labels: int [N] from 0.
      classes: K.
      c: C; the smaller, the stronger the regularisation. The bias b has none.
      start: float64 [D + 1, K] to begin from; None = zeros.

    Returns:
      float64 [D + 1, K]: W, and b as last row. By L-BFGS, the objective over N to a gradient of
      1e-6, within 1,000 iterations.
    """
    n, dim = x.shape
    wanted = np.eye(classes)[labels]

    def objective(flat):
        w = flat.reshape(dim + 1, classes)
        logits = x @ w[:-1] + w[-1]
        log_z = scipy.special.logsumexp(logits, axis=1)
        error = np.exp(logits - log_z[:, None]) - wanted
        value = c * (log_z.sum() - (logits * wanted).sum()) + (w[:-1] ** 2).sum() / 2
        gradient = np.concatenate([c * x.T @ error + w[:-1], c * error.sum(0, keepdims=True)])
        return value / n, gradient.reshape(-1) / n

    flat = np.zeros((dim + 1) * classes) if start is None else start.reshape(-1)
    options = {'maxiter': 1000, 'gtol': 1e-6, 'ftol': 1e-12}
    found = scipy.optimize.minimize(objective, flat, jac=True, method='L-BFGS-B', options=options)
    return found.x.reshape(dim + 1, classes)


def linear_probe(
    x: np.ndarray, labels: np.ndarray, train: np.ndarray, valid: np.ndarray, classes: int
) -> tuple[np.ndarray, dict]:
    """Classes of all rows by logistic regression on vectors of length 1.

    C is the one of STRENGTHS with the best accuracy on the validation rows, the smallest of equals.

    Args:
      x: [N, D] vectors.
      labels: int [N]; read in the rows of train and valid alone.
      train, valid: row numbers to fit and to choose C on.
      classes: K.

    Returns:
      (int32 [N], {'c': the chosen one, 'valid_accuracy': its}).
    """
    x = np.asarray(x, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    if x.shape[1] > len(train):  # the solution lies in the span of the train rows
        x = x @ np.linalg.qr(x[train].T)[0]
    best, weights = (-1.0, 0.0, np.zeros(0, np.int32)), None
    for c in STRENGTHS:
        weights = logistic_regression(x[train], labels[train], classes, c, weights)
        predicted = _classes(x, weights)
        accuracy = float((predicted[valid] == labels[valid]).mean())
        if accuracy > best[0]:
            best = accuracy, c, predicted
    return best[2], {'c': best[1], 'valid_accuracy': best[0]}


def linear_svm(
    x: np.ndarray, labels: np.ndarray, classes: int, c: float, start: np.ndarray | None = None
) -> np.ndarray:
    """Linear SVMs, one class against the rest: C sum_n max(0, 1 - y_n (x_n w + b))^2 + |w|^2 / 2.

    By Newton's method: where it is known which rows are short of 1, the minimum is a linear
    system's (Keerthi and DeCoste 2005). The arguments are those of `logistic_regression`.

    Returns:
      float64 [D + 1, K]: W, and b as last row.
    """
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    found = np.zeros((x.shape[1], classes)) if start is None else np.array(start)
    for k in range(classes):
        found[:, k] = _svm(x, np.where(labels == k, 1.0, -1.0), c, found[:, k])
    return found


def _svm(x, y, c, w):
    """The minimum, from w on; the last column of x is 1."""
    own = np.ones(len(w))
    own[-1] = 0  # the bias is free

    def value(w):
        return c * (np.maximum(1 - y * (x @ w), 0) ** 2).sum() + (own * w * w).sum() / 2

    now = value(w)
    for _ in range(_NEWTON):
        short = np.maximum(1 - y * (x @ w), 0)
        slope = own * w - 2 * c * (y * short) @ x
        rows = x[short > 0]
        curve = np.diag(own + 1e-9) + 2 * c * rows.T @ rows
        step, share = -np.linalg.solve(curve, slope), 1.0
        while (
            then := value(w + share * step)
        ) > now + 1e-4 * share * slope @ step and share > 1e-6:
            share /= 2
        if now - then <= 1e-9 * abs(now):
            return w if then >= now else w + share * step
        w, now = w + share * step, then
    return w


def stratified(labels: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    """int [n], a fold of each row at random, every class spread evenly over them."""
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind='stable')]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def fitted_by_folds(
    fit: Callable,
    strengths: Sequence[float],
    x: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    classes: int,
    generator: np.random.Generator,
    folds: int = 5,
) -> tuple[np.ndarray, float, float]:
    """Classes of all rows by a model of the train rows, whose C is chosen by folds of these alone.

    Args:
      fit: `logistic_regression` or `linear_svm`.
      strengths: C that are tried, ascending; of equally good ones the smallest.
      x: float64 [n, D].
      labels: int [n]; read in the rows of `train` alone.
      train: row numbers.
      classes: K.
      generator: of the folds.
      folds: how many.

    Returns:
      (int32 [n], the chosen C, its accuracy over the folds).
    """
    fold, right = stratified(labels[train], folds, generator), np.zeros(len(strengths))
    for n in range(folds):
        inner, outer, weights = train[fold != n], train[fold == n], None
        for place, c in enumerate(strengths):
            weights = fit(x[inner], labels[inner], classes, c, weights)
            right[place] += (_classes(x[outer], weights) == labels[outer]).sum()
    best = int(right.argmax())
    weights = fit(x[train], labels[train], classes, strengths[best])
    return _classes(x, weights), strengths[best], float(right[best] / len(train))


def _classes(x, weights):
    return (x @ weights[:-1] + weights[-1]).argmax(1).astype(np.int32)
