r"""Heads of eight labels on KuaiRand-Pure: from one network each to HoME.

python -m jaxrec.table --table=experiments/tables/ranking.py --workdir=runs/tables/ranking \
    --seeds=5 --override=data.source=FOLDER --results=results

FOLDER holds the files, see jaxrec/datasets/kuairand_rows.py. Training ends on 2 May 2022,
validation is 3 and 4 May, the test 5 to 8 May; histories end on 24 April. (bn): experts are
Swish(BatchNorm(MLP)), as in HoME; fg: its feature gate, sg: its self gate. Nobody has published
numbers under this split.
"""

from jaxrec.paper.spec import Column, Row, Table

EXPERIMENT = 'experiments/home_kuairand.py'
ROWS = {
    'one expert per label': 'apart',
    'shared bottom (bn)': 'shared_bottom',
    'MMoE': 'mmoe_relu',
    'MMoE (bn)': 'mmoe',
    'CGC (bn)': 'cgc',
    'PLE (bn)': 'ple',
    'AdaTT (bn)': 'adatt',
    'HoME without fg and sg and mask': 'without_fg_sg_mask',
    'HoME without fg and sg': 'without_fg_sg',
    'HoME without fg': 'without_fg',
    'HoME': '',
}

TABLE = Table(
    title='Heads of eight labels on KuaiRand-Pure',
    caption='Eight labels learnt at once; GAUC of four, users with both classes.',
    columns=(
        Column(
            'KuaiRand-Pure',
            ('GAUC/click', 'GAUC/long_view', 'GAUC/like', 'GAUC/profile_enter'),
        ),
    ),
    rows=tuple(
        Row(name, f'{EXPERIMENT}:{arg}' if arg else EXPERIMENT) for name, arg in ROWS.items()
    ),
    baseline='MMoE (bn)',
    shown=('one expert per label', 'MMoE', 'HoME'),
    protocol='click',
)
