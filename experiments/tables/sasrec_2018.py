r"""SASRec's own table: 100 sampled negatives, Games and MovieLens 1M (Kang & McAuley 2018).

python -m jaxrec.table --table=experiments/tables/sasrec_2018.py \
    --workdir=runs/tables/sasrec_2018 --seeds=5 --results=results

Numbers under this protocol say little about ranking the whole catalogue and must not be compared
with those of the other tables. Prepare the data sets first
(`python -m jaxrec.prepare --dataset=games` and `ml-1m-sasrec`).
"""

from jaxrec.paper.spec import Column, Published, Row, Table

SHOWN = ('HR@10', 'NDCG@10')
PAPER = 'Kang & McAuley, ICDM 2018 (arXiv 1808.09781), Table III'
OURS = Row(
    'SASRec',
    {
        'Games': 'experiments/sasrec_games_2018.py',
        'ML-1M': 'experiments/sasrec_ml1m_2018.py',
    },
)


def line(name: str, games: tuple, ml_1m: tuple, *, of=PAPER, tag='[paper Table 3]', **more):
    """A published row: HR@10 and NDCG@10 of both data sets."""
    values = {
        'Games': dict(zip(SHOWN, games, strict=True)),
        'ML-1M': dict(zip(SHOWN, ml_1m, strict=True)),
    }
    return Published(name, of, tag, values, **more)


PMIXER = {
    'of': 'a re-implementation in PyTorch, the layer norms of the authors or pre-LN',
    'tag': '[R pmixer/SASRec.pytorch:Result_Norm.md]',
    'beside': OURS.name,
}

TABLE = Table(
    title='SASRec 2018: one target among 100 sampled items',
    caption='The target among 100 uniform negatives outside the training items, 10,000 users where '
    "there are more, as in the authors' code.",
    columns=(Column('Games', SHOWN), Column('ML-1M', SHOWN)),
    rows=(OURS,),
    baseline=OURS.name,
    shown=(OURS.name,),
    protocol='sasrec-2018',
    published=(
        line('SASRec, the paper', (0.7410, 0.5360), (0.8245, 0.5905), beside=OURS.name),
        line('SASRec, PyTorch', (0.7318, 0.5308), (0.8242, 0.5946), **PMIXER),
        line('SASRec, PyTorch, pre-LN', (0.7442, 0.5376), (0.8252, 0.5940), **PMIXER),
        line('PopRec', (0.4724, 0.2779), (0.4329, 0.2377)),
        line('BPR', (0.4853, 0.2875), (0.5781, 0.3287)),
        line('FMC', (0.6358, 0.4456), (0.6986, 0.4676)),
        line('FPMC', (0.6802, 0.4680), (0.7599, 0.5176)),
        line('TransRec', (0.6838, 0.4557), (0.6413, 0.3969)),
        line('GRU4Rec', (0.2938, 0.1837), (0.5581, 0.3381)),
        line('GRU4Rec+', (0.6599, 0.4759), (0.7501, 0.5513)),
        line('Caser', (0.5282, 0.3214), (0.7886, 0.5538)),
    ),
)
