"""What tests of whole runs share: a small experiment, its file, and the commands on it."""

import collections
import contextlib
import dataclasses
import importlib
import io
import json
import logging
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from absl import app, flags

from jaxrec.config import Data, Mesh, Optim, Train
from jaxrec.experiment import Experiment, applied, to_record
from jaxrec.models import sasrec
from jaxrec.tasks import next_item
from jaxrec.training.restore import load_trained


@dataclasses.dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict:
        """What --json printed, the last line."""
        assert self.returncode == 0, self.stderr
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def error(self) -> str:
        """The one line of a user's mistake."""
        assert self.returncode == 2, (self.returncode, self.stdout, self.stderr)
        assert 'Traceback' not in self.stderr
        last = self.stderr.splitlines()[-1]
        assert last.startswith('error: ') and self.stderr.count('error: ') == 1
        return last


def check_members(measured) -> dict:
    """What is kept of groups gives their metrics; what is to be kept."""
    kept = measured.to_keep()
    assert measured.members
    for grouping, groups in measured.members.items():
        for name, mask in groups.items():
            told = measured.groups[grouping].get(name, {'examples': 0})
            assert told['examples'] == mask.sum()
            np.testing.assert_array_equal(kept[f'members/{grouping}/{name}'], mask)
            for metric, values in measured.values.items():
                if mask.any():
                    np.testing.assert_allclose(told[metric], values[mask].mean(), atol=1e-12)
    return kept


def small(folder: pathlib.Path, **changes) -> Experiment:
    """Two seconds on one device; `changes` as {'train.steps': 3}, its data in folder/data."""
    experiment = Experiment(
        model=sasrec.Config(dim=8, blocks=1, max_len=10),
        task=next_item.Config(cutoffs=(5, 10), batch_users=64),
        data=Data(
            dataset='synthetic:users=200,items=60,length=12,seed=1', data_dir=str(folder / 'data')
        ),
        optim=Optim(learning_rate=1e-2, ema=0.9),
        train=Train(batch_rows=8, epochs=3, log_every=2, eval_every=0.5),
        mesh=Mesh(1, 1),
    )
    return applied(experiment, changes)


def write(path: pathlib.Path, experiment: Experiment) -> pathlib.Path:
    """An experiment file."""
    path.write_text(
        'from jaxrec.experiment import from_record\n\n'
        f"def get_config(arg=''):\n    return from_record({to_record(experiment)!r})\n"
    )
    return path


def line(name: str, *words) -> list[str]:
    """Of a command as a process."""
    return [sys.executable, '-u', '-m', f'jaxrec.{name}', *map(str, words)]


def process(name: str, *words, **options) -> Done:
    """A command as a process: with its own devices, signals and working directory."""
    options = {'timeout': 300, **options}
    done = subprocess.run(line(name, *words), capture_output=True, text=True, **options)
    return Done(done.returncode, done.stdout, done.stderr)


def started(words: list[str]) -> subprocess.Popen:
    """A process whose output is read while it goes."""
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def killed_after(process: subprocess.Popen, seconds: float) -> tuple[bool, str]:
    """Kills a training so many seconds after its first line of a step; (was it, its output)."""
    due, output, killed = None, '', False
    for text in process.stdout:
        output += text
        if text.startswith('step '):
            due = due or time.monotonic() + seconds
        if due and time.monotonic() > due:
            process.kill()
            killed = True
            break
    process.stdout.close()
    process.wait()
    return killed, output


def inside(name: str, *words) -> Done:
    """The same command in this process, on its eight devices; flags, files and errors alike."""
    module = importlib.import_module(f'jaxrec.{name}')
    app.define_help_flags()
    known, argv = set(flags.FLAGS), sys.argv
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.modules.pop('config_config', None)  # ml_collections runs the next file in the same module
    try:
        module.define_flags()
        sys.argv = [f'jaxrec.{name}', *map(str, words)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            importlib.import_module('jaxrec.cli').run(module.main)
    except SystemExit as e:
        code = e.code or 0
    finally:
        sys.argv = argv
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for number, handler in handlers:
            signal.signal(number, handler)
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def compiled():
    """Counts the programs that are compiled meanwhile, by the name of their function."""
    names, handler = collections.Counter(), logging.Handler()

    def emit(record):
        if found := re.match(r'Compiling (?:jit\()?([\w<>]+)', record.getMessage()):
            names[found[1]] += 1

    handler.emit, logger = emit, logging.getLogger('jax')
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)


def lines_of(workdir: pathlib.Path) -> list[dict]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def losses_of(workdir: pathlib.Path) -> dict[int, float]:
    return {one['step']: one['loss'] for one in lines_of(workdir) if 'loss' in one}


def metrics_of(workdir: pathlib.Path) -> dict[int, dict]:
    """Validations by step."""
    return {
        one['step']: {name: value for name, value in one.items() if name.startswith('valid')}
        for one in lines_of(workdir)
        if 'valid/HR@10' in one
    }


def params_of(workdir: pathlib.Path, which: str = 'last') -> tuple[int, dict]:
    """(step, parameters) of a checkpoint."""
    trained = load_trained(workdir, which)
    return trained.step, jax.device_get(trained.params)


def same(a, b) -> bool:
    """Bit for bit."""
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def check_same_run(workdir: pathlib.Path, expected: pathlib.Path) -> None:
    """Both checkpoints and all validations, bit for bit; nothing half written."""
    for which in ('last', 'best'):
        (step, params), (expected_step, wanted) = (params_of(w, which) for w in (workdir, expected))
        assert step == expected_step and same(params, wanted)
    assert metrics_of(workdir) == metrics_of(expected)
    assert not list(workdir.rglob('*tmp*'))
