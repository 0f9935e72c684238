r"""KuaiFormer on MovieLens 1M, whole catalogue ranked, beside SASRec and ComiRec in the same frame.

python -m jaxrec.train --config=experiments/kuaiformer_ml1m.py --workdir=runs/kuaiformer
python -m jaxrec.evaluate --workdir=runs/kuaiformer
python -m jaxrec.recommend --workdir=runs/kuaiformer --user=42 --explain

Not run to the end with these 8 epochs; with 3 (9 minutes on one busy CPU core) the test HR@50 is
.5197, at window 64 .5184 (3 seeds), SASRec's .5253 (3 seeds). README, "KuaiFormer", has the table.

experiments/kuaiformer_ml1m.py:sasrec and :comirec are the baselines: same features, loss, targets.
All rows of the ablations:

python launch/sweep.py --experiment=experiments/kuaiformer_ml1m.py --workdir=runs/ml1m --run
"""

from jaxrec.config import Data, Eval, Experiment, Feature, Optim, Train
from jaxrec.models import comirec, kuaiformer, sasrec

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
        data=Data(dataset='ml-1m', windows='cuts', cuts=8, windows_per_user=8),
        optim=Optim(learning_rate=3e-3, b2=0.98, schedule='linear'),
        train=Train(batch_rows=64, epochs=8, eval_every=2, metric='HR@50'),
        eval=Eval(cutoffs=(10, 50, 100, 500, 1000)),
    )


def sweep() -> dict[str, tuple[str, dict]]:
    """Rows of the paper's comparisons: name -> (argument, overrides)."""

    def window(length):  # short windows hold fewer cuts, so that these have a history
        cuts = min(8, max(1, length // 8))
        return {
            'model.max_len': length,
            'model.compress': (),
            'model.newest': length,
            'data.cuts': cuts,
            'data.windows_per_user': 64 // cuts,
            'train.batch_rows': 512 // cuts,
        }

    cheap = window(64)  # the rest at length 64
    rows = {
        'kuaiformer': ('', {}),
        'sasrec': ('sasrec', {}),
        'sasrec/256': ('sasrec', {'model.max_len': 256}),
        'sasrec/no features': ('sasrec', {'model.features': ()}),
        'comirec': ('comirec', {}),
    }
    rows |= {f'length/{n}': ('', window(n)) for n in (8, 16, 32, 64, 128, 256)}
    rows |= {f'k/{k}': ('', {**cheap, 'model.interests': k}) for k in range(1, 8)}
    rows |= {f'layers/{n}': ('', {**cheap, 'model.blocks': n}) for n in range(1, 6)}
    rows |= {
        'logq/none': ('', {**cheap, 'model.in_batch.logq': 'none'}),
        'logq/streaming': ('', {**cheap, 'model.in_batch.logq': 'streaming'}),
        'logq/refined': ('', {**cheap, 'model.in_batch.refined': True}),
        'smoothing/0.1': ('', {**cheap, 'model.in_batch.smoothing': 0.1}),
        'uniform/512': ('', {**cheap, 'model.in_batch.uniform': 512}),
        'features/none': ('', {**cheap, 'model.features': ()}),
    }
    return rows
