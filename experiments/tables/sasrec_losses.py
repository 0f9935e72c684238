r"""SASRec under four losses on four data sets, whole catalogue ranked.

python -m jaxrec.table --table=experiments/tables/sasrec_losses.py \
    --workdir=runs/tables/sasrec_losses --seeds=5 --results=results

Published lines stand under the row of the same loss, and only where the data set is the same file:
the Beauty and Yelp of Klenitskiy & Vasilev are others. Prepare the data sets first
(`python -m jaxrec.prepare --dataset=beauty`, sports, yelp, ml-1m-sasrec).
"""

from jaxrec.paper.spec import Column, Published, Row, Table

SHOWN = ('HR@10', 'NDCG@10')
ML_1M = {  # windows of 200, 64 rows hold about 128 users, turns of 16 rows on a CPU
    'data.dataset': 'ml-1m-sasrec',
    'model.max_len': 200,
    'model.embedding_dropout': 0.2,
    'train.batch_rows': 64,
    'train.microbatches': 0,
}
COLUMNS = (
    Column('Beauty', SHOWN, {'data.dataset': 'beauty'}),
    Column('Sports', SHOWN, {'data.dataset': 'sports'}),
    Column('Yelp', SHOWN, {'data.dataset': 'yelp'}),
    Column('ML-1M', SHOWN, ML_1M),
)
BCE = Row('SASRec BCE', 'experiments/sasrec_losses.py:bce')
GBCE = Row('SASRec gBCE', 'experiments/sasrec_losses.py:gbce')
SAMPLED = Row('SASRec sampled softmax', 'experiments/sasrec_losses.py:sampled_softmax')
SOFTMAX = Row('SASRec softmax', 'experiments/sasrec_losses.py:softmax')


def at(metric_values: str, cutoffs=(5, 10, 20)) -> dict[str, float]:
    """'HR HR HR ; NDCG NDCG NDCG' at the cut-offs, by name of the metric."""
    hits, gains = (map(float, part.split('/')) for part in metric_values.split(';'))
    found = {f'HR@{k}': v for k, v in zip(cutoffs, hits, strict=True)}
    return found | {f'NDCG@{k}': v for k, v in zip(cutoffs, gains, strict=True)}


def at_10(values: str) -> dict[str, float]:
    """'HR / NDCG' at 10."""
    return at(values.replace('/', ';'), (10,))


KLENITSKIY = 'Klenitskiy & Vasilev, RecSys 2023 (arXiv 2309.07602)'
ESASREC = 'Tikhonovich et al., RecSys 2025 (arXiv 2508.06450)'
GSASREC = 'Petrov & Macdonald, RecSys 2023 (arXiv 2308.07192)'
RAW_ML_1M = 'ML-1M here is the raw file with 3,706 items, not the 3,416 of our column.'

PUBLISHED = (
    Published(
        'SASRec, S3-Rec repository',
        'Zhou et al., CIKM 2020, full ranking of the repository',
        '[R RUCAIBox/CIKM2020-S3Rec:all_rank.PNG]',
        {
            'Beauty': at('.0387/.0605/.0902 ; .0249/.0318/.0394'),
            'Sports': at('.0233/.0350/.0507 ; .0154/.0192/.0231'),
            'Yelp': at('.0162/.0274/.0457 ; .0100/.0136/.0182'),
        },
        beside=BCE.name,
    ),
    Published(
        'SASRec, BCE, Klenitskiy',
        KLENITSKIY,
        '[R antklen/sasrec-bert4rec-recsys23:README]',
        {'ML-1M': at_10('.2500/.1341')},
        beside=BCE.name,
    ),
    Published(
        'SASRec, BCE, gSASRec authors',
        f'{GSASREC}; checkpoint of their repository',
        '[R asash/gSASRec-pytorch:README]',
        {'ML-1M': {'HR@1': 0.0442, **at_10('.2392/.1259')}},
        beside=BCE.name,
    ),
    Published(
        'SASRec, BCE, independent',
        'an unreviewed ablation on ML-1M, 3,416 items',
        '[secondary]',
        {'ML-1M': at_10('.2475/.1322')},
        beside=BCE.name,
        doubt='Unreviewed personal repository.',
    ),
    Published(
        'gSASRec',
        f'{GSASREC}; checkpoint of their repository',
        '[R asash/gSASRec-pytorch:README]',
        {'ML-1M': {'HR@1': 0.0754, **at_10('.3003/.1726')}},
        beside=GBCE.name,
        doubt='Another frame: dim 128, untied output table, window 200, dropout .5.',
    ),
    Published(
        'SASRec + sampled softmax',
        f'{ESASREC}, 256 negatives per position',
        '[R blondered/transformer_benchmark:README]',
        {
            'Beauty': at_10('.0921/.0531'),
            'Sports': at_10('.0569/.0314'),
            'ML-1M': at_10('.2929/.1684'),
        },
        beside=SAMPLED.name,
        doubt=f'{RAW_ML_1M} The repository contradicts itself on the width: 64 or 256.',
    ),
    Published(
        'SASRec+ 3000',
        f'{KLENITSKIY}, 3,000 negatives per sequence',
        '[R antklen/sasrec-bert4rec-recsys23:README]',
        {'ML-1M': at_10('.3159/.1857')},
        beside=SAMPLED.name,
    ),
    Published(
        'SASRec+',
        KLENITSKIY,
        '[R antklen/sasrec-bert4rec-recsys23:README]',
        {'ML-1M': at_10('.3152/.1821')},
        beside=SOFTMAX.name,
    ),
    Published(
        'SASRec, softmax, gSASRec authors',
        GSASREC,
        '[secondary]; HR@10 [R blondered/transformer_benchmark:README "Reported"]',
        {'ML-1M': {'HR@1': 0.073, **at_10('.293/.169')}},
        beside=SOFTMAX.name,
        doubt='HR@10 and NDCG@10 come from different documents, printed with three decimals.',
        one_run=False,
    ),
    Published(
        'SASRec, softmax, RecBole',
        'a re-run on the S3-Rec file, window 50',
        '[R kanishkaRandunu/pswrec2k26:results_table_updated.md]',
        {'Beauty': at_10('.0848/.0432')},
        beside=SOFTMAX.name,
    ),
    Published(
        'SASRec, softmax, independent',
        'an unreviewed ablation on ML-1M, 3,416 items',
        '[secondary]',
        {'ML-1M': at_10('.3033/.1749')},
        beside=SOFTMAX.name,
        doubt='Unreviewed personal repository.',
    ),
)

TABLE = Table(
    title='SASRec and its losses',
    caption='One encoder (2018 block, dim 128, 1 block, 1 head, window 50, 200 on ML-1M), four '
    'losses: BCE with one negative, gBCE and sampled softmax with 256 uniform negatives shared by '
    'a packed row, exact softmax. Nothing else differs.',
    columns=COLUMNS,
    rows=(BCE, GBCE, SAMPLED, SOFTMAX),
    baseline=BCE.name,
    shown=(BCE.name, GBCE.name, SAMPLED.name, SOFTMAX.name),
    published=PUBLISHED,
)
