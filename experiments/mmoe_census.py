r"""MMoE on Census-Income: income above 50,000, never married, a college degree, learnt at once.

python -m jaxrec.train --config=experiments/mmoe_census.py --workdir=runs/census \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/census

FOLDER holds census-income.test, the test half of the data set (see jaxrec/datasets/census_rows.py):
99,762 persons, of whom those with row number modulo 5 of 0, 1, 2 train, 3 validate, 4 test. The
answers themselves and the survey's weight are no features. Test AUC, means and standard deviations
of seeds 0 to 4 (half a minute of a CPU core each), below the trees on income; boosted trees and
logistic regression (scikit-learn, one model per question) under the same split:

                        income          never married   education
MMoE                    .9371 +- .0003  .9940 +- .0000  .8942 +- .0001
PLE                     .9370 +- .0006  .9939 +- .0001  .8942 +- .0004
boosted trees           .9426           .9941           .8945
logistic regression     .9351           .9936           .8832

`mmoe_census.py:NAME` is another head: shared_bottom, ple, or single_LABEL, a model of one question;
evaluate --base=REPORT,.. tells what learning them together gains.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.data.fields import Field
from jaxrec.datasets.census_rows import CATEGORIES, NUMBERS
from jaxrec.experiment import Experiment
from jaxrec.models import mmoe, ple
from jaxrec.tasks import click

LABELS = ('income', 'never_married', 'education')
FIELDS = (
    *(Field(name) for name in CATEGORIES),
    *(Field(name, 'quantile', size=30) for name in NUMBERS),
)
MODELS = {
    '': mmoe.Config(dropout=0.1),
    'shared_bottom': mmoe.Config(experts=1, dropout=0.1),
    'ple': ple.Config(dropout=0.1),
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is a name of MODELS, or single_LABEL."""
    single = arg.startswith('single_')
    return Experiment(
        task=click.Config(
            labels=(arg.removeprefix('single_'),) if single else LABELS,
            fields=FIELDS,
            day='fifth',
            valid_from=3,
            test_from=4,
        ),
        model=MODELS['shared_bottom' if single else arg],
        data=Data(dataset='census-income-rows'),
        optim=Optim(learning_rate=1e-3, b2=0.999),
        train=Train(batch_rows=512, epochs=8, metric='AUC/mean', patience=2),
    )
