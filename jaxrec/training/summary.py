"""How a run ended: as JSON for programs, as a line for people."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrec.training.places import Patience, Place


def summary(
    place: Place,
    step: int,
    metric: str,
    *,
    stopped: bool,
    patience: Patience,
    before: Sequence[dict],
) -> dict[str, Any]:
    """Of a run, JSON-ready.

    Args:
      place: of the run.
      step: where the program stands.
      metric: of the best checkpoint.
      stopped: by a signal, before its end.
      patience: of early stopping.
      before: how well each period was predicted: its 'examples' and, by scorer, 'metrics'.

    Returns:
      workdir, stopped ('finished', 'early stopping' or 'signal'), step, best_step, metric, best;
      and of a problem in periods examples and before, the means over all examples by scorer.
    """
    progress = place.progress
    how, ended = 'signal' if stopped else 'finished', patience.over(progress)
    if ended:
        how = 'early stopping'
    found = {
        'workdir': str(place.folder),
        'stopped': how,
        'step': progress.validated if place.name and ended else step,
        'best_step': progress.best_step,
        'metric': metric,
        'best': progress.best,
    }
    if before:
        found['examples'] = sum(one['examples'] for one in before)
        found['before'] = {
            who: {name: _mean(before, who, name) for name in _names(before, who)}
            for who in before[0]['metrics']
        }
    return found


def _names(before, who):
    """Of all metrics: one may be undefined in a period."""
    return dict.fromkeys(name for one in before for name in one['metrics'][who])


def _mean(before, who, name):
    there = [one for one in before if name in one['metrics'][who]]
    values = [one['metrics'][who][name] for one in there]
    return float(np.average(values, None, [one['examples'] for one in there]))


def text(name: str, found: dict[str, Any], periods: int) -> str:
    """The summary of the run `name` ('' if it is alone) for people."""
    name = f'{name}: ' if name else ''
    if found['stopped'] == 'signal':
        return (
            f'{name}stopped by a signal at step {found["step"]}; all is saved: the same command '
            'goes on from here'
        )
    line = f'{name}{found["stopped"]} at step {found["step"]}'
    if found['best'] is not None:
        best = f'{found["metric"]} {found["best"]:.4f} at step {found["best_step"]}'
        line += f': best valid {best}'
    if 'before' in found:
        total = {'examples': found['examples'], 'metrics': found['before']}
        line += f'; {periods} periods: {compared(total, found["metric"])}'
    return line


def compared(found: dict[str, Any], metric: str) -> str:
    """'123 examples, METRIC .12 (reference .10)'."""
    told = {
        who: f'{values[metric]:.4f}' if metric in values else 'undefined'
        for who, values in found['metrics'].items()
    }
    model = told.pop('model')
    others = ', '.join(f'{who} {value}' for who, value in told.items())
    return f'{found["examples"]:,} examples, {metric} {model} ({others})'
