"""SASRec as published, Amazon Games (Kang & McAuley 2018, table III): BCE, 100 sampled negatives.

python -m jaxrec.train --config=experiments/sasrec_games_2018.py --workdir=runs/games
python -m jaxrec.evaluate --workdir=runs/games

3 to 7 minutes on one CPU core (stops early after 100 to 160 epochs). Test, protocol sasrec-2018,
seeds 0, 1, 2 (--config.train.seed): HR@10 .7452, .7427, .7469, NDCG@10 .5350, .5360, .5338;
published .7410, .5360. The table is experiments/tables/sasrec_2018.py.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec
from jaxrec.tasks import next_item


def get_config() -> Experiment:
    return Experiment(
        model=sasrec.Config(
            variant='2018',
            dim=50,
            blocks=2,
            heads=1,
            max_len=50,
            dropout=0.5,
            embedding_dropout=0.5,
            loss='bce',
            negatives_per='data',
            init='xavier_uniform',
        ),
        task=next_item.Config(unseen_negatives=1, protocol='sasrec-2018', cutoffs=(1, 5, 10, 20)),
        data=Data(dataset='games'),
        optim=Optim(learning_rate=1e-3, b2=0.98),
        # 20 rows hold about the 128 users of the paper's batch
        train=Train(batch_rows=20, epochs=200, eval_every=2, patience=10),
    )
