"""Histories as a TFDS data set: one example is one user's time-ordered history.

TensorFlow is not needed: records are array_record, and nothing here decodes with it. Reading back:

    import tensorflow_datasets as tfds
    source = tfds.builder_from_directory(folder).as_data_source('histories')
    source[0]  # {'user': raw id, 'items': int32 [n], 'times': int64 [n], 'features': {...}}
"""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from jaxrec.data.histories import Histories

SPLIT = 'histories'


class HistoriesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes Histories. Name and version are the data set's, so they are set on the object."""

    # Nothing is downloaded by TFDS, so it needs no checksums; looking for their file would import
    # importlib_resources, which tensorflow-datasets 4.9.10 does not ask pip for.
    url_infos = None

    def __init__(self, histories: Histories, about: dict, name: str, version: str, **kwargs):
        self.name, self.VERSION = name, tfds.core.Version(version)
        self._histories = histories
        self._about = about
        super().__init__(file_format='array_record', **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        h = self._histories
        features = {'user': id_feature(h.user_ids), 'items': column_feature(h.items)}
        if h.times is not None:
            features['times'] = column_feature(h.times)
        if h.features:
            features['features'] = {name: column_feature(c) for name, c in h.features.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._about['description'],
            citation=self._about['citation'],
            homepage=self._about['homepage'],
            license=self._about['licence'],
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # example u is user u
        )

    def _split_generators(self, dl_manager):
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self):
        h = self._histories
        for user, (start, end) in enumerate(zip(h.offsets[:-1], h.offsets[1:], strict=True)):
            example = {'user': h.raw_user(user), 'items': h.items[start:end]}
            if h.times is not None:
                example['times'] = h.times[start:end]
            if h.features:
                example['features'] = {name: c[start:end] for name, c in h.features.items()}
            yield user, example


def write(histories: Histories, folder: pathlib.Path, data_dir: pathlib.Path, about: dict) -> None:
    """Writes `histories` into `folder` = data_dir/name[/variant]/version, whole or not at all."""
    name, *variant, version = folder.relative_to(data_dir).parts
    config = tfds.core.BuilderConfig(name=variant[0]) if variant else None
    with silence():
        builder = HistoriesBuilder(
            histories,
            about,
            name,
            version,
            data_dir=os.fspath(data_dir),
            config=config,
        )
        if pathlib.Path(builder.data_dir) != folder:
            raise AssertionError(f'{builder.data_dir} is not {folder}')
        builder.download_and_prepare()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without TFDS's progress and its warnings about what is meant to be so."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints with print()
            yield
    finally:
        logging.set_verbosity(verbosity)
        tfds.enable_progress_bar()


def id_feature(ids: np.ndarray):
    return tfds.features.Text() if ids.dtype.kind == 'S' else tfds.features.Scalar(np.int64)


def column_feature(column: np.ndarray):
    return tfds.features.Tensor(shape=(None,), dtype=column.dtype)
