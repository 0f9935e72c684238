"""The service: answers of many clients against a full sort, mistakes, slow clients, checkpoints."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time

import jax
import numpy as np
import pytest
from runs import inside
from test_recommend import ITEMS, make_table
from test_scorer import trained as ranker  # noqa: F401 (a fixture)
from test_serving import GENRES, HISTORIES, YEARS, raw, slow, trained_on

from jaxrec.errors import UserError
from jaxrec.serving import live
from jaxrec.serving.batcher import Batcher, Full
from jaxrec.serving.export import drawn_rows
from jaxrec.serving.scorer import Scorer

web = pytest.importorskip('jaxrec.serving.http', reason="needs '.[serve]'")
parser = pytest.importorskip('prometheus_client.parser', reason="needs '.[serve]'")
PATIENCE = 1.0


class Running:
    """A service of models that the test hands out, on a port of its own."""

    def __init__(self, trained):
        self.trained, self.standing = trained, 1

    def opened(self, workdir, checkpoint):
        return self.trained

    def ask(self, method, path, body=None, headers=None):
        """(status, JSON or text, headers)."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            text, told = answer.read().decode(), dict(answer.getheaders())
        return answer.status, json.loads(text) if 'json' in told['content-type'] else text, told

    def post(self, question, path='/recommend'):
        body = question if isinstance(question, str) else json.dumps(question)
        status, told, _ = self.ask('POST', path, body)
        return status, told

    def metrics(self):
        """{(name, labels by value): value}."""
        families = parser.text_string_to_metric_families(self.ask('GET', '/metrics')[1])
        samples = [sample for family in families for sample in family.samples]
        return {(s.name, *sorted(s.labels.values())): s.value for s in samples}


@pytest.fixture(scope='module')
def service(tmp_path_factory):
    """Lists of the model whose query is the newest item's row; looks for another all the time."""
    before = jax.sharding.get_mesh()
    jax.set_mesh(jax.make_mesh((1, 1), ('data', 'model'), devices=jax.devices()[:1]))
    one = Running(trained_on(tmp_path_factory.mktemp('run')))
    jax.set_mesh(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, 'load_trained', one.opened)
        patch.setattr(live, 'standing', lambda *run: one.standing)
        one.live = live.Live('run', 'best', k=20, batch=8)
        at, ready = web.bound('127.0.0.1', 0), threading.Event()
        options = {'waiting': 12, 'body': 4096, 'patience': PATIENCE, 'renew': 0.05}
        one.service = web.Service(one.live, k=20, **options)
        server = web.server(one.service, patience=PATIENCE, ready=ready.set)
        one.address = at.getsockname()
        thread = threading.Thread(target=server.run, args=([at],))
        thread.start()
        assert ready.wait(60)
        yield one
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def listed(told):
    return [[(row['item'], row['score']) for row in rows] for rows in told['lists']]


def test_many_clients_get_the_lists_of_a_full_sort(service):
    """At once, with filters of their own; each its own answer."""
    few, odd = [2, 5, 7, 9, 30, 31, 40], list(range(1, ITEMS + 1, 2))
    where = [n + 1 for n in range(ITEMS) if {1, 3} & set(GENRES[n]) and YEARS[n] == 1992]
    kinds = [
        ({}, (), None),
        ({'k': 3}, (), None),
        ({'exclude': raw(few)}, few, None),
        ({'allow': raw(odd), 'k': 20}, (), odd),
        ({'where': {'genres': [1, 3], 'year': 1992}}, (), where),
        ({'where': {'year': [1990, 1992]}, 'allow': raw(few), 'exclude': raw([5])}, [5], None),
    ]
    years = [n + 1 for n in range(ITEMS) if YEARS[n] in (1990, 1992)]
    kinds[-1] = (*kinds[-1][:2], [n for n in few if n in years])

    def ask(n):
        options, exclude, allow = kinds[n % len(kinds)]
        histories = HISTORIES[n % 6 : n % 6 + 1 + n % 3]
        question = {'histories': [raw(one) for one in histories], **options}
        while (found := service.post(question))[0] == 503:  # more wait than may
            time.sleep(0.01)
        wanted = [slow(one, options.get('k', 10), exclude, allow) for one in histories]
        return found, wanted

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for (status, told), wanted in pool.map(ask, range(72)):
            assert status == 200 and listed(told) == wanted
            assert told['unknown'] == [] and told['step'] == 12
    assert service.post({'histories': []}) == (200, {'lists': [], 'unknown': [], 'step': 12})


@pytest.mark.parametrize(
    ('question', 'status', 'text'),
    [
        ('{"histories": [[5, ', 400, 'Invalid JSON'),
        ('', 400, 'Invalid JSON'),
        ('\x00\xff', 400, 'Invalid JSON'),
        ('"\\ud800"', 400, 'Invalid JSON'),
        ('[' * 3000, 400, 'Invalid JSON'),
        ('[]', 422, 'object'),
        ({}, 422, 'histories: Field required'),
        ({'histories': [5]}, 422, 'histories.0'),
        ({'histories': [[5.5]]}, 422, 'histories.0.0'),
        ({'histories': [[True]]}, 422, 'histories.0.0'),
        ('{"histories": [[1' + '0' * 400 + ']]}', 422, 'histories.0.0'),
        ({'histories': [[]] * 9}, 422, 'at most 8'),
        ({'histories': [[5]], 'k': 0}, 422, 'k: Input should be greater'),
        ({'histories': [[5]], 'k': 21}, 422, 'k: Input should be less than or equal to 20'),
        ({'histories': [[5]], 'k': 10**30}, 422, 'k:'),
        ({'histories': [[5]], 'k': '3'}, 422, 'k:'),
        ({'histories': [[5]], 'limit': 3}, 422, 'limit: Extra inputs'),
        ({'histories': [[5, 6]]}, 422, 'item 6 is not known; "skip_unknown": true'),
        ({'histories': [['5\x00']]}, 422, 'is not known'),
        ({'histories': [[5]], 'exclude': [6]}, 422, 'item 6 is not known'),
        ({'histories': [[5]], 'allow': ['x']}, 422, "item 'x' is not known"),
        ({'histories': [[5]], 'where': {'colour': 1}}, 422, "no column 'colour' of items"),
        ({'histories': [[5]], 'where': {'self': 1}}, 422, "no column 'self' of items"),
        ({'histories': [[5]], 'where': {'year': {}}}, 422, 'where.year'),
    ],
)
def test_mistakes_are_told_and_spoil_nothing(service, question, status, text):
    found, told = service.post(question)
    assert found == status and text in told['error'], told
    assert service.post({'histories': [[8]], 'k': 1})[0] == 200


def test_unknown_items_may_be_left_out(service):
    question = {'histories': [[5, 'new', 8]], 'exclude': [6, 11], 'skip_unknown': True}
    status, told = service.post(question)
    assert status == 200 and told['unknown'] == ['new', 6]
    assert listed(told) == [slow([1, 2], 10, [3])]


def test_one_mistake_in_a_batch_is_its_own(service):
    questions = [live.Histories([[5]]), live.Histories([[6]]), live.Histories([[None]])]
    good, bad, odd = service.live.answer(questions)
    assert listed(good) == [slow([1], 10)]
    assert isinstance(bad, UserError) and isinstance(odd, UserError)


def test_who_asks_for_the_same_items_is_answered_together(service):
    asked = [live.Histories([[5]], where={'year': 1992}, exclude=[n]) for n in (8, 11)]
    other = live.Histories([[5]], where={'year': 1990})
    first, second, third = (service.live._now.prepared(q)[0][0] for q in (*asked, other))
    assert first.allowed is second.allowed is not third.allowed
    assert first.unwanted.tolist() == [1, 2] and second.unwanted.tolist() == [1, 3]


def test_paths_and_methods(service):
    for method, path, status, text in (
        ('GET', '/recommend', 405, 'GET does not go here'),
        ('POST', '/score', 404, 'POST /recommend is what this model answers'),
        ('GET', '/x/../y', 404, '/docs'),
    ):
        found, told, _ = service.ask(method, path)
        assert found == status and text in told['error']
    status, told, _ = service.ask('GET', '/health')
    assert status == 200 and told['status'] == 'ok' and told['where'] == ['genres', 'year']
    assert (told['items'], told['k'], told['answers']) == (ITEMS, 20, 'recommend')


def connected(service):
    one = socket.create_connection(service.address)
    one.settimeout(20)
    return one


def everything(one):
    """What comes until the service closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := one.recv(65536):
            parts.append(part)
    return b''.join(parts)


def test_bodies_too_large(service):
    """By their header, and in chunks that do not say so before."""
    text = json.dumps({'histories': [[5] * 3000]})
    assert service.post(text) == (413, {'error': 'a body has at most 4,096 bytes'})
    with connected(service) as one:
        one.sendall(b'POST /recommend HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n')
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(200):
                one.sendall(b'400\r\n' + b'x' * 1024 + b'\r\n')
        assert everything(one).startswith(b'HTTP/1.1 413')


def test_slow_clients_are_cut_off(service):
    head = b'POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n'
    with contextlib.ExitStack() as stack:
        silent, headers, body, gone = (stack.enter_context(connected(service)) for _ in range(4))
        started = time.monotonic()
        headers.sendall(head)
        body.sendall(head + b'\r\n{"histo')
        gone.sendall(head + b'\r\n{"histo')
        gone.close()
        assert service.post({'histories': [[5]]})[0] == 200  # nobody else waits
        told = everything(body)
        assert told.startswith(b'HTTP/1.1 408') and b'did not come within 1 s' in told
        assert everything(silent) == everything(headers) == b''
        assert PATIENCE * 0.9 < time.monotonic() - started < 15 * PATIENCE
    with connected(service) as one:  # headers without end
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            one.sendall(head)
            for n in range(300):
                one.sendall(b'x%d: ' % n + b'y' * 1000 + b'\r\n')
                time.sleep(0.001)
        assert everything(one) == b''


def test_more_than_may_wait_are_told_to_ask_again(service, monkeypatch):
    """Who waits is answered all the same."""
    go, answer = threading.Event(), service.live.answer

    def held(questions):
        assert go.wait(60)
        return answer(questions)

    monkeypatch.setattr(service.live, 'answer', held)
    question = {'histories': [[5]] * 4, 'k': 2}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = pool.submit(service.post, question)
        until(lambda: service.ask('GET', '/health')[1]['waiting'] == 0)
        waiting = [pool.submit(service.post, question) for _ in range(3)]
        until(lambda: service.ask('GET', '/health')[1]['waiting'] == 12)
        status, told, headers = service.ask('POST', '/recommend', json.dumps(question))
        assert status == 503 and 'ask again' in told['error'] and headers['retry-after'] == '1'
        go.set()
        for one in [first, *waiting]:
            assert one.result()[0] == 200 and listed(one.result()[1]) == [slow([1], 2)] * 4


def until(true):
    due = time.monotonic() + 60
    while not true():
        assert time.monotonic() < due
        time.sleep(0.02)


def test_a_bug_is_told_without_its_traceback(service, monkeypatch):
    def broken(questions):
        raise ZeroDivisionError('secret')

    with monkeypatch.context() as patch:
        patch.setattr(service.live, 'answer', broken)
        status, told = service.post({'histories': [[5]]})
    assert status == 500 and 'secret' not in json.dumps(told)
    assert service.post({'histories': [[5]]})[0] == 200


def test_a_newer_checkpoint_without_a_dropped_question(service, monkeypatch):
    """While it is opened the one before answers; every answer is of the step that it names."""
    before, go, opened = service.trained, threading.Event(), service.opened
    other = dataclasses.replace(before, params={'table': -before.params['table']}, step=13)

    def waits(workdir, checkpoint):
        assert go.wait(60)
        return opened(workdir, checkpoint)

    wanted = {12: slow([1, 2], 10), 13: negative([1, 2], 10)}
    question, stop, steps = {'histories': [raw([1, 2])]}, threading.Event(), []

    def client():
        while not stop.is_set():
            status, told = service.post(question)
            assert status == 200 and listed(told) == [wanted[told['step']]]
            steps.append(told['step'])

    monkeypatch.setattr(live, 'load_trained', waits)
    try:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            clients = [pool.submit(client) for _ in range(3)]
            service.trained, service.standing = other, 2
            until(lambda: len(steps) > 20)
            assert set(steps) == {12}
            go.set()
            until(lambda: 13 in steps[-3:])
            stop.set()
            for one in clients:
                one.result()
        assert steps == sorted(steps) or steps.count(12) > 20
        assert service.metrics()['jaxrec_step',] == 13
        service.trained, service.standing = None, 3  # one that cannot be used
        until(lambda: service.metrics().get(('jaxrec_renewals_total', 'failed')) == 1)
        assert listed(service.post(question)[1]) == [wanted[13]]
    finally:
        stop.set()
        go.set()
        service.trained, service.standing = before, 4
        until(lambda: service.post(question)[1].get('step') == 12)


def negative(history, k):
    """`slow` of the model whose scores are all negated twice: queries and items."""
    table = -make_table().astype(np.float64)
    scores = table @ table[history[-1]]
    best = sorted(set(range(1, ITEMS + 1)) - set(history), key=lambda i: (-scores[i], i))[:k]
    return list(zip(raw(best), scores[best], strict=True))


def test_what_prometheus_reads(service):
    before = service.metrics()
    for _ in range(3):
        service.post({'histories': [[5]]})
    service.post('x')
    service.ask('GET', '/nothing')
    after = service.metrics()
    count = lambda *labels: (  # noqa: E731
        after.get(('jaxrec_request_seconds_count', *labels), 0)
        - before.get(('jaxrec_request_seconds_count', *labels), 0)
    )
    assert count('/recommend', '200') == 3 and count('/recommend', '400') == 1
    assert count('404', 'other') == 1
    assert after['jaxrec_waiting',] == 0 and after['process_resident_memory_bytes',] > 1e7


def test_the_document_says_what_is_answered(service):
    """Every reference leads somewhere; limits are those that hold."""
    status, document, _ = service.ask('GET', '/openapi.json')
    assert status == 200 and document['openapi'].startswith('3.1')
    schemas, text = document['components']['schemas'], json.dumps(document)
    for part in text.split('"$ref": "')[1:]:
        assert part.split('"')[0].removeprefix('#/components/schemas/') in schemas
    asked = schemas['Recommend']['properties']
    assert asked['k']['maximum'] == 20 and asked['histories']['maxItems'] == 8
    post = document['paths']['/recommend']['post']
    assert post['responses'].keys() == {'200', '400', '408', '413', '422', '503'}


def test_the_page_of_the_service(service, tmp_path):
    """In as much of a browser as it uses; the click itself: test_browser."""
    if (node := shutil.which('node')) is None:
        pytest.skip('no node on PATH')
    (tmp_path / 'page.html').write_text(service.ask('GET', '/docs')[1])
    (tmp_path / 'actions.json').write_text('[]')
    stub = __file__.replace('test_serve.py', 'page_stub.js')
    words = [node, stub, str(tmp_path / 'page.html'), str(tmp_path / 'actions.json')]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (shown,) = json.loads(done.stdout)['texts']
    for text in ('POST /recommend', 'list of list of integer or string', '≤ 20', 'skip_unknown'):
        assert text in shown


def test_scores_of_rows(ranker, monkeypatch):  # noqa: F811
    """Of questions that come together, one of them wrong."""
    monkeypatch.setattr(live, 'load_trained', lambda *run: ranker)
    one, scorer = live.Live('run', 'best', k=5, batch=8), Scorer(ranker)
    rows = drawn_rows(scorer.catalogue, 9)
    asked = [rows[:4], [], [{'user': None}], rows[4:]]
    first, none, wrong, last = one.answer([live.Rows(some) for some in asked])
    assert none == {'scores': [], 'step': 0} and "row 1 has no 'item'" in str(wrong)
    found = [list(row.values()) for row in first['scores'] + last['scores']]
    wanted = [list(row.values()) for row in scorer.score(rows)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert one.about()['labels'] == ['click', 'like']
    assert one.about()['fields'] == ['tab', 'watched'] and not one.renew()


def test_batches():
    """Weights, order, what is wrong with one and with all, and who does not wait any more."""
    seen = []

    def answer(questions):
        time.sleep(0.05)
        seen.append(list(questions))
        if 'all' in questions:
            raise ValueError('all')
        return [KeyError(q) if q == 'bad' else q * 2 for q in questions]

    async def main():
        batcher = Batcher(answer, most=4, waiting=9)
        running = asyncio.create_task(batcher.run())
        ask = lambda *words: asyncio.create_task(batcher.ask(*words))  # noqa: E731
        first = ask('a', 1)
        await asyncio.sleep(0.02)
        tasks = [ask('b', 2), ask('bad', 1), ask('c', 2), ask('d', 1), ask('e', 3)]
        await asyncio.sleep(0)
        assert batcher.waiting == 9
        with pytest.raises(Full):
            await batcher.ask('f', 1)
        tasks[3].cancel()
        found = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [found[n] for n in (0, 1, 3, 5)] == ['aa', 'bb', 'cc', 'ee']
        assert isinstance(found[2], KeyError) and batcher.waiting == 0
        assert seen[:2] == [['a'], ['b', 'bad']] and all('d' not in some for some in seen)
        assert await batcher.ask('heavy', 99) == 'heavyheavy'
        with pytest.raises(ValueError, match='all'):
            await batcher.ask('all', 1)
        assert await batcher.ask('g', 1) == 'gg'
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_mistakes_of_the_command_are_one_line(service, tmp_path, monkeypatch):
    assert '--workdir=DIR' in inside('serve').error
    taken = f'--port={service.address[1]}'
    assert 'cannot serve at' in inside('serve', f'--workdir={tmp_path}', taken).error
    monkeypatch.undo()
    with monkeypatch.context() as bare:
        bare.setattr('importlib.util.find_spec', lambda name: None)
        error = inside('serve', f'--workdir={tmp_path}', '--port=0').error
    assert "pip install 'jaxrec[serve]'" in error
