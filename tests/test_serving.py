"""What a program asks for: filtered lists against a full sort, threads, and no waiting."""

import concurrent.futures
import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from pyarrow import parquet
from runs import compiled
from test_recommend import ITEMS, command, make_table, make_trained

from jaxrec.devices import top_k
from jaxrec.devices.mesh import TABLE, place_rows, place_whole
from jaxrec.errors import UserError
from jaxrec.serving import requests
from jaxrec.serving.buckets import buckets
from jaxrec.serving.recommender import Recommender
from jaxrec.tasks.next_item import NextItem

RAW = np.arange(ITEMS) * 3 + 5  # of items 1, 2, ..
GENRES = np.random.default_rng(4).integers(0, 4, (ITEMS, 2)).astype(np.int32)
YEARS = np.random.default_rng(5).integers(1990, 1994, ITEMS)
HISTORIES = [[1, 2, 3], [], [7], list(range(1, ITEMS, 3)), [9, 9, 9, 4], [12, 1, 40]]


def trained_on(folder):
    """The model whose query is the newest item's row, with features of items."""
    trained = make_trained(folder)
    source = dataclasses.replace(
        trained.served.source, item_features={'genres': GENRES, 'year': YEARS}
    )
    served = NextItem(trained.experiment, source, {'data_hash': 'abc', 'path': ''})
    return dataclasses.replace(trained, served=served)


def slow(history, k, exclude=(), allow=None, keep_seen=False):
    """Raw ids and scores, by a full sort of item numbers."""
    table = make_table().astype(np.float64)
    scores = table @ table[history[-1] if len(history) else 0]
    left = set(range(1, ITEMS + 1)) if allow is None else set(allow)
    left -= set(exclude) | (set() if keep_seen else set(history))
    best = sorted(left, key=lambda i: (-scores[i], i))[:k]
    return [(int(RAW[i - 1]), scores[i]) for i in best]


def asked(recommender, histories, **options):
    """The same from raw ids."""
    raw = [[int(RAW[i - 1]) for i in history] for history in histories]
    lists = recommender.recommend(raw, **options)
    return [[(row['item'], row['score']) for row in rows] for rows in lists]


def raw(numbers):
    return [int(RAW[n - 1]) for n in numbers]


def mask(numbers):
    return np.isin(np.arange(1, ITEMS + 1), numbers)


@pytest.mark.parametrize('shape', [(1, 1), (2, 4)])
def test_filters_against_a_full_sort(tmp_path, mesh, shape):
    """The kinds: ids and masks, of all histories and of each, of the object, of features."""
    mesh(*shape)
    recommender = Recommender(trained_on(tmp_path), 8, batch_users=4)
    few, odd = [2, 5, 7, 9, 30, 31, 40], list(range(1, ITEMS + 1, 2))
    none = [()] * len(HISTORIES)
    each = [[1, 5], [], [9, 9], odd, [40], [2]]
    allows = [few, None, few, odd, [], [3]]

    def check(wanted_exclude, wanted_allow, **options):
        found = asked(recommender, HISTORIES, **options)
        for n, history in enumerate(HISTORIES):
            want = slow(history, options.get('k', 8), wanted_exclude[n], wanted_allow[n])
            assert found[n] == want, (n, options)

    everything = [None] * len(HISTORIES)
    check(none, everything)
    check([few] * 6, everything, exclude=raw(few))
    check([few] * 6, everything, exclude=mask(few), k=3)
    check([few] * 6, everything, exclude=set(raw(few)), k=30)  # longer than the object's
    check(each, everything, exclude=[raw(one) for one in each])
    check(none, [few] * 6, allow=[str(one) for one in raw(few)])
    check(none, [odd] * 6, allow=mask(odd))
    check(none, allows, allow=[None if one is None else raw(one) for one in allows])
    check(
        each,
        allows,
        exclude=[mask(one) for one in each],
        allow=[None if one is None else raw(one) for one in allows],
    )
    check(
        [few] * 6,
        allows,
        exclude=raw(few),
        allow=[None if one is None else mask(one) for one in allows],
    )
    check(none, [[]] * 6, allow=[])
    some = [n + 1 for n in range(ITEMS) if {1, 3} & set(GENRES[n]) and YEARS[n] == 1992]
    chosen = recommender.catalogue.where(genres=(1, 3), year=1992)
    assert 0 < len(some) == chosen.sum()
    check(none, [some] * 6, allow=chosen)

    narrow = Recommender(trained_on(tmp_path), 8, keep_seen=True, allow=mask(odd), exclude=raw(few))
    kept = [i for i in odd if i not in few]
    for history, found in zip(HISTORIES, asked(narrow, HISTORIES, exclude=raw([1])), strict=True):
        assert found == slow(history, 8, [1], kept, keep_seen=True)
    users = np.arange(5)  # in bulk too
    for user, numbers in zip(users, narrow(users)[1], strict=True):
        want = slow(narrow.histories.history(user), 8, (), kept, keep_seen=True)
        assert raw(numbers[numbers > 0]) == [item for item, _ in want]


def test_more_unwanted_items_than_any_shape_holds(tmp_path, mesh):
    """They are taken from what is allowed: by history, by a list, by both."""
    mesh(1, 2)
    recommender = Recommender(trained_on(tmp_path), 8, batch_users=4)
    recommender._shapes.sizes = [(6, 2)]
    exclude = [[], [], [], [1, 2, 3], [5], [6]]
    found = asked(
        recommender, HISTORIES, exclude=[raw(one) for one in exclude], allow=raw(range(1, 30))
    )
    for n, history in enumerate(HISTORIES):
        assert found[n] == slow(history, 8, exclude[n], range(1, 30))


@pytest.mark.parametrize('shape', [(1, 1), (2, 2)])
def test_filtered_top_k_in_groups_and_pieces(mesh, monkeypatch, shape):
    """Of a table whose scores are too many at once."""
    mesh(*shape)
    rng = np.random.default_rng(0)
    queries = rng.integers(-3, 4, (128, 2, 4)).astype(np.float32)
    table, allowed = rng.integers(-3, 4, (512, 4)).astype(np.float32), rng.random(512) < 0.1
    scores = np.where(allowed, np.einsum('bkd,nd->bkn', queries, table).max(1), -np.inf)
    scores[:, 0] = scores[:, 501:] = -np.inf
    want = np.argsort(-scores, axis=1, kind='stable')[:, :7]
    spec = jax.NamedSharding(jax.sharding.get_mesh(), TABLE)
    placed = place_whole({'q': queries})['q'], jax.device_put(table, spec)
    for most in (top_k._MOST_SCORES, 1 << 13):
        monkeypatch.setattr(top_k, '_MOST_SCORES', most)
        run = jax.jit(lambda q, t, a, most=most: top_k.top_k(q, t, 500, None, 7, a))
        best, items = run(*placed, place_rows(allowed))
        np.testing.assert_array_equal(items, want)
        np.testing.assert_array_equal(best, np.take_along_axis(scores, want, 1))


def test_no_request_compiles_after_a_warm_up(tmp_path, mesh):
    """Whatever its histories' lengths and number, its filters and its k up to the object's."""
    mesh(1, 1)
    recommender = Recommender(trained_on(tmp_path), 8, batch_users=20)
    recommender.warm_up()
    rng = np.random.default_rng(0)
    with compiled() as programs:
        for count in (1, 2, 3, 19, 45):
            histories = [rng.integers(1, ITEMS + 1, rng.integers(0, 80)) for _ in range(count)]
            for options in ({}, {'k': 3}, {'exclude': raw([1, 2])}, {'allow': mask([4, 5, 6])}):
                assert len(recommender.after(histories, **options)) == count
    assert not programs


def test_nothing_is_compiled_for_the_next_checkpoint(tmp_path, mesh):
    """Of a model that is built alike, whose answers are its own; of another one everything is."""
    mesh(1, 1)
    first = Recommender(trained_on(tmp_path), 8, batch_users=4)
    first.warm_up()
    trained = trained_on(tmp_path)
    trained = dataclasses.replace(trained, params={'table': 2 * trained.params['table']})
    with compiled() as programs:
        second = Recommender(trained, 8, batch_users=4, like=first)
        second.warm_up()
        twice = asked(second, HISTORIES)
    assert not [name for name in programs if 'top_k' in name]
    assert [[(i, s / 4) for i, s in rows] for rows in twice] == asked(first, HISTORIES)
    with compiled() as programs:
        Recommender(trained, 8, batch_users=4).warm_up()
    assert [name for name in programs if 'top_k' in name]


def test_threads_get_what_one_alone_gets(tmp_path, mesh):
    """On a mesh whose programs talk to each other."""
    mesh(2, 4)
    recommender = Recommender(trained_on(tmp_path), 8, batch_users=8)
    questions = [
        (HISTORIES[n % 6 : n % 6 + 1 + n % 3], {'exclude': raw([n + 1])} if n % 2 else {})
        for n in range(24)
    ]
    alone = [asked(recommender, histories, **options) for histories, options in questions]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(asked, recommender, h, **options) for h, options in questions]
        assert [one.result() for one in running] == alone


@pytest.mark.parametrize(
    'options, text',
    [
        ({'exclude': [6]}, 'item 6 is not in the data'),
        ({'allow': ['x']}, "item 'x' is not in the data"),
        ({'allow': '5'}, 'allow must be item ids or a mask'),
        ({'exclude': 5}, 'exclude must be item ids or a mask'),
        ({'exclude': [[5]]}, 'one for each of 2 lists'),
        ({'exclude': [[5], 'x']}, 'exclude must be item ids'),
        ({'allow': np.ones(3, bool)}, r'a mask has a value for each of the 40 items, .* \[3\]'),
        ({'allow': [None, np.ones(3, bool)]}, 'a mask has a value'),
        ({'k': 0}, 'at least 1'),
    ],
)
def test_filters_that_cannot_be(tmp_path, mesh, options, text):
    mesh(1, 1)
    recommender = Recommender(trained_on(tmp_path), 3, batch_users=2)
    with pytest.raises(UserError, match=text):
        recommender.recommend([[5], [8]], **options)
    with pytest.raises(UserError, match="no column 'colour' of items; it has genres, year"):
        recommender.catalogue.where(colour=1)


def test_unknown_items_may_be_left_out(tmp_path, mesh):
    mesh(1, 1)
    recommender = Recommender(trained_on(tmp_path), 3, skip_unknown=True)
    found = recommender.recommend([[5, 'new', 8]], exclude=['old', 11])
    assert found == recommender.recommend([[5, 8]], exclude=[11])


def test_files_of_filters_on_the_command_line(tmp_path, mesh, monkeypatch, capsys):
    mesh(1, 1)
    trained, few = trained_on(tmp_path), [2, 5, 7, 9, 30]
    allow, exclude, output = (tmp_path / n for n in ('allow.txt', 'exclude.json', 'lists.parquet'))
    allow.write_text('\n'.join(map(str, raw(few))))
    exclude.write_text(json.dumps(raw([9])))
    files = {'allow': str(allow), 'exclude': str(exclude)}
    found = command(monkeypatch, trained, history='5,8', **files)['items']
    assert [row['item'] for row in found] == [item for item, _ in slow([1, 2], 9, [9], few)]
    command(monkeypatch, trained, users='all', output=str(output), k=3, **files)
    table = parquet.read_table(output).to_pylist()
    assert {row['item'] for row in table} <= set(raw(few)) - set(raw([9]))
    command(monkeypatch, trained, history=','.join(map(str, raw(few))), **files)
    assert 'every item that the filters leave' in capsys.readouterr().out
    allow.write_text('5\n6\n')
    with pytest.raises(UserError, match="item '6' of .*allow.txt is not in the data"):
        command(monkeypatch, trained, history='5,8', **files)
    found = command(monkeypatch, trained, history='8', skip_unknown=True, **files)['items']
    assert [row['item'] for row in found] == [5]


def test_buckets():
    assert buckets(256, 2) == (2, 16, 128, 256) and buckets(1, 2) == (2,)
    assert buckets(128, 2) == (2, 16, 128) and buckets(5, 4) == (4, 8)
    for most in (1, 7, 50, 200):
        shapes = requests.Shapes(most, batch_users=256, multiple=2, tokens=6400)
        assert shapes.sizes[-1][0] == most and shapes.sizes == sorted(shapes.sizes)
        for width, _ in shapes.sizes:
            rows = shapes.rows(width)
            assert max(rows) * width <= max(6400, 2 * width)
            most = max(rows)
            wasted = max(n - fewer for fewer, n in itertools.pairwise((0, *rows)))
            assert most < 128 or wasted <= most // 4 + 64
