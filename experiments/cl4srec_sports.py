"""CL4SRec on Amazon Sports (S3-Rec file), whole catalogue ranked.

python -m jaxrec.train --config=experiments/cl4srec_sports.py --workdir=runs/cl4srec_sports
python -m jaxrec.evaluate --workdir=runs/cl4srec_sports

Not run to the end. The settings are those of experiments/cl4srec_beauty.py. Published, HR@10: .0369
and .0374 for CL4SRec, .0333 and .0336 for SASRec (MCLRec's and FEARec's tables).
"""

import pathlib
import runpy

from jaxrec.experiment import Experiment

_beauty = runpy.run_path(str(pathlib.Path(__file__).with_name('cl4srec_beauty.py')))


def get_config(arg: str = 'bce') -> Experiment:
    """The experiment; `arg` is the main loss: 'bce', as in the paper, or 'softmax'."""
    experiment = _beauty['get_config'](arg)
    experiment.data.dataset = 'sports'
    return experiment
