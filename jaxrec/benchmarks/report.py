"""A benchmark's result as text, Markdown and a picture."""

import pathlib

from jaxrec import files
from jaxrec.cli import say

_TABLES = ('turns', 'cases')  # lists of rows in a result


def text(result: dict) -> str:
    """The figures, one per line."""
    shown = {k: v for k, v in result.items() if k not in (*_TABLES, 'versions') and v is not None}
    width = max(map(len, shown))
    return '\n'.join(f'{name.ljust(width)}  {_cell(value)}' for name, value in shown.items())


def markdown(result: dict) -> str:
    """A table of the turns or sizes, then the figures and the versions."""
    rows = next((result[name] for name in _TABLES if name in result), [])
    names = [name for name in rows[0] if any(row.get(name) is not None for row in rows)]
    table = [names, ['---'] * len(names)]
    table += [[_cell(row.get(name)) for name in names] for row in rows]
    lines = [f'# Benchmark: {result["suite"]}', '']
    lines += [f'| {" | ".join(row)} |' for row in table]
    lines += ['', *(f'- {line}' for line in text(result).splitlines())]
    lines += [f'- versions  {_cell(result["versions"])}', '']
    return '\n'.join(lines)


def write(result: dict, folder: pathlib.Path) -> None:
    """Writes benchmark_<suite>.json, .md and, with matplotlib, .png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'benchmark_{result["suite"]}.json'
    files.write_json(path, result)
    files.write_text(path.with_suffix('.md'), markdown(result))
    say(f'written: {path} and {path.with_suffix(".md").name}')
    try:
        import matplotlib
    except ImportError:
        say("no picture: matplotlib is not installed (pip install 'jaxrec[plots]')")
        return
    matplotlib.use('Agg')
    with files.replacing(path.with_suffix('.png')) as partial:
        _draw(result).savefig(partial, dpi=120, format='png')
    say(f'written: {path.with_suffix(".png")}')


def _draw(result: dict):
    """Rates turn by turn, or time and memory against the size."""
    from matplotlib.figure import Figure

    if 'turns' in result:
        figure = Figure(figsize=(5, 3.5), layout='constrained')
        axis = figure.subplots()
        numbers = range(1, len(result['turns']) + 1)
        for name, label in (('ours', 'jaxrec'), ('peer', 'peer')):
            if result[name] is not None:
                axis.plot(numbers, [t[name] for t in result['turns']], marker='o', label=label)
        scale = 'log' if result['peer'] is not None else 'linear'
        axis.set(xlabel='turn', ylabel=result['unit'], yscale=scale, title=result['suite'])
        axis.legend()
        return figure
    figure = Figure(figsize=(10, 3.5), layout='constrained')
    time, memory = figure.subplots(1, 2)
    names = [case['case'] for case in result['cases']]
    time.plot(names, [case['milliseconds'] for case in result['cases']], marker='o')
    of = {'serve': 'an answer', 'soak': 'an answer', 'ann': 'a list', 'bulk': 'a list'}.get(
        result['suite'], 'a step'
    )
    time.set(yscale='log', ylabel='ms', title=f'time of {of}')
    for name, label in (
        ('above_start_mib', 'peak, above the start'),
        ('state_mib', 'parameters and optimiser state'),
        ('logits_mib', 'logits of a plain softmax'),
        ('anonymous_mib', 'peak of the command'),
        ('resident_mib', 'of the service'),
    ):
        if all(name in case for case in result['cases']):
            memory.plot(names, [c[name] for c in result['cases']], marker='o', label=label)
    if memory.lines:
        memory.set(yscale='log', ylabel='MiB', title='memory')
        memory.legend()
    else:
        memory.remove()
    for axis in (time, memory):
        axis.grid(alpha=0.3)
        axis.tick_params('x', labelrotation=20)
    return figure


def _cell(value) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{k} {_cell(v)}' for k, v in value.items()) or '-'
    if isinstance(value, list):
        return ' to '.join(map(_cell, value))
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return '-' if value is None else str(value)
