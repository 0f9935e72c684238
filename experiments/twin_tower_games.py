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

Not run on Games to the end. On Beauty, seed 0, 20 epochs (30 to 45 s of a CPU core each), 3,000
users, HR@20 / HR@100 / HR@100 on the 701 targets of at most 5 training events: bce .0270 / .0630 /
.0670, near_info_nce .0450 / .1257 / .1327; TF-IDF .0577 / .1034 / .1161, item-CF .0953 / .1537 /
.0753; item-CF + .1 TF-IDF .1031 / .1751 / .1128, item-CF + .1 bce .0973 / .1667 / .0970, item-CF +
.1 near_info_nce .1013 / .1823 / .1170. The auto-encoder's view adds nothing to words; co-clicked
positives do, most of all on cold targets.
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
