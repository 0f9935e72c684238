"""Prepared data of every kind, damaged at random: the same data, or one line that says so.

By hand, more of it: JAXREC_FUZZ=2000 python -m pytest tests/test_stored.py
"""

import os
import random
import shutil

import numpy as np
import pytest

from jaxrec.data.graph import Graph
from jaxrec.data.histories import Histories
from jaxrec.data.rows import Rows
from jaxrec.datasets import store
from jaxrec.errors import UserError

CASES = int(os.environ.get('JAXREC_FUZZ', '60'))
RNG = random.Random(os.environ.get('JAXREC_TEST_SEED', '0'))


def histories():
    return Histories(
        np.array([1, 2, 3, 1], np.int32),
        np.array([0, 2, 4]),
        np.array([b'u1', b'u2']),
        np.array([3, 5, 8]),
        times=np.array([1, 2, 3, 4]),
        features={'weight': np.array([0.5, 1.5, 2.5, 3.5])},
        item_features={'genres': np.array([[1, 2], [3, 0], [0, 0]], np.int32)},
        titles=np.array([b'A', b'B', b'C']),
        name='small',
    )


def rows():
    return Rows(
        users=np.array([0, 0, 1, 1], np.int32),
        items=np.array([1, 2, 1, 2], np.int32),
        times=np.arange(4),
        user_ids=np.array([7, 9]),
        item_ids=np.array([b'a', b'b']),
        user_features={'age': np.array([0.5, 1.5])},
        labels={'click': np.array([0, 1, np.nan, 1], np.float32)},
        name='small',
    )


def graph():
    return Graph(
        num_nodes=3,
        edges=np.array([[0, 0, 1], [1, 2, 2]], np.int32),
        features=np.eye(3, dtype=np.float32),
        labels=np.array([0, 1, 1], np.int32),
        train=np.array([0, 2], np.int32),
        name='small',
    )


def flip(path):
    data = bytearray(path.read_bytes())
    data[RNG.randrange(len(data))] ^= 1 << RNG.randrange(8)
    path.write_bytes(data)


def cut(path):
    os.truncate(path, RNG.randrange(path.stat().st_size))


def grow(path):
    path.write_bytes(path.read_bytes() + bytes([RNG.randrange(256)]))


def exchange(path):
    """Another file of the folder in its place."""
    other = RNG.choice([p for p in path.parent.iterdir() if p != path])
    path.write_bytes(other.read_bytes())


def remove(path):
    path.unlink()


@pytest.mark.parametrize('kind', [histories, rows, graph])
def test_damage_is_told_or_changes_nothing(tmp_path, kind):
    data = kind()
    meta = data.save(tmp_path / 'whole' / store.COLUMNS, {'source': 'here'})
    told = 0
    for _ in range(CASES):
        folder = tmp_path / 'damaged'
        shutil.copytree(tmp_path / 'whole', folder)
        path = RNG.choice(sorted((folder / store.COLUMNS).iterdir()))
        RNG.choice((flip, flip, cut, grow, exchange, remove))(path)
        try:
            found = store.find(folder)
        except UserError as e:
            assert '\n' not in str(e) and 'is damaged' in str(e) and str(folder) in str(e)
            told += 1
        else:
            if found is None:  # without meta.json it is unfinished
                assert path.name == 'meta.json' and not path.exists()
            else:
                assert found[0].content_hash() == data.content_hash()
                assert found[1]['statistics'] == meta['statistics']
                for name, column in data.columns().items():
                    np.testing.assert_array_equal(found[0].columns()[name], column)
        shutil.rmtree(folder)
    assert told > CASES / 2
