r"""KuaiFormer on MovieLens 1M, whole catalogue ranked, beside SASRec and ComiRec in the same frame.

python -m jaxrec.train --config=experiments/kuaiformer_ml1m.py --workdir=runs/kuaiformer
python -m jaxrec.evaluate --workdir=runs/kuaiformer
python -m jaxrec.recommend --workdir=runs/kuaiformer --user=42 --explain

Test, seed 0: HR@10 .3195, NDCG@10 .1869, HR@50 .5712 (16 minutes of one CPU core), the last
validation the best. SASRec has .3192, .1846, .5752 in 4 minutes. With 3 epochs HR@50 is .5197, at
window 64 .5184, SASRec's .5253 (3 seeds each). docs/kuaiformer.md has the table.

experiments/kuaiformer_ml1m.py:sasrec and :comirec are the baselines: same features, loss, targets.
The paper's ablations are rows of experiments/tables/kuaiformer_ablation.py.
"""

from jaxrec.config import Data, Feature, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import comirec, kuaiformer, sasrec
from jaxrec.tasks import next_item

FEATURES = (
    Feature('rating', 'category', size=6),
    Feature('genres', 'set', size=18),
    Feature('gap', 'log', size=20, cap=30 * 86_400),  # seconds since the user's event before
)
WIDTH = {'dim': 64, 'features': FEATURES}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is '' (KuaiFormer), 'sasrec' or 'comirec'."""
    models = {
        '': kuaiformer.Config(**WIDTH, blocks=2, heads=2, ffn=2, interests=4),
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
        # 8 windows of 8 targets each from every user and epoch
        task=next_item.Config(
            windows='cuts', cuts=8, windows_per_user=8, cutoffs=(10, 50, 100, 500, 1000)
        ),
        data=Data(dataset='ml-1m'),
        optim=Optim(learning_rate=3e-3, b2=0.98, schedule='linear'),
        train=Train(batch_rows=64, epochs=8, eval_every=2, metric='HR@50'),
    )
