r"""Label streams for live rooms: what a model is told, and when, of visits to generated rooms.

python -m jaxrec.train --config=experiments/moment_simulator.py --workdir=runs/moment
python -m jaxrec.evaluate --workdir=runs/moment

`moment_simulator.py:NAME` learns from another stream of jaxrec/data/label_streams.py: fast_slow,
sliver, fake_negative or oracle. Rooms change by the minute (jaxrec/datasets/live_rooms.py); every
30 seconds the model of that moment scores the visits of the next 5 minutes and then learns what the
stream says. FIGURES
Their table is experiments/tables/moment.py. Nobody has published numbers on these data.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.data.fields import Field
from jaxrec.experiment import Experiment
from jaxrec.models import mmoe
from jaxrec.tasks import live


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is the label stream, moment if empty."""
    return Experiment(
        task=live.Config(
            stream=arg or 'moment',
            fields=(Field('user'), Field('item'), Field('taste'), Field('topic')),
            highlights=('highlight_from', 'highlight_to'),
        ),
        # a shared bottom
        model=mmoe.Config(experts=1, dim=8, expert_widths=(32,), tower_widths=(), cross=('taste',)),
        data=Data(dataset='live-rooms'),
        optim=Optim(learning_rate=1e-2),
        train=Train(batch_rows=32, epochs=1),
    )
