r"""Ratings with texts on MovieLens-1M: LoID, its ablations and controls, beside biased factors.

python -m jaxrec.table --table=experiments/tables/text_ratings.py \
    --workdir=runs/tables/text_ratings --seeds=5 --results=results

Prepare the data first (`python -m jaxrec.prepare --dataset=ml-1m-texts --source=FOLDER`). Seeds are
of training; another random split is `--override=task.split_seed=N`. Every cell keeps biases and a
biased factorisation by least squares beside it, and tells films with at most 10 training ratings
apart (groups, 'ratings of the item'). Published tables of LoID are of Amazon reviews, and stand in
no column here.
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

EXPERIMENT = 'experiments/loid_ml1m.py'
SHOWN = ('MSE', 'MAE')
MF, LOID, SHUFFLED = 'biased MF', 'LoID', 'LoID texts shuffled'

TABLE = Table(
    title='Ratings with texts on MovieLens-1M',
    caption='Single ratings held out, 8:1:1 by chance or by time; the epoch of the least '
    'validation RMSE is tested. Texts are titles and genres.',
    columns=(
        Column('random 8:1:1', SHOWN),
        Column('by time', SHOWN, {'task.split': 'temporal'}),
    ),
    rows=(
        Row(MF, f'{EXPERIMENT}:mf'),
        Row('texts without ids', f'{EXPERIMENT}:texts'),
        Row('LoID without alignment', f'{EXPERIMENT}:no-align'),
        Row('LoID under the triplet', f'{EXPERIMENT}:triplet'),
        Row('LoID by the linear head', f'{EXPERIMENT}:linear'),
        Row("LoID by the authors' settings", f'{EXPERIMENT}:authors'),
        Row(LOID, EXPERIMENT),
        Row(SHUFFLED, EXPERIMENT, {'task.shuffled': True}),
    ),
    baseline=MF,
    by_column=True,
    orderings=(
        Ordering(LOID, MF, 'texts aligned with ids improve ratings', 'arXiv 2404.00236, abstract'),
        Ordering(LOID, SHUFFLED, 'what helps is what the texts say', 'control of this table'),
    ),
)
