"""The table as one HTML page that needs nothing else: style, script and data are inside."""

import pathlib

from jaxrec.pages import html
from jaxrec.paper import text
from jaxrec.paper.grid import ALPHA, Grid

_HERE = pathlib.Path(__file__).parent
_TESTS = {'t': 'paired t-test', 'bootstrap': 'paired bootstrap'}


def page(grid: Grid) -> str:
    """The whole page."""
    return html.page(grid.table.title, content(grid), [_HERE / 'page.js'])


def content(grid: Grid) -> dict:
    """What page.js draws, JSON-ready; the ranks of single users stay out."""
    numbers = {id(line): n for n, line in text.sources(grid)}
    notes = text.notes(grid)
    if grid.table.caption:
        notes = notes[1:]
    lines = []
    for line in grid.lines:
        of = line.published
        values = {
            f'{column} {metric}': {
                'mean': value.mean,
                'half': value.half,
                'mark': value.mark,
                'star': value.star,
                'versus': value.versus,
                'cell': value.cell,
            }
            for (column, metric), value in line.values.items()
        }
        problems = [f'{c}: {p}' for c, found in line.problems.items() for p in found]
        lines.append(
            {
                'name': line.name,
                'published': of is not None,
                'number': numbers.get(id(line)),
                'doubts': [*([of.doubt] if of and of.doubt else []), *problems],
                'problems': line.problems,
                'values': values,
                'cells': {column: v.cell for (column, _), v in line.values.items() if v.cell},
            }
        )
    return {
        'title': grid.table.title,
        'caption': grid.table.caption,
        'baseline': grid.table.baseline,
        'test': _TESTS[grid.test],
        'alpha': ALPHA,
        'columns': [{'name': c.name, 'metrics': c.metrics} for c in grid.table.columns],
        'lines': lines,
        'notes': notes,
        'sources': [
            {'number': n, 'name': line.name, 'text': text.footnote(line)}
            for n, line in text.sources(grid)
        ],
        'verdicts': text.verdicts(grid),
        'verdict_heads': text.VERDICT_HEADS,
        'cells': {key: _cell(record) for key, record in grid.records.items()},
    }


def _cell(record: dict) -> dict:
    seeds = {
        seed: {name: value for name, value in run.items() if name != 'kept'}
        for seed, run in record['seeds'].items()
    }
    return {**record, 'seeds': seeds}
