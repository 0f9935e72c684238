"""SASRec with the exact softmax on Amazon Beauty (S3-Rec's file), whole catalogue ranked.

python -m jaxrec.train --config=experiments/sasrec_beauty.py --workdir=runs/beauty
python -m jaxrec.evaluate --workdir=runs/beauty

What seemed to matter, by single-seed prototypes: the exact softmax at dim 256 with sqrt(d) scaling
and the 2018 block, averaged parameters (ema), dropout .5 on the embeddings, label smoothing.

9 to 27 minutes on 2 busy CPU cores (stops early after 22 to 26 epochs).
Test, protocol full, seeds 0, 1, 2 (`--config=experiments/sasrec_beauty.py:SEED`): HR@10 .1018,
.0981, .0998, NDCG@10 .0615, .0599, .0613. Best published of this family on this file: .0928, .0531
(Tikhonovich et al. 2025).
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is the seed, 0 if empty."""
    return Experiment(
        model=sasrec.Config(
            variant='2018',
            dim=256,
            blocks=1,
            heads=1,
            max_len=50,
            dropout=0.2,
            embedding_dropout=0.5,
            table_dropout=0.2,
            loss='softmax',
            label_smoothing=0.1,
        ),
        data=Data(dataset='beauty'),
        optim=Optim(learning_rate=1e-3, b2=0.98, ema=0.995),
        train=Train(batch_rows=24, epochs=40, patience=3, eval_every=2, seed=int(arg or 0)),
    )
