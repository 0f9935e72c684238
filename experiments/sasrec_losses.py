r"""One SASRec encoder under four losses: `experiments/sasrec_losses.py:LOSS`.

python -m jaxrec.train --config=experiments/sasrec_losses.py:bce --workdir=runs/beauty_bce
python -m jaxrec.evaluate --workdir=runs/beauty_bce

LOSS is bce (one negative per position), gbce (256 negatives per row of the batch, t .75),
sampled_softmax (the same negatives, no logQ) or softmax (exact, the default). Everything else is
the same for all: the 2018 block, dim 128, 1 block, 1 head, Adam 1e-3, averaged parameters, dropout
.2, .5 on the embeddings and .2 on the item table; as given here for Amazon Beauty. The table of all
losses on four data sets is experiments/tables/sasrec_losses.py.

Test, protocol full, mean of seeds 0, 1, 2, HR@10 / NDCG@10: bce .0670 / .0355, gbce .0946 / .0547,
sampled_softmax .0959 / .0578, softmax .0977 / .0597. On one CPU core a run takes 2, 4, 2 and 8
minutes. With less dropout BCE's NDCG@10 is higher (experiments/cl4srec_beauty.py).
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec

LOSSES = {
    'bce': {'negatives': 1},
    'gbce': {'negatives': 256, 'negatives_per': 'row', 'gbce_t': 0.75},
    'sampled_softmax': {'negatives': 256, 'negatives_per': 'row'},
    'softmax': {},
}


def get_config(arg: str = 'softmax') -> Experiment:
    """The experiment; `arg` is one of LOSSES."""
    return Experiment(
        model=sasrec.Config(
            variant='2018',
            dim=128,
            blocks=1,
            heads=1,
            max_len=50,
            dropout=0.2,
            embedding_dropout=0.5,
            table_dropout=0.2,
            loss=arg,
            **LOSSES[arg],
        ),
        data=Data(dataset='beauty'),
        optim=Optim(learning_rate=1e-3, b2=0.98, ema=0.995),
        # 36 rows hold about 256 users; enough epochs for BCE, which learns slowly
        train=Train(batch_rows=36, epochs=200, eval_every=5, patience=4),
    )
