r"""UniCDR on Amazon Sport and Cloth, one test item a user and domain, as DisenCDR published them.

python -m jaxrec.train --config=experiments/unicdr_sport_cloth.py --workdir=runs/sport_cloth \
    --config.data.source=FOLDER/sport_cloth
python -m jaxrec.evaluate --workdir=runs/sport_cloth
python -m jaxrec.evaluate --workdir=runs/sport_cloth --task.protocol=full

FOLDER/sport_cloth and FOLDER/cloth_sport hold train.txt and test.txt each; another pair of the same
layout runs alike. A tenth of every user's training items validates. The same product is in both
domains of this pair more than a thousand times: rows whose twin the user has are told apart, and
evaluation prints counts of the other domain beside the model, which learn nothing.
`--config=experiments/unicdr_sport_cloth.py:NAME,SEED` with a NAME of MODELS.

Not run yet.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import lightgcn, unicdr
from jaxrec.tasks import next_item

MODELS = {
    'unicdr': unicdr.Config(),
    'attention': unicdr.Config(aggregator='attention'),
    'no-critic': unicdr.Config(critic=0.0),
    'other-only': unicdr.Config(sees='other'),
    'plus': unicdr.Config(aggregator='attention', layers=1, soft=0.1),
    'plus-no-layers': unicdr.Config(aggregator='attention', soft=0.1),
    'plus-no-soft': unicdr.Config(aggregator='attention', layers=1),
    'mf-domain': unicdr.Config(shared=False, critic=0.0, own=1.0),
    'mf-union': lightgcn.Config(dim=128, layers=0),
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'NAME,SEED', unicdr and 0 if empty."""
    name, _, seed = arg.partition(',')
    return Experiment(
        model=MODELS[name or 'unicdr'],
        task=next_item.Config(
            split='given',
            targets='each',
            windows='pairs',
            unseen_negatives=10,
            protocol='uniform',
            negatives=999,
            in_domain=True,
            cutoffs=(1, 5, 10),
        ),
        data=Data(dataset='disencdr'),
        optim=Optim(learning_rate=1e-3, b2=0.999, weight_decay=1e-5),
        train=Train(batch_rows=1024, epochs=100, eval_every=5, patience=4, seed=int(seed or 0)),
    )
