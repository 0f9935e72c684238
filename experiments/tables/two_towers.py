r"""Two towers, SASRec and KuaiFormer under the same in-batch negatives; the item tower's own term.

python -m jaxrec.table --table=experiments/tables/two_towers.py --workdir=runs/tables/two_towers \
    --seeds=5 --results=results

Prepare the data sets first (`python -m jaxrec.prepare --dataset=ml-1m`, beauty-attributes,
kuairand-pure-watched). No published numbers are under this protocol: the paper of the item tower's
own term (Yao et al., CIKM 2021) has other data, and claims most for items with few events, which
every cell keeps apart ('training events' and 'popularity' in its groups). MF-BPR's cells keep EASE.
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

EXPERIMENT = 'experiments/two_towers.py'
DATA = {
    'ML-1M': 'ml-1m',
    'Beauty': 'beauty-attributes',
    'KuaiRand-Pure': 'kuairand-pure-watched',
}
PLAIN = 'two towers'
ROWS = {
    'two towers no logQ': 'no-logq',
    'two towers logQ of batches': 'streaming',
    'two towers logQ of examples': 'examples',
    PLAIN: 'mean',
    'two towers user id': 'user-id',
    'two towers mixed negatives': 'mixed',
    'two towers transformer': 'transformer',
    'item views RFM': 'rfm',
    'item views RFM independent': 'rfm-independent',
    'item views CFM': 'cfm',
    'SASRec': 'sasrec',
    'KuaiFormer': 'kuaiformer',
    'MF-BPR': 'mf-bpr',
}

TABLE = Table(
    title='Two towers',
    caption='Leave one out, whole catalogue ranked; in-batch softmax with counted logQ but where a '
    'row says otherwise.',
    columns=tuple(Column(name, ('HR@10', 'NDCG@10')) for name in DATA),
    rows=tuple(
        Row(name, {column: f'{EXPERIMENT}:{data},{arg}' for column, data in DATA.items()})
        for name, arg in ROWS.items()
    ),
    baseline=PLAIN,
    shown=(PLAIN, 'two towers no logQ', 'item views CFM', 'SASRec', 'KuaiFormer'),
    orderings=(
        Ordering(PLAIN, 'two towers no logQ', 'logQ improves recall', 'Yi et al., RecSys 2019'),
        Ordering('item views RFM', PLAIN, 'the term improves recall', 'Yao et al., CIKM 2021'),
        *(
            Ordering(
                f'item views {masks}',
                PLAIN,
                'most for items with few events',
                'Yao et al., CIKM 2021',
                among=('training events', '1 to 5'),
            )
            for masks in ('RFM', 'CFM')
        ),
        Ordering('item views CFM', 'item views RFM', 'CFM over RFM', 'Yao et al., CIKM 2021'),
    ),
)
