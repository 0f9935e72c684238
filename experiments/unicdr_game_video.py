r"""UniCDR on Amazon Game and Video: users who are cold in one of them, as CDRIB published them.

python -m jaxrec.train --config=experiments/unicdr_game_video.py --workdir=runs/game_video \
    --config.data.source=FOLDER/game_video
python -m jaxrec.evaluate --workdir=runs/game_video
python -m jaxrec.evaluate --workdir=runs/game_video --task.protocol=full

FOLDER/game_video and FOLDER/video_game hold train.txt, valid.txt, test.txt and *_data_info.txt;
another pair of the same layout runs alike. A tested user has nothing in the domain: what validates
there is no input of the test. A test user's other held-out items are never among the candidates.
`--config=experiments/unicdr_game_video.py:NAME,SEED` with a NAME of MODELS.

Only tried for a hundred steps: no numbers yet.
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
            valid_seen=False,
            windows='pairs',
            unseen_negatives=10,
            protocol='uniform',
            negatives=999,
            in_domain=True,
            cutoffs=(1, 5, 10),
        ),
        data=Data(dataset='cdrib'),
        optim=Optim(learning_rate=1e-3, b2=0.999, weight_decay=1e-5),
        train=Train(batch_rows=1024, epochs=100, eval_every=5, patience=4, seed=int(seed or 0)),
    )
