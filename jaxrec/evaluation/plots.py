"""Pictures for people: training curves and metrics against the cut-off. Needs matplotlib."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from jaxrec import files

NO_MATPLOTLIB = "matplotlib is not installed (pip install 'jaxrec[plots]')"
_AT_K = 2  # metrics drawn against their cut-offs


def plot_curves(
    path: str | os.PathLike, series: Mapping[str, Sequence[tuple[int, float]]], metric: str
) -> str:
    """Draws the training loss and a validation metric of a run.

    Args:
      path: PNG to write.
      series: (step, value) pairs by name, of its metrics.jsonl (`training.logs.read_series`).
      metric: validation metric to draw; the first one measured where this one is not.

    Returns:
      '' if the picture was written, else why not, in a few words.
    """
    pyplot = _pyplot()
    if pyplot is None:
        return NO_MATPLOTLIB
    measured = [name for name in series if name.startswith('valid/')]
    if f'valid/{metric}' not in measured and measured:
        metric = measured[0].removeprefix('valid/')
    shown = [name for name in ('loss', f'valid/{metric}') if name in series]
    if not shown:
        return 'nothing has been logged yet'
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 3.5), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        steps, values = zip(*series[name], strict=True)
        axis.plot(steps, values, marker='.' if len(steps) < 50 else None)
        axis.set(xlabel='step', title=name)
        axis.grid(alpha=0.3)
    _save(pyplot, figure, pathlib.Path(path))
    return ''


def plot_metric_at_k(path: str | os.PathLike, metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Draws the first metrics that have cut-offs ('NAME@10') against k, one line per scorer.

    Args:
      path: PNG to write.
      metrics: by name of the scorer (model or baseline), values by name.

    Returns:
      '' if the picture was written, else why not, in a few words.
    """
    pyplot = _pyplot()
    if pyplot is None:
        return NO_MATPLOTLIB
    known = dict.fromkeys(n.partition('@')[0] for v in metrics.values() for n in v if '@' in n)
    shown = list(known)[:_AT_K]
    if not shown:
        return 'no metric has cut-offs'
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 3.5), squeeze=False)
    for axis, metric in zip(axes[0], shown, strict=True):
        for scorer, values in metrics.items():
            points = sorted(
                (int(name.partition('@')[2]), value)
                for name, value in values.items()
                if name.startswith(metric + '@')
            )
            if points:
                axis.plot(*zip(*points, strict=True), marker='o', label=scorer.replace('_', ' '))
        axis.set(xlabel='k', title=f'{metric}@k', ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    _save(pyplot, figure, pathlib.Path(path))
    return ''


def _pyplot():
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use('Agg')
    from matplotlib import pyplot

    return pyplot


def _save(pyplot, figure, path: pathlib.Path) -> None:
    figure.tight_layout()
    with files.replacing(path) as partial:
        figure.savefig(partial, dpi=120, format='png')
    pyplot.close(figure)
