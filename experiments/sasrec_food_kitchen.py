"""SASRec on Amazon Food and Kitchen as one log, ranks in the target's domain.

python -m jaxrec.train --config=experiments/sasrec_food_kitchen.py --workdir=runs/food_kitchen \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/food_kitchen

FOLDER holds afk_50_preprocessed.txt and map_item_50.txt. Without --config.data.source they are
downloaded. With `--config.task.in_domain=False --config.task.domain=food` it learns and ranks one
domain alone, split as the whole log is.

The softmax is over both domains, the ranks within one: what models of two domains have to beat.

Settings are those that were found for SASRec on files alike (dropout .4, one block), with small
batches, since an epoch of batches of 256 rows is 18 steps.

Test, seed 0, stopped on validation at epoch 20: HR@10 .0645, NDCG@10 .0355, macro .0404 (Food
.0552, Kitchen .0255), the best so far of experiments/tables/cross_domain_sequences.py; Markov in
the domain has .0226.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec
from jaxrec.tasks import next_item


def get_config() -> Experiment:
    return Experiment(
        model=sasrec.Config(
            variant='pre_ln', dim=64, blocks=1, max_len=32, dropout=0.4, embedding_dropout=0.4
        ),
        task=next_item.Config(in_domain=True),
        data=Data(dataset='food-kitchen'),
        optim=Optim(learning_rate=1e-3, b1=0.9, b2=0.98),
        train=Train(batch_rows=32, epochs=60, patience=5),
    )
