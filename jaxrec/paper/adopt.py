"""Finished cells kept through a change of names and code that cannot change their numbers.

Whoever adopts says why. What a run was made by stays: its commit, its versions, its numbers; each
adoption is noted with the hashes before it.
"""

import json
import pathlib
import shlex

from jaxrec import files
from jaxrec.config import RENAMED
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, defaults, metric
from jaxrec.paper import cells as cells_lib
from jaxrec.paper import hashes
from jaxrec.paper.runner import shown_command
from jaxrec.paper.spec import Cell


def adopted(folder: pathlib.Path, cell: Cell, why: str) -> dict:
    """The stored record of a cell with the config, format and code hash of today; as it is if these
    are its own.

    Args:
      folder: of the table.
      cell: whose record it is.
      why: the numbers are still those that this code would give.

    Raises:
      UserError: the stored config means something else than the cell's.
    """
    path = cells_lib.path_of(folder, cell)
    record = files.read_json(path)
    record = _second_format(record) if record['format'] == 1 else record
    now = json.loads(json.dumps(hashes.config_record(cell.experiment)))
    plain = Experiment(model=type(cell.experiment.model)(), task=type(cell.experiment.task)())
    default = {**defaults(cell.experiment), **hashes.config_record(plain)}
    default = json.loads(json.dumps(default))
    there = _renamed(record['config'], cell)
    for name in sorted(there.keys() | now.keys()):
        if name not in there and now[name] == default.get(name):
            continue  # a new field, which means what was done without it
        # settings were stored rounded once
        if there.get(name) not in (now.get(name), cells_lib.rounded(now.get(name))):
            raise UserError(
                f'{path}: {name}={there.get(name)!r}, the table now has {now.get(name)!r}: that is '
                'another cell'
            )
    code = hashes.code_hash(cell.experiment)
    note = {
        'why': why,
        'config': record['hashes']['config'],
        'code': {seed: run['code'] for seed, run in record['seeds'].items()},
    }
    today = {
        **record,
        'command': shlex.join(shown_command(cell)),
        'config': now,
        'hashes': {**record['hashes'], 'config': hashes.config_hash(cell.experiment)},
        'seeds': {seed: {**run, 'code': code} for seed, run in record['seeds'].items()},
    }
    if today == record:
        return record
    return {**today, 'adopted': [*record.get('adopted', []), note]}


def _renamed(config: dict, cell: Cell) -> dict:
    """Stored fields under the names of today."""
    found = {}
    for name, value in config.items():
        name = RENAMED.get(name, name)
        if name.startswith('model.contrast.') and not name[15:16].isdigit():
            name = name.replace('model.contrast.', 'model.contrast.0.')
        found[name] = value
    if found.get('model.type') == 'jaxrec.models.cl4srec:Config':
        found['model.type'] = 'jaxrec.models.sasrec:Config'
        if not found['model.contrast.0.weight']:  # a term without weight is none
            found = {n: v for n, v in found.items() if not n.startswith('model.contrast.')}
    if found.get('train.metric') == metric(cell.experiment):
        found['train.metric'] = cell.experiment.train.metric
    now = hashes.config_record(cell.experiment)
    gone = [n for n, value in found.items() if n not in now and value in ('', 0, False)]
    return {name: value for name, value in found.items() if name not in gone}


def _second_format(record: dict) -> dict:
    """A record of format 1, which knew one task only, in format 2."""
    seeds = {}
    for seed, run in record['seeds'].items():
        run = dict(run)
        buckets = {
            name: {'examples' if n == 'users' else n: v for n, v in values.items()}
            for name, values in run.pop('buckets').items()
        }
        details = {'unreachable': record['unreachable'], 'cold': record['cold']}
        if interests := run.pop('interests'):
            details['interests'] = interests
        run |= {'groups': {'popularity': buckets}, 'details': details, 'kept': run.pop('ranks')}
        seeds[seed] = run
    return {
        'format': 2,
        **{name: record[name] for name in ('row', 'column', 'config', 'hashes', 'split')},
        'protocol': {**record['protocol'], 'data_split': record['data_split']},
        'unit': 'user',
        'examples': record['users'],
        'references': record['baselines'],
        'seeds': seeds,
    }
