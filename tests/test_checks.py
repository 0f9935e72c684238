"""Every value that makes no sense is refused by its name."""

import dataclasses

import pytest

from jaxrec.config import Feature
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, check, effect, metric
from jaxrec.models import gcn, kuaiformer, sasrec
from jaxrec.objectives.contrast import Contrast


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
        ('train.microbatches', -1),
        ('train.epochs', 0),
        ('train.seed', -1),
        ('train.seed', 'zero'),
        ('train.metric', 'NDCG@7'),
        ('train.metric', 'Coverage@10'),  # of reports, not of training
        ('train.grow', True),  # from which run?
        ('train.batch_rows', 0),
        ('task.batch_users', 0),
        ('task.cutoffs', ()),
        ('task.cutoffs', (1.5, 'a')),
        ('task.cutoffs', (0,)),
        ('task.protocol', 'fully'),
        ('task.split', 'random'),
        ('task.targets', 'some'),
        ('task.targets', 'all'),  # leave-one-out has one
        ('task.periods', 0),
        ('task.windows', 'cuts'),  # with a loss that learns all events
        ('task.unseen_negatives', -1),
        ('task.unseen_negatives', 2),  # with a loss that draws none
        ('data.min_user', -1),
        ('mesh.model', 0),
        ('model.dim', 'wide'),
        ('model.loss', 'in_batch'),  # without cuts
        ('model.variant', '2019'),
        ('model.heads', 3),
        ('model.contrast', Contrast()),  # a tuple of them
        ('model.contrast', (Contrast(temperature=0.0),)),
        ('optim.table', 'sparse'),
        ('optim.table', 'sparse_adam'),  # the softmax looks at the whole table
        ('optim.schedule', 'step'),
    ],
)
def test_refused_by_name(name, value):
    with pytest.raises(UserError) as error:
        check(experiment(name, value))
    assert name.split('.')[1] in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (-0.5, r'optim.b1=-0.5 is not in \[0, 1\)'),
        (1.0, r'optim.b1=1.0 is not in \[0, 1\)'),
        (float('inf'), 'not a finite number'),
        (True, 'optim.b1=True is not float'),
    ],
)
def test_ranges_as_text(value, message):
    with pytest.raises(UserError, match=message):
        check(experiment('optim.b1', value))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model.loss': 'bce', 'optim.table': 'sparse_adam', 'optim.ema': 0.9}, 'no room for ema'),
        (
            {'model.loss': 'bce', 'optim.table': 'sparse_adam', 'train.microbatches': 2},
            'does not go with train.microbatches',
        ),
        (
            {'model.loss': 'in_batch', 'task.windows': 'cuts', 'train.microbatches': 2},
            'it needs the whole batch',
        ),
        ({'model.contrast': (Contrast(),), 'train.microbatches': 2}, 'it needs the whole batch'),
        ({'model.loss': 'in_batch', 'task.windows': 'cuts', 'task.cuts': 51}, 'more than the 50'),
        ({'task.targets': 'all', 'task.protocol': 'uniform'}, "needs task.protocol='full'"),
        ({'model.features': (Feature('x', 'kind'),)}, 'kind'),
    ],
)
def test_values_that_do_not_go_together(changes, message):
    made = experiment()
    for name, value in changes.items():
        section, field = name.split('.')
        setattr(getattr(made, section), field, value)
    with pytest.raises(UserError, match=message):
        check(made)


def test_models_of_other_tasks():
    with pytest.raises(UserError, match='reads no history'):
        check(dataclasses.replace(experiment(), model=gcn.Config()))
    with pytest.raises(UserError, match=r"task.windows='cuts', not 'last'"):
        check(dataclasses.replace(experiment(), model=kuaiformer.Config()))


def test_the_metric_of_training_is_the_tasks_unless_one_is_named():
    assert metric(experiment()) == 'NDCG@10'
    assert metric(experiment('task.cutoffs', (5, 7))) == 'NDCG@5'
    assert metric(experiment('train.metric', 'HR@20')) == 'HR@20'
    check(experiment('task.cutoffs', (5,)))


@pytest.mark.parametrize(
    ('name', 'what'),
    [
        ('optim.learning_rate', 'result'),
        ('task.protocol', 'measure'),
        ('train.seed', 'seed'),
        ('data.log', 'place'),
        ('train.log_every', 'pace'),
        ('train.steps', 'length'),
        ('train.epochs', 'epochs'),
        ('task.nothing', 'result'),  # of a model or a task that is not here
    ],
)
def test_what_a_field_changes(name, what):
    assert effect(name, experiment()) == what


def test_not_an_experiment():
    with pytest.raises(UserError, match='not a dict'):
        check({})
    for section in ('model', 'task'):
        with pytest.raises(UserError, match=f'no {section}: set {section}='):
            check(dataclasses.replace(experiment(), **{section: None}))
