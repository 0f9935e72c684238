"""MovieLens-100K and -1M: every rating with its time, and the titles.

Many ratings of a user share a second; equal times keep the order of the published file, so another
source gives the same histories. SASRec's MovieLens-1M is another file (`ml-1m-sasrec`).
"""

import dataclasses
import io
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from jaxrec.data.domains import COLUMN as DOMAIN
from jaxrec.data.ragged import padded
from jaxrec.datasets import tabular
from jaxrec.datasets.events import Events
from jaxrec.datasets.public import ZIP, DataSet, check_sha256, download, open_source, unpack
from jaxrec.errors import UserError

SITE = 'https://files.grouplens.org/datasets/movielens'
CITATION = (
    'Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015, '
    'doi:10.1145/2827872'
)
LICENCE = (
    'MovieLens data is for research: no redistribution without separate permission of GroupLens, '
    'no commercial use; see the README that comes with it'
)
COLUMNS = ['user', 'item', 'rating', 'timestamp']
U_DATA_SHA256 = '06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490'
RATINGS_SHA256 = '506d64ca44484487c11dc2d9a28de5c54948213e6b96285e298afe28d6ea4e0f'
GENRES = (
    'Action',
    'Adventure',
    'Animation',
    "Children's",
    'Comedy',
    'Crime',
    'Documentary',
    'Drama',
    'Fantasy',
    'Film-Noir',
    'Horror',
    'Musical',
    'Mystery',
    'Romance',
    'Sci-Fi',
    'Thriller',
    'War',
    'Western',
)
WHEEL = 'recbole==1.2.1'  # carries MovieLens-100K as an example
WHEEL_FOLDER = 'recbole/dataset_example/ml-100k'


def read_100k(source: str, say: Callable) -> tuple[Events, str]:
    """MovieLens-100K from a source, else GroupLens, else a copy in a wheel on PyPI."""
    if source:
        ratings, used = open_source(source, 'u.data')
        titles = _beside(source, 'u.item')
        if ratings.startswith(b'user_id:token'):
            ratings = ratings.split(b'\n', 1)[1]
    else:
        ratings, titles, used = _fetch_100k(say)
    check_sha256(ratings, U_DATA_SHA256, used, 'u.data')
    return _events(ratings, titles and _titles_100k(titles)), used


def read_1m(source: str, say: Callable) -> tuple[Events, str]:
    """MovieLens-1M from a source, else GroupLens."""
    if source:
        ratings, used = open_source(source, 'ratings.dat')
        movies = _beside(source, 'movies.dat')
    else:
        used = f'{SITE}/ml-1m.zip'
        archive = download(used, say)
        ratings, movies = unpack(archive, 'ratings.dat', used), unpack(archive, 'movies.dat', used)
    check_sha256(ratings, RATINGS_SHA256, used, 'ratings.dat')
    movies = movies and [line.split('::') for line in movies.decode('latin-1').splitlines()]
    events = _events(ratings.replace(b'::', b'\t'), movies and [movie[:2] for movie in movies])
    if movies:
        ids, (_, titles, genres) = events.titles[0], zip(*movies, strict=True)
        events.item_features['genres'] = ids, _genres(genres)
        events.item_features['year'] = ids, _years(titles)
    return events, used


def read_1m_texts(source: str, say: Callable) -> tuple[Events, str]:
    """`read_1m` with titles 'Title (year)|Genre|Genre'; the domain of a film is its first genre.

    Raises:
      UserError: as of `read_1m`, or movies.dat is not there.
    """
    events, used = read_1m(source, say)
    if 'genres' not in events.item_features:
        raise UserError(f'{used} comes without movies.dat, which has the titles')
    (ids, titles), (_, genres) = events.titles, events.item_features['genres']
    names = [[GENRES[n - 1] for n in row if n] for row in genres.tolist()]
    texts = ['|'.join([t.decode(), *own]) for t, own in zip(titles.tolist(), names, strict=True)]
    events.titles = ids, np.array([text.encode() for text in texts])
    del events.item_features['year']  # the title has it
    events.item_features[DOMAIN] = ids, np.array([own[0].encode() for own in names])
    return events, used


def _years(titles: Sequence[str]) -> np.ndarray:
    """float32 [movies] of 'Title (year)', NaN where a title has none."""
    found = [re.search(r'\((\d{4})\)\s*$', title) for title in titles]
    return np.array([float(year[1]) if year else np.nan for year in found], np.float32)


def _genres(texts: Sequence[str]) -> np.ndarray:
    """int32 [movies, most genres of one]: numbers of `A|B` in GENRES from 1, padded with 0."""
    return padded([[GENRES.index(genre) + 1 for genre in text.split('|')] for text in texts])


def _events(ratings: bytes, titles: list[list[str]] | None) -> Events:
    table = tabular.Pieces('user', 'item', 'timestamp', features=('rating',))
    opened = lambda: io.BytesIO(ratings)  # noqa: E731
    tabular.add_text(table, opened, 'MovieLens', delimiter='\t', columns=COLUMNS)
    events = table.events('MovieLens', text=True)
    events.features['rating'] = events.features['rating'].astype(np.float32)
    if titles:
        ids = np.array([int(item) for item, _ in titles])
        events.titles = ids, np.array([title.strip().encode() for _, title in titles])
    return events


def _titles_100k(data: bytes) -> list[list[str]]:
    """(item, title) from u.item, or from the .item file of the wheel, which splits off the year."""
    if not data.startswith(b'item_id:token'):
        return [line.split('|')[:2] for line in data.decode('latin-1').splitlines()]
    rows = [line.split('\t') for line in data.decode().splitlines()[1:]]
    return [[i, f'{title} ({year})' if year.isdigit() else title] for i, title, year, *_ in rows]


def _beside(source: str, name: str) -> bytes | None:
    """Content of the title file of a source, None if it has none: titles are for display only."""
    path = pathlib.Path(source).expanduser()
    if path.is_file():
        with open(path, 'rb') as file:
            zipped = file.read(4) == ZIP
        source = str(path if zipped else path.parent)
    try:
        return open_source(source, name)[0]
    except UserError:
        return None


def _fetch_100k(say: Callable) -> tuple[bytes, bytes, str]:
    used = f'{SITE}/ml-100k.zip'
    try:
        archive = download(used, say)
        return unpack(archive, 'u.data', used), unpack(archive, 'u.item', used), used
    except UserError as e:
        say(f'note: {e}')
        unreachable = e
    say(f'reading the copy in the wheel {WHEEL} on PyPI (downloaded, not installed)')
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary']
        try:
            done = subprocess.run(
                [*pip, ':none:', WHEEL, '-d', folder], capture_output=True, text=True, timeout=300
            )
            reason = (done.stderr.strip().splitlines() or ['no wheel'])[-1]
        except subprocess.TimeoutExpired as e:
            done, reason = None, f'no answer within {e.timeout:.0f} seconds'
        wheels = list(pathlib.Path(folder).glob('*.whl'))
        if done is None or done.returncode or not wheels:
            raise UserError(f'{unreachable}; nor is {WHEEL} to be had from PyPI ({reason})')
        archive = wheels[0].read_bytes()
    used = f'{WHEEL}:{WHEEL_FOLDER}'
    ratings = unpack(archive, 'ml-100k.inter', used).split(b'\n', 1)[1]  # below its header: u.data
    return ratings, unpack(archive, 'ml-100k.item', used), used


ML_100K = DataSet(
    name='ml-100k',
    description='MovieLens-100K: every rating of 943 users with its time, raw and unfiltered.',
    citation=CITATION,
    homepage='https://grouplens.org/datasets/movielens/100k/',
    licence=LICENCE,
    size=(943, 1_682, 100_000),
    read=read_100k,
)
ML_1M = DataSet(
    name='ml-1m',
    description='MovieLens-1M: every rating of 6,040 users with its time, raw and unfiltered.',
    citation=CITATION,
    homepage='https://grouplens.org/datasets/movielens/1m/',
    licence=LICENCE,
    size=(6_040, 3_706, 1_000_209),
    read=read_1m,
)
ML_1M_TEXTS = dataclasses.replace(
    ML_1M,
    name='ml-1m-texts',
    description='MovieLens-1M: ml-1m with genres in the titles; the first is the domain.',
    read=read_1m_texts,
)
