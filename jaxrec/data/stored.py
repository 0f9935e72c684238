"""Data on disk: one .npy file a column and meta.json, hashed, saved and opened alike for all kinds.

A kind is a dataclass with `columns()`, `statistics()`, `content_hash()`, `name`, and KIND.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

FORMAT = 1  # of the folder written by `save`


def content_hash(kind: str, columns: Mapping[str, np.ndarray]) -> str:
    """sha256 over columns; independent of file format and platform."""
    digest = hashlib.sha256(f'jaxrec {kind} 1'.encode())
    for name, column in columns.items():
        digest.update(f'{name} {column.dtype.str} {column.shape}'.encode())
        flat = column.view(np.uint8).reshape(-1) if column.size else np.zeros(0, np.uint8)
        for start in range(0, len(flat), 1 << 24):
            digest.update(flat[start : start + (1 << 24)])
    return digest.hexdigest()


def save(data: Any, folder: str | os.PathLike, about: dict | None = None) -> dict:
    """Writes the columns and meta.json; the folder appears whole or not at all.

    Returns:
      The content of meta.json: `about`, the kind, the statistics and the content hash.
    """
    folder = pathlib.Path(folder)
    partial = folder.with_name(folder.name + f'.partial{os.getpid()}')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    columns = data.columns()
    for name, column in columns.items():
        np.save(partial / f'{name}.npy', column, allow_pickle=False)
    meta = {
        **(about or {}),
        'kind': data.KIND,
        'format': FORMAT,
        'name': data.name,
        'columns': list(columns),
        'statistics': data.statistics(),
        'data_hash': data.content_hash(),
    }
    (partial / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return meta


def load(folder: str | os.PathLike, kind: str) -> tuple[dict[str, np.ndarray], str]:
    """(columns by name, memory-mapped and read-only; name of the data) of a saved folder.

    Raises:
      ValueError: the folder holds another kind of data.
    """
    folder = pathlib.Path(folder)
    meta = read_meta(folder)
    there = meta.get('kind', 'histories')
    if there != kind:
        raise ValueError(f'{folder} holds {there}, not {kind}')
    columns = {
        name: np.load(folder / f'{name}.npy', mmap_mode='r', allow_pickle=False)
        for name in meta['columns']
    }
    return columns, meta['name']


def read_meta(folder: str | os.PathLike) -> dict:
    """meta.json of a saved folder; FileNotFoundError if there is none."""
    return json.loads((pathlib.Path(folder) / 'meta.json').read_text())
