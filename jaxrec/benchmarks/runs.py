"""A run to serve: that of --workdir, or a model of --config that has learnt one step."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator

from jaxrec.cli import say
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment
from jaxrec.training.loop import fit


@contextlib.contextmanager
def served_run(experiment: Experiment | None, workdir: str | None) -> Iterator[pathlib.Path]:
    """Its folder. Time does not depend on how much was learnt, recall of an index does.

    Raises:
      UserError: neither is given, or both.
    """
    if (experiment is None) == (workdir is None):
        raise UserError('give --workdir=DIR, a run, or --config=experiments/X.py, not both')
    if workdir is not None:
        yield pathlib.Path(workdir)
        return
    with tempfile.TemporaryDirectory(prefix='jaxrec-run-') as folder:
        train = dataclasses.replace(experiment.train, steps=1)
        one = dataclasses.replace(experiment, train=train)
        say('training one step, to have something to serve')
        fit(one, pathlib.Path(folder))
        yield pathlib.Path(folder)
