r"""KuaiFormer on short videos of Kuaishou (KuaiRand-Pure), beside SASRec, ComiRec and popularity.

python -m jaxrec.train --config=experiments/kuaiformer_kuairand.py --workdir=runs/kuairand \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/kuairand

FOLDER holds the data set's files, see jaxrec/datasets/kuairand.py. The events are the videos that
users watched to the end or for 18 seconds, from 25 April to 8 May 2022 with times and features, and
each user's last 50 before as a prefix without. The newest tenth of the events with times tests.
Test HR@50, seed 0 (best of validation after 6 of 8 epochs, 13 minutes on one CPU core): .2954, of
SASRec .2905, popularity of the last week .1926, Markov .1507. docs/kuaiformer.md has the table.

experiments/kuaiformer_kuairand.py:sasrec and :comirec are the baselines. As a service would train,
each day predicted before it is learnt:

python -m jaxrec.train --config=experiments/kuaiformer_kuairand.py --workdir=runs/kuairand_stream \
    --config.data.source=FOLDER --config.task.periods=14 --config.task.split=leave-one-out \
    --config.train.patience=0

Comparisons are rows of experiments/tables/kuaiformer_kuairand.py.
"""

from jaxrec.config import Data, Feature, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import comirec, kuaiformer, sasrec
from jaxrec.tasks import next_item

FEATURES = (
    Feature('duration', 'uniform', size=1000, cap=300_000),  # milliseconds, as in the paper
    Feature('tags', 'set', size=69),
    Feature('play_ratio', 'log', size=20, cap=10),
    Feature('is_click'),
    Feature('is_like'),
    Feature('is_follow'),
    Feature('is_comment'),
    Feature('is_forward'),
    Feature('is_profile_enter'),
    Feature('tab', size=15),
    Feature('gap', 'log', size=20, cap=14 * 86_400_000),  # milliseconds
)
WIDTH = {'dim': 64, 'features': FEATURES, 'feature_dim': 8}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is '' (KuaiFormer), 'sasrec' or 'comirec'."""
    models = {
        '': kuaiformer.Config(
            **WIDTH, blocks=2, heads=2, ffn=2, interests=4, max_len=64, compress=(16, 16), newest=32
        ),
        'sasrec': sasrec.Config(
            **WIDTH,
            variant='pre_ln',
            blocks=2,
            heads=2,
            ffn=3,  # as many weights as KuaiFormer's gated layer of 2
            max_len=64,
            dropout=0.1,
            embedding_dropout=0.1,
            loss='in_batch',
        ),
        'comirec': comirec.Config(**WIDTH, interests=4, max_len=64),
    }
    return Experiment(
        model=models[arg],
        task=next_item.Config(
            windows='cuts', cuts=8, split='temporal', cutoffs=(10, 50, 100, 500, 1000)
        ),
        data=Data(
            dataset='kuairand-pure-watched-history',
        ),
        optim=Optim(learning_rate=3e-3, b2=0.98),
        train=Train(batch_rows=64, epochs=8, patience=3, metric='HR@50'),
    )
