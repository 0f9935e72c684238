"""Lists for any number of users, as Parquet or CSV; a killed run goes on where it stopped."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator

import jax
import numpy as np
import pyarrow as pa
from jax.experimental import multihost_utils
from pyarrow import csv, parquet

from jaxrec import files
from jaxrec.cli import say
from jaxrec.data.histories import Histories
from jaxrec.devices import cluster
from jaxrec.errors import UserError
from jaxrec.serving.recommender import Recommender
from jaxrec.training.logs import duration

FORMATS = ('.parquet', '.csv')


def check_output(output: pathlib.Path) -> None:
    """Raises UserError for a file that lists cannot be written to."""
    if output.is_dir():
        raise UserError(f'{output} is a folder; --output is the file to write')
    if output.suffix not in FORMATS:
        raise UserError(f'--output={output} must end in {" or ".join(FORMATS)}')


def write_lists(
    recommender: Recommender,
    users: np.ndarray,
    output: pathlib.Path,
    part_users: int,
    checkpoint: str = 'best',
    given: Histories | None = None,
    column: str = 'user',
) -> None:
    """Writes the lists of `users`: user, rank, item, score, title if there are titles, and interest
    if asked to explain.

    Finished parts wait beside the output, in OUTPUT.parts, until all are there; started again, the
    same command computes only what is missing. Several processes split every batch of users, and
    the first one writes.

    Args:
      recommender: of the model.
      users: int64 [n], 0-based numbers.
      output: file; its name says the format, Parquet or CSV.
      part_users: users of a part.
      checkpoint: which one the recommender has.
      given: histories whose `users` are meant; None = those of the data.
      column: name of the first column, their raw ids.

    Raises:
      UserError: the parts there belong to another command, or one is writing them now.
    """
    check_output(output)
    manifest = _manifest(recommender, users, part_users, checkpoint, given)
    with _only_writer(output):
        _write_lists(recommender, users, output, manifest, given, column)


def _write_lists(recommender, users, output: pathlib.Path, manifest, given, column) -> None:
    part_users = manifest['part_users']
    folder = output.with_name(output.name + '.parts')
    if jax.process_index() == 0:
        _claim(folder, manifest)
    starts = range(0, len(users), part_users)
    parts = [folder / f'part-{i:06}.parquet' for i in range(len(starts))]
    there = np.array([_digest_of(part).exists() for part in parts], bool)
    if jax.process_count() > 1:  # process 0 may have written one before another looked
        there = multihost_utils.broadcast_one_to_all(there)
    todo = np.flatnonzero(~there).tolist()
    if len(todo) < len(parts):
        say(f'going on: {len(parts) - len(todo)} of {len(parts)} parts are there')
    progress = _Progress(sum(len(users[starts[i] : starts[i] + part_users]) for i in todo))
    for i in todo:
        chosen = users[starts[i] : starts[i] + part_users]
        lists = recommender(chosen, given)
        if jax.process_index() == 0:
            table = _table(recommender, chosen, given, column, *lists)
            _write(parts[i], table.schema, [table])
            files.write_text(_digest_of(parts[i]), files.digest(parts[i]))
        progress.add(len(chosen))
    progress.close()
    if jax.process_index() == 0:
        for part in parts:
            _check(part)
        whole = folder / f'whole{output.suffix}'
        _write(whole, parquet.read_schema(parts[0]), _row_groups(parts))
        os.replace(whole, output)
        shutil.rmtree(folder)


@contextlib.contextmanager
def _only_writer(output: pathlib.Path) -> Iterator[None]:
    """Of several commands with one output, all but the first end with UserError."""
    if jax.process_index():
        yield
        return
    path = output.with_name(output.name + '.lock')
    with files.lock(path, busy=f'{output} is being written by another process'):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # nobody waits for it


def _manifest(
    recommender: Recommender,
    users: np.ndarray,
    part_users: int,
    checkpoint: str,
    given: Histories | None,
) -> dict:
    """What the parts belong to."""
    trained = recommender.trained
    digest = hashlib.sha256(np.ascontiguousarray(users, '<i8'))
    if given is not None:
        digest.update(np.ascontiguousarray(given.offsets, '<i8'))
        digest.update(np.ascontiguousarray(given.items, '<i4'))
        digest.update(np.ascontiguousarray(given.user_ids))
    return {
        'workdir': str(trained.workdir.resolve()),
        'checkpoint': checkpoint,
        'step': trained.step,
        'parameters': _digest(trained.params),
        'data_hash': trained.served.data_hash,
        'users': digest.hexdigest(),
        'k': recommender.k,
        'keep_seen': recommender.keep_seen,
        'explain': recommender.explain,
        'part_users': part_users,
        **({} if recommender.allowed is None else {'allowed': _sha256(recommender.allowed)}),
    }


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _digest(params) -> str:
    """sha256 over all parameters: a run trained anew in the same folder is another model."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        value = np.ascontiguousarray(cluster.whole(leaf))
        digest.update(f'{jax.tree_util.keystr(path)} {value.dtype} {value.shape}'.encode())
        digest.update(value.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _claim(folder: pathlib.Path, manifest: dict) -> None:
    """Makes the folder of parts for `manifest`, or checks that the one there is for it."""
    path = folder / 'manifest.json'
    if path.exists():
        there = files.read_json(path, dict)
        differs = [name for name in manifest if there.get(name) != manifest[name]]
        if differs:
            raise UserError(
                f'{folder} holds parts of another command (its {", ".join(differs)} differ): '
                'delete that folder, or finish with the same options'
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f'{folder} is in the way: it is where parts go, and holds something else')
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, manifest)


def _table(recommender: Recommender, users, given, column, scores, items, interests) -> pa.Table:
    """Long format, one row per recommended item."""
    user, place = np.nonzero(items)
    number = items[user, place] - 1
    owners = recommender.histories if given is None else given
    catalogue = recommender.catalogue
    columns = {
        column: raw_column(owners.user_ids[users[user]]),
        'rank': pa.array((place + 1).astype(np.int32)),
        'item': raw_column(catalogue.item_ids[number]),
        'score': pa.array(scores[user, place]),
    }
    if recommender.explain:
        columns['interest'] = pa.array(interests[user, place] + 1)
    if catalogue.titles is not None:
        columns['title'] = raw_column(catalogue.titles[number])
    return pa.table(columns)


def raw_column(ids: np.ndarray) -> pa.Array:
    """Raw ids or titles as int64 or text."""
    column = pa.array(ids)
    return column.cast(pa.string()) if ids.dtype.kind == 'S' else column


def _digest_of(part: pathlib.Path) -> pathlib.Path:
    """Where the digest of a finished part stands; without it the part is not there."""
    return part.with_name(part.name + '.sha256')


def _check(part: pathlib.Path) -> None:
    """Raises UserError if a part is not what was written."""
    wanted = _digest_of(part).read_bytes()
    if not part.exists() or files.digest(part).encode() != wanted:
        raise UserError(
            f'{part} is damaged: delete {_digest_of(part)}, and the same command makes it again'
        )


def _row_groups(parts: list[pathlib.Path]) -> Iterator[pa.Table]:
    for part in parts:
        with parquet.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)


def _write(path: pathlib.Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """CSV quotes every text, so that it comes back as it is, '007' as text too."""
    writer = csv.CSVWriter if path.suffix == '.csv' else parquet.ParquetWriter
    with files.replacing(path) as partial, writer(partial, schema) as file:
        for table in tables:
            file.write_table(table)


class _Progress:
    """Users per second and time left: one line that renews itself, or plain lines when piped."""

    def __init__(self, total: int):
        self._total, self._done, self._started = total, 0, time.monotonic()

    def add(self, users: int) -> None:
        self._done += users
        rate = self._done / max(time.monotonic() - self._started, 1e-9)
        left = duration((self._total - self._done) / rate)
        text = f'{self._done:,}/{self._total:,} users  {rate:,.0f} users/s  {left} left'
        if sys.stderr.isatty():
            print('\r\x1b[K' + text, end='', file=sys.stderr, flush=True)
        else:
            say(text)

    def close(self) -> None:
        if self._done and sys.stderr.isatty():
            print(file=sys.stderr)
