"""DuoRec on Amazon Beauty (S3-Rec's file), whole catalogue ranked: SASRec's exact softmax and more.

python -m jaxrec.train --config=experiments/duorec_beauty.py --workdir=runs/duorec
python -m jaxrec.evaluate --workdir=runs/duorec

Test, protocol full, HR@10 / NDCG@10, seeds 0, 1, 2 (`--config=experiments/duorec_beauty.py:SEED`):
.1003 / .0611, .0993 / .0598, .1003 / .0608, 10 minutes each on one CPU core (stops early after 32
to 44 epochs). Published: .0825 / .0425 (MCLRec's table) and .0845 / .0443 (FEARec's). Without its
term (model.contrast=()) it is as good: .1009 / .0612, .0999 / .0603, .0991 / .0602. With dot
products instead of cosines it hardly learns at first (validation NDCG@10 .0123 after 6 epochs, here
.0471).

The views are the authors' 'us_x': the user under another dropout mask, and another user who went on
to the same item. Theirs are of every prefix of a history, trained on its last place alone; here
every place of a packed row is trained on and the views are of the whole window, once per user and
epoch.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec
from jaxrec.objectives.contrast import Contrast


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is the seed, 0 if empty."""
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
            loss='softmax',
            label_smoothing=0.1,
            contrast=(
                Contrast(
                    weight=0.1,
                    first='dropout',
                    second='same_target',
                    same_target_negatives=False,
                    similarity='cosine',
                    temperature=0.2,
                ),
            ),
        ),
        data=Data(dataset='beauty'),
        optim=Optim(learning_rate=1e-3, b2=0.98, ema=0.995),
        train=Train(batch_rows=36, epochs=60, eval_every=2, patience=3, seed=int(arg or 0)),
    )
