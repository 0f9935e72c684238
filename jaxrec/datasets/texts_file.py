"""A table of the items' texts beside the events: `item,text`, as text or Parquet.

Items that only this table names join the catalogue: nothing was learnt of them, and their text is
all that a model can go by.
"""

import hashlib
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from jaxrec import config as config_lib
from jaxrec.data import domains
from jaxrec.data.catalogue import plain
from jaxrec.data.histories import Histories
from jaxrec.datasets import dialect, log_parts, raw_ids, tabular
from jaxrec.datasets.events import by_item
from jaxrec.errors import UserError

LONGEST = 1000  # bytes of a text that are kept
_BLOCK = 1 << 24  # bytes read at a time; a row must fit


def key(config: config_lib.Data, root: pathlib.Path) -> str:
    """What the texts add to the name of a prepared folder: a hash; '' without texts.

    Raises:
      UserError: there is no such file, or its fields are given without it.
    """
    if not config.texts:
        for name in ('text_col', 'text_columns'):
            if getattr(config, name) != getattr(config_lib.Data, name):
                raise UserError(f'--{name} describes the table of texts: it goes with --texts')
        return ''
    path = pathlib.Path(config.texts).expanduser()
    if not path.is_file():
        raise UserError(f'no such file: {path} (--texts)')
    content = log_parts.content_hash(config.texts, root)
    identity = repr([content, config.item_col, config.text_col, config.text_columns])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def read(config: config_lib.Data) -> tuple[np.ndarray, np.ndarray]:
    """(raw ids [n] int64 or utf-8 bytes, ascending and distinct; texts utf-8 bytes [n]).

    Raises:
      UserError: a column is missing, a row does not parse, an item has two texts, or no rows.
    """
    path = pathlib.Path(config.texts).expanduser()
    columns = list(dict.fromkeys(c.strip() for c in config.text_col.split(',')))
    wanted = list(dict.fromkeys([config.item_col, *columns]))
    try:
        table, is_text = _table(path, config, wanted)
        parts = [pc.fill_null(table.column(c).cast(pa.large_string()), '') for c in columns]
    except (pa.ArrowException, EOFError, OSError) as e:
        raise UserError(f'cannot read {path.name}: {" ".join(str(e).split())}') from e
    ids = table.column(config.item_col).combine_chunks()
    ids = raw_ids.checked(ids, config.item_col, path.name, lambda at: f'row {at + 1}')
    with raw_ids.naming(config.item_col, path.name):
        coded = raw_ids.encode([ids], text=is_text)
    joined = pc.binary_join_element_wise(*parts, ' ') if len(parts) > 1 else parts[0]
    joined = pc.replace_substring_regex(joined, r'\s+', ' ')
    texts = np.array([_cut(one.strip()) for one in joined.to_pylist()] or [b''], 'S')
    if not len(coded.values):
        raise UserError(f'{path.name} has no rows')
    order = np.argsort(coded.values, kind='stable')
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    rows = number[coded.codes]
    found = np.zeros(len(order), texts.dtype)
    found[rows] = texts[: len(rows)]
    other = np.flatnonzero(found[rows] != texts[: len(rows)])
    if len(other):
        item = plain(coded.values[coded.codes[other[0]]])
        raise UserError(f'{path.name} has item {item!r} with two different texts')
    return coded.values[order], found


def _cut(text):
    """utf-8 of at most LONGEST bytes, whole letters."""
    return text.encode()[:LONGEST].decode(errors='ignore').encode()


def joined(histories: Histories, config: config_lib.Data) -> tuple[Histories, str]:
    """The histories with texts as titles and items of texts alone; a line about it for people.

    Where items have domains no item is added: nothing says of which it is.

    Raises:
      UserError: see `read`; ids of another kind; no item of the events has a text.
    """
    ids, texts = read(config)
    name, known = pathlib.Path(config.texts).name, histories.item_ids
    if known.dtype.kind == 'S' and ids.dtype.kind != 'S':  # whole numbers among ids that are text
        order = np.argsort(ids.astype('S'))
        ids, texts = ids.astype('S')[order], texts[order]
    elif known.dtype.kind != ids.dtype.kind:
        odd = next((one for one in ids.tolist() if not one.isdigit()), ids[0])
        raise UserError(
            f'{name} has item {plain(odd)!r}, and item ids of the events are whole numbers: remove '
            'such rows, or write all ids as text (7 as item-7)'
        )
    have = np.isin(known, ids)
    if not have.any():
        raise UserError(
            f'no item of the events is in {name}: its first is {plain(ids[0])!r}, theirs '
            f'{plain(known[0])!r}; is --item_col={config.item_col} the right column?'
        )
    whole = known if domains.COLUMN in histories.item_features else np.union1d(known, ids)
    place = np.searchsorted(whole, known)
    moved = np.concatenate([[0], place + 1]).astype(np.int32)
    made = Histories(
        items=moved[histories.items],
        offsets=histories.offsets,
        user_ids=histories.user_ids,
        item_ids=whole,
        times=histories.times,
        features=histories.features,
        item_features={
            column: by_item(whole, known, np.asarray(values))
            for column, values in histories.item_features.items()
        },
        titles=by_item(whole, ids, texts),
        name=histories.name,
    )
    added, empty = len(whole) - len(known), int((~have).sum())
    cut = int((np.char.str_len(texts) > LONGEST - 4).sum())  # a letter has 4 bytes at most
    told = f'; {cut:,} longer than {LONGEST:,} bytes are cut' if cut else ''
    return made, f'texts of {name}: {len(ids):,}; {added:,} items have a text and no event, ' + (
        f'{empty:,} events and no text{told}'
    )


def _table(path, config, wanted):
    """(the wanted columns, whether they come from text) of the file."""
    with log_parts.open_plain(path) as file:
        sample = file.read(1 << 16)
    if sample[:4] == log_parts.PARQUET:
        _check(pa.parquet.read_schema(path).names, path.name, wanted)
        return pa.parquet.read_table(path, columns=wanted), False
    log_parts.check_text(sample, path.name)
    dialect.check_returns(sample, path.name)
    first = (
        sample.removeprefix(dialect.BOM).split(b'\n', 1)[0].rstrip(b'\r').decode(errors='replace')
    )
    names = [c.strip() for c in config.text_columns.split(',')] if config.text_columns else None
    headers = {d: tabular.header_fields(first, d) for d in tabular.DELIMITERS}
    fits = lambda d: len(headers[d]) == len(names) if names else set(wanted) <= set(headers[d])  # noqa: E731
    delimiter = next(filter(fits, headers), max(headers, key=lambda d: len(headers[d])))
    if names and not fits(delimiter):
        raise UserError(
            f'the first line of {path.name}, {first[:80]!r}, does not split into the {len(names)} '
            'fields of --text_columns'
        )
    if names and set(headers[delimiter]) & set(wanted):
        raise UserError(f'{path.name} has a header line ({first}); leave out --text_columns')
    _check(names or headers[delimiter], path.name, wanted)
    with log_parts.open_plain(path) as file:
        watched = dialect.Watched(file)
        table = pa.csv.read_csv(
            watched,
            pa.csv.ReadOptions(column_names=names, block_size=_BLOCK),
            pa.csv.ParseOptions(
                delimiter=delimiter,
                quote_char=False if delimiter == '\t' else '"',
                newlines_in_values=delimiter != '\t',  # to be told below, however large the file
            ),
            pa.csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                strings_can_be_null=False,
            ),
        )
    rows, lines = table.num_rows + (not names), watched.lines
    if rows != lines:  # some of which may be empty
        with log_parts.open_plain(path) as file:
            lines = dialect.survey(file, delimiter, len(headers[delimiter])).lines
    if rows != lines:
        raise UserError(
            f'{path.name} has {lines:,} lines and {table.num_rows:,} rows: a quotation mark is not '
            'closed, or a text goes over several lines; write each text on one line, or Parquet'
        )
    return table, True


def _check(header, name, wanted):
    for n, column in enumerate(wanted):
        if column not in header:
            there, flag = ', '.join(map(repr, header[:20])), 'text_col' if n else 'item_col'
            raise UserError(
                f'{name} has no column {column!r}; it has {there}; name it with --{flag}, or, if '
                'this is no header line, all its columns with --text_columns'
            )
        if header.count(column) > 1:
            raise UserError(f'{name} has {header.count(column)} columns called {column!r}')
