"""SASRec as published, MovieLens 1M (Kang & McAuley 2018, table III): BCE, 100 sampled negatives.

python -m jaxrec.train --config=experiments/sasrec_ml1m_2018.py --workdir=runs/ml1m_2018
python -m jaxrec.evaluate --workdir=runs/ml1m_2018

Published, protocol sasrec-2018: HR@10 .8245, NDCG@10 .5905. Not yet run here.
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
            max_len=200,
            dropout=0.2,
            embedding_dropout=0.2,
            loss='bce',
            negatives_per='data',
            init='xavier_uniform',
        ),
        task=next_item.Config(unseen_negatives=1, protocol='sasrec-2018', cutoffs=(1, 5, 10, 20)),
        data=Data(dataset='ml-1m-sasrec'),
        optim=Optim(learning_rate=1e-3, b2=0.98),
        # 70 rows hold about the 128 users of the paper's batch
        train=Train(batch_rows=70, microbatches=0, epochs=200, eval_every=2, patience=10),
    )
