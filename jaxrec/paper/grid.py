"""A table's numbers put together: what every renderer shows, from the stored cells alone."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from jaxrec.errors import UserError
from jaxrec.paper import cells as cells_lib
from jaxrec.paper import plausible, statistics
from jaxrec.paper.spec import Cell, Published, Table

ALPHA = 0.05
_SPLIT = 'data_split'  # comes last in a protocol, beside the evaluation's name


@dataclasses.dataclass
class Value:
    """A number of the table.

    Attributes:
      mean: over seeds, or as published.
      half: half width of its 95 % interval over seeds; None with a single seed, or published.
      seeds: how many.
      mark: 'best' or 'second' of our rows in its column, if significantly so.
      versus: of `statistics.paired` against the baseline, and `adjusted`, its p-value after Holm.
      cell: key of the cell it comes from, '' if published.
    """

    mean: float
    half: float | None = None
    seeds: int = 0
    mark: str = ''
    versus: dict | None = None
    cell: str = ''

    @property
    def star(self) -> str:
        """'+' significantly above the baseline, '-' below, '' neither."""
        if self.versus is None or self.versus['adjusted'] >= ALPHA:
            return ''
        return '+' if self.versus['difference'] > 0 else '-'


@dataclasses.dataclass
class Line:
    """A line of the table: a row of ours, or a published one.

    Attributes:
      name: begins it.
      values: by (column, metric); what is missing is not there.
      published: the published line, None of ours.
      problems: by column, what is arithmetically impossible about it.
    """

    name: str
    values: dict[tuple[str, str], Value]
    published: Published | None = None
    problems: dict[str, list[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Verdict:
    """What our cells say to a published ordering, per column and metric."""

    better: str
    worse: str
    claim: str
    source: str
    column: str
    metric: str
    result: dict | None  # of `statistics.paired`, with 'adjusted'; None: something is `missing`
    higher: bool = True  # whether more of the metric is better
    margin: float = 0.0  # see `spec.Ordering`; `result` is of what is beyond it
    among: tuple[str, ...] = ()  # see there
    examples: int = 0  # of the better row, that the result is of
    missing: str = ''  # why there is no result

    @property
    def text(self) -> str:
        if self.result is None:
            return self.missing
        if self.result['adjusted'] >= ALPHA:
            return 'no significant difference'
        more = self.result['difference'] > 0
        wrong = f'less than {self.margin:.0%}' if self.margin else 'the opposite'
        return 'confirmed' if more == self.higher else wrong


@dataclasses.dataclass
class Grid:
    """Everything there is to render.

    Attributes:
      table: the table file's.
      heads: (column, metric) in order.
      lines: in order.
      records: stored cells by key.
      data: data hash by column.
      protocols: by column where the table says so, else the one of all cells by ''; {} if there
        is no cell yet.
      verdicts: on the table's orderings.
      test: of `statistics.paired`.
      missing: names of cells that are not there.
      lower: the heads of which less is better.
    """

    table: Table
    heads: list[tuple[str, str]]
    lines: list[Line]
    records: dict[str, dict]
    data: dict[str, str]
    protocols: dict[str, dict]
    verdicts: list[Verdict]
    test: str
    missing: list[str]
    lower: set[tuple[str, str]]


def build(
    table: Table, cells: Sequence[Cell], records: Mapping[str, dict], test: str = 't'
) -> Grid:
    """Puts a table together.

    Args:
      table: the table file's.
      cells: its cells.
      records: what is stored of them, by key; cells may be missing.
      test: 't' or 'bootstrap', see `statistics.paired`.

    Raises:
      UserError: cells under different protocols, or of different data in one column.
    """
    there = [cell for cell in cells if cell.key in records]
    protocols = _same_protocols(there, records, table.by_column)
    data = _same_data(there, records)
    heads = [(c.name, metric) for c in table.columns for metric in c.metrics]
    by_place = {(cell.row, cell.column): cell for cell in there}
    users = {  # float64 [users], mean over seeds, and their weights
        (row, column, metric): _users(records[cell.key], cell, metric)
        for (row, column), cell in by_place.items()
        for metric in next(c.metrics for c in table.columns if c.name == column)
    }
    ours = [_our_line(row.name, heads, by_place, records) for row in table.rows]
    _against_baseline(table, ours, heads, users, test)
    lower = {
        (cell.column, name)
        for cell in there
        for name, metric in cell.experiment.task.metrics().items()
        if not metric.higher
    }
    _mark(ours, heads, users, test, lower)
    lines = []
    for line in ours:
        lines.append(line)
        lines += [_published_line(p) for p in table.published if p.beside == line.name]
    lines += [_published_line(p) for p in table.published if not p.beside]
    return Grid(
        table,
        heads,
        lines,
        {cell.key: records[cell.key] for cell in there},
        data,
        protocols,
        _verdicts(table, heads, users, by_place, records, test, lower),
        test,
        [f'{cell.row} / {cell.column}' for cell in cells if cell.key not in records],
        lower,
    )


def _same_protocols(cells, records, by_column) -> dict[str, dict]:
    """What all cells are ranked under; the cut-offs may differ, no number depends on the others."""
    seen = {}
    for cell in cells:
        column = cell.column if by_column else ''
        record = records[cell.key]
        protocol = {k: v for k, v in record['protocol'].items() if k not in ('cutoffs', _SPLIT)}
        protocol |= {'split': record['split'], _SPLIT: record['protocol'].get(_SPLIT)}
        other, first = seen.setdefault(column, (f'{cell.row} / {cell.column}', protocol))
        differ = [k for k in protocol if protocol[k] != first.get(k)]
        if differ:
            what = ', '.join(f'{k}={first.get(k)} and {protocol[k]}' for k in differ)
            raise UserError(
                f'{other} and {cell.row} / {cell.column} are under different protocols '
                f'({what}): they cannot stand in one table'
            )
    return {column: protocol for column, (_, protocol) in seen.items()}


def _same_data(cells, records) -> dict[str, str]:
    found = {}
    for cell in cells:
        hashes = records[cell.key]['hashes']
        name, here = f'{cell.row} / {cell.column}', hashes.get('compared', hashes['data'])
        other, there = found.setdefault(cell.column, (name, here))
        if there != here:
            raise UserError(
                f'{other} and {name} are of different data (hash {there[:12]} and {here[:12]}): '
                'they cannot stand in one table'
            )
    return {column: digest for column, (_, digest) in found.items()}


def _users(record, cell, metric) -> cells_lib.Examples:
    """With the means over seeds, [N]."""
    found = cells_lib.per_example(record, cell, metric, _seeds(record))
    return found._replace(values=found.values.mean(0))


def _seeds(record) -> list[str]:
    return sorted(record['seeds'], key=int)


def _tested(a, b, test) -> dict:
    """`statistics.paired` of what `_users` gives for two cells of one column, where both have it.

    That is everywhere, but where seeds hold out their own examples and the cells have other seeds.
    """
    if a.numbers is not None:
        places = np.intersect1d(a.numbers, b.numbers, assume_unique=True, return_indices=True)[1:]
        a, b = (_some(one, place) for one, place in zip((a, b), places, strict=True))
    return statistics.paired(a.values, b.values, test, weights=a.weights)


def _some(examples, chosen) -> cells_lib.Examples:
    return cells_lib.Examples(*(None if x is None else x[chosen] for x in examples))


def _our_line(name, heads, by_place, records) -> Line:
    values = {}
    for column, metric in heads:
        cell = by_place.get((name, column))
        if cell is not None:
            seeds = records[cell.key]['seeds']
            mean, half = statistics.interval([run['metrics'][metric] for run in seeds.values()])
            values[column, metric] = Value(mean, half, len(seeds), cell=cell.key)
    return Line(name, values)


def _published_line(published: Published) -> Line:
    values, problems = {}, {}
    for column, found in published.values.items():
        for metric, value in found.items():
            values[column, metric] = Value(value)
        wrong = plausible.problems(found) if published.one_run else []
        if wrong:
            problems[column] = wrong
    return Line(published.name, values, published, problems)


def _against_baseline(table, ours, heads, users, test) -> None:
    """Sets `versus` of all values but the baseline's; Holm over all of them."""
    results = {}
    for line, (column, metric) in itertools.product(ours, heads):
        a, b = users.get((line.name, column, metric)), users.get((table.baseline, column, metric))
        if line.name != table.baseline and a is not None and b is not None:
            results[line.name, column, metric] = _tested(a, b, test)
    adjusted = statistics.holm({name: result['p'] for name, result in results.items()})
    for line in ours:
        for head, value in line.values.items():
            result = results.get((line.name, *head))
            if result:
                value.versus = {**result, 'adjusted': adjusted[line.name, *head]}


def _mark(ours, heads, users, test, lower) -> None:
    """Marks the best line of each column if it beats the next significantly, and then the second.

    Where the best is no better than the second, neither is marked.
    """
    tests, places = {}, {}
    for head in heads:
        ranked = sorted(
            (line for line in ours if head in line.values),
            key=lambda x: x.values[head].mean,
            reverse=head not in lower,
        )
        for place, (line, after) in enumerate(itertools.pairwise(ranked[:3])):
            a, b = users[line.name, *head], users[after.name, *head]
            tests[head, place] = _tested(a, b, test)['p']
            places[head, place] = line
    adjusted = statistics.holm(tests)
    for (head, place), line in places.items():
        if all(adjusted[head, above] < ALPHA for above in range(place + 1)):
            line.values[head].mark = ('best', 'second')[place]


def _verdicts(table, heads, users, by_place, records, test, lower) -> list[Verdict]:
    """One per ordering and place; columns of which nothing has run are left out."""
    verdicts, run = [], {column for _, column, _ in users}
    heads = [head for head in heads if head[0] in run] or heads
    for ordering, (column, metric) in itertools.product(table.orderings, heads):
        if metric not in (ordering.metrics or (metric,)):
            continue
        if column not in (ordering.columns or (column,)):
            continue
        names = ordering.better, ordering.worse
        pair = [users.get((name, column, metric)) for name in names]
        higher, result, missing = (column, metric) not in lower, None, ''
        if None in pair:
            missing = 'not run'
        elif ordering.among:
            there = [records[by_place[name, column].key] for name in names]
            pair, missing = _among(pair, there, ordering.among)
        if not missing:
            a, b = pair
            share = 1 + ordering.margin if higher else 1 - ordering.margin
            result = _tested(a, b._replace(values=b.values * share), test)
        verdicts.append(
            Verdict(
                ordering.better,
                ordering.worse,
                ordering.claim,
                ordering.source,
                column,
                metric,
                result,
                higher,
                ordering.margin,
                ordering.among,
                len(pair[0].values) if result else 0,
                missing,
            )
        )
    ran = {i: v.result['p'] for i, v in enumerate(verdicts) if v.result}
    for i, p in statistics.holm(ran).items():
        verdicts[i].result['adjusted'] = p
    return verdicts


def _among(pair, records, among) -> tuple[list, str]:
    """The examples of two cells that are of a group; or what is missing."""
    try:
        chosen = [cells_lib.members(record, among, _seeds(record)) for record in records]
    except KeyError:
        return pair, 'not kept'
    if any(one is None for one in chosen):
        return pair, 'no such examples'
    if pair[0].numbers is None and not np.array_equal(*chosen):
        return pair, 'of other examples'
    return [_some(one, some) for one, some in zip(pair, chosen, strict=True)], ''
