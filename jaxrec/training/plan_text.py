"""Plans for people: one in full, several as a table."""

from jaxrec.training.plan import FULL

_COLUMNS = '{:10} {:>8} {:>7} {:>9} {:>9} {:>9} {:>9} {:>11} {:>12}  {}'


def text(found: dict, asked_rows: int) -> str:
    """A plan."""
    data, model = found['mesh']
    items = f'{found["items"]:,} items, ' if found['items'] else ''
    lines = [
        f'mesh ({data}, {model}): {found["devices"]:,} devices; {items}'
        f'{found["batch_rows"]:,} rows a step, {found["parameters"]:,} parameters',
    ]
    if found['batch_rows'] != asked_rows:
        lines.append(
            f'note: train.batch_rows={asked_rows} does not divide over the mesh; training there '
            f'needs --config.train.batch_rows={found["batch_rows"]}, which this is for'
        )
    if found['steps_per_epoch']:
        lines.append(f'{found["steps_per_epoch"]:,} steps an epoch')
    lines += ['', 'memory of a device']
    lines += [f'  {name:20} {_bytes(size):>12}' for name, size in found['memory'].items()]
    if 'target' in found:
        return '\n'.join(lines + _of_target(found))
    lines += ['', 'a step on a device', *_work(found, found['devices'])]
    lines += [
        '',
        "temporaries, and which collectives are merged, are those of XLA's CPU compiler",
    ]
    return '\n'.join(lines)


def table(plans: list[dict]) -> str:
    """A line for each target."""
    head = 'target', 'mesh', 'memory', 'step', 'state', 'evaluate', 'lists'
    lines = [_COLUMNS.format(*head, 'step', 'rows/s', 'longest')]
    for found in plans:
        programs = found['programs']
        sizes = [found, *(programs.get(name) for name in ('first state', 'evaluation', 'lists'))]
        lines.append(
            _COLUMNS.format(
                found['target'],
                '{}, {}'.format(*found['mesh']),
                _gib(found['memory_of_machine']),
                *(_held(one) for one in sizes),
                *_speed(found),
            )
        )
    lines += [
        '',
        'memory in GiB of a device, ! = does not fit; step: milliseconds at best, if neither '
        'products, memory nor network wait for anything',
    ]
    return '\n'.join(lines)


def _of_target(found: dict) -> list[str]:
    """What only a target's own compiler knows."""
    lines = [f'  {"of":20} {_bytes(found["memory_of_machine"]):>12}  {found["machine"]}']
    lines.append(f'  {_verdict(found)}')
    if 'seconds' in found:
        lines += ['', 'a step on a device', *_work(found, found['devices']), *_times(found)]
    for name, program in found['programs'].items():
        rows = f' of {program["rows"]:,} rows' if 'rows' in program else ''
        size = _bytes(program['memory']['total'])
        lines += ['', f'{name}{rows}: {size} a device, {_verdict(program)}']
        if 'seconds' in program:
            lines += [*_work(program), *_times(program)]
    lines += ['', 'times are the best that the machine can do; launches and waiting come on top']
    return lines


def _work(found: dict, devices: int = 0) -> list[str]:
    of_all = f' ({found["flops"] * devices / 1e9:,.1f} on all)' if devices else ''
    lines = [f'  {"matrix products":20} {found["flops"] / 1e9:>8,.3f} GFLOP{of_all}']
    for kind, moved in found['collectives'].items():
        lines.append(f'  {kind:20} {_bytes(moved["bytes"]):>12} in {moved["times"]:,} turns')
    return lines


def _times(found: dict) -> list[str]:
    took = found['seconds']
    lines = [
        f'  {"at best":20} {took["total"] * 1e3:>9,.3f} ms: computing '
        f'{took["computing"] * 1e3:,.3f} (products alone {took["products alone"] * 1e3:,.3f}, '
        f'memory alone {took["memory alone"] * 1e3:,.3f}), network {took["network"] * 1e3:,.3f}'
    ]
    for one in found['costliest']:
        lines.append(
            f'    {one["seconds"] * 1e3:>9,.3f} ms {_bytes(one["bytes"]):>12} '
            f'{one["flops"] / 1e9:>9,.3f} GFLOP  {one["about"][-60:]}'
        )
    return lines


def _verdict(found: dict) -> str:
    return 'fits' if found['fits'] else f'does not fit into {FULL:.0%} of it'


def _speed(found: dict) -> tuple[str, str, str]:
    if 'seconds' not in found:
        return '', '', 'does not fit'
    took = found['seconds']
    longest = max(('products alone', 'memory alone', 'network'), key=took.get)
    rate = found['batch_rows'] / took['total']
    return f'{took["total"] * 1e3:,.2f}', f'{rate:,.0f}', longest.removesuffix(' alone')


def _held(program: dict | None) -> str:
    if program is None:
        return '-'
    return _gib(program['memory']['total']) + ('' if program['fits'] else '!')


def _gib(size: float) -> str:
    return f'{size / (1 << 30):,.2f}'


def _bytes(size: float) -> str:
    for unit in ('B', 'KiB', 'MiB', 'GiB'):
        if size < 1024 or unit == 'GiB':
            break
        size /= 1024
    return f'{size:,.{0 if unit == "B" else 2}f} {unit}'
