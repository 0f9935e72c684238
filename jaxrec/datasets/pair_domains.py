"""Pairs of users and items of two domains that come split, as DisenCDR and CDRIB published them.

FOLDER is one of two beside each other: A_B holds domain A, B_A domain B. The domain is a column of
items (`data.domains`), and the part of an event is its column `part` (task.split='given'). There
are no times: the order of the files is none.
"""

import hashlib
import pathlib
import re
from collections.abc import Callable

import numpy as np

from jaxrec.data import domains, splits
from jaxrec.datasets.events import Events
from jaxrec.datasets.public import DataSet, open_source
from jaxrec.datasets.raw_ids import Coded
from jaxrec.errors import UserError


def by_folder(source: str) -> str:
    """Of a layout that comes with several data sets: a folder name for what is read from here."""
    if not source:
        return ''
    path = pathlib.Path(source).expanduser().absolute()
    return f'{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}'


def read_disencdr(source: str, say: Callable) -> tuple[Events, str]:
    """Lines `user<TAB>item<TAB>1` of train.txt and test.txt; users are numbered alike in both.

    Raises:
      UserError: a file is missing or not of this layout, or a test pair is in train.
    """
    files = {domain: _parts(folder, ('train', 'test')) for domain, folder in _folders(source)}
    say(f'reading {source} and the folder of the other domain')
    return _events(files, lambda domain, users: users.astype(str), source), source


def read_cdrib(source: str, say: Callable) -> tuple[Events, str]:
    """Lines `user<TAB>item` of train.txt, valid.txt and test.txt; cold users have no train.

    Users below the number of common users are in both domains; above it the same number is another
    person in each. That number is in the file *_data_info.txt that has the users of the files.

    Raises:
      UserError: a file is missing or not of this layout, no info file fits, validation is the test,
        or a held-out user has training events in that domain.
    """
    pair = _folders(source)
    files = {domain: _parts(folder, ('train', 'valid', 'test')) for domain, folder in pair}
    sizes = [max(int(t[:, 0].max()) for t in files[domain].values()) + 1 for domain, _ in pair]
    common = _common(pair, sizes)
    for domain, folder in pair:
        train, valid, test = (files[domain][name] for name in ('train', 'valid', 'test'))
        if valid.shape == test.shape and (np.sort(valid, 0) == np.sort(test, 0)).all():
            raise UserError(
                f'{folder}: valid.txt is test.txt: what a model is chosen by is no test'
            )
        known = np.isin(np.concatenate([valid, test])[:, 0], train[:, 0])
        if known.any():
            raise UserError(
                f'{folder}: {known.sum()} held-out pairs are of users with training pairs: they '
                'are not cold'
            )
    say(f'{source}: {common:,} users are in both domains, the others are different people')

    def named(domain, users):
        own = np.char.add(f'{domain}:', users.astype(str))
        return np.where(users < common, np.char.add('both:', users.astype(str)), own)

    return _events(files, named, source), source


def _folders(source):
    """((A, folder A_B), (B, folder B_A))."""
    path = pathlib.Path(source or '.').expanduser()
    first, _, second = path.name.partition('_')
    other = path.with_name(f'{second}_{first}')
    missing = next((x for x in (path, other) if not x.is_dir()), None)
    if source and second and missing:
        raise UserError(f'no folder {missing}: domains A and B are FOLDER/A_B beside FOLDER/B_A')
    if not source or not second:
        raise UserError(
            'give --source=FOLDER/A_B, the folder of domain A, beside which there is B_A of domain '
            f'B: {source or "nothing is given"}'
        )
    return (first, path), (second, other)


def _parts(folder, names):
    """{part: int64 [n, 2]} of users and items, in the files' order."""
    return {
        name: _table(open_source(str(folder), f'{name}.txt')[0], folder, name) for name in names
    }


def _table(data, folder, name):
    rows = [line.split()[:2] for line in data.decode().splitlines() if line.strip()]
    try:
        found = np.array(rows, np.int64).reshape(-1, 2)
        if len(found) != len(rows) or not len(rows):
            raise ValueError
        return found
    except ValueError:
        at = next((n for n, r in enumerate(rows, 1) if not ''.join(r).isdigit() or len(r) < 2), 1)
        raise UserError(f'{folder}/{name}.txt line {at} is not `user<TAB>item`') from None


def _common(pair, sizes):
    """How many users are in both domains, of the info file of these sizes."""
    for file in sorted(file for _, folder in pair for file in folder.glob('*_data_info.txt')):
        text = file.read_text()
        found = [int(n) for n in re.findall(r'after filter_data\d info : (\d+)', text)]
        common = re.search(r'common user num (\d+)', text)
        if common and sorted(found) == sorted(sizes):
            return int(common[1])
    raise UserError(
        f'{pair[0][1]}: no *_data_info.txt is of {sizes[0]} and {sizes[1]} users, and without it '
        'nobody knows which numbers are the same person in both domains'
    )


_PARTS = {'train': splits.TRAIN, 'valid': splits.VALID, 'test': splits.TEST}


def _events(files, named, source):
    """Events of {domain: {part: [n, 2]}}; `named` gives the raw ids of a domain's users."""
    users, items, parts = [], [], []
    for domain, tables in files.items():
        seen = np.zeros(0, np.int64)
        for name, table in tables.items():
            keys = table[:, 0] << 32 | table[:, 1]
            again = len(keys) - len(np.unique(keys)) + np.isin(keys, seen).sum()
            if again:
                raise UserError(
                    f'{source}: {again} pairs of {domain} {name}.txt are there twice, or in train '
                    'or valid as well: they would be learnt and tested'
                )
            seen = np.concatenate([seen, keys])
            users.append(named(domain, table[:, 0]))
            items.append(np.char.add(f'{domain}:', table[:, 1].astype(str)))
            parts.append(np.full(len(table), _PARTS[name], np.int8))
    coded = []
    for column in (users, items):
        values, codes = np.unique(np.concatenate(column).astype('S'), return_inverse=True)
        coded.append(Coded(codes.astype(np.int32), values))
    ids = coded[1].values
    of = np.array([raw.partition(b':')[0] for raw in ids.tolist()])
    return Events(
        *coded,
        features={splits.PART: np.concatenate(parts)},
        item_features={domains.COLUMN: (ids, of)},
    )


_LICENCE = (
    'no licence text comes with the files; the reviews are of the Amazon review data of McAuley et '
    'al.: ask before redistributing'
)
DISENCDR = DataSet(
    name='disencdr',
    description='Amazon pairs of two domains, one test item a user and domain (sport and cloth, '
    'sport and phone, electronic and phone, electronic and cloth).',
    citation='Cao et al., DisenCDR: Learning Disentangled Representations for Cross-Domain '
    'Recommendation, SIGIR 2022',
    homepage='https://github.com/cjx96/DisenCDR',
    licence=_LICENCE,
    read=read_disencdr,
    variant=by_folder,
)
CDRIB = DataSet(
    name='cdrib',
    description='Amazon pairs of two domains; users who are cold in one of them are tested in it.',
    citation='Cao et al., Cross-Domain Recommendation to Cold-Start Users via Variational '
    'Information Bottleneck, ICDE 2022',
    homepage='https://github.com/cjx96/CDRIB',
    licence=_LICENCE,
    read=read_cdrib,
    variant=by_folder,
)
