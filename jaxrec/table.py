r"""A paper's table with our numbers beside the published ones; cells run as needed.

python -m jaxrec.table --table=experiments/tables/smoke.py --workdir=runs/smoke [--seeds=5] \
    [--only=ROW,COLUMN] [--format=md,latex,csv,html] [--seeds_in_parallel] [--processes=2]
python -m jaxrec.table --table=... --workdir=... --results=results    copies what is finished there
python -m jaxrec.table --render --results=results                     renders all tables there again
    [--readme=README.md]                                              and writes its results

WORKDIR gets cells/ROW__COLUMN.json, one for each finished cell, table.md, .tex, .csv and .html, and
runs/ with the trainings; of a table with a law also law.json and law.png. A killed command goes on
with the same command line; so do others beside it, on this machine or on any that sees WORKDIR: a
cell is run by one of them. A finished cell is run again only if its config, its data or the code
behind it has changed, and the command says which; --accept=code (or config, data) keeps it.
--render runs nothing, whatever has changed. --adopt --why=TEXT --results=results gives all cells
there the hashes and field names of today, if their configs mean the same, and notes why: for
changes that cannot change a number.

Seeds that a cell of the same config and data has, in another row or in the tables of
--take_over=DIR,.., are not run again: the cell takes them as they are.

Rows and columns of --only go by name, with * for any text; what is left out keeps its place.
--override=train.epochs=2 changes a field of all cells (they are other cells then).
"""

import fnmatch
import pathlib
import signal
from collections.abc import Iterator

from absl import flags

from jaxrec import cli, files
from jaxrec.cli import say
from jaxrec.errors import Stopped, UserError
from jaxrec.evaluation import plots
from jaxrec.experiment import parsed
from jaxrec.paper import adopt, grid, hashes, page, readme, spec, text
from jaxrec.paper import cells as cells_lib
from jaxrec.paper.runner import Runner
from jaxrec.paper.statistics import power_law

FLAGS = flags.FLAGS
FORMATS = {
    'md': ('table.md', text.markdown),
    'latex': ('table.tex', text.latex),
    'csv': ('table.csv', text.comma_separated),
    'html': ('table.html', page.page),
}
_HASHES = ('config', 'code', 'data')


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    flags.DEFINE_string('table', None, 'Table file, experiments/tables/X.py.')
    flags.DEFINE_string('workdir', None, 'Folder of the table; shared between hosts if need be.')
    flags.DEFINE_string('results', None, 'Folder that gets finished cells and tables, by table.')
    flags.DEFINE_integer('seeds', None, 'Seeds of each cell, 0 to N - 1; 5 if not given.', 1)
    flags.DEFINE_list('only', [], 'Names of rows and columns to run, with * for any text.')
    flags.DEFINE_list('format', list(FORMATS), f'Of {", ".join(FORMATS)}.')
    flags.DEFINE_bool('seeds_in_parallel', False, 'Train the seeds of a cell in one program.')
    flags.DEFINE_integer('processes', 1, 'Cells to run at the same time here.', 1)
    flags.DEFINE_list('accept', [], f'Differences that do not matter: {", ".join(_HASHES)}.')
    flags.DEFINE_list('take_over', [], 'Folders of other tables, e.g. results/X: see above.')
    flags.DEFINE_multi_string('override', [], 'FIELD=VALUE of every cell, e.g. train.epochs=2.')
    flags.DEFINE_enum('test', 't', ['t', 'bootstrap'], 'Paired test over users, rows or graphs.')
    flags.DEFINE_float('patience', 120, 'Seconds of silence after which a host counts as dead.', 1)
    flags.DEFINE_bool('render', False, 'Only render what is there; run nothing.')
    flags.DEFINE_string('readme', None, 'With --render --results: a README, its results anew.')
    flags.DEFINE_bool('adopt', False, 'Keep the cells below --results whatever has changed; --why.')
    flags.DEFINE_string('why', '', 'With --adopt: why their numbers are still those of this code.')
    flags.DEFINE_bool('json', False, 'Print the result as one JSON object, the last line.')


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    for name, known in (('format', FORMATS), ('accept', _HASHES)):
        for value in FLAGS[name].value:
            if value not in known:
                raise UserError(f'unknown --{name}={value}: use {", ".join(known)}')
    if FLAGS.adopt:
        _adopt()
        return
    if FLAGS.readme and (FLAGS.table or not FLAGS.render):
        raise UserError('--readme goes with --render --results=DIR, without --table')
    if FLAGS.render and not FLAGS.table:
        _render_all()
        return
    if not FLAGS.table or not FLAGS.workdir:
        raise UserError('give --table=experiments/tables/X.py and --workdir=DIR (see --help)')
    file, folder = pathlib.Path(FLAGS.table), pathlib.Path(FLAGS.workdir)
    table = spec.load(file)
    changed = parsed(FLAGS.override, '--override')
    cells = spec.cells(table, file, changed)
    matter = [name for name in changed if hashes.matters(name, cells[0].experiment)]
    if FLAGS.results and matter:
        raise UserError(f'--results is for the table as it is, not with --override={matter[0]}=..')
    failed = {}
    if not FLAGS.render:
        failed = _run(cells, folder)
    written = _render(table, cells, folder, _built(table, cells, folder))
    if FLAGS.results:
        target = pathlib.Path(FLAGS.results) / file.stem
        shown = {metric for column in table.columns for metric in column.metrics}
        shown |= {'/'.join(ordering.among) for ordering in table.orderings}
        for cell in cells:
            if cells_lib.path_of(folder, cell).exists():
                cells_lib.publish(cell, folder, target, shown)
        written += _render(table, cells, target, _built(table, cells, target))
    for path in written:
        say(f'written: {path}')
    if failed:
        raise UserError(f'{len(failed)} cells failed: {"; ".join(failed)}; the others are there')
    cli.emit({'written': [str(path) for path in written]})


def _run(cells, folder) -> dict[str, str]:
    """Runs what --only names; {cell: what went wrong}."""
    chosen = _chosen(cells, FLAGS.only)
    seeds = range(FLAGS.seeds or 5)
    others = [pathlib.Path(name) for name in FLAGS.take_over]
    for other in others:
        if not (other / 'cells').is_dir():
            raise UserError(f'--take_over={other} is no folder of a table: it has no cells/')
    together = FLAGS.seeds_in_parallel
    runner = Runner(folder, seeds, together, FLAGS.accept, FLAGS.patience, others)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: runner.stop())
    failed = runner.run(chosen, FLAGS.processes)
    if runner.stopping.is_set():
        raise Stopped('by a signal; the same command goes on from here')
    return failed


def _chosen(cells, only) -> list[spec.Cell]:
    """Cells of the rows and the columns that `only` names."""
    rows, columns = (dict.fromkeys(getattr(c, kind) for c in cells) for kind in ('row', 'column'))

    def taken(names):
        return [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in only)]

    for pattern in only:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in (*rows, *columns)):
            raise UserError(
                f'--only={pattern} is no row ({", ".join(rows)}) and no column '
                f'({", ".join(columns)})'
            )
    rows, columns = taken(rows) or rows, taken(columns) or columns
    return [cell for cell in cells if cell.row in rows and cell.column in columns]


def _built(table, cells, folder) -> grid.Grid:
    records = {}
    for cell in cells:
        record = cells_lib.read(folder, cell)
        if record is not None:
            records[cell.key] = cells_lib.first_seeds(record, FLAGS.seeds)
    return grid.build(table, cells, records, FLAGS.test)


def _render(table, cells, folder, made) -> list[pathlib.Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in FLAGS.format:
        file, render = FORMATS[name]
        files.write_text(folder / file, render(made))
        written.append(folder / file)
    return written + (_law(table, cells, made.records, folder) if table.law else [])


def _law(table, cells, records, folder) -> list[pathlib.Path]:
    """The fitted law of every column as law.json, and law.png."""
    law, columns = table.law, {}
    for cell in cells:
        if cell.row in law.sizes and cell.key in records:
            runs = records[cell.key]['seeds'].values()
            value = sum(run['metrics'][law.metric] for run in runs) / len(runs)
            told = columns.setdefault(cell.column, {'points': []})
            told['points'].append((cell.row, law.sizes[cell.row], value))
    for name, told in columns.items():
        _, sizes, values = zip(*told['points'], strict=True)
        told['law'] = found = power_law(sizes, values)
        if found:
            say(
                f'{name}: {law.metric} = {found["limit"]:.4f} - {found["a"]:.4g} * C^'
                f'-{found["b"]:.3f}, C = {law.size}; error {found["error"]:.4f}'
            )
        else:
            say(f'{name}: no law of {law.metric} yet: it takes four sizes, and growth')
    files.write_json(folder / 'law.json', {'metric': law.metric, 'size': law.size, **columns})
    why_not = plots.plot_law(folder / 'law.png', columns, law.metric, law.size)
    if why_not:
        say(f'no law.png: {why_not}')
    return [folder / 'law.json', *([] if why_not else [folder / 'law.png'])]


def _adopt() -> None:
    """Gives the cells of every table below --results the hashes of today."""
    if not FLAGS.results or not FLAGS.why:
        raise UserError('--adopt needs --results=DIR and --why=TEXT')
    count = 0
    for table, file, folder in _stored():
        for cell in spec.cells(table, file):
            if cells_lib.path_of(folder, cell).exists():
                cells_lib.write(folder, cell, adopt.adopted(folder, cell, FLAGS.why))
                count += 1
    say(f'adopted: {count} cells')


def _stored() -> Iterator[tuple[spec.Table, pathlib.Path, pathlib.Path]]:
    """Every table below --results: what it is, its file, and the folder of its cells."""
    found = False
    for file in sorted(pathlib.Path('experiments/tables').glob('*.py')):
        folder = pathlib.Path(FLAGS.results) / file.stem
        if (folder / 'cells').is_dir():
            found = True
            yield spec.load(file), file, folder
    if not found:
        raise UserError(f'{FLAGS.results} holds no results of a table in experiments/tables')


def _render_all() -> None:
    """Renders every table below --results again, from the stored cells."""
    if not FLAGS.results:
        raise UserError('--render needs --table and --workdir, or --results=DIR for all there')
    path = pathlib.Path(FLAGS.readme) if FLAGS.readme else None
    if path and not path.exists():
        raise UserError(f'--readme={path} does not exist')
    written, grids = [], {}
    for table, file, folder in _stored():
        cells = spec.cells(table, file)
        made = _built(table, cells, folder)
        written += _render(table, cells, folder, made)
        if table.shown:
            grids[file.stem] = made
    if path:
        files.write_text(path, readme.written(path.read_text(), grids, FLAGS.results))
        written.append(path)
    for path in written:
        say(f'written: {path}')
    cli.emit({'written': [str(path) for path in written]})


if __name__ == '__main__':
    define_flags()
    cli.run(main)
