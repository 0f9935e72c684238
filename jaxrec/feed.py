"""What an experiment trains on: its batches, and the codes of its model's features."""

import numpy as np

from jaxrec.batches import Codes, TrainBatches
from jaxrec.codes import Encoder
from jaxrec.config import Experiment
from jaxrec.cuts import CutBatches
from jaxrec.histories import Histories
from jaxrec.splits import Split


def train_batches(
    experiment: Experiment,
    histories: Histories,
    split: Split,
    *,
    rows: int = 0,
    process: tuple[int, int] = (0, 1),
) -> TrainBatches | CutBatches:
    """The training batches; `rows` > 0 replaces train.batch_rows."""
    data, settings = experiment.data, experiment.train
    common = {
        'max_len': experiment.model.max_len,
        'rows': rows or settings.batch_rows,
        'seed': settings.seed,
        'codes': feature_codes(experiment.model, histories, split.train_ends),
        'process': process,
    }
    if data.windows == 'cuts':
        return CutBatches(
            histories, split.train_ends, windows=data.windows_per_user, cuts=data.cuts, **common
        )
    return TrainBatches(
        histories,
        split.train_ends,
        windows=data.windows,
        unseen_negatives=data.unseen_negatives,
        **common,
    )


def feature_codes(model, histories: Histories, train_ends: np.ndarray) -> Codes | None:
    """Codes of the features that a model's Config declares; None if it declares none."""
    features = getattr(model, 'features', ())
    return Encoder(histories, features, train_ends).events if features else None
