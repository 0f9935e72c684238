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

from jaxrec.paper.spec import Column, Row, Table

SHOWN = ('HR@10', 'NDCG@10', 'HR@100')
SASREC, TWIN = 'experiments/sasrec_text_games.py', 'experiments/twin_tower_games.py'
LISTS = {'task.item_lists': True}
BEAUTY = {
    'data.dataset': 'beauty',
    'data.texts': 'item-phrases/beauty.tsv.gz',
    'data.text_columns': 'item,asin,text',
}


def by_encoder(name: str, encoder: str, key: str = 'ids+texts') -> Row:
    """SASRec with texts by another encoder."""
    return Row(name, f'{SASREC}:{key}', {'task.texts.encoder': encoder, 'task.texts.dim': 128})


TABLE = Table(
    title='Texts of items',
    caption='Whole catalogue ranked, leave one out; the epoch of the best validation NDCG@10, of '
    'twin towers HR@100, is tested. Twin towers go by the newest item of a history alone.',
    columns=(Column('Games 2018', SHOWN), Column('Beauty', SHOWN, BEAUTY)),
    rows=(
        Row('SASRec', f'{SASREC}:ids'),
        Row('SASRec + text tokens', f'{SASREC}:ids+texts'),
        Row('no id dropout', f'{SASREC}:ids+texts', {'model.items.id_dropout': 0.0}),
        Row('text tokens alone', f'{SASREC}:texts'),
        Row('table begins with texts', f'{SASREC}:start'),
        by_encoder('text tokens by skip-gram', 'skipgram'),
        by_encoder('text tokens by wordllama', 'wordllama'),
        Row('twin tower', f'{TWIN}:bce', LISTS),
        Row('twin tower with any negative', f'{TWIN}:random', LISTS),
        Row('twin tower under InfoNCE', f'{TWIN}:info_nce', LISTS),
        Row('twin tower of co-clicks', f'{TWIN}:near', LISTS),
        Row('twin tower of co-clicks under InfoNCE', f'{TWIN}:near_info_nce', LISTS),
    ),
    baseline='SASRec',
    protocol='full',
)
