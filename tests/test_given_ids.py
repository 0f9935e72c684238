"""Every id of the data can be given and comes back, whatever it is made of."""

import csv
import gzip
import itertools
import json
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from test_recommend import command, make_trained

from jaxrec import recommend
from jaxrec.data.catalogue import Items, find, find_all
from jaxrec.errors import UserError
from jaxrec.serving import bulk, given_ids
from jaxrec.serving.recommender import Recommender

NASTY = [
    *(
        'a,b',
        'shoe, size 1',
        '"',
        '"Heroes',
        '12" disc',
        'a""b',
        "it's",
        '[1]',
        '["a"]',
        '[a',
        '{}',
    ),
    *(' a', 'a ', '  ', '\t', 'a\tb', '#a', '=1+1', '-1', '+1', '007', '1e3', 'null', 'nan', '%s'),
    *(
        'caf\u00e9',
        'cafe\u0301',
        '\ufeffx',
        '\u00a0x\u00a0',
        'a\u2028b',
        'a\x0bb',
        'a\x85',
        '\U0001f600',
    ),
    *('\\', 'a\\,b', '$(x)', '--user', 'all', 'a;b', 'a|b', ''),
]
TEXT = st.text(st.characters(exclude_categories=('Cs',), exclude_characters='\n\r\0'), max_size=8)
IDS = st.lists(st.one_of(st.sampled_from(NASTY), TEXT), min_size=1, max_size=6)


class Known(Items):
    """Items of these raw ids alone."""

    def __init__(self, ids):
        raw = [i.encode() for i in ids] if isinstance(ids[0], str) else ids
        self.item_ids = np.unique(np.array(raw))


def file(name, content):
    path = pathlib.Path(tempfile.mkdtemp()) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def slow_csv(ids):
    return ','.join('"' + i.replace('"', '""') + '"' for i in ids)


@given(IDS)
@settings(max_examples=200, deadline=None)
def test_ids_come_back_from_every_form(ids):
    forms = [slow_csv(ids), ','.join(map(given_ids.as_text, ids)), json.dumps(ids)]
    forms.append(json.dumps(ids, ensure_ascii=False))
    for text in forms:
        assert given_ids.of_text(text, '--history') == ids
    lines = [i for i in ids if i]  # an empty line is none
    for path, wanted in (
        (file('x.json', json.dumps(ids)), ids),
        (file('x.jsonl', '\n'.join(map(json.dumps, ids))), ids),
        (file('x.txt', '\n'.join(['first', *lines]) + '\n'), ['first', *lines]),
        (file('x.csv', ('\r\n'.join(['first', *lines])).encode('utf-8-sig')), ['first', *lines]),
    ):
        assert given_ids.ids_of(path, '--users') == wanted
        assert given_ids.histories_of(path, '--history_file') == [wanted]
    many = file('many.json', json.dumps([ids, [], ids[:1]]))
    assert given_ids.histories_of(many, '--history_file') == [ids, [], ids[:1]]
    lines = file('many.jsonl', '\n'.join([json.dumps(ids), '[]', '', json.dumps(ids[:1])]))
    assert given_ids.histories_of(lines, '--history_file') == [ids, [], ids[:1]]


@given(st.lists(st.one_of(st.sampled_from(NASTY), TEXT), min_size=1, max_size=30, unique=True))
@settings(max_examples=100, deadline=None)
def test_an_id_is_found_as_it_is_and_no_other(ids):
    """Against a slow search; nothing is trimmed."""
    held = [i for i in ids[::2]]
    known = Known(held)
    for one in ids:
        number = known.find_item(one)
        assert (number is not None) == (one in held)
        assert number is None or known.raw_item(number) == one


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9), st.text(max_size=3))
@settings(max_examples=100, deadline=None)
def test_whole_numbers_are_found_as_such_and_as_text_with_blanks_around(ids, other):
    ids, known = sorted(set(ids)), Known(ids)
    text = given_ids.of_text(', '.join(map(str, ids)), '--history')
    for raw in (ids, text, given_ids.of_text(json.dumps(ids), '--history')):
        assert [known.raw_item(known.find_item(one)) for one in raw] == ids
    assert find(known.item_ids, f'0{ids[0]}') is None
    assert find(known.item_ids, f'{other}x') is None


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('a,"b', 'no list of ids'),
        ('"a"b', 'no list of ids'),
        ('a\nb', 'no list of ids'),
        ('[1.5]', '1.5 is not an id'),
        ('[true]', 'true is not an id'),
        ('["a", null]', 'null is not an id'),
        ('[["a"]]', '["a"] is not an id'),
    ],
)
def test_what_is_no_list_of_ids(text, words):
    with pytest.raises(UserError) as error:
        given_ids.of_text(text, '--history')
    assert words in str(error.value) and '--history' in str(error.value)


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('x.json', '{"a": 1}', 'no list'),
        ('x.json', '["a"', 'is not JSON as it should be'),
        ('x.json', '["a", 1.5]', '1.5 is not an id'),
        ('x.json', '[["a"], "b"]', '"b" is not a list of ids'),
        ('x.json', '[' * 100_000, 'is not JSON as it should be'),
        ('x.jsonl', '["a"]\nb', 'is not JSON as it should be'),
        ('x.gz', gzip.compress(b'a\nb', mtime=0), 'is packed by gzip'),
        ('x.txt', gzip.compress(b'a\nb', mtime=0), 'is packed by gzip'),
        ('x.txt', b'a\nb\xff', 'not UTF-8 text (--history_file): look at line 2'),
        (None, b'', 'no such file'),
        ('.', b'', 'Is a directory'),
    ],
)
def test_files_that_hold_no_ids(tmp_path, name, content, words):
    path = tmp_path / (name or 'nowhere')
    if name not in (None, '.'):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        given_ids.histories_of(path, '--history_file')
    assert words in str(error.value) and str(path) in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('held', 'given', 'words'),
    [
        (['b'], ' b', "did you mean 'b'?"),
        (['b '], 'b', "did you mean 'b '?"),
        (['caf\u00e9'], 'cafe\u0301', r"did you mean 'caf\xe9', NFC of Unicode?"),
        (['cafe\u0301'], 'caf\u00e9', r"did you mean 'cafe\u0301', NFD of Unicode?"),
        (['ａ'], 'b', "item 'b' of --history is not in the data; --skip"),
        (['shoe, size 1', 'b'], 'shoe, size 1,b', 'Give it as "shoe, size 1", in double quotes'),
        (['b', 'x,y,z'], 'b,x,y,z', """did you mean 'x,y,z'? Give it as "x,y,z","""),
        ([5], '5,6.0', "item '6.0' of --history is not in the data;"),
        (['a'], 'a,,a', "item '' of --history"),
    ],
)
def test_an_unknown_id_says_what_looks_like_it(held, given, words):
    with pytest.raises(UserError) as error:
        recommend.parse_history(Known(held), given, False)
    assert words.replace('\'"', '"').replace('"\'', '"') in str(error.value)


def test_what_was_left_out_is_told(capsys):
    known = Known(['a', 'b'])
    assert recommend.parse_history(known, 'a,x, b,b', True) == [1, 2]
    assert "left out 2 unknown items of --history: 'x', ' b'" in capsys.readouterr().out
    many = file('x.json', json.dumps([['a', 'x1'], [f'x{n}' for n in range(2, 9)], ['b']]))
    assert recommend.read_histories(known, str(many), True) == [[1], [], [2]]
    told = capsys.readouterr().out
    assert 'left out 8 unknown items' in told and "'x5', .." in told and 'x6' not in told


@pytest.mark.parametrize('suffix', bulk.FORMATS)
def test_the_ids_of_written_lists_can_be_given_again(tmp_path, mesh, monkeypatch, suffix):
    mesh(1, 1)
    trained = make_trained(tmp_path, text_ids=True)
    nasty = sorted({i.encode() for i in NASTY if i} | {b'%d' % n for n in range(40)})[:40]
    trained.served.catalogue.item_ids = trained.served.source.item_ids = np.array(nasty)
    users = sorted([i.encode() for i in NASTY if i])[:33]
    trained.served.source.user_ids = np.array(users)
    names = file('users.json', json.dumps([u.decode() for u in users]))
    output = tmp_path / f'lists{suffix}'
    given = {'users': str(names), 'output': str(output), 'k': 8}
    command(monkeypatch, trained, **given)
    if suffix == '.csv':
        with open(output, newline='', encoding='utf-8') as lines:
            rows = list(csv.DictReader(lines))
    else:
        rows = parquet.read_table(output).to_pylist()
    assert {row['user'] for row in rows} == {u.decode() for u in users}
    wanted = Recommender(trained, 8)
    lists = [wanted.user(wanted.histories.find_user(u.decode())) for u in users]
    assert len(rows) == sum(map(len, lists))
    for row, listed in zip(rows, itertools.chain(*lists), strict=True):
        assert (row['item'], row['title']) == (listed['item'], listed['title'])
        assert float(row['score']) == listed['score']
        (number,) = recommend.parse_history(
            wanted.catalogue, given_ids.as_text(row['item']), skip_unknown=False
        )
        assert wanted.catalogue.raw_item(number) == row['item']


def test_lists_of_a_file_of_histories_are_those_of_each(tmp_path, mesh, monkeypatch):
    mesh(1, 1)
    trained = make_trained(tmp_path)
    asked = [[5, 8, 11], [], [119], ['14', 5]]
    path = file('asked.json', json.dumps(asked))
    output = tmp_path / 'lists.parquet'
    result = command(monkeypatch, trained, history_file=str(path), output=str(output), k=3)
    assert result['histories'] == 4
    rows = parquet.read_table(output).to_pylist()
    for number, raw in enumerate(asked, 1):
        (wanted,) = Recommender(trained, 3).recommend([raw])
        mine = [{k: row[k] for k in wanted[0]} for row in rows if row['history'] == number]
        assert mine == wanted
    with pytest.raises(UserError, match='holds 4 histories: give --output'):
        command(monkeypatch, trained, history_file=str(path))
    one = command(monkeypatch, trained, history_file=str(file('one', '5\n8\n11\n')), k=3)
    assert one['items'] == Recommender(trained, 3).recommend([asked[0]])[0]


@pytest.mark.parametrize('name', ['lists.json', 'lists', 'lists.csv.gz', 'lists.tsv'])
def test_an_output_of_another_format_is_refused(tmp_path, mesh, monkeypatch, name):
    mesh(1, 1)
    with pytest.raises(UserError, match=r'must end in \.parquet or \.csv'):
        command(monkeypatch, make_trained(tmp_path), users='all', output=str(tmp_path / name))


@pytest.mark.parametrize(
    'ids',
    [np.array([-7, 3, 12, 2**63 - 1]), np.array([b'', b'12', b'a', b'a b', 'é'.encode()], 'S3')],
    ids=['numbers', 'texts'],
)
def test_many_at_once_are_found_as_one_by_one(ids):
    strange = [3, -7, 12, 2**63 - 1, 2**63, '3', ' 3', '3.0', 3.0, True, None, np.int64(12)]
    strange += ['', 'a', 'a b', 'a bc', 'a\0', 'é', 'zz', '\ud800', b'a', '12']
    ints = [one for one in strange if type(one) is int]
    texts = [one for one in strange if type(one) is str]
    plain = [one for one in texts if one.isascii() and '\0' not in one and len(one) < 4]
    found = 0
    for raw in (strange, ints, ints[:4], texts, plain, [], *([one] for one in strange)):
        wanted = [find(ids, one) for one in raw]
        wanted = [-1 if place is None else place for place in wanted]
        assert find_all(ids, raw).tolist() == wanted
        found += sum(place >= 0 for place in wanted)
    assert found > 8
