"""Live: what will come of a visit to a live room, learnt in order of time from a label stream.

A run goes through the visits in ticks. At each the model, which knows what the stream said until
then and no more, scores the visits of the next minutes, and then learns what the stream says in the
tick. Features are those of the visit's own moment, whenever its labels come.

Measured are these scores, against what came in the end: AUC among the visits of the same next
minutes, a value per tick, and of rooms with a highlight the lag, the seconds from its beginning to
the first tick at which the room's mean probability is half as much again as at its beginning.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxrec import datasets, problem, rng
from jaxrec.config import field
from jaxrec.data.fields import Encoder, Field, check_fields
from jaxrec.data.label_streams import STREAMS, Reports, Visits, reports
from jaxrec.data.row_catalogue import RowCatalogue
from jaxrec.data.rows import Columns, Rows
from jaxrec.devices.mesh import replicated
from jaxrec.errors import UserError
from jaxrec.evaluation import point_metrics
from jaxrec.tasks.click import Clicks, label_sizes, whole

RISE = 1.5  # of a room's mean probability, by which a highlight is noticed
LONGEST = 600  # seconds; a lag that is longer counts as this
_PSEUDO = 20  # visits at the mean rate, added to what a room had lately


@dataclasses.dataclass
class Config(problem.Task):
    """Labels of visits; their rows say when each came, in seconds after the visit began.

    A row has the columns `stay` (seconds until the exit) and LABEL_after of every label (seconds;
    missing = it never came). The first label is the one that `sliver` makes the others depend on.
    """

    needs_no_data: ClassVar[str] = 'scores of new rows (jaxrec.load(..).score) need no data'

    labels: tuple[str, ...] = ('click', 'like', 'gift')
    fields: tuple[Field, ...] = (Field('user'), Field('item'))  # categories and sets
    stream: str = field('moment', choices=STREAMS)
    window: int = field(30, least=1)  # seconds, of moment and sliver
    fast: int = field(300, least=1)  # seconds after which fast_slow tells what came
    slow: int = field(3600, least=1)  # and what it had missed
    tick: int = field(30, least=1)  # seconds between two models
    ahead: int = field(300, least=1)  # seconds of visits that a model is measured by
    warm_up: int = field(1800, least=0)  # first seconds, whose models are not measured
    # columns with the seconds at which a room's highlights begin and end; () = none are known
    highlights: tuple[str, ...] = field((), effect='measure')
    batch_rows: int = field(4096, least=1, effect='pace')  # of an evaluation

    def check(self, experiment: Any) -> None:
        check_fields(self.fields)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise UserError('task.labels must name at least one label, each once')
        for one in self.fields:
            if one.kind not in ('category', 'set'):
                raise UserError(
                    f"task.fields: {one.column!r} has kind={one.kind!r}, which needs all rows' "
                    'values before the first is learnt: a stream takes category and set'
                )
            if one.column in self.outcomes():
                raise UserError(f'task.fields: {one.column!r} says what came of a row')
        if not self.fast < self.slow:
            raise UserError(f'task.fast={self.fast} must be below task.slow={self.slow}')
        if len(self.highlights) not in (0, 2):
            raise UserError('task.highlights are two columns: of their beginnings, of their ends')
        if experiment.train.epochs != 1:
            raise UserError('a stream is learnt once: set train.epochs=1')
        if experiment.model.inputs().max_len:
            raise UserError('the model sees the past of a row, which a label stream does not give')
        there = {one.column for one in self.fields}
        for name in experiment.model.inputs().features:
            if name not in there:
                raise UserError(f'the model wants field {name!r}: add it to task.fields')

    def outcomes(self) -> tuple[str, ...]:
        """Columns that say what came of a row."""
        return ('stay', *(f'{label}_after' for label in self.labels))

    def metrics(self) -> dict[str, problem.Metric]:
        """AUC, logloss, calibration of every label; of the first, where highlights are known, lag.

        And missed, the share of highlights that were over before they were noticed.
        """
        found = {}
        for label in self.labels:
            found[f'AUC/{label}'] = problem.Metric()
        for label in self.labels:
            found[f'logloss/{label}'] = problem.Metric(higher=False)
            found[f'calibration/{label}'] = problem.Metric(higher=False, single=False)
        found |= {name: problem.Metric(higher=False) for name in ('lag', 'missed')}
        return found

    def protocol_fields(self) -> dict[str, Any]:
        """From when and how far visits are scored."""
        return {
            'name': 'live',
            'labels': list(self.labels),
            'tick': self.tick,
            'ahead': self.ahead,
            'warm_up': self.warm_up,
            'lag': f'to {RISE} times, {LONGEST} s at most',
            **self.told_precision(),
        }

    def columns(self, time_col: str) -> Columns:
        """What there is to read of a file of rows."""
        of = lambda kind: tuple(  # noqa: E731
            one.column
            for one in self.fields
            if one.kind == kind and one.column not in ('user', 'item', time_col)
        )
        items = {one.column for one in self.fields if one.of == 'item'}
        return Columns(
            labels=(),
            numbers=self.outcomes(),
            categories=of('category'),
            sets=tuple(name for name in of('set') if name not in items),
            sets_of_items=tuple(name for name in of('set') if name in items),
        )

    def open(
        self, experiment: Any, say: Callable = print, process: tuple[int, int] = (0, 1)
    ) -> problem.Problem:
        columns = self.columns(experiment.data.time_col)
        rows, meta = datasets.load(experiment.data, say, kind=Rows, columns=columns)
        visits = self.visits(rows)
        encode = Encoder(rows, self.fields, np.arange(len(rows)))  # a new id has a row of its own
        said = reports(self.stream, visits, window=self.window, fast=self.fast, slow=self.slow)
        begin, end = int(rows.times[0]), int(rows.times[-1])
        ticks = np.arange(begin, end + 1, self.tick)
        measured = (ticks >= begin + self.warm_up) & (ticks + self.ahead <= end)
        if not measured.any():
            raise UserError(
                f'the visits last {end - begin:,} seconds: too few for task.warm_up={self.warm_up} '
                f'and task.ahead={self.ahead}'
            )
        world = World(self, rows, visits, said, encode)
        periods = [
            functools.partial(self._period, world, experiment, process, int(tick), bool(scored))
            for tick, scored in zip(ticks, measured, strict=True)
        ]
        numbers = np.flatnonzero(measured)
        sizes = {**encode.sizes, **label_sizes(self.labels)}
        return Live(
            about=f'{rows.name}: {len(rows):,} visits, {len(said):,} reports of {self.stream}, '
            f'{rows.num_users:,} users, {rows.num_items:,} rooms',
            data_hash=meta['data_hash'],
            data_path=meta['path'],
            source=rows,
            sizes=sizes,
            periods=periods,
            evaluations={
                'test': lambda: Stream(world, ticks[measured], range(numbers[0], numbers[-1] + 1))
            },
            catalogue=RowCatalogue.of(encode, rows, meta['data_hash'], sizes),
            conditional=self.stream == 'sliver',
        )

    def visits(self, rows: Rows) -> Visits:
        """What came of the rows.

        Raises:
          UserError: a column is missing, or something came after the exit.
        """
        for name in self.outcomes():
            column, unit = rows.column(name)
            if unit != 'row' or column.ndim > 1:
                raise UserError(f'{name!r} must be a column of the rows with single values')
        stay, *after = (rows.column(name)[0] for name in self.outcomes())
        after = np.stack(after, axis=1)
        if np.isnan(stay).any():
            raise UserError(f'row {int(np.isnan(stay).argmax()) + 1} has no stay')
        wrong = (after < 0) | (after > stay[:, None])
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise UserError(
                f'row {row + 1}: {self.labels[column]}_after is {after[row, column]:g}, and the '
                f'visit lasts from 0 to its stay, {stay[row]:g}'
            )
        return Visits(rows.times, stay, after)

    def _period(self, world, experiment, process, tick, scored):
        """Of the tick that begins at `tick`: what is said in it, its end included."""
        first, last = world.said_between(tick, tick + self.tick)
        first = 0 if tick == world.rows.times[0] else first
        batches = ReportBatches(world, first, last, experiment.train, process)
        batches = batches if last > first else None
        before = {'next': Ahead(world, tick)} if scored else {}
        return problem.Period(batches, before, saved=False)

    def open_catalogue(self, folder: pathlib.Path) -> problem.Problem:
        """New rows need the codes of the fields alone; see `problem.Task`."""
        return Live.of(RowCatalogue.load(folder), conditional=self.stream == 'sliver')


@dataclasses.dataclass
class World:
    """What evaluations and batches share.

    Attributes:
      config: the task's.
      rows: all of them.
      visits: what came of the rows.
      said: what the stream says of it.
      encode: features of the rows.
    """

    config: Config
    rows: Rows
    visits: Visits
    said: Reports
    encode: Encoder

    @functools.cached_property
    def came(self) -> np.ndarray:
        """float32 [N, T], 1 where the behaviour came."""
        return (~np.isnan(self.visits.after)).astype(np.float32)

    def said_between(self, begin: float, end: float) -> np.ndarray:
        """(first, last) of the reports with begin < time <= end, which a model of `end` knows."""
        return np.searchsorted(self.said.times, [begin, end], side='right')


class ReportBatches(problem.Batches):
    """The reports first..last as training batches, in an order drawn from (seed, first); once.

    In order of time the exits of a tick, all negatives, would be apart from the rest.

    Args:
      world: whose.
      first, last: numbers of the reports.
      train: has batch_rows, over all processes, and the seed.
      process: (index, count) of this process; it gets its slice of the batch.
    """

    def __init__(self, world: World, first: int, last: int, train: Any, process: tuple[int, int]):
        if train.batch_rows % process[1]:
            raise UserError(
                f'train.batch_rows={train.batch_rows} must divide over {process[1]} processes'
            )
        self._world, self._process = world, process
        generator = rng.host(train.seed, rng.ORDER, int(first))
        self._order = first + generator.permutation(last - first)
        self.rows, self.examples_per_epoch = train.batch_rows, int(last - first)
        self.steps_per_epoch = max(-(-self.examples_per_epoch // self.rows), 1)
        said = world.said.mask[first:last] + world.said.missed[first:last]
        self.targets_per_epoch = int(said.sum())
        self.fill = self.examples_per_epoch / (self.steps_per_epoch * self.rows)

    def __call__(self, step: int) -> problem.Batch:
        """As `rows.row_batch`; also missed of fast_slow, told_early of fake_negative."""
        world, (number, count) = self._world, self._process
        _, part = self.place(step, self.examples_per_epoch)
        own = self.rows // count
        index = self._order[part][number * own : (number + 1) * own]
        filled = lambda x: np.pad(x, [(0, own - len(x)), *[(0, 0)] * (x.ndim - 1)])  # noqa: E731
        features = world.encode(world.said.visits[index])
        batch = {
            'features': {name: filled(column) for name, column in features.items()},
            'labels': filled(world.said.labels[index]),
            'mask': filled(world.said.mask[index]),
            'weights': filled(np.ones(len(index), np.float32)),
        }
        if world.config.stream == 'fast_slow':
            batch['missed'] = filled(world.said.missed[index])
        if world.config.stream == 'fake_negative':
            batch['told_early'] = np.ones(own, np.float32)
        return batch


class Live(Clicks):
    """Scores of visits; keeps those that were made before each tick.

    Args:
      conditional: the labels but the first were learnt where the first came.
    """

    keeps = True

    def __init__(self, *args, conditional: bool, **named):
        super().__init__(*args, **named)
        self._conditional = conditional

    def predict(
        self, model: problem.Model, carried: dict, batch: problem.Batch, full: bool
    ) -> dict[str, jax.Array]:
        """logits: float32 [B, T], of the label whatever else comes; see `Clicks.predict`."""
        columns = super().predict(model, carried, batch, full)
        if self._conditional:
            columns['logits'] = replicated(unconditional(columns['logits']))
        return columns


def unconditional(logits: jax.Array) -> jax.Array:
    """Logits [.., T] of p_0 and p_0 p_k, from those of p_0 and p_k given the first."""
    first, rest = logits[..., :1], logits[..., 1:]
    log_p = jax.nn.log_sigmoid(first) + jax.nn.log_sigmoid(rest)
    return jnp.concatenate([first, log_p - jnp.log(-jnp.expm1(log_p))], axis=-1)


class Ahead(problem.Evaluation):
    """The visits of the `ahead` seconds after a tick, scored by the model of that tick."""

    def __init__(self, world: World, tick: int):
        self._world, self.tick = world, tick
        times = world.rows.times
        self.first, last = np.searchsorted(times, [tick, tick + world.config.ahead], side='right')
        self.examples, self.protocol = int(last - self.first), world.config.protocol_fields()

    @property
    def visits(self) -> slice:
        return slice(self.first, self.first + self.examples)

    def batches(self) -> Iterator[tuple[np.ndarray, problem.Batch]]:
        """All of one shape: task.batch_rows, rounded up to divide over the mesh."""
        size = whole(self._world.config.batch_rows)
        for first in range(0, self.examples, size):
            places = np.arange(first, min(first + size, self.examples))
            features = self._world.encode(self.first + places)
            filled = lambda x: np.pad(  # noqa: E731
                x,
                [(0, size - len(places)), *[(0, 0)] * (x.ndim - 1)],  # noqa: B023
            )
            yield places, {'features': {name: filled(x) for name, x in features.items()}}

    def measure(self, parts: Iterable[problem.Part]) -> problem.Measured:
        """AUC, logloss and calibration where they are defined; keeps the logits."""
        labels = self._world.config.labels
        logits = np.zeros((self.examples, len(labels)), np.float32)
        for places, columns in parts:
            logits[places] = columns['logits'][: len(places)]
        came = self._world.came[self.visits]
        metrics = {}
        for column, label in enumerate(labels):
            found = {
                'AUC': point_metrics.auc(logits[:, column], came[:, column]),
                'logloss': point_metrics.logloss(logits[:, column], came[:, column]).mean(),
                'calibration': point_metrics.calibration(logits[:, column], came[:, column]),
            }
            metrics |= {f'{k}/{label}': float(v) for k, v in found.items() if not np.isnan(v)}
        kept = {'places': np.arange(self.examples), 'logits': logits}
        return problem.Measured(metrics, 'row', kept=kept)

    def lately(self) -> np.ndarray:
        """Logits [n, T] of what the stream said of the visit's room in the `ahead` seconds before.

        (positives + 20 mean rate) / (told + 20); a positive that was missed is counted when told.
        """
        world = self._world
        first, last = world.said_between(self.tick - world.config.ahead, self.tick)
        rooms = world.rows.items[world.said.visits[first:last]]
        labels, mask = world.said.labels[first:last], world.said.mask[first:last]
        count = world.rows.num_items + 1
        rates = np.empty((count, labels.shape[1]))
        for column in range(labels.shape[1]):
            positives = np.bincount(rooms, labels[:, column], count)
            told = np.bincount(rooms, mask[:, column], count)
            mean = positives.sum() / max(told.sum(), 1)
            rates[:, column] = (positives + _PSEUDO * mean) / (told + _PSEUDO)
        rates = np.clip(rates[world.rows.items[self.visits]], 1e-7, 1 - 1e-7)
        return scipy.special.logit(rates).astype(np.float32)

    def references(self) -> dict[str, problem.Measured]:
        """Rates of the room, see `lately`."""
        return {
            'room lately': self.measure([(np.arange(self.examples), {'logits': self.lately()})])
        }


class Stream(problem.Evaluation):
    """All ticks of a run, from what it predicted at each.

    Args:
      world: whose visits.
      ticks: seconds at which they begin.
      replays: their numbers among the periods.
    """

    def __init__(self, world: World, ticks: np.ndarray, replays: range):
        self._world, self._ticks, self.replays = world, ticks, replays
        self._ahead = [Ahead(world, int(tick)) for tick in ticks]
        self.examples = len(ticks)
        self.protocol = world.config.protocol_fields()

    def batches(self) -> Iterator[tuple[np.ndarray, problem.Batch]]:
        """Of every tick; the shapes that come."""
        for one in self._ahead:
            yield from one.batches()

    def measure(self, parts: Iterable[problem.Part]) -> problem.Measured:
        """Values of AUC and logloss are of ticks, those of lag and missed of highlights.

        A tick at which a label has one class only has no AUC of it.
        """
        config, rows = self._world.config, self._world.rows
        labels = config.labels
        found = {f'{k}/{label}': [] for k in ('AUC', 'logloss') for label in labels}
        said, came = np.zeros(len(labels)), np.zeros(len(labels))
        response = np.full((len(self._ticks), rows.num_items + 1), np.nan)
        for number, (places, columns) in enumerate(parts):
            one = self._ahead[number]
            for name, value in one.measure([(places, columns)]).metrics.items():
                if name in found:
                    found[name].append(value)
            chances = scipy.special.expit(columns['logits'].astype(np.float64))
            said += chances.sum(0)
            came += self._world.came[one.visits].sum(0)
            rooms = rows.items[one.visits]
            seen = np.bincount(rooms, minlength=rows.num_items + 1)
            total = np.bincount(rooms, chances[:, 0], rows.num_items + 1)
            response[number, seen > 0] = total[seen > 0] / seen[seen > 0]
        values = {name: np.array(v) for name, v in found.items() if v}
        values |= self._noticed(response)
        metrics = {name: float(v.mean()) for name, v in values.items()}
        ratios = zip(labels, said, came, strict=True)
        metrics |= {f'calibration/{label}': float(p / y) for label, p, y in ratios if y}
        details = {'examples': self.examples, 'highlights': len(values.get('lag', ()))}
        return problem.Measured(metrics, 'tick', values, details=details)

    def _noticed(self, response):
        """lag and missed of every highlight that is followed to its end and LONGEST seconds on."""
        config, rows = self._world.config, self._world.rows
        if not config.highlights:
            return {}
        begins, ends = (rows.column(name)[0] for name in config.highlights)
        last = self._ticks[-1]
        lags, missed = [], []
        for room, nth in np.argwhere(begins > 0):
            begin, end = int(begins[room, nth]), int(ends[room, nth])
            if begin < self._ticks[0] or begin + LONGEST > last:
                continue
            when = noticed(response[:, room + 1], self._ticks, begin)
            lags.append(min(when - begin, LONGEST))
            missed.append(float(when > end))
        if not lags:
            return {}
        return {'lag': np.array(lags, np.float64), 'missed': np.array(missed)}

    def references(self) -> dict[str, problem.Measured]:
        """As `Ahead`, at every tick."""
        parts = ((np.arange(one.examples), {'logits': one.lately()}) for one in self._ahead)
        return {'room lately': self.measure(parts)}


def noticed(response: np.ndarray, ticks: np.ndarray, begin: int) -> float:
    """Seconds at which a response is RISE times what it was when a highlight began; inf = never.

    Args:
      response: float [n], of a room, NaN where it had no visit.
      ticks: int [n] ascending, seconds.
      begin: of the highlight; the model of that very tick knows nothing of it.
    """
    before = np.flatnonzero((ticks <= begin) & ~np.isnan(response))
    if not len(before):
        return np.inf
    risen = (ticks > begin) & (response >= RISE * response[before[-1]])
    return float(ticks[risen.argmax()]) if risen.any() else np.inf
