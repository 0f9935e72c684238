"""An evaluation for people: as text, as JSON and as a picture."""

import pathlib

from jaxrec import config, files
from jaxrec.cli import say
from jaxrec.evaluation import protocols
from jaxrec.evaluation.plots import plot_metric_at_k
from jaxrec.evaluation.ranking import LISTED


def report(result: dict) -> str:
    """The result as text: metrics by scorer, popularity buckets, and what they were taken under."""
    scorers = {'model': result['metrics'], **result['baselines']}
    names = [n for n in result['metrics'] if not n.startswith('Recall')]  # equal to HR
    rows = [['', *(s.replace('_', ' ') for s in scorers)]]
    rows += [[name, *(_number(values.get(name)) for values in scorers.values())] for name in names]

    deepest = 10 if 10 in result['protocol']['cutoffs'] else max(result['protocol']['cutoffs'])
    shown = (f'HR@{deepest}', f'NDCG@{deepest}')
    buckets = [['target is', 'users', *shown]]
    for name, values in result['buckets'].items():
        buckets.append([name, f'{values["users"]:,}', *(_number(values.get(s)) for s in shown)])

    protocol = ', '.join(f'{k}={_plain(v)}' for k, v in result['protocol'].items())
    about = [
        f'{result["workdir"]}: {result["checkpoint"]} checkpoint, step {result["step"]}, '
        f'training seed {result["seed"]}',
        f'{result["split"]} split ({result["data_split"]}), {result["users"]:,} users; '
        f'unreachable targets {result["unreachable"]:.2%}, cold targets {result["cold"]:.2%}',
        f'protocol: {protocol}',
        f'data hash: {result["data_hash"]}',
    ]
    if result['too_few_candidates']:
        about.append(
            f'warning: for {result["too_few_candidates"]:,} users the catalogue has fewer than '
            f'{result["protocol"]["negatives"]} candidates: they are ranked against what there is'
        )
    lines = [*about, '', *_aligned(rows), '', *_aligned(buckets)]
    if result['interests']:
        lines += ['', *_interests(**result['interests'])]
    return '\n'.join(lines)


def _interests(target_wins: list[float], list_wins: list[float], similarity: float) -> list[str]:
    numbers = [str(n + 1) for n in range(len(target_wins))]
    rows = [
        ['interest', *numbers],
        ['wins of targets', *map(_number, target_wins)],
        [f'wins of top {LISTED}', *map(_number, list_wins)],
    ]
    return [*_aligned(rows), f"mean cosine between two of a user's interests: {similarity:.3f}"]


def write(result: dict, workdir: pathlib.Path) -> None:
    """Writes the result and, if matplotlib is there, its picture into `workdir`."""
    kind = _kind(result)
    path = workdir / f'evaluation_{kind}.json'
    files.write_json(path, result)
    say(f'\nwritten: {path}')
    picture = workdir / f'metric_at_k_{kind}.png'
    missing = plot_metric_at_k(picture, {'model': result['metrics'], **result['baselines']})
    say(f'no {picture.name}: {missing}' if missing else f'written: {picture}')


def _kind(result: dict) -> str:
    """Part of the file names: the split, the protocol, and what differs from the defaults."""
    protocol = result['protocol']
    parts = [result['split'], protocol['name']]
    if protocol['name'] == 'full' and not protocol['filter_seen']:
        parts.append('keep-seen')
    if protocol['name'] in protocols.SIZED and protocol['negatives'] != config.Eval.negatives:
        parts.append(f'{protocol["negatives"]}-negatives')
    if result['checkpoint'] != 'best':
        parts.append(result['checkpoint'])
    return '_'.join(parts)


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


def _plain(value) -> str:
    return ','.join(map(str, value)) if isinstance(value, list) else str(value)
