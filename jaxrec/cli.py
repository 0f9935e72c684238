"""What the commands share: one clear line per user error, and `--json` output."""

import json
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

FLAGS = flags.FLAGS


class UserError(Exception):
    """Something the user can put right; its text is the whole message (one line)."""


def run(main: Callable[[list[str]], None]) -> None:
    """Runs `main(argv)` with absl flags; a user's mistake ends in one line and exit code 2."""
    try:
        app.run(_guarded(main), flags_parser=_parse)
    except KeyboardInterrupt:
        _fail('interrupted')


def say(*text: Any) -> None:
    """Prints for people: standard output, or standard error when --json owns the former."""
    print(*text, file=sys.stderr if _json_wanted() else sys.stdout, flush=True)


def emit(result: dict) -> None:
    """Prints `result` as the last line of standard output if --json was given."""
    if _json_wanted():
        print(json.dumps(result, allow_nan=False), flush=True)


def _json_wanted() -> bool:
    return 'json' in FLAGS and FLAGS.is_parsed() and FLAGS.json


def _guarded(main):
    def wrapped(argv):
        if len(argv) > 1:
            _fail(f'unexpected argument {argv[1]!r}; every option starts with --')
        if not FLAGS['verbosity'].present:  # libraries log dozens of INFO lines
            logging.set_verbosity(logging.WARNING)
        try:
            main(argv)
        except UserError as e:
            _fail(str(e))
        except OSError as e:
            where = f' ({e.filename})' if e.filename else ''
            _fail(f'{e.strerror or e}{where}')

    return wrapped


def _parse(argv):
    try:
        return FLAGS(argv)
    except flags.Error as e:
        _fail(str(e))
    except KeyError as e:  # ml_collections: unknown field of the config
        _fail(
            f'{e.args[0] if e.args else e}; see jaxrec/config.py and the model file for the fields'
        )
    except BrokenPipeError:  # `--help | head`
        raise SystemExit(1) from None
    except (AttributeError, TypeError, ValueError, OSError, ImportError, UserError) as e:
        _fail(f'bad --config: {e}')


def _fail(message: str) -> None:
    print('error: ' + ' '.join(message.split()), file=sys.stderr, flush=True)
    sys.exit(2)
