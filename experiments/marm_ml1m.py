r"""MARM on MovieLens-1M: whether a user likes the next movie, from the last 99.

python -m jaxrec.train --config=experiments/marm_ml1m.py --workdir=runs/marm \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/marm

FOLDER holds ratings.dat, see jaxrec/datasets/movielens_rows.py: the last 100 ratings of a user, the
last tenth of them tests, the tenth before validates, a rating of 4 or 5 is a like. The only field
is the movie. The past is frozen where the tested part begins: no tested label, no tested movie.
Test AUC of seed 0 after 8 epochs (6 of the first), a CPU core of a busy machine:

                        AUC    GAUC
item rate               .7382  .6790
L=0                     .7398  .6819
L=2, n=99               .7926  .6815
the same, streaming     .7949  .6696   (evaluate --task.history=streaming)

A prototype with the same split measured .7383/.6790, .7900/.6733 and .7941/.6522 before. Its frozen
past may have had tested movies without their labels, which matters for a small n.

`marm_ml1m.py:L=1,n=10,d=16` has other layers, memory and width; L=0 sees no past.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.data.fields import Field
from jaxrec.experiment import Experiment
from jaxrec.models import marm
from jaxrec.tasks import click


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is '' or 'L=1,n=10,d=16', any of these."""
    sizes = {'L': 2, 'n': 99, 'd': 32}
    sizes |= {k: int(v) for k, v in (one.split('=') for one in arg.split(',') if one)}
    return Experiment(
        task=click.Config(
            labels=('like',),
            fields=(Field('item'),),
            day='tenth',
            valid_from=8,
            test_from=9,
            history='frozen',
        ),
        model=marm.Config(layers=sizes['L'], memory=sizes['n'], dim=sizes['d']),
        data=Data(dataset='ml-1m-rows'),
        optim=Optim(learning_rate=1e-3, b2=0.999),
        train=Train(
            batch_rows=64 if sizes['L'] else 4096, epochs=30, patience=4, metric='AUC/like'
        ),
    )
