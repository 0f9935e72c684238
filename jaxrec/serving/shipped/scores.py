"""Scores of an exported jaxrec model; needs this folder, jax, numpy and flatbuffers.

from model import Model
Model().score([{'user': 'raw id', 'item': 'raw id', 'column': 3}])  # None where it is not known
"""

import json
import pathlib

import jax
import jax.export
import numpy as np


class Model:
    def __init__(self, folder=None):
        folder = pathlib.Path(folder or pathlib.Path(__file__).parent)
        self.about = json.loads((folder / 'model.json').read_text(encoding='utf-8'))
        with np.load(folder / 'arrays.npz') as arrays:
            self.arrays = jax.device_put(dict(arrays))
        with np.load(folder / 'codes.npz') as codes:
            self.codes = dict(codes)
        self.owners = {unit: _places(self.codes[f'{unit}_ids']) for unit in ('user', 'item')}
        function = bytearray((folder / 'function.stablehlo').read_bytes())
        self.call = jax.jit(jax.export.deserialize(function).call)

    def score(self, rows):
        """[{label: probability}, ..] of rows {column: value}."""
        chances = (1 + np.tanh(self.logits(rows).astype(np.float64) / 2)) / 2
        return [dict(zip(self.about['labels'], one)) for one in chances.tolist()]  # noqa: B905

    def logits(self, rows):
        """float32 [n, labels]."""
        size = 1 << max(len(rows) - 1, 0).bit_length()  # so that few programs are compiled
        filled = [*rows, *rows[:1] * (size - len(rows))]
        features = {
            name: np.stack([self._code(name, about, row) for row in filled])
            for name, about in self.about['fields'].items()
        }
        return np.asarray(self.call(self.arrays, features)['logits'])[: len(rows)]

    def _code(self, name, about, row):
        kind, first, known = about['kind'], about['first'], self.codes[f'known.{name}']
        given = row[name] if about['unit'] == 'row' else row.get(name)
        if given is None or name in self.owners:  # of users and items what the data know
            owner = None if about['unit'] == 'row' else row[about['unit']]
            if owner is None:
                return self.codes[f'missing.{name}']
            return self.codes[f'coded.{name}'][self.owners[about['unit']][str(owner)]]
        if kind == 'number':
            return np.float32(np.nan_to_num((float(given) - known[0]) / known[1]))
        if kind == 'quantile':
            at = len(known) + 1 if given != given else np.searchsorted(known, given, 'right')
            return np.int32(first + at)
        if about['of'] == 'item':
            given = [self.owners['item'][str(raw)] + 1 for raw in given]
        values = np.zeros(about['width'], np.int64)
        values[: np.size(given)] = given
        at = np.searchsorted(known, values)
        at = np.where(np.append(known, -1)[at] == values, at, len(known))
        codes = np.where((values > 0) | (kind == 'category'), first + at, 0).astype(np.int32)
        return codes[0] if kind == 'category' else codes


def _places(ids):
    return {i.decode() if isinstance(i, bytes) else str(i): n for n, i in enumerate(ids)}
