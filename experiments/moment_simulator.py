r"""Label streams for live rooms: what a model is told, and when, of visits to generated rooms.

python -m jaxrec.train --config=experiments/moment_simulator.py --workdir=runs/moment
python -m jaxrec.evaluate --workdir=runs/moment

`moment_simulator.py:NAME` learns from another stream of jaxrec/data/label_streams.py: fast_slow,
sliver, fake_negative or oracle. Rooms change by the minute (jaxrec/datasets/live_rooms.py); every
30 seconds the model of that moment scores the visits of the next 5 minutes and then learns what the
stream says. The default world, three hours of 162,089 visits, the first half hour not measured;
means of seeds 0 to 4 of the parameters, 12 to 15 seconds of a CPU each (more where every tick
writes to a slow disk):

                  click: AUC  logloss  calibration  lag     missed   like: AUC  gift: AUC
room lately           .6789   .4509    1.039        311 s   .465     .6401      .6191
fast_slow             .6998   .4500    1.053        366 s   .726     .6585      .6358
sliver                .7062   .4446    1.030        214 s   .286     .6660      .6308
moment                .7152   .4417    1.036        207 s   .263     .6681      .6391
fake_negative         .7199   .4385    1.022        190 s   .233     .6773      .6484
oracle                .7190   .4402    1.022        171 s   .204     .6750      .6470

Lag is from the beginning of a highlight until the room's mean probability is 1.5 times as high,
missed the share of highlights that were over by then. "room lately" is no model: what Moment's
stream said of a room in the last five minutes (fast_slow's: .6727, 454 s, .904). Moment is above
fast_slow in this world and in two more, in all figures; to tell every visit as a negative at once
and to weigh that, which is simpler, is above Moment, and not below the oracle. Intervals, the other
worlds and tests: results/moment, by experiments/tables/moment.py. Nobody has published numbers on
these data.
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
