r"""Food and Kitchen where few users have both: CDSRNP's claim is about those who have one.

python -m jaxrec.table --table=experiments/tables/cross_domain_overlap.py \
    --workdir=runs/tables/cross_domain_overlap --seeds=5 --results=results

Rows are those of cross_domain_sequences.py that the claim needs, on two logs: that in which a
quarter of the users keeps both domains, and LLMCDSR's, where a sixth has both from the start. The
others, in whom one that is drawn for each is hidden, are about three quarters of the targets of the
first; of the second four fifths have one domain (food-kitchen-llmcdsr-alone holds them out). The
report of a run tells them apart by 'history of'.
"""

import pathlib
import runpy

from jaxrec.paper.spec import Column, Ordering, Table

_all = runpy.run_path(str(pathlib.Path(__file__).with_name('cross_domain_sequences.py')))
SHOWN = 'HR@10', 'NDCG@10', 'MRR'
LLMCDSR = {'data.dataset': 'food-kitchen-llmcdsr-alone', 'task.split': 'given-users'}
NAMES = ('SASRec per domain', 'SASRec merged', 'SASRec one table', 'C2DSR corrected')

TABLE = Table(
    title='Two domains, few users of both',
    caption='A quarter, or in LLMCDSR a sixth, of the users has both domains. Every target among '
    'all items of its domain, seen ones aside.',
    columns=(
        Column('Food-Kitchen 25 %', SHOWN, {'task.overlap': 0.25}),
        Column('Food-Kitchen LLMCDSR', SHOWN, LLMCDSR),
    ),
    by_column=True,
    rows=tuple(r for r in _all['ROWS'] if r.name in NAMES or r.name.startswith('CDSRNP')),
    baseline=_all['MERGED'].name,
    orderings=(
        *(
            Ordering(*claim, among=among)
            for claim in _all['CLAIMS']
            for among in ((), ('history of', "the target's alone"))
            if claim[0] == 'CDSRNP'
        ),
        Ordering(
            'CDSRNP',
            'C2DSR corrected',
            "users of both domains: not worse, so not 'the opposite'",
            'a bar',
            ('NDCG@10',),
            among=('history of', 'both domains'),
        ),
    ),
)
