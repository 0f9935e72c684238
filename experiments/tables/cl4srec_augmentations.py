r"""CL4SRec's augmentations one by one on Amazon Beauty, under BCE and under the exact softmax.

python -m jaxrec.table --table=experiments/tables/cl4srec_augmentations.py \
    --workdir=runs/tables/cl4srec_augmentations --seeds=3 --results=results

Rows are experiments/cl4srec_beauty.py with the rates of one augmentation, or of all three.
"""

from jaxrec.paper.spec import Column, Row, Table

RATES = {'crop': 0.3, 'mask': 0.3, 'reorder': 0.6}


def row(loss: str, chosen: str) -> Row:
    """`chosen` is an augmentation, 'all' or 'none'."""
    rates = {
        f'model.contrast.0.{name}': rate if chosen in (name, 'all') else 0.0
        for name, rate in RATES.items()
    }
    overrides = {'model.contrast': ()} if chosen == 'none' else rates
    return Row(f'{loss} {chosen}', f'experiments/cl4srec_beauty.py:{loss}', overrides)


TABLE = Table(
    title='CL4SRec: one augmentation or all',
    caption='Rates: crop .3, mask .3, reorder .6; the rest is experiments/cl4srec_beauty.py.',
    columns=(Column('Beauty', ('HR@10', 'NDCG@10')),),
    rows=tuple(row(loss, a) for loss in ('bce', 'softmax') for a in ('none', *RATES, 'all')),
    baseline='bce none',
)
