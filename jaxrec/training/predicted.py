"""What a run predicted before it learnt each period, kept in its folder for a later evaluation."""

import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from jaxrec import files
from jaxrec.errors import UserError
from jaxrec.problem import Columns

FOLDER = 'predicted'


def write(workdir: pathlib.Path, period: int, kept: Columns) -> None:
    """Keeps `Measured.kept` of the period with this number, in place of what was there."""
    path = _path(workdir, period)
    path.parent.mkdir(exist_ok=True)
    with files.replacing(path) as partial, open(partial, 'wb') as file:
        np.savez(file, **kept)


def read(workdir: pathlib.Path, periods: range) -> Iterator[Columns]:
    """What was kept of these periods, in order.

    Raises:
      UserError: the run has not come to one of them, or its file is damaged.
    """
    missing = next((n for n in periods if not _path(workdir, n).exists()), None)
    if missing is not None:
        raise UserError(
            f'{workdir} has not predicted all of its periods, {missing} of {periods.stop}: train '
            'it to its end'
        )
    for period in periods:
        try:
            with np.load(_path(workdir, period)) as kept:
                yield {name: kept[name] for name in kept.files}
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise UserError(
                f'{_path(workdir, period)} is damaged ({e}): train again in another --workdir'
            ) from e


def _path(workdir, period):
    return workdir / FOLDER / f'{period}.npz'
