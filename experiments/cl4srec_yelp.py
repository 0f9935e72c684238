"""CL4SRec on Yelp (S3-Rec file), whole catalogue ranked.

python -m jaxrec.train --config=experiments/cl4srec_yelp.py --workdir=runs/cl4srec_yelp
python -m jaxrec.evaluate --workdir=runs/cl4srec_yelp

Not run to the end. The settings are those of experiments/cl4srec_beauty.py. Published, HR@10: .0384
for CL4SRec, .0260 for SASRec (MCLRec's table). Users come back to places here: a target that was
visited before counts as not found under this protocol, which removes seen items.
"""

import pathlib
import runpy

from jaxrec.experiment import Experiment

_beauty = runpy.run_path(str(pathlib.Path(__file__).with_name('cl4srec_beauty.py')))


def get_config(arg: str = 'bce') -> Experiment:
    """The experiment; `arg` is the main loss: 'bce', as in the paper, or 'softmax'."""
    experiment = _beauty['get_config'](arg)
    experiment.data.dataset = 'yelp'
    return experiment
