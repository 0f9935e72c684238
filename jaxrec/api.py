"""What `import jaxrec` offers besides the parts of an experiment and `evaluate`: fit, load."""

import os
import pathlib
from typing import Any

from jaxrec.experiment import Experiment
from jaxrec.serving.recommender import Recommender
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


def load(workdir: str | os.PathLike, checkpoint: str = 'best', **options: Any) -> Recommender:
    """The recommender of a run: `.recommend(histories, k)` gives lists.

    The folder is enough, wherever it is; lists for users of the data (`.user`) need the data.

    Args:
      workdir: folder of the run.
      checkpoint: 'best' or 'last'.
      options: of `serving.recommender.Recommender`: k, keep_seen, explain, batch_users.
    """
    return Recommender(load_trained(workdir, checkpoint), **options)
