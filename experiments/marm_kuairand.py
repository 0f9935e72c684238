r"""MARM on KuaiRand-Pure: eight labels of an impression, from what became of the user's last ones.

python -m jaxrec.train --config=experiments/marm_kuairand.py --workdir=runs/marm \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/marm

Rows, fields, split and optimiser are those of mmoe_kuairand.py. Its videos before 25 April are
pooled as there; MARM's layers see the impressions since, with what became of them, frozen where the
tested part begins. NAME of `marm_kuairand.py:NAME` picks the rows that a layer attends to: the
latest 10 if empty; `dot`, of the latest 50 the 10 most alike in every layer by itself; `author` or
`tab`, the latest 10 of the same author or tab; `without`, no layer at all.

One run of the first, 3 of 4 epochs (12 minutes on a busy CPU core), AUC / GAUC of the test: click
.7260 / .6401, long_view .7210 / .6489, like .8420 / .6549, profile_enter .7120 / .6658, mean AUC of
eight .7440: of the heads of experiments/tables/ranking.py the best has .8272 for like and .7360 for
all; in GAUC of click and long_view it is one of them. `dot`, stopped in the third epoch: click
.7450 / .6408, long_view .7424 / .6518, like .8413, mean .7359. The others were not run. Windows are
as long as the longest, and 5.4 % of a batch is rows.
"""

import dataclasses
import pathlib
import runpy

from jaxrec.experiment import Experiment
from jaxrec.models import marm

_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name('mmoe_kuairand.py')))
PICKED = {
    '': {},
    'dot': {'search': 'dot', 'searched': 50},
    'author': {'search': 'same', 'same': 'author', 'searched': 50},
    'tab': {'search': 'same', 'same': 'tab', 'searched': 50},
    'without': {'layers': 0},
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is a name of PICKED."""
    experiment = _BASE['get_config']()
    experiment.model = marm.Config(
        dim=16,
        **{'layers': 2, 'memory': 10, **PICKED[arg]},
        attend=('watch', 'long_watch'),
        cross=('user',),
    )
    experiment.task = dataclasses.replace(experiment.task, history='frozen')
    if experiment.model.layers:  # a row of a batch is a window of a user's rows
        experiment.train = dataclasses.replace(experiment.train, batch_rows=64)
    return experiment
