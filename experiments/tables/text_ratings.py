r"""Ratings with texts on MovieLens-1M: LoID, its ablations and controls, beside biased factors.

python -m jaxrec.table --table=experiments/tables/text_ratings.py \
    --workdir=runs/tables/text_ratings --seeds=5 --results=results

Prepare the data first (`python -m jaxrec.prepare --dataset=ml-1m-texts --source=FOLDER`). Seeds are
of training; another random split is `--override=task.split_seed=N`. Every cell keeps biases and a
biased factorisation by least squares beside it, and tells films with at most 10 training ratings
apart (groups, 'ratings of the item'). Published tables of LoID are of Amazon reviews, and stand in
no column here.
"""

from collections.abc import Mapping
from types import MappingProxyType

from jaxrec.paper.spec import Column, Ordering, Row, Table

EXPERIMENT = 'experiments/loid_ml1m.py'
SHOWN = ('MSE', 'MAE')
MF, LOID, SHUFFLED = 'biased MF', 'LoID', 'LoID texts shuffled'

RANDOM, BY_TIME, LEAKING = 'random 8:1:1', 'by time', 'random with the leak'


def row(name: str, key: str, changes: Mapping = MappingProxyType({})) -> Row:
    """One that does not read what is held out."""
    return Row(name, f'{EXPERIMENT}:{key}', changes, (RANDOM, BY_TIME))


TABLE = Table(
    title='Ratings with texts on MovieLens-1M',
    caption='Single ratings held out, 8:1:1 by chance or by time; the epoch of the least '
    'validation RMSE is tested. Texts are titles and genres; with the leak those of held-out rows '
    'are read too, as the authors do.',
    columns=(
        Column(RANDOM, SHOWN),
        Column(BY_TIME, SHOWN, {'task.split': 'temporal'}),
        Column(LEAKING, SHOWN, {'task.leak': True}),
    ),
    rows=(
        row(MF, 'mf'),
        row('texts without ids', 'texts'),
        row('LoID without alignment', 'no-align'),
        row('LoID under the triplet', 'triplet'),
        row('LoID by the linear head', 'linear'),
        Row("LoID by the authors' settings", f'{EXPERIMENT}:authors', columns=(RANDOM,)),
        Row(LOID, EXPERIMENT),
        row(SHUFFLED, 'loid', {'task.shuffled': True}),
    ),
    baseline=MF,
    by_column=True,
    orderings=(
        Ordering(LOID, MF, 'texts aligned with ids improve ratings', 'arXiv 2404.00236, abstract'),
        Ordering(LOID, SHUFFLED, 'what helps is what the texts say', 'control of this table'),
    ),
)
