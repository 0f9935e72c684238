r"""Kuaishou's multi-task contrastive framework on KuaiRand-Pure: rewards of its feedback signals.

python -m jaxrec.train --config=experiments/multi_signal_kuairand.py --workdir=runs/kuai_signals \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/kuai_signals

FOLDER holds the data set's files, see jaxrec/datasets/kuairand.py. The events are all exposures
from 25 April to 8 May 2022 after each user's last 50 before; these have no signals, so reward 1. Of
the 12 signals in the log duration is what watch time is compared within, hate takes from the reward
and makes an event a disliked one, the others add to it. The newest tenth of the events tests.

experiments/multi_signal_kuairand.py:none is the same model without rewards and terms.
"""

from jaxrec.config import Data, Optim, Rewards, Signal, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec
from jaxrec.objectives.multi_signal import MultiSignal, user_user
from jaxrec.tasks import next_item

SIGNALS = (
    Signal('play_time_ms', 3.0, 'percentile', within='duration_ms'),
    Signal('long_view', 3.0),
    Signal('is_click', 1.0),
    Signal('is_like', 1.0),
    Signal('is_follow', 0.5),
    Signal('is_comment', 0.5),
    Signal('is_forward', 0.5),
    Signal('is_profile_enter', 0.25),
    Signal('profile_stay_time', 0.25),
    Signal('comment_stay_time', 0.25),
    Signal('is_hate', 1.0, negative=True),
)


def get_config(arg: str = 'all') -> Experiment:
    """The experiment; `arg` is 'all' or 'none'."""
    framework = MultiSignal(
        rewards=Rewards(SIGNALS, liked=0.5, disliked=0.05), user_item=0.1, feedback=0.1, bank=2048
    )
    return Experiment(
        model=sasrec.Config(
            variant='pre_ln',
            dim=64,
            blocks=2,
            heads=2,
            max_len=64,
            loss='softmax',
            contrast=(user_user(),) if arg == 'all' else (),
            multi_signal=framework if arg == 'all' else MultiSignal(),
        ),
        task=next_item.Config(split='temporal', cutoffs=(10, 20, 50, 100)),
        data=Data(dataset='kuairand-pure-history'),
        optim=Optim(learning_rate=1e-3, b2=0.98),
        train=Train(batch_rows=64, epochs=20, patience=3, metric='HR@50'),
    )
