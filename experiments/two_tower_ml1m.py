r"""Two towers on MovieLens-1M: a user's id and history meet a film's id and genres.

python -m jaxrec.train --config=experiments/two_tower_ml1m.py --workdir=runs/two_tower \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/two_tower

FOLDER holds ratings.dat, movies.dat and users.dat. `--config=experiments/two_tower_ml1m.py:NAME,
SEED` with mean, transformer, no-logq (no correction for popular items), mixed (1,024 uniform
negatives besides those of the batch) and features (no item ids).

Test, seed 0 (all 20 epochs, the best of validation after 19, 26 minutes on a busy CPU core): HR@10
.1765, NDCG@10 .0957; popularity .0369, .0180, but Markov .2144, .1259: a mean of the history knows
no order, which tells most on MovieLens.
"""

from jaxrec.config import Data, Feature, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models.two_tower import Config
from jaxrec.objectives.in_batch import InBatch
from jaxrec.tasks import next_item

GENRES = (Feature('genres', 'set', 18),)
MODELS = {
    'mean': Config(features=GENRES),
    'transformer': Config(features=GENRES, history='transformer'),
    'no-logq': Config(features=GENRES, in_batch=InBatch(logq='none')),
    'mixed': Config(features=GENRES, in_batch=InBatch(uniform=1024)),
    'features': Config(features=GENRES, item_id=False),
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'NAME,SEED', of MODELS, mean and 0 if empty."""
    name, _, seed = arg.partition(',')
    return Experiment(
        task=next_item.Config(windows='cuts', cuts=8, cutoffs=(5, 10, 20)),
        model=MODELS[name or 'mean'],
        data=Data(dataset='ml-1m'),
        optim=Optim(learning_rate=1e-3),
        train=Train(batch_rows=128, epochs=20, patience=3, seed=int(seed or 0)),
    )
