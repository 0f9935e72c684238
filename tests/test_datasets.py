import numpy as np
import pytest

from jaxrec import datasets
from jaxrec.config import Data


@pytest.fixture
def load(tmp_path):
    """Writes `text` to a file and loads it as a log."""

    def load_log(text, name='log.csv', **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        config = Data(log=str(path), data_dir=str(tmp_path / 'data'), **options)
        return datasets.load(config, say=lambda *_: None)

    return load_log


def events(h):
    """(raw user, raw item) of every event, in order."""
    return [(h.raw_user(u), h.raw_item(i)) for u in range(h.num_users) for i in h.history(u)]


def test_csv_sorted_by_user_and_time_ties_in_file_order(load):
    h, _ = load('user,item,timestamp\n2,9,5\n1,8,7\n2,7,5\n2,10,4\n1,8,7\n')
    assert events(h) == [(1, 8), (1, 8), (2, 10), (2, 9), (2, 7)]
    np.testing.assert_array_equal(h.times, [7, 7, 4, 5, 5])
    np.testing.assert_array_equal(h.item_ids, [7, 8, 9, 10])
    np.testing.assert_array_equal(h.items, [2, 2, 4, 3, 1])
    assert h.statistics()['repeats'] == 1


def test_sequences_and_pairs_give_the_same_histories(load):
    a, _ = load('b 3 1\na 2\n', 'a.txt')
    b, _ = load('b 3\na 2\nb 1\n', 'b.txt')
    assert events(a) == events(b) == [('a', 2), ('b', 3), ('b', 1)]
    assert a.content_hash() == b.content_hash()


def test_synthetic_depends_on_its_seed_only(tmp_path):
    def make(name, folder):
        config = Data(dataset=name, data_dir=str(tmp_path / folder))
        return datasets.load(config, say=lambda *_: None)[0]

    a, b = make('synthetic:users=50', 'a'), make('synthetic:users=50', 'b')
    assert a.content_hash() == b.content_hash()
    assert make('synthetic:users=50,seed=1', 'a').content_hash() != a.content_hash()
    assert a.num_users == 50 and a.statistics()['repeats'] == 0
