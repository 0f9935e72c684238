r"""GraphCL on IMDB-BINARY or PROTEINS without labels, then a linear SVM in ten folds.

python -m jaxrec.train --config=experiments/graphcl_tu.py --workdir=runs/graphcl \
    --config.data.source=FOLDER [--config.data.dataset=proteins]
python -m jaxrec.evaluate --workdir=runs/graphcl

FOLDER holds IMDBBINARY.txt and PROTEINS.txt. `--config=experiments/graphcl_tu.py:NAME,SEED` with
graphcl, infonce (the positive counts in the denominator), mix-inputs, mix-hidden, mix-outputs
(ID-MixGCL beside that), mix-alone (the second view is the graph itself) and untrained.

Ten seeds, IMDB-B / PROTEINS (results/graph_contrast): untrained .7097 / .7394, graphcl .7140 /
.7381 (published .711 / .744), infonce .7131 / .7395, mix-inputs .7179 / .7460, mix-hidden .7146 /
.7429, mix-outputs .7141 / .7380, mix-alone .7229 / .7444: training adds at most a point to the
encoder as it is drawn, and mixing identities gains nothing significant over the same views without
it. What needs no model on IMDB-B: the largest class .500, tags .490, smoothed tags .662, five
statistics of a graph, as logarithms, .708 (as they are .643).
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models.graphcl import Config
from jaxrec.tasks import graphs

MODELS = {
    'graphcl': Config(),
    'infonce': Config(positive=True),
    'mix-inputs': Config(positive=True, alpha=1.0, mix_at=0),
    'mix-hidden': Config(positive=True, alpha=1.0, mix_at=1),
    'mix-outputs': Config(positive=True, alpha=1.0, mix_at=3),
    'mix-alone': Config(positive=True, alpha=1.0, mix_at=1, view='none'),
    'untrained': Config(),
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'NAME,SEED', of MODELS, graphcl and 0 if empty."""
    name, _, seed = arg.partition(',')
    learns = name != 'untrained'  # one epoch only gathers the running statistics
    return Experiment(
        task=graphs.Config(),
        model=MODELS[name or 'graphcl'],
        data=Data(dataset='imdb-binary'),
        optim=Optim(learning_rate=0.01 if learns else 1e-30, b2=0.999),
        train=Train(batch_rows=128, epochs=20 if learns else 1, seed=int(seed or 0)),
    )
