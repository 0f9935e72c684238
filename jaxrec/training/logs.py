"""What a run writes down while it goes: metrics.jsonl, TensorBoard if installed, progress lines."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator

from jaxrec import files
from jaxrec.cli import people, say
from jaxrec.errors import UserError

LOG = 'metrics.jsonl'
_FLUSH_SECONDS = 30  # between writes to the disk for TensorBoard


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
        self._path, self._file = path, open(path, 'a', buffering=1)
        with contextlib.suppress(ImportError):
            self._tensorboard = _TensorBoard(workdir / 'tensorboard')

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line {"step", "seconds", **values} in metrics.jsonl, and TensorBoard scalars."""
        if not self._active:
            return
        seconds = round(time.monotonic() - self._started, 3)
        with files.naming(self._path):
            self._file.write(json.dumps({'step': step, 'seconds': seconds, **values}) + '\n')
        if self._tensorboard is not None:
            self._tensorboard.write(step, values)

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
        with files.naming(self._path):
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class _TensorBoard:
    """Scalars for TensorBoard, written where they are made known: a failed write is an error here.

    (tensorboardX's own SummaryWriter fails in a thread of its own, and then waits for it for ever.)
    """

    def __init__(self, folder: pathlib.Path):
        from tensorboardX.event_file_writer import EventsWriter

        self._folder, self._flushed = folder, time.monotonic()
        with files.naming(folder):
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / 'events'))

    def write(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with files.naming(self._folder):
            for name, value in values.items():
                told = scalar(name.replace('@', '_at_'), value)
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=told))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        with files.naming(self._folder):
            self._events.close()


def duration(seconds: float) -> str:
    """'42 s', '3:07' or '2:03:07'."""
    seconds = int(seconds)
    if seconds < 60:
        return f'{seconds} s'
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def read_series(path: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs by name from a metrics.jsonl; {} if there is none.

    A last line that is torn, by a kill or because it is being written, is left out.

    Raises:
      UserError: another line is damaged.
    """
    series = {}
    for number, line, values in _lines(path):
        if values is None and line.endswith('\n'):
            raise UserError(f'{path}, line {number} is damaged: remove that line')
        for name, value in (values or {}).items():
            if name != 'step':
                series.setdefault(name, []).append((values['step'], value))
    return series


def _drop_after(path: pathlib.Path, step: int, periods: int) -> None:
    """Rewrites a JSONL file without lines after `step` and `periods`, or damaged ones."""
    kept = [
        line.rstrip('\n') + '\n'
        for _, line, values in _lines(path)
        if values is not None and values['step'] <= step and values.get('period', 0) <= periods
    ]
    if path.exists():
        files.write_text(path, ''.join(kept))


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str, dict | None]]:
    """(number, text, values) of the lines of a metrics.jsonl, None for a torn or damaged one."""
    if not path.exists():
        return
    with open(path, encoding='utf-8', errors='replace', newline='\n') as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            wrong = files.misfit(values, {'step': int, str: int | float})
            yield number, line, None if wrong else values
