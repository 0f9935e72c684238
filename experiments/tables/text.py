r"""Texts of items on Games (2018) and Beauty: SASRec with text tokens, and the title twin tower.

python -m jaxrec.table --table=experiments/tables/text.py --workdir=runs/tables/text --seeds=5 \
    --results=results

Prepare both first, from where item-phrases/beauty.tsv.gz lies (`python -m jaxrec.prepare
--dataset=games-titles --source=FOLDER`, `--dataset=beauty --source=FILE
--texts=item-phrases/beauty.tsv.gz --text_columns=item,asin,text`), and start the table there. Every
cell tells targets without training events apart, of the model and of popularity (groups, 'training
events', '0'), and of twin towers what lists of their vectors, of co-clicks and of both together
find. The phrases of Beauty are made by a language model: titles in style, not titles.
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

SHOWN = ('HR@10', 'NDCG@10', 'HR@100')
FILE, TWIN = 'experiments/sasrec_text_games.py', 'experiments/twin_tower_games.py'
LISTS = {'task.item_lists': True}
SKIP_GRAM = {'task.texts.encoder': 'skipgram', 'task.texts.dim': 128}  # as the talk has it
BEAUTY = {
    'data.dataset': 'beauty',
    'data.texts': 'item-phrases/beauty.tsv.gz',
    'data.text_columns': 'item,asin,text',
}


SASREC, TOKENS = Row('SASRec', f'{FILE}:ids'), Row('SASRec + text tokens', f'{FILE}:ids+texts')
NEAR = Row('twin tower of co-clicks under InfoNCE', f'{TWIN}:near_info_nce', LISTS)

TABLE = Table(
    title='Texts of items',
    caption='Whole catalogue ranked, leave one out; the epoch of the best validation NDCG@10, of '
    'twin towers HR@100, is tested. Twin towers go by the newest item of a history alone.',
    columns=(Column('Games 2018', SHOWN), Column('Beauty', SHOWN, BEAUTY)),
    rows=(
        SASREC,
        TOKENS,
        Row('table begins with texts', f'{FILE}:start', columns=('Beauty',)),
        Row('twin tower', f'{TWIN}:bce', LISTS),
        Row('twin tower by skip-gram', f'{TWIN}:bce', {**LISTS, **SKIP_GRAM}),
        Row('twin tower with any negative', f'{TWIN}:random', LISTS),
        Row('twin tower under InfoNCE', f'{TWIN}:info_nce', LISTS),
        Row('twin tower of co-clicks', f'{TWIN}:near', LISTS),
        NEAR,
    ),
    baseline=SASREC.name,
    shown=(SASREC.name, TOKENS.name, NEAR.name),
    protocol='full',
    orderings=(Ordering(TOKENS.name, SASREC.name, 'texts help', 'a bar of this table'),),
)
