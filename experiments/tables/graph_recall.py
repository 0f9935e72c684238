r"""LightGCN and its family on MovieLens-1M as a graph and on Gowalla, stopped on validation.

python -m jaxrec.table --table=experiments/tables/graph_recall.py \
    --workdir=runs/tables/graph_recall --seeds=3 --results=results \
    --override=data.source=FOLDER

Prepare both data sets first, from folders that hold train.txt and test.txt
(`python -m jaxrec.prepare --dataset=ml-1m-graph --source=FOLDER`, gowalla). Every cell keeps what
needs no training beside it: popularity, the low-pass filter of rank 64 and, up to 8,192 items, EASE
and GF-CF, fitted on training and validation items. Published values were chosen on the test file.
"""

from jaxrec.paper.spec import Column, Ordering, Published, Row, Table

SHOWN = ('Recall@20', 'NDCG@20')
ML_1M, ML_1M_WHOLE, GOWALLA = 'ML-1M graph', 'ML-1M graph whole', 'Gowalla'


def row(name: str, key: str, *more: str) -> Row:
    """A member of the family, in the columns of both data sets and in those of `more`."""
    small = dict.fromkeys((ML_1M, *more), f'experiments/simgcl_ml1m.py:{key}')
    configs = {**small, GOWALLA: f'experiments/lightgcn_gowalla.py:{key}'}
    return Row(name, configs, columns=tuple(configs))


def on_ml_1m(name: str, key: str, *more: str) -> Row:
    """One that runs on MovieLens alone, in the columns of `more` too."""
    return Row(name, f'experiments/simgcl_ml1m.py:{key}', columns=(ML_1M, *more))


def at_20(values: str) -> dict[str, float]:
    """'Recall / NDCG' at 20."""
    return dict(zip(SHOWN, map(float, values.split('/')), strict=True))


LIGHTGCN, SGL, SIMGCL, XSIMGCL = 'LightGCN', 'SGL edge drop', 'SimGCL', 'XSimGCL'

TABLE = Table(
    title='Recall from a graph',
    caption='Whole catalogue ranked, training and validation items left out; the epoch with the '
    'best validation Recall@20 is tested; "whole" learns what validates too, for three '
    'epochs. Vectors of 64 numbers, wide 256.',
    columns=(
        Column(ML_1M, SHOWN),
        Column(
            ML_1M_WHOLE, SHOWN, {'task.valid_share': 0.0, 'train.patience': 0, 'train.epochs': 3}
        ),
        Column(GOWALLA, SHOWN),
    ),
    by_column=True,
    rows=(
        row('MF-BPR', 'mf'),
        row(LIGHTGCN, 'lightgcn'),
        on_ml_1m('SGL node drop', 'sgl-nd'),
        row(SGL, 'sgl-ed'),
        on_ml_1m('SGL random walk', 'sgl-rw'),
        on_ml_1m('SGL feature mask', 'sgl-fm'),
        row(SIMGCL, 'simgcl'),
        row(XSIMGCL, 'xsimgcl'),
        row('DirectAU', 'directau'),
        on_ml_1m('DirectAU LightGCN', 'directau-lightgcn'),
        row('MF softmax', 'mf-softmax'),
        on_ml_1m('MF softmax logQ of presence', 'mf-softmax-presence'),
        on_ml_1m('MF softmax no logQ', 'mf-softmax-no-logq'),
        row('LightGCN softmax', 'lightgcn-softmax'),
        on_ml_1m('XSimGCL softmax', 'xsimgcl-softmax'),
        row('MF multinomial', 'mf-multinomial', ML_1M_WHOLE),
        on_ml_1m('MF multinomial wide', 'mf-multinomial-wide', ML_1M_WHOLE),
        row('LightGCN multinomial', 'lightgcn-multinomial'),
    ),
    baseline=LIGHTGCN,
    shown=('MF-BPR', LIGHTGCN, XSIMGCL, 'MF multinomial wide'),
    published=(
        Published(
            'LightGCN',
            'He et al., SIGIR 2020 (arXiv 2002.02126)',
            '[R xue-pai/UltraGCN:README]',
            {GOWALLA: at_20('.1830/.1554')},
            beside=LIGHTGCN,
            doubt='The best epoch on the test file; learnt from all of train.',
            one_run=False,
        ),
        Published(
            'UltraGCN',
            'Mao et al., CIKM 2021 (arXiv 2110.15114)',
            '[R xue-pai/UltraGCN]',
            {ML_1M: at_20('.2787/.2642'), GOWALLA: at_20('.1862/.1580')},
            doubt='The best epoch on the test file; learnt from all of train; dim 128 on ML-1M.',
            one_run=False,
        ),
    ),
    orderings=(
        *(
            Ordering(
                better, worse, f'{better} improves on {worse}', source, columns=(ML_1M, GOWALLA)
            )
            for better, worse, source in (
                (SGL, LIGHTGCN, 'Wu et al., SIGIR 2021'),
                (SIMGCL, SGL, 'Yu et al., SIGIR 2022'),
                (XSIMGCL, LIGHTGCN, 'Yu et al., TKDE 2024'),
                (XSIMGCL, SIMGCL, 'Yu et al., TKDE 2024'),
            )
        ),
        Ordering(
            'MF softmax',
            'MF softmax no logQ',
            'logQ improves recall',
            'Yi et al., RecSys 2019',
            columns=(ML_1M,),
        ),
    ),
)
