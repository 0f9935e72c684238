"""Suites loss and catalogue: one measurement per size, each in its own process.

So the peak memory of a size is its own. The parent never touches the device before its children are
done. A size that would take too long, or more memory than there is, judging by the size before, is
left out and named.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

from jaxrec.benchmarks.catalogue import measure_catalogue
from jaxrec.benchmarks.softmax import measure_loss
from jaxrec.cli import say
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment

LOSS_CASES = (  # tokens x items x dim
    '800x12000x64',
    '6400x3400x64',
    '6400x100000x64',
    '25000x100000x64',
    '25000x1000000x64',
)
CATALOGUE_CASES = ('10000', '100000', '1000000', '10000000')  # items


def measure_sizes(
    suite: str, names: Sequence[str] | None, *, max_items: int, max_seconds: float
) -> dict:
    """All sizes of a suite, small to large, each by this command's own flags in a new process.

    Args:
      suite: 'loss' or 'catalogue'.
      names: sizes, ascending, as in LOSS_CASES or CATALOGUE_CASES; None takes those.
      max_items, max_seconds: leave out larger catalogues, and longer steps.

    Returns:
      JSON-ready: `cases`, one dict each; `left_out`, {size: why}; `ours`, `unit` and `of_matmul` of
      the largest; `growth` of the catalogue suite, its largest size against 100k items.
    """
    names = names or (LOSS_CASES if suite == 'loss' else CATALOGUE_CASES)
    sizes = [parse(suite, name) for name in names]  # complains before anything is run
    cases, left_out = [], {}
    for name, size in zip(names, sizes, strict=True):
        why = _too_much(size, cases[-1] if cases else None, max_items, max_seconds)
        if why:
            left_out[name] = why
            say(f'{name}: left out, {why}')
            continue
        cases.append({'case': name, **_in_process(name)})
        say(f'{name}: {case_line(cases[-1])}')
    if not cases:
        raise UserError('no size is within --max_items')
    last = cases[-1]
    found = {
        'unit': 'GFLOP/s' if suite == 'loss' else 'ms/step',
        'ours': last['gflops'] if suite == 'loss' else last['milliseconds'],
        'peer': None,
        'ratio': None,
        'cases': cases,
        'left_out': left_out,
        'of_matmul': last.get('of_matmul'),
        'matmul_gflops': statistics.median(case['matmul_gflops'] for case in cases),
        'peak_memory_mib': last['peak_memory_mib'],
        'data_hash': None,  # generated
    }
    if suite == 'catalogue':
        found['growth'] = _growth(cases)
    return found


def case_line(case: dict) -> str:
    """One size as text."""
    text = f'{case["milliseconds"]:,.1f} ms  {case["above_start_mib"]:,.0f} MiB above the start'
    if case.get('gflops') is not None:
        text += (
            f'  {case["gflops"]:.1f} of {case["matmul_gflops"]:.1f} GFLOP/s '
            f'({case["of_matmul"]:.0%})'
        )
    if 'state_mib' in case:
        text += f', {case["state_mib"]:,.0f} of them parameters and optimiser state'
    return text


def measure_one(
    suite: str, name: str, experiment: Experiment | None, steps: int, **settings
) -> dict:
    """One size in this process; `settings` are the suites' repeats and matmul_size."""
    if suite == 'loss':
        return measure_loss(*parse(suite, name), **settings)
    return measure_catalogue(experiment, *parse(suite, name), steps=steps, **settings)


def _in_process(name: str) -> dict:
    """Measures one size with this command's own flags, in a new process."""
    command = [sys.executable, '-m', 'jaxrec.benchmark', *sys.argv[1:]]
    command += [f'--cases={name}', '--one_case', '--json', '--output=']
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1].removeprefix('error: ') if lines else ''
        if done.returncode == -9:
            last = 'killed, probably for want of memory'
        raise UserError(f'size {name}: {last or f"exit code {done.returncode}"}')
    return json.loads(done.stdout.splitlines()[-1])


def parse(suite: str, name: str) -> tuple[int, ...]:
    """(tokens, items, dim) or (items,) that a name stands for."""
    parts = name.split('x')
    form = 'TOKENSxITEMSxDIM' if suite == 'loss' else 'ITEMS'
    if len(parts) != (3 if suite == 'loss' else 1) or not all(p.isdecimal() for p in parts):
        raise UserError(f'--cases={name} is not {form}, such as {LOSS_CASES[0]} or 100000')
    if min(map(int, parts)) < 1:
        raise UserError(f'--cases={name}: every number must be positive')
    return tuple(map(int, parts))


def _too_much(
    size: tuple[int, ...], before: dict | None, max_items: int, max_seconds: float
) -> str:
    """Why a size is left out, '' if it is not; time and memory are scaled from `before`."""
    items = size[1] if len(size) == 3 else size[0]
    if items > max_items:
        return f'more than --max_items={max_items}'
    if before is None:
        return ''
    old = [int(part) for part in before['case'].split('x')]
    work, rows = 1.0, items / old[1 if len(old) == 3 else 0]
    for new_part, old_part in zip(size, old, strict=True):
        work *= new_part / old_part
    seconds = before['milliseconds'] / 1e3 * work
    if seconds > max_seconds:
        return f'a step would take {seconds:.0f} s (--max_seconds={max_seconds:g})'
    memory = before['above_start_mib'] * rows
    if memory > before['memory_limit_mib']:
        return f'it would take {memory:,.0f} MiB of {before["memory_limit_mib"]:,.0f} free'
    return ''


def _growth(cases: list[dict]) -> dict | None:
    """Time of the largest catalogue over that at 100k, and its memory over that of its state."""
    base = next((case for case in cases if case['case'] == '100000'), None)
    last = cases[-1]
    if base is None or last is base:
        return None
    return {
        'items': int(last['case']),
        'step_time': last['milliseconds'] / base['milliseconds'],
        'memory_over_state': last['above_start_mib'] / last['state_mib'],
    }
