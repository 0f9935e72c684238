"""What was understood of a log, for people: `python -m jaxrec.prepare --log=FILE --dry_run`."""

import numpy as np

from jaxrec import config as config_lib
from jaxrec.data.catalogue import plain
from jaxrec.datasets import events as events_lib
from jaxrec.datasets import log_file, log_parts, raw_ids

FIRST = 5  # rows shown
UNITS = {'seconds': 1, 'milliseconds': 10**3, 'microseconds': 10**6, 'nanoseconds': 10**9}
YEARS = (1990, 2100)  # of which times are taken to be


def describe(config: config_lib.Data) -> tuple[dict[str, str], list[str], dict]:
    """Reads config.log and writes nothing.

    Returns:
      Lines by name; remarks; the statistics of the histories. Of a large Parquet log only the first
      rows are read, which a line says.

    Raises:
      UserError: as `log_file.read` and `events.to_histories`.
    """
    paths, large = log_parts.parts(config.log), log_file.is_large(config)
    events = log_file.read(config, log_file.LARGE if large else None)
    ids = {config.user_col: events.users, config.item_col: events.items}
    if events.about['layout'] in (*log_file.READERS, log_file.TRAIN_TEST):
        ids = {'user': events.users, 'item': events.items}
    size = sum(path.stat().st_size for path in paths)
    lines = {
        'files': f'{len(paths):,}, {size:,} bytes, the first is {paths[0].name}',
        **events.about,
        'rows': f'{len(events.users.codes):,}' + (' (the first ones only)' if large else ''),
    }
    kinds = {'i': 'integers', 'S': 'text'}
    for column, coded in ids.items():
        kind = kinds[coded.values.dtype.kind]
        lines[f'{column} ids'] = f'{kind}, {len(coded.values):,} distinct'
    lines['times'] = 'none: rows are in time order'
    if events.times is not None:
        lines['times'] = _times(events.times, events.about.get('times', ''))
    for name, values in events.features.items():
        missing = int(np.isnan(values).sum()) if values.dtype.kind == 'f' else 0
        there = values[~np.isnan(values)] if missing else values
        span = f'{there.min():g} to {there.max():g}' if len(there) else 'no value'
        lines[f'feature {name}'] = f'{values.dtype}, {span}, {missing:,} missing'
    for row in range(min(FIRST, len(events.users.codes))):
        lines[f'row {row + 1}'] = _row(events, row)
    said = [one for column, coded in ids.items() for one in raw_ids.remarks(coded.values, column)]
    histories = events_lib.to_histories(events, paths[0].name, config.min_user, config.min_item)
    return lines, said, histories.statistics()


def _row(events: events_lib.Events, row: int) -> str:
    cells = [repr(plain(c.values[c.codes[row]])) for c in (events.users, events.items)]
    cells += [] if events.times is None else [f'{events.times[row]}']
    return ', '.join([*cells, *(f'{name} {v[row]:g}' for name, v in events.features.items())])


def _times(times: np.ndarray, written: str) -> str:
    low, high = times.min(), times.max()
    fractions = '; fractions are kept as millionths' if times.dtype.kind == 'f' else ''
    for unit, count in UNITS.items():
        first, last = (value / count / 86400 / 365.2425 + 1970 for value in (low, high))
        if YEARS[0] <= first and last < YEARS[1]:
            days = [np.datetime64(int(value // count), 's') for value in (low, high)]
            return f'{written or unit} since 1970: {days[0]} to {days[1]}{fractions}'
    return f'numbers of an unknown unit, {low} to {high}{fractions}'
