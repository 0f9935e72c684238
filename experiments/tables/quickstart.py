r"""The quickstart: SASRec on MovieLens 100K.

python -m jaxrec.table --table=experiments/tables/quickstart.py --workdir=runs/tables/quickstart \
    --seeds=5 --results=results
"""

from jaxrec.paper.spec import Column, Row, Table

SASREC = 'SASRec quickstart'

TABLE = Table(
    title='The quickstart',
    caption='MovieLens 100K, leave one out, whole catalogue ranked, seen items removed.',
    columns=(Column('ML-100K', ('HR@10', 'NDCG@10')),),
    rows=(Row(SASREC, 'experiments/quickstart.py'),),
    baseline=SASREC,
    shown=(SASREC,),
)
