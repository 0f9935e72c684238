"""A benchmark's result as text, Markdown and a picture."""

import json
import os
import pathlib

from jaxrec.cli import say


def text(result: dict) -> str:
    """The figures, one per line."""
    skipped = ('turns', 'cases', 'versions', 'experiment')
    shown = {k: v for k, v in result.items() if k not in skipped and v is not None}
    width = max(map(len, shown))
    return '\n'.join(f'{k.ljust(width)}  {_cell(v)}' for k, v in shown.items())


def write(result: dict, folder: pathlib.Path) -> None:
    """Writes benchmark_<suite>.json, .md and, with matplotlib, .png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'benchmark_{result["suite"]}.json'
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(result, indent=1, allow_nan=False) + '\n')
    os.replace(partial, path)
    say(f'written: {path}')


def _cell(value) -> str:
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return str(value)
