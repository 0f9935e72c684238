r"""KuaiFormer on generated users of several tastes: where several interests must help.

python -m jaxrec.train --config=experiments/kuaiformer_interests.py --workdir=runs/interests
python -m jaxrec.evaluate --workdir=runs/interests

`--config=experiments/kuaiformer_interests.py:TASTES,K,DIM` with the tastes of a user (1, 2 or 4,
all with 120 items to choose from), the interests k and the width; 4, 4 and 16 if empty.

4 tastes, five seeds, test HR@10 / NDCG@10: at dim 16 .2910 / .1522 with k = 4 and .0983 / .0528
with k = 1, at dim 32 .2970 / .1570 and .1921 / .1001, at dim 64 .2983 / .1569 and .2195 / .1131, at
dim 128 .2957 / .1565 and .2308 / .1159. Markov has .0407 / .0256. The table is
experiments/tables/interests.py.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import kuaiformer
from jaxrec.tasks import next_item


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'TASTES,K,DIM'."""
    tastes, k, dim = map(int, arg.split(',')) if arg else (4, 4, 16)
    return Experiment(
        model=kuaiformer.Config(
            dim=dim,
            blocks=2,
            heads=1,
            ffn=2,
            interests=k,
            max_len=40,
            compress=(),
            newest=40,
        ),
        task=next_item.Config(windows='cuts', cuts=8, windows_per_user=2, cutoffs=(10, 50)),
        data=Data(dataset=f'synthetic:interests={tastes},tastes={25 * tastes}'),
        optim=Optim(learning_rate=3e-3, b2=0.98, schedule='linear'),
        train=Train(batch_rows=64, epochs=20, eval_every=5, patience=0),
    )
