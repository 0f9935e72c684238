"""A run as one HTML page that needs nothing else: how it learnt, what it is worth, what it says."""

import pathlib
from typing import Any

import numpy as np

from jaxrec.errors import UserError
from jaxrec.experiment import flat, to_record
from jaxrec.pages import html
from jaxrec.paper.statistics import paired
from jaxrec.problem import Measured
from jaxrec.reports.explorer import explorer
from jaxrec.training.logs import LOG, read_series
from jaxrec.training.measure import as_json, evaluate
from jaxrec.training.restore import Trained
from jaxrec.training.workdir import read_run

_HERE = pathlib.Path(__file__).parent
_POINTS = 400  # of a curve, of which more are not seen


def page(trained: Trained, split: str, users: int, items: int, mapped: int = 0) -> str:
    """The whole page; see `content`."""
    told = content(trained, split, users, items, mapped)
    return html.page(told['title'], told, [_HERE / 'map.js', _HERE / 'run.js'])


def content(trained: Trained, split: str, users: int, items: int, mapped: int) -> dict[str, Any]:
    """What run.js draws, JSON-ready.

    Args:
      trained: the run.
      split: which evaluation.
      users, items, mapped: how many the explorer and its map hold, at most.

    Returns:
      title, about; 'measured': None and 'missing' says why, or the result of the evaluation with
      the half widths of 95 % intervals by scorer; curves; explorer (None where the model gives no
      lists); session, config.
    """
    missing = ''
    try:
        _ = trained.problem  # opens the data
    except UserError as e:
        missing = str(e)
    measured = None if missing else _measured(trained, split)
    session = read_run(trained.workdir)['sessions'][-1]
    return {
        'title': trained.workdir.resolve().name,
        'about': trained.served.about,
        'checkpoint': f'{trained.checkpoint} checkpoint, step {trained.step:,}',
        'measured': measured,
        'missing': missing,
        'curves': _curves(trained),
        'explorer': explorer(trained, users, items, not missing, mapped),
        'session': {**session, 'command': ' '.join(session.get('command', []))},
        'config': flat(to_record(trained.experiment)),
    }


def _measured(trained: Trained, split: str) -> dict[str, Any]:
    """The evaluation with its half widths."""
    evaluation, measured, references = evaluate(trained, split)
    scorers = {'model': measured, **references}
    told = as_json(trained, split, evaluation, measured, references)
    halves = {name: half_widths(one) for name, one in scorers.items()}
    return {**told, 'half': halves, 'workdir': ''}


def half_widths(measured: Measured) -> dict[str, float]:
    """Of 95 % intervals over users (rows, graphs), by metric; of those that have their values."""
    found = {}
    for name, values in measured.values.items():
        test = paired(values, np.zeros(len(values)), weights=measured.weights.get(name))
        found[name] = (test['high'] - test['low']) / 2
    return {name: half for name, half in found.items() if name in measured.metrics}


def _curves(trained: Trained) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of what was logged, by name; every n-th where there are many."""
    series = read_series(trained.workdir / LOG)
    kept = {}
    for name, points in series.items():
        points = [(step, value) for step, value in points if np.isfinite(value)]
        every = -(-len(points) // _POINTS) or 1
        kept[name] = [*points[::every][:-1], *points[-1:]]
    return {name: points for name, points in kept.items() if name != 'seconds'}
