r"""Kuaishou's multi-task contrastive framework over SASRec on Amazon Beauty, a log without signals.

python -m jaxrec.train --config=experiments/multi_signal_beauty.py --workdir=runs/multi_signal
python -m jaxrec.evaluate --workdir=runs/multi_signal

The talk (Luo Qing, 2022) promises HR@20 +23 %, HR@50 +16 %, NDCG@20 +28 % over SASRec; its formulas
are our reading (jaxrec/objectives/multi_signal.py). Every reward is 1 here, so that every event was
liked and the feedback term has the bank alone as negatives. The argument is one of TERMS; each by
itself, over BCE, is a row of experiments/tables/contrastive.py. With rewards of many signals:
experiments/multi_signal_kuairand.py.

All three, seeds 0, 1, 2, some 12 minutes each on one core: HR@20 .1039, HR@50 .1601, NDCG@20 .0471,
without them .0993, .1547, .0451 (4 minutes): +4.6, +3.4 and +4.5 %, not on the long tail. user_user
alone is better, in each of five seeds: .1073, .1639, .0497, over .1002, .1555, .0458.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec
from jaxrec.objectives.multi_signal import MultiSignal, user_user

TERMS = {  # weights of user-item, user-user and feedback
    'none': (0.0, 0.0, 0.0),
    'user_item': (0.1, 0.0, 0.0),
    'user_user': (0.0, 0.1, 0.0),
    'feedback': (0.0, 0.0, 0.1),
    'all': (0.1, 0.1, 0.1),
}


def get_config(arg: str = 'all') -> Experiment:
    """The experiment; `arg` is one of TERMS."""
    user_item, between, feedback = TERMS[arg]
    return Experiment(
        model=sasrec.Config(
            dim=128,
            blocks=1,
            max_len=50,
            dropout=0.2,
            embedding_dropout=0.2,
            loss='bce',
            negatives=1,
            contrast=(user_user(between),) if between else (),
            multi_signal=MultiSignal(user_item=user_item, feedback=feedback, bank=2048),
        ),
        data=Data(dataset='beauty'),
        optim=Optim(learning_rate=1e-3, b2=0.98, ema=0.995),
        train=Train(batch_rows=36, epochs=200, eval_every=5, patience=4),
    )
