"""SASRec with the exact softmax on MovieLens 1M, full ranking (Klenitskiy & Vasilev 2023).

python -m jaxrec.train --config=experiments/sasrec_ml1m_ce.py --workdir=runs/ml1m_ce
python -m jaxrec.evaluate --workdir=runs/ml1m_ce

Published, protocol full: HR@10 .3152, NDCG@10 .1821. Here .3081, .1771 (seed 0, of a GPU; early
stopping after 81 of 100 epochs, the best of validation is epoch 71); five seeds of the same loss
after the settings of experiments/sasrec_losses.py have .3128, .1809 (results/sasrec_losses). One
epoch took about 30 s on 2 busy CPU cores.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec


def get_config() -> Experiment:
    return Experiment(
        model=sasrec.Config(
            variant='2018',
            dim=64,
            blocks=2,
            heads=1,
            max_len=200,
            dropout=0.1,
            embedding_dropout=0.1,
            loss='softmax',
        ),
        data=Data(dataset='ml-1m-sasrec'),
        optim=Optim(learning_rate=1e-3, b2=0.98),
        train=Train(batch_rows=64, microbatches=0, epochs=100, patience=10),
    )
