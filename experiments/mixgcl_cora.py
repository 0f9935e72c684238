r"""ID-MixGCL on Cora without labels, then a linear probe on the public split.

python -m jaxrec.train --config=experiments/mixgcl_cora.py --workdir=runs/mixgcl \
    --config.data.source=cora.npz
python -m jaxrec.evaluate --workdir=runs/mixgcl

TEXT
"""

from jaxrec.config import Data, Experiment, Optim, Train
from jaxrec.models import mixgcl
from jaxrec.tasks import nodes


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is the seed, 0 if empty."""
    return Experiment(
        task=nodes.Config(probe='linear', nodes='all'),
        model=mixgcl.Config(
            dim=128,
            head=128,
            edge_drop=(0.2, 0.4),
            feature_drop=(0.3, 0.4),
            alpha=1.0,
            mix_at=0,
            temperature=0.4,
        ),
        data=Data(dataset='cora'),
        optim=Optim(learning_rate=5e-4, b2=0.999),
        # an epoch is three steps of 903 nodes, each against all
        train=Train(
            batch_rows=1024, epochs=40, eval_every=5, metric='accuracy', seed=int(arg or 0)
        ),
    )
