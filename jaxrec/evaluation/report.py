"""An evaluation for people: as text, as JSON and as a picture."""

import pathlib
from typing import Any

from jaxrec import files
from jaxrec.cli import say
from jaxrec.evaluation import plots

_COMPARED = ('domain', 'rows')  # groupings whose groups are told of all scorers
_LONG = 8  # a list of more numbers is for the file and the pictures


def text(result: dict) -> str:
    """The result as text: metrics by scorer, groups of examples, and what they were taken under.

    Args:
      result: as `jaxrec.evaluate` makes it.
    """
    scorers = {'model': result['metrics'], **result['references']}
    rows = [['', *(name.replace('_', ' ') for name in scorers)]]
    rows += [
        [name, *(_number(values.get(name)) for values in scorers.values())]
        for name in result['metrics']
    ]
    protocol = ', '.join(f'{k}={_plain(v)}' for k, v in result['protocol'].items())
    lines = [
        f'{result["workdir"]}: {result["checkpoint"]} checkpoint, step {result["step"]}, '
        f'training seed {result["seed"]}',
        f'{result["split"]} split, {result["examples"]:,} examples',
        f'protocol: {protocol}',
        f'data hash: {result["data_hash"]}',
        *_details(result['details']),
        '',
        *_aligned(rows),
        *_beaten(result),
    ]
    kind = _of_groups(result).partition('@')[2]
    for grouping, groups in result['groups'].items():
        shown = [n for n in result['metrics'] if n.partition('@')[2] == kind][:4]
        table = [[grouping, 'examples', *shown]]
        for name, values in groups.items():
            table.append(
                [name, f'{values["examples"]:,}', *(_number(values.get(s)) for s in shown)]
            )
        lines += ['', *_aligned(table)]
        if grouping in _COMPARED:
            lines += ['', *_aligned(_compared(result, grouping))]
    return '\n'.join(lines)


def _beaten(result):
    """A line if something that has nothing to learn is better than the model."""
    main, better = result['main_metric'], result.get('beaten_by')
    if not better:
        return []
    best = ', '.join(
        f'{n.replace("_", " ")} {_number(result["references"][n][main])}' for n in better
    )
    return [
        '',
        f'note: by {main} the model, {_number(result["metrics"][main])}, is beaten by {best}: '
        'train it longer, or smaller, or use that',
    ]


def _of_groups(result):
    """The main metric as groups have it: none is a mean over domains."""
    return result['main_metric'].removesuffix(' macro')


def _compared(result, grouping):
    """The main metric of every scorer in every group."""
    main, groups = _of_groups(result), result['groups'][grouping]
    scorers = {'model': result['groups'], **result['reference_groups']}
    return [
        [f'{main} by {grouping}', *groups],
        *(
            [name.replace('_', ' '), *(_number(own[grouping][g].get(main)) for g in groups)]
            for name, own in scorers.items()
        ),
    ]


def write(result: dict, path: pathlib.Path) -> None:
    """Writes the result and, if there is something to draw, its pictures beside it."""
    files.write_json(path, result)
    say(f'\nwritten: {path}')
    name, details = path.stem.removeprefix('evaluation_'), result['details']
    scorers = {'model': result['metrics'], **result['references']}
    drawn = {'metric_at_k': lambda to: plots.plot_metric_at_k(to, scorers)}
    if 'reliability' in details:
        drawn = {'reliability': lambda to: plots.plot_reliability(to, details['reliability'])}
    if 'experts' in details:
        drawn['experts'] = lambda to: plots.plot_experts(to, details['experts'])
    for kind, draw in drawn.items():
        picture = path.with_name(f'{kind}_{name}.png')
        missing = draw(picture)
        say(f'no {picture.name}: {missing}' if missing else f'written: {picture}')


def _details(details: dict[str, Any], prefix: str = '') -> list[str]:
    """A line for every detail, a table for what is told of several things alike."""
    lines = []
    for name, value in details.items():
        inner = list(value.values()) if isinstance(value, dict) else []
        if inner and all(isinstance(v, dict) and not _has_more(v) for v in inner):
            columns = list(dict.fromkeys(c for v in inner for c in v))
            rows = [[key, *(_plain(v.get(c, '-')) for c in columns)] for key, v in value.items()]
            heads = [f'{prefix}{name}', *(column.replace('_', ' ') for column in columns)]
            lines += ['', *_aligned([heads, *rows])]
        elif isinstance(value, dict):
            lines += _details(value, f'{prefix}{name} ')
        elif not _is_long(value):
            lines.append(f'{prefix}{name}: {_plain(value)}'.replace('_', ' '))
    return lines


def _has_more(row: dict) -> bool:
    """Whether it is more than a line of a table."""
    return any(isinstance(value, dict) or _is_long(value) for value in row.values())


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > _LONG


def _aligned(rows: list[list[str]]) -> list[str]:
    """First column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        '  '.join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.4f}'


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ','.join(map(_plain, value))
    return f'{value:.4g}' if isinstance(value, float) else str(value)
