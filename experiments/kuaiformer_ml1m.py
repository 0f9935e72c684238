"""wip"""

from jaxrec.config import Data, Eval, Experiment, Optim, Train
from jaxrec.features import Feature
from jaxrec.in_batch import InBatch
from jaxrec.models import comirec, kuaiformer, sasrec

FEATURES = (
    Feature('rating', 'category', size=6),
    Feature('genres', 'set', size=18),
    Feature('gap', 'log', size=20, cap=30 * 86_400),
)


def get_config(arg: str = '') -> Experiment:
    common = {'dim': 64, 'max_len': 64, 'features': FEATURES, 'in_batch': InBatch()}
    models = {
        '': lambda: kuaiformer.Config(
            **common, blocks=2, heads=2, interests=4, compress=(), newest=64
        ),
        'sasrec': lambda: sasrec.Config(
            **common, variant='pre_ln', blocks=2, heads=2, ffn=3, loss='in_batch', dropout=0.1,
            embedding_dropout=0.1,
        ),
        'comirec': lambda: comirec.Config(**common, interests=4),
    }
    return Experiment(
        model=models[arg](),
        data=Data(dataset='ml-1m', windows='cuts', cuts=8),
        optim=Optim(learning_rate=1e-3, b2=0.98),
        train=Train(batch_rows=512, epochs=20, metric='HR@50', eval_every=2),
        eval=Eval(cutoffs=(10, 50, 100, 500, 1000)),
    )
