"""Amazon Food and Kitchen as one log of two domains, in the two layouts it was published in.

The domain is a column of items (`data.domains`). Ids of the files tell it: the lower ones are food.
"""

import dataclasses
import json
from collections.abc import Callable

import numpy as np

from jaxrec.data import domains, splits
from jaxrec.datasets.events import Events
from jaxrec.datasets.public import DataSet, read_file
from jaxrec.datasets.raw_ids import Coded
from jaxrec.errors import UserError

NAMES = np.array([b'food', b'kitchen'])
_ABXI = 'https://raw.githubusercontent.com/DiMarzioBian/ABXI/main/data/afk'
_LLMCDSR = 'https://raw.githubusercontent.com/xhran2010/LLMCDSR/main/data/food-kitchen'
_PARTS = {  # of LLMCDSR; ids of lines begin anew in each
    'train_A': splits.TRAIN,
    'train_B': splits.TRAIN,
    'train_overlap': splits.TRAIN,
    'valid': splits.VALID,
    'test': splits.TEST,
}
_ALONE = {'train_A': False, 'train_B': True}  # whether their items are kitchen
_LICENCE = (
    'no licence text comes with the file; the reviews are of the Amazon review data of McAuley et '
    'al.: ask before redistributing'
)


def read_abxi(source: str, say: Callable) -> tuple[Events, str]:
    """Lines `user item|time item|time ..`, and {asin: [item, domain]} of the items.

    Raises:
      UserError: a file is missing or not of this layout, an item is not among those named, or is in
        both domains.
    """
    data, used = read_file(source, say, f'{_ABXI}/afk_50_preprocessed.txt', '')
    named, _ = read_file(source, say, f'{_ABXI}/map_item_50.txt', '')
    users, items, times = [], [], []
    for number, line in enumerate(data.decode().splitlines(), 1):
        try:
            user, *events = line.split()
            pairs = [tuple(map(int, event.split('|'))) for event in events]
            one, moments = zip(*pairs, strict=True)
            users.append(np.full(len(pairs), int(user)))
        except ValueError as e:
            raise UserError(f'{used} line {number} is not `user item|time item|time ..`') from e
        items.append(one)
        times.append(moments)
    domain = {}
    for item, place in json.loads(named).values():
        if domain.setdefault(item, place) != place:
            raise UserError(f'{used}: item {item} is in both domains: their ids overlap')
    events = _events(*(np.concatenate(column) for column in (users, items)), domain, used)
    events.times = np.concatenate(times)
    return events, used


def read_llmcdsr(source: str, say: Callable) -> tuple[Events, str]:
    """Lines `line<TAB>item,item,..` of three training files, of valid and of test.

    Users of different files are different people here: no sequence of one is another's, or begins
    it. The column `part` of events says whose they are (task.split='given-users').

    Raises:
      UserError: a file is missing or not of this layout, an item is beyond the numbers of num.txt
        or in a file of the other domain, or valid and test share a sequence.
    """
    sizes, used = read_file(source, say, f'{_LLMCDSR}/num.txt', '')[0], source or _LLMCDSR
    food, kitchen = map(int, sizes.split())
    users, items, parts, held_out = [], [], [], set()
    for file, part in _PARTS.items():
        data = read_file(source, say, f'{_LLMCDSR}/{file}.txt', '')[0]
        for number, line in enumerate(data.decode().splitlines(), 1):
            try:
                sequence = [int(item) for item in line.split('\t')[1].split(',')]
            except (ValueError, IndexError) as e:
                raise UserError(f'{used} {file}.txt line {number}: not `line<TAB>item,..`') from e
            if file in _ALONE and not all((item >= food) == _ALONE[file] for item in sequence):
                raise UserError(
                    f'{used} {file}.txt line {number} has items of the other domain: ids of '
                    'domains overlap, or num.txt is of other files'
                )
            if part != splits.TRAIN and tuple(sequence) in held_out:
                raise UserError(
                    f'{used} {file}.txt line {number} is in valid.txt or twice in its file: what '
                    'a model was chosen by is no test'
                )
            held_out |= set() if part == splits.TRAIN else {tuple(sequence)}
            users.append(np.full(len(sequence), len(users)))
            items.append(sequence)
            parts.append(np.full(len(sequence), part, np.int8))
    domain = {item: int(item >= food) for item in range(food + kitchen)}
    events = _events(*(np.concatenate(column) for column in (users, items)), domain, used)
    events.features[splits.PART] = np.concatenate(parts)
    return events, used


def read_alone(source: str, say: Callable) -> tuple[Events, str]:
    """`read_llmcdsr`, with last events of some users of one domain held out too.

    Of the sequences in train_A and train_B that have three events or more a random tenth validates
    with the last, another tests; what is before trains, and all else is as it was.
    """
    events, used = read_llmcdsr(source, say)
    users, part = events.users.codes, events.features[splits.PART]
    kitchen = events.item_features[domains.COLUMN][1] == NAMES[1]  # of the items' codes
    count, last = np.bincount(users), np.cumsum(np.bincount(users)) - 1  # lines are in order
    share = np.bincount(users, kitchen[events.items.codes]) / count
    able = np.isin(share, (0, 1)) & (part[last] == splits.TRAIN) & (count >= 3)
    drawn = last[np.random.default_rng(0).permutation(np.flatnonzero(able))]
    tenth = len(drawn) // 10
    part[drawn[:tenth]], part[drawn[tenth : 2 * tenth]] = splits.VALID, splits.TEST
    return events, used


def _events(users, items, domain, used):
    """Events of int [N] users and items; `domain` is 0 or 1 by item."""
    coded = []
    for column in (users, items):
        values, codes = np.unique(column, return_inverse=True)
        coded.append(Coded(codes.astype(np.int32), values))
    strange = [item for item in coded[1].values.tolist() if item not in domain]
    if strange:
        raise UserError(f'{used} has item {strange[0]}, of which nobody says the domain')
    of_items = NAMES[[domain[item] for item in coded[1].values.tolist()]]
    return Events(*coded, item_features={domains.COLUMN: (coded[1].values, of_items)})


ABXI = DataSet(
    name='food-kitchen',
    description='Amazon Food and Kitchen: users with events in both, 10 to 50 of them, with times; '
    'no product is in both domains.',
    citation='Bian et al., ABXI: Invariant Interest Adaptation for Task-Guided Cross-Domain '
    'Sequential Recommendation, WWW 2025, arXiv:2501.15118',
    homepage='https://github.com/DiMarzioBian/ABXI',
    licence=_LICENCE,
    size=(7_144, 28_095, 173_548),
    read=read_abxi,
)
LLMCDSR = DataSet(
    name='food-kitchen-llmcdsr',
    description='Amazon Food and Kitchen: sequences of users of both, of food alone and of kitchen '
    'alone, without times; whole sequences of both are held out.',
    citation='Xin et al., LLMCDSR: Enhancing Cross-Domain Sequential Recommendation with Large '
    'Language Models, TOIS 2025',
    homepage='https://github.com/xhran2010/LLMCDSR',
    licence=_LICENCE,
    size=(53_061, 36_298, 436_127),
    read=read_llmcdsr,
)
LLMCDSR_ALONE = dataclasses.replace(
    LLMCDSR,
    name='food-kitchen-llmcdsr-alone',
    description=f'{LLMCDSR.description} Beside them a tenth of the users of one domain validates '
    'with the last event and another tests.',
    read=read_alone,
)
