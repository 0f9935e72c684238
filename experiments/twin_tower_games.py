r"""A twin tower of titles on Amazon Video Games (2018): item-to-item lists from texts alone.

python -m jaxrec.train --config=experiments/twin_tower_games.py --workdir=runs/twin \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/twin --split=valid --task.item_lists=True
python -m jaxrec.recommend --workdir=runs/twin --text="super mario racing"

FOLDER holds test.inter and items.tsv of the set. `--config=experiments/twin_tower_games.py:NAME,
SEED` with NAME of bce (auto-encoder view, negatives of the lowest click similarity), info_nce,
random (any negative), near and near_info_nce (the positive is an item clicked together). Beauty:
--config.data.dataset=beauty --config.data.source=FILE --config.data.texts=PHRASES
--config.data.text_columns=item,asin,text.

Five seeds, 60 epochs at most (one to three minutes of a CPU core each), the test item by the newest
one before it (results/text). Beauty, HR@100 / HR@100 of the 6,197 targets of at most 5 training
events: bce .0695 / .0687, random negatives .0669, info_nce .0654 / .0718, near .0742 / .0743,
near_info_nce .1232 / .1256, bce by skip-gram of 128 numbers .0918; TF-IDF .1013 / .1173, in 256
directions .0892 / .0989, wordllama centred .0984 / .1141, item-CF .1277 / .0744; item-CF + .1 TF-
IDF .1534, + .1 wordllama .1550, + .1 near_info_nce .1593. Games (4,864 such targets): bce .1022, by
skip-gram .1081, near .1062, near_info_nce .1405 / .1329; TF-IDF .1142 / .1112, wordllama centred
.1120 / .1096, item-CF .1660 / .0646; item-CF + .1 TF-IDF .1902, + .1 wordllama .1960, + .1
near_info_nce .2077. So the auto-encoder's view adds nothing to words by itself; co-clicked
positives under InfoNCE are better than words on targets of few events, by 7 and 20 %, and beside
item-CF, by 4 and 9 %. near_info_nce is of the time when a row's positive could be a negative of the
same row, as another row's (one row in ten), and has not run again since.
"""

from jaxrec.config import Data, Optim, Texts, Train
from jaxrec.experiment import Experiment
from jaxrec.models.twin_tower import Config
from jaxrec.tasks import next_item

MODELS = {
    'bce': Config(),
    'info_nce': Config(loss='info_nce'),
    'random': Config(negatives='random'),
    'near': Config(positive='near'),
    'near_info_nce': Config(
        positive='near', loss='info_nce', widths=(256, 128), residual=True, dropout=0.3
    ),
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'NAME,SEED', of MODELS, bce and 0 if empty."""
    name, _, seed = arg.partition(',')
    return Experiment(
        task=next_item.Config(
            windows='items', cutoffs=(10, 20, 100), texts=Texts('tfidf', 256, centred=False)
        ),
        model=MODELS[name or 'bce'],
        data=Data(dataset='games-titles'),
        optim=Optim(learning_rate=1e-3),
        train=Train(
            batch_rows=512,
            epochs=60,
            eval_every=5,
            patience=4,
            metric='HR@100',
            seed=int(seed or 0),
        ),
    )
