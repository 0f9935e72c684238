r"""Sequences over two domains, Food and Kitchen: does the other domain help, and what shows it?

python -m jaxrec.table --table=experiments/tables/cross_domain_sequences.py \
    --workdir=runs/tables/cross_domain_sequences --seeds=5 --results=results

With `--override=data.source=FOLDER` the files are read from there (see c2dsr_food_kitchen.py); else
they are downloaded. All rows have vectors of 64, windows of 32 events, one block, dropout .4 and
the same budget; so C2DSR is the authors' in its formulas, not in its width of 256. 'C2DSR
corrected' and the rows that change it have all corrections of models/c2dsr.py, among them that
every event learns the vector that lists are made of. SASRec per domain and SASRec merged are
C2DSR's encoders alone, SASRec with one table is the library's, whose softmax is over both domains;
heads of both are tokens, those of C2DSR are not. Popularity, Markov in the domain and
neighbourhoods of items of the own, the other and both domains stand beside every result.

A row with a gain over SASRec merged says nothing of transfer where its control has the same gain:
'domains shuffled' trains and reads users whose events of the other domain are another user's,
'support shuffled' is CDSRNP on a support of such users. The report of a run tells domains and kinds
of users apart. No product of ABXI's log is in both domains.

An epoch of SASRec merged is a quarter of a minute of a CPU core, of CDSRNP half a minute, of SASRec
with one table, whose softmax is over both domains, three quarters; runs stop after 15 to 25.
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

SHOWN = ('HR@1', 'HR@5', 'HR@10', 'NDCG@5', 'NDCG@10', 'MRR')
C2DSR = 'experiments/c2dsr_food_kitchen.py'
CDSRNP = 'experiments/cdsrnp_food_kitchen.py'
SAME = {
    'model.dim': 64,
    'model.blocks': 1,
    'model.max_len': 32,
    'model.dropout': 0.4,
    'optim.learning_rate': 1e-3,
    'train.batch_rows': 32,
    'train.epochs': 60,
    'train.eval_every': 1,
    'train.patience': 5,
}
CORRECTED = {
    **SAME,
    'model.masked': True,
    'model.once': True,
    'model.pad': False,
    'model.served': True,
}
ABXI = (
    'ABXI (Bian et al., WWW 2025, of their repository), the target among 999 drawn items, is '
    'another protocol: HR@10 .3243, NDCG@10 .1971, MRR .1655 on Food, .2438, .1427, .1219 on '
    "Kitchen. Ranking everything, a run of the authors' C2DSR on other files of these domains had "
    'NDCG@10 .0282 on Food and .0093 on Kitchen.'
)


def c2dsr(name: str, **changes) -> Row:
    """A row of C2DSR with the corrections; names of fields after the dot of 'model.'."""
    return Row(name, C2DSR, {**CORRECTED, **{f'model.{k}': v for k, v in changes.items()}})


MERGED = Row('SASRec merged', f'{C2DSR}:merged', SAME)
FULL, NEURAL = c2dsr('C2DSR corrected'), Row('CDSRNP', CDSRNP, SAME)

ROWS = (
    Row('SASRec per domain', f'{C2DSR}:own', SAME),
    MERGED,
    Row(
        'SASRec one table',
        'experiments/sasrec_food_kitchen.py',
        {**SAME, 'model.embedding_dropout': 0.4},
    ),
    Row('SASRec merged domains shuffled', f'{C2DSR}:merged', {**SAME, 'task.shuffled': True}),
    Row('C2DSR', C2DSR, SAME),
    FULL,
    c2dsr('C2DSR without infomax', mix=1.0),
    c2dsr('C2DSR without graph', graph=0),
    c2dsr('C2DSR without both', mix=1.0, graph=0),
    Row('C2DSR domains shuffled', C2DSR, {**CORRECTED, 'task.shuffled': True}),
    NEURAL,
    Row('CDSRNP without latent', CDSRNP, {**SAME, 'model.latent': 0}),
    Row('CDSRNP without bridge', CDSRNP, {**SAME, 'model.bridge': False}),
    Row('CDSRNP without both', CDSRNP, {**SAME, 'model.latent': 0, 'model.bridge': False}),
    Row('CDSRNP support shuffled', CDSRNP, {**SAME, 'model.shuffled': True}),
)
CLAIMS = (
    ('SASRec merged', 'SASRec merged domains shuffled', 'the other domain helps', 'its control'),
    ('C2DSR corrected', 'SASRec per domain', 'NDCG@10 +10 %', 'a bar', ('NDCG@10',), 0.1),
    *(
        ('C2DSR corrected', worse, claim, 'a bar', ('NDCG@10',), margin, ('domain', domain))
        for worse, claim, margin in (
            ('SASRec per domain', 'NDCG@10 +10 %, in either domain', 0.1),
            ('SASRec merged', "no domain worse: not 'the opposite'", 0.0),
        )
        for domain in ('food', 'kitchen')
    ),
    ('C2DSR corrected', 'SASRec merged', 'three encoders beat one', 'Cao et al., CIKM 2022'),
    ('C2DSR corrected', 'C2DSR without infomax', 'infomax helps', 'Cao et al., CIKM 2022'),
    ('C2DSR without infomax', 'C2DSR without both', 'the graph helps', 'Cao et al., CIKM 2022'),
    ('C2DSR corrected', 'C2DSR domains shuffled', 'what helps is the other domain', 'its control'),
    (
        'CDSRNP',
        'SASRec merged',
        'NDCG@10 +2 %',
        'a bar, for users of one domain',
        ('NDCG@10',),
        0.02,
    ),
    ('CDSRNP', 'CDSRNP without both', 'the process helps', 'arXiv 2410.13588'),
    ('CDSRNP', 'CDSRNP support shuffled', 'what helps is the support', 'its control'),
)

TABLE = Table(
    title='Two domains: Food and Kitchen',
    caption=f'Every target among all items of its domain, seen ones aside. {ABXI}',
    columns=(Column('Food-Kitchen', SHOWN),),
    rows=ROWS,
    baseline=MERGED.name,
    shown=('SASRec per domain', MERGED.name, NEURAL.name),
    orderings=tuple(Ordering(*claim) for claim in CLAIMS),
)
