r"""UniCDR on Amazon Sport and Cloth, one test item a user and domain, as DisenCDR published them.

python -m jaxrec.train --config=experiments/unicdr_sport_cloth.py --workdir=runs/sport_cloth \
    --config.data.source=FOLDER/sport_cloth
python -m jaxrec.evaluate --workdir=runs/sport_cloth
python -m jaxrec.evaluate --workdir=runs/sport_cloth --task.protocol=full

FOLDER/sport_cloth and FOLDER/cloth_sport hold train.txt and test.txt each; another pair of the same
layout runs alike. A tenth of every user's training items validates. The same product is in both
domains of this pair more than a thousand times: rows whose twin the user has are told apart, and
evaluation prints counts of the other domain beside the model, which learn nothing.
`--config=experiments/unicdr_sport_cloth.py:NAME,SEED` with a NAME of MODELS.

Not run yet.
"""

import pathlib
import runpy

from jaxrec.experiment import Experiment

_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name('unicdr_game_video.py')))
MODELS = _BASE['MODELS']


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'NAME,SEED', unicdr and 0 if empty."""
    experiment = _BASE['get_config'](arg)
    experiment.task.valid_seen = True  # what validates comes from the training items
    experiment.data.dataset = 'disencdr'
    return experiment
