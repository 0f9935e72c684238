"""CL4SRec on Amazon Sports (S3-Rec file), whole catalogue ranked.

python -m jaxrec.train --config=experiments/cl4srec_sports.py --workdir=runs/cl4srec_sports
python -m jaxrec.evaluate --workdir=runs/cl4srec_sports

Not run to the end. The settings are those of experiments/cl4srec_beauty.py. Published, HR@10: .0369
and .0374 for CL4SRec, .0333 and .0336 for SASRec (MCLRec's and FEARec's tables).
"""

from jaxrec.config import Data, Experiment, Optim, Train
from jaxrec.contrast import Contrast
from jaxrec.models import cl4srec


def get_config(arg: str = 'bce') -> Experiment:
    """The experiment; `arg` is the main loss: 'bce', as in the paper, or 'softmax'."""
    soft = arg == 'softmax'
    return Experiment(
        model=cl4srec.Config(
            dim=128,
            blocks=1,
            max_len=50,
            dropout=0.2,
            embedding_dropout=0.5 if soft else 0.2,
            table_dropout=0.2 if soft else 0.0,
            loss=arg,
            negatives=1,
            contrast=Contrast(
                weight=0.1 if soft else 0.03,
                crop=0.3,
                mask=0.0,
                reorder=0.0,
                similarity='cosine',
                temperature=0.2,
            ),
        ),
        data=Data(dataset='sports'),
        optim=Optim(learning_rate=1e-3, b2=0.98, ema=0.995),
        train=Train(batch_rows=36, epochs=200, eval_every=5, patience=4),
    )
