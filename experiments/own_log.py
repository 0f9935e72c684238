r"""Your own log of user,item,timestamp: SASRec with middling settings to start from.

python -m jaxrec.train --config=experiments/own_log.py --config.data.log=events.csv \
    --workdir=runs/mine
python -m jaxrec.evaluate --workdir=runs/mine
python -m jaxrec.recommend --workdir=runs/mine --users=all --output=recommendations.parquet

`--config=experiments/own_log.py:small` has more dropout, for some thousand users and fewer. Test
NDCG@10, one seed: ML-100K .1124 instead of .1066 (Markov .0768; at dim 64 .1022); with dropout=.5
inside the blocks alone 600 users of ML-1M .1110 instead of .1035 (Markov .0940), and 2,000 of
Sports .0066 instead of .0060, of which some may be train.eval_steps, which the second lacked.

Columns of other names: --config.data.user_col, .item_col, .time_col ('' if the file is in time
order). A million items and more: --config.model.loss=sampled_softmax
--config.model.negatives_per=batch --config.model.negatives=4096. An honest offline test for
production: --config.task.split=temporal.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec
from jaxrec.tasks import next_item

DROPOUT = {
    '': {'dropout': 0.2, 'embedding_dropout': 0.3},
    'small': {'dropout': 0.5, 'embedding_dropout': 0.5},
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is '' or 'small'."""
    return Experiment(
        model=sasrec.Config(dim=128, blocks=2, max_len=100, table_dropout=0.1, **DROPOUT[arg]),
        task=next_item.Config(valid_users=20_000),
        data=Data(),
        optim=Optim(learning_rate=1e-3, ema=0.995),
        train=Train(batch_rows=32, epochs=100, eval_steps=100, patience=5),
    )
