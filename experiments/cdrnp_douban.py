r"""CDRNP on Douban: from ratings of books to ratings of music by users who have none.

python -m jaxrec.train --config=experiments/cdrnp_douban.py --workdir=runs/douban \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/douban

FOLDER holds book_ratings.dat and music_ratings.dat; another folder with two such files runs alike,
with task.source and task.target the names of its domains.
`--config=experiments/cdrnp_douban.py:NAME,SPLIT` with a NAME of MODELS and the number of the split
of users; `--config.task.source=music --config.task.target=book` is the way back. Two biases are as
good as factors here: the data can show that a model is not broken, not that it is good.

Five splits (results/cold_start), MAE and RMSE, books to music: .6549, .8325; item and source bias
.6560, .8278, EMCDR .6561, .8279, neighbours .6552, .8272, PTUPCDR .6562, .8281, EMCDR by ratings
.6594, .8331, the control .6728, .8459. Music to books: .6460, .8224, the bias .6434, .8218, the
control .6550, .8307. So nothing is learnt beyond the bias.
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
