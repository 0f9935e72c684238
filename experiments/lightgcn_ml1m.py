r"""LightGCN on MovieLens-1M as a graph (the split of LCFN and UltraGCN), stopped on validation.

python -m jaxrec.train --config=experiments/lightgcn_ml1m.py --workdir=runs/lightgcn \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/lightgcn

FOLDER holds train.txt and test.txt. A tenth of each user's training items is for validation. It
learns by the softmax over the batch, corrected for how often items come, which needs far fewer
epochs than the paper's BPR (experiments/simgcl_ml1m.py:lightgcn). Not trained to the end yet: after
5 epochs, each the best so far, test Recall@20 is .2618, NDCG@20 .2437 (seed 0). Validation
Recall@20 on 3,000 users is .1825, .2199, .2295, .2345, .2412, without a graph .1126, .1907, .2127,
.2243, .2342.

Without a graph (simgcl_ml1m.py:mf-softmax, a learning rate of 3e-3 and 2,048 pairs a step) six
epochs, each the best so far, give test Recall@20 .2582, NDCG@20 .2397 (seed 0; validation .2367,
.1831). BPR gave .2382, .2272 after 30 of 39 epochs at 1e-2, 8,192 pairs a step and three layers.
What needs no training, and also knows the validation items: EASE .2759, .2660, the low-pass filter
.2743, .2610, popularity .1159, .1176. On the validation users, of what the models know too: EASE
.2499, .1951, the filter .2559, .1984, item cosine .1753, .1464, popularity .1115, .0923.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import lightgcn
from jaxrec.tasks import next_item


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is the seed, 0 if empty."""
    return Experiment(
        task=next_item.Config(
            split='given',
            targets='all',
            windows='pairs',
            cutoffs=(10, 20, 50),
        ),
        model=lightgcn.Config(
            dim=64, layers=2, loss='softmax', temperature=0.15, cosine=True, decay=0.0
        ),
        data=Data(dataset='ml-1m-graph'),
        optim=Optim(learning_rate=5e-3, b2=0.999),
        train=Train(
            batch_rows=4096,
            epochs=30,
            eval_every=2,
            patience=3,
            metric='Recall@20',
            seed=int(arg or 0),
        ),
    )
