"""What an experiment trains on: its batches, and the codes of its model's features."""

import math

import jax
import numpy as np

from jaxrec.config import Experiment
from jaxrec.data import positives
from jaxrec.data.cuts import CutBatches
from jaxrec.data.features import Codes, Encoder
from jaxrec.data.histories import Histories
from jaxrec.data.packed import TrainBatches
from jaxrec.data.splits import Split
from jaxrec.experiment import contrasting


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
    if contrasting(experiment.model):
        common |= _for_contrast(experiment.model.contrast, common, histories, split.train_ends)
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


def _for_contrast(contrast, common, histories, train_ends) -> dict:
    """`extras`, and `codes` with the item most similar to each event's where a view needs it."""
    views, codes = (contrast.first, contrast.second), common['codes']
    mesh = jax.sharding.get_mesh()
    users = positives.Users(
        histories,
        train_ends,
        max_len=common['max_len'],
        seed=common['seed'],
        same_target='same_target' in views,
        codes=codes,
        multiple=1 if mesh.empty else math.lcm(mesh.shape['data'], common['process'][1]),
    )
    if 'augment' not in views or not {'substitute', 'insert'} & contrast.rates.keys():
        return {'extras': users}
    similar = positives.similar_items(histories, train_ends)

    def with_similar(index):
        known = codes(index) if codes else {}
        return {**known, 'similar': similar[histories.items[index]]}

    return {'extras': users, 'codes': with_similar}
