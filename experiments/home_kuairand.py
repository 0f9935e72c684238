r"""HoME on KuaiRand-Pure, and the heads it is compared with: eight labels at once.

python -m jaxrec.train --config=experiments/home_kuairand.py --workdir=runs/home \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/home

Rows, fields, split and optimiser are those of mmoe_kuairand.py: trained on 25 April to 2 May 2022,
the epoch chosen by the mean GAUC of click and long_view on 3 and 4 May, tested on 5 to 8 May; what
is known of a user's past ends on 24 April. Labels are watching (click, long_view) or interaction.
`home_kuairand.py:NAME` is another head of HEADS; (bn) has experts that are Swish(BatchNorm(MLP)).
Their table is experiments/tables/ranking.py: no head is above an expert of its own for each label.

Which epoch is tested decides more than the head, for the rare labels go on learning where click and
long_view overfit. Test AUC of like / of all eight, means of seeds 0 to 4: an expert per label .8272
/ .7360, MMoE .8173 / .7199, CGC (bn) .8138 / .7190, HoME .7939 / .7139; HoME with
--config.train.metric=AUC/mean .8148 / .7220 (deviations .0115, .0078), whose GAUC of click and
long_view is .6316 and .6400 in place of .6376 and .6446. A prototype's HoME had .8149 / .7188.
Anomalies of these runs: experts' deviations differ by a factor of 1.04 to 1.17, the largest gate is
.55 to .73.
"""

import pathlib
import runpy

from jaxrec.experiment import Experiment
from jaxrec.models import adatt, din, fm, home, mmoe, ple

_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name('mmoe_kuairand.py')))
GROUPS = (
    home.Group('watch', ('click', 'long_view')),
    home.Group('interaction', _BASE['LABELS'][2:]),
)
INPUT = {'attend': ('watch', 'long_watch'), 'cross': ('user',)}
NORMED = {**INPUT, 'expert': 'bn_swish'}
HEADS = {
    '': home.Config(groups=GROUPS, **INPUT),
    'without_fg': home.Config(groups=GROUPS, feature_gate=False, **INPUT),
    'without_fg_sg': home.Config(groups=GROUPS, feature_gate=False, self_gate=False, **INPUT),
    'without_fg_sg_mask': home.Config(
        groups=GROUPS, feature_gate=False, self_gate=False, mask=False, **INPUT
    ),
    'apart': ple.Config(levels=1, shared_experts=0, **INPUT),  # an expert each, one table
    'shared_bottom': mmoe.Config(experts=1, **NORMED),  # (bn)
    'mmoe_relu': mmoe.Config(**INPUT),
    'mmoe': mmoe.Config(**NORMED),  # (bn)
    'cgc': ple.Config(levels=1, **NORMED),  # (bn)
    'ple': ple.Config(**NORMED),  # (bn)
    'adatt': adatt.Config(shared_experts=2, **NORMED),  # (bn)
    'din': din.Config(**INPUT),
    'fm': fm.Config(),
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is '' (HoME) or another name of HEADS."""
    experiment = _BASE['get_config']()
    experiment.model = HEADS[arg]
    return experiment
