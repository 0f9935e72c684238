"""Lists of an exported jaxrec model; needs this folder, jax, numpy and flatbuffers.

from model import Model
Model().recommend([['item 1', 'item 2']], k=10)
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
        self.ids = [i.decode() if isinstance(i, bytes) else int(i) for i in _load(folder, 'ids')]
        self.numbers = {str(raw): number for number, raw in enumerate(self.ids, 1)}
        self.titles = _load(folder, 'titles') if (folder / 'titles.npy').exists() else None
        self.items = _load(folder, 'items')  # a vector by item number
        with np.load(folder / 'arrays.npz') as arrays:
            self.arrays = jax.device_put({**arrays, 'items': self.items})
        function = bytearray((folder / 'function.stablehlo').read_bytes())
        self.call = jax.jit(jax.export.deserialize(function).call)

    def vectors(self, histories):
        """float32 [n, K, D] of lists of item numbers, oldest first."""
        width = self.about['signature']['inputs']['items']['shape'][1]
        rows = 1 << max(len(histories) - 1, 0).bit_length()  # so that few programs are compiled
        items = np.zeros((rows, width), np.int32)  # the newest at the right
        for row, history in zip(items, histories):  # noqa: B905
            row[width - min(len(history), width) :] = history[-width:]
        return np.asarray(self.call(self.arrays, {'items': items})['queries'])[: len(histories)]

    def recommend(self, histories, k=10, keep_seen=False, index=None):
        """[{'item': raw id, 'title': text, 'score': float}, ..] for each list of raw ids.

        KeyError for an id that the model does not know: leave such out (`self.numbers` has all).
        With index=faiss.read_index('items.faiss') among what it finds, not among all.
        """
        numbers = [[self.numbers[str(raw)] for raw in history] for history in histories]
        lists = []
        for vectors, seen in zip(self.vectors(numbers), numbers):  # noqa: B905
            among, unwanted = np.arange(1, len(self.ids) + 1), [] if keep_seen else seen
            if index is not None:
                longer = np.pad(vectors, ((0, 0), (0, 1)))  # items are, and 0 changes no product
                found = index.search(longer, min(k + len(set(unwanted)), len(self.ids)))[1]
                among = np.unique(found[found >= 0]) + 1
            rows = self.items[among] if index is not None else self.items[1 : len(self.ids) + 1]
            scores = np.where(np.isin(among, unwanted), -np.inf, (rows @ vectors.T).max(1))
            least = np.partition(scores, -k)[-k] if k < len(scores) else -np.inf
            best = np.flatnonzero((scores >= least) & (scores > -np.inf))
            best = best[np.argsort(-scores[best], kind='stable')][:k]
            lists.append([self._row(among[n], scores[n]) for n in best])
        return lists

    def _row(self, number, score):
        title = '' if self.titles is None else self.titles[number - 1].decode()
        return {'item': self.ids[number - 1], 'title': title, 'score': float(score)}


def _load(folder, name):
    return np.load(folder / f'{name}.npy')
