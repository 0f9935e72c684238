r"""Food and Kitchen where few users have both: CDSRNP's claim is about those who have one.

python -m jaxrec.table --table=experiments/tables/cross_domain_overlap.py \
    --workdir=runs/tables/cross_domain_overlap --seeds=5 --results=results

Rows are those of cross_domain_sequences.py that the claim needs, on the log in which a quarter of
the users keeps both domains. The others, in whom one that is drawn for each is hidden, are about
three quarters of the targets; the report of a run tells them apart by 'history of'.
"""

import pathlib
import runpy

from jaxrec.paper.spec import Column, Ordering, Table

_all = runpy.run_path(str(pathlib.Path(__file__).with_name('cross_domain_sequences.py')))
NAMES = ('SASRec per domain', 'SASRec merged', 'SASRec one table', 'C2DSR corrected')

TABLE = Table(
    title='Two domains, few users of both',
    caption='A quarter of the users keeps both domains. Every target among all items of its '
    'domain, seen ones aside.',
    columns=(Column('Food-Kitchen 25 %', ('HR@10', 'NDCG@10', 'MRR'), {'task.overlap': 0.25}),),
    rows=tuple(r for r in _all['ROWS'] if r.name in NAMES or r.name.startswith('CDSRNP')),
    baseline=_all['MERGED'].name,
    orderings=tuple(Ordering(*claim) for claim in _all['CLAIMS'] if claim[0] == 'CDSRNP'),
)
