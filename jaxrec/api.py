"""What `import jaxrec` offers besides the parts of an experiment and `evaluate`: fit, load."""

import os
import pathlib
from typing import Any

from jaxrec.experiment import Experiment
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
    probabilities; `.warm_up()` first, and no request waits for a compiler.

    The folder is enough, wherever it is; lists for users of the data (`.user`) need the data.

    Args:
      workdir: folder of the run.
      checkpoint: 'best' or 'last'.
      options: of `serving.recommender.Recommender` (k, keep_seen, explain, batch_users, exclude,
        allow) or `serving.scorer.Scorer` (batch_rows).
    """
    trained = load_trained(workdir, checkpoint)
    kind = Scorer if 'scores' in trained.served.verbs else Recommender
    return kind(trained, **options)
