r"""UniCDR on Amazon Game and Video: users who are cold in one of them, as CDRIB published them.

python -m jaxrec.train --config=experiments/unicdr_game_video.py --workdir=runs/game_video \
    --config.data.source=FOLDER/game_video
python -m jaxrec.evaluate --workdir=runs/game_video
python -m jaxrec.evaluate --workdir=runs/game_video --task.protocol=full

FOLDER/game_video and FOLDER/video_game hold train.txt, valid.txt, test.txt and *_data_info.txt;
another pair of the same layout runs alike. A tested user has nothing in the domain: what validates
there is no input of the test. A test user's other held-out items are never among the candidates,
as some were in the published run: popularity alone gains by that (HR@10 of Game .052 to .058).
`--config=experiments/unicdr_game_video.py:NAME,SEED` with a NAME of MODELS.

The authors' weight decay of 1e-5 is inside Adam, on all parameters; here it is `model.decay` of the
rows that a pair looks up. Rate and decay are those of unicdr_sport_cloth.py, where they were tuned;
this pair was not run to the end.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import lightgcn, unicdr
from jaxrec.tasks import next_item

UNICDR = {
    'unicdr': {},
    'attention': {'aggregator': 'attention'},
    'bias': {'bias': True},
    # decay and the rest weigh as much beside each other as with a critic of .6
    'no-critic': {'critic': 0.0, 'decay': 0.25},
    'both': {'sees': 'all'},
    'plus': {'aggregator': 'attention', 'layers': 1, 'soft': 0.1},
    'plus-no-layers': {'aggregator': 'attention', 'soft': 0.1},
    'plus-no-soft': {'aggregator': 'attention', 'layers': 1},
    'mf-domain': {'shared': False, 'critic': 0.0, 'own': 1.0, 'decay': 0.25},
}
MODELS = {name: unicdr.Config(**{'decay': 0.1, **given}) for name, given in UNICDR.items()}
MODELS['mf-union'] = lightgcn.Config(dim=128, layers=0)


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'NAME,SEED', unicdr and 0 if empty."""
    name, _, seed = arg.partition(',')
    model = MODELS[name or 'unicdr']
    return Experiment(
        model=model,
        task=next_item.Config(
            split='given',
            targets='each',
            valid_seen=False,
            windows='pairs',
            unseen_negatives=10,
            protocol='uniform',
            negatives=999,
            in_domain=True,
            cutoffs=(1, 5, 10),
        ),
        data=Data(dataset='cdrib'),
        # without propagation a step touches few rows: the others' momentum is left out
        optim=Optim(
            learning_rate=3e-3, b2=0.999, table='sparse_adam' if model.tables() else 'dense'
        ),
        train=Train(batch_rows=1024, epochs=300, eval_every=5, patience=4, seed=int(seed or 0)),
    )
