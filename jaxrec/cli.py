"""What the commands share: one clear line per user error, and `--json` output."""

import ast
import json
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from absl import app, flags, logging

from jaxrec.config import RENAMED
from jaxrec.errors import UserError

FLAGS = flags.FLAGS
_silent = False


def run(main: Callable[[list[str]], None]) -> None:
    """Runs `main(argv)` with absl flags; a user's mistake ends in one line and exit code 2."""
    try:
        app.run(_guarded(main), flags_parser=_parse)
    except KeyboardInterrupt:
        _fail('interrupted')


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
    if 'task' in FLAGS:  # --task.protocol=full is a value of the flag --task
        argv = [re.sub(r'^--?task\.', '--task=', word) for word in argv]
    try:
        if 'config' in FLAGS:
            _check_config(argv)
        return FLAGS(argv)
    except UserError as e:
        _fail(str(e))
    except BrokenPipeError:  # `--help | head`
        raise SystemExit(1) from None
    except Exception as e:  # the --config file is the user's program: anything may come out of it
        _fail(_config_error(e))


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
    if isinstance(e, SyntaxError):
        return f'{e.filename}, line {e.lineno}: {e.msg}'
    where = ''
    if e.__traceback__ is not None:
        last = traceback.extract_tb(e.__traceback__)[-1]
        where = f' ({last.filename}, line {last.lineno})'
    return moved or f'cannot read the flags or --config: {type(e).__name__}: {e}{where}'


def _moved(text: str) -> str:
    """What a field that a message names is called now, '' if it names none that was renamed."""
    words = set(re.findall(r'\w+', text))
    for old, new in RENAMED.items():
        section, _, name = old.rpartition('.')
        if name in words and (section in words or section.capitalize() in words or not section):
            return f'{old} is now {new}'
    return ''


def _fail(message: str) -> None:
    print('error: ' + ' '.join(message.split()), file=sys.stderr, flush=True)
    sys.exit(2)
