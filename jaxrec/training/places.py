"""Where runs leave what they find: their folder, log, best checkpoint, and how they fare."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from jaxrec.devices import cluster
from jaxrec.errors import UserError
from jaxrec.problem import Batches
from jaxrec.training.checkpoint import Checkpoints
from jaxrec.training.logs import Logs, duration


@dataclasses.dataclass
class Progress:
    """The validations of a run so far, for early stopping; saved with every checkpoint."""

    best: float | None = None
    best_step: int = 0
    validations_since_best: int = 0
    validated: int = 0  # step of the last validation

    def update(self, step: int, value: float, higher: bool) -> bool:
        """Takes in a validation; True if it is the best so far."""
        self.validated = step
        if self.best is None or (value > self.best if higher else value < self.best):
            self.best, self.best_step, self.validations_since_best = value, step, 0
            return True
        self.validations_since_best += 1
        return False


@dataclasses.dataclass(frozen=True)
class Patience:
    """When a run has waited long enough for a new best.

    A run that is not above `floor` yet, a predictor with nothing to learn, has not begun: it may
    wait four times as long.

    Attributes:
      validations: without a new best; 0 = it waits for ever.
      floor: None = there is none.
      higher: whether more of the metric is better.
    """

    validations: int
    floor: float | None = None
    higher: bool = True

    def over(self, progress: Progress) -> bool:
        """Whether early stopping ends the run."""
        sign, begun = 1 if self.higher else -1, True
        if self.floor is not None and progress.best is not None:
            begun = sign * progress.best > sign * self.floor
        return 0 < self.validations * (1 if begun else 4) <= progress.validations_since_best


@dataclasses.dataclass
class Place:
    """Where a run leaves what it finds."""

    name: str
    folder: pathlib.Path
    logs: Logs
    checkpoints: Checkpoints  # of its best parameters
    progress: Progress


_COLLAPSED = 0.1  # of a 'spread': the mean cosine of two vectors is then .99


class Watch:
    """Reads the metrics of past steps, long after they were dispatched.

    Watches for divergence, which ends a run, and for vectors that collapse, of which it says so
    once: a term 'spread', with or without a place ('spread.1'), see `problem.Model.loss`.

    Args:
      places: of the runs, in the order of the metrics' leading axis.
      batches: what is learnt.
      since: step of the run at which this period began.
      step: where it stands.
      stop_at: where the period ends.
      patience: of the runs; one for which it is over is left out.
      diverged: makes the error of a loss that is not finite.
    """

    def __init__(
        self,
        places: Sequence[Place],
        batches: Batches,
        since: int,
        step: int,
        stop_at: int,
        patience: Patience,
        diverged: Callable[[str, Place], UserError],
    ):
        self._places, self._batches, self._begun = places, batches, since
        self._stop_at, self._patience, self._diverged = stop_at, patience, diverged
        self._since, self._clock, self._waiting = step, time.monotonic(), []
        self._told = set()  # (run, term) that has collapsed

    def add(self, step: int, metrics: dict) -> None:
        self._waiting.append((step, metrics))

    def read(self) -> None:
        """Logs the means of the waiting metrics; UserError at the first that is not finite."""
        if not self._waiting:
            return
        steps, metrics = zip(*self._waiting, strict=True)
        values = cluster.whole(metrics)
        self._waiting = []
        now, step = time.monotonic(), steps[-1]
        rate = (step - self._since) / max(now - self._clock, 1e-9)
        per_step = 1 / self._batches.steps_per_epoch
        epoch = (step - self._begun) * per_step
        speed = {
            'examples_per_second': rate * self._batches.examples_per_epoch * per_step,
            'tokens_per_second': rate * self._batches.targets_per_epoch * per_step,
        }
        means = []
        for nth, place in enumerate(self._places):
            if self._patience.over(place.progress):
                continue
            own = [{name: float(np.ravel(v[name])[nth]) for name in v} for v in values]
            self._check(steps, own, place)
            means.append({name: sum(v[name] for v in own) / len(own) for name in own[0]})
            place.logs.write(step, {'epoch': epoch, **means[-1], **speed})
            self._tell_collapse(step, means[-1], place)
        runs, loss = len(self._places), sum(mean['loss'] for mean in means) / max(len(means), 1)
        self._places[0].logs.progress(
            f'step {step}/{self._stop_at}  epoch {epoch:.2f}  loss {loss:.4f}  '
            f'{runs * speed["examples_per_second"]:,.0f} examples/s  '
            f'{runs * speed["tokens_per_second"]:,.0f} targets/s  '
            f'{duration((self._stop_at - step) / rate)} left'
        )
        self._since = step
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out the time since `read`, which went into something else than training."""
        self._clock = time.monotonic()

    def _tell_collapse(self, step, means, place):
        for name, spread in means.items():
            term = (place.name, name)
            if name.partition('.')[0] != 'spread' or spread >= _COLLAPSED or term in self._told:
                continue
            self._told.add(term)
            run = f'{place.name}  ' if place.name else ''
            place.logs.line(
                f'{run}warning: collapse at step {step}: all vectors of a contrastive term are '
                f'nearly the same ({name} {spread:.3f}, healthy is near 1); try another objective '
                'or a lower weight'
            )

    def _check(self, steps, values, place):
        for step, value in zip(steps, values, strict=True):
            if not all(math.isfinite(value[name]) for name in ('loss', 'grad_norm')):
                raise self._diverged(
                    f'the loss is not finite at step {step} (loss {value["loss"]}, gradient norm '
                    f'{value["grad_norm"]})',
                    place,
                )
