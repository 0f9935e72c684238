r"""Graphs of IMDB-BINARY and PROTEINS told apart without labels: GraphCL, ID-MixGCL, no training.

python -m jaxrec.table --table=experiments/tables/graph_contrast.py \
    --workdir=runs/tables/graph_contrast --seeds=10 --override=data.source=FOLDER \
    --results=results

FOLDER holds IMDBBINARY.txt and PROTEINS.txt. Mixing is tried of inputs, hidden states and outputs,
each beside the same encoder and views without it ('InfoNCE'). Every cell keeps what needs no model:
the largest class, SVMs on the nodes' tags, on these smoothed, and on five statistics of the graph.
"""

from jaxrec.paper.spec import Column, Ordering, Published, Row, Table

IMDB, PROTEINS, SHOWN = 'IMDB-B', 'PROTEINS', ('accuracy',)
EXPERIMENT = 'experiments/graphcl_tu.py'
ROWS = {
    'untrained GIN': 'untrained',
    'GraphCL': 'graphcl',
    'InfoNCE': 'infonce',
    'ID-MixGCL inputs': 'mix-inputs',
    'ID-MixGCL hidden states': 'mix-hidden',
    'ID-MixGCL outputs': 'mix-outputs',
    'ID-MixGCL hidden states alone': 'mix-alone',
}

TABLE = Table(
    title='Graphs told apart without labels',
    caption='Linear SVM on the vectors, ten folds, C by folds of the nine; the last of 20 epochs.',
    columns=(
        Column(IMDB, SHOWN, {'data.dataset': 'imdb-binary'}),
        Column(PROTEINS, SHOWN, {'data.dataset': 'proteins'}),
    ),
    rows=tuple(Row(name, f'{EXPERIMENT}:{arg}') for name, arg in ROWS.items()),
    baseline='InfoNCE',
    shown=('untrained GIN', 'GraphCL', 'ID-MixGCL inputs'),
    protocol='graphs',
    published=(
        Published(
            'GraphCL',
            'You et al., NeurIPS 2020 (arXiv 2010.13902), Table 3, mean of 5 runs',
            '[M]',
            {IMDB: {'accuracy': 0.7114}, PROTEINS: {'accuracy': 0.7439}},
            beside='GraphCL',
            doubt='From memory, not read again; by an SVM with an RBF kernel, vectors as they are.',
            one_run=False,
        ),
    ),
    orderings=tuple(
        Ordering(
            f'ID-MixGCL {what}',
            'InfoNCE',
            'mixing identities gains 3 to 29 points over the state of the art',
            'arXiv 2304.10045, abstract; no table of it could be read',
        )
        for what in ('inputs', 'hidden states', 'outputs')
    ),
)
