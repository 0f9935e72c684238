"""The README's results: what stored tables say of the rows that each names for it."""

from collections.abc import Mapping

from jaxrec.errors import UserError
from jaxrec.paper.grid import Grid, Line
from jaxrec.paper.text import number, piped

BEGIN = '<!-- results: python -m jaxrec.table --render --results=results --readme=README.md -->'
END = '<!-- end of results -->'
_HEADS = ['system', 'data', 'score', 'seeds', 'best published', 'table']


def written(text: str, grids: Mapping[str, Grid], folder: str) -> str:
    """A README with the results between its two marks made anew.

    Args:
      text: of the README.
      grids: of the stored tables, by the name of the table file.
      folder: of the results, as the README links to it.

    Raises:
      UserError: a mark is missing.
    """
    before, begun, rest = text.partition(f'{BEGIN}\n')
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise UserError(f'the README needs the lines {BEGIN} and {END}: results go between them')
    return f'{before}{begun}{results(grids, folder)}{ended}{after}'


def results(grids: Mapping[str, Grid], folder: str) -> str:
    """A Markdown table of every row that a table shows, a line for each column that was run."""
    rows = [_HEADS, ['---'] * len(_HEADS)]
    for name, grid in grids.items():
        link = f'[{name}]({folder}/{name}/table.md)'
        for line in grid.lines:
            if line.published or line.name not in grid.table.shown:
                continue
            for column in dict.fromkeys(column for column, _ in line.values):
                ours = {m: v for (c, m), v in line.values.items() if c == column}
                shown = [
                    f'{metric} {number(v.mean)}'
                    + ('' if v.half is None else f' ± {number(v.half)}')
                    for metric, v in ours.items()
                ]
                seeds = next(iter(ours.values())).seeds
                published = _published(grid, column, list(ours))
                rows.append([line.name, column, ', '.join(shown), str(seeds), published, link])
    return '\n'.join(piped(rows)) + '\n'


def _published(grid: Grid, column: str, metrics: list[str]) -> str:
    """The published line with the best first metric in a column, those in doubt left out."""
    first = column, metrics[0]
    sign = -1 if first in grid.lower else 1

    def rank(line: Line) -> float:
        return sign * line.values[first].mean

    trusted = [
        line
        for line in grid.lines
        if line.published and first in line.values and not (line.problems or line.published.doubt)
    ]
    if not trusted:
        return '–'
    best = max(trusted, key=rank)
    values = [best.values[column, m] for m in metrics if (column, m) in best.values]
    return f'{best.name}: {" / ".join(number(v.mean) for v in values)}'
