"""games-titles: histories with their targets, and titles, as LLMRank publishes them."""

import gzip
import pathlib

import numpy as np
import pytest

from jaxrec.datasets import events, llmrank
from jaxrec.errors import UserError

EVENTS = b'user_id:token\titem_id_list:token_seq\titem_id:token\n0\t3 1\t2\n7\t2\t0\n'
TITLES = b'item_id:token\ttitle:token_seq\n0\tA "quoted  title\n1\tTwo\n2\t\xe6\x98\xa0\n3\t\n'


def test_generated_lines(tmp_path):
    (tmp_path / 'test.inter.gz').write_bytes(gzip.compress(EVENTS))
    (tmp_path / 'items.tsv').write_bytes(TITLES)
    found, used = llmrank.read_games(str(tmp_path), print)
    histories = events.to_histories(found, 'games-titles')
    assert used.endswith('test.inter.gz') and histories.user_ids.tolist() == [0, 7]
    raw = [[histories.raw_item(i) for i in histories.history(u)] for u in range(2)]
    assert raw == [[3, 1, 2], [2, 0]]
    assert [histories.title(n) for n in range(1, 5)] == ['A "quoted title', 'Two', '映', '']


def test_other_files_are_refused():
    with pytest.raises(UserError, match='here does not begin with user_id, item_id_list'):
        llmrank.read_histories(b'user,item\n1,2\n', 'here')
    with pytest.raises(UserError, match='the titles of here do not begin with item_id'):
        llmrank.read_titles(b'item,title\n1,2\n', 'here')


@pytest.mark.slow
def test_the_real_files():
    folder = pathlib.Path(__file__).parents[2] / 'shared' / 'data' / 'games-titles'
    if not folder.is_dir():
        pytest.skip(f'{folder} is not here')
    found, _ = llmrank.GAMES.read_checked(str(folder), print)
    ids, titles = found.titles
    assert ids.tolist() == list(range(16_859))
    assert len(np.unique(titles)) == 16_405  # 16,425 by the byte; some differ in blanks alone
