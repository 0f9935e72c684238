r"""MMoE on Census-Income: income above 50,000, never married, a college degree, learnt at once.

python -m jaxrec.train --config=experiments/mmoe_census.py --workdir=runs/census \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/census

FOLDER holds census-income.test, the test half of the data set (see jaxrec/datasets/census_rows.py):
99,762 persons, of whom those with row number modulo 5 of 0, 1, 2 train, 3 validate, 4 test. The
answers themselves and the survey's weight are no features. Test AUC, means and standard deviations
of seeds 0 to 4 (half a minute of a CPU core each), above the trees on income, below them on
education; boosted trees and logistic regression (scikit-learn, one model per question) under the
same split:

                        income          never married   education
MMoE                    .9450 +- .0003  .9941 +- .0000  .8933 +- .0003
PLE                     .9451 +- .0002  .9940 +- .0001  .8934 +- .0002
boosted trees           .9426           .9941           .8945
logistic regression     .9351           .9936           .8832

With 30 quantiles of a number in place of 1000 (capital gains are 0 for most, so few were left for
the others) income was .9371, education .8942; dropout of .1 or .3, narrower and wider networks
changed validation by .0003 at most then.

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
    *(Field(name, 'quantile', size=1000) for name in NUMBERS),  # most are 0
)
DROPOUT = {'dropout': 0.2, 'embedding_dropout': 0.2}
MODELS = {
    '': mmoe.Config(**DROPOUT),
    'shared_bottom': mmoe.Config(experts=1, **DROPOUT),
    'ple': ple.Config(**DROPOUT),
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
        train=Train(batch_rows=512, epochs=20, metric='AUC/mean', patience=3),
    )
