r"""KuaiFormer on your own log of user,item,timestamp, with any numeric columns as features.

python -m jaxrec.train --config=experiments/kuaiformer_own_log.py --config.data.log=events.csv \
    --workdir=runs/mine
python -m jaxrec.train --config=experiments/kuaiformer_own_log.py:play_time,price \
    --config.data.log=events.csv --workdir=runs/mine
python -m jaxrec.evaluate --workdir=runs/mine
python -m jaxrec.recommend --workdir=runs/mine --user=42 --explain

Columns named after the colon are read with every event and cut into 20 buckets of equally many
training events; the time since the event before is a feature in any case. Category columns and
other bucket rules: copy this file and see jaxrec/features.py. Needs times; windows of 256 events,
the oldest 208 of them compressed into 7 tokens.
"""

from jaxrec.config import Data, Feature, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import kuaiformer
from jaxrec.tasks import next_item


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` names numeric columns of the log, 'COL,COL'."""
    columns = tuple(column for column in arg.split(',') if column)
    features = (Feature('gap', 'quantile', size=20),)
    features += tuple(Feature(column, 'quantile', size=20) for column in columns)
    return Experiment(
        model=kuaiformer.Config(dim=64, blocks=2, ffn=2, interests=4, features=features),
        task=next_item.Config(
            windows='cuts',
            cuts=8,
            windows_per_user=8,
            cutoffs=(10, 50, 100, 500, 1000),
            valid_users=20_000,
        ),
        data=Data(features=','.join(columns)),
        optim=Optim(learning_rate=2e-3, ema=0.995),
        train=Train(batch_rows=64, epochs=50, patience=5, metric='HR@50'),
    )
