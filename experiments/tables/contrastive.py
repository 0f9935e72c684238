r"""The contrastive family over one SASRec, whole catalogue ranked: each objective beside none.

python -m jaxrec.table --table=experiments/tables/contrastive.py \
    --workdir=runs/tables/contrastive --seeds=3 --results=results

Rows are experiments/contrastive_beauty.py with each of its terms, disentangled seq2seq (Ma et al.,
KDD 2020), the terms of Kuaishou's framework one by one (experiments/multi_signal_beauty.py; its
model without terms is the row without; on ML-1M too), and CLRec, Multi-CLRec and CBNS beside the
in-batch softmax with logQ (experiments/clrec_beauty.py). The framework's aims, from the talk, are
relative: HR@20 +23 %, HR@50 +16 %, NDCG@20 +28 % over SASRec, most of it on the long tail.
"""

import pathlib
import runpy

from jaxrec.paper.spec import Column, Ordering, Row, Table

_cl4srec = runpy.run_path(str(pathlib.Path(__file__).with_name('cl4srec.py')))
BEAUTY = 'experiments/contrastive_beauty.py'
SHOWN = ('HR@10', 'NDCG@10', 'HR@20', 'HR@50', 'NDCG@20')
COLUMNS = (
    Column('Beauty', SHOWN, {'data.dataset': 'beauty'}),
    Column('ML-1M', SHOWN, _cl4srec['ML_1M']),
)
NONE = 'SASRec BCE'
TERMS = {
    'cl4srec': 'CL4SRec',
    'simclr': 'SimCLR',
    'decoupled': 'decoupled InfoNCE',
    'moco': 'MoCo',
    'swav': 'SwAV',
    'simsiam': 'SimSiam',
    'byol': 'BYOL',
    'simcse': 'SimCSE',
    'consert': 'ConSERT',
    'adversarial': 'ConSERT adversarial',
    'direct_au': 'DirectAU',
}
FRAMEWORK = {
    'user_item': 'Kuaishou user-item',
    'user_user': 'Kuaishou user-user',
    'feedback': 'Kuaishou feedback',
    'all': 'Kuaishou all three',
}
DEBIASED = {
    'logq': 'in-batch logQ',
    'clrec': 'CLRec',
    'multi': 'Multi-CLRec',
    'cbns': 'CBNS',
}


def on_beauty(*args) -> Row:
    """A row that the claims of the framework do not need on ML-1M."""
    return Row(*args, columns=('Beauty',))


TABLE = Table(
    title='Contrastive objectives over SASRec',
    caption='Encoder, main loss and budget are the same for all but the rows from in-batch on. '
    'ML-1M has 3,416 items.',
    columns=COLUMNS,
    rows=(
        Row(NONE, f'{BEAUTY}:none'),
        *(on_beauty(name, f'{BEAUTY}:{arg}') for arg, name in TERMS.items()),
        on_beauty('disentangled seq2seq', f'{BEAUTY}:none', {'model.seq2seq.weight': 0.1}),
        *(
            Row(name, f'experiments/multi_signal_beauty.py:{arg}')
            for arg, name in FRAMEWORK.items()
        ),
        *(on_beauty(name, f'experiments/clrec_beauty.py:{arg}') for arg, name in DEBIASED.items()),
    ),
    baseline=NONE,
    shown=(NONE, FRAMEWORK['user_user'], FRAMEWORK['all']),
    orderings=tuple(
        Ordering(
            FRAMEWORK['all'],
            NONE,
            f'{metric} +{gain:.0%}, on internal and public data',
            'talk of Luo Qing (Kuaishou), 2022',
            (metric,),
            gain,
        )
        for metric, gain in {'HR@20': 0.23, 'HR@50': 0.16, 'NDCG@20': 0.28}.items()
    ),
)
