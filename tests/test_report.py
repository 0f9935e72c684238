"""The page of a run: what is in it, against slow references; and what a click shows."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from runs import inside
from test_alone import experiment_of, histories
from test_export import runs  # noqa: F401 (a fixture)

import jaxrec
from jaxrec.problem import Measured
from jaxrec.reports import explorer, run
from jaxrec.serving.recommender import Recommender
from jaxrec.training.loop import fit


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """(folder of a run with titles, its page) by the command."""
    folder = tmp_path_factory.mktemp('report')
    made = histories(False)
    made.titles = np.char.encode([f'Title {i} </script><b>' for i in range(30)], 'utf-8')
    made.save(folder / 'data' / 'columns')
    fit(experiment_of(folder / 'data'), folder / 'run')
    words = (f'--workdir={folder / "run"}', '--users=7', '--items=20', '--json')
    done = inside('report', *words)
    assert done.result['bytes'] < 2e5
    return folder, (folder / 'run' / 'report.html').read_text()


def test_the_page_needs_nothing_else(page):
    text = page[1]
    assert not re.findall(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', text)
    assert not re.findall(r'@import|url\(|fetch\(|XMLHttpRequest|import\s*\(', text)
    assert text.count('</script>') == 2  # a title's own does not end anything
    assert '<meta name="viewport"' in text


def test_metrics_stand_beside_references_with_intervals(page):
    folder, text = page
    data, measured = data_of(text), jaxrec.evaluate(folder / 'run')
    assert data['measured']['metrics'] == measured.metrics
    assert {'popularity'} <= data['measured']['references'].keys()
    assert data['measured']['groups'] == measured.groups
    values = measured.values['NDCG@10']
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    for scorer in ('model', *data['measured']['references']):
        assert data['measured']['half'][scorer].keys() == measured.values.keys()
    assert data['measured']['half']['model']['NDCG@10'] == pytest.approx(half, rel=0.05)
    assert data['curves'].keys() >= {'loss', 'valid/NDCG@10'}
    assert 'task.protocol' in data['config'] and data['session']['versions']['jax']


def test_intervals_of_weighted_means():
    """Of a ratio of sums, as GAUC is: against a bootstrap."""
    rng = np.random.default_rng(0)
    values, weights = rng.random(400), rng.integers(1, 30, 400).astype(float)
    mean = float(np.average(values, weights=weights))
    one = Measured({'m': mean, 'whole': 0.5}, values={'m': values}, weights={'m': weights})
    found = run.half_widths(one)
    drawn = rng.integers(0, 400, (4000, 400))
    means = (values[drawn] * weights[drawn]).sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.keys() == {'m'} and found['m'] == pytest.approx((high - low) / 2, rel=0.08)


def test_lists_are_those_of_the_recommender(page):
    folder, text = page
    told = data_of(text)['explorer']
    recommender = jaxrec.load(folder / 'run', k=10)
    known, counts = recommender.catalogue, np.bincount(histories(False).items, minlength=31)
    assert len(told['users']) == 7 and len(told['items']) == 20
    assert min(counts[one['number']] for one in told['items']) >= np.sort(counts[1:])[10]
    for user in told['users'][::3]:
        wanted = recommender.user(known_user(recommender, user['id']))
        assert [told['names'][str(n)][0] for n, *_ in user['list']] == [r['item'] for r in wanted]
    for one in told['items'][::5]:
        wanted = recommender.after([[one['number']]])[0]
        assert [known.raw_item(n) for n, *_ in one['list']] == [row['item'] for row in wanted]
        assert [told['names'][str(n)][1] for n, *_ in one['list']] == [r['title'] for r in wanted]
        np.testing.assert_allclose(
            [score for _, score, _ in one['list']], [row['score'] for row in wanted], atol=1e-3
        )


def known_user(recommender, raw):
    return recommender.histories.find_user(raw)


def test_neighbours_against_a_full_sort(monkeypatch):
    monkeypatch.setattr(explorer, '_AT_ONCE', 3)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 5)).astype(np.float32)
    vectors[7] = 0
    numbers = np.array([1, 39, 7, 20, 3])
    cosine = lambda a, b: float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))  # noqa: E731
    for number, found in zip(numbers, explorer.neighbours(vectors, numbers), strict=True):
        others = [i for i in range(1, 40) if i != number]
        best = sorted(others, key=lambda i: (-cosine(vectors[number], vectors[i]), i))[:10]
        assert [i for i, _ in found] == best
        for i, c in found:
            assert c == pytest.approx(cosine(vectors[number], vectors[i]), abs=1e-4)


def test_the_plane_of_the_map():
    """Against a singular value decomposition; clipped to its edge, whole numbers."""
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(500, 6)) * [9, 5, 1, 1, 1, 1]).astype(np.float32)
    found = explorer.plane(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    left, values, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    assert found['share'] == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-4)
    for column, wanted in zip((found['x'], found['y']), left.T[:2], strict=True):
        assert min(column) == 0 and max(column) == 9999
        assert abs(np.corrcoef(column, wanted)[0, 1]) > 0.9999
    assert explorer.plane(np.ones((5, 3), np.float32))['share'] == 0


def test_the_map_has_more_items_than_the_lists(page):
    told = data_of(page[1])['explorer']
    assert len(told['map']['number']) == len(told['map']['x']) == 30 > len(told['items'])
    assert told['map']['number'][:20] == [one['number'] for one in told['items']]
    assert told['names'].keys() >= {str(n) for n in told['map']['number']}


def test_what_each_interest_found(runs):  # noqa: F811
    told = explorer.explorer(runs['interests'], users=5, items=6, data=True)
    assert told['interests'] == 2
    recommender = Recommender(runs['interests'], explain=True)
    for user in told['users']:
        wanted = recommender.user(known_user(recommender, user['id']))
        assert [row[2] for row in user['list']] == [row['interest'] for row in wanted]
    assert explorer.explorer(runs['clicks'], users=5, items=6, data=True) is None


def test_a_run_of_rows_has_a_page_without_lists(runs):  # noqa: F811
    data = data_of(run.page(runs['clicks'], 'test', 5, 5))
    assert data['explorer'] is None
    assert data['measured']['half']['model'].keys() >= {'GAUC/click'}
    assert data['measured']['references'].keys() == {'item rate', 'user rate'}


def clicked(tmp_path, text, actions):
    """The texts of the page after each action, in as much of a browser as it uses."""
    node = shutil.which('node')
    if node is None:
        pytest.skip('no node on PATH')
    file, todo = tmp_path / 'page.html', tmp_path / 'actions.json'
    file.write_text(text)
    todo.write_text(json.dumps(actions))
    stub = __file__.replace('test_report.py', 'page_stub.js')
    done = subprocess.run([node, stub, str(file), str(todo)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def number_of(told, title):
    return next(number for number, (_, name) in told['names'].items() if name == title)


def test_a_mean_over_domains_is_at_no_cutoff(page, tmp_path):
    told = data_of(page[1])
    main = told['measured']['main_metric']
    told['measured']['metrics'][f'{main} macro'] = 0.123
    told['measured']['main_metric'] = f'{main} macro'
    _, start, rest = page[1].partition('<script type="application/json" id="data">')
    text = page[1].replace(rest[: rest.index('</script>')], json.dumps(told).replace('</', '<\\/'))
    assert start and text != page[1]
    assert '.1230' in clicked(tmp_path, text, [])['texts'][0]  # the stub stops at a NaN


def test_clicking_through(page, tmp_path):
    told = data_of(page[1])['explorer']
    title = lambda n: told['names'][str(n)][1]  # noqa: E731
    item, other = told['items'][3], told['users'][4]
    names = {name for name, _ in told['names'].values()}
    assert len(names) > 20
    raw = told['names'][str(told['items'][1]['number'])][0]
    found = clicked(
        tmp_path,
        page[1],
        [
            {'id': 'user', 'event': 'change', 'value': '4'},
            {'id': 'item', 'event': 'change', 'value': title(item['number']).upper()},
            {'id': 'item', 'event': 'change', 'value': str(raw)},
            {'id': 'item', 'event': 'change', 'value': 'nothing like it'},
            {'button': 'light / dark'},
            *(
                {'id': 'map', 'event': 'keydown', 'key': key}
                for key in ('+', 'ArrowLeft', '-', 'ArrowUp', 'Enter')
            ),
            {'button': 'all'},
        ],
    )
    first, user, by_title, by_id, unknown, _, *keys, picked, whole = found['texts']
    said = [text.split('Where it comes from')[0].strip() for text in found['texts']]
    (name,) = (title(n) for n in told['map']['number'] if said[-3].endswith(f' {title(n)}'))
    assert said[-2].count(name) >= 2 and f'id {told["names"][number_of(told, name)][0]}' in picked
    assert 'history' in user and 'recommended' in user and 'nearest' in by_title
    assert whole != picked and said[-1].endswith('nothing under the pointer') and len(keys) == 4
    assert 'popularity' in first and f'User {told["users"][0]["id"]}' in first
    assert f'User {other["id"]}' in user
    for number, *_ in other['list']:
        assert title(number) in user
    assert 'a history of this item alone' in by_title
    for number, *_ in item['near']:
        assert title(number) in by_title
    assert f'id {raw}' in by_id and 'no item here is called nothing like it' in unknown
    figures = [name for tag, name in found['tags'] if tag == 'figure']
    assert {'curve-0', 'by-popularity', 'at-k-ndcg', 'at-k-hr'} <= set(figures)


def test_without_its_data_the_page_says_so(page, tmp_path):
    folder, _ = page
    moved = tmp_path / 'moved'
    shutil.copytree(folder / 'run', moved)
    (folder / 'data').rename(tmp_path / 'gone')
    try:
        result = inside('report', f'--workdir={moved}', f'--output={tmp_path / "page.html"}')
    finally:
        (tmp_path / 'gone').rename(folder / 'data')
    assert result.returncode == 0, result.stderr
    text = (tmp_path / 'page.html').read_text()
    data = data_of(text)
    assert data['measured'] is None and 'not here now' in data['missing']
    assert data['explorer']['users'] == [] and len(data['explorer']['items']) == 30
    (shown,) = clicked(tmp_path, text, [])['texts']
    assert 'No metrics' in shown and 'Nearest items' in shown


def test_mistakes_are_one_line(page, tmp_path):
    folder, _ = page
    words = ('report', f'--workdir={folder / "run"}')
    assert 'is a folder' in inside(*words, f'--output={tmp_path}').error
    assert "unknown split 'middle'" in inside(*words, '--split=middle').error
    assert 'holds no run' in inside('report', f'--workdir={tmp_path}').error
    assert '--workdir=DIR' in inside('report').error
