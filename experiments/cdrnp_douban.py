r"""CDRNP on Douban: from ratings of books to ratings of music by users who have none.

python -m jaxrec.train --config=experiments/cdrnp_douban.py --workdir=runs/douban \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/douban

FOLDER holds book_ratings.dat and music_ratings.dat; another folder with two such files runs alike,
with task.source and task.target the names of its domains.
`--config=experiments/cdrnp_douban.py:NAME,SPLIT` with a NAME of MODELS and the number of the split
of users; `--config.task.source=music --config.task.target=book` is the way back. Two biases are as
good as factors here: the data can show that a model is not broken, not that it is good.

A bias begins with two ratings at the mean (`task.shrink`, chosen on validation users in both
directions: with five, which suit MovieLens, the item and source bias below had .6560, .8278).

Five splits (results/cold_start), MAE and RMSE, books to music: .6458, .8207; item and source bias
.6452, .8197, EMCDR .6453, .8198, neighbours .6452, .8202, PTUPCDR .6454, .8199, EMCDR by ratings
.6466, .8217, the control .6631, .8356. Music to books: .6463, .8199, the bias .6441, .8211, the
control .6567, .8294. So nothing is learnt beyond the bias. Before models read an item without the
rating that they learn, a split's RMSE was .003 to .004 worse (books to music, splits 0 and 1).
"""

import dataclasses

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import cdrnp, ptupcdr
from jaxrec.tasks import ratings

CDRNP = cdrnp.Config(dropout=0.3)
MODELS = {
    'cdrnp': CDRNP,
    'no-process': dataclasses.replace(CDRNP, process=False, memory=0, adaptive=False),
    'no-remainer': dataclasses.replace(CDRNP, memory=0),
    'no-film': dataclasses.replace(CDRNP, adaptive=False),
    'ptupcdr': ptupcdr.Config(),
    'emcdr': ptupcdr.Config(bridge='linear'),
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'NAME,SPLIT', cdrnp and 0 if empty."""
    name, _, split = arg.partition(',')
    return Experiment(
        model=MODELS[name or 'cdrnp'],
        task=ratings.Config(source='book', target='music', split_seed=int(split or 0), shrink=2.0),
        data=Data(dataset='douban-ratings'),
        optim=Optim(learning_rate=1e-3, b2=0.999, weight_decay=1e-2),
        train=Train(batch_rows=1024, epochs=20, patience=4),
    )
