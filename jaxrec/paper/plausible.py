"""Which published rows cannot come from a single run: arithmetic between metrics.

With one target per user, the users whose rank lies in a+1 .. b add dHR to the hit rate and between
dHR / log2(b + 1) and dHR / log2(a + 2) to NDCG, from cut-off a to b. At the first cut-off a = 0.
"""

from collections.abc import Mapping
from math import log2

_ROUNDING = 0.5e-4  # of numbers printed with four decimals


def problems(values: Mapping[str, float], rounding: float = _ROUNDING) -> list[str]:
    """What is impossible about the metrics of one data set, in words; [] if nothing is.

    Args:
      values: 'HR@10' and 'NDCG@10' at one or more cut-offs; others are left alone.
      rounding: largest error of a printed value.
    """
    named = [(n.partition('@'), v) for n, v in values.items()]
    hits, gains = (
        {int(k): v for (name, _, k), v in named if name == kind and k.isdigit()}
        for kind in ('HR', 'NDCG')
    )
    found = []
    for name in (*(f'HR@{k}' for k in hits), *(f'NDCG@{k}' for k in gains)):
        if not 0 <= values[name] <= 1:
            found.append(f'{name} = {values[name]} is not in [0, 1]')
    before, hit_before, gain_before = 0, 0.0, 0.0
    for k in sorted(hits):
        error = rounding if before == 0 else 2 * rounding
        rise = hits[k] - hit_before
        lower = [j for j in hits if j < k and hits[j] - hits[k] > 2 * rounding]
        found += [f'HR falls from {hits[j]:.4f} at {j} to {hits[k]:.4f} at {k}' for j in lower]
        if k in gains:
            gain = gains[k] - gain_before
            least, most = rise / log2(k + 1), rise / log2(before + 2)
            low = (rise - error) / log2(k + 1) - error
            high = (rise + error) / log2(before + 2) + error
            if not low <= gain <= high:
                span = f'NDCG@{before} to NDCG@{k}' if before else f'NDCG@{k}'
                verb = 'rises by' if before else 'is'
                found.append(f'{span} {verb} {gain:.4f}; one run allows {least:.4f} to {most:.4f}')
            before, hit_before, gain_before = k, hits[k], gains[k]
    return found
