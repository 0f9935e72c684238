r"""KuaiFormer and what it is made of on KuaiRand-Pure, beside SASRec and ComiRec in the same frame.

python -m jaxrec.table --table=experiments/tables/kuaiformer_kuairand.py \
    --workdir=runs/tables/kuaiformer_kuairand --seeds=5 --override=data.source=FOLDER \
    --results=results

FOLDER holds the data set's files, see jaxrec/datasets/kuairand.py. A run takes a quarter of an hour
of a CPU core.
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

EXPERIMENT = 'experiments/kuaiformer_kuairand.py'
ROWS = {
    'KuaiFormer': ('', {}),
    'SASRec': (':sasrec', {}),
    'ComiRec-SA': (':comirec', {}),
    'k = 1': ('', {'model.interests': 1}),
    'no features': ('', {'model.features': ()}),
    'no logQ': ('', {'model.in_batch.logq': 'none'}),
    'streaming logQ': ('', {'model.in_batch.logq': 'streaming'}),
}

TABLE = Table(
    title='KuaiFormer on KuaiRand-Pure',
    caption='Watched videos with earlier ones as prefix; the newest tenth of the events tests.',
    columns=(Column('KuaiRand-Pure', ('HR@50', 'HR@500')),),
    rows=tuple(Row(name, EXPERIMENT + arg, changed) for name, (arg, changed) in ROWS.items()),
    baseline='KuaiFormer',
    orderings=(
        Ordering('KuaiFormer', 'k = 1', 'several interests find more', 'arXiv 2411.10057'),
        Ordering(
            'KuaiFormer',
            'SASRec',
            'by 5 %, under the same loss and features',
            'the bar of this table',
            ('HR@50',),
            0.05,
        ),
    ),
)
