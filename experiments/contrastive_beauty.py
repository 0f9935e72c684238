r"""Objectives between two views of a user on Amazon Beauty, beside the same SASRec without one.

python -m jaxrec.train --config=experiments/contrastive_beauty.py:swav --workdir=runs/swav
python -m jaxrec.evaluate --workdir=runs/swav

The argument is one of TERMS. The encoder, BCE and its settings are those of cl4srec_beauty.py; the
views of all but SimCSE, ConSERT and CL4SRec itself are short crops and masks. Those that look for a
view among others do it as CL4SRec here, at a weight of .1, behind a head, by cosines at a
temperature of .1. All of them and the plain model are rows of experiments/tables/contrastive.py.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec
from jaxrec.objectives.contrast import Contrast

VIEWS = {'crop': 0.3, 'mask': 0.3, 'reorder': 0.0}
COSINE = {'similarity': 'cosine', 'temperature': 0.1}
HEAD = {'weight': 0.1, 'head': True, **COSINE}
TERMS = {
    'none': (),
    'cl4srec': (Contrast(crop=0.3, mask=0.3, reorder=0.6, **HEAD),),
    'simclr': (Contrast(**VIEWS, **HEAD),),
    'decoupled': (Contrast(objective='decoupled', **VIEWS, **HEAD),),
    'moco': (Contrast(momentum=0.995, queue=4096, **VIEWS, **HEAD),),
    'swav': (Contrast(weight=0.1, objective='swav', **VIEWS, temperature=0.1),),
    'simsiam': (Contrast(weight=0.1, objective='simsiam', **VIEWS, head=True),),
    'byol': (Contrast(weight=0.1, objective='byol', momentum=0.99, **VIEWS, head=True),),
    'simcse': (Contrast(first='dropout', second='dropout', **HEAD),),
    'consert': (Contrast(first='shuffle', second='cutoff', cutoff=0.2, **HEAD),),
    'adversarial': (Contrast(first='adversarial', second='dropout', **HEAD),),
    'direct_au': (Contrast(weight=0.1, objective='direct_au', **VIEWS),),
}


def get_config(arg: str = 'simclr') -> Experiment:
    """The experiment; `arg` is one of TERMS."""
    return Experiment(
        model=sasrec.Config(
            dim=128,
            blocks=1,
            max_len=50,
            dropout=0.2,
            embedding_dropout=0.2,
            loss='bce',
            negatives=1,
            contrast=TERMS[arg],
        ),
        data=Data(dataset='beauty'),
        optim=Optim(learning_rate=1e-3, b2=0.98, ema=0.995),
        # 36 rows hold about the 256 users of the paper's batch
        train=Train(batch_rows=36, epochs=200, eval_every=5, patience=4),
    )
