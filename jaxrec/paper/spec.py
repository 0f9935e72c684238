"""What a table file is made of: rows, columns, published values. Data, no logic of a result.

A table file has `TABLE`, a `Table`. A cell is a row under a column: one experiment on one data set,
trained with several seeds.
"""

import dataclasses
import pathlib
import re
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, applied, check


@dataclasses.dataclass(frozen=True)
class Column:
    """A data set under a protocol, and the metrics that are shown of it.

    Attributes:
      name: heads the columns.
      metrics: of the task, by name.
      overrides: what makes it this column: {'data.dataset': 'beauty', ...}; wins over the rows'.
    """

    name: str
    metrics: tuple[str, ...]
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """Something we run.

    Attributes:
      name: begins the line.
      experiment: 'experiments/x.py[:arg]', or one by column name; found beside the table file, or
        in a folder above it.
      overrides: fields of the experiment, {'model.loss': 'bce'}.
      columns: names of the columns it runs in; () = all.
    """

    name: str
    experiment: str | Mapping[str, str]
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Published:
    """A line that somebody published.

    Attributes:
      name: begins the line.
      source: who, where, which table.
      tag: how it was read: '[paper]', '[secondary]', '[R repository]' ...
      values: {column: {metric: value}}.
      beside: name of the row of ours that it goes under; '' = after all of ours.
      doubt: why not to trust it, if there is a reason.
      one_run: the values claim to be of a single run, so the arithmetic check applies.
    """

    name: str
    source: str
    tag: str
    values: Mapping[str, Mapping[str, float]]
    beside: str = ''
    doubt: str = ''
    one_run: bool = True


@dataclasses.dataclass(frozen=True)
class Ordering:
    """A published claim that one row is better than another, to be tested on our cells."""

    better: str
    worse: str
    claim: str  # in the source's own numbers
    source: str
    metrics: tuple[str, ...] = ()  # that it speaks of; () = all
    margin: float = 0.0  # how much better the claim says it is, of the worse one's value
    among: tuple[str, ...] = ()  # (grouping, group) of the examples that it speaks of; () = all
    columns: tuple[str, ...] = ()  # that it speaks of; () = all


@dataclasses.dataclass(frozen=True)
class Law:
    """How a metric grows with the size of what is run: limit - a * size^-b, fitted to the rows.

    Attributes:
      metric: of the task, by name; it needs no values of single users.
      size: name of the size, for people.
      sizes: by name of the row; other rows take no part.
    """

    metric: str
    size: str
    sizes: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
      title, caption: for people.
      columns, rows, published, orderings: see there.
      baseline: name of the row that all others are tested against.
      protocol: name of the task's protocol that every number is under; '' = the first cell's.
      by_column: every column is under a protocol of its own: numbers stand beside each other in
        columns alone.
      law: fitted and drawn with the table, for every column; None = there is none.
      shown: names of the rows that the README shows.
    """

    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    baseline: str
    published: tuple[Published, ...] = ()
    orderings: tuple[Ordering, ...] = ()
    protocol: str = ''
    by_column: bool = False
    law: Law | None = None
    shown: tuple[str, ...] = ()

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row under a column, ready to be run.

    Attributes:
      row, column: names.
      key: of its files.
      config: experiment file with its argument, as `--config` takes it.
      shown: the same as the table file names it, for provenance.
      overrides: of the row and the column, in that order.
      experiment: what comes of it, with seed 0.
    """

    row: str
    column: str
    key: str
    config: str
    shown: str
    overrides: Mapping[str, Any]
    experiment: Experiment


def load(path: pathlib.Path) -> Table:
    """Reads a table file; UserError for what cannot be a table."""
    if not path.is_file():
        raise UserError(f'no such table file: {path} (--table)')
    try:
        table = runpy.run_path(str(path)).get('TABLE')
    except Exception as e:  # the file is the user's program
        raise UserError(f'cannot read {path}: {type(e).__name__}: {e}') from e
    if not isinstance(table, Table):
        raise UserError(f'{path} must set TABLE to a jaxrec.paper.spec.Table')
    _check(table, path.name)
    return table


def cells(table: Table, path: pathlib.Path, more: Mapping[str, Any] | None = None) -> list[Cell]:
    """All cells of the table, row by row; `more` overrides fields of every one."""
    found = []
    for row in table.rows:
        for column in table.columns:
            if row.columns and column.name not in row.columns:
                continue
            named = row.experiment
            shown = named if isinstance(named, str) else named[column.name]
            config = str(_find(shown.partition(':')[0], path))
            arg = shown.partition(':')[2]
            overrides = {**row.overrides, **column.overrides, **(more or {})}
            experiment = _experiment(config, arg, overrides, f'{row.name} / {column.name}')
            found.append(
                Cell(
                    row.name,
                    column.name,
                    f'{slug(row.name)}__{slug(column.name)}',
                    config + (f':{arg}' if arg else ''),
                    shown,
                    overrides,
                    experiment,
                )
            )
    seen = {}
    for cell in found:
        protocol = _protocol(cell.experiment)
        first = seen.setdefault(cell.column if table.by_column else '', protocol)
        for name, here in protocol.items():
            there = (name == 'name' and table.protocol) or first.get(name)
            if here != there:
                raise UserError(
                    f'{cell.row} / {cell.column} is under protocol {name}={here}, the table under '
                    f'{there}: such numbers cannot stand in one table (by_column: column)'
                )
        known = cell.experiment.task.metrics()
        for metric in next(c for c in table.columns if c.name == cell.column).metrics:
            if metric not in known:
                raise UserError(
                    f'{cell.row} / {cell.column} does not measure {metric}: there is '
                    f'{", ".join(known)}'
                )
            if not known[metric].single:
                raise UserError(
                    f'{cell.row} / {cell.column}: {metric} has no values of single users, rows or '
                    'graphs, which a table tests: choose another metric'
                )
    return found


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-.')


def _experiment(config, arg, overrides, where) -> Experiment:
    try:
        get_config = runpy.run_path(config)['get_config']
        experiment = get_config(arg) if arg else get_config()
    except Exception as e:  # the file is the user's program
        raise UserError(f'{where}: {config}: {type(e).__name__}: {e}') from e
    try:
        experiment = applied(experiment, {**overrides, 'train.seed': 0})
        check(experiment)
    except UserError as e:
        raise UserError(f'{where}: {e}') from e
    return experiment


def _protocol(experiment: Experiment) -> dict[str, Any]:
    """All that numbers depend on besides model and data; other cut-offs change none of them."""
    return {k: v for k, v in experiment.task.protocol_fields().items() if k != 'cutoffs'}


def _find(name: str, table: pathlib.Path) -> pathlib.Path:
    for folder in table.absolute().parents:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f'{table} names {name}, which is in no folder above it')


def _check(table: Table, where: str) -> None:
    columns = {column.name: column for column in table.columns}
    rows = [row.name for row in table.rows]
    for names in (rows, list(columns), [slug(r) for r in rows], [slug(c) for c in columns]):
        _unique(names, where)
    for name in (*rows, *columns):
        if ',' in name or not slug(name):
            raise UserError(f'{where}: {name!r} needs a name that --only can take, without commas')
    if not rows or len(columns) != len(table.columns):
        raise UserError(f'{where}: a table needs rows, and columns of different names')
    if table.baseline not in rows:
        raise UserError(f'{where}: baseline {table.baseline!r} is not a row')
    for name in table.shown:
        if name not in rows:
            raise UserError(f'{where}: shows {name!r}, not a row')
    for row in table.rows:
        needed = row.columns or tuple(columns)
        for name in (*row.columns, *(() if isinstance(row.experiment, str) else needed)):
            if name not in columns or (
                not isinstance(row.experiment, str) and name not in row.experiment
            ):
                raise UserError(f'{where}: row {row.name!r} has no experiment for column {name!r}')
    for line in table.published:
        if line.beside and line.beside not in rows:
            raise UserError(f'{where}: {line.name!r} stands beside {line.beside!r}, not a row')
        if not (line.source and line.tag):
            raise UserError(f'{where}: published line {line.name!r} needs source and tag')
        for name in line.values:
            if name not in columns:
                raise UserError(f'{where}: {line.name!r} has values for {name!r}, not a column')
    for ordering in table.orderings:
        for name in (ordering.better, ordering.worse):
            if name not in rows:
                raise UserError(f'{where}: an ordering names {name!r}, not a row')
        for name in ordering.columns:
            if name not in columns:
                raise UserError(f'{where}: an ordering names {name!r}, not a column')
        if ordering.among and len(ordering.among) != 2:
            raise UserError(f'{where}: among={ordering.among} is not (grouping, group)')


def _unique(names: Sequence[str], where: str) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise UserError(f'{where}: {twice[0]!r} is there twice')
