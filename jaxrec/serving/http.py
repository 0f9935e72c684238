"""The service: JSON in and out over HTTP, for `jaxrec.serve`; needs `jaxrec[serve]`.

    POST /recommend   {'histories': [[id, ..], ..], 'k': 10} -> {'lists': [[{..}, ..], ..], ..}
    POST /score       {'rows': [{'user': id, 'item': id, ..}, ..]} -> {'scores': [{..}, ..], ..}
    GET  /health, /metrics (Prometheus), /openapi.json, /docs (a page to try it)

A mistake is answered with {'error': text}: 400 for what is no JSON, 422 for JSON that asks for what
cannot be, 413 for too large a body, 408 for one that does not come, 503 while as many wait as may.
A client that does not send its headers, or does not read its answer, is cut off.
"""

import asyncio
import contextlib
import pathlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import prometheus_client as prometheus
import pydantic
import uvicorn
from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jaxrec.cli import say
from jaxrec.errors import UserError
from jaxrec.pages import html
from jaxrec.serving.batcher import Batcher, Full
from jaxrec.serving.live import Histories, Live, Rows

_HEADERS = 1 << 16  # bytes of a request's headers
_DISCARDED = 16  # times the largest body: read and thrown away, so that the client reads the answer
_CONNECTIONS = 1024
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # of the histogram
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SCHEMAS = '#/components/schemas/'

Id = Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)] | str
Value = bool | Id | float


class _Form(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)


class Listed(_Form):
    """An item of a list, best first."""

    item: Id
    title: str
    score: float


class Lists(_Form):
    """Lists in the order of the histories."""

    lists: list[list[Listed]]
    unknown: list[Id] = pydantic.Field(description='ids that were left out')
    step: int = pydantic.Field(description='training step of the model that answered')


class Scores(_Form):
    """Probabilities by label, in the order of the rows."""

    scores: list[dict[str, float]]
    step: int = pydantic.Field(description='training step of the model that answered')


class Error(_Form):
    """Why there is no answer."""

    error: str


def forms(most: int, longest: int) -> dict[str, tuple[type, type, type]]:
    """(form of a question, of its answer, `Live`'s question) by what a model can be asked.

    Args:
      most: histories or rows of a question.
      longest: list that may be asked for.
    """

    class Recommend(_Form):
        """A list for every history. Filters are for all of them."""

        histories: list[list[Id]] = pydantic.Field(
            max_length=most, description='item ids, oldest first', examples=[[[]]]
        )
        k: int = pydantic.Field(min(10, longest), ge=1, le=longest, description='items of a list')
        exclude: list[Id] | None = pydantic.Field(None, description='items never to list')
        allow: list[Id] | None = pydantic.Field(None, description='the only items to list')
        where: dict[str, Value | list[Value]] | None = pydantic.Field(
            None, description='the only items to list, by features: a value or several'
        )
        skip_unknown: bool = pydantic.Field(False, description='leave out unknown item ids')

    class Score(_Form):
        """Probabilities for every row; null for what is not known of it."""

        rows: list[dict[str, Any]] = pydantic.Field(
            max_length=most, description='{"user": id, "item": id, field: value}'
        )

    return {'recommend': (Recommend, Lists, Histories), 'score': (Score, Scores, Rows)}


class Service:
    """A web application (ASGI) around a model.

    Args:
      live: the model.
      k: longest list that may be asked for.
      waiting: histories or rows that may wait.
      body: bytes of the largest body.
      patience: seconds for a body to come.
      renew: seconds between looks for a newer checkpoint; 0 = never.
    """

    def __init__(
        self, live: Live, *, k: int, waiting: int, body: int, patience: float, renew: float
    ):
        self._live, self._body, self._patience, self._renew = live, body, patience, renew
        self._ask, self._told, self._question = forms(live.most, k)[live.verb]
        self._metrics = _Metrics(live, lambda: self._batcher.waiting if self._batcher else 0)
        self._waiting, self._batcher = waiting, None
        routes = [
            Route(f'/{live.verb}', self._answer, methods=['POST']),
            Route('/health', self._health),
            Route('/metrics', self._metrics.page),
            Route('/openapi.json', self._document),
            Route('/docs', self._docs),
            Route('/', self._home),
        ]
        self._app = Starlette(
            routes=routes,
            lifespan=self._running,
            exception_handlers={HTTPException: self._refused, Exception: self._failed},
        )

    async def __call__(self, scope, receive, send):
        """ASGI."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        started, path = time.perf_counter(), scope['path']
        path = path if any(path == route.path for route in self._app.routes) else 'other'

        async def counted(message):
            if message['type'] == 'http.response.start':
                self._metrics.answered(path, message['status'], time.perf_counter() - started)
            await send(message)

        await self._app(scope, receive, counted)

    @contextlib.asynccontextmanager
    async def _running(self, app) -> AsyncIterator[None]:
        """While the application runs: one answers, one looks for checkpoints."""
        self._batcher = Batcher(self._timed, most=self._live.most, waiting=self._waiting)
        tasks = [asyncio.create_task(self._batcher.run())]
        if self._renew:
            tasks.append(asyncio.create_task(self._renewing()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _renewing(self):
        while True:
            await asyncio.sleep(self._renew)
            try:
                renewed = await asyncio.to_thread(self._live.renew)
            except Exception as e:  # the model before goes on answering
                self._metrics.renewed('failed')
                say(f'the newest checkpoint cannot be used: {e}')
                continue
            if renewed:
                self._metrics.renewed('done')
                say(f'answering with the checkpoint of step {self._live.step:,}')

    def _timed(self, questions):
        with self._metrics.batch(questions):
            return self._live.answer(questions)

    async def _answer(self, request: Request) -> Response:
        try:
            asked = self._ask.model_validate_json(await self._body_of(request))
        except pydantic.ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            where = '.'.join(map(str, first['loc']))
            status = 400 if first['type'] == 'json_invalid' else 422
            return _error(status, f'{where}: {first["msg"]}' if where else first['msg'])
        question = self._question(**dict(asked))
        size = len(next(iter(dict(asked).values())))
        try:
            return JSONResponse(await self._batcher.ask(question, max(size, 1)))
        except Full:
            raise HTTPException(503, 'too many wait: ask again', {'Retry-After': '1'}) from None
        except UserError as e:
            return _error(422, str(e))

    async def _body_of(self, request: Request) -> bytes:
        """Of a request that comes in time and is not too large."""
        parts, size, close = [], 0, {'Connection': 'close'}
        try:
            async with asyncio.timeout(self._patience):
                async for part in request.stream():
                    size += len(part)
                    if size <= self._body:
                        parts.append(part)
                    elif size > _DISCARDED * self._body:
                        break
        except TimeoutError:
            text = f'the body did not come within {self._patience:g} s'
            raise HTTPException(408, text, close) from None
        except ClientDisconnect:
            raise HTTPException(400, 'the body ends too early', close) from None
        if size > self._body:
            raise HTTPException(413, f'a body has at most {self._body:,} bytes', close)
        return b''.join(parts)

    async def _health(self, request: Request) -> Response:
        del request
        return JSONResponse(
            {'status': 'ok', 'waiting': self._batcher.waiting, **self._live.about()}
        )

    async def _refused(self, request: Request, error: HTTPException) -> Response:
        text = error.detail
        if error.status_code == 404:
            text = f'nothing here: POST /{self._live.verb} is what this model answers, see /docs'
        if error.status_code == 405:
            text = f'{request.method} does not go here, see /docs'
        return _error(error.status_code, text, error.headers)

    async def _failed(self, request: Request, error: Exception) -> Response:
        del request, error  # uvicorn logs it
        return _error(500, 'the question met a bug, which the log of the service tells')

    async def _home(self, request: Request) -> Response:
        del request
        return RedirectResponse('/docs')

    async def _document(self, request: Request) -> Response:
        del request
        return JSONResponse(self.openapi())

    async def _docs(self, request: Request) -> Response:
        del request
        page = pathlib.Path(__file__).parent / 'docs.js'
        return HTMLResponse(html.page('jaxrec', self.openapi(), [page]))

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        ask, told = self._ask, self._told
        kinds = [(one, 'validation') for one in (ask, told, Error)]
        _, schemas = models_json_schema(kinds, ref_template=_SCHEMAS + '{model}')
        because = {
            '400': 'no JSON',
            '408': 'the body does not come',
            '413': f'more than {self._body:,} bytes',
            '422': 'JSON that asks for what cannot be',
            '503': 'too many wait',
        }
        refused = {
            code: {'description': why, 'content': _content(Error)} for code, why in because.items()
        }
        post = {
            'summary': ask.__doc__,
            'requestBody': {'required': True, 'content': _content(ask)},
            'responses': {
                '200': {'description': told.__doc__, 'content': _content(told)},
                **refused,
            },
        }
        get = {'/health': 'What is served.', '/metrics': 'For Prometheus.'}
        plain = {'responses': {'200': {'description': 'always'}}}
        return {
            'openapi': '3.1.0',
            'info': {'title': 'jaxrec', 'version': '1', 'description': self._live.about()['data']},
            'paths': {
                f'/{self._live.verb}': {'post': post},
                **{path: {'get': {'summary': text, **plain}} for path, text in get.items()},
            },
            'components': schemas and {'schemas': schemas['$defs']},
        }


class _Metrics:
    """What Prometheus reads."""

    def __init__(self, live: Live, waiting: Callable[[], int]):
        self._registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self._seconds = prometheus.Histogram(
            'jaxrec_request_seconds',
            'From the headers to the answer',
            ['path', 'status'],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_seconds = prometheus.Histogram(
            'jaxrec_batch_seconds', 'Of a batch', buckets=_SECONDS, registry=registry
        )
        self._batch_questions = prometheus.Histogram(
            'jaxrec_batch_questions', 'Questions of a batch', buckets=_SIZES, registry=registry
        )
        self._renewals = prometheus.Counter(
            'jaxrec_renewals', 'Newer checkpoints', ['result'], registry=registry
        )
        told = {'step': 'Training step of the model', 'waiting': 'Histories or rows that wait'}
        values = {'step': lambda: live.step, 'waiting': waiting}
        for name, text in told.items():
            gauge = prometheus.Gauge(f'jaxrec_{name}', text, registry=registry)
            gauge.set_function(values[name])

    def answered(self, path: str, status: int, seconds: float) -> None:
        self._seconds.labels(path, str(status)).observe(seconds)

    def renewed(self, result: str) -> None:
        self._renewals.labels(result).inc()

    @contextlib.contextmanager
    def batch(self, questions: list):
        self._batch_questions.observe(len(questions))
        with self._batch_seconds.time():
            yield

    async def page(self, request: Request) -> Response:
        del request
        text = prometheus.generate_latest(self._registry)
        return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)


class _Server(uvicorn.Server):
    """Says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self._ready()


def _patient(seconds: float) -> type:
    """A protocol that cuts off who sends no headers, or does not read the answer, for so long."""

    class Protocol(HttpToolsProtocol):
        _reading = _writing = None
        _headers = 0

        def connection_made(self, transport):
            super().connection_made(transport)
            self._reading = self.loop.call_later(seconds, transport.abort)

        def on_message_begin(self):
            super().on_message_begin()
            self._headers = 0
            self._reading.cancel()
            self._reading = self.loop.call_later(seconds, self.transport.abort)

        def on_header(self, name, value):
            super().on_header(name, value)
            self._headers += len(name) + len(value)
            if self._headers > _HEADERS:
                self.transport.abort()

        def on_headers_complete(self):
            self._reading.cancel()
            super().on_headers_complete()

        def pause_writing(self):
            super().pause_writing()
            self._writing = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self):
            super().resume_writing()
            if self._writing:
                self._writing.cancel()

        def connection_lost(self, exc):
            super().connection_lost(exc)
            self._reading.cancel()
            if self._writing:
                self._writing.cancel()

    return Protocol


def bound(host: str, port: int) -> socket.socket:
    """A socket of its own at an address; nobody is let in yet.

    Raises:
      UserError: the address is taken or not of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        one = socket.socket(family, kind)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(address)
    except OSError as e:
        raise UserError(f'cannot serve at --host={host} --port={port}: {e.strerror}') from e
    return one


def server(service: Service, *, patience: float, ready: Callable[[], None]) -> uvicorn.Server:
    """A server whose `run([socket])` serves until SIGTERM or Ctrl-C, and answers who has asked.

    Args:
      service: the application.
      patience: seconds for headers to come, and for an answer to be read.
      ready: called when clients are let in.
    """
    config = uvicorn.Config(
        service,
        http=_patient(patience),
        ws='none',
        lifespan='on',
        log_level='warning',
        access_log=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=round(2 * patience) + 1,
        backlog=_CONNECTIONS,
    )
    return _Server(config, ready)


def _content(form):
    return {'application/json': {'schema': {'$ref': _SCHEMAS + form.__name__}}}


def _error(status, text, headers=None):
    return JSONResponse({'error': text}, status, headers)
