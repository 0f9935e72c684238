"""What the commands share: one clear line however they end, exit codes, and `--json` output.

Exit codes: 0 finished; MISTAKE of the user; BUG, with its traceback; stopped by a signal: AGAIN if
the same command goes on from what is saved, else 128 + the signal's number. With --json the last
line of standard output is an object in each of these cases; where a command has not finished, its
'exit' is the code, beside 'error' or 'stopped'.
"""

import ast
import contextlib
import json
import linecache
import logging as python_logging
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

from absl import app, flags, logging

from jaxrec.config import RENAMED
from jaxrec.errors import BUG, MISTAKE, Stopped, UserError
from jaxrec.malloc import share_one_heap

FLAGS = flags.FLAGS
_silent = False


def run(main: Callable[[list[str]], None]) -> None:
    """Runs `main(argv)` with absl flags; mistakes and stops end in one line and an exit code."""
    before = signal.signal(signal.SIGTERM, _stop)
    share_one_heap()
    _quiet_savers()
    try:
        app.run(_guarded(main), flags_parser=_parse)
    except (KeyboardInterrupt, Stopped) as e:  # while the flags were read
        _end(e)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def goes_on() -> Iterator[None]:
    """Around work of which finished parts are kept: a stop in it leaves with AGAIN."""
    try:
        yield
    except (KeyboardInterrupt, Stopped) as e:
        raise Stopped(f'{verdict(e)[0]}; the same command goes on from here') from e


def define_run_flags() -> None:
    """Flags of a command that trains an experiment: --config, --workdir, --json."""
    from ml_collections import config_flags  # not for the commands that train nothing
    from ml_collections.config_flags import tuple_parser

    class Tuples(tuple_parser.TupleParser):
        """--config.model.compress= is the empty tuple."""

        def parse(self, argument):
            return () if argument == '' else super().parse(argument)

    config_flags.register_flag_parser_for_type(tuple, Tuples())
    config_flags.DEFINE_config_file(
        'config', None, 'Experiment file, optionally with an argument: experiments/x.py[:arg].'
    )
    flags.DEFINE_string('workdir', None, 'Folder of the run; an unfinished run there goes on.')
    flags.DEFINE_bool('json', False, 'Print a JSON summary as the last line of standard output.')


def given_run() -> tuple[Any, pathlib.Path]:
    """The experiment of --config and the folder of --workdir; UserError if one is missing."""
    if FLAGS.config is None or not FLAGS.workdir:
        raise UserError('give --config=experiments/X.py and --workdir=DIR (see --help)')
    return given_experiment(), pathlib.Path(FLAGS.workdir)


def given_experiment() -> Any:
    """The experiment of --config; UserError if there is none."""
    if FLAGS.config is None:
        raise UserError('give --config=experiments/X.py (see --help)')
    return FLAGS.config


def be_silent() -> None:
    """Makes `say` and `emit` do nothing: in all processes of a run but the first."""
    global _silent
    _silent = True


def people() -> TextIO:
    """Where text for people goes: standard output, or standard error when --json owns that."""
    return sys.stderr if _json_wanted() else sys.stdout


def say(*text: Any) -> None:
    """Prints a line for people."""
    if not _silent:
        print(*text, file=people(), flush=True)


def emit(result: dict) -> None:
    """Prints `result` as the last line of standard output if --json was given."""
    if _json_wanted() and not _silent:
        print(json.dumps(result, allow_nan=False), flush=True)


def verdict(error: BaseException) -> tuple[str, int]:
    """(what to tell in one line, exit code) of what a command ended with; ('', BUG) of a bug."""
    if isinstance(error, UserError):
        return str(error), MISTAKE
    if isinstance(error, OSError):
        where = f' ({error.filename})' if error.filename else ''
        return f'{error.strerror or error}{where}', MISTAKE
    if isinstance(error, Stopped):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return 'by SIGINT', 128 + signal.SIGINT
    return '', BUG


def tell(text: str, code: int, kind: str = 'error') -> None:
    """One line on standard error, {kind: line, 'exit': code} if --json was given."""
    line = ' '.join(text.split())
    print(f'{kind}: {line}', file=sys.stderr, flush=True)
    emit({kind: line, 'exit': code})


def _end(error: BaseException) -> NoReturn:
    """Ends the command: of a bug with its traceback, else with a line."""
    if isinstance(error, BrokenPipeError):  # `recommend .. | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    text, code = verdict(error)
    if code == BUG:
        emit({'error': ' '.join(f'{type(error).__name__}: {error}'.split()), 'exit': BUG})
        raise error
    tell(text, code, 'error' if code == MISTAKE else 'stopped')
    sys.exit(code)


def _stop(number, frame):
    raise Stopped(f'by {signal.Signals(number).name}', 128 + number)


def _quiet_savers() -> None:
    """Leaves out the tracebacks of a failed save (orbax): whoever waits for it is told."""
    for name in ('absl', 'asyncio'):
        python_logging.getLogger(name).addFilter(_not_of_savers)
    sys.unraisablehook = _unraisable


def _not_of_savers(record: python_logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    frames = traceback.walk_tb(error.__traceback__) if error else ()
    places = [record.pathname, *(frame.f_code.co_filename for frame, _ in frames)]
    return error is None or not any('/orbax/' in place for place in places)


def _unraisable(found: Any) -> None:
    code = getattr(found.object, 'cr_code', None)  # of a coroutine that nobody awaits any more
    of_saver = code is not None and '/orbax/' in code.co_filename
    if not of_saver and str(found.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(found)


def _json_wanted() -> bool:
    if FLAGS.is_parsed():
        return 'json' in FLAGS and FLAGS.json
    return any(word in ('--json', '-json', '--json=true') for word in sys.argv)


def _guarded(main):
    def wrapped(argv):
        if len(argv) > 1:
            _end(UserError(f'unexpected argument {argv[1]!r}; every option starts with --'))
        if not FLAGS['verbosity'].present:  # libraries log dozens of INFO lines
            logging.set_verbosity(logging.WARNING)
        try:
            main(argv)
        except (Exception, KeyboardInterrupt, Stopped) as e:
            _end(e)

    return wrapped


def _parse(argv):
    if 'config' in FLAGS:  # ml_collections reads the list itself
        argv[:] = map(_with_positions, argv)
    if 'task' in FLAGS:  # --task.protocol=full is a value of the flag --task
        argv = [re.sub(r'^--?task\.', '--task=', word) for word in argv]
    try:
        if 'config' in FLAGS:
            _check_config(argv)
        return FLAGS(argv)
    except UserError as e:
        _end(e)
    except BrokenPipeError:  # `--help | head`
        raise SystemExit(1) from None
    except Exception as e:  # the --config file is the user's program: anything may come out of it
        _end(UserError(_config_error(e)))


def _with_positions(word: str) -> str:
    """--config.model.contrast.0.weight=.1, as everywhere else, as ml_collections reads it."""
    name, equals, value = word.partition('=')
    if re.match('--?config[.]', name):
        name = re.sub(r'[.](\d+)(?=[.]|$)', r'[\1]', name)
    return name + equals + value


def _check_config(argv: list[str]) -> None:
    """Raises UserError for a --config that is no experiment file, or takes no argument.

    A file that cannot be read as Python is left to ml_collections, which says where.
    """
    for at, word in enumerate(argv):
        name, equals, value = word.lstrip('-').partition('=')
        if name != 'config' or not word.startswith('-'):
            continue
        file, colon, _ = (value if equals else ' '.join(argv[at + 1 : at + 2])).partition(':')
        path = pathlib.Path(file)
        if not path.exists():
            raise UserError(f'no such experiment file: {file} (--config)')
        if path.suffix != '.py' or not path.is_file():
            raise UserError(f'--config={file} is not an experiment file, experiments/X.py')
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        text = ast.dump(tree)
        if "'get_config'" not in text:
            table = "'Table'" in text
            advice = f'; python -m jaxrec.table --table={file} makes a table' if table else ''
            raise UserError(f'{file} (--config) has no get_config(){advice}')
        if colon and not all(map(_takes_argument, tree.body)):
            raise UserError(f'{file} takes no argument: --config={file} without what is after it')


def _takes_argument(node: ast.AST) -> bool:
    """False for a get_config without parameters."""
    if not isinstance(node, ast.FunctionDef) or node.name != 'get_config':
        return True
    return bool(node.args.posonlyargs or node.args.args or node.args.vararg)


def _config_error(e: BaseException) -> str:
    """One line for whatever went wrong while the flags, and the config file, were read."""
    if isinstance(e, flags.Error) and 'Traceback' not in str(e) and 'failure' not in str(e):
        return str(e)
    while not isinstance(e, SyntaxError) and (e.__cause__ or e.__context__):
        e = e.__cause__ or e.__context__
    moved = _moved(str(e))
    if isinstance(e, KeyError) and 'not found on' in str(e):  # ml_collections: unknown field
        return moved or f'{e.args[0]}; `python -m jaxrec.train --help` lists the fields'
    if isinstance(e, SyntaxError) and e.filename == '<unknown>':  # ml_collections: no field's name
        return f'{e.msg} in {e.text!r}; a field is set like --config.model.contrast.0.weight=.1'
    if isinstance(e, SyntaxError):
        return f'{e.filename}, line {e.lineno}: {e.msg}'
    where = ''
    if e.__traceback__ is not None:
        names = _names(e)
        if names:
            return f'no {e.args[0]!r} among the names of this experiment: {", ".join(names)}'
        last = traceback.extract_tb(e.__traceback__)[-1]
        if pathlib.Path(last.filename).stem == 'config_path':  # ml_collections walks to a field
            if isinstance(e, IndexError):
                return 'a --config.FIELD names a position that its tuple has not; they count from 0'
            if 'tuple indices' in str(e):
                return (
                    'a --config.FIELD needs a position, as in --config.model.contrast.0.weight=.1'
                )
        where = f' ({last.filename}, line {last.lineno})'
    return moved or f'cannot read the flags or --config: {type(e).__name__}: {e}{where}'


def _names(e: BaseException) -> list[str]:
    """The keys of the dict in which a line of an experiment looked a name up in vain."""
    *_, (last, line) = traceback.walk_tb(e.__traceback__)
    if not isinstance(e, KeyError) or last.f_code.co_name != 'get_config':
        return []
    text = linecache.getline(last.f_code.co_filename, line)
    known = [{**last.f_globals, **last.f_locals}.get(w) for w in re.findall(r'(\w+)\[', text)]
    tables = [x for x in known if isinstance(x, dict) and e.args[0] not in x]
    return [repr(name) if not name else name for name in (tables[0] if tables else ())]


def _moved(text: str) -> str:
    """What a field that a message names is called now, '' if it names none that was renamed."""
    words = set(re.findall(r'\w+', text))
    for old, new in RENAMED.items():
        section, _, name = old.rpartition('.')
        if name in words and (section in words or section.capitalize() in words or not section):
            return f'{old} is now {new}'
    return ''
