r"""KuaiFormer and what it is made of on KuaiRand-Pure, beside SASRec and ComiRec in the same frame.

python -m jaxrec.table --table=experiments/tables/kuaiformer_kuairand.py \
    --workdir=runs/tables/kuaiformer_kuairand --seeds=3 --override=data.source=FOLDER

FOLDER holds the data set's files, see jaxrec/datasets/kuairand.py. Two epochs with linear decay.
"""

from jaxrec.paper.spec import Column, Row, Table

EXPERIMENT = 'experiments/kuaiformer_kuairand.py'
SHORT = {
    'train.epochs': 2,
    'optim.learning_rate': 3e-3,
    'optim.schedule': 'linear',
    'train.patience': 0,
}
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
    rows=tuple(
        Row(name, EXPERIMENT + arg, {**SHORT, **changed}) for name, (arg, changed) in ROWS.items()
    ),
    baseline='KuaiFormer',
)
