r"""CDRNP on MovieLens-1M: from ratings of dramas to ratings of comedies by users who have none.

python -m jaxrec.train --config=experiments/cdrnp_ml1m.py --workdir=runs/cdrnp \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/cdrnp

FOLDER holds ratings.dat and movies.dat. `--config=experiments/cdrnp_ml1m.py:NAME,SPLIT` with a
NAME of MODELS and the number of the split of users; `--config.task.cold_share=0.8` leaves a fifth
of them to learn from, and `--config.task.shuffled=True` is the control. Evaluation prints biases,
common factors, EMCDR and neighbours beside it.

Five splits (results/cold_start), MAE and RMSE, a fifth of the users cold: .7317, .924; EMCDR by
ratings .7360, .930, PTUPCDR .7382, .933, and what needs no training: common factors .7361, .936,
EMCDR .7410, .934, neighbours .7435, .937, item and source bias .7566, .952. Four fifths cold:
.7519, .949, EMCDR by ratings .7561, .958, PTUPCDR .7561, .960; common factors .7532, .952, the bias
.7644, .967. The process adds nothing to the decoder alone, .7316, .924 and .7518, .950. With other
users' ratings in the source (the control) .7966, .996 and .8054, 1.008.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import cdrnp, ptupcdr
from jaxrec.tasks import ratings

MODELS = {
    'cdrnp': cdrnp.Config(),
    'no-process': cdrnp.Config(process=False, memory=0, adaptive=False),
    'no-remainer': cdrnp.Config(memory=0),
    'no-film': cdrnp.Config(adaptive=False),
    'ptupcdr': ptupcdr.Config(),
    'emcdr': ptupcdr.Config(bridge='linear'),
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'NAME,SPLIT', cdrnp and 0 if empty."""
    name, _, split = arg.partition(',')
    return Experiment(
        model=MODELS[name or 'cdrnp'],
        task=ratings.Config(source='drama', target='comedy', split_seed=int(split or 0)),
        data=Data(dataset='ml-1m-drama-comedy'),
        optim=Optim(learning_rate=1e-3, b2=0.999, weight_decay=1e-4),
        train=Train(batch_rows=1024, epochs=20, patience=4),
    )
