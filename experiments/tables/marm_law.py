r"""MARM on MovieLens-1M: how AUC grows with layers L, memory n and width d; C = L * n * d.

python -m jaxrec.table --table=experiments/tables/marm_law.py --workdir=runs/tables/marm_law \
    --seeds=5 --override=data.source=FOLDER --results=results

FOLDER holds ratings.dat, see experiments/marm_ml1m.py for split and label. The table shows GAUC,
which has values of single users to test. AUC, by which the memory is to be judged on these data, is
what the law is fitted to, AUC = limit - a C^-b: law.json and law.png beside the table. Nobody
has published numbers under this split.
"""

from jaxrec.paper.spec import Column, Law, Row, Table

EXPERIMENT = 'experiments/marm_ml1m.py'
GRID = [(L, n, d) for d in (16, 32) for L in (1, 2, 3) for n in (10, 25, 50, 99)]

TABLE = Table(
    title='MARM on MovieLens-1M, by layers, memory and width',
    caption='Whether a user likes a movie; the past is frozen where the tested rows begin.',
    columns=(Column('MovieLens-1M', ('GAUC/like',)),),
    rows=(
        Row('no past', f'{EXPERIMENT}:L=0'),
        *(Row(f'L={L} n={n} d={d}', f'{EXPERIMENT}:L={L},n={n},d={d}') for L, n, d in GRID),
    ),
    baseline='no past',
    shown=('no past', 'L=2 n=99 d=32'),
    protocol='click',
    law=Law('AUC/like', 'L n d', {f'L={L} n={n} d={d}': L * n * d for L, n, d in GRID}),
)
