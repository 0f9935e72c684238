r"""Nodes of Cora told apart without labels, public split: GRACE, GCA, ID-MixGCL, no training.

python -m jaxrec.table --table=experiments/tables/node_contrast.py \
    --workdir=runs/tables/node_contrast --seeds=10 --override=data.source=cora.npz \
    --results=results

Mixing is tried of inputs, hidden states and outputs, each beside the same encoder and views without
it ('InfoNCE'). Every cell keeps what needs no training: logistic regression on the features and on
A^2 X. The random splits are another table: the numbers differ by points.
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

MIXGCL, GRACE = 'experiments/mixgcl_cora.py', 'experiments/grace_cora.py'

TABLE = Table(
    title='Nodes of Cora told apart without labels, public split',
    caption='Logistic regression on the vectors, 140 labelled nodes; the step with the best '
    'validation accuracy is tested.',
    columns=(Column('Cora', ('accuracy',)),),
    rows=(
        Row('untrained GCN', MIXGCL, {'train.epochs': 1, 'optim.learning_rate': 1e-30}),
        Row('InfoNCE', MIXGCL, {'model.alpha': 0.0}),
        Row('GRACE', GRACE),
        Row('GCA', f'{GRACE}:gca'),
        Row('ID-MixGCL inputs', MIXGCL, {'model.mix_at': 0}),
        Row('ID-MixGCL hidden states', MIXGCL, {'model.mix_at': 1}),
        Row('ID-MixGCL outputs', MIXGCL, {'model.mix_at': 2}),
    ),
    baseline='InfoNCE',
    shown=('InfoNCE', 'GRACE', 'ID-MixGCL outputs'),
    protocol='nodes',
    orderings=tuple(
        Ordering(
            f'ID-MixGCL {what}',
            'GRACE',
            'mixing identities gains 3 to 29 points over the state of the art',
            'arXiv 2304.10045, abstract; no table of it could be read',
        )
        for what in ('inputs', 'hidden states', 'outputs')
    ),
)
