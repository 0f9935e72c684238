"""Finished cells on disk: one JSON file each, the same bytes for the same result but for times."""

import base64
import dataclasses
import json
import pathlib
import statistics
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrec import experiment as experiment_lib
from jaxrec import files
from jaxrec.errors import UserError
from jaxrec.paper import hashes
from jaxrec.paper.spec import Cell
from jaxrec.training import workdir
from jaxrec.training.logs import LOG, read_series

FORMAT = 2
_DIGITS = 8
_ROUNDING = 1e-6  # of a mean beside the values it is of
# What of the records is read, see `files.misfit`; the rest is told.
_SHARED = {'split': str, 'protocol': dict, 'unit': str}
_METRICS = {'metrics': {str: int | float}}
_CELL = {
    **_SHARED,
    'config': dict,
    'hashes': {'config': str, 'data': str},
    'seeds': {str: {**_METRICS, 'kept': {str: str}, 'code': str}},
}
_EVALUATION = {
    **_SHARED,
    **_METRICS,
    **dict.fromkeys(('groups', 'details', 'references'), dict),
    **dict.fromkeys(('examples', 'step'), int),
    'data_hash': str,
}


def path_of(folder: pathlib.Path, cell: Cell) -> pathlib.Path:
    return folder / 'cells' / f'{cell.key}.json'


def read(folder: pathlib.Path, cell: Cell) -> dict | None:
    """What is stored of a cell; None if nothing is."""
    path = path_of(folder, cell)
    if not path.exists():
        return None
    there = files.read_json(path, {'format': int})['format']
    if there != FORMAT:
        raise UserError(
            f'{path} has format {there}, this version reads {FORMAT}; '
            'python -m jaxrec.table --adopt --why=.. --results=.. takes it over'
        )
    record = files.read_json(path, _CELL)
    seeds = list(record['seeds'])
    if not seeds or not all(map(str.isdecimal, seeds)):
        raise UserError(f'{path} is damaged (its seeds are {seeds}); put it back or delete it')
    return record


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a cell would be made of now."""

    config: str
    code: str
    data: str


def wanted(cell: Cell, say) -> Wanted:
    experiment = cell.experiment
    return Wanted(
        hashes.config_hash(experiment),
        hashes.code_hash(experiment),
        hashes.data_hash(experiment, say),
    )


def to_run(
    record: dict | None, now: Wanted, seeds: Iterable[int], accept: Iterable[str], cell: Cell
) -> tuple[list[int], str]:
    """(seeds to run, why), of a cell as stored; ([], '') if it is finished.

    Args:
      record: as stored, None if it is not.
      now: what it would be made of now.
      seeds: all that it should have.
      accept: 'config', 'code', 'data': differences that do not matter.
      cell: whose fields are compared to name what changed.
    """
    seeds = list(seeds)
    if record is None:
        return seeds, 'not run yet'
    changed = []
    if 'config' not in accept and record['hashes']['config'] != now.config:
        changed.append(f'config ({_differences(record["config"], cell)})')
    if 'data' not in accept and record['hashes']['data'] != now.data:
        changed.append(f'data ({record["hashes"]["data"][:12]}, now {now.data[:12]})')
    if 'code' not in accept:
        old = {run['code'] for run in record['seeds'].values()} - {now.code}
        if old:
            changed.append(f'code ({min(old)[:12]}, now {now.code[:12]})')
    if changed:
        return seeds, f'changed: {"; ".join(changed)}'
    missing = [seed for seed in seeds if str(seed) not in record['seeds']]
    if missing:
        return missing, f'seeds {", ".join(map(str, missing))} are missing'
    return [], ''


def _differences(old: Mapping, cell: Cell) -> str:
    new = json.loads(json.dumps(hashes.config_record(cell.experiment)))
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return ', '.join(f'{n}={old.get(n)!r}, now {new.get(n)!r}' for n in names)


def same_runs(
    folders: Iterable[pathlib.Path], now: Wanted, accept: Container[str], cell: Cell
) -> Iterator[tuple[pathlib.Path, dict]]:
    """(file, record under the cell's name) of what other rows and tables have of its config.

    Args:
      folders: of tables.
      now: what the cell would be made of; config and data are to be the same.
      accept: with 'code', seeds of any code; else those of `now`.
      cell: which.
    """
    for path in (path for folder in folders for path in sorted((folder / 'cells').glob('*.json'))):
        try:
            record = files.read_json(path, _CELL)
        except UserError:  # which is told where its own cell is read
            continue
        seeds = {
            seed: run
            for seed, run in record['seeds'].items()
            if 'code' in accept or run['code'] == now.code
        }
        made_of = record['hashes']
        if seeds and (made_of['config'], made_of['data']) == (now.config, now.data):
            yield path, {**record, 'row': cell.row, 'column': cell.column, 'seeds': seeds}


def assemble(cell: Cell, now: Wanted, runs: Mapping[int, pathlib.Path], command: str) -> dict:
    """The record of a cell from the folders of its finished runs.

    Args:
      cell: which.
      now: what it was made of.
      runs: folder by seed, each with a run, trained.json (which says by which `code`: it may have
        been edited meanwhile), evaluation.json and ranks.npz.
      command: that trains it, for people.
    """
    evaluations = {
        seed: files.read_json(folder / 'evaluation.json', _EVALUATION)
        for seed, folder in runs.items()
    }
    first = next(iter(evaluations.values()))
    for seed, result in evaluations.items():
        if result['data_hash'] != now.data or result['protocol'] != first['protocol']:
            raise UserError(f'{runs[seed]} was evaluated on other data or under another protocol')
        ran = hashes.config_record(experiment_lib.read(runs[seed] / 'config.json'))
        if ran != json.loads(json.dumps(hashes.config_record(cell.experiment))):
            raise UserError(
                f'{runs[seed]} ran with another config than the table says: overrides must be '
                'numbers, strings, booleans, or tuples of them'
            )
    shared = first.get('compared_hash', now.data)
    return {
        'format': FORMAT,
        'row': cell.row,
        'column': cell.column,
        'command': command,
        'config': hashes.config_record(cell.experiment),
        'hashes': {
            'config': now.config,
            'data': now.data,
            **({'compared': shared} if shared != now.data else {}),
        },
        **{name: first[name] for name in ('split', 'protocol', 'unit', 'examples', 'references')},
        'seeds': {str(s): _run(evaluations[s], runs[s], cell) for s in sorted(runs)},
    }


def _run(result: dict, folder: pathlib.Path, cell: Cell) -> dict:
    """One seed's part of a record; with its own references where it holds out its own examples."""
    session = workdir.read_run(folder)['sessions'][-1]
    path = folder / 'kept.npz'
    try:
        with np.load(path) as kept:
            packed = {name: pack(kept[name]) for name in kept.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f'{path} is damaged ({e}); delete it and evaluation.json beside it') from e
    series = read_series(folder / LOG)
    metric = experiment_lib.metric(cell.experiment)
    return {
        'metrics': result['metrics'],
        'groups': result['groups'],
        'details': result['details'],
        **({'references': result['references']} if 'numbers' in packed else {}),
        'best_step': result['step'],
        'curve': {'metric': metric, 'points': series.get(f'valid/{metric}', [])},
        'kept': packed,
        'code': files.read_json(folder / 'trained.json', {'code': str})['code'],
        'git': session['git'],
        'versions': session['versions'],
        'platform': session['platform'],
        'devices': session['devices'],
        'times': _times(series, session),
    }


def _times(series: dict, session: dict) -> dict:
    """All that differs between two runs of the same cell."""
    rates = [value for _, value in series.get('tokens_per_second', [])]
    seconds, last = 0.0, 0.0
    for _, value in series.get('seconds', []):  # begins again with every session
        seconds, last = seconds + (value if value < last else value - last), value
    return {
        'seconds': round(seconds, 1),
        'tokens_per_second': round(statistics.median(rates), 1) if rates else None,
        'started': session['time'],
    }


def write(folder: pathlib.Path, cell: Cell, record: dict) -> None:
    """Stores a cell, whole or not at all."""
    path = path_of(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, to_text(record))


def to_text(record: dict) -> str:
    """JSON with sorted keys and rounded numbers, settings as they are."""
    kept = {'config': record['config']} if 'config' in record else {}
    return json.dumps({**rounded(record), **kept}, indent=1, sort_keys=True, allow_nan=False) + '\n'


def merged(old: dict | None, new: dict) -> dict:
    """`new` with the seeds that only `old` has."""
    return {**new, 'seeds': {**(old['seeds'] if old else {}), **new['seeds']}}


def publish(cell: Cell, folder: pathlib.Path, target: pathlib.Path, shown: Container[str]) -> None:
    """Copies a finished cell to another folder of the table, beside the seeds that are there.

    Args:
      cell: which.
      folder: where it is.
      target: where it is to be.
      shown: metrics of the table, and its groups as 'grouping/group': of others what single users
        have is left out, see `_told`.

    Raises:
      UserError: more seeds are there, made of something else, which the copy would replace.
    """
    new, old = _told(read(folder, cell), shown), read(target, cell)
    if old and _made_of(old) != _made_of(new):
        if len(old['seeds']) > len(new['seeds']):
            raise UserError(
                f'{path_of(target, cell)} holds {len(old["seeds"])} seeds of another config, code '
                f'or data, {folder} only {len(new["seeds"])}: run as many seeds, or remove it'
            )
        old = None
    write(target, cell, merged(old, new))


def _told(record: dict, shown: Container[str]) -> dict:
    """The record with what is kept of these alone, in float32 where that moves no mean."""

    def told(kept):
        single = {n for n in kept if n.partition('/')[0] in ('values', 'weights', 'members')}
        left = {n: x for n, x in kept.items() if n not in single or n.partition('/')[2] in shown}
        values = {n for n in single if not n.startswith('members/')}
        return {n: shorter(x) if n in values else x for n, x in left.items()}

    def shorter(text):
        values = unpack(text)
        short = values.astype('<f4')
        return pack(short) if np.abs(short - values).max(initial=0) < _ROUNDING / 2 else text

    seeds = {seed: {**run, 'kept': told(run['kept'])} for seed, run in record['seeds'].items()}
    return {**record, 'seeds': seeds}


def _made_of(record):
    return record['hashes'], {run['code'] for run in record['seeds'].values()}


def first_seeds(record: dict, count: int | None) -> dict:
    """The record with its first `count` seeds only; all of them for None."""
    seeds = sorted(record['seeds'], key=int)[:count]
    return {**record, 'seeds': {seed: record['seeds'][seed] for seed in seeds}}


def pack(values: np.ndarray) -> str:
    """An array as text: byte planes (those of high bytes are nearly constant), zlib, base64.

    int32 values have no more to say; others are told by their dtype before a colon.
    """
    values = np.ascontiguousarray(values)
    floats = '<f4' if values.dtype == np.float32 else '<f8'
    kind = '<i4' if values.dtype.kind in 'biu' else floats
    if kind == '<i4' and values.size and not -(2**31) <= values.min() <= values.max() < 2**31:
        kind = '<i8'
    planes = values.astype(kind).view(np.uint8).reshape(-1, np.dtype(kind).itemsize).T
    text = base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()
    return text if kind == '<i4' else f'{kind}:{text}'


def unpack(text: str) -> np.ndarray:
    """Inverse of `pack`; floats are float64."""
    kind, _, body = text.rpartition(':')
    kind = kind or '<i4'
    planes = np.frombuffer(zlib.decompress(base64.b64decode(body)), np.uint8)
    planes = planes.reshape(np.dtype(kind).itemsize, -1)
    values = np.ascontiguousarray(planes.T).view(kind).reshape(-1)
    return values.astype('<f8') if kind == '<f4' else values


class Examples(NamedTuple):
    """What a cell has of every user, row or graph.

    Attributes:
      values: float64 [seeds, N] of a metric; [1, N] means over the seeds that hold an example out,
        where each holds out its own.
      weights: float64 [N].
      numbers: int64 [N] ascending, of the examples in the data, where seeds hold out their own.
    """

    values: np.ndarray
    weights: np.ndarray
    numbers: np.ndarray | None = None


def per_example(record: dict, cell: Cell, metric: str, seeds: Iterable[str]) -> Examples:
    """Values of a metric of single users, rows or graphs.

    Raises:
      UserError: the metric has none, or the record is damaged: its mean is not theirs.
    """
    rows, weights, numbers, name = [], [], [], f'{cell.row} / {cell.column}'
    for seed in seeds:
        run = record['seeds'][seed]
        texts = {n: x for n, x in run['kept'].items() if not n.startswith('members/')}
        try:
            kept = {name: unpack(text) for name, text in texts.items()}
        except (ValueError, zlib.error) as e:
            raise UserError(f'{name}: what is kept of seed {seed} is damaged ({e})') from e
        try:
            values, own = cell.experiment.task.values(kept, metric, record['protocol'])
        except KeyError as e:
            raise UserError(
                f'{name}: {metric} has no values of single {record["unit"]}s, '
                'which a table tests: choose another metric'
            ) from e
        except (IndexError, TypeError, ValueError) as e:
            raise UserError(
                f'{name}: no {metric} follows from what is kept of seed {seed} ({e}): the file is '
                'damaged; put it back or delete it'
            ) from e
        mean, told = np.average(values, weights=own), run['metrics'].get(metric, np.nan)
        if not abs(mean - told) <= _ROUNDING:
            raise UserError(
                f'{name}: {metric} of seed {seed} is {told} in the stored cell, and {mean:.6f} by '
                'what is kept of it: the file is damaged; put it back or delete it'
            )
        rows.append(values)
        weights.append(own)
        numbers.append(kept.get('numbers'))
    if numbers[-1] is None:
        return Examples(np.stack(rows), weights[-1])
    found, (values, weights) = _pooled(numbers, rows, weights)
    return Examples(values[None], weights, found)


def members(record: dict, among: tuple[str, str], seeds: Iterable[str]) -> np.ndarray | None:
    """bool [N], which values of `per_example` are of this (grouping, group); None if none is.

    Raises:
      KeyError: the record keeps nothing of it.
    """
    grouping, group = among
    found, numbers = [], []
    for seed in seeds:
        run = record['seeds'][seed]
        kept, there = run['kept'], run['groups'].get(grouping, {}).get(group, {}).get('examples')
        found.append(unpack(kept[f'members/{grouping}/{group}']) if there else None)
        numbers.append(unpack(kept['numbers']) if 'numbers' in kept else None)
    if all(one is None for one in found):
        return None
    if numbers[-1] is None:
        return found[-1].astype(bool)
    found = [
        np.zeros(len(n)) if one is None else one for one, n in zip(found, numbers, strict=True)
    ]
    return _pooled(numbers, found)[1][0] >= 0.5


def _pooled(numbers: list[np.ndarray], *columns: list[np.ndarray]) -> tuple:
    """The distinct numbers, ascending, and of each column, by seed, the means of their values."""
    found, place = np.unique(np.concatenate(numbers), return_inverse=True)
    count = np.bincount(place)
    return found, [np.bincount(place, np.concatenate(column)) / count for column in columns]


def rounded(value: Any) -> Any:
    """Nested dicts and lists with the numbers that are not whole rounded."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
