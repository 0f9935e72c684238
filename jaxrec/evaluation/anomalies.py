"""The three anomalies of mixtures of experts (HoME, arXiv 2408.05430), measured.

collapse       one expert gets all the weight: its share of the gates' mean, the effective number of
               experts exp(entropy of the mean gate), and how far the outputs' deviations differ
degradation    a shared expert serves one label: largest weight of a label over the sum of all
underfitting   a label ignores its own experts: the weight that they get, beside its positives

Weights and outputs are those of held-out rows; sums only are kept, so memory does not grow.
"""

from collections.abc import Mapping

import numpy as np

from jaxrec.problem import Level

# of the histogram of outputs; equal steps of asinh(32 x) about 0, beyond them the first and last
EDGES = np.sinh(np.linspace(-6, 6, 40)) / 32


class Experts:
    """Takes in columns 'gates/n' [B, C, E] and 'experts/n' [B, E, D] of levels n, part by part.

    Args:
      levels: of the model.
    """

    def __init__(self, levels: tuple[Level, ...]):
        self._levels, self._sums = levels, {}

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Of as many rows as the columns have; nothing where they tell of no experts."""
        for number in range(len(self._levels)):
            if f'gates/{number}' not in columns:
                continue
            gates = columns[f'gates/{number}'].astype(np.float64)
            said = columns[f'experts/{number}'].astype(np.float64)
            by_expert = said.swapaxes(0, 1).reshape(said.shape[1], -1)
            bins = np.searchsorted(EDGES, by_expert)
            new = {
                'rows': len(gates),
                'gates': gates.sum(0),
                'values': by_expert.shape[1],
                'sum': by_expert.sum(1),
                'squares': np.square(by_expert).sum(1),
                'zeros': (by_expert == 0).sum(1),
                'histogram': np.stack([np.bincount(b, minlength=len(EDGES) + 1) for b in bins]),
            }
            sums = self._sums.setdefault(number, dict.fromkeys(new, 0))
            self._sums[number] = {name: sums[name] + value for name, value in new.items()}

    def details(self, labels: Mapping[str, Mapping]) -> dict:
        """What is told of every level that was seen, JSON-able; {} if none was.

        Args:
          labels: 'positives' of each label.
        """
        return {
            f'level {number + 1}': _told(self._levels[number], sums, labels)
            for number, sums in self._sums.items()
        }


def _told(level, sums, labels):
    listeners = [name or 'shared' for name in level.listeners]
    gates = sums['gates'] / max(sums['rows'], 1)
    mean = sums['sum'] / sums['values']
    deviation = np.sqrt(np.maximum(sums['squares'] / sums['values'] - mean**2, 0))
    shares = gates / np.maximum(gates.sum(1, keepdims=True), 1e-300)
    effective = np.exp(-np.sum(shares * np.log(np.maximum(shares, 1e-300)), axis=1))
    choice = level.sees.sum(1) > 1  # of whoever can choose
    smallest = deviation.min()
    own, by_listener, by_expert = level.own, {}, {}
    for at, name in enumerate(listeners):
        told = {'effective_experts': float(effective[at]), 'largest': float(shares[at].max())}
        if own[at].any():
            told['own'] = float(shares[at][own[at]].sum())
        if name in labels:
            told['positives'] = labels[name]['positives']
        by_listener[name] = told
    of_labels = [at for at, name in enumerate(level.listeners) if name]
    for at, name in enumerate(level.experts):
        told = {
            'mean': float(mean[at]),
            'std': float(deviation[at]),
            'zeros': float(sums['zeros'][at] / sums['values']),
        }
        heard = gates[of_labels, at]
        if not level.owners[at] and heard.sum() > 0:
            told['one_label'] = float(heard.max() / heard.sum())
        by_expert[name] = told
    return {
        'largest_gate': float(shares[choice].max()) if choice.any() else 1.0,
        'std_ratio': float(deviation.max() / smallest) if smallest > 0 else None,
        'listeners': by_listener,
        'experts': by_expert,
        'gates': {
            name: dict(zip(level.experts, map(float, row), strict=True))
            for name, row in zip(listeners, gates, strict=True)
        },
        'histogram': {
            'edges': EDGES.tolist(),
            'counts': dict(zip(level.experts, sums['histogram'].tolist(), strict=True)),
        },
    }
