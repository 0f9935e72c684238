"""Pictures for people: curves of training, metrics, calibration, experts. Needs matplotlib."""

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
                (int(k), value)
                for name, value in values.items()
                for of, _, k in [name.partition('@')]
                if of == metric and k.isdigit()  # and not '10 macro'
            )
            if points:
                axis.plot(*zip(*points, strict=True), marker='o', label=scorer.replace('_', ' '))
        axis.set(xlabel='k', title=f'{metric}@k', ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    _save(pyplot, figure, pathlib.Path(path))
    return ''


def plot_reliability(path: str | os.PathLike, labels: Mapping[str, Mapping[str, list]]) -> str:
    """Draws what happened against what was predicted, of every label.

    Args:
      path: PNG to write.
      labels: 'predicted' and 'observed' by label, see `point_metrics.reliability`.

    Returns:
      '' if the picture was written, else why not, in a few words.
    """
    pyplot = _pyplot()
    if pyplot is None:
        return NO_MATPLOTLIB
    if not labels:
        return 'no label is known'
    figure, axes = pyplot.subplots(*_grid(len(labels)), figsize=_size(len(labels)), squeeze=False)
    for axis, (label, told) in zip(axes.flat, labels.items(), strict=False):
        top = max(*told['predicted'], *told['observed'], 1e-6) * 1.05
        axis.plot([0, top], [0, top], color='grey', linewidth=1)
        axis.plot(told['predicted'], told['observed'], marker='o')
        axis.set(title=label, xlabel='predicted', ylabel='observed', xlim=(0, top), ylim=(0, top))
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(labels) :]:
        axis.set_visible(False)
    _save(pyplot, figure, pathlib.Path(path))
    return ''


def plot_experts(path: str | os.PathLike, levels: Mapping[str, Mapping]) -> str:
    """Draws of every level the mean gates, listeners x experts, and the experts' outputs.

    Args:
      path: PNG to write.
      levels: by name, as `anomalies.Experts.details` tells of them.

    Returns:
      '' if the picture was written, else why not, in a few words.
    """
    pyplot = _pyplot()
    if pyplot is None:
        return NO_MATPLOTLIB
    figure, axes = pyplot.subplots(len(levels), 2, figsize=(13, 4.5 * len(levels)), squeeze=False)
    for (heat, outputs), (level, told) in zip(axes, levels.items(), strict=True):
        gates = told['gates']
        experts = list(next(iter(gates.values())))
        shown = heat.imshow([list(row.values()) for row in gates.values()], vmin=0, aspect='auto')
        heat.set_xticks(range(len(experts)), experts, rotation=60, ha='right', fontsize=7)
        heat.set_yticks(range(len(gates)), list(gates), fontsize=7)
        heat.set_title(f'{level}: mean weight')
        figure.colorbar(shown, ax=heat)
        edges = told['histogram']['edges']
        for name, counts in told['histogram']['counts'].items():
            shares = [count / max(sum(counts), 1) for count in counts]
            outputs.step([edges[0], *edges], shares, where='post', label=name, linewidth=1)
        outputs.set_xscale('asinh', linear_width=1 / 32)
        outputs.set(title=f'{level}: outputs of the experts', xlabel='value', ylabel='share')
        outputs.legend(fontsize=6, ncols=2)
    _save(pyplot, figure, pathlib.Path(path))
    return ''


def plot_law(
    path: str | os.PathLike, columns: Mapping[str, Mapping], metric: str, size: str
) -> str:
    """Draws a metric against size, and where there is one the law limit - a * size^-b.

    Args:
      path: PNG to write.
      columns: by name 'points' (name, size, value) and 'law' (limit, a, b) or None.
      metric, size: names of the axes.

    Returns:
      '' if the picture was written, else why not, in a few words.
    """
    pyplot = _pyplot()
    if pyplot is None:
        return NO_MATPLOTLIB
    if not columns:
        return 'no row has been run'
    figure, axes = pyplot.subplots(1, len(columns), figsize=(8 * len(columns), 5), squeeze=False)
    for axis, (name, told) in zip(axes[0], columns.items(), strict=True):
        _, sizes, values = zip(*told['points'], strict=True)
        axis.scatter(sizes, values)
        for label, x, y in told['points']:
            axis.annotate(label, (x, y), fontsize=6)
        if law := told['law']:
            ratio = max(sizes) / min(sizes)
            x = [min(sizes) * ratio ** (n / 100) for n in range(101)]
            y = [law['limit'] - law['a'] * one ** -law['b'] for one in x]
            axis.plot(x, y, label=f'{law["limit"]:.4f} - {law["a"]:.3g} {size}^-{law["b"]:.3g}')
            axis.legend()
        axis.set(title=name, xlabel=size, ylabel=metric, xscale='log')
        axis.grid(alpha=0.3)
    _save(pyplot, figure, pathlib.Path(path))
    return ''


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns of so many pictures, at most four side by side."""
    return -(-count // 4), min(count, 4)


def _size(count: int) -> tuple[float, float]:
    rows, columns = _grid(count)
    return 3.2 * columns, 3.2 * rows


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
