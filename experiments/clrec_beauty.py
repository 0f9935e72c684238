r"""CLRec, Multi-CLRec and CBNS on Amazon Beauty: negatives of earlier steps, beside logQ.

python -m jaxrec.train --config=experiments/clrec_beauty.py --workdir=runs/clrec
python -m jaxrec.evaluate --workdir=runs/clrec --task.popularity=True

`evaluate --task.popularity=True` tells how popular the lists are, by Gini, mean log-popularity,
coverage and metrics by decile of the target's popularity: CLRec (without logQ) is to have a lower
Gini at equal recall than `:logq`, the in-batch softmax with logQ. The argument is one of LOSSES;
all are rows of experiments/tables/contrastive.py.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec
from jaxrec.objectives.in_batch import InBatch
from jaxrec.tasks import next_item

COSINE = {'similarity': 'cosine', 'temperature': 0.1}
# the bank's items are as in CLRec's proof, drawn like the targets whoever the user is; those of the
# batch are not, since a row's four targets are of one user
BANK = {'logq': 'none', 'batch_negatives': False, 'own_history': True, **COSINE}
LOSSES = {
    'clrec': InBatch(bank=2560, **BANK),
    'multi': InBatch(bank=640, prototypes=4, **BANK),
    'cbns': InBatch(bank=2560, warmup=1000, **COSINE),
    'logq': InBatch(**COSINE),
}


def get_config(arg: str = 'clrec') -> Experiment:
    """The experiment; `arg` is one of LOSSES."""
    return Experiment(
        model=sasrec.Config(
            dim=128,
            blocks=1,
            max_len=50,
            dropout=0.2,
            embedding_dropout=0.2,
            loss='in_batch',
            in_batch=LOSSES[arg],
        ),
        task=next_item.Config(windows='cuts', cuts=4),
        data=Data(dataset='beauty'),
        optim=Optim(learning_rate=1e-3, b2=0.98, ema=0.995),
        train=Train(batch_rows=256, epochs=60, eval_every=2, patience=4),
    )
