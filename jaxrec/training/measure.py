"""Measures what a run has trained, beside what has nothing to learn."""

import jax
import numpy as np

from jaxrec import experiment as experiment_lib
from jaxrec.cli import say
from jaxrec.errors import UserError
from jaxrec.evaluation.run import Pass
from jaxrec.problem import Evaluation, Measured
from jaxrec.training import predicted
from jaxrec.training.restore import Trained


def evaluate(trained: Trained, which: str) -> tuple[Evaluation, Measured, dict[str, Measured]]:
    """An evaluation of the problem, the model's result, and those of what has nothing to learn.

    Raises:
      UserError: the problem has no such evaluation, or the run has not predicted all it measures.
    """
    known = trained.problem.evaluations
    if which not in known:
        there = ' or '.join(known) or 'none: its periods were predicted in training'
        raise UserError(f'unknown split {which!r}; this run has {there}')
    with jax.set_mesh(trained.mesh):
        evaluation = known[which]()
        if evaluation.replays:
            kept = predicted.read(trained.workdir, evaluation.replays)
            measured = evaluation.measure((one.pop('places'), one) for one in kept)
            return evaluation, measured, evaluation.references()
        predict = Pass(trained.graphdef, trained.problem, trained.constants)
        say(f'{which}: predicting {evaluation.examples:,} examples')
        measured = predict(trained.params, evaluation, full=True, say=say)
        say('measuring what has nothing to learn')
        mixtures = evaluation.mixtures(lambda: predict.begin(trained.params))
        return evaluation, measured, {**evaluation.references(), **mixtures}


def as_json(
    trained: Trained,
    which: str,
    evaluation: Evaluation,
    measured: Measured,
    references: dict[str, Measured],
) -> dict:
    """What is told of an evaluation, JSON-ready; beaten_by: references with a better metric."""
    task = trained.experiment.task
    main = experiment_lib.metric(trained.experiment)
    sign = 1 if task.metrics()[main].higher else -1
    return {
        'split': which,
        'metrics': measured.metrics,
        'references': {name: other.metrics for name, other in references.items()},
        'groups': measured.groups,
        'reference_groups': {name: other.groups for name, other in references.items()},
        'details': measured.details,
        'unit': measured.unit,
        'examples': evaluation.examples,
        'protocol': evaluation.protocol,
        'main_metric': main,
        'beaten_by': [
            name
            for name, other in references.items()
            if sign * other.metrics.get(main, -sign * np.inf) > sign * measured.metrics[main]
        ],
        'data_hash': trained.problem.data_hash,
        'compared_hash': trained.problem.compared_hash or trained.problem.data_hash,
        'seed': trained.experiment.train.seed,
        'checkpoint': trained.checkpoint,
        'step': trained.step,
        'workdir': str(trained.workdir),
    }
