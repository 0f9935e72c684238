"""Raw ids as people give them, on the command line and in files. Every id can be given.

On the command line: one record of CSV (`"shoe, size 1",b`: an id that holds a comma, a quotation
mark or a line break, or begins with a bracket, stands in double quotes, and such a mark inside is
doubled), or a JSON list, which begins with a bracket.

In a file: NAME.json is a JSON list of ids, or of lists of ids; NAME.jsonl has one of these per
line; anything else has one id per line, as it is. A byte order mark and the line ends (\\n, \\r\\n)
are no part of an id, and an empty line is none.

Ids are taken as they are, with the blanks that they have. Around a whole number they are ignored
where the data's ids are whole numbers, of which none has any.
"""

import csv
import io
import json
import pathlib
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from jaxrec.cli import say
from jaxrec.errors import UserError

Id = int | str
_SHOWN = 5  # ids in a message about many


def of_text(text: str, flag: str) -> list[Id]:
    """The ids of a flag's value: a JSON list, or one record of CSV.

    Raises:
      UserError: it is neither.
    """
    if text.startswith('['):
        try:
            return _ids(json.loads(text), flag)
        except (ValueError, RecursionError):  # an id may begin with a bracket
            pass
    try:
        records = list(csv.reader(io.StringIO(text, newline=''), strict=True))
    except csv.Error as e:
        records = e
    if not isinstance(records, list) or len(records) > 1:
        raise UserError(
            f'{flag} is no list of ids: one with a comma, a quotation mark or a line break stands '
            'in double quotes, and a quotation mark inside is doubled; or give the ids in a file, '
            '--history_file'
        )
    return records[0] if records else []


def as_text(raw: Id) -> str:
    """An id as `of_text` reads it back."""
    text = str(raw)
    if text[:1] in ('', '[') or text != text.strip() or set(text) & set(',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def histories_of(path: pathlib.Path, flag: str) -> list[list[Id]]:
    """The histories of a file: many if it holds lists, else one.

    Raises:
      UserError: no such file, not UTF-8, or not what its name says.
    """
    found = _values(path, flag)
    if any(isinstance(one, list) for one in found):
        return [_ids(one, path) for one in found]
    return [_ids(found, path)]


def ids_of(path: pathlib.Path, flag: str) -> list[Id]:
    """The ids of a file; the same errors."""
    return _ids(_values(path, flag), path)


def numbers(
    raw: Sequence[Id],
    find: Callable[[Id], int | None],
    what: str,
    where: str,
    skip_unknown: bool,
) -> list[int | None]:
    """Numbers of raw ids; those that the data lack are told, and None, or refused.

    Args:
      raw: ids as given.
      find: number of a raw id, None if the data lack it.
      what: 'item' or 'user'.
      where: what they were given in, for messages.
      skip_unknown: leave them out.

    Raises:
      UserError: an unknown id, unless `skip_unknown`.
    """
    found = [find(one) for one in raw]
    unknown = [one for one, number in zip(raw, found, strict=True) if number is None]
    if not unknown:
        return found
    first, several = unknown[0], 's' if len(unknown) > 1 else ''
    hint = near(first, find) or _torn(raw, raw.index(first), find)
    if skip_unknown:
        shown = ', '.join([f'{first!r}{hint}', *map(repr, unknown[1:_SHOWN])])
        more = ', ..' if len(unknown) > _SHOWN else ''
        say(f'left out {len(unknown):,} unknown {what}{several} of {where}: {shown}{more}')
        return found
    if not several:
        raise UserError(
            f'{what} {first!r} of {where} is not in the data{hint}; --skip_unknown leaves it out'
        )
    raise UserError(
        f'{len(unknown):,} of {len(raw):,} {what}s of {where} are not in the data, the first is '
        f'{first!r}{hint}; --skip_unknown leaves them out'
    )


def near(raw: Id, find: Callable[[Id], int | None]) -> str:
    """' (did you mean ..?)' if the data have an id that looks the same, '' else.

    With other blanks around it, or in another normal form of Unicode: an accent is one character
    or two.
    """
    text = str(raw)
    for form in ('NFC', 'NFD', 'NFKC', 'NFKD'):
        normal = unicodedata.normalize(form, text)
        for other in (normal, normal.strip(), f'{normal.strip()} ', f' {normal.strip()}'):
            if other != text and find(other) is not None:
                shown = repr(other) if normal == text else f'{other!a}, {form} of Unicode'
                return f' (did you mean {shown}?)'
    return ''


def _torn(raw: Sequence[Id], at: int, find: Callable[[Id], int | None]) -> str:
    """The same if ids around place `at` are parts of one that holds commas."""
    for start in range(max(at - _SHOWN, 0), at + 1):
        for stop in range(max(at, start + 1) + 1, min(start + _SHOWN, len(raw)) + 1):
            whole = ','.join(map(str, raw[start:stop]))
            if find(whole) is not None:
                return f' (did you mean {whole!r}? Give it as {as_text(whole)}, in double quotes)'
    return ''


def _values(path: pathlib.Path, flag: str) -> list:
    """What a .json holds as a list, or the lines of a .jsonl, or those of a text."""
    text = _read(path, flag)
    try:
        if path.suffix == '.json':
            found = json.loads(text)
            if not isinstance(found, list):
                raise ValueError('it is no list')
            return found
        lines = [line for line in (li.removesuffix('\r') for li in text.split('\n')) if line]
        return [json.loads(line) for line in lines] if path.suffix == '.jsonl' else lines
    except (ValueError, RecursionError) as e:
        raise UserError(f'{path} ({flag}) is not JSON as it should be: {e}') from e


def _ids(found: Any, where: Any) -> list[Id]:
    """A JSON value as a list of ids; UserError if it is none."""
    if not isinstance(found, list):
        raise UserError(f'{where}: {_brief(found)} is not a list of ids')
    for one in found:
        if isinstance(one, bool) or not isinstance(one, int | str):
            raise UserError(f'{where}: {_brief(one)} is not an id: give text or whole numbers')
    return found


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + '..'


def _read(path: pathlib.Path, flag: str) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError as e:
        raise UserError(f'no such file: {path} ({flag})') from e
    except OSError as e:
        raise UserError(f'cannot read {path} ({flag}): {e.strerror}') from e
    if content.startswith(b'\x1f\x8b'):
        raise UserError(f'{path} ({flag}) is packed by gzip: unpack it first')
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as e:
        line = content[: e.start].count(b'\n') + 1
        raise UserError(f'{path} is not UTF-8 text ({flag}): look at line {line}') from e
