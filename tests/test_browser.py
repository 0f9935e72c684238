"""Our pages in a real browser: clicks, keys, a phone, many items; by hand.

Needs Chromium on the PATH, and `pip install playwright`, of which no browser is downloaded.
"""

import json
import shutil
import time

import numpy as np
import pytest
from test_alone import experiment_of, histories
from test_export import runs  # noqa: F401 (a fixture)
from test_report import data_of
from test_serve import service  # noqa: F401 (a fixture)

from jaxrec.pages import html
from jaxrec.reports import explorer, run
from jaxrec.training.loop import fit
from jaxrec.training.restore import load_trained

pytestmark = pytest.mark.slow
FLAGS = ('--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run')
FLAGS += ('--disable-background-networking', '--disable-component-update', '--disable-sync')
MANY = 100_000


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    chromium = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
    if chromium is None:
        pytest.skip('no Chromium on the PATH')
    with playwright.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield one
        one.close()


@pytest.fixture
def opened(browser):
    """A page of a file; anything that goes wrong in it fails the test."""
    wrong, contexts = [], []

    def open_(path, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on('pageerror', lambda error: wrong.append(str(error)))
        page.on('console', lambda line: line.type == 'error' and wrong.append(line.text))
        page.goto(path if '://' in str(path) else f'file://{path}')
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(scope='module')
def report(runs, tmp_path_factory):  # noqa: F811
    """(file, data) of the page of a model with two interests."""
    folder = tmp_path_factory.mktemp('page')
    made = histories(True)
    made.save(folder / 'data' / 'columns')
    fit(experiment_of(folder / 'data'), folder / 'run')
    trained = load_trained(folder / 'run')
    text = run.page(trained, 'test', 8, 20, MANY)
    told = data_of(text)
    told['explorer'] = json.loads(
        json.dumps(explorer.explorer(runs['interests'], 8, 20, True, MANY))
    )
    file = folder / 'report.html'
    scripts = [run._HERE / name for name in ('map.js', 'run.js')]
    file.write_text(html.page(told['title'], told, scripts))
    return file, told['explorer']


def test_clicks(report, opened):
    file, told = report
    page = opened(file, viewport={'width': 1200, 'height': 900})
    assert 'interest 2' in page.inner_text('#map-legend').lower()
    page.select_option('#user', '4')
    assert f'User {told["users"][4]["id"]}' in page.inner_text('#of')
    page.locator('#of button').first.click()
    assert 'Nearest items' in page.inner_text('#of')
    number = told['items'][3]['number']
    page.fill('#item', told['names'][str(number)][1])
    page.press('#item', 'Enter')
    assert f'id {told["names"][str(number)][0]}'.strip() in page.inner_text('#of')
    # the item's own dot on the map: a click on it says the same
    at = told['map']['number'].index(told['map']['number'][7])
    box = page.locator('#map').bounding_box()
    unit = min(box['width'], box['height']) * 0.94 / 10000
    x = box['width'] / 2 + (told['map']['x'][at] - 5000) * unit
    y = box['height'] / 2 + (5000 - told['map']['y'][at]) * unit
    page.locator('#map').scroll_into_view_if_needed()
    page.locator('#map').click(position={'x': x, 'y': y})
    wanted = told['names'][str(told['map']['number'][at])][1]
    assert wanted in page.inner_text('#map-said') and wanted in page.inner_text('#of')
    page.get_by_text('light / dark').click()
    assert page.evaluate('document.documentElement.dataset.theme') == 'dark'


def test_by_keys_alone(report, opened):
    file, told = report
    page = opened(file)
    page.keyboard.press('Tab')
    seen = []
    for _ in range(60):
        seen.append(page.evaluate('document.activeElement.id || document.activeElement.tagName'))
        if seen[-1] == 'map':
            break
        page.keyboard.press('Tab')
    assert {'user', 'item', 'map'} <= set(seen)
    for key in ('+', 'ArrowLeft', 'ArrowUp'):
        page.keyboard.press(key)
    name = page.inner_text('#map-said')
    assert name in {title for _, title in told['names'].values()}
    page.keyboard.press('Enter')
    assert name in page.inner_text('#of')
    page.keyboard.press('0')
    assert 'nothing' in page.inner_text('#map-said')


def test_on_a_phone(report, opened, tmp_path):
    page = opened(report[0], viewport={'width': 390, 'height': 844}, has_touch=True, is_mobile=True)
    wide = page.evaluate('document.documentElement.scrollWidth')
    page.screenshot(path=tmp_path / 'phone.png', full_page=True)
    assert wide <= 390, 'nothing is cut off or scrolls sideways'
    page.locator('#map').scroll_into_view_if_needed()
    page.locator('#map').tap()
    page.get_by_label('zoom in').tap()


def test_a_hundred_thousand_items_open_within_a_second(report, opened, tmp_path):
    """From the start of the navigation to the drawn map, as the page itself counts."""
    file, told = report
    rng = np.random.default_rng(0)
    data = data_of(file.read_text())
    vectors = rng.normal(size=(MANY, 8)).astype(np.float32)
    known = told['map']['number']
    numbers = [*known, *range(1000, 1000 + MANY - len(known))]
    data['explorer']['map'] = {**explorer.plane(vectors), 'number': numbers}
    names = {str(n): [f'B00{n:07}', f'A title of usual length, number {n}'] for n in numbers}
    data['explorer']['names'] = {**names, **told['names']}
    scripts = [run._HERE / name for name in ('map.js', 'run.js')]
    (tmp_path / 'many.html').write_text(html.page('many', data, scripts))
    took = []
    for _ in range(3):
        page = opened(tmp_path / 'many.html', viewport={'width': 1200, 'height': 900})
        took.append(page.evaluate('performance.getEntriesByType("navigation")[0].loadEventEnd'))
        started = time.perf_counter()
        page.fill('#item', 'number 50000')
        page.press('#item', 'Enter')
        assert 'number 50000' in page.inner_text('#of')
        found = time.perf_counter() - started
    size = (tmp_path / 'many.html').stat().st_size / 1e6
    print(f'{size:.1f} MB, opened in {took} ms, an item found in {found * 1e3:.0f} ms')
    assert min(took) < 1000


def test_the_page_of_the_service(service, opened):  # noqa: F811
    host, port = service.address
    page = opened(f'http://{host}:{port}/docs')
    page.fill('textarea', '{"histories": [[5, 8]], "k": 2}')
    page.get_by_text('send POST /recommend').click()
    page.wait_for_function("document.getElementById('answer-recommend').textContent.length > 9")
    shown = page.inner_text('#answer-recommend')
    assert shown.startswith('200 in') and '"lists"' in shown
