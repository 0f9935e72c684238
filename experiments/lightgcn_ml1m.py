r"""LightGCN on MovieLens-1M as a graph (the split of LCFN and UltraGCN), stopped on validation.

python -m jaxrec.train --config=experiments/lightgcn_ml1m.py --workdir=runs/lightgcn \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/lightgcn

FOLDER holds train.txt and test.txt. A tenth of each user's training items is for validation.

Seed 0, 40 minutes on 2 very busy CPU cores, stopped after 39 epochs, best after 30: test Recall@20
.2382, NDCG@20 .2272. That is well below what needs no training: EASE .2759 / .2660, the low-pass
filter .2743 / .2610, which also know the validation items; popularity has .1159 / .1176. Nothing
was tuned yet.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import lightgcn
from jaxrec.tasks import next_item


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is the seed, 0 if empty."""
    return Experiment(
        task=next_item.Config(
            split='given',
            targets='all',
            windows='pairs',
            unseen_negatives=1,
            cutoffs=(10, 20, 50),
        ),
        model=lightgcn.Config(dim=64, layers=3, decay=1e-4),
        data=Data(dataset='ml-1m-graph'),
        optim=Optim(learning_rate=1e-2, b2=0.999),
        train=Train(
            batch_rows=8192,
            epochs=60,
            eval_every=3,
            patience=3,
            metric='Recall@20',
            seed=int(arg or 0),
        ),
    )
