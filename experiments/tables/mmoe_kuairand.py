r"""Several labels of a click model: MMoE beside its own shared bottom, on KuaiRand-Pure.

python -m jaxrec.table --table=experiments/tables/mmoe_kuairand.py \
    --workdir=runs/tables/mmoe_kuairand --seeds=5 --override=data.source=FOLDER --results=results

FOLDER holds the files, see jaxrec/datasets/kuairand_rows.py. Training ends on 2 May 2022,
validation is 3 and 4 May, the test 5 to 8 May. Tests over users weight a user by impressions, as
GAUC does. Nobody has published numbers under this split.
"""

from jaxrec.paper.spec import Column, Row, Table

EXPERIMENT = 'experiments/mmoe_kuairand.py'

TABLE = Table(
    title='Click models on KuaiRand-Pure',
    caption='Eight labels learnt at once; GAUC of four, users with both classes.',
    columns=(
        Column(
            'KuaiRand-Pure',
            ('GAUC/click', 'GAUC/long_view', 'GAUC/like', 'GAUC/profile_enter'),
        ),
    ),
    rows=(
        Row('shared bottom', f'{EXPERIMENT}:shared_bottom'),
        Row('MMoE', EXPERIMENT),
    ),
    baseline='shared bottom',
    protocol='click',
)
