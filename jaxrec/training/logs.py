"""What a run writes down while it goes: metrics.jsonl, TensorBoard if installed, progress lines."""

import json
import pathlib
import time

from jaxrec import files
from jaxrec.cli import people, say

LOG = 'metrics.jsonl'


class Logs:
    """Writes metrics for machines and progress for people; process 0 only (`active`).

    Args:
      workdir: folder of the run; metrics go to workdir/metrics.jsonl and workdir/tensorboard.
      first_step: lines beyond this step, left by a killed run, are dropped.
      active: False makes every method do nothing.
      periods: so are those of periods beyond as many.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int, active: bool, periods: int = 0):
        self._active, self._open_line = active, False
        self._started = time.monotonic()
        self._tensorboard = None
        if not active:
            return
        path = workdir / LOG
        _drop_after(path, first_step, periods)
        self._file = open(path, 'a', buffering=1)
        try:
            import tensorboardX
        except ImportError:
            return
        self._tensorboard = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'))

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line {"step", "seconds", **values} in metrics.jsonl, and TensorBoard scalars."""
        if not self._active:
            return
        seconds = round(time.monotonic() - self._started, 3)
        self._file.write(json.dumps({'step': step, 'seconds': seconds, **values}) + '\n')
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name.replace('@', '_at_'), value, step)

    def progress(self, text: str) -> None:
        """A line that the next one overwrites on a terminal, a plain line elsewhere."""
        if not self._active:
            return
        if people().isatty():
            print('\r\x1b[K' + text, end='', file=people(), flush=True)
            self._open_line = True
        else:
            say(text)

    def line(self, text: str) -> None:
        """A line that stays."""
        if not self._active:
            return
        if self._open_line:
            print('\r\x1b[K', end='', file=people())
            self._open_line = False
        say(text)

    def close(self) -> None:
        if not self._active:
            return
        if self._open_line:
            say()
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def duration(seconds: float) -> str:
    """'42 s', '3:07' or '2:03:07'."""
    seconds = int(seconds)
    if seconds < 60:
        return f'{seconds} s'
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def _drop_after(path: pathlib.Path, step: int, periods: int) -> None:
    """Rewrites a JSONL file without lines after `step` and `periods` (or a torn last line)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
            if values['step'] <= step and values.get('period', 0) <= periods:
                kept.append(line + '\n')
        except (ValueError, KeyError):
            continue
    files.write_text(path, ''.join(kept))


def read_series(path: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs by name from a metrics.jsonl; {} if there is none.

    A last line that is torn, by a kill or because it is being written, is left out.
    """
    series = {}
    if not path.exists():
        return series
    *lines, _ = path.read_text(encoding='utf-8').split('\n')  # what follows the last \n
    for line in lines:
        values = json.loads(line)
        step = values.pop('step')
        for name, value in values.items():
            series.setdefault(name, []).append((step, value))
    return series
