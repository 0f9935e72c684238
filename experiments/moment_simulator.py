r"""Label streams for live rooms: what a model is told, and when, of visits to generated rooms.

python -m jaxrec.train --config=experiments/moment_simulator.py --workdir=runs/moment
python -m jaxrec.evaluate --workdir=runs/moment

`moment_simulator.py:NAME` learns from another stream of jaxrec/data/label_streams.py: fast_slow,
sliver, fake_negative or oracle. Rooms change by the minute (jaxrec/datasets/live_rooms.py); every
30 seconds the model of that moment scores the visits of the next 5 minutes and then learns what the
stream says. The default world, three hours of 162,089 visits, the first half hour not measured,
seed 0 of the parameters; 12 to 15 seconds of a CPU a run, which take longer where every tick writes
to a slow disk:

                  click: AUC  logloss  calibration  lag     missed   like: AUC  gift: AUC
room lately           .6789   .4509    1.039        311 s   .465     .6401      .6191
fast_slow             .6998   .4495    1.048        372 s   .737     .6588      .6402
sliver*               .7074   .4446    1.031        223 s   .298     .6699      .6308
moment                .7152   .4415    1.038        224 s   .298     .6691      .6453
fake_negative*        .7210   .4381    1.024        197 s   .254     .6780      .6499
oracle                .7157   .4424    1.023        172 s   .211     .6728      .6476

Lag is from the beginning of a highlight until the room's mean probability is 1.5 times as high,
missed the share of highlights that were over by then. "room lately" is no model: what Moment's
stream said of a room in the last five minutes (fast_slow's: .6727, 454 s, .904). Moment reaches the
oracle in AUC, not in lag; to tell every visit as a negative at once and to weigh that, which is
simpler, does better than Moment. One run each: differences below .005 of AUC mean little.
*: of five minutes that began a second earlier, which moved the others by .001 at most.
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
