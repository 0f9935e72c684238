"""SASRec on MovieLens 100K: the first thing to run.

python -m jaxrec.train --config=experiments/quickstart.py --workdir=runs/quickstart
python -m jaxrec.evaluate --workdir=runs/quickstart
python -m jaxrec.recommend --workdir=runs/quickstart --user=42

About a minute on 2 CPU cores. Test, protocol full: HR@10 .186, NDCG@10 .102 (popularity .085 and
.044, Markov .145 and .077), seed 0.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec


def get_config() -> Experiment:
    return Experiment(
        model=sasrec.Config(dim=64, blocks=2, max_len=50, dropout=0.2, loss='softmax'),
        data=Data(dataset='ml-100k'),
        optim=Optim(learning_rate=1e-3),
        train=Train(batch_rows=32, epochs=40, patience=5),
    )
