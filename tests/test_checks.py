"""Every value that makes no sense is refused by its name."""

import dataclasses

import pytest

from jaxrec.config import Experiment
from jaxrec.errors import UserError
from jaxrec.experiment import check
from jaxrec.models import sasrec


def experiment(name=None, value=None):
    made = Experiment(model=sasrec.Config())
    if name:
        section, field = name.split('.')
        setattr(getattr(made, section), field, value)
    return made


def test_defaults_pass():
    check(experiment())


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('optim.learning_rate', -1.0),
        ('optim.learning_rate', float('nan')),
        ('optim.learning_rate', 0.0),
        ('optim.clip_norm', -1.0),
        ('optim.b1', 2.0),
        ('optim.ema', 1.0),
        ('optim.warmup_steps', -5),
        ('train.eval_every', -3.0),
        ('train.eval_every', 0.0),
        ('train.log_every', 0),
        ('train.patience', -1),
        ('train.steps', -1),
        ('train.microbatches', 0),
        ('train.epochs', 0),
        ('train.seed', -1),
        ('train.seed', 'zero'),
        ('train.metric', 'NDCG@7'),
        ('eval.batch_users', 0),
        ('eval.cutoffs', ()),
        ('eval.cutoffs', (1.5, 'a')),
        ('eval.cutoffs', (5,)),  # NDCG@10, the default metric, is then not measured
        ('eval.protocol', 'fully'),
        ('data.unseen_negatives', -1),
        ('data.min_user', -1),
        ('mesh.model', 0),
        ('model.dim', 'wide'),
    ],
)
def test_refused_by_name(name, value):
    with pytest.raises(UserError) as error:
        check(experiment(name, value))
    field = name.split('.')[1]
    assert field in str(error.value) or (name == 'eval.cutoffs' and 'NDCG@10' in str(error.value))
    assert '\n' not in str(error.value)


def test_not_an_experiment():
    with pytest.raises(UserError, match='not a dict'):
        check({})
    with pytest.raises(UserError, match='no model'):
        check(dataclasses.replace(experiment(), model=None))
