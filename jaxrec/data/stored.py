"""Data on disk: one .npy file a column and meta.json, hashed, saved and opened alike for all kinds.

A kind is a dataclass with `columns()`, `statistics()`, `content_hash()`, `name`, and KIND.

meta.json holds the sha256 of every file, and of itself. Opening a folder compares them: of up to
ALWAYS bytes every time, of more once, and again when a file's size, times or place on disk change.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec import files

FORMAT = 1  # of the folder written by `save`
ALWAYS = 1 << 26  # bytes whose hashes are compared at every opening
VERIFIED = '.verified'  # notes which files were compared


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
    columns = data.columns()
    with files.replacing_folder(pathlib.Path(folder)) as partial:
        for name, column in columns.items():
            np.save(partial / f'{name}.npy', column, allow_pickle=False)
        hashes = {name: files.digest(partial / f'{name}.npy') for name in columns}
        meta = {
            **(about or {}),
            'kind': data.KIND,
            'format': FORMAT,
            'name': data.name,
            'columns': list(columns),
            'statistics': data.statistics(),
            'data_hash': data.content_hash(),
            'files': hashes,
        }
        meta['meta_hash'] = _meta_hash(meta)
        (partial / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')
    return meta


def load(folder: str | os.PathLike, kind: str) -> tuple[dict[str, np.ndarray], str]:
    """(columns by name, memory-mapped and read-only; name of the data) of a saved folder.

    Raises:
      ValueError: the folder holds another kind of data, or a file of it has changed.
    """
    folder = pathlib.Path(folder)
    meta = read_meta(folder)
    if 'files' in meta:  # not in folders of older versions
        _verify(folder, meta['files'])
    there = meta.get('kind', 'histories')
    if there != kind:
        raise ValueError(f'{folder} holds {there}, not {kind}')
    columns = {
        name: np.load(folder / f'{name}.npy', mmap_mode='r', allow_pickle=False)
        for name in meta['columns']
    }
    return columns, meta['name']


def named(columns: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Takes the columns with names PREFIX.. out of `columns`, by the rest of their names."""
    names = sorted(name for name in columns if name.startswith(prefix))
    return {name.removeprefix(prefix): columns.pop(name) for name in names}


def read_meta(folder: str | os.PathLike) -> dict:
    """meta.json of a saved folder; FileNotFoundError if there is none, ValueError if it changed."""
    meta = json.loads((pathlib.Path(folder) / 'meta.json').read_text(encoding='utf-8'))
    if meta.get('meta_hash', _meta_hash(meta)) != _meta_hash(meta):
        raise ValueError('meta.json has changed since it was written')
    return meta


def _meta_hash(meta: dict) -> str:
    rest = {name: value for name, value in meta.items() if name != 'meta_hash'}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _verify(folder: pathlib.Path, hashes: Mapping[str, str]) -> None:
    """ValueError if a file has other content than meta.json says."""
    now = {name: files.standing(folder / f'{name}.npy') for name in hashes}
    large = sum(size for size, *_ in now.values()) > ALWAYS
    if large and files.noted(folder / VERIFIED) == now:
        return
    for name, expected in hashes.items():
        if files.digest(folder / f'{name}.npy') != expected:
            raise ValueError(f'{name}.npy has changed since it was written')
    if large:
        with contextlib.suppress(OSError):  # of a read-only folder: compared again next time
            files.write_json(folder / VERIFIED, now)
