"""Pictures for people: training curves and metrics against the cut-off. Needs matplotlib."""

import os
import pathlib
from collections.abc import Mapping

from jaxrec import files
from jaxrec.training.logs import read_series

NO_MATPLOTLIB = "matplotlib is not installed (pip install 'jaxrec[plots]')"
_METRICS_AT_K = ('HR', 'NDCG')


def plot_curves(workdir: str | os.PathLike, metric: str = 'NDCG@10') -> str:
    """Draws the training loss and a validation metric of a run into workdir/curves.png.

    Args:
      workdir: folder with metrics.jsonl, as `jaxrec.training.logs.Logs` writes it.
      metric: validation metric to draw; the first one measured where this one is not.

    Returns:
      '' if the picture was written, else why not, in a few words.
    """
    pyplot = _pyplot()
    if pyplot is None:
        return NO_MATPLOTLIB
    workdir = pathlib.Path(workdir)
    series = read_series(workdir / 'metrics.jsonl')
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
    _save(pyplot, figure, workdir / 'curves.png')
    return ''


def plot_metric_at_k(path: str | os.PathLike, metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Draws HR@k and NDCG@k against k, one line per scorer.

    Args:
      path: PNG to write.
      metrics: by name of the scorer (model or baseline), values by name ('HR@10').

    Returns:
      '' if the picture was written, else why not, in a few words.
    """
    pyplot = _pyplot()
    if pyplot is None:
        return NO_MATPLOTLIB
    figure, axes = pyplot.subplots(1, len(_METRICS_AT_K), figsize=(10, 3.5))
    for axis, metric in zip(axes, _METRICS_AT_K, strict=True):
        for scorer, values in metrics.items():
            points = sorted(
                (int(name.partition('@')[2]), value)
                for name, value in values.items()
                if name.startswith(metric + '@')
            )
            axis.plot(*zip(*points, strict=True), marker='o', label=scorer.replace('_', ' '))
        axis.set(xlabel='k', title=f'{metric}@k', ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
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
