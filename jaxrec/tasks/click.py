"""Click: what will come of an impression (a click, a like, ..), learnt and measured per label."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from jaxrec import datasets, problem
from jaxrec.config import field
from jaxrec.data.fields import Encoder, Field, check_fields
from jaxrec.data.row_catalogue import RowCatalogue
from jaxrec.data.rows import Columns, RowBatches, Rows, row_batch
from jaxrec.data.streams import HISTORIES, StreamBatches, Streams
from jaxrec.devices.mesh import on_mesh, replicated
from jaxrec.errors import UserError
from jaxrec.evaluation import anomalies, point_metrics

MEANS = ('AUC/mean', 'GAUC/mean')
_GAUC = {
    'rows': 'weighted by impressions',
    'positives': 'weighted by positives (G3)',
    'equal': 'the plain mean (G4)',
}
_PSEUDO = 20  # impressions at the mean rate, added to every item's and user's own


@dataclasses.dataclass
class Config(problem.Task):
    """Labels to predict from fields; days before `valid_from` train, later ones test.

    A model for it has `scores(batch, constants) -> [B, T]`, logits of the T labels, and is made for
    the sizes of `fields.Encoder`, 'label': T and 'label.NAME': the place of each.
    """

    needs_no_data: ClassVar[str] = 'scores of new rows (jaxrec.load(..).score) need no data'

    labels: tuple[str, ...] = ('click',)
    fields: tuple[Field, ...] = (Field('user'), Field('item'))
    day: str = 'date'  # column of the rows by which they are split
    valid_from: int = 0  # its first value in the validation rows
    test_from: int = 0  # its first value in the test rows
    gauc: tuple[str, ...] = field((), effect='measure')  # labels of GAUC/mean; () = all
    gauc_weight: str = field('rows', choices=point_metrics.WEIGHTS, effect='measure')  # of a user
    position: str = field('', effect='measure')  # column of a row's place in its list, for G2
    batch_rows: int = field(4096, least=1, effect='pace')  # of an evaluation
    # what a row's past is in an evaluation, for models that see it: what was there when its part
    # began (frozen), or every earlier row and its labels (streaming, which tells of tested labels)
    history: str = field('', choices=('', *HISTORIES), effect='measure')

    def check(self, experiment: Any) -> None:
        check_fields(self.fields)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise UserError('task.labels must name at least one label, each once')
        if not set(self.gauc) <= set(self.labels):
            raise UserError(f'task.gauc={self.gauc} must be among task.labels={self.labels}')
        if not self.valid_from < self.test_from:
            raise UserError(
                f'task.valid_from={self.valid_from} must be below task.test_from={self.test_from}: '
                f'give the first {self.day} of the validation and of the test rows'
            )
        known = experiment.model.inputs().labels
        if known and sorted(known) != sorted(self.labels):
            raise UserError(
                f'the model knows the labels {", ".join(known)}: task.labels must be the same, and '
                f'are {", ".join(self.labels)}'
            )
        if experiment.model.inputs().max_len and not self.history:
            raise UserError(
                'the model sees the past of a row: give task.history=frozen (as it was when the '
                "row's part of the data began) or streaming"
            )
        there = {field.column: field.kind for field in self.fields}
        for name in experiment.model.inputs().features:
            if there.get(name) in (None, 'number'):
                raise UserError(
                    f'the model wants field {name!r}: add it to task.fields, or change the model'
                )

    def metrics(self) -> dict[str, problem.Metric]:
        """METRIC/LABEL of `point_metrics.METRICS`, and the means AUC/mean and GAUC/mean."""
        found = {mean: problem.Metric(single=False) for mean in MEANS}
        for metric, about in point_metrics.METRICS.items():
            found |= {f'{metric}/{label}': about for label in self.labels}
        return found

    def columns(self, time_col: str) -> Columns:
        """What there is to read of a file of rows: what labels, fields and the split name."""
        kinds = {field.column: field.kind for field in self.fields}
        items = {field.column for field in self.fields if field.of == 'item'}
        of = lambda *wanted: tuple(  # noqa: E731
            name for name, kind in kinds.items() if kind in wanted and name not in ('user', 'item')
        )
        more = (self.day, self.position)
        numbers = of('quantile', 'number')
        numbers += tuple(name for name in more if name and name not in (time_col, *kinds))
        return Columns(
            labels=self.labels,
            numbers=numbers,
            categories=of('category'),
            sets=tuple(name for name in of('set') if name not in items),
            sets_of_items=tuple(name for name in of('set') if name in items),
        )

    def gains(self, report: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, dict]:
        """As `Task.gains`, of the labels that both have; RelaImpr of AUC and GAUC.

        Beside a model of one label alone this is what learning labels together gains (MTL gain).
        """
        mine, other = report['protocol'], base['protocol']
        free = ('labels', 'gauc_mean')
        kept = [{k: v for k, v in one.items() if k not in free} for one in (mine, other)]
        if kept[0] != kept[1]:
            raise UserError(f'its protocol is another one: {kept[1]}, not {kept[0]}')
        means = mine['labels'] == other['labels']
        found = {}
        for name, value in base['metrics'].items():
            metric, _, label = name.partition('/')
            if name in report['metrics'] and (label != 'mean' or means):
                ours = report['metrics'][name]
                found[name] = {'base': value, 'gain': ours - value}
                if metric in ('AUC', 'GAUC') and value != 0.5:
                    found[name]['RelaImpr'] = point_metrics.rela_impr(ours, value)
        return found

    def protocol_fields(self) -> dict[str, Any]:
        """How rows are split and measured."""
        return {
            'name': 'click',
            'labels': list(self.labels),
            'gauc': f'{_GAUC[self.gauc_weight]}, users with both classes',
            'gauc_mean': list(self.gauc or self.labels),
            'data_split': f'{self.day} from {self.valid_from}, {self.test_from}',
            **({'history': self.history} if self.history else {}),
            **self.told_precision(),
        }

    def open(
        self, experiment: Any, say: Callable = print, process: tuple[int, int] = (0, 1)
    ) -> problem.Problem:
        columns = self.columns(experiment.data.time_col)
        rows, meta = datasets.load(experiment.data, say, kind=Rows, columns=columns)
        rows.outcomes(self.labels, np.zeros(0, np.int64))  # raises for one that is not there
        day, unit = rows.column(self.day)
        if unit != 'row' or day.ndim > 1:
            raise UserError(
                f'task.day={self.day!r} must be a column of the rows with single values'
            )
        parts = {
            'train': np.flatnonzero(day < self.valid_from),
            'valid': np.flatnonzero((day >= self.valid_from) & (day < self.test_from)),
            'test': np.flatnonzero(day >= self.test_from),
        }
        for name, index in parts.items():
            if not len(index):
                raise UserError(
                    f'no {name} row: {self.day} is {day.min()} to {day.max()}, task.valid_from='
                    f'{self.valid_from}, task.test_from={self.test_from}'
                )
        if self.position:
            _position(rows, self.position)
        encode = Encoder(rows, self.fields, parts['train'])
        settings = {
            'batch_rows': experiment.train.batch_rows,
            'seed': experiment.train.seed,
            'process': process,
        }
        levels = experiment.model.expert_levels(self.labels)
        context, notes = experiment.model.inputs().max_len, ()
        if context:
            streams = Streams(rows, encode, self.labels, day)
            if streams.stray:
                notes += (
                    f'note: {streams.stray:,} rows are later than one of their user on a later '
                    f'{self.day}: they are taken in the order of {self.day}',
                )
            batches = StreamBatches(streams, self.valid_from, context=context, **settings)
        else:
            batches = RowBatches(rows, encode, self.labels, parts['train'], **settings)

        def evaluation(name):
            def make():
                impressions = (self, rows, encode, parts[name], parts['train'], levels)
                if not context:
                    return Impressions(*impressions)
                days = {'valid': (self.valid_from, self.test_from), 'test': (self.test_from, None)}
                return StreamImpressions(
                    *impressions, streams=streams, days=days[name], context=context
                )

            return make

        metric = experiment.train.metric or self.main_metric()
        if metric not in evaluation('valid')().defined():
            raise UserError(
                f'train.metric={metric!r} is undefined on the validation rows: no positive, no '
                'negative, or for GAUC no user with both; choose another one'
            )
        counts = ', '.join(f'{len(index):,} {name}' for name, index in parts.items())
        sizes = {**encode.sizes, **label_sizes(self.labels)}
        return Clicks(
            about=f'{rows.name}: {counts} rows, {rows.num_users:,} users, {rows.num_items:,} items',
            data_hash=meta['data_hash'],
            data_path=meta['path'],
            source=rows,
            sizes=sizes,
            periods=[lambda: problem.Period(batches)],
            evaluations={name: evaluation(name) for name in ('valid', 'test')},
            notes=notes,
            catalogue=RowCatalogue.of(encode, rows, meta['data_hash'], sizes),
        )

    def open_catalogue(self, folder: pathlib.Path) -> problem.Problem:
        """New rows need the codes of the fields alone; see `problem.Task`."""
        return Clicks.of(RowCatalogue.load(folder))


def _position(rows: Rows, name: str) -> np.ndarray:
    """The column of places, int [N]; UserError if it is none."""
    column, unit = rows.column(name)
    if unit != 'row' or column.ndim > 1 or column.dtype.kind not in 'iu':
        raise UserError(f'task.position={name!r} must be a column of the rows with whole numbers')
    return column


def label_sizes(labels: tuple[str, ...]) -> dict[str, int]:
    """What a model is told of the labels: how many, and the place of each."""
    return {'label': len(labels), **{f'label.{name}': n for n, name in enumerate(labels)}}


class Clicks(problem.Problem):
    """Every row is scored by itself; there is nothing to compute once a pass."""

    verbs = ('scores',)

    @classmethod
    def of(cls, catalogue: RowCatalogue, **named: Any) -> 'Clicks':
        """The problem as a run keeps it, see `problem.Task.open_catalogue`."""
        return cls(
            about=f'{catalogue.name or "data"}: {len(catalogue.item_ids):,} items',
            data_hash=catalogue.data_hash,
            data_path='',
            source=None,
            sizes=catalogue.sizes,
            periods=(),
            evaluations={},
            catalogue=catalogue,
            **named,
        )

    def begin(self, model: problem.Model, constants: dict[str, jax.Array]) -> dict:
        """The constants, which `scores` reads."""
        del model
        return constants

    def predict(
        self, model: problem.Model, carried: dict, batch: problem.Batch, full: bool
    ) -> dict[str, jax.Array]:
        """logits: float32 [B, T]; in full also what `Model.look` gives."""
        columns = {'logits': model.scores(batch, carried)}
        columns |= model.look(batch, carried) if full else {}
        return {name: replicated(column) for name, column in columns.items()}


class Impressions(problem.Evaluation):
    """Rows of some days, measured by AUC, GAUC, logloss and NE of every label.

    Args:
      config: the task's.
      rows: all of them.
      encode: their features.
      index: int64 [n], numbers of the rows to score.
      train: int64 [m], numbers of the training rows, of which `references` counts the rates.
      levels: of the model's experts.
    """

    def __init__(
        self,
        config: Config,
        rows: Rows,
        encode: Callable[[np.ndarray], dict[str, np.ndarray]],
        index: np.ndarray,
        train: np.ndarray,
        levels: tuple[problem.Level, ...] = (),
    ):
        self.examples, self._levels = len(index), levels
        self._config, self._rows, self._encode = config, rows, encode
        self._index, self._train = index, train
        day = rows.column(config.day)[0][index]
        self.protocol = {**config.protocol_fields(), 'days': [int(day.min()), int(day.max())]}

    def batches(self) -> Iterator[tuple[np.ndarray, problem.Batch]]:
        """All of one shape: task.batch_rows, rounded up to divide over the mesh."""
        size = whole(min(self._config.batch_rows, self.examples))
        for first in range(0, self.examples, size):
            places = np.arange(first, min(first + size, self.examples))
            index = self._index[places]
            yield places, row_batch(self._rows, self._encode, self._config.labels, index, size)

    def measure(self, parts: Iterable[problem.Part]) -> problem.Measured:
        """From the logits, part by part; holds those of all rows, float32.

        Of a model with experts also details['experts'], see `anomalies`, where parts tell of them.
        """
        logits = np.full((self.examples, len(self._config.labels)), np.nan, np.float32)
        inside = anomalies.Experts(self._levels)
        for places, columns in parts:
            real = places >= 0
            columns = {name: column[: len(places)][real] for name, column in columns.items()}
            logits[places[real]] = columns['logits']
            inside.add(columns)
        measured = self._measured(logits)
        if told := inside.details(measured.details['labels']):
            measured.details['experts'] = told
        return measured

    def defined(self) -> set[str]:
        """Metrics that the labels let be measured, whatever the scores."""
        return set(self._measured(np.zeros((self.examples, len(self._config.labels)))).metrics)

    def references(self) -> dict[str, problem.Measured]:
        """Rates of the item and of the user in the training rows, for each label.

        (positives + 20 mean rate) / (rows + 20), so that few rows say little.
        """
        return {
            'item rate': self._rate(self._rows.items, self._rows.num_items + 1),
            'user rate': self._rate(self._rows.users, self._rows.num_users),
        }

    def _rate(self, owners, count):
        labels, mask = self._rows.outcomes(self._config.labels, self._train)
        train, tested = owners[self._train], owners[self._index]
        logits = np.empty((self.examples, labels.shape[1]))
        for column in range(labels.shape[1]):
            positives = np.bincount(train, labels[:, column], count)
            known = np.bincount(train, mask[:, column], count)
            mean = positives.sum() / max(known.sum(), 1)
            rate = np.clip((positives + _PSEUDO * mean) / (known + _PSEUDO), 1e-7, 1 - 1e-7)
            logits[:, column] = np.log(rate / (1 - rate))[tested]
        return self._measured(logits)

    def _measured(self, logits):
        names = self._config.labels
        labels, mask = self._rows.outcomes(names, self._index)
        users = self._rows.users[self._index]
        places = None
        if self._config.position:
            places = _position(self._rows, self._config.position)[self._index]
        weight = self._config.gauc_weight
        measured = point_metrics.clicks(logits, labels, mask, users, names, weight, places)
        for mean, of in zip(MEANS, (names, self._config.gauc or names), strict=True):
            metric = mean.partition('/')[0]
            values = [measured.metrics.get(f'{metric}/{label}') for label in of]
            if None not in values:  # each is defined
                measured.metrics[mean] = float(np.mean(values))
        return measured


class StreamImpressions(Impressions):
    """The same for models that see the past of a row, in windows of users' streams.

    Args:
      *args: of `Impressions`.
      streams: of all rows.
      days: (begin, end) of the rows to score.
      context: most rows of the past that the model sees.
    """

    def __init__(self, *args, streams: Streams, days: tuple[int, int | None], context: int):
        super().__init__(*args)
        frozen = self._config.history == 'frozen'
        self._streams = streams
        self._windows = streams.windows(*days, context=context, frozen=frozen)

    def batches(self) -> Iterator[tuple[np.ndarray, problem.Batch]]:
        """Windows side by side, about task.batch_rows rows; places are -1 of what is no target."""
        length, count = self._windows.longest, len(self._windows)
        size = whole(min(-(-self._config.batch_rows // length), count))
        for first in range(0, count, size):
            chosen = np.arange(first, min(first + size, count))
            batch = self._streams.batch(self._windows, chosen, size, length)
            rows = batch.pop('rows').reshape(-1)
            yield np.where(rows >= 0, np.searchsorted(self._index, rows), -1), batch


def whole(rows: int) -> int:
    """Rounded up to divide over the mesh, two a device at least."""
    devices = jax.sharding.get_mesh().shape['data'] if on_mesh() else 1
    return -(-rows // (2 * devices)) * 2 * devices
