r"""A table in two minutes: SASRec's losses on generated histories. It tries out the machinery.

python -m jaxrec.table --table=experiments/tables/smoke.py --workdir=runs/tables/smoke --seeds=2
"""

from jaxrec.paper.spec import Column, Ordering, Published, Row, Table

_SMALL = {
    'model.dim': 16,
    'model.blocks': 1,
    'model.max_len': 16,
    'model.dropout': 0.1,
    'train.batch_rows': 16,
    'train.epochs': 8,
    'train.patience': 3,
    'optim.learning_rate': 1e-2,
}

TABLE = Table(
    title='Two losses on generated histories',
    caption='Not a result: it shows what a table looks like, and is quick to make.',
    columns=(
        Column(
            'Generated',
            ('HR@10', 'NDCG@10'),
            {'data.dataset': 'synthetic:users=600,items=120,length=14'},
        ),
    ),
    rows=(
        Row(
            'SASRec BCE',
            'experiments/quickstart.py',
            {**_SMALL, 'model.loss': 'bce', 'model.negatives': 1},
        ),
        Row('SASRec softmax', 'experiments/quickstart.py', {**_SMALL, 'model.loss': 'softmax'}),
    ),
    baseline='SASRec BCE',
    published=(
        Published(
            'invented, possible',
            'nobody; there to show how published numbers look',
            '[invented]',
            {'Generated': {'HR@5': 0.1, 'NDCG@5': 0.06, 'HR@10': 0.2, 'NDCG@10': 0.09}},
        ),
        Published(
            'invented, impossible',
            'nobody; NDCG cannot rise so much while HR rises so little',
            '[invented]',
            {'Generated': {'HR@5': 0.1, 'NDCG@5': 0.06, 'HR@10': 0.12, 'NDCG@10': 0.09}},
            doubt='Invented to be flagged.',
        ),
    ),
    orderings=(
        Ordering('SASRec softmax', 'SASRec BCE', 'softmax above BCE', 'the wisdom of the field'),
    ),
)
