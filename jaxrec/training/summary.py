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
    how = 'signal' if stopped else 'finished'
    if patience.over(progress):
        how = 'early stopping'
    found = {
        'workdir': str(place.folder),
        'stopped': how,
        'step': progress.validated if place.name else step,
        'best_step': progress.best_step,
        'metric': metric,
        'best': progress.best,
    }
    if before:
        weights = [one['examples'] for one in before]
        found['examples'] = sum(weights)
        found['before'] = {
            who: {
                name: float(np.average([b['metrics'][who][name] for b in before], None, weights))
                for name in metrics
            }
            for who, metrics in before[0]['metrics'].items()
        }
    return found


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
    metrics = dict(found['metrics'])
    model = metrics.pop('model')[metric]
    others = ', '.join(f'{who} {values[metric]:.4f}' for who, values in metrics.items())
    return f'{found["examples"]:,} examples, {metric} {model:.4f} ({others})'
