"""Amazon Video Games (2018) with titles, as published with LLMRank: order only, no times.

Histories are cut to their last 49 events, so that long users are not whole. Not the Games of SASRec
(`games`).
"""

import csv
import io
import pathlib
from collections.abc import Callable

import numpy as np

from jaxrec.datasets import text_layouts
from jaxrec.datasets.events import Events
from jaxrec.datasets.public import DataSet, open_source, read_file
from jaxrec.datasets.s3rec import AMAZON
from jaxrec.errors import UserError

DATA = 'https://raw.githubusercontent.com/RUCAIBox/LLMRank/master/llmrank/dataset/Games-6k'
EVENTS_SHA256 = 'b241e4c8a52d2d41530fd073296e8bced4b61753e86ed6c51467c657704bab19'
TITLES_SHA256 = 'be9cea58a8de4f940a20b0ad6b58bad46b22fd6f9dbc82d1a1902e1c62e96ade'


def read_games(source: str, say: Callable) -> tuple[Events, str]:
    """Histories with their targets, and titles, from a folder or the published files.

    Files of the folder may be called test.inter and items.tsv.

    Raises:
      UserError: a file is not there, damaged or not as published.
    """
    files = (('Games-6k.test.inter', EVENTS_SHA256), ('Games-6k.item', TITLES_SHA256))
    short = ('test.inter', 'items.tsv')
    if source and not any(pathlib.Path(source).expanduser().glob(f'{files[0][0]}*')):
        (events, used), (titles, _) = (open_source(source, name) for name in short)
    else:
        (events, used), (titles, _) = (
            read_file(source, say, f'{DATA}/{name}', sha256) for name, sha256 in files
        )
    made = read_histories(events, used)
    made.titles = read_titles(titles, used)
    return made, used


def read_histories(data: bytes, where: str) -> Events:
    r"""Events of lines `user\titem item ..\ttarget` below a header.

    Raises:
      UserError: `data`, which came from `where`, is something else.
    """
    header, _, rows = data.partition(b'\n')
    if header.count(b'\t') != 2 or not header.startswith(b'user_id:token'):
        raise UserError(f'{where} does not begin with user_id, item_id_list and item_id')
    return text_layouts.read_sequences(io.BytesIO(rows.replace(b'\t', b' ')), where)


def read_titles(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    r"""(raw ids int64, titles utf-8 bytes) of lines `id\ttitle` below a header.

    Raises:
      UserError: `data`, which came from beside `where`, is something else.
    """
    rows = csv.reader(io.StringIO(data.decode()), delimiter='\t', quoting=csv.QUOTE_NONE)
    if next(rows, [])[:2] != ['item_id:token', 'title:token_seq']:
        raise UserError(f'the titles of {where} do not begin with item_id:token, title:token_seq')
    found = [(int(item), ' '.join(title.split()).encode()) for item, title in rows]
    return np.array([item for item, _ in found]), np.array([title for _, title in found])


GAMES = DataSet(
    name='games-titles',
    description='Amazon Video Games of 2018, users and items with at least 5 events: the last 49 '
    'events of a user and the one after these, and a title of every item. No times, no ratings.',
    citation='Hou et al., Large Language Models are Zero-Shot Rankers for Recommender Systems, '
    'ECIR 2024, arXiv:2305.08845',
    homepage='https://github.com/RUCAIBox/LLMRank',
    licence=AMAZON,
    size=(50_546, 16_859, 440_264),
    read=read_games,
)
