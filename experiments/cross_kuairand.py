r"""Cross on KuaiRand-Pure: a user's searched sequences, aligned with the mixed one.

python -m jaxrec.train --config=experiments/cross_kuairand.py --workdir=runs/cross \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/cross

A stand-in: the data have no live rooms. Rows, fields, labels, split and optimiser are those of
mmoe_kuairand.py; the sequences are searches of the videos before 25 April: the latest 20 watched,
the 20 most like the candidate, those of its author, the 10 liked ones most like it, and the latest
20 watched for long, by which the others are anchored. `cross_kuairand.py:alone` does without the
alignment, `cross_kuairand.py:ple` without the sequences: attention over what was watched as in
mmoe_kuairand.py.

Test, seeds 0 and 1, 3 of 4 epochs, two minutes each on a busy CPU core: GAUC of click and
long_view, AUC of like and of all eight labels:

            click            long_view        like             all
cross       .6416   .6410    .6489   .6497    .8189   .8143    .7102   .7255
alone       .6419   .6413    .6487   .6482    .8491   .8515    .7295   .7380
ple         .6416   .6417    .6496   .6478    .8365   .8451    .7177   .7232

Five sequences gain on like alone, and the alignment takes that away again.
"""

import dataclasses
import pathlib
import runpy

from jaxrec.data.fields import Field
from jaxrec.experiment import Experiment
from jaxrec.models import cross, ple

_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name('mmoe_kuairand.py')))
SEQUENCES = (
    cross.Sequence('short', 'watch', most=20),
    cross.Sequence('long', 'watch', 'dot', most=20),
    cross.Sequence('author', 'watch', 'same', most=20, same='author'),
    cross.Sequence('liked', 'past_like', 'dot', most=10),
    cross.Sequence('mixed', 'long_watch', most=20),
)
MODELS = {
    '': cross.Config(sequences=SEQUENCES, anchor='mixed', cross=('user',)),
    'alone': cross.Config(sequences=SEQUENCES, weight=0.0, cross=('user',)),
    'ple': ple.Config(attend=('watch', 'long_watch'), cross=('user',)),
}
MORE = (Field('past_like', 'set', of='item'), Field('watch.author', 'set', of='author'))


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is a name of MODELS."""
    experiment = _BASE['get_config']()
    experiment.model = MODELS[arg]
    fields = (*experiment.task.fields, *MORE)
    experiment.task = dataclasses.replace(experiment.task, fields=fields)
    return experiment
