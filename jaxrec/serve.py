r"""Serves a run over HTTP: lists of a model of next events, scores of a click model; JSON.

python -m jaxrec.serve --workdir=DIR --port=8000          (pip install 'jaxrec[serve]')
curl -d '{"histories": [["item 1", "item 2"]], "k": 5}' http://127.0.0.1:8000/recommend
curl -d '{"rows": [{"user": 7, "item": 12, "hour": 20}]}' http://127.0.0.1:8000/score

/docs shows what can be asked and lets it be tried, /openapi.json says the same to programs,
/health what is served, /metrics how it goes (Prometheus). Questions that come together are answered
together; when --waiting histories or rows wait, others are told to ask again (503). Everything is
compiled before the first question.

While a training of the run goes on, or is done anew, its newest checkpoint is taken within
--renew_seconds; until it is ready, the one before answers. SIGTERM and Ctrl-C let nobody in any
more, answer who has asked, and end.

It is reached from this machine alone unless --host says otherwise. It knows no users and no
encryption: put what does before it.
"""

import importlib.util

from absl import flags

from jaxrec import cli
from jaxrec.cli import say
from jaxrec.devices import programs
from jaxrec.errors import UserError
from jaxrec.malloc import keep_freed
from jaxrec.serving.live import Live

FLAGS = flags.FLAGS
_NEEDS = ('uvicorn', 'starlette', 'pydantic', 'prometheus_client', 'httptools')


def define_flags() -> None:
    """Not done on import, so that several commands can be imported together."""
    flags.DEFINE_string('workdir', None, 'Folder of the run.')
    flags.DEFINE_integer(
        'port', 8000, 'To listen at; 0 = one that is free, which is told.', 0, 65535
    )
    flags.DEFINE_string('host', '127.0.0.1', 'Address to listen at; 0.0.0.0 = all of the machine.')
    flags.DEFINE_string('checkpoint', 'best', 'best (by validation) or last.')
    flags.DEFINE_integer('k', 100, 'Longest list that may be asked for.', 1)
    flags.DEFINE_integer('batch_users', 64, 'Histories that go to the device at once.', 1)
    flags.DEFINE_integer('waiting', 4096, 'Histories or rows that may wait.', 1)
    flags.DEFINE_integer('body_kib', 1024, 'Largest body of a question, KiB.', 1)
    flags.DEFINE_float('patience', 10.0, 'Seconds that a slow client gets.', 0.1)
    flags.DEFINE_float('renew_seconds', 10.0, 'Between looks for a newer checkpoint; 0 = never.', 0)
    flags.DEFINE_bool('json', False, 'Print how it ended as one JSON object, the last line.')


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    programs.keep()
    if not FLAGS.workdir:
        raise UserError('give --workdir=DIR, the folder of a run (see --help)')
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: pip install 'jaxrec[serve]'")
    from jaxrec.serving import http

    at = http.bound(FLAGS.host, FLAGS.port)
    live = Live(FLAGS.workdir, FLAGS.checkpoint, k=FLAGS.k, batch=FLAGS.batch_users)
    keep_freed()
    service = http.Service(
        live,
        k=FLAGS.k,
        waiting=FLAGS.waiting,
        body=FLAGS.body_kib << 10,
        patience=FLAGS.patience,
        renew=FLAGS.renew_seconds,
    )
    host, port = at.getsockname()[:2]
    url = f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'
    ready = lambda: say(f'step {live.step:,} of {FLAGS.workdir} answers at {url} (see {url}/docs)')  # noqa: E731
    http.server(service, patience=FLAGS.patience, ready=ready).run([at])


if __name__ == '__main__':
    define_flags()
    cli.run(main)
