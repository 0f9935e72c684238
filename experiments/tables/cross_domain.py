r"""Two domains that share users: UniCDR and UniCDR+ on pairs, every column under its own protocol.

python -m jaxrec.table --table=experiments/tables/cross_domain.py \
    --workdir=runs/tables/cross_domain --seeds=5 --results=results \
    --only='Sport and Cloth' --override=data.source=FOLDER/sport_cloth

Every pair has a folder of its own: run a column at a time, with --only=COLUMN and
--override=data.source=FOLDER/sport_cloth, sport_phone or game_video. Numbers are of the rows of
both domains together; every cell keeps those of each domain, of twin and of clean rows, and beside
them popularity and neighbours of the own, the other and both domains, which learn nothing. The
checkpoint is chosen by the mean of the two domains' NDCG@10. Published values are of one run by a
third party with the authors' code, HR and NDCG at 10, for each domain: Sport .1948/.1208, Cloth
.1934/.1235 (chosen on the test file); Game .0752/.0363, Video .1104/.0584
([R ankitaanand28/DA626_Uni_CDR: inference_*.ipynb]).
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

SHOWN = ('HR@10', 'NDCG@10')
SPORT_CLOTH, SPORT_PHONE = 'Sport and Cloth', 'Sport and Phone'  # the second has few twins
GAME_VIDEO = 'Game and Video cold'
FILES = {
    SPORT_CLOTH: 'experiments/unicdr_sport_cloth.py',
    SPORT_PHONE: 'experiments/unicdr_sport_cloth.py',
    GAME_VIDEO: 'experiments/unicdr_game_video.py',
}
UNICDR, PLUS, MF = 'UniCDR', 'UniCDR plus', 'MF in each domain'
BIASED = 'UniCDR with item biases'  # ours


def on_pairs(name: str, key: str, columns: tuple[str, ...] = tuple(FILES)) -> Row:
    """One of both experiment files."""
    return Row(name, {column: f'{FILES[column]}:{key}' for column in columns}, columns=columns)


TABLE = Table(
    title='Two domains that share users',
    caption='A target among 999 items of its domain that the user never had; one checkpoint, by '
    "the mean of the two domains' NDCG@10 in validation.",
    columns=tuple(Column(name, SHOWN) for name in FILES),
    rows=(
        on_pairs(MF, 'mf-domain', (SPORT_CLOTH, SPORT_PHONE)),
        on_pairs('MF-BPR on the union', 'mf-union'),
        on_pairs(UNICDR, 'unicdr'),
        on_pairs(BIASED, 'bias'),
        on_pairs('UniCDR without critic', 'no-critic'),
        on_pairs('UniCDR lists from both domains', 'both'),
        on_pairs('UniCDR by attention', 'attention'),
        on_pairs(PLUS, 'plus'),
        on_pairs('UniCDR plus without propagation', 'plus-no-layers'),
        on_pairs('UniCDR plus without soft contrast', 'plus-no-soft'),
    ),
    baseline=UNICDR,
    by_column=True,
    orderings=(
        Ordering(UNICDR, MF, 'UniCDR improves on one domain alone', 'Cao et al., WSDM 2023'),
        Ordering(
            UNICDR,
            MF,
            'by 5 %',
            'the bar of this table',
            ('NDCG@10',),
            0.05,
            among=('rows', 'clean'),
        ),
        Ordering(PLUS, UNICDR, 'UniCDR+ improves on UniCDR', 'arXiv 2409.04540, abstract'),
    ),
)
