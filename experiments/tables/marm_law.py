r"""MARM on MovieLens-1M: how AUC grows with layers L, memory n and width d; C = L * n * d.

python -m jaxrec.table --table=experiments/tables/marm_law.py --workdir=runs/tables/marm_law \
    --seeds=5 --override=data.source=FOLDER --results=results

FOLDER holds ratings.dat, see experiments/marm_ml1m.py for split and label. The table shows GAUC,
which has values of single users to test. AUC, by which the memory is to be judged on these data, is
what the law is fitted to, AUC = limit - a C^-b: law.json and law.png beside the table. Nobody
has published numbers under this split.

Found, means of five seeds: limit .7930, b .578; .7398 without a past, .7820 (L=1 n=10 d=16) to
.7925 (L=1 n=99 d=32). A longer memory gains most (n 10 to 99: .010 at L=1 d=32), more layers only
where it is short (n=10, L 1 to 3: .005); from n=50 on they add nothing. A prototype had .7900 with
L=2 n=99 d=32, which has .7923 here. GAUC does not leave the item rate's .6790.
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
