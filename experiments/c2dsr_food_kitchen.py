"""C2DSR on Amazon Food and Kitchen, as ABXI published them; ranks in the target's domain.

python -m jaxrec.train --config=experiments/c2dsr_food_kitchen.py --workdir=runs/c2dsr \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/c2dsr
python -m jaxrec.evaluate --workdir=runs/c2dsr --task.protocol=uniform --task.negatives=999

FOLDER holds afk_50_preprocessed.txt and map_item_50.txt. Without --config.data.source they are
downloaded. `--config=experiments/c2dsr_food_kitchen.py:merged` is the merged encoder alone, SASRec
with one table and a softmax among the items of the target's domain: what C2DSR has to beat. `:own`
is SASRec on the events of each domain.

Batches are of 32 rows, eight times as many steps of an epoch at the same cost as 256: a row holds
several users, the authors' batch 256.

Vectors of 64, windows of 32, dropout .4, NDCG@10 of the test, five seeds: `:merged` .0333, `:own`
.0301, three: `:merged` with another user's events of the other domain .0244 (the control), see
experiments/tables/cross_domain_sequences.py. Among 999 drawn items `:merged` (seed 0) has HR@10 /
NDCG@10 .284 / .181 on Food and .221 / .128 on Kitchen, where ABXI has .324 / .197 and .244 / .143.
C2DSR itself was not run to the end.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import c2dsr
from jaxrec.tasks import next_item

BARE = {'graph': 0, 'mix': 1.0, 'pad': False, 'once': True, 'tied': True}
ENCODERS = {
    'merged': {'own': False, **BARE},
    'own': {'merged': False, 'masked': True, **BARE},
    '': {},
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'merged', 'own', or empty."""
    return Experiment(
        model=c2dsr.Config(dim=256, max_len=15, **ENCODERS[arg]),
        task=next_item.Config(in_domain=True),
        data=Data(dataset='food-kitchen'),
        optim=Optim(learning_rate=1e-3, b1=0.9, b2=0.98),
        train=Train(batch_rows=32, epochs=100, eval_every=5, patience=4),
    )
