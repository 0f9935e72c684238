"""What `import jaxrec` offers besides the parts of an experiment and `evaluate`: fit, load."""

import os
import pathlib
from typing import Any

from jaxrec.experiment import Experiment
from jaxrec.serving.memories import Memories
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.scorer import Scorer
from jaxrec.training import loop
from jaxrec.training.restore import load_trained


def fit(experiment: Experiment, workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains an experiment into a work directory, or goes on with the run there.

    Returns:
      {'workdir', 'stopped', 'step', 'best_step', 'metric', 'best'}, see `training.loop.fit`.

    Raises:
      UserError: anything the user can put right.
    """
    return loop.fit(experiment, pathlib.Path(workdir))


def load(
    workdir: str | os.PathLike, checkpoint: str = 'best', **options: Any
) -> Recommender | Scorer:
    """What a run serves: `.recommend(histories, k)` gives lists, `.score(rows)` of a click model
    probabilities; `.warm_up()` first, and no request waits for a compiler. Of a model with a memory
    `.shown(rows)` and `.came(user, item, labels)` tell it what happened, see `serving.memories`.

    The folder is enough, wherever it is; lists for users of the data (`.user`) need the data.

    Args:
      workdir: folder of the run.
      checkpoint: 'best' or 'last'.
      options: of `serving.recommender.Recommender` (k, keep_seen, explain, batch_users, exclude,
        allow) or `serving.scorer.Scorer` (batch_rows).
    """
    trained = load_trained(workdir, checkpoint)
    if 'scores' not in trained.served.verbs:
        return Recommender(trained, **options)
    kind = Memories if trained.experiment.model.inputs().max_len else Scorer
    return kind(trained, **options)
