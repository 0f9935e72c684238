r"""GCN on Cora, with the paper's hidden units and with four times as many.

python -m jaxrec.table --table=experiments/tables/gcn_cora.py --workdir=runs/tables/gcn_cora \
    --seeds=5 --override=data.source=cora.npz --results=results
"""

from jaxrec.paper.spec import Column, Published, Row, Table

EXPERIMENT = 'experiments/gcn_cora.py'
SMALL, LARGE = 'GCN 16 hidden units', 'GCN 64 hidden units'

TABLE = Table(
    title='Nodes of Cora, public split',
    caption='140 labelled nodes; the step with the best validation accuracy is tested.',
    columns=(Column('Cora', ('accuracy',)),),
    rows=(
        Row(SMALL, EXPERIMENT, {'model.hidden': 16}),
        Row(LARGE, EXPERIMENT),
    ),
    baseline=SMALL,
    shown=(SMALL, LARGE),
    protocol='nodes',
    published=(
        Published(
            'GCN',
            'Kipf & Welling, ICLR 2017 (arXiv 1609.02907), Table 2, mean of 100 runs',
            '[paper]',
            {'Cora': {'accuracy': 0.815}},
            beside=SMALL,
            one_run=False,
        ),
    ),
)
