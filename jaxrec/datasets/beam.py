"""A Parquet log beyond one machine: grouped by user with Apache Beam, written through TFDS.

Workers read row groups, split each by user, and bring the pieces of a user together; TFDS writes
the examples (`user`, `items`, `times`, as `tfds_builder` does) in shards. The columns that training
maps into memory are then copied out of the shards by the machine that started the pipeline, one
Python call per user. Differences to a log that one machine reads: ids and times must be integers,
text or timestamps by the files' schema; equal times of a user are put in order of their items, as
rows of several files have no order; there is no k-core.

The catalogue's ids travel to every worker: they must fit its memory, nothing else must.
"""

import hashlib
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from jaxrec import config as config_lib
from jaxrec.data.histories import Histories
from jaxrec.data.ragged import blocks, ranges
from jaxrec.datasets import raw_ids, store, tabular
from jaxrec.errors import UserError

FOOTER = 1 << 16  # bytes of a file that tell whether it is the same
MISSING = "--beam_runner needs Apache Beam: pip install 'jaxrec[beam]'"


def prepare(
    config: config_lib.Data, runner: str, options: tuple[str, ...], say: Callable
) -> tuple[Histories, dict]:
    """Prepares the Parquet files that config.log names (a path or pattern) with a Beam runner.

    Args:
      config: log, columns and data_dir, a folder that all workers see.
      runner: of Beam, such as DirectRunner, FlinkRunner, DataflowRunner.
      options: of the pipeline, such as '--region=europe-west4'.
      say: called with lines for people.

    Returns:
      As `datasets.load`.

    Raises:
      UserError: no Beam, no such files, other columns, or options that do not go with it.
    """
    try:
        from apache_beam.io.filesystems import FileSystems
    except ImportError as e:
        raise UserError(MISSING) from e
    for option in ('min_user', 'min_item', 'features', 'domain_col', 'dataset'):
        if getattr(config, option):
            raise UserError(f'--{option} does not go with --beam_runner')
    if not config.time_col:
        raise UserError('--beam_runner needs --time_col: rows of several files have no order')
    found = FileSystems.match([config.log])[0].metadata_list
    if not found:
        raise UserError(f'no such file: {config.log} (--log)')
    schema = _schema(config, [one.path for one in found])
    options_of_data = [config.user_col, config.item_col, config.time_col]
    files = sorted((f.path, f.size_in_bytes, f.last_updated_in_seconds) for f in found)
    identity = repr([files, [_footer(path) for path, _, _ in files], *options_of_data])
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    root = pathlib.Path(config.data_dir).expanduser().absolute()
    folder = root / 'log' / f'{store.OF_BEAM}{key}' / store.VERSION
    if prepared := store.find(folder):
        return prepared
    with store.locked(folder, root), store.scratch_beside(folder) as scratch:
        if prepared := store.find(folder):
            return prepared
        say(f'writing {folder} with {runner}')
        shutil.rmtree(folder, ignore_errors=True)
        about = {
            'description': f'Interaction log {config.log}.',
            'source': config.log,
            'citation': '',
            'homepage': '',
            'licence': '',
        }
        ids = scratch / 'item_ids.npy'
        _run(config, schema, folder, root, about, ids, runner, options)
        say('copying the columns')
        histories = _from_records(folder, np.load(ids, allow_pickle=False), scratch, config.log)
        histories.save(folder / store.COLUMNS, about)
    return store.find(folder)


def _footer(path: str) -> str:
    """Hash of a Parquet file's end, which holds the size, place and range of every column."""
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - FOOTER, 0))
        return hashlib.sha256(file.read(FOOTER)).hexdigest()


def _schema(config, paths) -> pa.Schema:
    """Of the wanted columns, the same in all files."""
    import pyarrow.parquet
    from apache_beam.io.filesystems import FileSystems

    wanted = [config.user_col, config.item_col, config.time_col]
    schemas = []
    for path in paths:
        try:
            with FileSystems.open(path) as file:
                schema = pyarrow.parquet.read_schema(file)
        except pa.ArrowInvalid as e:
            raise UserError(f'{path} is no Parquet file, which --beam_runner needs') from e
        for column in wanted:
            if column not in schema.names:
                there = ', '.join(schema.names)
                raise UserError(f'{path} has no column {column!r}; it has {there}')
        schemas.append(pa.schema([schema.field(column).remove_metadata() for column in wanted]))
        if [f.type for f in schemas[-1]] != [f.type for f in schemas[0]]:
            raise UserError(f'{path} has other types than {paths[0]} in columns {wanted}')
    for column in wanted[:2]:
        kind = schemas[0].field(column).type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or _large(kind)):
            raise UserError(f'column {column!r} is of type {kind}; ids must be integers or text')
    kind = schemas[0].field(config.time_col).type
    if not (pa.types.is_integer(kind) or pa.types.is_timestamp(kind)):
        raise UserError(
            f'column {config.time_col!r} is of type {kind}; with --beam_runner times are integers '
            'or timestamps'
        )
    return schemas[0]


def _large(kind) -> bool:
    return pa.types.is_large_string(kind)


def _run(config, schema, folder, root, about, ids, runner, options) -> None:
    """The pipeline; leaves the TFDS data set in `folder` and the catalogue's raw ids in `ids`."""
    import apache_beam as beam
    import tensorflow_datasets as tfds
    from apache_beam.io.parquetio import ReadFromParquetBatched
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.pvalue import AsSingleton

    from jaxrec.datasets import tfds_builder

    columns = list(schema.names)
    text = not pa.types.is_integer(schema.field(0).type)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(store.VERSION)
        url_infos = None
        name = 'log'

        def _info(self):
            features = {
                'user': tfds.features.Text() if text else tfds.features.Scalar(np.int64),
                'items': tfds_builder.column_feature(np.zeros(0, np.int32)),
                'times': tfds_builder.column_feature(np.zeros(0, np.int64)),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=about['description'],
                features=tfds.features.FeaturesDict(features),
            )

        def _split_generators(self, dl_manager, pipeline):
            tables_ = pipeline | ReadFromParquetBatched(config.log, columns=columns)
            catalogue = (
                tables_
                | 'items of a table' >> beam.Map(_items_of, columns)
                | 'all items' >> beam.CombineGlobally(_union)
            )
            catalogue | 'keep them' >> beam.Map(_save, str(ids))
            examples = (
                tables_
                | 'split by user' >> beam.FlatMap(_pieces, columns, AsSingleton(catalogue))
                | beam.GroupByKey()
                | 'one example a user' >> beam.MapTuple(_example)
            )
            return {tfds_builder.SPLIT: examples}

        def _generate_examples(self):
            raise AssertionError('the split is a PCollection')

    with tfds_builder.silence():
        builder = Builder(
            data_dir=str(root),
            config=tfds.core.BuilderConfig(name=folder.parent.name),
            file_format='array_record',
        )
        if pathlib.Path(builder.data_dir) != folder:
            raise AssertionError(f'{builder.data_dir} is not {folder}')
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                beam_runner=runner, beam_options=PipelineOptions(list(options))
            )
        )


def _items_of(table: pa.Table, columns: list[str]) -> np.ndarray:
    """Distinct item ids of a table, ascending."""
    return np.unique(_column(table, columns[1])[1])


def _union(parts) -> np.ndarray:
    parts = [part for part in parts if len(part)]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def _save(ids: np.ndarray, path: str) -> None:
    np.save(path, ids, allow_pickle=False)


def _pieces(table: pa.Table, columns: list[str], catalogue: np.ndarray) -> Iterator[tuple]:
    """(user, (items, times)) of each user in a table; items are numbers."""
    codes, users = _column(table, columns[0])
    item_codes, items = _column(table, columns[1])
    numbers = (np.searchsorted(catalogue, items) + 1).astype(np.int32)[item_codes]
    chunk = table.column(columns[2]).combine_chunks()
    times = tabular.numbers(chunk, columns[2], 'the log', 1, dates=True).astype(np.int64)
    order = np.argsort(codes, kind='stable')
    bounds = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(users)))])
    for user, start, end in zip(users.tolist(), bounds[:-1], bounds[1:], strict=True):
        chosen = order[start:end]
        if len(chosen):
            yield user, (numbers[chosen], times[chosen])


def _column(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes of an id column and the ids, each once."""
    whole = table.column(column).combine_chunks()
    ids = raw_ids.checked(whole, column, 'the log', lambda at: f'row {at + 1}')
    values, place = np.unique(raw_ids.plain(ids.dictionary, text=False), return_inverse=True)
    return place[ids.indices.to_numpy(zero_copy_only=False)], values


def _example(user, pieces) -> tuple:
    """(key, example) of a user from its pieces, in any order."""
    items, times = zip(*pieces, strict=True)
    items, times = np.concatenate(items), np.concatenate(times)
    order = np.lexsort((items, times))
    key = user if isinstance(user, int) else user.decode()
    return key, {'user': user, 'items': items[order], 'times': times[order]}


def _from_records(folder, item_ids, scratch, name) -> Histories:
    """The columns of a TFDS data set, its users by ascending id."""
    import tensorflow_datasets as tfds

    from jaxrec.datasets.tfds_builder import SPLIT

    source = tfds.builder_from_directory(folder).as_data_source(SPLIT)
    users, lengths = [], np.zeros(len(source), np.int64)
    with open(scratch / 'items', 'wb') as items, open(scratch / 'times', 'wb') as times:
        for n in range(len(source)):
            example = source[n]
            users.append(example['user'])
            lengths[n] = len(example['items'])
            example['items'].tofile(items)
            example['times'].tofile(times)
    if isinstance(users[0], bytes):
        user_ids = raw_ids.fixed_width(pa.array(users, pa.large_binary()))
    else:
        user_ids = np.array(users, np.int64)
    order = np.argsort(user_ids, kind='stable')
    starts = np.cumsum(lengths) - lengths
    offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    columns = {}
    for column, kind in (('items', np.int32), ('times', np.int64)):
        raw = np.memmap(scratch / column, kind, 'r')
        columns[column] = np.memmap(scratch / f'{column}.sorted', kind, 'w+', shape=raw.shape)
        for some in blocks(offsets):
            chosen = order[some]
            place = slice(offsets[some.start], offsets[some.stop])
            columns[column][place] = raw[ranges(starts[chosen], lengths[chosen])]
    return Histories(
        columns['items'], offsets, user_ids[order], item_ids, columns['times'], name=name
    )
